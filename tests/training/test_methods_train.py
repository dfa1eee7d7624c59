"""Every method trains two steps on the embedded pair and records what docs/metrics.md promises."""

import math
from pathlib import Path

import pytest
from safetensors.torch import load_file

from rlkd_lab.objectives import METHODS
from rlkd_lab.objectives.rules import clipped, from_both, shaped, trrd_ratio

ALWAYS = {
    "step",
    "num_tokens",
    "step_time",
    "on_policy",
    "learning_rate",
    "grad_norm",
    "entropy",
    "kl_ref",
    "loss/policy",
    "completions/length_working",
    "completions/length_checking",
    "completions/length_truncated",
    "kl_teacher_k1",
    "kl_teacher_k2",
    "kl_teacher_k3",
    "kl_teacher_rev",
    "kl_teacher_rev_t1",
    "kl_teacher_fwd",
    "kl_teacher_fwd_t1",
    "completions/mean_length",
    "completions/mean_length_correct",
    "completions/mean_length_wrong",
    "completions/clipped_ratio",
    "time/rollout",
    "time/reward",
    "time/teacher",
    "time/divergences",
    "time/reference",
    "time/update",
    "train_time",
    "memory/peak_gib",
    "coef/temperature",
    "speed/tflops",
    "speed/utilisation",
}
ON_POLICY = {
    "reward",
    "reward_std",
    "frac_reward_zero_std",
    "accuracy",
    "reward/format",
    "reward/accuracy",
    "sampling/logp_difference_mean",
    "sampling/logp_difference_max",
    "speed/sampled_tokens_per_second",
}
OF_METHOD = {
    "ratio/max",
    "clip_ratio/low",
    "clip_ratio/high",
    "loss/kd",
    "trrd/dead_frac",
    "trrd/bound_frac",
}
TRL = {
    "reward",
    "reward_std",
    "frac_reward_zero_std",
    "completions/mean_length",
    "completions/clipped_ratio",
    "entropy",
    "clip_ratio/low",
    "clip_ratio/high",
    "grad_norm",
    "learning_rate",
    "num_tokens",
    "step_time",
}
GATED = {"teacher/gap_right", "teacher/gap_wrong", "teacher/disagree"}
BESIDE = {"traces/kept", "traces/reward", "traces/tokens", "traces/logp"}
DYNAMIC = {"sampling/rounds", "sampling/groups_with_spread"}
MAY_BE_MISSING = {
    "completions/mean_length_correct",
    "completions/mean_length_wrong",
    "teacher/gap_right",
    "teacher/gap_wrong",
}
"""Nobody was right, or nobody wrong."""
SHARES = (
    "frac_reward_zero_std",
    "completions/clipped_ratio",
    "clip_ratio/low",
    "clip_ratio/high",
    "trrd/dead_frac",
    "trrd/bound_frac",
    "teacher/disagree",
    "accuracy",
)


def own(method):
    """The metrics that depend on the method's rules."""
    rules = METHODS[method]
    return (
        {"ratio/max"}
        | (
            {"clip_ratio/low", "clip_ratio/high"}
            if rules.ratio is not None and rules.surrogate in (clipped, shaped)
            else set()
        )
        | ({"loss/kd"} if rules.penalty is not None else set())
        | ({"trrd/dead_frac", "trrd/bound_frac"} if rules.ratio is trrd_ratio else set())
        | (GATED if "verdicts" in rules.needs else set())
        | ({"teacher/entropy"} if "entropy" in rules.needs else set())
        | (DYNAMIC if rules.options.get("zero_spread") == "resample" else set())
    )


def test_names_that_trl_has_are_trls():
    assert TRL <= ALWAYS | ON_POLICY | OF_METHOD


@pytest.mark.parametrize("method", METHODS)
def test_two_steps(trained, method):
    folder = trained(method)
    rows = folder.rows()
    assert [row["step"] for row in rows] == [1, 2]
    assert folder.status()["state"] == "done"
    for row in rows:
        row.pop("time/old", None)  # where a pass without gradient was needed
        expected = (
            ALWAYS
            | {f"coef/{knob}" for knob in METHODS[method].knobs}
            | own(method)
            | (ON_POLICY if row["on_policy"] else {"traces/kept"})
            | (BESIDE if METHODS[method].samples is from_both else set())
        )
        assert set(row) == expected
        for name, value in row.items():
            if value is None:
                assert (
                    name in MAY_BE_MISSING
                    or METHODS[method].knobs[name.removeprefix("coef/")].optional
                ), name
            else:
                assert math.isfinite(value), name
        for name in SHARES:
            assert 0 <= row.get(name, 0) <= 1, name
        assert 0 < row["train_time"] < row["step_time"]
        for name in (
            "kl_teacher_rev",
            "kl_teacher_fwd",
            "kl_ref",
            "entropy",
            "grad_norm",
            "reward_std",
        ):
            assert row.get(name, 0) >= 0, name
        assert 1 <= row["completions/mean_length"] <= 24
        assert row.get("sampling/logp_difference_max", 0) < 1e-3
    if method != "dapo":  # which counts what it sampled again, too
        assert rows[1]["num_tokens"] == pytest.approx(
            sum(4 * row["completions/mean_length"] + row.get("traces/tokens", 0) for row in rows)
        )
    assert not folder.touched
    assert [path.name for path in folder.checkpoints()] == ["step_000002"]


@pytest.mark.parametrize("method", ["sft", "rft", "kd_forward"])
def test_on_traces_there_is_no_reward(trained, method):
    folder = trained(method)
    assert not any(row["on_policy"] for row in folder.rows())
    assert "reward" not in folder.metrics()
    assert (folder.path / "traces.parquet").exists()


@pytest.mark.parametrize(("share", "on_policy"), [(0.0, [False, False]), (1.0, [True, True])])
def test_gkd_takes_its_share_of_its_own_completions(trained, share, on_policy):
    assert [row["on_policy"] for row in trained("gkd", on_policy_frac=share).rows()] == on_policy


def test_training_reaches_every_lora_matrix(trained):
    (last,) = trained("kdrl").checkpoints()
    adapter = load_file(last / "adapter_model.safetensors")
    b = {name: value for name, value in adapter.items() if "lora_B" in name}
    assert len(b) == len(adapter) / 2
    layers = {name.split("layers.")[1].split(".")[0] for name in b}
    assert len(b) == 7 * len(layers)  # four projections of attention and three of the MLP
    # B starts at 0, so what is not 0 has had a gradient
    assert [name for name, value in b.items() if not (value != 0).any()] == []


def test_what_a_run_ran_on_is_recorded_without_paths(trained):
    env = trained("kdrl").env()
    assert {"python", "torch", "transformers", "peft", "bitsandbytes"} <= set(env["versions"])
    assert env["threads"] >= 1
    text = (trained("kdrl").path / "env.json").read_text()
    assert "/usr" not in text
    assert str(Path.home()) not in text


def test_the_docs_page_names_every_metric(trained):
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    names = {name for method in ("kdrl", "trrd") for row in trained(method).rows() for name in row}
    names |= {f"coef/{knob}" for method in METHODS.values() for knob in method.knobs}
    names |= {
        f"eval/{what}{split}"
        for what in ("accuracy", "mean_length", "truncated")
        for split in ("", "_ood")
    }
    assert sorted(name for name in names if f"`{name}`" not in page) == []
