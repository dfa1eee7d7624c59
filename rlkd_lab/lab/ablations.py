"""Ablation plots from tables: a row a run (``runs.csv`` of a sweep, or
:func:`rlkd_lab.study.results.table_of` for runs of your own) or a row a step.

Every seed is drawn, faint or as a dot beside its mean; means carry a 95 % interval over seeds
(Student's t). Runs that diverged or that somebody moved are left out, and the figure says how many.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from matplotlib.transforms import offset_copy

from rlkd_lab.lab.plots import PANELS, STYLES, literal, looks
from rlkd_lab.study.results import left_out
from rlkd_lab.study.statistics import half_width

NAMES = {
    **PANELS,
    "id avg": "accuracy, test prompts",
    "ood avg": "accuracy, out of distribution",
    "id length": "length, test prompts, tokens",
    "ood length": "length, out of distribution, tokens",
    "sampled_tokens": "tokens sampled, teacher's traces included",
    "train_seconds": "seconds of training, the teacher's included",
    "seconds": "seconds, evaluations included",
}
"""What the axes are called."""
Budget = Literal["sampled_tokens", "train_seconds", "step"]


MARKERS = {"-": "o", "--": "s", ":": "^", "-.": "D"}
"""A method's marker where it has no line: methods of one colour differ in line style."""


def dot(method: str) -> tuple[str, str]:
    """A method's colour and marker."""
    colour, style = STYLES.get(method, ("#555555", "-"))
    return colour, MARKERS[style]


