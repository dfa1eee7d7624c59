"""The plan of a run's memory: against what is measured, in its parts, and what it says where a
run does not fit.
"""

import gc
import inspect
import json
import re
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from rlkd_lab.models import load_policy, loading
from rlkd_lab.models.dense_copy import DenseCopy
from rlkd_lab.models.lora import Lora
from rlkd_lab.runs import RunFolder
from rlkd_lab.training import RunConfig, fitting, make_config, memory_passes, model_shape, run
from rlkd_lab.training import plan as plan_module
from rlkd_lab.training import session as session_module
from rlkd_lab.training.context import Context
from rlkd_lab.training.fitting import fitted
from rlkd_lab.training.folders import create
from rlkd_lab.training.memory_passes import Live
from rlkd_lab.training.model_shape import NF4_BYTES, Shape
from rlkd_lab.training.plan import CONTEXT, GIB, MARGIN, Plan, plan
from rlkd_lab.training.trainer import Trainer
from rlkd_lab.zoo.tokenizer import character_tokenizer

pytestmark = pytest.mark.loads

MIB = 2**20


def test_live_counts_what_is_held_and_lets_go():
    with Live() as live:
        a = torch.zeros(1000)
        b = a.view(10, 100)  # the same memory
        assert live.now == 4000
        c = b + 1
        assert live.now == 8000
        del c
        assert live.now == 4000
        (b + 1).add_(1)
    assert live.peak == 8000
    with Live([a]) as live:
        a.view(-1).add_(1)
    assert live.peak == 0


@pytest.mark.parametrize("family", ["qwen3", "qwen2"])
@pytest.mark.parametrize("quant", ["nf4", "none"])
def test_the_sizes_of_a_model_are_those_of_the_loaded_one(make_model, family, quant):
    folder = make_model(family, num_hidden_layers=3)
    shape, config = Shape.of(folder), make_config("grpo", student=folder, lora_rank=4)
    policy = load_policy(folder, quant, lora=Lora(4))
    assert shape.layers == 3
    assert shape.adapter(config) == sum(p.numel() for p in policy.trainable())
    frozen = [p for p in policy.model.parameters() if not p.requires_grad]
    packed = sum(p.numel() for p in frozen if p.dtype == torch.uint8)
    assert shape.linear == (
        2 * packed
        if quant == "nf4"
        else sum(
            p.numel() for n, p in policy.model.named_parameters() if "proj.base_layer.weight" in n
        )
    )
    whole = sum(p.numel() * p.element_size() for p in frozen)
    scales = shape.linear * (NF4_BYTES - 0.5) if quant == "nf4" else 0
    assert shape.weights(quant, 4) == pytest.approx(whole + scales, abs=1)


def test_nf4_with_its_scales_takes_what_is_said():
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(
        torch.randn(512, 1024), quant_type="nf4", compress_statistics=True
    )
    held = packed.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    assert held == pytest.approx(512 * 1024 * NF4_BYTES, rel=1e-3)


def measured(config, tmp_path):
    """Peak of a run's second step, without what other tests hold."""
    from benchmarks.memory import peak_of_a_step, tensors_now

    gc.collect()
    others = tensors_now()
    folder = create(config, tmp_path / "run")
    trainer, context = Trainer(config), Context(config, folder)
    trainer.step(context)
    return sum(peak_of_a_step(trainer, context)) - others


