"""Live curves of one run beside its twins, and when to draw them again.

Raw values are faint; the line is a trailing mean whose window stands in the legend; evaluations are
never smoothed. A moved knob is a vertical line. The untouched twin is dotted, the twin with other
samples thin, grey and dotted: what is smaller than it is chance.
"""

from __future__ import annotations

import base64
import textwrap
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import SymmetricalLogLocator

from rlkd_lab.lab.history import History, Twin
from rlkd_lab.lab.plots import PANELS, STYLES, literal, png
from rlkd_lab.objectives import METHODS

WINDOW = 9
LABEL = 36
"""Letters of a move's words beside its line."""
GREY = "#666666"
DOTS = (0, (1.0, 1.6))

GROUPS: dict[str, tuple[tuple[str, ...], ...]] = {
    "main": (("reward",), ("kl_teacher_rev",), ("completions/mean_length",)),
    "entropy": (("entropy",),),
    "clipped and dead tokens": (
        ("clip_ratio/low",),
        ("clip_ratio/high",),
        ("trrd/dead_frac", "trrd/bound_frac"),
    ),
    "KL to the reference": (("kl_ref",),),
    "KL estimates against exact": (
        ("kl_teacher_rev", "kl_teacher_k1", "kl_teacher_k2", "kl_teacher_k3"),
    ),
    "interference": (
        (
            "interference/cosine",
            "interference/cosine_split_reward",
            "interference/cosine_split_teacher",
        ),
        (
            "interference/sign_conflict",
            "interference/sign_conflict_split_reward",
            "interference/sign_conflict_split_teacher",
        ),
    ),
    "length in parts": (
        (
            "completions/length_working",
            "completions/length_checking",
            "completions/length_truncated",
        ),
    ),
    "accuracy": (("eval/accuracy",), ("eval/accuracy_ood",)),
}
"""What can be looked at: small multiples, each of one metric or of several that belong together."""

TITLES: dict[str, str] = {
    **PANELS,
    "kl_teacher_rev": "KL(student‖teacher), nats/token",
    "kl_ref": "KL(student‖reference), nats/token",
    "clip_ratio/low": "clipped below, share of tokens",
    "clip_ratio/high": "clipped above, share of tokens",
    "trrd/dead_frac": "dead under TRRD, share of tokens",
    "interference/cosine": "cosine of reward and teacher gradients",
    "interference/sign_conflict": "share of signs in conflict",
    "completions/length_working": "response length in parts, tokens",
    "eval/accuracy": "accuracy, held out",
    "eval/accuracy_ood": "accuracy, out of distribution",
}
LABELS: dict[str, str] = {
    "kl_teacher_rev": "exact",
    "kl_teacher_k1": "k1",
    "kl_teacher_k2": "k2",
    "kl_teacher_k3": "k3",
    "trrd/dead_frac": "gradient cut",
    "trrd/bound_frac": "gap bound acts",
    "interference/cosine": "reward against teacher",
    "interference/sign_conflict": "reward against teacher",
    "interference/cosine_split_reward": "noise floor: two halves, reward",
    "interference/cosine_split_teacher": "noise floor: two halves, teacher",
    "interference/sign_conflict_split_reward": "noise floor: two halves, reward",
    "interference/sign_conflict_split_teacher": "noise floor: two halves, teacher",
    "completions/length_working": "working",
    "completions/length_checking": "checking",
    "completions/length_truncated": "truncated",
}
DIFFERENCE = {
    "reward": "reward",
    "kl_teacher_rev": "KL to the teacher",
    "completions/mean_length": "length",
}
FAINT = ("main", "entropy", "clipped and dead tokens", "KL to the reference")
EXPLAINED = {
    "accuracy": "each evaluation, not smoothed",
    "interference": "each measurement, not smoothed",
}
SEVERAL = (("#000000", "-"), ("#0072B2", "--"), ("#D55E00", "-."), ("#009E73", ":"))
"""Looks of metrics that share a panel."""
AREAS = (("#56B4E9", ""), ("#E69F00", "//"), ("#999999", ".."))


def number(value: float | None) -> str:
    """A knob's value as people write it; ``None`` is off.

    >>> [number(value) for value in (None, 0.0, 0.30000000000000004, 1e-3, 2.5e-05)]
    ['off', '0', '0.3', '0.001', '2.5e-5']
    """
    return "off" if value is None else f"{value:.4g}".replace("e-0", "e-")


