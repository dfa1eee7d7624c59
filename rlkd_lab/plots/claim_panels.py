"""The figure of each claim of the scorecard, drawn from the tables that decide the claim."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlkd_lab.plots.ablations import share_limits
from rlkd_lab.plots.points import (
    dot_style,
    draw_arms,
    draw_knob,
    draw_spread,
    label_of,
    panel_figure,
)
from rlkd_lab.plots.styles import STYLES, line, style_of
from rlkd_lab.study.claim_checks import (
    ACCURACY,
    CHANCE,
    LENGTH,
    MASKS_RATE,
    WINDOW,
    WINDOWS,
    steps_ahead,
)
from rlkd_lab.study.results import Part, Study


def _pick(part: Part, arms: Sequence[str]) -> pd.DataFrame:
    """Return the runs of some arms, in the order of ``arms``."""
    return pd.concat([part.runs[part.runs["arm"] == arm] for arm in arms], ignore_index=True)


def _arms(part: Part, arms: Sequence[str], measures: Sequence[str]) -> Figure:
    """Draw arms side by side, a panel for each measure."""
    figure, panels = panel_figure(len(measures), columns=2)
    for axes, measure in zip(panels, measures, strict=True):
        draw_arms(axes, _pick(part, arms), measure)
    return figure


def _curves(axes: Axes, part: Part, arms: Sequence[str], metric: str, label: str) -> None:
    """Draw means over seeds, each seed faint.

    Training metrics are trailing means over a full window; evaluations are not smoothed.
    """
    for arm in arms:
        rows = part.runs[part.runs["arm"] == arm]
        curves = list(part.curve(arm, metric).values()) if len(rows) else []
        if not curves:
            continue
        if not metric.startswith("eval/"):
            curves = [curve.rolling(WINDOW).mean() for curve in curves]
        look = line(style_of(str(rows["method"].iloc[0])))
        for curve in curves:
            axes.plot(curve.index, curve, alpha=0.25, linewidth=0.8, **look)
        mean = pd.concat(curves, axis=1).mean(axis=1)
        axes.plot(mean.index, mean, linewidth=2, label=arm, **look)
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)


def _order_of_methods(study: Study) -> Figure:
    arms = ("sft", "grpo", "opd", "kdrl", "kdrl_annealed")
    return _arms(study["core"], arms, (ACCURACY, "ood avg"))


def _fewer_steps(study: Study) -> Figure:
    figure, (left, right) = panel_figure(2, width=5.2)
    part = study["core"]
    label = f"accuracy in training, mean of {WINDOW} steps"
    _curves(left, part, ("grpo", "kdrl"), "accuracy", label)
    for window in WINDOWS:
        draw_spread(right, window, steps_ahead(part, window), STYLES["kdrl"][0])
    right.axhline(0, color="#888888", linewidth=0.8)
    right.set_xlabel("steps of the trailing mean")
    right.set_xticks(WINDOWS)
    right.set_ylabel("steps earlier at GRPO's end")
    right.grid(alpha=0.25)
    return figure


def _lengths(study: Study) -> Figure:
    figure, (left, right) = panel_figure(2)
    arms, label = ("grpo", "kdrl", "opd"), f"length in training, mean of {WINDOW} steps"
    draw_arms(left, _pick(study["core"], arms), LENGTH)
    _curves(right, study["core"], arms, "completions/mean_length", label)
    return figure


def _estimators(study: Study) -> Figure:
    figure, panels = panel_figure(2)
    k2 = _pick(study["core"], ("kdrl",))
    others = _pick(study["estimators"], ("kdrl_k3", "kdrl_exact"))
    rows = pd.concat([k2, others], ignore_index=True)
    names = {"kdrl": "k2", "kdrl_k3": "k3", "kdrl_exact": "exact"}
    for axes, measure in zip(panels, (ACCURACY, LENGTH), strict=True):
        draw_arms(axes, rows, measure, names)
    return figure


def _annealing(study: Study) -> Figure:
    figure, (left, right) = panel_figure(2)
    runs = study["betas"].runs
    draw_knob(left, _fixed_coefficients(runs), "kd_coef", ACCURACY)
    left.set_title("fixed", fontsize=10)
    draw_knob(right, runs[runs["method"] == "kdrl_annealed"], "kd_coef", ACCURACY)
    right.set_title("annealed", fontsize=10)
    share_limits([left, right])
    return figure


def _fixed_coefficients(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs of KDRL with a fixed coefficient, as numbers."""
    kept = runs[runs["method"] == "kdrl"]
    return kept.assign(kd_coef=pd.to_numeric(kept["kd_coef"]))


def _masking(study: Study) -> Figure:
    """Draw equal coefficients where those parts were run, else each method with its settings."""
    if not {"rates", "masks"} <= study.keys():
        return _arms(study["core"], ("kdrl", "kdrl_masked"), (ACCURACY, LENGTH))
    figure, panels = panel_figure(2)
    rates = study["rates"].runs
    unmasked = rates[pd.to_numeric(rates["learning_rate"]) == MASKS_RATE]
    for axes, measure in zip(panels, (ACCURACY, LENGTH), strict=True):
        for runs in (unmasked, study["masks"].runs):
            draw_knob(axes, runs, "kd_coef", measure)
            method = str(runs["method"].iloc[0])
            colour, marker = dot_style(method)
            axes.plot([], [], marker, color=colour, label=method)
        axes.legend(frameon=False, fontsize=8)
    return figure


