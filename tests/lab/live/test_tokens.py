import numpy as np
import pytest
import torch
from recorded import rollout, run_folder

from rlkd_lab.lab import token_arrays
from rlkd_lab.lab.live.token_text import visible
from rlkd_lab.lab.live.tokens import ARRAYS, MARKS
from rlkd_lab.objectives import METHODS, TokenBatch, token_loss

KNOWN = ("log_ratio", "kl_teacher_rev", "kl_teacher_fwd", "entropy", "surprisal")


def batch_of(frame, logps=None, masked=()):
    """The rollout as the loop would have it, padded by hand."""
    width = max(map(len, frame["ids"]))

    def padded(column):
        return torch.tensor(
            [[*values, *[-3.0] * (width - len(values))] for values in frame[column]],
            dtype=torch.float64,
        )

    mask = torch.tensor(
        [
            [float(t < len(ids) and i not in masked) for t in range(width)]
            for i, ids in enumerate(frame["ids"])
        ],
        dtype=torch.float64,
    )
    old = padded("logps")
    return TokenBatch(
        old if logps is None else logps,
        mask,
        old_logps=old,
        teacher_logps=padded("teacher_logps"),
        ref_logps=padded("ref_logps"),
        rewards=torch.tensor(frame["reward"]),
        correct=torch.tensor(frame["correct"].astype(float)),
        group_ids=torch.tensor(frame["group"]),
    )


def by_differences(method, frame, coefs, options=None, masked=(), width=1e-6):
    """−∂loss/∂log π_θ by central differences of token_loss, an array a completion."""
    base, found = batch_of(frame).logps, []
    for i, ids in enumerate(frame["ids"]):
        found.append(np.zeros(len(ids)))
        for t in range(len(ids)):
            losses = []
            for side in (1, -1):
                moved = base.clone()
                moved[i, t] += side * width
                losses.append(
                    float(token_loss(method, batch_of(frame, moved, masked), coefs, options)[0])
                )
            found[-1][t] = -(losses[0] - losses[1]) / (2 * width)
    return found


# Not CISPO, nor KDRL with kd_ratio on: their ratio is detached, which a difference cannot know.
@pytest.mark.parametrize(
    ("method", "coefs", "options"),
    [
        ("grpo", {"kl_coef": 0.3}, {}),
        ("dr_grpo", {}, {}),
        ("gspo", {}, {}),
        ("kdrl", {"kd_coef": 0.2}, {"kd_ratio": "off", "kd_mask": "group_wrong"}),
        ("kdrl_advantage", {"kd_coef": 0.4}, {"kd_mask": "wrong"}),
        ("opd", {}, {"aggregation": "sequence"}),
        ("rlsd", {}, {}),
        ("trrd", {"trrd_alpha": 0.3, "kl_coef": 0.05}, {}),
        ("sft", {}, {}),
    ],
)
def test_the_gradient_weight_is_that_of_the_loss(tmp_path, method, coefs, options):
    frame = rollout(groups=2, size=3, longest=5)
    options = {"constant_length": 20, **options}
    found = token_arrays(
        run_folder(tmp_path / "run", method, {4: frame}, coefs=coefs, options=options), 4
    )
    expected = by_differences(method, frame, coefs, options)
    for i, values in enumerate(expected):
        np.testing.assert_allclose(found.arrays["gradient_weight"][i], values, atol=1e-7)
    assert max(np.abs(values).max() for values in expected) > 1e-3


