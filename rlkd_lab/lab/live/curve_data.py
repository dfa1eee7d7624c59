"""What live curves show of a run and its forks, as numbers.

Two things draw these numbers: the view in the page and the still picture.
Raw values are faint; the line is a trailing mean whose window the caption names.
Evaluations are never smoothed. A moved knob is a vertical line.
The untouched fork is dotted. A fork with other samples is thin, grey and dotted: differences
smaller than its difference to the untouched fork are chance.
"""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np

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
from rlkd_lab.plots.styles import style_of, title_of

WINDOW = 9
LABEL = 36
"""Letters of the words beside a moved knob's line."""
APART = (0.09, 0.045)
"""Smallest distance of two labels of moves, as a share of a narrow and of a wide panel."""
GREY = "#666666"
DASHES: dict[str, list[float]] = {
    "-": [],
    "--": [3.7, 1.6],
    "-.": [6.4, 1.6, 1.0, 1.6],
    ":": [1.0, 1.6],
}
"""Lengths of dashes and gaps, in widths of the line."""
NOISE = "untouched, other samples"
NO_BAND = "no band of chance: this may be noise"


def number(value: float | None) -> str:
    """Return a knob's value as people write it; ``None`` is off.

    >>> [number(value) for value in (None, 0.0, 0.30000000000000004, 1e-3, 2.5e-05)]
    ['off', '0', '0.3', '0.001', '2.5e-5']
    """
    return "off" if value is None else f"{value:.4g}".replace("e-0", "e-")


def curve_data(
    history: History, method: str, group: str = "main", steps: int | None = None
) -> dict[str, Any]:
    """Return what a group of curves shows: panels with lines and bands, moves, a caption.

    Args:
        history: what was read of the run folder.
        method: a key of METHODS, for colour and name.
        group: a key of :data:`~rlkd_lab.lab.live.curve_groups.GROUPS`.
            Below ``main`` stand the differences to an untouched fork, if there is one.
        steps: length of the whole run.
    """
    names = GROUPS[group]
    window = max([WINDOW, *(history[name].stride for several in names for name in several)])
    panels = [_panel(history, several, method, group, window) for several in names]
    untouched, noise = history.latest_forks()
    if group == "main" and untouched is not None:
        panels += [
            _difference(history, name, untouched, noise, method, window) | {"column": column}
            for column, (name,) in enumerate(names)
            if name in history and untouched.measured(name)
        ]
    for column, panel in enumerate(panels[: len(names)]):
        panel["column"] = column
    right = max(10, history.step, *(other.step for other in history.earlier.values()))
    apart = APART[len(names) == 1]
    labels = move_labels(history.moves, right * apart)[-8:]
    return {
        "group": group,
        "step": history.step,
        "right": right + 0.5,
        "panels": panels,
        "moves": sorted({move["step"] for move in history.moves})[-40:],
        "labels": [{"step": step, "words": words} for step, words in labels],
        "caption": _caption(history, steps, group, window),
    }


def _caption(history: History, steps: int | None, group: str, window: int) -> list[str]:
    """Return the step and the smoothing in words."""
    step = "no step yet"
    if history.step:
        step = f"step {history.step}" + (f" of {steps}" if steps else "")
    smoothed = EXPLAINED.get(group, f"trailing mean of {window} steps")
    if group in FAINT:
        smoothed = f"faint: each step · line: trailing mean of {window} steps"
    return [step, smoothed]


# --- panels ---------------------------------------------------------------------------------------


def line(
    label: str,
    steps: np.ndarray,
    values: np.ndarray,
    colour: str,
    dash: str = "-",
    **how: Any,
) -> dict[str, Any]:
    """Return a line; one that is a single point is drawn as a dot."""
    look: dict[str, Any] = {"width": 1.9, "alpha": 1.0, "dots": 0.0, "raw": False, **how}
    if len(steps) == 1:
        look["dots"] = max(look["dots"], 4.0)
    line = {"label": label, "colour": colour, "dash": DASHES[dash], **look}
    return {**line, "x": steps, "y": values}


def _panel(
    history: History, names: tuple[str, ...], method: str, group: str, window: int
) -> dict[str, Any]:
    """Return the panel of one metric with its forks, or of several metrics."""
    bands: list[dict[str, Any]] = []
    if group == "length in parts" and all(name in history for name in names):
        lines, bands = [], _stack(history, names, window)
    elif len(names) > 1:
        lines = _several(history, names, window)
    else:
        # A run has one method, and its line is solid: forks have dotted lines.
        lines = _earlier(history, names[0], window)
        lines += _one(history, names[0], style_of(method)[0], title_of(method), window)
        lines += _forks(history, names[0], style_of(method)[0], window)
    low, high = None, None
    if names[0].startswith("eval/"):
        low, high = -0.03, 1.03
    elif bands or names[0].startswith(("clip_ratio", "trrd/", "interference/sign")):
        low = 0.0
    empty = "not recorded" if history.step else "waits for the first step"
    return {
        "name": names[0],
        "title": TITLES.get(names[0], names[0]),
        "strip": False,
        "low": low,
        "high": high,
        # k2 can be many times the others, and k1 can be negative
        "symlog": group == "KL estimates against exact",
        "note": "" if any(name in history for name in names) else empty,
        "lines": lines,
        "bands": bands,
    }


