"""Dots, intervals and panels that ablation plots and claim figures share.

A table has a row for each run: ``runs.csv`` of a sweep, or
:func:`rlkd_lab.study.results.table_of` for other runs.
Runs that diverged or whose knobs were moved by hand are left out; the figure says how many.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import offset_copy

from rlkd_lab.plots.styles import AXIS_LABELS, literal, say_empty, style_of, white_figure
from rlkd_lab.study.results import left_out
from rlkd_lab.study.statistics import half_width

LABELS = {
    **AXIS_LABELS,
    "id avg": "accuracy, test prompts",
    "ood avg": "accuracy, out of distribution",
    "id length": "length, test prompts, tokens",
    "ood length": "length, out of distribution, tokens",
    "sampled_tokens": "tokens sampled, teacher's traces included",
    "train_seconds": "seconds of training, the teacher's included",
    "seconds": "seconds, evaluations included",
}
"""Labels of the axes, by metric or column."""

MARKERS = {"-": "o", "--": "s", ":": "^", "-.": "D"}
"""Markers for line styles: methods of one colour differ in their marker."""


def dot_style(method: str) -> tuple[str, str]:
    """Return the colour and the marker of a method."""
    colour, style = style_of(method)
    return colour, MARKERS[style]


def label_of(column: str) -> str:
    """Return the axis label of a metric or column."""
    return literal(LABELS.get(column, column))


# --- tables ---------------------------------------------------------------------------------------


def runs_that_count(
    runs: pd.DataFrame,
    *measures: str,
    knobs: Sequence[str] = (),
) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Return the runs to draw, those with a value in every column, and words about the rest.

    Args:
        runs: a row for each run.
        measures: columns of numbers.
        knobs: columns of any type.

    Raises:
        ValueError: a missing column, a measure without numbers, or no run to draw.
    """
    missing = [name for name in ("arm", "seed", "method", *measures, *knobs) if name not in runs]
    if missing:
        there = ", ".join(map(str, runs.columns))
        raise ValueError(f"the table has no column {missing[0]!r}; it has {there}")
    if runs.empty:
        raise ValueError("the table has no runs")
    if texts := [name for name in measures if not pd.api.types.is_numeric_dtype(runs[name])]:
        raise ValueError(f"column {texts[0]!r} holds no numbers: it cannot be a measure")
    known_to_fail = {"diverged", "touched"} <= set(runs)
    bad = left_out(runs) if known_to_fail else pd.Series(False, index=runs.index)
    kept = runs[~bad]
    if kept.empty:
        raise ValueError("no run is left to draw: all of them diverged or were moved by hand")
    known = kept.dropna(subset=[*measures, *knobs])
    if known.empty:
        wanted = " and of ".join([*measures, *knobs])
        raise ValueError(f"no run that counts has a value of {wanted}")
    omitted = f"; {int(bad.sum())} runs left out (diverged or moved by hand)" if bad.any() else ""
    return kept, known, omitted


def check_columns(columns: Sequence[str], what: str) -> None:
    """Raise ValueError unless ``columns`` is a list with at least one name."""
    if not columns or isinstance(columns, str):
        raise ValueError(f"no {what} is named: give a list of columns of the table")


def count_seeds(runs: pd.DataFrame) -> str:
    """Return the number of seeds of an arm in words, or its range over the arms."""
    seeds = runs.groupby("arm")["seed"].nunique()
    low, high = seeds.min(), seeds.max()
    return f"{low} seeds" if low == high else f"{low}–{high} seeds"


def note_repeats(runs: pd.DataFrame, *columns: str) -> str:
    """Return a warning where a point of the figure holds several runs of one seed."""
    most = runs.groupby([*columns, "seed"]).size().max()
    if most <= 1:
        return ""
    return f"; a point has up to {most} runs of a seed, which differ in other settings"


# --- drawing --------------------------------------------------------------------------------------


def panel_figure(
    panels: int,
    width: float = 4.4,
    height: float = 3.4,
    columns: int = 3,
) -> tuple[Figure, list[Axes]]:
    """Return a figure with ``panels`` panels, at most ``columns`` in a row; inches per panel."""
    columns = min(columns, panels)
    lines = -(-panels // columns)
    figure = white_figure(width * columns, height * lines + 0.4, layout="constrained")
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for spare in axes[panels:]:
        spare.set_visible(False)
    return figure, axes[:panels]


def draw_spread(axes: Axes, x: float, values: pd.Series, colour: str, marker: str = "o") -> None:
    """Draw the mean with its 95 % interval, and left of it a faint dot for each seed."""
    known = values.dropna().to_numpy(dtype=float)
    if not len(known):
        return
    figure = axes.get_figure(root=True)
    for number, value in enumerate(known):
        shift = -5 - 2.2 * number
        left = offset_copy(axes.transData, figure, x=shift, units="points")
        axes.scatter([x], [value], s=14, color=colour, alpha=0.4, linewidths=0, transform=left)
    # matplotlib leaves shifted dots out of the limits of the axes
    axes.update_datalim(np.column_stack([np.full(len(known), x), known]))
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
    axes: Axes,
    runs: pd.DataFrame,
    measure: str,
    names: Mapping[str, str] | None = None,
) -> None:
    """Draw a measure of each arm, side by side; ``names`` replaces names of arms."""
    arms = list(dict.fromkeys(runs["arm"]))
    for place, arm in enumerate(arms):
        rows = runs[runs["arm"] == arm]
        draw_spread(axes, place, rows[measure], *dot_style(str(rows["method"].iloc[0])))
    name_ticks(axes, [(names or {}).get(arm, arm) for arm in arms])
    axes.set_ylabel(label_of(measure))
    axes.grid(axis="y", alpha=0.25)


def draw_knob(axes: Axes, runs: pd.DataFrame, knob: str, measure: str) -> None:
    """Draw a measure against a knob for runs of one method, with every seed."""
    if runs.empty:
        say_empty(axes, "not run")
        return
    colour, marker = dot_style(str(runs["method"].iloc[0]))
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
        name_ticks(axes, texts)
    axes.margins(x=0.1)  # space for the dots
    for value, place in places.items():
        draw_spread(axes, place, groups[value], colour, marker)
    axes.set_xlabel(literal(knob))
    axes.set_ylabel(label_of(measure))
    axes.grid(alpha=0.25)


def name_ticks(axes: Axes, texts: Sequence[str]) -> None:
    """Write names along the x-axis, turned where there are more than three."""
    many = len(texts) > 3
    rotation, side = (30, "right") if many else (0, "center")
    axes.set_xticks(
        range(len(texts)), [literal(text) for text in texts], rotation=rotation, ha=side
    )
    axes.set_xlim(-0.6, len(texts) - 0.4)


def finish(figure: Figure, title: str | None, caption: str) -> Figure:
    """Add the title above a figure and the caption below it."""
    if title:
        figure.suptitle(literal(title), fontsize=11)
    figure.supxlabel(literal(caption), fontsize=8, color="#555555")
    return figure