@pytest.mark.parametrize(
    ("sixteen", "settings"),
    [(False, {}), (True, {"gradient_checkpointing": True}), (True, {"micro_batch": 4})],
    ids=["float32", "16 bit with checkpointing", "16 bit with a small micro-batch"],
)
def test_predicted_and_measured_peak_agree_within_ten_percent(
    tmp_path, monkeypatch, sixteen, settings, make_model
):
    if sixteen:
        monkeypatch.setattr(loading, "compute_dtype", lambda device: torch.bfloat16)
    student, teacher = (
        make_model("qwen3", hidden=128, vocabulary=8000, seed=seed, max_position_embeddings=512)
        for seed in (0, 1)
    )
    config = make_config(
        "kdrl",
        student=student,
        teacher=teacher,
        steps=3,
        prompts_per_step=2,
        group_size=8,
        max_new_tokens=64,
        difficulty=(2, 2),
        eval_every=0,
        samples_every=0,
        checkpoint_every=0,
        kl_every=1,  # the largest step is planned
        updates_per_rollout=1,
        **{"micro_batch": 16, **settings},
    )
    assert plan(config, sixteen).peak / measured(config, tmp_path) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("sixteen", "quant"), [(False, "nf4"), (True, "none")], ids=["float32-nf4", "16 bit-none"]
)
def test_so_they_do_where_weights_are_most_of_it(tmp_path, monkeypatch, sixteen, quant, make_model):
    if sixteen:
        monkeypatch.setattr(loading, "compute_dtype", lambda device: torch.bfloat16)
    student, teacher = (
        make_model(
            "qwen3", hidden=hidden, vocabulary=2000, num_hidden_layers=6, initializer_range=0.02
        )
        for hidden in (512, 384)
    )
    config = make_config(
        "kdrl",
        student=student,
        teacher=teacher,
        quant=quant,
        teacher_quant=quant,
        steps=3,
        prompts_per_step=1,
        group_size=2,
        max_new_tokens=16,
        difficulty=(2, 2),
        eval_every=0,
        samples_every=0,
        checkpoint_every=0,
        updates_per_rollout=1,
        micro_batch=1,
    )
    assert plan(config, sixteen).peak / measured(config, tmp_path) == pytest.approx(1, abs=0.1)


def test_where_sampling_does_not_fit_the_micro_batch_is_left_alone(make_model):
    # large weights and short completions: no smaller update makes room for the copy to sample from
    student = make_model(hidden=512, num_hidden_layers=12)
    config = make_config(
        "grpo",
        student=student,
        teacher=None,
        max_new_tokens=16,
        micro_batch=2,
        logits_mib=1,
        eval_every=0,
        difficulty=(2, 2),
    )
    least = plan(config.model_copy(update={"dense_copy": False}), True, 10)
    assert plan(config, True, 10).peak > 1.1 * least.peak
    fits, found = fitted(config, (least.peak * MARGIN + CONTEXT) * 1.0005, True, 10)
    assert (fits.dense_copy, fits.micro_batch, fits.gradient_checkpointing) == (False, 2, False)
    assert found == least


def test_what_is_held_grows_with_what_it_is_made_of(make_model):
    config = make_config("kdrl", student=make_model(), teacher=make_model(hidden=128), eval_every=0)
    base = plan(config, True, 10)

    def changed(**update):
        return plan(config.model_copy(update=update), True, 10)

    assert changed(group_size=16).sampling["cache"] == 2 * base.sampling["cache"]
    assert changed(sample_at_once=24).sampling["cache"] == base.sampling["cache"] // 2
    assert changed(lora_rank=32).held["adapter"] == 2 * base.held["adapter"]
    assert changed(teacher=None).held["teacher"] == 0 < base.held["teacher"]
    assert changed(teacher=config.student).held["teacher"] == 0  # one base for both
    assert changed(teacher_home="host").held["teacher"] == 0
    assert (
        changed(micro_batch=8).updating["activations"]
        < base.updating["activations"]
        < changed(micro_batch=32).updating["activations"]
    )
    assert (
        changed(gradient_checkpointing=True).updating["activations"] < base.updating["activations"]
    )
    linear = Shape.of(config.student).linear
    # in 16 bit the student's alone, with A and B beside it
    assert base.held["dense copies"] == 2 * linear + 3 * base.held["adapter"] // 4
    assert plan(config, False, 10).held["dense copies"] > 12 * linear
    assert "dense copies" not in changed(dense_copy=False).held


