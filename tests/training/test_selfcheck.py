"""What is wrong silently is found before the first step: four builds, each broken in one place,
are refused in words; a sound one is not disturbed.
"""

import json
import math
import random
import re

import numpy as np
import peft
import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from bitsandbytes.nn import Linear4bit
from peft.tuners.lora import bnb
from typer.testing import CliRunner

from rlkd_lab.commands import app
from rlkd_lab.models import load_policy, loading, logprobs
from rlkd_lab.models.decoder import Decoder
from rlkd_lab.models.dense_copy import DenseCopy
from rlkd_lab.runs import RunFolder, first_difference
from rlkd_lab.training import gaps, models, resume, run, selfcheck, session
from rlkd_lab.training.selfcheck import examine
from rlkd_lab.training.trainer import Trainer

pytestmark = pytest.mark.loads

ALL = ["gradients", "slope", "copy", "base", "adapter", "padding", "sampler"]
FAMILIES = ("qwen3", "qwen2", "gemma2")


def lost_after(monkeypatch, armed):
    """As bitsandbytes does on CPUs with AVX512-BF16: after one forward for inference a 4-bit
    layer passes no gradient on.
    """
    forward = Linear4bit.forward

    def spoilt(self, x):
        self.repacked = getattr(self, "repacked", False) or (
            bool(armed) and not torch.is_grad_enabled() and not self.training
        )
        return forward(self, x.detach() if self.repacked else x)

    monkeypatch.setattr(Linear4bit, "forward", spoilt)


def lost_after_a_generation(monkeypatch):
    armed, generate = [], selfcheck._generate
    lost_after(monkeypatch, armed)
    monkeypatch.setattr(
        selfcheck, "_generate", lambda *given: (armed.append(True), generate(*given))[1]
    )


def lost_while_the_models_are_loaded(monkeypatch):
    """Where gradients are the same before and after, since both are wrong."""
    lost_after(monkeypatch, [True])


def a_copy_of_half_a_gradient(monkeypatch):
    from rlkd_lab.models import dense_copy

    backward = dense_copy._Merged.backward
    monkeypatch.setattr(
        dense_copy._Merged,
        "backward",
        staticmethod(lambda *given: tuple(None if g is None else g / 2 for g in backward(*given))),
    )


def a_temperature_that_is_forgotten(monkeypatch):
    from rlkd_lab.rollouts import fast

    monkeypatch.setattr(
        fast, "_filtered", lambda logits, sampling: torch.log_softmax(logits.float(), dim=-1)
    )


def a_stale_adapter(monkeypatch):
    synced = []

    def once(self):
        if not any(one is self for one in synced):
            synced.append(self)
            sync(self)

    sync = DenseCopy.sync
    monkeypatch.setattr(DenseCopy, "sync", once)


def an_adapter_that_stays_on(monkeypatch):
    from contextlib import nullcontext

    monkeypatch.setattr(peft.PeftModel, "disable_adapter", lambda self: nullcontext())


def a_base_that_was_merged_into(monkeypatch):
    load = loading.load_policy

    def merged(*given, **more):
        policy = load(*given, **more)
        with torch.no_grad():
            policy.causal_lm.model.layers[0].self_attn.q_norm.weight.mul_(1.01)
        return policy

    monkeypatch.setattr(models, "load_policy", merged)
    monkeypatch.setattr(selfcheck, "load_policy", merged)


def an_adapter_that_does_nothing(monkeypatch):
    monkeypatch.setattr(bnb.Linear4bit, "forward", lambda self, x: self.base_layer(x))


def a_mask_that_is_ignored(monkeypatch):
    states = logprobs.hidden_states

    def unmasked(lm, sequences):
        def everything(module, args, more):
            return args, {**more, "attention_mask": torch.ones_like(more["attention_mask"])}

        hook = lm.backbone.register_forward_pre_hook(everything, with_kwargs=True)
        try:
            return states(lm, sequences)
        finally:
            hook.remove()

    monkeypatch.setattr(logprobs, "hidden_states", unmasked)


def positions_that_are_wrong_in_padded_rows(monkeypatch):
    """Rotary positions are relative, so that a shift of all of them would do no harm; these are
    wrong in padded rows alone.
    """
    states = logprobs.hidden_states

    def shifted(lm, sequences):
        def wrong(module, args, more):
            padded = (more["attention_mask"][:, :1] == 0).long()
            return args, {**more, "position_ids": more["position_ids"] // (1 + padded)}

        hook = lm.backbone.register_forward_pre_hook(wrong, with_kwargs=True)
        try:
            return states(lm, sequences)
        finally:
            hook.remove()

    monkeypatch.setattr(logprobs, "hidden_states", shifted)


BROKEN = {
    lost_after_a_generation: "gradients are lost after a generation",
    lost_while_the_models_are_loaded: "gradients are not the slope of the loss",
    a_copy_of_half_a_gradient: r"the dense copy is wrong: its gradients are not the policy's"
    r" .*dense_copy=false",
    a_stale_adapter: "the dense copy is wrong",
    a_temperature_that_is_forgotten: "what is sampled is not the policy that is trained",
    an_adapter_that_stays_on: "with its adapter off the policy is not its base",
    a_base_that_was_merged_into: "with its adapter off the policy is not its base",
    an_adapter_that_does_nothing: "no gradient reaches the adapter",
    a_mask_that_is_ignored: "padding changes what the policy says",
    positions_that_are_wrong_in_padded_rows: "padding changes what the policy says",
}
"""With what each is refused. Where one fault shows in several numbers, it is the first."""
broken_builds = pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)