def move_labels(moves: list[dict[str, Any]], apart: float) -> list[tuple[int, str]]:
    """(step, words) of moved knobs; moves within ``apart`` steps of the first of them share a
    label, which ends with the last value of each knob.
    """
    groups: list[tuple[int, dict[str, str]]] = []
    for move in {
        (move["step"], move["knob"]): move for move in moves
    }.values():  # within a step the last one acts
        text = "to its schedule" if move.get("release") else number(move.get("value"))
        if not groups or move["step"] - groups[-1][0] >= max(apart, 1):
            groups.append((move["step"], {}))
        named = groups[-1][1]
        named[move["knob"]] = (
            f"{named[move['knob']]} → {text}"
            if move["knob"] in named and len(named[move["knob"]]) < 16
            else text
        )
    return [
        (
            step,
            textwrap.shorten(
                ", ".join(f"{knob} {text}" for knob, text in named.items()), LABEL, placeholder=" …"
            ),
        )
        for step, named in groups
    ]


def draw(history: History, method: str, group: str = "main", *, steps: int | None = None) -> Figure:
    """One of :data:`GROUPS`, with the run's twins and moves.

    Args:
        history: what was read of the run folder.
        method: a key of METHODS, for colour, style and name.
        group: a key of :data:`GROUPS`; below ``main`` stands, where there is an untouched twin, the
            difference to it.
        steps: length of the whole run.
    """
    panels = GROUPS[group]
    untouched, chance = history.fork()
    strip = group == "main" and untouched is not None and "reward" in history
    figure = Figure(
        figsize=(10.5, 4.7 if strip else 3.2) if len(panels) > 1 else (7.0, 3.2), facecolor="white"
    )
    FigureCanvasAgg(figure)
    height = figure.get_figheight()
    # Space is given in inches, by hand: a layout engine would draw everything twice.
    grid = figure.add_gridspec(
        2 if strip else 1,
        len(panels),
        height_ratios=(2.3, 1) if strip else (1,),
        left=0.55 / figure.get_figwidth(),
        right=0.985,
        top=1 - 0.36 / height,
        bottom=0.92 / height,
        wspace=0.2,
        hspace=0.42,
    )
    colour, style = STYLES.get(method, ("#555555", "-"))
    window = max([WINDOW, *(history[name].stride for names in panels for name in names)])
    found: dict[str, Any] = {}
    for column, names in enumerate(panels):
        axes = figure.add_subplot(grid[0, column])
        axes.set_title(TITLES.get(names[0], names[0]), fontsize=9.5, loc="left")
        if group == "length in parts" and all(name in history for name in names):
            _stack(axes, history, names, window)
        elif len(names) > 1:
            _several(axes, history, names, window)
        else:
            # A style that is dotted by itself would read as the twin.
            _one(
                axes,
                history,
                names[0],
                colour,
                "-" if style == ":" else style,
                literal(METHODS[method].title if method in METHODS else method, legend=True),
                window,
            )
            _twins(axes, history, names[0], colour, untouched, chance, window)
        _finish(axes, history, history.step)
        if names[0].startswith(("eval/", "clip_ratio", "trrd/", "interference/sign")):
            axes.set_ylim(
                -0.03 if names[0].startswith("eval/") else 0,
                1.03 if names[0].startswith("eval/") else None,
            )
        if group == "KL estimates against exact":
            axes.set_yscale(
                "symlog", linthresh=0.1
            )  # k2 is many times the others; k1 can be negative
            axes.yaxis.set_major_locator(
                SymmetricalLogLocator(base=10, linthresh=0.1, subs=[1, 2, 5])
            )
            axes.yaxis.set_major_formatter("{x:g}")
        if not any(name in history for name in names):
            axes.text(
                0.5,
                0.5,
                "not recorded" if history.step else "waits for the first step",
                ha="center",
                va="center",
                transform=axes.transAxes,
                color=GREY,
            )
        _collect(axes, found)
    if strip:
        assert untouched is not None
        for column, (name,) in enumerate(panels):
            if name in history and name in untouched.history:
                axes = figure.add_subplot(grid[1, column])
                axes.set_title(
                    f"{DIFFERENCE[name]}: run − untouched twin", fontsize=9.5, loc="left"
                )
                _difference(axes, history, name, untouched, chance, colour, window)
                _finish(axes, history, history.step, labels=False)
                _collect(axes, found)
    figure.text(
        0.55 / figure.get_figwidth(),
        0.56 / height,
        _axis(history, steps),
        fontsize=8.5,
        va="top",
        color="#333333",
    )
    smoothed = (
        f"faint: each step · line: trailing mean of {window} steps"
        if group in FAINT
        else EXPLAINED.get(group, f"trailing mean of {window} steps")
    )
    figure.text(0.985, 0.56 / height, smoothed, fontsize=8.5, ha="right", va="top", color="#333333")
    if found:
        columns = 5 if len(panels) > 1 else 3
        figure.legend(
            found.values(),
            found.keys(),
            loc="lower left",
            bbox_to_anchor=(0.5 / figure.get_figwidth(), 0),
            ncols=columns,
            frameon=False,
            fontsize=8.5,
        )
    return figure


