"""Dots, intervals and curves over a knob that ablation plots and claim figures share.

A table has a row for each run: ``runs.csv`` of a sweep, or
:func:`rlkd_lab.study.results.table_of` for other runs.
Runs that diverged or whose knobs were moved by hand are left out; the figure says how many.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.transforms import Transform, offset_copy

from rlkd_lab.objectives import METHODS
from rlkd_lab.plots.styles import (
    DOTS_RIGHT,
    DOTTED,
    Dash,
    Style,
    label_of,
    line,
    name_ticks,
    say_empty,
    style_of,
    title_of_arm,
    wrap,
)
from rlkd_lab.study.parts import left_out
from rlkd_lab.study.statistics import half_width

MARKERS: dict[Dash, str] = {"-": "o", "--": "s", ":": "^", "-.": "D", DOTTED: "v"}
"""Markers for line styles: methods of one colour differ in their marker."""


def dot_style(method: str) -> tuple[str, str]:
    """Return the colour and the marker of a method."""
    colour, style = style_of(method)
    return colour, MARKERS[style]


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


def draw_spread(
    axes: Axes,
    x: float,
    values: pd.Series,
    colour: str,
    marker: str = "o",
    shift: float = 0.0,
    second: bool = False,
    half: float | None = None,
) -> None:
    """Draw the mean with its 95 % interval, and left of it a faint dot for each seed.

    All of it stands ``shift`` points right of ``x``. A second series at the same ``x`` has its
    dots on the right and an open marker. ``half`` is half of the interval, where it is not the
    values' own.
    """
    known = values.dropna().to_numpy(dtype=float)
    if not len(known):
        return
    # moved once they are drawn: the limits of the axes heed artists in data coordinates alone
    for number, value in enumerate(known):
        dot = axes.scatter([x], [value], s=9, color=colour, alpha=0.4, linewidths=0)
        away = 5 + min(1.5, 9 / len(known)) * number
        dot.set_offset_transform(_right_of(axes, shift + (away if second else -away)))
    half = half_width(known) if half is None else half
    bar = axes.errorbar(
        [x],
        [known.mean()],
        yerr=None if math.isnan(half) else [[half], [half]],
        color=colour,
        marker=marker,
        markerfacecolor="white" if second else colour,
        zorder=3 if second else 2,
        capsize=2,
        linewidth=1.2,
    )
    for artist in bar.get_children():
        artist.set_transform(_right_of(axes, shift))


def _right_of(axes: Axes, points: float) -> Transform:
    figure = axes.get_figure(root=True)
    return offset_copy(axes.transData, figure, x=points, units="points")


def draw_arms(
    axes: Axes,
    runs: pd.DataFrame,
    measure: str,
    names: Mapping[str, str] | None = None,
) -> None:
    """Draw a measure of each arm, side by side; ``names`` replaces names of arms.

    An arm that is called like a method has that method's look.
    """
    arms = list(dict.fromkeys(runs["arm"]))
    for place, arm in enumerate(arms):
        rows, name = runs[runs["arm"] == arm], str(arm).partition(",")[0]
        style = dot_style(name if name in METHODS else str(rows["method"].iloc[0]))
        draw_spread(axes, place, rows[measure], *style)
    name_ticks(axes, [(names or {}).get(arm, title_of_arm(arm)) for arm in arms])
    axes.set_ylabel(wrap(label_of(measure)))


def draw_series(
    axes: Axes,
    groups: Mapping[float, pd.Series],
    style: Style,
    label: str | None = None,
    shift: float = 0.0,
    second: bool = False,
) -> None:
    """Draw a measure at each place with its seeds, and a line through the means."""
    means = [values.mean() for values in groups.values()]
    (curve,) = axes.plot(list(groups), means, **line(style, label=label, linewidth=1))
    curve.set_transform(_right_of(axes, shift))
    curve.set_gid(DOTS_RIGHT if second else None)
    for place, values in groups.items():
        draw_spread(axes, place, values, style[0], MARKERS[style[1]], shift, second)
    axes.margins(x=0.25)  # space for the dots


def draw_knob(
    axes: Axes,
    runs: pd.DataFrame,
    knob: str,
    measure: str,
    style: Style | None = None,
    label: str | None = None,
    second: bool = False,
) -> None:
    """Draw a measure against a knob for runs of one method, with every seed."""
    axes.set_xlabel(label_of(knob))
    axes.set_ylabel(wrap(label_of(measure)))
    if runs.empty:
        say_empty(axes, "not run")
        return
    style = style or style_of(str(runs["method"].iloc[0]))
    numbers = pd.to_numeric(runs[knob], errors="coerce")
    if numbers.notna().all():
        places = [float(value) for value in sorted(numbers.unique())]
        if min(places) > 0 and max(places) / min(places) >= 20:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
        groups = {value: runs.loc[numbers == value, measure] for value in places}
        draw_series(axes, groups, style, label, second=second)
        return
    draw_arms(axes, runs.assign(arm=runs[knob].astype(str)), measure)