def test_completions_left_out_of_the_loss_have_no_gradient_and_leave_the_normaliser(tmp_path):
    frame = rollout(groups=2, size=3, longest=5)
    found = token_arrays(run_folder(tmp_path / "run", "dapo", {1: frame}, mask_truncated=True))
    assert not found.arrays["gradient_weight"][1].any()
    for ours, theirs in zip(
        found.arrays["gradient_weight"], by_differences("dapo", frame, {}, masked=(1,)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_arrays_are_as_long_as_the_completions(tmp_path, method):
    frame = rollout()
    found = token_arrays(run_folder(tmp_path / "run", method, {1: frame}))
    for name, arrays in found.arrays.items():
        assert [len(values) for values in arrays] == [len(ids) for ids in frame["ids"]], name
        assert all(np.isfinite(values).all() for values in arrays)
    assert set(KNOWN) <= set(found.arrays)
    assert set(found.arrays) | set(found.missing) == set(ARRAYS) | set(MARKS)
    assert not set(found.arrays) & set(found.missing)
    on_policy = METHODS[method].ratio is not None
    assert ("advantage" in found.arrays) == ("dead" in found.arrays) == on_policy
    assert ("trrd_ratio" in found.arrays) == ("bound" in found.arrays) == (method == "trrd")
    divergent = ("gkd", "kd_forward", "rgopd", "eopd", "aopd")
    assert ("gradient_weight" in found.arrays) == (method not in divergent)


def test_what_the_models_said_is_as_recorded(tmp_path):
    frame = rollout()
    found = token_arrays(run_folder(tmp_path / "run", "sft", {1: frame})).arrays
    for i, row in frame.iterrows():
        np.testing.assert_array_equal(found["surprisal"][i], [-value for value in row["logps"]])
        np.testing.assert_allclose(
            found["log_ratio"][i], np.subtract(row["teacher_logps"], row["logps"])
        )
        for name in ("entropy", "kl_teacher_rev", "kl_teacher_fwd"):
            np.testing.assert_array_equal(found[name][i], row[name])


def test_dead_tokens_are_those_of_the_papers_condition(tmp_path):
    """α = .5, ε = .2: A > 0 is dead where π_old/π_T > 1.44, A < 0 where π_T/π_old > 1.5625."""
    frame = rollout(groups=6)
    coefs = {"trrd_alpha": 0.5, "trrd_gap_bound": None, "ratio_cap": None}
    found = token_arrays(run_folder(tmp_path / "run", "trrd", {1: frame}, coefs=coefs)).arrays
    d, credit, dead, gradient = (
        np.concatenate(found[name])
        for name in ("log_ratio", "advantage", "dead", "gradient_weight")
    )
    expected = ((credit > 0) & (np.exp(-d) > 1.44)) | ((credit < 0) & (np.exp(d) > 1.5625))
    np.testing.assert_array_equal(dead, expected)
    np.testing.assert_array_equal(dead, (credit != 0) & (gradient == 0))
    assert 0 < dead.sum() < len(dead)
    np.testing.assert_allclose(np.concatenate(found["trrd_ratio"]), np.exp(-0.5 * d))


def test_the_bound_is_where_the_models_are_too_far_apart(tmp_path):
    found = token_arrays(run_folder(tmp_path / "run", "trrd", coefs={"trrd_gap_bound": 0.7})).arrays
    d, credit, bound, ratio = (
        np.concatenate(found[name]) for name in ("log_ratio", "advantage", "bound", "trrd_ratio")
    )
    np.testing.assert_array_equal(bound, (np.abs(d) > 0.7) & (credit != 0))
    np.testing.assert_allclose(ratio, np.exp(-0.5 * np.clip(d, -0.7, 0.7)))


def test_a_penalty_does_not_hide_that_the_policy_gradient_is_cut(tmp_path):
    plain, penalised = (
        token_arrays(run_folder(tmp_path / name, "trrd", coefs={"kl_coef": kl})).arrays
        for name, kl in (("plain", 0.0), ("penalised", 0.5))
    )
    for a, b in zip(plain["dead"], penalised["dead"], strict=True):
        np.testing.assert_array_equal(a, b)
    dead = np.concatenate(penalised["dead"])
    assert dead.any()
    assert np.concatenate(penalised["gradient_weight"])[dead].any()


@pytest.mark.parametrize("method", ["grpo", "kdrl", "dapo", "gspo", "cispo", "rlsd"])
def test_nothing_is_clipped_before_the_policy_has_moved(tmp_path, method):
    assert not np.concatenate(
        token_arrays(run_folder(tmp_path / "run", method)).arrays["dead"]
    ).any()


def test_some_rows_have_the_numbers_of_the_whole_rollout(tmp_path):
    folder = run_folder(tmp_path / "run")
    whole, some = token_arrays(folder), token_arrays(folder, 1, [5, 2])
    for name, arrays in some.arrays.items():
        np.testing.assert_array_equal(arrays[0], whole.arrays[name][5])
        np.testing.assert_array_equal(arrays[1], whole.arrays[name][2])
    assert some.frame["group"].tolist() == [1, 0]


def test_what_cannot_be_had_is_said(tmp_path):
    def missing(name, method="grpo", frames=None, **how):
        return token_arrays(run_folder(tmp_path / name, method, frames, **how)).missing

    assert (
        "whole vocabulary"
        in missing("exact", "kdrl", options={"estimator": "exact"})["gradient_weight"]
    )
    assert "sampler reported" in missing("cap", coefs={"importance_cap": 2.0})["gradient_weight"]
    assert "not in metrics.jsonl yet" in missing("early", written=False)["gradient_weight"]
    alone = rollout().drop(columns=["kl_teacher_rev", "kl_teacher_fwd"])
    alone["teacher_logps"] = None
    without = missing("alone", frames={1: alone})
    assert {"log_ratio", "kl_teacher_rev", "kl_teacher_fwd"} < set(without)
    assert "teacher=off" in without["log_ratio"]
    assert "gradient_weight" not in without
    assert "trrd needs teacher_logps" in missing("trrd", "trrd", {1: alone})["advantage"]
    folder = run_folder(tmp_path / "probe", probes={1: rollout(probe=True)})
    probe = token_arrays(folder, kind="probe")
    assert set(probe.arrays) == set(KNOWN)
    assert "nothing is trained" in probe.missing["advantage"]


def test_an_exact_divergence_without_weight_leaves_the_gradient(tmp_path):
    frame = rollout(groups=2, size=3, longest=5)
    folder = run_folder(
        tmp_path / "run", "kdrl", {1: frame}, coefs={"kd_coef": 0.0}, options={"estimator": "exact"}
    )
    for ours, theirs in zip(
        token_arrays(folder).arrays["gradient_weight"],
        by_differences("kdrl", frame, {"kd_coef": 0.0}),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-7)


def test_errors_say_what_to_do(tmp_path):
    empty = run_folder(tmp_path / "empty", frames={})
    with pytest.raises(FileNotFoundError, match="samples_every=1"):
        token_arrays(empty)
    folder = run_folder(tmp_path / "run", frames={1: rollout(), 10: rollout(1)})
    with pytest.raises(FileNotFoundError, match="choose one of 1, 10"):
        token_arrays(folder, 7)
    torn = folder.path / "samples" / "step_000010.parquet"
    torn.write_bytes(torn.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"step_000010\.parquet is damaged: delete it"):
        token_arrays(folder)
    assert token_arrays(folder, 1).step == 1


def test_tokens_are_made_visible():
    assert visible(["É", "▁a\n", "\t", ""]) == [
        "É",
        "␣a⏎",
        "⇥",
        "⟨empty⟩",
    ]  # no byte-level vocabulary: É is a letter
    assert visible(["Ã©", "Ġ", "ĉ"]) == ["é", "␣", "⇥"]
    assert visible(["\u202e", "\u200f", "\x00", "\u00a0", "\u0301"]) == [
        "⟨U+202E⟩",
        "⟨U+200F⟩",
        "⟨U+0000⟩",
        "⟨U+00A0⟩",
        "◌\u0301",
    ]
    assert visible(["א", "<script>", "<|im_end|>"]) == ["א", "<script>", "<|im_end|>"]


def test_a_real_run_has_as_many_dead_tokens_as_its_metrics_say(tmp_path):
    from rlkd_lab.training import make_config, run

    settings = {
        "samples_every": "1",
        "updates_per_rollout": "1",
        "eval_every": "0",
        "prompts_per_step": "4",
        "trrd_alpha": "linear:0.3:0.6",
    }
    folder = run(make_config("trrd", steps=2, settings=settings), tmp_path / "run")
    for step in (1, 2):
        found, row = token_arrays(folder, step), folder.metrics().loc[step]
        assert not found.missing
        assert np.concatenate(found.arrays["dead"]).mean() == pytest.approx(
            row["trrd/dead_frac"], abs=1e-6
        )
        assert np.concatenate(found.arrays["bound"]).mean() == pytest.approx(
            row["trrd/bound_frac"], abs=1e-6
        )
        assert row["trrd/dead_frac"] > 0