def new_figure(
    panels: int, width: float = 4.4, height: float = 3.4, columns: int = 3
) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels, at most ``columns`` in a row."""
    columns = min(columns, panels)
    lines = -(-panels // columns)
    figure = Figure(
        figsize=(width * columns, height * lines + 0.4), facecolor="white", layout="constrained"
    )
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for spare in axes[panels:]:
        spare.set_visible(False)
    return figure, axes[:panels]


def counted(
    runs: pd.DataFrame, *measures: str, knobs: Sequence[str] = ()
) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """The runs that count, those of them with a value in every column, whose seeds the figure
    states, and what it says of those left out.

    Raises:
        ValueError: a column that the table does not have, a measure that is no number, or no run
            that counts.
    """
    missing = [name for name in ("arm", "seed", "method", *measures, *knobs) if name not in runs]
    if missing:
        raise ValueError(
            f"the table has no column {missing[0]!r}; it has {', '.join(map(str, runs.columns))}"
        )
    if runs.empty:
        raise ValueError("the table has no runs")
    if texts := [name for name in measures if not pd.api.types.is_numeric_dtype(runs[name])]:
        raise ValueError(f"column {texts[0]!r} holds no numbers: it cannot be a measure")
    bad = (
        left_out(runs)
        if {"diverged", "touched"} <= set(runs)
        else pd.Series(False, index=runs.index)
    )
    kept = runs[~bad]
    if kept.empty:
        raise ValueError("no run is left to draw: all of them diverged or were moved by hand")
    known = kept.dropna(subset=[*measures, *knobs])
    if known.empty:
        raise ValueError(
            f"no run that counts has a value of {' and of '.join([*measures, *knobs])}"
        )
    return (
        kept,
        known,
        f"; {int(bad.sum())} runs left out (diverged or moved by hand)" if bad.any() else "",
    )


def _listed(columns: Sequence[str], what: str) -> None:
    if not columns or isinstance(columns, str):
        raise ValueError(f"no {what} is named: give a list of columns of the table")


def _seeds_of(runs: pd.DataFrame) -> str:
    seeds = runs.groupby("arm")["seed"].nunique()
    return (
        f"{seeds.min()} seeds"
        if seeds.min() == seeds.max()
        else f"{seeds.min()}–{seeds.max()} seeds"
    )


def _pooled(runs: pd.DataFrame, *columns: str) -> str:
    """What a figure says where one of its points holds several runs of a seed: they are no
    further seeds.
    """
    most = runs.groupby([*columns, "seed"]).size().max()
    return (
        f"; a point has up to {most} runs of a seed, which differ in other settings"
        if most > 1
        else ""
    )


def spread(axes: Axes, x: float, values: pd.Series, colour: str, marker: str = "o") -> None:
    """The mean with its interval, and left of it each seed as a faint dot."""
    known = values.dropna().to_numpy(dtype=float)
    if not len(known):
        return
    for number, value in enumerate(known):
        left = offset_copy(
            axes.transData, axes.get_figure(root=True), x=-5 - 2.2 * number, units="points"
        )
        axes.scatter([x], [value], s=14, color=colour, alpha=0.4, linewidths=0, transform=left)
    axes.update_datalim(
        np.column_stack([np.full(len(known), x), known])
    )  # what is shifted does not count by itself
    half = half_width(known)
    axes.errorbar(
        [x],
        [known.mean()],
        yerr=None if math.isnan(half) else [[half], [half]],
        color=colour,
        marker=marker,
        capsize=3,
        markersize=6,
        linewidth=1.6,
    )


def draw_arms(
    axes: Axes, runs: pd.DataFrame, measure: str, names: Mapping[str, str] | None = None
) -> None:
    """A measure of each arm, side by side."""
    arms = list(dict.fromkeys(runs["arm"]))
    for place, arm in enumerate(arms):
        rows = runs[runs["arm"] == arm]
        spread(axes, place, rows[measure], *dot(str(rows["method"].iloc[0])))
    tick(axes, [(names or {}).get(arm, arm) for arm in arms])
    axes.set_ylabel(_named(measure))
    axes.grid(axis="y", alpha=0.25)


def plot_arms(
    runs: pd.DataFrame, measures: Sequence[str] = ("id avg", "id length"), title: str | None = None
) -> Figure:
    """Small multiples, a panel a measure: every arm with its seeds, mean and interval."""
    _listed(measures, "measure")
    kept, known, omitted = counted(runs, *measures)
    seeds = _seeds_of(known) + omitted + _pooled(kept, "arm")
    figure, panels = new_figure(
        len(measures), width=max(3.4, 0.6 * kept["arm"].nunique() + 1.5), columns=2
    )
    for axes, measure in zip(panels, measures, strict=True):
        draw_arms(axes, kept, measure)
    return _finished(figure, title, f"dots: seeds; mean and 95 % interval over {seeds}")


def plot_differences(
    runs: pd.DataFrame,
    against: str,
    measures: Sequence[str] = ("id avg", "id length"),
    title: str | None = None,
) -> Figure:
    """Small multiples, a panel a measure: every other arm minus ``against``, seed by seed. An
    interval that leaves out 0 is a difference beyond the seeds.

    Raises:
        ValueError: no such column or arm, an arm that shares no seed with it, or one that has a
            seed twice.
    """
    _listed(measures, "measure")
    kept, whole, omitted = counted(runs, *measures)
    arms = list(dict.fromkeys(kept["arm"]))
    if against not in arms or len(arms) < 2:
        raise ValueError(
            f"there is no difference to {against!r} to draw: the arms with runs that count"
            f" are {', '.join(map(str, arms))}"
        )
    for arm, rows in kept.groupby("arm"):
        if rows["seed"].duplicated().any():
            raise ValueError(
                f"arm {arm} has a seed twice: runs that differ in a setting are arms of their"
                " own (table_of takes labels)"
            )
    base = whole[whole["arm"] == against].set_index("seed")
    rest = whole[whole["arm"].ne(against) & whole["seed"].isin(base.index)]
    if alone := [str(arm) for arm in arms if arm != against and not (rest["arm"] == arm).any()]:
        raise ValueError(f"{alone[0]} and {against} have no seed in common")
    figure, panels = new_figure(len(measures), width=max(3.4, 0.6 * len(arms) + 0.9), columns=2)
    for axes, measure in zip(panels, measures, strict=True):
        axes.axhline(0, color="#888888", linewidth=0.8)
        draw_arms(
            axes, rest.assign(**{measure: rest[measure] - rest["seed"].map(base[measure])}), measure
        )
        axes.set_ylabel(f"{_named(measure)}\nminus that of {literal(against)}")
    return _finished(
        figure,
        title,
        "dots: seeds; mean and 95 % interval of the difference by seed, over"
        f" {_seeds_of(rest)}{omitted}",
    )


def plot_knob(
    runs: pd.DataFrame, knob: str, measure: str = "id avg", title: str | None = None
) -> Figure:
    """A measure against a knob or setting, a panel a method, every seed visible.

    Args:
        runs: a table with a column for the knob; sweeps and ``table_of`` have one for each setting
            that varies.
        knob: numbers are placed on an axis (logarithmic where they span a factor of twenty or
            more), texts side by side.
        measure: a column.
        title: above the figure.

    Raises:
        ValueError: no such column, or no run has both.
    """
    _, kept, omitted = counted(runs, measure, knobs=[knob])
    seeds = _seeds_of(kept) + omitted + _pooled(kept, "method", knob)
    methods = list(dict.fromkeys(kept["method"]))
    figure, panels = new_figure(len(methods))
    for axes, method in zip(panels, methods, strict=True):
        draw_knob(axes, kept[kept["method"] == method], knob, measure)
        axes.set_title(literal(method), fontsize=10)
    low, high = _limits(panels)
    for axes in panels:
        axes.set_ylim(low, high)
    return _finished(figure, title, f"dots: seeds; line: means; bars: 95 % interval over {seeds}")


def draw_knob(axes: Axes, runs: pd.DataFrame, knob: str, measure: str) -> None:
    """One panel of :func:`plot_knob`: runs of one method."""
    if runs.empty:
        axes.text(
            0.5, 0.5, "not run", ha="center", va="center", transform=axes.transAxes, color="#777777"
        )
        return
    colour, marker = dot(str(runs["method"].iloc[0]))
    numbers = pd.to_numeric(runs[knob], errors="coerce")
    if numbers.notna().all():
        places = {value: float(value) for value in sorted(numbers.unique())}
        positive = [value for value in places.values() if value > 0]
        if len(positive) == len(places) and max(positive) / min(positive) >= 20:
            axes.set_xscale("log")
        groups = {value: runs.loc[numbers == value, measure] for value in places}
        means = [groups[value].mean() for value in places]
        axes.plot(list(places.values()), means, color=colour, linewidth=1.4)
    else:
        texts = list(dict.fromkeys(runs[knob].astype(str)))
        places = {text: float(place) for place, text in enumerate(texts)}
        groups = {text: runs.loc[runs[knob].astype(str) == text, measure] for text in texts}
        tick(axes, texts)
    axes.margins(x=0.1)  # room for the dots
    for value, place in places.items():
        spread(axes, place, groups[value], colour, marker)
    axes.set_xlabel(literal(knob))
    axes.set_ylabel(_named(measure))
    axes.grid(alpha=0.25)


def plot_frontier(
    runs: pd.DataFrame, cost: str = "id length", gain: str = "id avg", title: str | None = None
) -> Figure:
    """Accuracy against length: every run a dot, every arm's mean a marker; the line joins the
    arms that no other beats in both.
    """
    _, kept, omitted = counted(runs, cost, gain)
    seeds = _seeds_of(kept) + omitted + _pooled(kept, "arm")
    figure, (axes,) = new_figure(1, width=6.4, height=4.2)
    arms = list(dict.fromkeys(kept["arm"]))
    means = kept.groupby("arm", sort=False)[[cost, gain]].mean()
    for arm in arms:
        rows = kept[kept["arm"] == arm]
        colour, marker = dot(str(rows["method"].iloc[0]))
        axes.scatter(rows[cost], rows[gain], s=14, color=colour, alpha=0.35, linewidths=0)
        axes.plot(
            means.loc[arm, cost],
            means.loc[arm, gain],
            marker,
            color=colour,
            markersize=8,
            label=literal(arm, legend=True),
        )
    beaten = [
        ((means[cost] <= x) & (means[gain] >= y) & ((means[cost] < x) | (means[gain] > y))).any()
        for x, y in means.to_numpy()
    ]
    best = means[~np.array(beaten)].sort_values(cost)
    axes.plot(best[cost], best[gain], color="#888888", linewidth=1, linestyle="--", zorder=0)
    joined = (
        "dashed: arms that no other beats in both"
        if len(best) > 1
        else f"no arm is shorter or more accurate in the mean than {best.index[0]}"
    )
    axes.legend(frameon=False, fontsize=8)
    axes.set_xlabel(_named(cost))
    axes.set_ylabel(_named(gain))
    axes.grid(alpha=0.25)
    return _finished(figure, title, f"small dots: seeds; large: means over {seeds}; {joined}")


def plot_budget(
    curves: pd.DataFrame,
    budgets: Sequence[Budget] = ("sampled_tokens", "train_seconds"),
    metric: str = "eval/accuracy",
    title: str | None = None,
) -> Figure:
    """A metric against what was spent: tokens sampled or seconds of training, the teacher's share
    included in both. Each seed faint, and the mean of each evaluation over seeds; the vertical line
    is :func:`shared_budget`.

    Raises:
        ValueError: no such column.
    """
    _listed(budgets, "budget")
    _check_steps(curves, *budgets, metric)
    figure, panels = new_figure(len(budgets), width=5.6, columns=2)
    arms = list(dict.fromkeys(curves["arm"]))
    styles = looks({arm: str(curves.loc[curves["arm"] == arm, "method"].iloc[0]) for arm in arms})
    for axes, budget in zip(panels, budgets, strict=True):
        for arm in arms:
            rows = curves[(curves["arm"] == arm) & curves[metric].notna()]
            colour, style = styles[arm]
            for _, one in rows.groupby("seed"):
                axes.plot(
                    one[budget],
                    one[metric],
                    color=colour,
                    linestyle=style,
                    alpha=0.2,
                    linewidth=0.8,
                )
            mean = rows.groupby("step")[[budget, metric]].mean()
            axes.plot(
                mean[budget],
                mean[metric],
                color=colour,
                linestyle=style,
                linewidth=1.8,
                marker="o",
                markersize=3.5,
                label=literal(arm, legend=True),
            )
        axes.axvline(shared_budget(curves, budget), color="#888888", linewidth=0.8, linestyle="--")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 40k
        axes.set_xlabel(_named(budget))
        axes.set_ylabel(_named(metric))
        axes.grid(alpha=0.25)
    panels[-1].legend(frameon=False, fontsize=8)
    return _finished(
        figure,
        title,
        f"each seed faint, mean over {_seeds_of(curves.dropna(subset=[metric]))}; dashed:"
        " what the cheapest arm spends",
    )


def _check_steps(curves: pd.DataFrame, *columns: str) -> None:
    for name in ("arm", "seed", "method", *columns):
        if name not in curves or curves[name].isna().all():
            raise ValueError(
                f"the table has no column {name!r}, or nothing in it: give a row a step"
                " (curves.parquet, or curves_of a run), with evaluations on the way"
            )


def shared_budget(curves: pd.DataFrame, budget: Budget) -> float:
    """What the cheapest arm spends, in its dearest seed: of no arm more than a part of the run
    is left out for another's sake.
    """
    return float(curves.groupby(["arm", "seed"])[budget].max().groupby("arm").max().min())


def at_budget(
    curves: pd.DataFrame, budget: Budget, metric: str = "eval/accuracy", spent: float | None = None
) -> pd.DataFrame:
    """A row a run: arm, seed, method and the metric where ``spent`` was spent, by default
    :func:`shared_budget`: between two evaluations on the line that joins them, after the last one
    that. NaN for every seed of an arm of which one has not been evaluated yet by then.

    Raises:
        ValueError: no such column.
    """
    _check_steps(curves, budget, metric)
    limit = shared_budget(curves, budget) if spent is None else spent
    rows = []
    for (arm, seed), one in curves.groupby(["arm", "seed"], sort=False):
        known = one[one[metric].notna()]
        value = (
            np.interp(
                limit, known[budget].to_numpy(float), known[metric].to_numpy(float), left=math.nan
            )
            if len(known)
            else math.nan
        )
        rows.append(
            {"arm": arm, "seed": seed, "method": one["method"].iloc[0], metric: float(value)}
        )
    found = pd.DataFrame(rows)
    too_early = found.groupby("arm")[metric].transform(lambda values: values.isna().any())
    return found.assign(**{metric: found[metric].mask(too_early)}, diverged=False, touched=False)


def plot_heat(
    runs: pd.DataFrame, across: str, up: str, measure: str = "id avg", title: str | None = None
) -> Figure:
    """A heat map over two knobs: the mean over seeds in each cell, with half of its 95 %
    interval; an empty cell was not run.
    """
    _, kept, omitted = counted(runs, measure, knobs=[across, up])
    seeds = _seeds_of(kept) + omitted + _pooled(kept, across, up)
    table = kept.groupby([up, across])[measure]
    means, halves = table.mean().unstack(), table.agg(half_width).unstack()
    figure, (axes,) = new_figure(
        1, width=1.1 * len(means.columns) + 2.4, height=0.8 * len(means.index) + 1.4
    )
    image = axes.imshow(means.to_numpy(dtype=float), origin="lower", cmap="viridis", aspect="auto")
    middle = float(np.nanmean([np.nanmin(means.to_numpy()), np.nanmax(means.to_numpy())]))
    for row, column in np.ndindex(means.shape):
        value, half = (
            means.to_numpy(dtype=float)[row, column],
            halves.to_numpy(dtype=float)[row, column],
        )
        if not math.isnan(value):
            text = f"{value:.2f}" + ("" if math.isnan(half) else f"\n± {half:.2f}")
            axes.text(
                column,
                row,
                text,
                ha="center",
                va="center",
                fontsize=8,
                color="white" if value < middle else "black",
            )
    axes.set_xticks(
        range(len(means.columns)),
        [f"{value:g}" if isinstance(value, float) else literal(value) for value in means.columns],
    )
    axes.set_yticks(
        range(len(means.index)),
        [f"{value:g}" if isinstance(value, float) else literal(value) for value in means.index],
    )
    axes.set_xlabel(literal(across))
    axes.set_ylabel(literal(up))
    figure.colorbar(image, ax=axes, label=_named(measure))
    return _finished(figure, title, f"mean and half of the 95 % interval over {seeds}")


def _named(column: str) -> str:
    """A column for an axis."""
    return literal(NAMES.get(column, column))


def tick(axes: Axes, texts: Sequence[str]) -> None:
    """Names along the bottom, turned where there are many."""
    axes.set_xticks(
        range(len(texts)),
        [literal(text) for text in texts],
        rotation=30 if len(texts) > 3 else 0,
        ha="right" if len(texts) > 3 else "center",
    )
    axes.set_xlim(-0.6, len(texts) - 0.4)


def _limits(panels: Sequence[Axes]) -> tuple[float, float]:
    limits = np.array([axes.get_ylim() for axes in panels])
    return float(limits[:, 0].min()), float(limits[:, 1].max())


def _finished(figure: Figure, title: str | None, caption: str) -> Figure:
    if title:
        figure.suptitle(literal(title), fontsize=11)
    figure.supxlabel(literal(caption), fontsize=8, color="#555555")
    return figure
