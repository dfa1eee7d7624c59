"""Live curves of one run beside its forks.

Raw values are faint; the line is a trailing mean whose window the figure names.
Evaluations are never smoothed. A moved knob is a vertical line.
The untouched fork is dotted. A fork with other samples is thin, grey and dotted: differences
smaller than its difference to the untouched fork are chance.
"""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import SymmetricalLogLocator

from rlkd_lab.lab.live.curve_groups import (
    AREAS,
    DIFFERENCE,
    EXPLAINED,
    FAINT,
    GROUPS,
    LABELS,
    SEVERAL,
    TITLES,
)
from rlkd_lab.lab.live.history import Fork, History
from rlkd_lab.plots.styles import (
    legend_entries,
    line,
    literal,
    say_empty,
    style_of,
    title_of,
    white_figure,
)

WINDOW = 9
LABEL = 36
"""Letters of the words beside a moved knob's line."""
GREY = "#666666"
DOTS = (0, (1.0, 1.6))


def number(value: float | None) -> str:
    """Return a knob's value as people write it; ``None`` is off.

    >>> [number(value) for value in (None, 0.0, 0.30000000000000004, 1e-3, 2.5e-05)]
    ['off', '0', '0.3', '0.001', '2.5e-5']
    """
    return "off" if value is None else f"{value:.4g}".replace("e-0", "e-")


# --- the figure -----------------------------------------------------------------------------------


def draw(
    history: History,
    method: str,
    group: str = "main",
    *,
    steps: int | None = None,
) -> Figure:
    """Draw a group of curves with the run's forks and moved knobs.

    Args:
        history: what was read of the run folder.
        method: a key of METHODS, for colour, style and name.
        group: a key of :data:`~rlkd_lab.lab.live.curve_groups.GROUPS`.
            Below ``main`` stand the differences to an untouched fork, if there is one.
        steps: length of the whole run.
    """
    panels = GROUPS[group]
    untouched, noise = history.latest_forks()
    differences = group == "main" and untouched is not None and "reward" in history
    figure, grid = _layout(len(panels), differences)
    strides = [history[name].stride for names in panels for name in names]
    window = max([WINDOW, *strides])
    for column, names in enumerate(panels):
        axes = figure.add_subplot(grid[0, column])
        _draw_panel(axes, history, names, method, group, window)
        if len(names) == 1:
            _draw_forks(axes, history, names[0], style_of(method)[0], untouched, noise, window)
        _finish(axes, history)
        _set_scale(axes, names[0], group)
        if not any(name in history for name in names):
            say_empty(axes, "not recorded" if history.step else "waits for the first step")
    if differences:
        assert untouched is not None
        for column, (name,) in enumerate(panels):
            if name in history and name in untouched.history:
                axes = figure.add_subplot(grid[1, column])
                axes.set_title(
                    f"{DIFFERENCE[name]}: run − untouched fork", fontsize=9.5, loc="left"
                )
                colour = style_of(method)[0]
                _draw_difference(axes, history, name, untouched, noise, colour, window)
                _finish(axes, history, labels=False)
    _caption(figure, history, steps, group, window)
    return figure


def _layout(columns: int, differences: bool) -> tuple[Figure, Any]:
    """Return a figure and its grid, with a second row for differences.

    Space is given in inches by hand, because a layout engine draws everything twice.
    """
    tall = 4.7 if differences else 3.2
    figure = white_figure(10.5, tall) if columns > 1 else white_figure(7.0, 3.2)
    height = figure.get_figheight()
    grid = figure.add_gridspec(
        2 if differences else 1,
        columns,
        height_ratios=(2.3, 1) if differences else (1,),
        left=0.55 / figure.get_figwidth(),
        right=0.985,
        top=1 - 0.36 / height,
        bottom=0.92 / height,
        wspace=0.2,
        hspace=0.42,
    )
    return figure, grid