@pytest.mark.parametrize(("quant", "rank"), [("nf4", 64), ("none", 64), ("nf4", 4)])
def test_in_16_bit_a_copy_holds_what_is_planned(make_model, monkeypatch, quant, rank):
    monkeypatch.setattr(loading, "compute_dtype", lambda device: torch.bfloat16)
    name = make_model("qwen2", hidden=256, num_attention_heads=4, num_key_value_heads=2)
    config = make_config("grpo", student=name, teacher=None, quant=quant, lora_rank=rank)
    policy = load_policy(name, quant, lora=config.lora())
    own = {value.untyped_storage().data_ptr() for value in policy.model.state_dict().values()}
    copy = DenseCopy(policy)
    own |= {value.untyped_storage().data_ptr() for value in policy.model.state_dict().values()}
    held = [*copy.model.parameters(), *(part for one in copy.beside for part in (one.a, one.b))]
    sizes = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in held}
    found = sum(size for place, size in sizes.items() if place not in own)
    if quant == "none":  # A lies below the weights in the policy's own storage
        found += sum(
            one.a.nbytes for one in copy.beside if one.a.untyped_storage().data_ptr() in own
        )
    assert plan(config, True, 10).held["dense copies"] == pytest.approx(found, rel=0.1)


def test_the_parts_that_happen_at_once_add_up():
    found = Plan({"a": 10, "b": 20}, {"c": 5}, {"d": 3, "e": 4})
    assert found.peak == 37
    assert found.fits(37 * MARGIN + CONTEXT + 1)
    assert not found.fits(37 * MARGIN + CONTEXT - 1)
    assert found.fits(37 * MARGIN + 1, gpu=False)


def test_what_does_not_fit_is_made_smaller_without_changing_the_result(make_model):
    config = make_config(
        "kdrl",
        student=make_model(vocabulary=8000),
        teacher=make_model(vocabulary=8000, seed=1),
        micro_batch=16,
    )
    whole = plan(config, True, 10)
    fits, found = fitted(config, whole.peak * MARGIN + CONTEXT + MIB, True, 10)
    assert (fits, found) == (config, whole)
    smaller, found = fitted(config, 0.5 * whole.peak * MARGIN + CONTEXT, True, 10)
    changed = {
        name for name, value in smaller.model_dump().items() if value != getattr(config, name)
    }
    assert changed
    assert changed <= {
        "sample_at_once",
        "micro_batch",
        "logits_mib",
        "gradient_checkpointing",
        "dense_copy",
    }
    assert found.fits(0.5 * whole.peak * MARGIN + CONTEXT)


def test_what_cannot_be_made_to_fit_says_what_would(make_model):
    config = make_config(
        "kdrl",
        student=make_model("qwen3", hidden=256, vocabulary=8000),
        teacher=make_model("qwen3", hidden=512, vocabulary=8000, num_hidden_layers=8),
        micro_batch=2,
    )
    least = fitted(config, 100 * GIB, True, 10)[0].model_copy(
        update={"micro_batch": 1, "sample_at_once": 8, "gradient_checkpointing": True}
    )
    least = least.model_copy(update={"dense_copy": False})  # which is tried too
    room = plan(least, True, 10).peak * MARGIN + CONTEXT - MIB // 8
    with pytest.raises(
        ValueError,
        match=r"needs 1\.0 GiB even with micro_batch=1, and 1\.0 are there. What would fit:"
        r" .*teacher_home=host",
    ):
        fitted(config, room, True, 10)
    with pytest.raises(ValueError, match="A smaller model would be needed"):
        fitted(config, CONTEXT, True, 10)


