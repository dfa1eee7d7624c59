"""Ablation plots: what they draw is what the table says."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from made_up import TRUE, betas, core, part
from matplotlib.collections import PathCollection
from scipy import stats

from rlkd_lab.plots import png
from rlkd_lab.plots.ablations import plot_arms, plot_differences, plot_heat, plot_knob
from rlkd_lab.plots.budgets import plot_budget, plot_frontier
from rlkd_lab.plots.claim_panels import DRAW
from rlkd_lab.plots.claims import claim_figure, doubted, draw_claims
from rlkd_lab.plots.points import draw_knob
from rlkd_lab.plots.styles import STYLES, white_figure
from rlkd_lab.study import scorecard
from rlkd_lab.study.budgets import at_budget, shared_budget
from rlkd_lab.study.claims import CLAIMS, judge_claims
from rlkd_lab.study.effects import Effect
from rlkd_lab.study.scorecard import comparisons


def runs(part_, **columns):
    return part_.runs.assign(**{"diverged": False, "touched": False, **columns})


@pytest.fixture(scope="module")
def grid():
    """KDRL and TRRD over a knob each, five seeds."""
    arms = {f"kdrl,kd_coef={value}": 0.5 + value for value in (0.01, 0.1, 0.4)} | {
        "trrd,trrd_alpha=0.5": 0.4,
        "trrd,trrd_alpha=0.7": 0.6,
    }
    return runs(part(arms, noise=0.02))


def dots(axes):
    """Places and values of the seeds."""
    return np.vstack(
        [
            collection.get_offsets()
            for collection in axes.collections
            if isinstance(collection, PathCollection)
        ]
    )


def caption(figure):
    """The words below the figure, whatever its lines."""
    return " ".join(figure._supxlabel.get_text().split())


def bars(axes):
    """(x, mean, half) of every interval."""
    found = []
    for container in axes.containers:
        line, _, (segments,) = container
        (low, high) = segments.get_segments()[0][:, 1]
        found.append((float(line.get_xdata()[0]), float(line.get_ydata()[0]), (high - low) / 2))
    return found


def test_a_knob_has_a_panel_a_method_with_every_seed_and_students_interval(grid):
    kdrl = grid[grid["method"] == "kdrl"]
    figure = plot_knob(kdrl, "kd_coef")
    (axes,) = [one for one in figure.axes if one.get_visible()]
    seen = sorted(map(tuple, dots(axes)))
    assert np.allclose(seen, sorted(zip(kdrl["kd_coef"], kdrl["id avg"], strict=True)))
    assert axes.get_xscale() == "log"  # 0.01 to 0.4
    for (x, mean, half), (value, rows) in zip(bars(axes), kdrl.groupby("kd_coef"), strict=True):
        low, high = stats.ttest_1samp(rows["id avg"], 0).confidence_interval(0.95)
        assert (x, mean, half) == pytest.approx((value, rows["id avg"].mean(), (high - low) / 2))


def test_methods_share_the_scale_of_the_measure(grid):
    both = grid.assign(knob=grid["kd_coef"].fillna(grid["trrd_alpha"]))
    figure = plot_knob(both, "knob", "id length")
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == ["KDRL", "TRRD"]
    assert panels[0].get_ylim() == panels[1].get_ylim()


def test_settings_that_are_no_numbers_stand_side_by_side(grid):
    figure = plot_knob(
        grid.assign(
            teacher=["checking", "concise"] * (len(grid) // 2) + ["checking"] * (len(grid) % 2)
        ),
        "teacher",
    )
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == [
        "checking",
        "concise",
    ]


def test_runs_that_do_not_count_are_left_out_and_counted(grid):
    bad = (grid["arm"] == "kdrl,kd_coef=0.1") & (grid["seed"] == 0)
    figure = plot_knob(grid[grid["method"] == "kdrl"].assign(diverged=bad), "kd_coef")
    assert len(dots(figure.axes[0])) == 14
    assert "4–5 seeds; 1 runs left out" in caption(figure)
    with pytest.raises(ValueError, match="no run is left to draw"):
        plot_arms(grid.assign(touched=True))


@pytest.mark.parametrize(
    "draw",
    [
        lambda table: plot_knob(table, "kd_coeff"),
        lambda table: plot_frontier(table, gain="accurracy"),
        plot_arms,
    ],
)
def test_a_column_that_is_not_there_is_named(grid, draw):
    with pytest.raises(ValueError, match="has no column"):
        draw(grid.drop(columns="id length"))


def test_the_frontier_joins_what_no_other_beats_in_both():
    table = runs(
        part(
            {
                "a": {"id avg": 0.5, "id length": 10.0},
                "b": {"id avg": 0.7, "id length": 20.0},
                "c": {"id avg": 0.6, "id length": 30.0},
            },
            noise=0.0,
        )
    )
    figure = plot_frontier(table.assign(method="grpo"))
    (dashed,) = [line for line in figure.axes[0].get_lines() if line.get_linestyle() == "--"]
    assert dashed.get_xdata().tolist() == [10.0, 20.0] and dashed.get_ydata().tolist() == [0.5, 0.7]


def test_equal_budgets_are_what_the_cheapest_arm_spends():
    rows = []
    for arm, tokens in (("long", 100), ("short", 40)):
        for seed in (0, 1):
            rows += [
                {
                    "arm": arm,
                    "seed": seed,
                    "method": "grpo",
                    "step": step,
                    "sampled_tokens": tokens * step,
                    "train_seconds": step,
                    "eval/accuracy": step / 10 if step % 2 == 0 else math.nan,
                }
                for step in range(1, 11)
            ]
    curves = pd.DataFrame(rows)
    assert shared_budget(curves, "sampled_tokens") == 400
    table = at_budget(curves, "sampled_tokens").set_index("arm")["eval/accuracy"]
    assert table["long"].tolist() == [0.4, 0.4] and table["short"].tolist() == [1.0, 1.0]
    early = at_budget(curves, "sampled_tokens", spent=150)["eval/accuracy"]
    assert early.isna().tolist() == [True, True, False, False] and early.iloc[2] == pytest.approx(
        0.375
    )  # step 3.75
    figure = plot_budget(curves)
    assert figure.axes[0].get_lines()[-1].get_xdata()[0] == 400
    with pytest.raises(ValueError, match="give a row a step"):
        at_budget(curves.drop(columns="train_seconds"), "train_seconds")


def test_no_arm_stands_for_some_of_its_seeds_at_a_budget():
    """What is spent at once, as on a teacher's traces, differs a little by seed: all seeds of
    the cheapest arm have to be over.
    """
    spent = {("sft", 0): 100.0, ("sft", 1): 104.0, ("grpo", 0): 50.0, ("grpo", 1): 50.0}
    steps = ((step, arm, seed, first) for (arm, seed), first in spent.items() for step in (1, 2, 3))
    curves = pd.DataFrame(
        {
            "arm": arm,
            "seed": seed,
            "method": arm,
            "step": step,
            "sampled_tokens": first if arm == "sft" else first * step,
            "eval/accuracy": step / 10,
        }
        for step, arm, seed, first in steps
    )
    assert shared_budget(curves, "sampled_tokens") == 104
    found = at_budget(curves, "sampled_tokens").set_index(["arm", "seed"])["eval/accuracy"]
    assert found["sft"].tolist() == [0.3, 0.3] and found["grpo"].tolist() == pytest.approx(
        [0.208, 0.208]
    )
    assert (
        at_budget(curves, "sampled_tokens", spent=102)
        .set_index("arm")["eval/accuracy"]["sft"]
        .isna()
        .all()
    )


def test_a_heat_map_has_the_mean_of_each_cell_and_leaves_empty_ones_empty():
    table = runs(
        part(
            {
                f"kdrl,kd_coef={a},learning_rate={b}": a + b
                for a in (0.1, 0.2)
                for b in (0.3, 0.4)
                if (a, b) != (0.2, 0.4)
            },
            noise=0.01,
        )
    )
    figure = plot_heat(table, "kd_coef", "learning_rate")
    image = figure.axes[0].get_images()[0].get_array()
    assert image.mask.sum() == 1 if np.ma.is_masked(image) else np.isnan(image).sum() == 1
    assert float(image[0, 0]) == pytest.approx(
        table.loc[table["arm"] == "kdrl,kd_coef=0.1,learning_rate=0.3", "id avg"].mean()
    )
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert len(texts) == 3 and all("±" in text for text in texts)


def test_a_point_that_pools_other_settings_says_so():
    table = runs(
        part({f"kdrl,kd_coef={a},learning_rate={b}": a + b for a in (0.1, 0.2) for b in (0.3, 0.4)})
    )
    assert "a point has up to 2 runs of a seed, which differ in other settings" in caption(
        plot_knob(table, "kd_coef")
    )
    assert "runs of a seed" not in caption(plot_heat(table, "kd_coef", "learning_rate"))
    assert "up to 2 runs of a seed" in caption(
        plot_heat(pd.concat([table, table.assign(method="opd")]), "kd_coef", "learning_rate")
    )


def test_a_plot_of_no_measure_and_a_budget_of_no_steps_are_a_sentence(grid):
    for none in ([], "id avg"):
        with pytest.raises(ValueError, match="no measure is named"):
            plot_arms(grid, none)
    with pytest.raises(ValueError, match="no budget is named"):
        plot_budget(grid, [])
    with pytest.raises(ValueError, match="give a row a step"):
        plot_budget(grid)


def test_a_seed_without_a_value_is_no_seed(grid):
    first, other = grid["arm"].unique()[:2]
    hole = (grid["arm"] == first) & (grid["seed"] == 0)
    holed = grid.assign(**{"id avg": grid["id avg"].mask(hole)})
    for figure in (
        plot_arms(holed),
        plot_frontier(holed),
        plot_differences(holed, other),
        plot_knob(holed, "kd_coef"),
    ):
        assert "over 4–5 seeds" in caption(figure)
    assert "over 4 seeds" in caption(plot_differences(holed, first))
    with pytest.raises(ValueError, match="no run that counts has a value of id avg"):
        plot_arms(grid.assign(**{"id avg": np.nan}), ["id avg"])


def test_runs_of_one_arm_that_differ_are_no_further_seeds(grid):
    pooled = grid[grid["method"] == "kdrl"].assign(arm="kdrl")
    for figure in (plot_arms(pooled), plot_frontier(pooled)):
        assert "over 5 seeds; a point has up to 3 runs of a seed" in caption(figure)


@pytest.mark.parametrize(
    "draw",
    [
        plot_arms,
        plot_frontier,
        lambda table: plot_knob(table, "kd_coef"),
        lambda table: plot_heat(table, "kd_coef", "learning_rate"),
    ],
)
def test_tables_that_cannot_be_drawn_are_a_sentence(grid, draw):
    table = grid.assign(learning_rate=0.001)
    with pytest.raises(ValueError, match="column 'id avg' holds no numbers"):
        draw(table.assign(**{"id avg": "good"}))
    with pytest.raises(ValueError, match="has no column 'seed'"):
        draw(table.drop(columns="seed"))
    with pytest.raises(ValueError, match="the table has no runs"):
        draw(table.iloc[:0])


def test_arms_keep_the_colour_of_their_method():
    of_methods = runs(core())[lambda table: table["arm"] != "kdrl_k3"]
    figure = plot_arms(of_methods, ["id avg"])
    arms = list(dict.fromkeys(of_methods["arm"]))
    drawn = [container.lines[0].get_color() for container in figure.axes[0].containers]
    assert drawn[arms.index("grpo")] == STYLES["grpo"][0] and drawn == [
        STYLES[arm][0] for arm in arms
    ]
    markers = [container.lines[0].get_marker() for container in figure.axes[0].containers]
    assert len(set(zip(drawn, markers, strict=True))) == len(arms)


def test_differences_are_taken_by_seed():
    """Two arms that differ by exactly .1 in every seed, though seeds differ by more than that:
    the interval has no width.
    """
    rows = [
        {"arm": arm, "method": arm, "seed": seed, "id avg": 0.2 * seed + gain}
        for arm, gain in (("grpo", 0.0), ("kdrl", 0.1))
        for seed in range(4)
    ]
    rows.append(
        {"arm": "kdrl", "method": "kdrl", "seed": 9, "id avg": 0.9}
    )  # no run of the other arm has that seed
    table = pd.DataFrame(rows).assign(diverged=False, touched=False)
    figure = plot_differences(table, "grpo", ["id avg"])
    (axes,) = [one for one in figure.axes if one.get_visible()]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["KDRL"]
    assert axes.get_ylabel().endswith("minus that of GRPO")
    assert np.allclose(dots(axes)[:, 1], 0.1) and len(dots(axes)) == 4
    ((_, mean, half),) = bars(axes)
    assert mean == pytest.approx(0.1) and half == pytest.approx(0, abs=1e-9)
    assert "over 4 seeds" in caption(figure)
    bad = plot_differences(
        table.assign(diverged=(table["arm"] == "grpo") & (table["seed"] == 2)), "grpo", ["id avg"]
    )
    assert "over 3 seeds; 1 runs left out" in caption(bad)


def test_differences_that_cannot_be_taken_are_a_sentence(grid):
    with pytest.raises(
        ValueError, match="no difference to 'sft' to draw: the arms with runs that count are kdrl"
    ):
        plot_differences(grid, "sft")
    first = grid["arm"].iloc[0]
    with pytest.raises(ValueError, match="have no seed in common"):
        plot_differences(grid.assign(seed=grid["seed"] + 100 * (grid["arm"] == first)), first)
    with pytest.raises(ValueError, match="has a seed twice"):
        plot_differences(pd.concat([grid, grid]), first)
    with pytest.raises(ValueError, match="no measure is named"):
        plot_differences(grid, first, [])


# --- figures of the claims ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def verdicts():
    return judge_claims(TRUE)


def test_every_claim_has_a_figure():
    assert list(DRAW) == [claim.number for claim in CLAIMS]


@pytest.mark.parametrize("number", DRAW)
def test_the_figure_of_a_claim_says_verdict_effects_and_seeds(verdicts, number):
    verdict = verdicts[number - 1]
    figure = claim_figure(TRUE, verdict)
    assert figure._suptitle.get_text().startswith(f"Claim {number} ")
    assert "\nSupported here" in figure._suptitle.get_text()
    least = "≥" if number in (5, 13) else "="  # these compare parts, whose seeds differ
    assert f"n {least} 5 seeds" in caption(figure)
    rows = [label.get_text() for axes in figure.axes[1::2] for label in axes.get_yticklabels()]
    assert sorted(row.split("\n")[-2] for row in rows) == sorted(
        "{} [{}, {}]".format(*map(scorecard.number, (effect.mean, effect.low, effect.high)))
        for effect in (check.effect for check in verdict.checks)
    )


def test_what_is_decided_by_itself_and_decides_nothing_is_flagged():
    study = TRUE | {"betas": betas(0.01), "logic_betas": betas(0.01)}
    figure = claim_figure(study, judge_claims(study)[12])
    assert "Undecided here; † not to be trusted: the grid ends too early" in (
        figure._suptitle.get_text()
    )
    (row,) = figure.axes[1].get_yticklabels()
    assert row.get_text().endswith("contradicted †")


def test_an_interval_narrower_than_sampling_allows_is_flagged(verdicts):
    whole = verdicts[11]
    narrow = replace(whole.checks[0], effect=Effect(-0.004, -0.0045, -0.0035, 5))
    wide = replace(whole.checks[1], effect=Effect(0.0, -0.01, 0.01, 5))
    found = doubted(replace(whole, checks=(narrow, wide)))
    assert found == {narrow.text: "the interval is narrower than sampling allows"}


def test_figures_are_written_with_their_numbers_for_what_was_run(verdicts, tmp_path):
    written = draw_claims({"core": TRUE["core"]}, tmp_path)
    assert [path.name for path in written] == [
        f"claim_{number:02d}.png" for number in (1, 2, 3, 4, 6)
    ]
    assert all(path.with_suffix(".pdf").exists() for path in written)
    side = json.loads((tmp_path / "claim_01.json").read_text())
    assert (
        side["verdict"] == "supported"
        and side["comparisons"][0]["seeds"] == 5
        and side["seeds_of"]["core"]["grpo"] == [0, 1, 2, 3, 4]
    )
    counted = {
        row["comparison"]: row["outcome_of_all"] for row in side["comparisons"]
    }  # among those of every claim, as in the scorecard
    whole = comparisons(judge_claims({"core": TRUE["core"]})).set_index("comparison")[
        "outcome_of_all"
    ]
    assert counted == {text: whole[text] for text in counted}
    with pytest.raises(ValueError, match="not run: alphas"):
        claim_figure({"core": TRUE["core"]}, verdicts[7])


def test_runs_of_ones_own_come_into_the_same_form(tmp_path):
    """Two runs by hand, one evaluated by `rlkd eval`: a table with their settings and measures,
    and a plot from it.
    """
    from typer.testing import CliRunner

    from rlkd_lab.commands import app
    from rlkd_lab.study.results import table_of
    from rlkd_lab.training import make_config, run

    short = {
        "steps": 2,
        "prompts_per_step": 2,
        "group_size": 2,
        "max_new_tokens": 24,
        "eval_every": 0,
        "samples_every": 0,
        "difficulty": (2, 2),
    }
    made = [
        run(make_config("kdrl", settings={"kd_coef": value}, **short), tmp_path / value)
        for value in ("0.1", "0.3")
    ]
    few = ["--prompts", "4", "--samples", "2", "--no-ood"]
    for folder in made:
        assert CliRunner().invoke(app, ["eval", str(folder.path), *few]).exit_code == 0
    table = table_of(made)
    assert (
        table["kd_coef"].tolist() == [0.1, 0.3]
        and table["arm"].tolist() == ["kdrl", "kdrl"]
        and "teacher" not in table
    )
    assert table["id avg"].between(0, 1).all() and (table["train_seconds"] < table["seconds"]).all()
    assert len(png(plot_knob(table, "kd_coef", "reward"))) > 5000
    with pytest.raises(ValueError, match="one label for each"):
        table_of(made, ["a"])


def test_two_series_over_a_knob_both_stand_at_its_values(grid):
    kdrl = grid[grid["method"] == "kdrl"]
    axes = white_figure(4, 3).subplots()
    draw_knob(axes, kdrl, "kd_coef", "id avg")
    draw_knob(axes, kdrl, "kd_coef", "id avg", second=True)
    axes.figure.draw_without_rendering()
    points = [container.lines[0] for container in axes.containers]
    for point in points:
        x, y = point.get_data()
        seen = point.get_transform().transform((x[0], y[0]))
        assert seen == pytest.approx(axes.transData.transform((x[0], y[0])))
    faces = [point.get_markerfacecolor() for point in points]
    assert faces[:3] == [STYLES["kdrl"][0]] * 3 and faces[3:] == ["white"] * 3
