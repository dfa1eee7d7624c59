"""What runs on a pretend GPU, and what it may ask of one.

python -m pytest -p tests.device.pretend tests/device/cases.py
"""

import threading
from collections import Counter

import pytest
import torch
from typer.testing import CliRunner

from rlkd_lab import doctor
from rlkd_lab.commands import app
from rlkd_lab.models import LanguageModel, cache, load_policy
from rlkd_lab.models.dense_copy import DenseCopy
from rlkd_lab.objectives import METHODS
from rlkd_lab.objectives.rules import from_both
from rlkd_lab.rollouts import Sampling, sample
from rlkd_lab.runs import RunFolder
from rlkd_lab.study import Settings, evaluate_target, find_target
from rlkd_lab.study.export import export_run
from rlkd_lab.tasks import find_task
from rlkd_lab.training import make_config, metrics, resume, run, update
from rlkd_lab.training.context import Context
from rlkd_lab.training.folders import create
from rlkd_lab.training.speed import Clock
from rlkd_lab.training.trainer import Trainer
from tests.device.pretend import device
from tests.short import SHORT

SMALL = {
    "steps": 1,
    "prompts_per_step": 2,
    "group_size": 2,
    "max_new_tokens": 16,
    "difficulty": (2, 2),
    "traces": 4,
    "eval_every": 0,
    "eval_prompts": 4,
    "samples_every": 0,
    "checkpoint_every": 0,
    "resample_rounds": 2,
    "plan": "off",
}


@pytest.fixture(autouse=True, params=["bf16", "fp16"])
def dtype(request, monkeypatch):
    """An H100 or a T4."""
    monkeypatch.setattr(device, "bf16", request.param == "bf16")
    monkeypatch.setattr(device, "capacity", 80 * 2**30)
    # half a minute on a CPU
    monkeypatch.setattr(metrics, "matmul_flops", lambda *_: 1e15)
    return torch.bfloat16 if device.bf16 else torch.float16


@pytest.fixture
def once(dtype):
    """Skip what does not depend on the precision in one of the two."""
    if dtype == torch.float16:
        pytest.skip("as in bfloat16")


def small(method="kdrl", **fields):
    size = {"group_size": 3} if METHODS[method].samples is from_both else {}
    given = {**SMALL, **SHORT, **size, **fields}
    return make_config(method, options={"keep_traces": "all"}, **given)


def drawn_by(policy, engine="fast", limit=16, group=4, **given):
    prompts = [example.prompt for example in find_task("arithmetic").examples(2, 0)]
    generator = torch.Generator(policy.device).manual_seed(0)
    return sample(policy, prompts, group, Sampling(1.0, limit), generator, engine=engine, **given)


# --- it mixes no devices --------------------------------------------------------------------------


def test_models_are_loaded_onto_the_gpu_in_16_bit(dtype):
    policy = load_policy(SHORT["student"])
    assert policy.head.weight.dtype == dtype
    assert all(device.has(tensor) for tensor in policy.model.parameters())
    with pytest.raises(RuntimeError, match="same device"):
        policy.head(torch.zeros(1, policy.head.in_features, dtype=dtype))


@pytest.mark.parametrize("method", METHODS)
def test_a_step_of_every_method(method, tmp_path, dtype):
    half = list(METHODS).index(method) % 2 == (dtype == torch.float16)
    if not half and method not in ("gkd", "grpo", "kdrl", "trrd"):
        pytest.skip("in the other precision: losses are computed in float32")
    (row,) = run(small(method), tmp_path / "run").rows()
    assert row["grad_norm"] is not None


@pytest.mark.parametrize("engine", ["fast", "hf", "continuous"])
def test_every_engine(engine):
    policy = load_policy(SHORT["student"])
    for dense in (None, DenseCopy(policy)):
        drawn = drawn_by(policy, engine, dense=dense)
        assert device.has(drawn.sequences.completion_ids)


def test_a_run_with_the_settings_of_a_preset_for_one_gpu(tmp_path):
    config = small(gradient_checkpointing=True, steps=2, eval_every=1)
    assert len(run(config, tmp_path / "run").rows()) == 2


def test_a_stopped_run_goes_on_with_a_fork_beside_it(tmp_path):
    def stop(session, row):
        session.stopping = row["step"] == 1

    config = small(steps=2, eval_every=2, samples_every=2, interference_every=2)
    folder = create(config, tmp_path / "run")
    folder.ask("twin", kind="untouched", chances=0)
    folder.ask("knob", knob="kd_coef", value=5.0)
    assert len(resume(folder.path, on_step=stop).rows()) == 1
    assert len(resume(folder.path).rows()) == 2
    (fork,) = (folder.path / "twins").iterdir()
    assert len(RunFolder(fork).rows()) == 2


