"""What the figure of each claim shows: the measure that is compared, and the comparisons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes

from rlkd_lab.plots.points import dot_style, draw_arms, draw_knob, draw_series, draw_spread
from rlkd_lab.plots.styles import STYLES, label_of, line, name_ticks, styles_of, title_of, wrap
from rlkd_lab.study.claim_checks import WINDOWS, step_seconds, steps_ahead
from rlkd_lab.study.comparing import ACCURACY, LENGTH
from rlkd_lab.study.parts import Part, Study
from rlkd_lab.study.scorecard import in_words
from rlkd_lab.study.sequential_checks import CHANCE
from rlkd_lab.study.statistics import WINDOW

Draw = Callable[[Axes, Study], None]


class Row(NamedTuple):
    """A row of a figure: what draws the measure, its unit, and the comparisons beside it."""

    draw: Draw
    unit: str
    effect: str  # label of the axis of the comparisons
    checks: slice = slice(None)  # which of the claim's


def _pick(part: Part, arms: Sequence[str]) -> pd.DataFrame:
    """Return the runs of some arms, in the order of ``arms``."""
    return pd.concat([part.runs[part.runs["arm"] == arm] for arm in arms], ignore_index=True)


def _arms(part: str, arms: Sequence[str], measure: str = ACCURACY) -> Draw:
    """Return what draws arms of a part side by side."""
    names = {arm: in_words(arm) for arm in arms}
    return lambda axes, study: draw_arms(axes, _pick(study[part], arms), measure, names)


def _training(axes: Axes, study: Study) -> None:
    """Draw the accuracy in training: means over seeds, each seed faint."""
    for arm in ("grpo", "kdrl"):
        curves = [
            curve.rolling(WINDOW).mean() for curve in study["core"].curve(arm, "accuracy").values()
        ]
        if not curves:  # a core of one's own may lack the arm
            continue
        for curve in curves:
            axes.plot(curve.index, curve, alpha=0.25, linewidth=0.6, color=STYLES[arm][0])
        mean = pd.concat(curves, axis=1).mean(axis=1)
        axes.plot(mean.index, mean, **line(STYLES[arm], label=title_of(arm)))
    axes.set_xlabel("step")
    axes.set_ylabel(f"accuracy in training,\nmean of {WINDOW} steps")


def _ahead(axes: Axes, study: Study) -> None:
    for window in WINDOWS:
        draw_spread(axes, window, steps_ahead(study["core"], window), *dot_style("kdrl"))
    axes.axhline(0, color="#888888", linewidth=0.8)
    axes.margins(x=0.2)
    axes.set_xticks(WINDOWS)
    axes.set_xlabel("steps of the trailing mean")
    axes.set_ylabel("steps by which KDRL is\nearlier at GRPO's end")


def _sizes(axes: Axes, study: Study) -> None:
    for place, arm in enumerate(("grpo", "kdrl", "trrd")):
        groups = {float(size): study["logic"].level(arm, size) for size in ("2", "3", "4")}
        draw_series(axes, groups, STYLES[arm], title_of(arm), 14 * (place - 1))
    axes.set_xticks((2, 3, 4))
    axes.set_xlabel("people in the puzzle")
    axes.set_ylabel(wrap(label_of(ACCURACY)))


def _alphas(axes: Axes, study: Study) -> None:
    draw_knob(axes, study["alphas"].runs, "trrd_alpha", ACCURACY)


def _coefficients(axes: Axes, study: Study) -> None:
    """Draw KDRL at each fixed coefficient, and the means of GRPO and of the annealed one."""
    core = study["core"]
    runs = pd.concat([_pick(core, ("kdrl",)), study["betas"].runs]).dropna(subset="kd_coef")
    draw_knob(axes, runs, "kd_coef", ACCURACY)
    for arm in ("kdrl_annealed", "grpo"):
        mean = core.of(arm, ACCURACY).mean()
        axes.axhline(mean, **line(STYLES[arm], label=title_of(arm), linewidth=1))


def _cost(axes: Axes, study: Study) -> None:
    rows = [
        step_seconds(study["cost"], arm).to_frame("train_time").assign(arm=arm, method=arm)
        for arm in ("trrd", "kdrl", "grpo")
    ]
    draw_arms(axes, pd.concat(rows), "train_time")
    axes.set_ylabel("seconds of a step,\nmedian of steps 2–11")
    axes.set_ylim(bottom=0)


def _passes(axes: Axes, study: Study) -> None:
    part = study["logic"]
    columns = [str(name) for name in part.runs if str(name).startswith("id pass@")]
    ks = sorted(int(name.removeprefix("id pass@")) for name in columns)
    for shift, arm in ((0, "opd"), (-7, "kdrl_advantage"), (7, "trrd")):
        groups = {float(k): part.of(arm, f"id pass@{k}") for k in ks}
        draw_series(axes, groups, STYLES[arm], title_of(arm), shift)
    chance = [part.runs[f"id chance@{k}"].mean() for k in ks]
    axes.plot(ks, chance, color="#777777", linewidth=0.8, label="guesses")
    axes.axhline(CHANCE, color="#777777", linewidth=0.5, linestyle=":")
    axes.set_ylim(bottom=-0.02)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.set_xlabel("k, completions of a prompt")
    axes.set_ylabel("pass@k, test prompts")


def _two_tasks(axes: Axes, study: Study) -> None:
    parts = {"arithmetic": "betas", "Knights\nand Knaves": "logic_betas"}
    styles = styles_of(dict.fromkeys(parts, "kdrl"))
    for second, (task, name) in enumerate(parts.items()):
        runs = study[name].runs
        fixed = runs[runs["method"] == "kdrl"]
        draw_knob(axes, fixed, "kd_coef", ACCURACY, styles[task], task, bool(second))


def _conflict(axes: Axes, study: Study) -> None:
    arms = ("grpo", "kdrl_advantage", "trrd", "opd")
    for place, arm in enumerate(arms):
        draw_spread(axes, place, study["logic"].conflict(arm), *dot_style(arm))
    axes.axhline(0.5, color="#888888", linewidth=0.8)
    names = [title_of(arm) for arm in arms[:-1]]
    name_ticks(axes, [*names, f"{title_of('opd')}, other seed"])
    axes.set_ylabel("share of signs in conflict\nwith OPD's update")


SHARE, ORDER = "accuracy in shares of 1", "difference in accuracy"
TOKENS, LONGER = "length in tokens", "difference in tokens"

DRAW: dict[int, tuple[Row, ...]] = {
    1: (Row(_arms("core", ("kdrl", "opd", "grpo", "sft")), SHARE, ORDER),),
    2: (
        Row(_training, SHARE, ORDER, slice(1, 2)),
        Row(_ahead, "lead in steps", "steps", slice(0, 1)),
    ),
    3: (Row(_arms("core", ("opd", "kdrl", "grpo"), LENGTH), TOKENS, LONGER),),
    4: (Row(_arms("core", ("kdrl", "kdrl_k3")), SHARE, ORDER),),
    5: (Row(_coefficients, SHARE, ORDER),),
    6: (
        Row(_arms("core", ("kdrl_masked", "kdrl")), SHARE, ORDER, slice(0, 1)),
        Row(_arms("core", ("kdrl_masked", "kdrl"), LENGTH), TOKENS, LONGER, slice(1, 2)),
    ),
    7: (
        Row(_arms("logic", ("trrd", "kdrl", "grpo")), SHARE, ORDER, slice(0, 2)),
        Row(_sizes, SHARE, "difference of the leads", slice(2, 3)),
    ),
    8: (Row(_alphas, SHARE, ORDER),),
    9: (Row(_cost, "time in seconds", "ratio of times − the claimed ratio"),),
    10: (Row(_arms("logic", ("grpo", "opd", "kdrl_advantage", "trrd")), SHARE, ORDER),),
    11: (Row(_passes, "pass@k in shares of 1", "difference in pass@k"),),
    12: (
        Row(
            _arms("logic", ("opd_then_rl", "kdrl_advantage_annealed", "kdrl_advantage")),
            SHARE,
            ORDER,
        ),
    ),
    13: (Row(_two_tasks, SHARE, "powers of ten"),),
    14: (Row(_conflict, "conflict in shares of 1", "difference in the share of signs"),),
}
"""The rows of the figure of a claim, by the number of the claim."""