def _sizes(study: Study) -> Figure:
    figure, (left, right) = panel_figure(2)
    part = study["knights"]
    draw_arms(left, _pick(part, ("grpo", "kdrl", "trrd", "opd")), ACCURACY)
    for place, arm in enumerate(("grpo", "kdrl", "trrd")):
        colour = STYLES[arm][0]
        for size in ("2", "3", "4"):
            draw_spread(right, int(size) + 0.2 * (place - 1), part.level(arm, size), colour)
        right.plot([], [], "o", color=colour, label=arm)
    right.margins(x=0.1)
    right.set_xticks((2, 3, 4))
    right.set_xlabel("people in the puzzle")
    right.set_ylabel(label_of(ACCURACY))
    right.legend(frameon=False, fontsize=8)
    right.grid(alpha=0.25)
    return figure


def _alphas(study: Study) -> Figure:
    figure, panels = panel_figure(2)
    for axes, measure in zip(panels, (ACCURACY, LENGTH), strict=True):
        draw_knob(axes, study["alphas"].runs, "trrd_alpha", measure)
    return figure


def _cost(study: Study) -> Figure:
    figure, (axes,) = panel_figure(1, width=6.4)
    arms = ("grpo", "kdrl", "trrd", "opd")
    part = study["core"]
    steps = part.curves[part.curves["step"].between(2, 11) & part.curves["arm"].isin(arms)]
    medians = steps.groupby(["arm", "seed"], sort=False)["train_time"].median().reset_index()
    medians["method"] = medians["arm"]
    order = pd.concat([medians[medians["arm"] == arm] for arm in arms])
    draw_arms(axes, order, "train_time")
    axes.set_ylabel("seconds of a step,\nmedian of steps 2–11")
    axes.set_ylim(bottom=0)
    return figure


def _joint(study: Study) -> Figure:
    return _arms(study["knights"], ("grpo", "opd", "kdrl", "trrd"), (ACCURACY, "ood avg"))


def _passes(study: Study) -> Figure:
    figure, (axes,) = panel_figure(1, width=6.4)
    part = study["core"]
    columns = [str(name) for name in part.runs if str(name).startswith("id pass@")]
    ks = sorted(int(name.removeprefix("id pass@")) for name in columns)
    for arm in ("opd", "kdrl", "trrd", "grpo"):
        colour = STYLES[arm][0]
        table = pd.DataFrame({k: part.of(arm, f"id pass@{k}") for k in ks})
        for _, row in table.iterrows():
            axes.plot(ks, row, color=colour, alpha=0.25, linewidth=0.8)
        look = line(STYLES[arm], linewidth=2, marker="o")
        axes.plot(ks, table.mean(), label=arm, **look)
    chance = [part.runs[f"id chance@{k}"].mean() for k in ks]
    axes.plot(ks, chance, color="#888888", linestyle="--", label="guesses")
    axes.axhline(CHANCE, color="#888888", linewidth=0.5)
    axes.set_ylim(bottom=-0.02)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.set_xlabel("k")
    axes.set_ylabel("pass@k, test prompts")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _sequential(study: Study) -> Figure:
    figure, (left, right) = panel_figure(2)
    arms = ("kdrl", "kdrl_annealed", "opd_then_rl")
    draw_arms(left, _pick(study["core"], arms), ACCURACY)
    _curves(right, study["core"], arms, "eval/accuracy", label_of("eval/accuracy"))
    return figure


def _two_tasks(study: Study) -> Figure:
    figure, panels = panel_figure(2)
    parts = (("betas", "arithmetic"), ("knights_betas", "Knights and Knaves"))
    for axes, (name, title) in zip(panels, parts, strict=True):
        runs = study[name].runs
        draw_knob(axes, _fixed_coefficients(runs), "kd_coef", ACCURACY)
        axes.set_title(title, fontsize=10)
    return figure


def _interference(study: Study) -> Figure:
    figure, (left, right) = panel_figure(2)
    part, name = study["core"], "interference/sign_conflict_{}".format
    arms = ("grpo", "kdrl", "trrd")
    for place, arm in enumerate(arms):
        colour = STYLES[arm][0]
        teacher, halves = name("teacher_method"), name("split_teacher")
        draw_spread(left, place, part.curve_means(arm, teacher), colour)
        draw_spread(left, place + 0.3, part.curve_means(arm, halves), "#888888", "_")
        for metric, style, label in ((teacher, "-", arm), (halves, ":", None)):
            if curves := part.curve(arm, metric):
                mean = pd.concat(curves.values(), axis=1).mean(axis=1)
                look = line((colour, style), marker="o", markersize=3)
                right.plot(mean.index, mean, label=label, **look)
    left.set_xticks(range(3), arms)
    left.set_xlim(-0.4, 2.6)
    left.set_ylabel("sign conflict with OPD's gradient\n(grey: two halves of a batch)")
    right.set_xlabel("step")
    right.set_ylabel("the same over training\n(dotted: halves)")
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.25)
    return figure


DRAW: dict[int, Callable[[Study], Figure]] = {
    1: _order_of_methods,
    2: _fewer_steps,
    3: _lengths,
    4: _estimators,
    5: _annealing,
    6: _masking,
    7: _sizes,
    8: _alphas,
    9: _cost,
    10: _joint,
    11: _passes,
    12: _sequential,
    13: _two_tasks,
    14: _interference,
}
"""Functions that draw the figure of a claim, by the number of the claim."""
