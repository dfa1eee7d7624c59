"""What a picture of several runs shows, as numbers: their curves, and differences by seed.

Runs with the same settings are a side: they have one colour, and a dash for each seed.
Two sides that differ in one setting and share seeds have a difference.
It is taken seed by seed, since a seed fixes the first adapter and the prompts of every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rlkd_lab.lab.live.curve_data import DASHES, WINDOW, line
from rlkd_lab.lab.live.curve_groups import DIFFERENCE, TITLES
from rlkd_lab.lab.live.family import Settings, differing, in_words
from rlkd_lab.lab.live.history import History
from rlkd_lab.plots.styles import style_of, title_of
from rlkd_lab.study.statistics import half_widths

METRICS = ("reward", "eval/accuracy", "kl_teacher_rev", "completions/mean_length")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666")
"""Colours of sides of one method; sides of different methods have those of the methods."""
ONE_SEED = "one seed: no band of chance"


class Compared(NamedTuple):
    """A run of the picture."""

    history: History
    settings: Settings


class Side(NamedTuple):
    """Runs that differ in their seed alone."""

    label: str
    colour: str
    runs: list[Compared]

    def by_seed(self) -> dict[Any, History]:
        """Return the first run of each seed whose knobs nobody moved."""
        untouched = [run for run in reversed(self.runs) if not run.history.moves]
        return {run.settings.seed: run.history for run in untouched}


def sides_of(runs: Sequence[Compared]) -> list[Side]:
    """Return the sides in the order of the runs; labels say in what they differ."""
    names = differing(run.settings for run in runs)
    groups: dict[str, list[Compared]] = {}
    for run in runs:
        key = repr([run.settings.own.get(name) for name in names])
        groups.setdefault(key, []).append(run)
    methods = [str(group[0].settings.values["method"]) for group in groups.values()]
    own_colours = len({*methods}) == len(methods)
    return [
        Side(
            in_words(group[0].settings, names) or title_of(method),
            style_of(method)[0] if own_colours else COLOURS[i % len(COLOURS)],
            group,
        )
        for i, (method, group) in enumerate(zip(methods, groups.values(), strict=True))
    ]


def compare_data(sides: Sequence[Side], metrics: Sequence[str] = METRICS) -> dict[str, Any]:
    """Return what the picture shows; the form is that of ``curve_data``."""
    histories = [run.history for side in sides for run in side.runs]
    shown = [name for name in metrics if any(name in one for one in histories)] or metrics[:1]
    window = max([WINDOW, *(one[name].stride for one in histories for name in shown)])
    panels = [
        _panel(name, TITLES.get(name, name), column, lines=_lines(sides, name, window))
        for column, name in enumerate(shown)
    ]
    strips = [
        strip
        for column, name in enumerate(shown)
        if (strip := _strip(sides, name, window, column)) is not None
    ]
    steps = [one.step for one in histories]
    step = f"step {min(steps)}" + (f" to {max(steps)}" if min(steps) < max(steps) else "")
    below = f" · below: difference to {sides[0].label}" if strips else ""
    dashes = " · dash: seed" if any(len(side.runs) > 1 for side in sides) else ""
    return {
        "group": "compare",
        "step": max(steps),
        "right": max(10, *steps) + 0.5,
        "panels": panels + strips,
        "moves": [],
        "labels": [],
        "caption": [
            step + below,
            f"colour: settings{dashes} · trailing mean of {window} steps",
        ],
    }


def pair_words(sides: Sequence[Side]) -> list[str]:
    """Return in sentences which differences are drawn, over which seeds, and which are not."""
    words = []
    for other in sides[1:]:
        names, shared = _between(sides[0], other)
        seeds = ", ".join(map(str, shared))
        if len(names) > 1:
            listed = ", ".join(names)
            said = f"no difference is drawn, for they differ in {len(names)} settings ({listed})"
        elif not seeds:
            said = "no difference is drawn, for they share no seed"
        elif len(shared) == 1:
            said = f"one seed in common ({seeds}): there is no band of chance, this may be noise"
        else:
            said = (
                f"mean over {len(shared)} seeds ({seeds}). The band is its 95 % interval at each"
                " step (Student's t). Where the band holds 0, chance alone may make the difference"
            )
        words.append(f"{other.label} − {sides[0].label}: {said}.")
    if len(sides) == 1:
        words.append("These runs have the same settings: they differ in their seed at most.")
    moved = [run.history.path.name for side in sides for run in side.runs if run.history.moves]
    if moved and len(sides) > 1:
        words.append(f"Knobs were moved by hand, so no difference has {', '.join(moved)}.")
    return words


def _between(one: Side, other: Side) -> tuple[list[str], list[Any]]:
    """Return the settings in which two sides differ, and the seeds that they share."""
    names = differing([one.runs[0].settings, other.runs[0].settings])
    theirs = other.by_seed()
    return names, sorted(seed for seed in one.by_seed() if seed in theirs)


def _panel(name: str, title: str, column: int, **more: Any) -> dict[str, Any]:
    low, high = (-0.03, 1.03) if name.startswith("eval/") else (None, None)
    note = "" if more["lines"] else "waits for the first step"
    fixed = {"strip": False, "symlog": False, "bands": [], "note": note, "low": low, "high": high}
    return {"name": name, "title": title, "column": column, **fixed, **more}


def _lines(sides: Sequence[Side], name: str, window: int) -> list[dict[str, Any]]:
    runs = [(side, run) for side in sides for run in side.runs]
    seeds = sorted({str(run.settings.seed) for _, run in runs})
    looks, found, used = list(DASHES), [], set()
    for side, run in runs:
        seed = str(run.settings.seed)
        label = side.label + (f", seed {seed}" if len(seeds) > 1 else "")
        if label in used:
            label += f" ({run.history.path.name})"
        used.add(label)
        series = run.history[name]
        if len(series):
            look: dict[str, Any] = {"width": 1.6, "dots": 3.0 if series.exact else 0.0}
            look["dash"] = looks[seeds.index(seed) % len(looks)]
            values = series.trailing_mean(window)
            found.append(line(label, series.steps, values, side.colour, **look))
    return found


def _strip(sides: Sequence[Side], name: str, window: int, column: int) -> dict[str, Any] | None:
    """Return the differences to the first side in one metric, or ``None``."""
    lines, bands, note = [], [], ""
    for other in sides[1:]:
        steps, gaps = _gaps(sides[0], other, name, window)
        if not len(steps):
            continue
        label = f"{other.label} − {sides[0].label}"
        bare: dict[str, Any] = {"width": 1.2, "alpha": 0.4} if len(gaps) == 1 else {}
        mean = gaps.mean(0)
        lines.append(line(label, steps, mean, other.colour, **bare))
        if len(gaps) == 1:
            note = ONE_SEED
            continue
        half = half_widths(gaps)
        band = {"label": f"95 % over {len(gaps)} seeds", "colour": other.colour, "alpha": 0.18}
        bands.append({**band, "hatch": "", "x": steps, "low": mean - half, "high": mean + half})
    if not lines:
        return None
    title = f"difference in {DIFFERENCE.get(name, TITLES.get(name, name))}"
    shown = {"strip": True, "low": None, "high": None, "note": note}
    return _panel(f"{name} difference", title, column, lines=lines, bands=bands, **shown)


def _gaps(one: Side, other: Side, name: str, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Return steps, (T,), and differences, (seeds, T), at the steps that all runs have."""
    names, seeds = _between(one, other)
    ours, theirs = one.by_seed(), other.by_seed()
    pairs = [(ours[seed], theirs[seed]) for seed in seeds]
    pairs = [(a, b) for a, b in pairs if name in a and name in b]
    if len(names) != 1 or not pairs:
        return np.empty(0), np.empty((0, 0))
    every = [history[name] for pair in pairs for history in pair]
    first, last = max(each.steps[0] for each in every), min(each.steps[-1] for each in every)
    steps = every[0].steps
    steps = steps[(steps >= first) & (steps <= last)]
    smooth = [np.interp(steps, each.steps, each.trailing_mean(window)) for each in every]
    return steps, np.array(smooth[1::2]) - np.array(smooth[::2])