@broken_builds
def test_a_broken_build_is_refused_before_the_first_step(tiny, tmp_path, monkeypatch, broken):
    broken(monkeypatch)
    monkeypatch.setattr(Trainer, "step", lambda *_: pytest.fail("a step was taken"))
    with pytest.raises(ValueError, match=BROKEN[broken]) as caught:
        run(tiny(), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@broken_builds
def test_doctor_deep_fails_on_a_broken_build(monkeypatch, broken):
    broken(monkeypatch)
    result = CliRunner().invoke(app, ["doctor", "--deep", "--student", "student", "--json"])
    assert result.exit_code == 1
    wrong = [
        line["text"]
        for line in json.loads(result.stdout)
        if not line["ok"] and line["text"].startswith("student (nf4)")
    ]
    assert re.search(BROKEN[broken], wrong[0])


@pytest.mark.skipif(
    not has_avx512bf16(), reason="this CPU has no AVX512-BF16, so bitsandbytes does not repack"
)
def test_without_the_guard_of_the_loader_no_run_begins_on_such_a_cpu(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "quantised_layers", lambda model: iter(()))
    with pytest.raises(ValueError, match="gradients are not the slope of the loss"):
        run(tiny(dense_copy=False), tmp_path / "run")


def test_an_adapter_of_any_size_is_heard(monkeypatch):
    policy = load_policy("student", "nf4")
    policy.model.train()
    monkeypatch.setattr(selfcheck, "STIR", 1e-6)
    found = {one.name: one for one in examine(policy, policy, None)}
    assert not found["adapter"].ok
    assert "the adapter does nothing" in found["adapter"].text


def test_a_sound_build_passes_with_its_numbers():
    result = CliRunner().invoke(
        app, ["doctor", "--deep", "--student", "knights-student", "--quant", "none"]
    )
    assert result.exit_code == 0, result.output
    assert sum(
        "knights-student (none): " in line
        and re.search(r"[\d.e-]+( nats apart)?$", line) is not None
        for line in result.stdout.splitlines()
    ) == len(ALL)


def test_a_model_is_asked_for_with_deep_alone():
    result = CliRunner().invoke(app, ["doctor", "--student", "student"])
    assert result.exit_code == 2
    assert "--student is for --deep" in result.output


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["student", "knights-teacher", "qwen3", "qwen2", "gemma2"])
def test_rounding_in_16_bit_is_no_fault(make_model, monkeypatch, name, dtype):
    monkeypatch.setattr(loading, "compute_dtype", lambda device: dtype)
    policy = load_policy(make_model(name) if name in FAMILIES else name, "nf4")
    policy.model.train()
    dense = DenseCopy(policy)
    for student in (policy, dense.lm):
        assert [one.text for one in examine(policy, student, dense) if not one.ok] == []


def test_in_16_bit_the_noise_of_a_deep_model_is_no_fault(make_model, monkeypatch):
    monkeypatch.setattr(loading, "compute_dtype", lambda device: torch.bfloat16)
    monkeypatch.setattr(gaps, "MAX_GAP_16", 0.01)  # a larger model reaches .05
    name = make_model(num_hidden_layers=20, initializer_range=0.5)
    policy = load_policy(name, "nf4")
    policy.model.train()
    dense = DenseCopy(policy)
    found = {one.name: one for one in examine(policy, dense.lm, dense)}
    assert found["sampler"].value > 0.01
    assert found["sampler"].ok, found["sampler"].text
    assert found["copy"].value > 0.1
    assert found["copy"].ok, found["copy"].text


def test_a_lean_decoder_that_is_off_is_left_and_said(monkeypatch):
    policy = load_policy("student", "nf4")
    policy.model.train()
    dense, step = DenseCopy(policy), Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda self, *given: 2 * step(self, *given))
    with pytest.warns(UserWarning, match="sampled through its own forward, more slowly: .* nats"):
        found = {one.name: one.ok for one in examine(policy, dense.lm, dense)}
    assert found["sampler"] and dense.decoder is None


def test_in_16_bit_a_copy_with_other_gradients_is_found(monkeypatch):
    monkeypatch.setattr(loading, "compute_dtype", lambda device: torch.bfloat16)
    policy = load_policy("student", "nf4")
    policy.model.train()
    dense = DenseCopy(policy)
    a, b, scaling = dense.beside[5].adapter
    dense.beside[5].adapter = (a, b, 2 * scaling)
    found = {one.name: one.ok for one in examine(policy, dense.lm, dense)}
    assert not found["copy"]