@pytest.mark.parametrize(
    ("needed", "says"),
    [
        (
            {"max_new_tokens": 128, "teacher_home": "host"},
            "--set max_new_tokens=128 --set teacher_home=host together",
        ),
        (
            {"max_new_tokens": 64, "prompts_per_step": 3, "teacher_home": "host"},
            "--set max_new_tokens=64 --set prompts_per_step=3 --set teacher_home=host together",
        ),
        ({"prompts_per_step": 3}, "--set prompts_per_step=3"),
        ({"max_new_tokens": 32}, "A smaller model would be needed, or a larger card"),
    ],
)
def test_what_fits_together_only_is_said_together(monkeypatch, needed, says):
    class Found:
        def __init__(self, config):
            numbers = {name: value for name, value in needed.items() if name != "teacher_home"}
            self.good = all(
                getattr(config, name) <= value for name, value in numbers.items()
            ) and needed.get("teacher_home") in (None, config.teacher_home)

        def fits(self, memory, gpu):
            return self.good

    monkeypatch.setattr(fitting, "plan", lambda config, gpu, prompt: Found(config))
    config = make_config("kdrl", settings={"max_new_tokens": "256"})
    assert fitting._would_fit(config, GIB, True, 10).removeprefix("What would fit: ") == says


def test_a_run_is_made_to_fit_before_anything_is_loaded(make_model, tmp_path, tiny, monkeypatch):
    config = tiny(
        "kdrl",
        student=make_model(vocabulary=8000),
        teacher=make_model(vocabulary=8000, seed=1),
        micro_batch=16,
        group_size=8,
    )
    need = plan(config, False)
    monkeypatch.setattr(session_module, "free_memory", lambda _: 0.9 * need.peak * MARGIN)
    with pytest.warns(UserWarning, match="GiB are free: the run is made with .*micro_batch="):
        folder = run(config, tmp_path / "run")
    assert RunFolder.open(folder.path).config()["micro_batch"] < 16
    monkeypatch.setattr(session_module, "Trainer", lambda *_: pytest.fail("loaded"))
    monkeypatch.setattr(session_module, "free_memory", lambda _: MIB)
    with pytest.raises(ValueError, match="even with micro_batch=1"):
        run(config, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_who_knows_better_switches_it_off(make_model, monkeypatch):
    config = make_config("kdrl", student=make_model(), settings={"plan": "off"})
    monkeypatch.setattr(session_module, "fitted", lambda *_: pytest.fail("asked"))
    assert session_module.within_memory(config) is config
    assert (
        session_module.within_memory(make_config("kdrl")).student == "student"
    )  # embedded models always fit


def test_a_context_that_is_too_short_is_found_without_weights(make_model):
    with pytest.raises(
        ValueError,
        match="prompts of 10 tokens and completions of 500 do not fit the context of 128",
    ):
        plan(make_config("grpo", student=make_model(), max_new_tokens=500), True, 10)


def test_real_sizes_are_planned_from_config_and_tokenizer_alone(tmp_path):
    from transformers import Qwen3Config

    from rlkd_lab.zoo.tokenizer import character_tokenizer

    shapes = {"student": (2048, 6144, 28, 16, True), "teacher": (4096, 12288, 36, 32, False)}
    for name, (hidden, feed_forward, layers, heads, tied) in shapes.items():
        Qwen3Config(
            vocab_size=151_936,
            hidden_size=hidden,
            intermediate_size=feed_forward,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=8,
            head_dim=128,
            max_position_embeddings=40_960,
            eos_token_id=1,
            pad_token_id=0,
            tie_word_embeddings=tied,
        ).save_pretrained(tmp_path / name)
        character_tokenizer().save_pretrained(tmp_path / name)
    config = make_config(
        "kdrl", "s-countdown", student=str(tmp_path / "student"), teacher=str(tmp_path / "teacher")
    )
    found = plan(config, True)
    # Qwen3-8B: 8.2 billion weights, of which 6.95 billion in the layers
    assert found.held["teacher"] / GIB == pytest.approx(
        (6.95e9 * NF4_BYTES + 2 * 1.245e9) / GIB, rel=0.01
    )
    assert fitted(config, 24 * GIB, True)[0].sample_at_once > 0
    assert json.loads((tmp_path / "teacher" / "config.json").read_text())["model_type"] == "qwen3"


SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 64}
HARD = {
    "falcon": ("Falcon", {}, "its attention cannot be counted as a fused kernel"),
    "gptj": (
        "GPTJ",
        {"n_positions": 128, "rotary_dim": 16, "tie_word_embeddings": False},
        "its attention cannot be counted as a fused kernel",
    ),
    "dynamic rope": (
        "Llama",
        {
            "intermediate_size": 128,
            "max_position_embeddings": 128,
            "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
        },
        "its code does not run without data .RuntimeError.*, so it is taken for a Llama of"
        " the same sizes",
    ),
}
"""Models whose code does not let the plan count as it does elsewhere, and what is said of that."""