def _one(history: History, name: str, colour: str, label: str, window: int) -> list[dict[str, Any]]:
    series = history[name]
    if not len(series):
        return []
    if series.exact:
        return [line(label, series.steps, series.values, colour, width=1.4, dots=4.0)]
    faint: dict[str, Any] = {"width": 0.8, "alpha": 0.25, "raw": True}
    return [
        line(label, series.steps, series.values, colour, **faint),
        line(label, series.steps, series.trailing_mean(window), colour),
    ]


def _earlier(history: History, name: str, window: int) -> list[dict[str, Any]]:
    """Return the same metric of the runs beside this one, faint."""
    lines = []
    for run, other in history.earlier.items():
        series = other[name]
        if len(series):
            values = series.trailing_mean(window)
            lines.append(line(run, series.steps, values, GREY, width=1.2, alpha=0.45))
    return lines


def _several(history: History, names: tuple[str, ...], window: int) -> list[dict[str, Any]]:
    """Return metrics that share a panel; a metric measured now and then has points."""
    lines = []
    for name, (colour, dash) in zip(names, SEVERAL, strict=False):
        series = history[name]
        if not len(series):
            continue
        possible = (series.steps[-1] - series.steps[0] + 1) / series.stride
        sparse = len(series) < 0.5 * possible
        values = series.values if sparse else series.trailing_mean(window)
        look: dict[str, Any] = {"width": 1.6, "dots": 3.5 if sparse else 0.0}
        lines.append(line(LABELS[name], series.steps, values, colour, dash, **look))
    return lines


def _stack(history: History, names: tuple[str, ...], window: int) -> list[dict[str, Any]]:
    """Return the parts of a sum as areas on top of each other."""
    steps = history[names[0]].steps
    below, areas = np.zeros_like(steps), []
    for name, (colour, hatch) in zip(names, AREAS, strict=True):
        part = np.interp(steps, history[name].steps, history[name].trailing_mean(window))
        area = {"label": LABELS[name], "colour": colour, "alpha": 1.0, "hatch": hatch}
        areas.append({**area, "x": steps, "low": below, "high": below + part})
        below = below + part
    return areas


# --- forks ----------------------------------------------------------------------------------------


def _after(fork: Fork, history: History, name: str, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Return steps and smoothed values of a fork, from its first step on."""
    series = fork.joined(history, name)
    later = series.steps >= fork.step
    return series.steps[later], series.trailing_mean(window)[later]


def _forks(history: History, name: str, colour: str, window: int) -> list[dict[str, Any]]:
    untouched, noise = history.latest_forks()
    lines = []
    if untouched is not None and untouched.measured(name):
        lines.append(line("untouched fork", *_after(untouched, history, name, window), colour, ":"))
    for fork in noise:
        if fork.measured(name):
            after = _after(fork, history, name, window)
            lines.append(line(NOISE, *after, GREY, ":", width=1.0))
    return lines


def _difference(
    history: History, name: str, untouched: Fork, noise: list[Fork], method: str, window: int
) -> dict[str, Any]:
    """Return run − untouched fork, and as a band what chance makes of two untouched runs.

    The band is twice the root mean square of their smoothed difference.
    Without a band the line is faint, and a note says why.
    """
    steps, values = _after(untouched, history, name, window)
    series = history[name]
    at = series.steps[(series.steps >= untouched.step) & (series.steps <= steps[-1])]
    run = np.interp(at, series.steps, series.trailing_mean(window))
    gap = run - np.interp(at, steps, values)
    lines, bands, squares = [line(title_of(method), at, gap, style_of(method)[0])], [], []
    for fork in noise:
        if not fork.measured(name):
            continue
        theirs, noisy = _after(fork, history, name, window)
        common = theirs[(theirs >= steps[0]) & (theirs <= steps[-1])]
        gap = np.interp(common, theirs, noisy) - np.interp(common, steps, values)
        lines.append(line(NOISE, common, gap, GREY, ":", width=1.0))
        squares.extend(gap[common > untouched.step] ** 2)  # where they fork they are equal
    if squares:
        spread = np.full(2, 2 * float(np.sqrt(np.mean(squares))))
        ends = np.array([untouched.step, max(series.steps[-1], steps[-1])], dtype=float)
        label = "what chance alone does (±2 root mean squares)"
        band = {"label": label, "colour": GREY, "alpha": 0.18, "hatch": ""}
        bands.append({**band, "x": ends, "low": -spread, "high": spread})
    else:
        lines[0] |= {"width": 1.2, "alpha": 0.4}
    return {
        "name": f"{name} difference",
        "title": f"{DIFFERENCE[name]}: run − untouched fork",
        "strip": True,
        "low": None,
        "high": None,
        "symlog": False,
        "note": "" if bands else NO_BAND,
        "lines": lines,
        "bands": bands,
    }


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
