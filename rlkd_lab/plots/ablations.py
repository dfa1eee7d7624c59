"""Ablation plots: arms side by side, differences between arms, a measure against knobs.

The tables have a row for each run, see :mod:`rlkd_lab.plots.points`.
Every seed is drawn; means carry a 95 % interval over seeds (Student's t).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlkd_lab.plots.points import (
    check_columns,
    count_seeds,
    draw_arms,
    draw_knob,
    note_repeats,
    runs_that_count,
)
from rlkd_lab.plots.styles import (
    finish,
    in_print,
    label_of,
    literal,
    panel_figure,
    title_of,
    title_of_arm,
    wrap,
)
from rlkd_lab.study.statistics import half_width

MANY = 9
"""More arms than these have panels as wide as the page."""


@in_print
def plot_arms(
    runs: pd.DataFrame,
    measures: Sequence[str] = ("id avg", "id length"),
    title: str | None = None,
) -> Figure:
    """Draw every arm with its seeds, mean and interval, a panel for each measure."""
    check_columns(measures, "measure")
    kept, known, omitted = runs_that_count(runs, *measures)
    seeds = count_seeds(known) + omitted + note_repeats(kept, "arm")
    figure, panels = panel_figure(len(measures), 2.3, 1 if kept["arm"].nunique() > MANY else 2)
    for axes, measure in zip(panels, measures, strict=True):
        draw_arms(axes, kept, measure)
    return finish(figure, title, f"dots: seeds; bars: mean and 95 % interval over {seeds}")


@in_print
def plot_differences(
    runs: pd.DataFrame,
    against: str,
    measures: Sequence[str] = ("id avg", "id length"),
    title: str | None = None,
) -> Figure:
    """Draw every other arm minus ``against``, seed by seed, a panel for each measure.

    An interval without 0 is a difference larger than the spread of seeds explains.

    Raises:
        ValueError: a missing column or arm, no seed in common, or a seed twice in an arm.
    """
    check_columns(measures, "measure")
    kept, whole, omitted = runs_that_count(runs, *measures)
    _check_pairs(kept, against)
    arms = list(dict.fromkeys(kept["arm"]))
    base = whole[whole["arm"] == against].set_index("seed")
    rest = whole[whole["arm"].ne(against) & whole["seed"].isin(base.index)]
    alone = [str(arm) for arm in arms if arm != against and not (rest["arm"] == arm).any()]
    if alone:
        raise ValueError(f"{alone[0]} and {against} have no seed in common")
    figure, panels = panel_figure(len(measures), 2.3, 1 if len(arms) > MANY else 2)
    for axes, measure in zip(panels, measures, strict=True):
        axes.axhline(0, color="#888888", linewidth=0.8)
        difference = rest[measure] - rest["seed"].map(base[measure])
        draw_arms(axes, rest.assign(**{measure: difference}), measure)
        base_name = literal(title_of_arm(against))
        axes.set_ylabel(f"{wrap(label_of(measure))},\nminus that of {base_name}")
    caption = "dots: seeds; bars: mean and 95 % interval of the difference by seed"
    return finish(figure, title, f"{caption}, over {count_seeds(rest)}{omitted}")


def _check_pairs(runs: pd.DataFrame, against: str) -> None:
    """Raise ValueError where differences by seed cannot be taken."""
    arms = list(dict.fromkeys(runs["arm"]))
    if against not in arms or len(arms) < 2:
        there = ", ".join(map(str, arms))
        raise ValueError(
            f"there is no difference to {against!r} to draw: the arms with runs that count"
            f" are {there}"
        )
    for arm, rows in runs.groupby("arm"):
        if rows["seed"].duplicated().any():
            raise ValueError(
                f"arm {arm} has a seed twice: runs that differ in a setting are arms of their"
                " own (table_of takes labels)"
            )


@in_print
def plot_knob(
    runs: pd.DataFrame,
    knob: str,
    measure: str = "id avg",
    title: str | None = None,
) -> Figure:
    """Draw a measure against a knob or setting, a panel for each method, with every seed.

    Args:
        runs: a table with a column for the knob.
            Sweeps and ``table_of`` have a column for each setting that varies.
        knob: numbers stand on an axis, texts side by side.
            The axis is logarithmic where the numbers span a factor of twenty or more.
        measure: a column of numbers.
        title: above the figure.

    Raises:
        ValueError: a missing column, or no run with a value in both.
    """
    _, kept, omitted = runs_that_count(runs, measure, knobs=[knob])
    seeds = count_seeds(kept) + omitted + note_repeats(kept, "method", knob)
    methods = list(dict.fromkeys(kept["method"]))
    figure, panels = panel_figure(len(methods), height=2.3)
    for axes, method in zip(panels, methods, strict=True):
        draw_knob(axes, kept[kept["method"] == method], knob, measure)
        axes.set_title(literal(title_of(method)))
    share_limits(panels)
    return finish(figure, title, f"dots: seeds; bars: mean and 95 % interval over {seeds}")


def share_limits(panels: Sequence[Axes]) -> None:
    """Give all panels the same y-range."""
    limits = np.array([axes.get_ylim() for axes in panels])
    for axes in panels:
        axes.set_ylim(float(limits[:, 0].min()), float(limits[:, 1].max()))


@in_print
def plot_heat(
    runs: pd.DataFrame,
    across: str,
    up: str,
    measure: str = "id avg",
    title: str | None = None,
) -> Figure:
    """Draw a heat map over two knobs; a combination that was not run is an empty cell.

    A cell has the mean over seeds and half of its 95 % interval.
    """
    _, kept, omitted = runs_that_count(runs, measure, knobs=[across, up])
    seeds = count_seeds(kept) + omitted + note_repeats(kept, across, up)
    table = kept.groupby([up, across])[measure]
    means, halves = table.mean().unstack(), table.agg(half_width).unstack()
    columns = 2 if len(means.columns) <= 4 else 1
    figure, (axes,) = panel_figure(1, 0.5 * len(means.index) + 0.8, columns)
    axes.grid(visible=False)
    cells = means.to_numpy(dtype=float)
    image = axes.imshow(cells, origin="lower", cmap="viridis", aspect="auto")
    middle = (np.nanmin(cells) + np.nanmax(cells)) / 2
    for row, column in np.ndindex(means.shape):
        value, half = cells[row, column], halves.to_numpy(dtype=float)[row, column]
        if not math.isnan(value):
            text = f"{value:.2f}" + ("" if math.isnan(half) else f"\n± {half:.2f}")
            colour = "white" if value < middle else "black"
            axes.text(column, row, text, ha="center", va="center", color=colour)
    for set_ticks, values in ((axes.set_xticks, means.columns), (axes.set_yticks, means.index)):
        texts = [f"{value:g}" if isinstance(value, float) else literal(value) for value in values]
        set_ticks(range(len(texts)), texts)
    axes.set_xlabel(label_of(across))
    axes.set_ylabel(wrap(label_of(up)))
    figure.colorbar(image, ax=axes, label=wrap(label_of(measure)))
    return finish(figure, title, f"mean and half of the 95 % interval over {seeds}")