def test_out_of_memory_halves_what_is_done_at_once(tmp_path, monkeypatch, once):
    config = small(prompts_per_step=4, group_size=8, max_new_tokens=32)
    folder = create(config, tmp_path / "run")
    trainer, context = Trainer(config), Context(config, folder)
    trainer.step(context)
    held = device.peak = device.used
    trainer.step(context)
    monkeypatch.setattr(device, "capacity", (device.peak + held) // 2)
    trainer.step(context)
    assert "micro_batch" in {event["event"] for event in folder.rows("events.jsonl")}


def test_a_teacher_in_host_memory_is_never_copied_back(tmp_path, once):
    config = small(teacher_home="host", steps=2)
    trainer, context = Trainer(config), Context(config, create(config, tmp_path / "run"))
    assert device.counts["pinned"] > 10
    models, used = trainer.setup.models, device.used
    with device.counting() as counts, models.teacher_here():
        assert device.used > used
        assert models.teacher.own.device.type == "cuda"
    assert device.used == used
    assert counts["copies to the GPU"] > 10
    assert counts["synchronisations"] == 0
    trainer.step(context)


def test_evaluation_export_doctor_and_plan(tmp_path):
    folder = run(small(checkpoint_every=1), tmp_path / "run")
    target = find_target(str(folder.path))
    settings = Settings(prompts=2, samples=2, difficulty=(2, 2), max_new_tokens=16)
    assert len(evaluate_target(target.load(), find_task("arithmetic"), settings))
    export_run(folder.path, tmp_path / "merged", merged=True)
    found = dict(reversed(each) for each in doctor.examine())
    assert any(text.startswith("GPU: pretend GPU") for text in found)
    assert all(good for text, good in found.items() if "4-bit" in text)
    assert all(good for good, _ in doctor.examine_deep(SHORT["student"]))
    plan = CliRunner().invoke(app, ["plan", "--set", f"student={SHORT['student']}"])
    assert "GiB" in plan.output
    assert plan.exit_code == 0


def single_launches(graphs, decode, token, positions, width):
    return decode(token, positions, width)


@pytest.mark.parametrize("width", [cache.WIDTH, 5])
@pytest.mark.parametrize("family", ["student", "gemma3"])
def test_a_replayed_decoding_step_draws_what_single_launches_draw(
    width, family, make_model, monkeypatch
):
    """With rows that end and leave the batch, over several widths, also through a window."""
    own = family == "student"
    policy = load_policy(SHORT["student"] if own else make_model(family, sliding_window=8))
    dense = DenseCopy(policy)
    monkeypatch.setattr(cache, "WIDTH", width)
    with device.counting() as counts:
        replayed = drawn_by(policy, limit=40, dense=dense)
    assert counts["graphs"] >= 40 // width
    monkeypatch.setattr(cache.Graphs, "__call__", single_launches)
    launched = drawn_by(policy, limit=40, dense=dense)
    assert torch.equal(replayed.sequences.completion_ids, launched.sequences.completion_ids)
    assert torch.equal(replayed.sampler_logps, launched.sampler_logps)


def aside(work):
    """Do something in another thread; what is returned ends it, and gives its answer."""
    answers = []
    thread = threading.Thread(target=lambda: answers.append(work()), daemon=True)
    thread.start()

    def end():
        thread.join(60)
        (answer,) = answers  # pytest shows what the thread raised
        return answer

    return end


def while_a_graph_is_recorded(decoder, monkeypatch, act):
    """Let a decoder act once while a graph of it is recorded."""
    decode, acted = decoder._decode, []

    def wrapped(*given):
        if device.recording is not None and not acted:
            acted.append(act())
        return decode(*given)

    monkeypatch.setattr(decoder, "_decode", wrapped)
    return acted


def test_two_threads_draw_at_once_what_they_draw_alone(monkeypatch, once):
    policy, other = load_policy(SHORT["student"]), load_policy(SHORT["teacher"])
    dense, others = DenseCopy(policy), DenseCopy(other)
    alone, others_alone = drawn_by(policy, dense=dense), drawn_by(other, dense=others)
    stepped, over, decode = threading.Event(), threading.Event(), others.decoder._decode

    def told(*given):
        out = decode(*given)
        stepped.set()
        over.wait(60)  # one at a time: the pretend GPU itself is for one thread
        return out

    monkeypatch.setattr(others.decoder, "_decode", told)

    def act():
        end = aside(lambda: drawn_by(other, dense=others))
        assert stepped.wait(60)
        assert cache.Graphs.recording.locked()  # so the other one does not record meanwhile
        return end

    ends = while_a_graph_is_recorded(dense.decoder, monkeypatch, act)
    found = drawn_by(policy, dense=dense)
    over.set()
    for one, expected in ((found, alone), (ends[0](), others_alone)):
        assert torch.equal(one.sampler_logps, expected.sampler_logps)


def test_a_clock_of_another_thread_stops_while_a_graph_is_recorded(monkeypatch, once):
    def measure():
        with Clock()("rollout"):
            return True

    policy = load_policy(SHORT["student"])
    dense = DenseCopy(policy)
    acted = while_a_graph_is_recorded(dense.decoder, monkeypatch, lambda: aside(measure)())
    drawn_by(policy, dense=dense)
    assert acted == [True]


def test_a_graph_is_recorded_although_the_allocator_keeps_all_memory(monkeypatch, once):
    policy = load_policy(SHORT["student"])
    dense = DenseCopy(policy)
    expected = drawn_by(policy, dense=dense)
    torch.cuda.empty_cache()
    monkeypatch.setattr(device, "capacity", device.used + 2**24)
    torch.empty(2**24, dtype=torch.uint8, device="cuda")  # and freed
    with device.counting() as counts:
        found = drawn_by(policy, dense=dense)
    assert counts["empty_cache"] == 1
    assert found.at_once == 0  # nothing was halved
    assert torch.equal(found.sampler_logps, expected.sampler_logps)


# --- what it may ask of the GPU -------------------------------------------------------------------


def cost_of_a_token(make_model, stir, family, layers):
    """Return what one more token asks of the GPU, with an adapter beside every layer."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    name = make_model(family, num_hidden_layers=layers, **heads)
    policy = stir(load_policy(name, "none"), std=0.01)
    dense, found = DenseCopy(policy), []
    for limit in (16, 32):
        with device.counting() as counts:
            drawn_by(policy, limit=limit, dense=dense)
        found.append(counts)
    short, long = found
    return {name: (long[name] - short[name]) / 16 for name in long}


@pytest.mark.parametrize(("family", "launches"), [("qwen2", 583), ("qwen3", 639), ("gemma3", 981)])
def test_a_sampled_token_is_within_its_budget(
    make_model, stir, once, monkeypatch, family, launches
):
    """Of 28 layers, as Qwen2.5-1.5B and Qwen3-1.7B have; all layers cost the same."""
    monkeypatch.setattr(LanguageModel, "eos_ids", frozenset({1000}))  # no row ends early
    one, two = (cost_of_a_token(make_model, stir, family, layers) for layers in (1, 2))
    assert one["launches"] == two["launches"] <= 19  # a graph, and the choice of a token
    assert one["synchronisations"] == two["synchronisations"] <= 1 / 16
    assert two["copies to the GPU"] == 0
    monkeypatch.setattr(cache.Graphs, "__call__", single_launches)
    one, two = (cost_of_a_token(make_model, stir, family, layers) for layers in (1, 2))
    assert one["launches"] + 27 * (two["launches"] - one["launches"]) <= launches


@pytest.mark.parametrize("quant", ["nf4", "none"])
def test_the_own_forward_waits_once_a_token(make_model, stir, once, monkeypatch, quant):
    """transformers asks at each step whether its mask may be left out."""
    monkeypatch.setattr(LanguageModel, "eos_ids", frozenset({1000}))  # no row ends early
    policy = stir(load_policy(make_model("qwen2"), quant), std=0.01)
    waits = []
    for limit in (16, 32):
        with device.counting() as counts:
            drawn_by(policy, limit=limit)
        waits.append(counts["synchronisations"])
    assert waits[1] - waits[0] <= 17


def test_what_was_drawn_is_decoded_with_two_waits(monkeypatch, once):
    policy = load_policy(SHORT["student"])
    waits = []
    for group in (2, 8):
        with device.counting() as counts:
            drawn_by(policy, limit=2, group=group)
        waits.append(counts["synchronisations"])
    assert waits[0] == waits[1], waits


def test_a_micro_batch_is_within_its_budget(tmp_path, monkeypatch, once):
    """Of a KDRL step that measures no curves, with one layer."""
    config = small(prompts_per_step=4, group_size=4, micro_batch=2, kl_every=0)
    trainer, context = Trainer(config), Context(config, create(config, tmp_path / "run"))
    trainer.step(context)  # compares the copy with the policy
    trainer.step(context)
    passes, whole = [], update.live_batch
    monkeypatch.setattr(update, "live_batch", lambda *given: passes.append(1) or whole(*given))
    gradients = update.gradients

    def counted(*given):
        with device.counting() as counts:
            found = gradients(*given)
        spent.update(counts)
        return found

    spent = Counter()
    monkeypatch.setattr(update, "gradients", counted)
    trainer.step(context)
    cost = {name: number / len(passes) for name, number in spent.items()}
    assert cost["launches"] <= 457, cost
    assert cost["synchronisations"] <= 15, cost
