"""Methods are compared over runs: exact numbers, coverage by simulation, and what a p-value
over prompts is worth.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from typer.testing import CliRunner

from rlkd_lab.commands import app
from rlkd_lab.study import compare_frames, compare_runs
from rlkd_lab.study.report import ONE_PAIR, interval_note, runs_note
from rlkd_lab.study.sides import check_sides, expanded, side_label
from rlkd_lab.study.statistics import welch
from rlkd_lab.study.targets import Target
from rlkd_lab.training import make_config
from tests.short import SHORT

PROMPTS = 60


def test_welch_is_scipys():
    rng = np.random.default_rng(1)
    for _ in range(20):
        a, b = rng.normal(0.6, 0.1, rng.integers(2, 8)), rng.normal(0.5, 0.02, rng.integers(2, 8))
        found, wanted = welch(a, b), stats.ttest_ind(a, b, equal_var=False)
        interval = wanted.confidence_interval(0.95)
        assert (found.mean, found.low, found.high, found.p) == pytest.approx(
            (a.mean() - b.mean(), interval.low, interval.high, wanted.pvalue)
        )
        # and the formula itself
        parts = [x.var(ddof=1) / len(x) for x in (a, b)]
        freedom = sum(parts) ** 2 / sum(
            part**2 / (len(x) - 1) for part, x in zip(parts, (a, b), strict=True)
        )
        assert found.high - found.mean == pytest.approx(
            stats.t.ppf(0.975, freedom) * np.sqrt(sum(parts))
        )


def test_a_fixed_model_has_no_spread():
    found, wanted = welch([0.5, 0.6, 0.8], [0.4]), stats.ttest_1samp([0.1, 0.2, 0.4], 0)
    assert (found.mean, found.p) == pytest.approx((0.7 / 3, wanted.pvalue))
    mirrored = welch([0.4], [0.5, 0.6, 0.8])
    assert (mirrored.mean, mirrored.low, mirrored.high, mirrored.p) == pytest.approx(
        (-found.mean, -found.high, -found.low, found.p)
    )


@pytest.mark.parametrize(
    ("a", "b"),
    [([0.5], [0.4]), ([0.5, 0.5], [0.4, 0.4]), ([0.5, 0.5], [0.4]), ([0.1 + 0.2, 0.3], [0.2, 0.2])],
)
def test_where_nothing_varies_there_is_no_interval(a, b):
    found = welch(a, b)
    assert found.mean == pytest.approx(0.1)
    assert np.isnan([found.low, found.high, found.p]).all()


def test_a_group_of_like_runs_has_no_spread_and_no_warning(recwarn):
    found, wanted = welch([0.1 + 0.2, 0.3], [0.1, 0.4]), welch([0.3, 0.3], [0.1, 0.4])
    assert (found.mean, found.p) == pytest.approx((wanted.mean, wanted.p))
    assert welch([0.0, 1e-9], [0.0, 0.0]).p > 0.1  # small, and not rounding
    assert not recwarn.list


def evaluated(rng, level):
    """A table of one run: every prompt is answered four times; how good the run is, is drawn
    first.
    """
    skill = level + 0.06 * rng.standard_normal()
    hard = np.random.default_rng(5).uniform(-0.2, 0.2, PROMPTS)  # the same prompts for all
    right = rng.random((PROMPTS, 4)) < np.clip(skill - hard, 0, 1)[:, None]
    return pd.DataFrame(
        {
            "prompt_id": np.repeat([f"p{i}" for i in range(PROMPTS)], 4),
            "set": "id",
            "mode": "sample",
            "sample": np.tile(range(4), PROMPTS),
            "correct": right.ravel(),
            "formatted": True,
            "finished": True,
            "length": 10,
            "extracted": "1",
            "difficulty": 1,
        }
    )


def test_over_runs_the_interval_covers_the_truth_and_over_prompts_it_does_not():
    rng = np.random.default_rng(3)
    tried, over_runs, over_prompts = 50, 0, 0
    for _ in range(tried):
        a, b = (
            [evaluated(rng, 0.5) for _ in range(4)] for _ in range(2)
        )  # two methods that are one
        over_runs += compare_runs(a, b, [1]).set_index("measure").loc["avg", "p"] < 0.05
        over_prompts += compare_frames(a[0], b[0], [1]).set_index("measure").loc["avg", "p"] < 0.05
    assert over_runs / tried < 0.12
    assert over_prompts / tried > 0.3


def test_a_run_is_one_number():
    rng = np.random.default_rng(4)
    ours, theirs = [evaluated(rng, 0.7) for _ in range(3)], [evaluated(rng, 0.4) for _ in range(2)]
    row = compare_runs(ours, theirs).set_index("measure").loc["avg"]
    means = [[frame["correct"].mean() for frame in side] for side in (ours, theirs)]
    wanted = stats.ttest_ind(*means, equal_var=False)
    assert (row["a"], row["b"], row["difference"]) == pytest.approx(
        (np.mean(means[0]), np.mean(means[1]), np.mean(means[0]) - np.mean(means[1]))
    )
    assert (row["p"], row["low"]) == pytest.approx(
        (wanted.pvalue, wanted.confidence_interval().low)
    )
    assert (row["runs_a"], row["runs_b"]) == (3, 2)
    with pytest.raises(ValueError, match="not asked the same prompts"):
        compare_runs(ours, [theirs[0].assign(prompt_id="x" + theirs[0]["prompt_id"]), theirs[1]])


# --- which runs make a side -----------------------------------------------------------------------


def target(name, seed=0, step=10, method="grpo", **settings):
    return Target(
        name,
        "student",
        "nf4",
        config=make_config(method, seed=seed, **settings),
        run=Path(name),
        step=step,
    )


MODEL = Target("student", "student", "nf4")
ADAPTER = Target("own", "student", "nf4", Path("own"))


def test_runs_that_differ_in_their_seed_alone_are_a_side(recwarn):
    check_sides(
        [target("a-0", 0), target("a-1", 1, eval_every=3)],
        [target("b-0", 0, method="gspo"), target("b-1", 1, method="gspo")],
    )
    check_sides([target("a-0", options={"aggregation": "token"})], [target("b-0", method="kdrl")])
    check_sides([target("a-0")], [target("b-0", method="sft")])  # its tokens are another text's
    check_sides([target("a-0"), target("a-1", 1)], [MODEL])
    assert not recwarn.list


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        (
            [target("a-0"), target("a-1", 1, group_size=4)],
            [MODEL],
            r"differ in group_size \(8 and 4\)",
        ),
        ([target("a-0"), target("a-1", 1, step=5)], [MODEL], r"differ in checkpoint \(10 and 5\)"),
        ([target("a-0"), target("a-1", 0)], [MODEL], "share a seed"),
        (
            [target("a-0"), target("a-1", 1)],
            [target("b-0", method="kdrl"), target("b-1", 1, method="opd")],
            "differ in method",
        ),
        (
            [target("a-0"), MODEL],
            [target("b-0", method="kdrl"), target("b-1", 1, method="kdrl")],
            "student is no run",
        ),
        ([MODEL, Target("student-weak", "student-weak", "nf4")], [], "student is no run"),
        (
            [target("a-0"), target("a-1", 1)],
            [target("b-0", method="kdrl"), target("b-1", 1, method="kdrl")],
            "average their tokens differently .aggregation=sequence and token.",
        ),
    ],
)
def test_a_side_of_unlike_runs_is_told(ours, theirs, words):
    with pytest.warns(UserWarning, match=words):
        check_sides(ours, theirs)


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        (
            [target("a-0"), target("a-1", 1), target("b-1", 1, method="kdrl")],
            [target("b-0", method="kdrl")],
            "b-1 has the .* quote the pattern",
        ),
        (
            [target("a-0"), target("a-1", 1)],
            [target("b-0", method="kdrl")],
            "b-0 is one run against 2",
        ),
        (
            [target("a-0")],
            [target("b-0", method="kdrl"), target("b-1", 1, method="kdrl")],
            "a-0 is one run against 2",
        ),
        ([target("a-0"), target("a-1", 1)], [target("a-0")], "stands twice"),
        ([MODEL], [MODEL], "student stands twice: give each model once"),
        ([ADAPTER, MODEL, ADAPTER], [], "own stands twice: give each adapter once"),
    ],
)
def test_sides_that_cannot_be_compared_are_refused(ours, theirs, words):
    with pytest.raises(ValueError, match=words):
        check_sides(ours, theirs)


def test_patterns_are_read_and_names_of_models_are_not(tmp_path):
    for name in ("a-1", "a-0", "b-0"):
        (tmp_path / name).mkdir()
    assert expanded(["student", f"{tmp_path}/a-*"]) == [
        "student",
        f"{tmp_path}/a-0",
        f"{tmp_path}/a-1",
    ]
    with pytest.raises(FileNotFoundError, match=r"no file matches .*c-\*"):
        expanded([f"{tmp_path}/c-*"])


def test_labels_of_sides():
    assert side_label([target("runs/a-0"), target("runs/a-1")]) == "a-…, 2 runs"
    assert side_label([target("x"), target("y")]) == "x and 1 more"
    assert side_label([MODEL]) == "student"


def test_what_p_covers_stands_beside_it():
    assert ONE_PAIR in interval_note(True)
    assert ONE_PAIR not in interval_note(False)
    assert "Welch's t over 3 and 2 runs" in runs_note(3, 2)
    assert "against one fixed model" in runs_note(5, 1)


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    from rlkd_lab.training import run

    place = tmp_path_factory.mktemp("runs")
    config = make_config(
        "grpo",
        steps=1,
        prompts_per_step=2,
        group_size=2,
        max_new_tokens=16,
        difficulty=(2, 2),
        eval_every=0,
        samples_every=0,
        **SHORT,
    )
    for name, changed in {
        "a-0": {},
        "a-1": {"seed": 1},
        "b-0": {"method": "opd"},
        "b-1": {"method": "opd", "seed": 1},
    }.items():
        run(replace_config(config, changed), place / name)
    return place


def replace_config(config, changed):
    return make_config(
        changed.get("method", "grpo"),
        **{
            **config.model_dump(exclude={"method", "preset", "knobs"}),
            "seed": changed.get("seed", 0),
        },
    )


def test_several_runs_a_side_in_a_terminal_and_as_json(runs):
    words = [
        "eval",
        f"{runs}/a-*",
        "--against",
        f"{runs}/b-*",
        "--prompts",
        "3",
        "--samples",
        "2",
        "--no-ood",
    ]
    shown = CliRunner().invoke(app, words, terminal_width=200)
    assert shown.exit_code == 0, shown.output
    assert "a-…, 2 runs − b-…, 2 runs" in shown.stdout
    assert "p, runs" in shown.stdout
    assert "p, prompts" not in shown.stdout
    assert "Welch's t over 2 and 2 runs" in shown.stdout
    assert all(
        (runs / name / "eval" / "step_000001.parquet").exists()
        for name in ("a-0", "a-1", "b-0", "b-1")
    )
    found = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert (len(found["runs"]), len(found["against"]), found["p_covers"]) == (2, 2, "runs")
    assert {"runs_a", "runs_b"} <= set(found["differences"][0])
    pair = json.loads(
        CliRunner()
        .invoke(app, ["eval", f"{runs}/a-0", "--against", f"{runs}/b-0", *words[4:], "--json"])
        .stdout
    )
    assert (pair["p_covers"], pair["note"]) == ("prompts", ONE_PAIR)
    refused = CliRunner().invoke(
        app, ["eval", f"{runs}/a-0", f"{runs}/a-1", f"{runs}/b-1", "--against", f"{runs}/b-0"]
    )
    assert refused.exit_code == 2
    assert "quote the pattern" in refused.stderr