def _caption(figure: Figure, history: History, steps: int | None, group: str, window: int) -> None:
    """Write step, smoothing and legend below the panels."""
    width, height = figure.get_figwidth(), figure.get_figheight()
    place: dict[str, Any] = {"fontsize": 8.5, "va": "top", "color": "#333333"}
    step = "no step yet"
    if history.step:
        step = f"step {history.step}" + (f" of {steps}" if steps else "")
    figure.text(0.55 / width, 0.56 / height, step, **place)
    smoothed = EXPLAINED.get(group, f"trailing mean of {window} steps")
    if group in FAINT:
        smoothed = f"faint: each step · line: trailing mean of {window} steps"
    figure.text(0.985, 0.56 / height, smoothed, ha="right", **place)
    entries = legend_entries(figure.axes)
    if entries:
        figure.legend(
            entries.values(),
            entries.keys(),
            loc="lower left",
            bbox_to_anchor=(0.5 / width, 0),
            ncols=5 if len(GROUPS[group]) > 1 else 3,
            frameon=False,
            fontsize=8.5,
        )


# --- panels ---------------------------------------------------------------------------------------


def _draw_panel(
    axes: Axes,
    history: History,
    names: tuple[str, ...],
    method: str,
    group: str,
    window: int,
) -> None:
    axes.set_title(TITLES.get(names[0], names[0]), fontsize=9.5, loc="left")
    if group == "length in parts" and all(name in history for name in names):
        _stack(axes, history, names, window)
    elif len(names) > 1:
        _draw_several(axes, history, names, window)
    else:
        # A run has one method, and its line is solid: forks have dotted lines.
        _draw_one(axes, history, names[0], style_of(method)[0], title_of(method), window)