def _axis(history: History, steps: int | None) -> str:
    return (
        f"step {history.step}" + (f" of {steps}" if steps else "")
        if history.step
        else "no step yet"
    )


def _one(
    axes: Axes, history: History, name: str, colour: str, style: str, label: str, window: int
) -> None:
    series = history[name]
    if not len(series):
        return
    if series.exact:
        axes.plot(
            series.steps,
            series.values,
            color=colour,
            linestyle=style,
            marker="o",
            markersize=4,
            label=label,
        )
    else:
        axes.plot(series.steps, series.values, color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(
            series.steps,
            series.trailing_mean(window),
            color=colour,
            linestyle=style,
            linewidth=1.9,
            label=label,
        )


def _after(twin: Twin, history: History, name: str, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps and smoothed values of a twin, from the fork on."""
    series = twin.joined(history, name)
    values = series.values if series.exact else series.trailing_mean(window)
    return series.steps[series.steps >= twin.step], values[series.steps >= twin.step]


def _twins(
    axes: Axes,
    history: History,
    name: str,
    colour: str,
    untouched: Twin | None,
    chance: list[Twin],
    window: int,
) -> None:
    if untouched is not None and name in untouched.history:
        axes.plot(
            *_after(untouched, history, name, window),
            color=colour,
            linestyle=DOTS,
            linewidth=1.9,
            label="untouched twin",
        )
    for twin in chance:
        if name in twin.history:
            axes.plot(
                *_after(twin, history, name, window),
                color=GREY,
                linestyle=DOTS,
                linewidth=1.0,
                label="untouched, other samples",
            )


def _several(axes: Axes, history: History, names: tuple[str, ...], window: int) -> None:
    for name, (colour, style) in zip(names, SEVERAL, strict=False):
        series = history[name]
        if len(series):
            sparse = (
                len(series) < 0.5 * (series.steps[-1] - series.steps[0] + 1) / series.stride
            )  # measured now and then: points, not smoothed
            values = series.values if sparse else series.trailing_mean(window)
            axes.plot(
                series.steps,
                values,
                color=colour,
                linestyle=style,
                linewidth=1.6,
                marker="o" if sparse else "",
                markersize=3.5,
                label=LABELS[name],
            )


def _stack(axes: Axes, history: History, names: tuple[str, ...], window: int) -> None:
    steps = history[names[0]].steps
    parts = [
        np.interp(steps, history[name].steps, history[name].trailing_mean(window)) for name in names
    ]
    below = np.zeros_like(steps)
    for part, name, (colour, hatch) in zip(parts, names, AREAS, strict=True):
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


def _difference(
    axes: Axes,
    history: History,
    name: str,
    untouched: Twin,
    chance: list[Twin],
    colour: str,
    window: int,
) -> None:
    """Run − untouched twin; and as a band what chance alone makes of two untouched runs: twice
    the root mean square of their smoothed difference.
    """
    steps, twin = _after(untouched, history, name, window)
    series = history[name]
    own = series.trailing_mean(window)
    at = series.steps[(series.steps >= untouched.step) & (series.steps <= steps[-1])]
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.plot(
        at,
        np.interp(at, series.steps, own) - np.interp(at, steps, twin),
        color=colour,
        linewidth=1.9,
    )
    squares = []
    for noise in chance:
        theirs, values = _after(noise, history, name, window)
        common = theirs[(theirs >= steps[0]) & (theirs <= steps[-1])]
        apart = np.interp(common, theirs, values) - np.interp(common, steps, twin)
        axes.plot(common, apart, color=GREY, linestyle=DOTS, linewidth=1.0)
        squares.append(apart[1:] ** 2)  # at the fork itself there is no difference
    if squares:
        spread = 2 * float(np.sqrt(np.mean(np.concatenate(squares))))
        ends = [untouched.step, max(series.steps[-1], steps[-1])]
        axes.fill_between(
            ends,
            -spread,
            spread,
            color=GREY,
            alpha=0.18,
            linewidth=0,
            label="what chance alone does (±2 root mean squares)",
        )


def _finish(axes: Axes, history: History, last: int, labels: bool = True) -> None:
    """Grid, x-range, and the moved knobs as vertical lines with their words."""
    right = max(last, 10)
    axes.set_xlim(0.5, right + 0.5)
    axes.grid(alpha=0.25)
    axes.tick_params(labelsize=8.5)
    axes.xaxis.get_major_locator().set_params(integer=True, nbins=6)  # type: ignore[call-arg]
    for spine in ("top", "right"):
        axes.spines[spine].set_visible(False)
    wide = axes.get_position().width > 0.5
    moves = history.moves
    for step in sorted({move["step"] for move in moves})[-40:]:
        axes.axvline(step, color="#333333", linewidth=0.8, alpha=0.7)
    if not labels:
        return
    for step, words in move_labels(moves, right * (0.03 if wide else 0.07))[-8:]:
        axes.annotate(
            words,
            (step, 0.985),
            xycoords=("data", "axes fraction"),
            xytext=(2 if step < 0.95 * right else -2, 0),
            textcoords="offset points",
            rotation=90,
            ha="left" if step < 0.95 * right else "right",
            va="top",
            fontsize=7.5,
            color="#333333",
            annotation_clip=True,
            clip_on=True,
            bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.5},
        )


def _collect(axes: Axes, found: dict[str, Any]) -> None:
    for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
        found.setdefault(label, handle)


class Redraw:
    """When to draw again: something is new, and at least a second and twenty drawing times have
    gone by since; or the run has ended.

    >>> redraw = Redraw()
    >>> redraw.due("step 1", now=0.0)
    True
    >>> redraw.drawn("step 1", now=0.0, took=0.2)
    >>> redraw.due("step 2", now=3.9), redraw.due("step 1", now=4.0), redraw.due("step 2", now=4.0), redraw.due("step 2", now=0.3, ended=True)
    (False, False, True, True)
    """

    LEAST = 1.0
    SHARE = 20

    def __init__(self) -> None:
        self.seen: object = None
        self.next = float("-inf")
        self.final = False

    def due(self, what: object, now: float, ended: bool = False) -> bool:
        """Whether to draw ``what``, anything that differs when there is something new, at
        ``now`` seconds; the end is drawn once, at once.
        """
        if what == self.seen:
            return False
        return now >= self.next or (ended and not self.final)

    def drawn(
        self, what: object, now: float, took: float, ended: bool = False, share: float = SHARE
    ) -> None:
        """It was drawn, which ended at ``now`` and took ``took`` seconds; the next drawing is
        ``share`` times as long away.
        """
        self.seen, self.final = what, ended
        self.next = now + max(self.LEAST, share * took)


def say(history: History, method: str, steps: int | None = None, state: str | None = None) -> str:
    """The run in a sentence: for where pictures and widgets are missing.

    >>> say(History("nowhere"), "grpo")
    'GRPO: no step yet.'
    """
    title = METHODS[method].title if method in METHODS else method
    if not history.step:
        return f"{title}: no step yet{f', {state}' if state else ''}."
    values = [
        f"{label} {number(float(history[name].values[-1]))}"
        for label, name in (
            ("reward", "reward"),
            ("KL to the teacher", "kl_teacher_rev"),
            ("length", "completions/mean_length"),
            ("accuracy", "eval/accuracy"),
        )
        if name in history
    ]
    moved = sorted({move["knob"] for move in history.moves})
    touched = f"; moved by hand: {', '.join(moved)}" if moved else ""
    return (
        f"{title}: step"
        f" {history.step}{f' of {steps}' if steps else ''}{f', {state}' if state else ''}."
        f" {', '.join(values)}{touched}."
    )


def picture(figure: Figure, text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A figure as data and metadata for ``display(…, raw=True)``:

    PNG, and the sentence where no picture can be shown.
    """
    return {"image/png": base64.b64encode(png(figure)).decode(), "text/plain": text}, {
        "image/png": {"alt": text}
    }


def watch_curves(
    group: str = "main", clock: Callable[[], float] = time.monotonic
) -> Callable[[Any, dict[str, Any]], None]:
    """An ``on_step`` that draws the curves of a run in the foreground, where a panel cannot be:

    ``run(config, out, on_step=watch_curves())``.
    """
    from IPython.display import display

    followed: list[tuple[History, Any]] = []
    redraw = Redraw()

    def show(loop: Any, row: dict[str, Any]) -> None:
        config, ended = loop.config, row["step"] == loop.config.steps
        if not redraw.due(row["step"], clock(), ended):
            return
        began = clock()
        if not followed:
            followed.append((History(loop.folder.path), None))
        history, handle = followed[0]
        history.read()
        data, metadata = picture(
            draw(history, config.method, group, steps=config.steps),
            say(history, config.method, config.steps),
        )
        if handle is None:
            followed[0] = (history, display(data, metadata=metadata, raw=True, display_id=True))
        else:
            handle.update(data, metadata=metadata, raw=True)
        redraw.drawn(row["step"], clock(), clock() - began, ended)

    return show