def test_in_16_bit_a_broken_build_is_found_too(monkeypatch):
    monkeypatch.setattr(loading, "compute_dtype", lambda device: torch.bfloat16)
    for broken in (
        lost_after_a_generation,
        a_temperature_that_is_forgotten,
        an_adapter_that_stays_on,
        a_stale_adapter,
    ):
        with monkeypatch.context() as within:
            broken(within)
            policy = load_policy("student", "nf4")
            policy.model.train()
            wrong = [one.name for one in examine(policy, policy, DenseCopy(policy)) if not one.ok]
        assert wrong[:1] == [
            "base"
            if broken is an_adapter_that_stays_on
            else "gradients"
            if broken is lost_after_a_generation
            else "sampler"
        ]


def test_the_record_has_the_numbers(trained):
    (event,) = [row for row in trained("kdrl").rows("events.jsonl") if row["event"] == "selfcheck"]
    assert event["step"] == 0
    assert [name for name in event if name not in ("event", "step", "time")] == ALL
    assert all(math.isfinite(event[name]) for name in ALL)


def test_a_run_that_goes_on_is_checked_again_and_fails_where_the_build_broke_since(
    tiny, tmp_path, monkeypatch
):
    def stop(loop, row):
        loop.stopping = True

    run(tiny(), tmp_path / "run", on_step=stop)
    folder = RunFolder.open(tmp_path / "run")
    rows = folder.rows()
    with monkeypatch.context() as within:
        an_adapter_that_stays_on(within)
        with pytest.raises(ValueError, match="with its adapter off"):
            resume(tmp_path / "run")
    assert (folder.status()["state"], folder.rows()) == ("failed", rows)
    assert "with its adapter off" in folder.status()["why"]
    resume(tmp_path / "run")
    assert folder.status()["state"] == "done"
    assert [row["step"] for row in folder.rows("events.jsonl") if row["event"] == "selfcheck"] == [
        0,
        1,
        1,
    ]


def test_what_another_process_finds_ends_the_run_in_all(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(
        selfcheck.distributed,
        "from_all",
        lambda value: [value, ["the other's models are wrong"]] if value == [] else [value],
    )
    with pytest.raises(ValueError, match="the other's models are wrong"):
        run(tiny(), tmp_path / "run")


def test_what_is_checked_at_a_start_shares_its_forwards(tiny, tmp_path, monkeypatch):
    called, forward = [], Linear4bit.forward
    monkeypatch.setattr(
        Linear4bit, "forward", lambda *given: (called.append(1), forward(*given))[1]
    )
    monkeypatch.setattr(Trainer, "step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(tiny(), tmp_path / "run")
    # base, head (2), gradients (2), adapter off, slope and sampler; of the teacher the head (2)
    assert len(called) == (8 + 2) * 7  # layers of one block


# --- it leaves no trace ---------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"dense_copy": False}])
def test_a_run_has_the_same_rows_with_and_without(tiny, tmp_path, monkeypatch, fields):
    def stop(loop, row):
        loop.stopping = row["step"] == 2

    def rows(name):
        run(
            tiny("kdrl", {"learning_rate": "0.01"}, steps=3, **fields),
            tmp_path / name,
            on_step=stop,
        )
        return resume(tmp_path / name).rows()

    checked = rows("checked")
    monkeypatch.setattr(session, "check_start", lambda *_: None)
    assert first_difference(checked, rows("unchecked")) == (None, 0.0)


def test_weights_gradients_optimizer_and_random_streams_are_as_they_were(tiny, tmp_path):
    def streams():
        numpy_state = np.random.get_state()[1].tolist()  # noqa: NPY002
        return torch.random.get_rng_state().tolist(), random.getstate(), numpy_state

    seen = {}

    def check(run, row):
        loop = run.trainer.setup.models
        moments = run.trainer.state.copy().moments
        state = (
            [p.detach().clone() for p in loop.policy.trainable()],
            [p.grad.clone() for p in loop.policy.trainable()],
            moments,
        )
        loop.copy.sync()
        merged = [p.clone() for p in loop.copy.model.parameters()]
        before = streams()
        seen["numbers"] = [one.ok for one in examine(loop.policy, loop.student, loop.copy)]
        assert streams() == before
        assert loop.policy.model.training
        for p, value, gradient in zip(loop.policy.trainable(), *state[:2], strict=True):
            assert torch.equal(p, value)
            assert torch.equal(p.grad, gradient)
        moments = run.trainer.state.copy().moments
        assert all(
            torch.equal(moments[i][key], value)
            for i, entry in state[2].items()
            for key, value in entry.items()
        )
        assert all(
            torch.equal(p, value)
            for p, value in zip(loop.copy.model.parameters(), merged, strict=True)
        )

    run(tiny("kdrl", {"learning_rate": "0.01"}, steps=1), tmp_path / "run", on_step=check)
    assert seen["numbers"] == [True] * len(ALL)