def _draw_one(
    axes: Axes,
    history: History,
    name: str,
    colour: str,
    label: str,
    window: int,
) -> None:
    series = history[name]
    if not len(series):
        return
    look = line((colour, "-"), label=literal(label, legend=True))
    if series.exact:
        axes.plot(series.steps, series.values, marker="o", markersize=4, **look)
    else:
        axes.plot(series.steps, series.values, color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(series.steps, series.trailing_mean(window), linewidth=1.9, **look)


def _draw_several(axes: Axes, history: History, names: tuple[str, ...], window: int) -> None:
    """Draw metrics that share a panel; a metric measured now and then has points."""
    for name, (colour, style) in zip(names, SEVERAL, strict=False):
        series = history[name]
        if not len(series):
            continue
        possible = (series.steps[-1] - series.steps[0] + 1) / series.stride
        sparse = len(series) < 0.5 * possible
        values = series.values if sparse else series.trailing_mean(window)
        look = line((colour, style), label=LABELS[name])
        marker = "o" if sparse else ""
        axes.plot(series.steps, values, linewidth=1.6, marker=marker, markersize=3.5, **look)


def _stack(axes: Axes, history: History, names: tuple[str, ...], window: int) -> None:
    """Draw the parts of a sum as areas on top of each other."""
    steps = history[names[0]].steps
    below = np.zeros_like(steps)
    for name, (colour, hatch) in zip(names, AREAS, strict=True):
        part = np.interp(steps, history[name].steps, history[name].trailing_mean(window))
        axes.fill_between(
            steps,
            below,
            below + part,
            facecolor=colour,
            hatch=hatch,
            edgecolor="white",
            linewidth=0.4,
            label=LABELS[name],
        )
        below = below + part
    axes.set_ylim(bottom=0)


def _set_scale(axes: Axes, name: str, group: str) -> None:
    if name.startswith("eval/"):
        axes.set_ylim(-0.03, 1.03)
    elif name.startswith(("clip_ratio", "trrd/", "interference/sign")):
        axes.set_ylim(0, None)
    if group == "KL estimates against exact":
        # k2 can be many times the others, and k1 can be negative
        axes.set_yscale("symlog", linthresh=0.1)
        locator = SymmetricalLogLocator(base=10, linthresh=0.1, subs=[1, 2, 5])
        axes.yaxis.set_major_locator(locator)
        axes.yaxis.set_major_formatter("{x:g}")


# --- forks ----------------------------------------------------------------------------------------


def _after(fork: Fork, history: History, name: str, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Return steps and smoothed values of a fork, from its first step on."""
    series = fork.joined(history, name)
    values = series.values if series.exact else series.trailing_mean(window)
    later = series.steps >= fork.step
    return series.steps[later], values[later]


def _draw_forks(
    axes: Axes,
    history: History,
    name: str,
    colour: str,
    untouched: Fork | None,
    noise: list[Fork],
    window: int,
) -> None:
    look: dict[str, Any]
    if untouched is not None and name in untouched.history:
        look = {"linestyle": DOTS, "linewidth": 1.9, "label": "untouched fork"}
        axes.plot(*_after(untouched, history, name, window), color=colour, **look)
    for fork in noise:
        if name in fork.history:
            look = {"linestyle": DOTS, "linewidth": 1.0, "label": "untouched, other samples"}
            axes.plot(*_after(fork, history, name, window), color=GREY, **look)


def _draw_difference(
    axes: Axes,
    history: History,
    name: str,
    untouched: Fork,
    noise: list[Fork],
    colour: str,
    window: int,
) -> None:
    """Draw run − untouched fork, and as a band what chance makes of two untouched runs.

    The band is twice the root mean square of their smoothed difference.
    """
    steps, values = _after(untouched, history, name, window)
    series = history[name]
    at = series.steps[(series.steps >= untouched.step) & (series.steps <= steps[-1])]
    run = np.interp(at, series.steps, series.trailing_mean(window))
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.plot(at, run - np.interp(at, steps, values), color=colour, linewidth=1.9)
    squares = []
    for fork in noise:
        theirs, noisy = _after(fork, history, name, window)
        common = theirs[(theirs >= steps[0]) & (theirs <= steps[-1])]
        gap = np.interp(common, theirs, noisy) - np.interp(common, steps, values)
        axes.plot(common, gap, color=GREY, linestyle=DOTS, linewidth=1.0)
        squares.append(gap[1:] ** 2)  # at the first step the forks are equal
    if squares:
        spread = 2 * float(np.sqrt(np.mean(np.concatenate(squares))))
        ends = [untouched.step, max(series.steps[-1], steps[-1])]
        label = "what chance alone does (±2 root mean squares)"
        band: dict[str, Any] = {"color": GREY, "alpha": 0.18, "linewidth": 0}
        axes.fill_between(ends, -spread, spread, label=label, **band)


# --- moved knobs ----------------------------------------------------------------------------------


def move_labels(moves: list[dict[str, Any]], apart: float) -> list[tuple[int, str]]:
    """Return (step, words) of moved knobs.

    Moves within ``apart`` steps of the first of them share a label.
    The label ends with the last value of each knob.
    """
    groups: list[tuple[int, dict[str, str]]] = []
    # Within a step only the last move of a knob acts.
    for move in {(move["step"], move["knob"]): move for move in moves}.values():
        knob = move["knob"]
        text = "to its schedule" if move.get("release") else number(move.get("value"))
        if not groups or move["step"] - groups[-1][0] >= max(apart, 1):
            groups.append((move["step"], {}))
        named = groups[-1][1]
        if knob in named and len(named[knob]) < 16:
            text = f"{named[knob]} → {text}"
        named[knob] = text
    labels = []
    for step, named in groups:
        words = ", ".join(f"{knob} {text}" for knob, text in named.items())
        labels.append((step, textwrap.shorten(words, LABEL, placeholder=" …")))
    return labels


def _finish(axes: Axes, history: History, labels: bool = True) -> None:
    """Set grid and x-range, and draw moved knobs as vertical lines with their words."""
    right = max(history.step, 10)
    axes.set_xlim(0.5, right + 0.5)
    axes.grid(alpha=0.25)
    axes.tick_params(labelsize=8.5)
    axes.xaxis.get_major_locator().set_params(integer=True, nbins=6)  # type: ignore[call-arg]
    for spine in ("top", "right"):
        axes.spines[spine].set_visible(False)
    moves = history.moves
    for step in sorted({move["step"] for move in moves})[-40:]:
        axes.axvline(step, color="#333333", linewidth=0.8, alpha=0.7)
    if not labels:
        return
    wide = axes.get_position().width > 0.5
    for step, words in move_labels(moves, right * (0.03 if wide else 0.07))[-8:]:
        inside = step < 0.95 * right
        axes.annotate(
            words,
            (step, 0.985),
            xycoords=("data", "axes fraction"),
            xytext=(2 if inside else -2, 0),
            textcoords="offset points",
            rotation=90,
            ha="left" if inside else "right",
            va="top",
            fontsize=7.5,
            color="#333333",
            annotation_clip=True,
            clip_on=True,
            bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.5},
        )