@pytest.fixture
def hard(tmp_path):
    def make(kind):
        name, fields, _ = HARD[kind]
        config = getattr(transformers, f"{name}Config")(
            vocab_size=128, bos_token_id=None, eos_token_id=1, pad_token_id=0, **SIZES, **fields
        )
        getattr(transformers, f"{name}ForCausalLM")(config).save_pretrained(tmp_path / "model")
        character_tokenizer().save_pretrained(tmp_path / "model")
        return str(tmp_path / "model")

    return make


@pytest.mark.parametrize("kind", HARD)
def test_a_model_that_does_not_run_without_data_has_an_estimate_with_one_sentence(hard, kind):
    folder = hard(kind)
    with pytest.warns(
        UserWarning, match=rf"the memory of .* is an estimate: {HARD[kind][2]}"
    ) as told:
        found = plan(
            make_config("grpo", student=folder, teacher=None, quant="none"),
            gpu=False,
            prompt_tokens=16,
        )
    assert len([one for one in told if "is an estimate" in str(one.message)]) == 1
    lm = load_policy(folder, "none")
    assert found.held["student"] == sum(
        p.numel() * p.element_size() for p in lm.model.parameters() if not p.requires_grad
    )
    assert found.held["adapter"] == sum(p.numel() * p.element_size() for p in lm.trainable())
    assert found.updating["activations"] > 0


@pytest.mark.parametrize("kind", HARD)
def test_such_a_model_trains(hard, tiny, tmp_path, kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert (
            run(
                tiny("grpo", student=hard(kind), teacher=None, quant="none", steps=1),
                tmp_path / "run",
            ).status()["state"]
            == "done"
        )


def test_a_llama_stands_for_a_llama(make_model):
    """Where both can be counted, the stand-in holds about as much as the model."""
    shape = Shape.of(make_model("qwen3"))
    config = make_config("grpo", student=make_model("qwen3"), teacher=None, quant="none")
    counted, taken = (
        plan_module._passes(config, [one], 4, 16)
        for one in (shape, replace(shape, counted=model_shape._stand_in(shape.config)))
    )
    assert 0.8 * counted < taken < 1.25 * counted


def test_a_teachers_adapter_that_changes_the_base_needs_a_base_for_itself(make_model, make_adapter):
    model = make_model()
    held = [
        plan(
            make_config(
                "kdrl", student=model, teacher=model, teacher_adapter=make_adapter(model, bias=bias)
            ),
            gpu=False,
            prompt_tokens=16,
        ).held["teacher"]
        for bias in ("none", "all")
    ]
    assert held[0] == 0 < held[1]


def test_a_pass_reads_no_setting_that_its_memory_of_earlier_passes_lacks():
    text = Path(memory_passes.__file__).read_text(encoding="utf-8")
    read = set(re.findall(r"(?<!\.)\bconfig\.([a-z_]+)\b", text))
    within = re.findall(r"self\.(lora_[a-z]+)", inspect.getsource(RunConfig.lora))
    assert read - {"lora"} | set(within) == set(memory_passes.SETTINGS)
