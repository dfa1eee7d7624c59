"""Curves of runs: a panel for each metric, and a table of means over seeds.

Raw values are faint. The line is a trailing mean, and the legend names its window.
Evaluations are drawn as points and never smoothed.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlkd_lab.plots.styles import (
    AXIS_LABELS,
    Style,
    legend_entries,
    line,
    literal,
    say_empty,
    style_of,
    styles_of,
    title_of,
    white_figure,
)
from rlkd_lab.runs import RunFolder
from rlkd_lab.study.statistics import half_width

XAxis = Literal["steps", "tokens", "seconds"]
X_LABELS = {"steps": "step", "tokens": "generated tokens", "seconds": "seconds"}

MAIN = ("reward", "kl_teacher_rev", "completions/mean_length")
ALL = (*MAIN, "entropy", "clip_ratio/high", "eval/accuracy")


def plot_runs(
    runs: Sequence[RunFolder],
    metrics: Sequence[str] = MAIN,
    *,
    x: XAxis = "steps",
    window: int = 9,
    title: str | None = None,
) -> Figure:
    """Draw metrics of runs, a panel for each metric, three panels in a row.

    Args:
        runs: one or several.
        metrics: names of metrics.jsonl, see docs/metrics.md.
        x: ``steps``, ``tokens`` or ``seconds``.
        window: of the trailing mean, in steps.
        title: above the figure.

    Raises:
        ValueError: no run or no metric.
    """
    if not runs or not metrics:
        raise ValueError("there is nothing to plot: give at least one run and one metric")
    figure, panels = _grid(len(metrics), 0.7)
    for axes, metric in zip(panels, metrics, strict=True):
        draw_metric(axes, runs, metric, x=x, window=window)
    seeds = sorted({run.config()["seed"] for run in runs})
    count = f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds"
    _add_legend(figure, panels, f"trailing mean of {window} steps · {count}", title, 0.35)
    return figure


def draw_metric(
    axes: Axes,
    runs: Sequence[RunFolder],
    metric: str,
    *,
    x: XAxis = "steps",
    window: int = 9,
) -> None:
    """Draw one metric of several runs, a line for each run.

    Runs of one method share colour, style and legend entry.
    """
    methods = [run.config()["method"] for run in runs]
    labelled: set[str] = set()
    for run, method in zip(runs, methods, strict=True):
        frame = run.metrics()
        if metric not in frame or frame[metric].dropna().empty:
            continue
        look = line(style_of(method))
        values = frame[metric].dropna()
        at = _x_values(frame, x).loc[values.index]
        label = None
        if method not in labelled:
            seeds = methods.count(method)
            label = literal(title_of(method), legend=True) + (
                f", {seeds} runs" if seeds > 1 else ""
            )
            labelled.add(method)
        if metric.startswith("eval/"):
            axes.plot(at, values, marker="o", markersize=4, label=label, **look)
        else:
            axes.plot(at, values, color=look["color"], alpha=0.25, linewidth=0.8)
            smooth = values.rolling(window, min_periods=1).mean()
            axes.plot(at, smooth, linewidth=1.8, label=label, **look)
    _finish_panel(axes, metric, X_LABELS[x])


def plot_groups(
    groups: Mapping[str, Sequence[RunFolder]],
    metrics: Sequence[str] = MAIN,
    *,
    window: int = 9,
    title: str | None = None,
) -> Figure:
    """Draw metrics of groups of runs that differ in their seed, a panel for each metric.

    The line is the mean of a group over its seeds; each seed stands behind it, faint.
    Colours are the methods'; groups of one method differ by shade and line style.
    Every curve is a trailing mean over ``window`` steps; evaluations are not smoothed.

    Args:
        groups: runs by label.
        metrics: names of metrics.jsonl.
        window: in steps.
        title: above the figure.

    Raises:
        ValueError: an empty group, a run twice, or a window below 1.
    """
    if window < 1:
        raise ValueError(f"window={window}: a trailing mean needs 1 or more steps")
    groups = _seeds(groups, metrics)
    figure, panels = _grid(len(metrics), 0.9)
    styles = styles_of({label: runs[0].config()["method"] for label, runs in groups.items()})
    frames = {label: [run.metrics() for run in runs] for label, runs in groups.items()}
    for axes, metric in zip(panels, metrics, strict=True):
        for label, group in frames.items():
            _draw_group(axes, group, metric, styles[label], label, window)
        _finish_panel(axes, metric, "step")
    counts = {len(runs) for runs in groups.values()}
    seeds = f"{min(counts)}" if len(counts) == 1 else f"{min(counts)}–{max(counts)}"
    heading = f"mean over {seeds} seeds, each seed faint · trailing mean of {window} steps"
    _add_legend(figure, panels, heading, title, 0.4)
    return figure


def _draw_group(
    axes: Axes,
    frames: list[pd.DataFrame],
    metric: str,
    style: Style,
    label: str,
    window: int,
) -> None:
    curves = [
        frame[metric].dropna()
        for frame in frames
        if metric in frame and frame[metric].notna().any()
    ]
    if not curves:
        return
    evaluated = metric.startswith("eval/")
    if not evaluated:
        curves = [curve.rolling(window, min_periods=1).mean() for curve in curves]
    look = line(style)
    for curve in curves:
        axes.plot(curve.index, curve, alpha=0.25, linewidth=0.8, **look)
    mean = pd.concat(curves, axis=1, join="inner").mean(axis=1)  # where every seed has a value
    marker = "o" if evaluated else None
    axes.plot(
        mean.index,
        mean,
        linewidth=2,
        marker=marker,
        markersize=4,
        label=literal(label, legend=True),
        **look,
    )


def seed_table(
    groups: Mapping[str, Sequence[RunFolder]],
    metrics: Sequence[str] = MAIN,
    last: int = 10,
) -> pd.DataFrame:
    """Return means over seeds with 95 % t-intervals, as text; a row for each group.

    The value of a run is the mean of its last steps, or its last evaluation for ``eval/…``.
    A single seed has no interval.

    Args:
        groups: runs by label.
        metrics: names of metrics.jsonl.
        last: number of last steps.

    Raises:
        ValueError: an empty group, a run twice, or ``last`` below 1.
    """
    if last < 1:
        raise ValueError(f"last={last}: a mean of the last steps needs 1 or more")
    rows = []
    for label, runs in _seeds(groups, metrics).items():
        row: dict[str, object] = {"": label, "seeds": len(runs)}
        frames = [run.metrics() for run in runs]
        for metric in metrics:
            count = 1 if metric.startswith("eval/") else last
            series = [frame[metric].dropna() for frame in frames if metric in frame]
            values = np.array([one.iloc[-count:].mean() for one in series if len(one)])
            row[AXIS_LABELS.get(metric, metric)] = _mean_and_interval(values)
        rows.append(row)
    return pd.DataFrame(rows).set_index("")


def _mean_and_interval(values: np.ndarray) -> str:
    if len(values) == 0:
        return "–"
    if len(values) == 1:
        return f"{values[0]:.3g}"
    return f"{values.mean():.3g} ± {half_width(values):.2g}"


def _seeds(
    groups: Mapping[str, Sequence[RunFolder]],
    metrics: Sequence[str],
) -> dict[str, list[RunFolder]]:
    """Return the runs that count as seeds, by label.

    Runs with knobs moved by hand are left out with a warning, except a run that is alone.
    """
    if not groups or not metrics or not all(groups.values()):
        raise ValueError(
            "there is nothing to show: give at least one group with a run, and one metric"
        )
    kept = {}
    for label, runs in groups.items():
        places = [run.path.resolve() for run in runs]
        if len(set(places)) < len(places):
            raise ValueError(f"{label}: a run is there twice; each seed counts once")
        untouched = [run for run in runs if len(runs) == 1 or not run.touched]
        moved = len(runs) - len(untouched)
        if not untouched:
            raise ValueError(
                f"{label}: every run was moved by hand, so there is no mean over seeds; `rlkd"
                " train --schedule-from` makes ordinary runs of them"
            )
        if moved:
            warnings.warn(
                f"{label}: {moved} of {len(runs)} runs were moved by hand and are left out",
                stacklevel=3,
            )
        kept[label] = untouched
    return kept


# --- panels ---------------------------------------------------------------------------------------


def _grid(count: int, space: float) -> tuple[Figure, list[Axes]]:
    """Return a figure of ``count`` panels, three in a row; ``space`` inches for the legend."""
    columns = min(3, count)
    lines = -(-count // columns)
    figure = white_figure(4.2 * columns, 3.1 * lines + space)
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes in panels[count:]:
        axes.set_visible(False)
    return figure, panels[:count]


def _x_values(frame: pd.DataFrame, x: XAxis) -> pd.Series:
    """Return steps, tokens generated so far, or seconds so far."""
    if x == "tokens":
        return frame["num_tokens"]
    if x == "seconds":
        return frame["step_time"].cumsum()
    return frame.index.to_series()


def _finish_panel(axes: Axes, metric: str, label: str) -> None:
    axes.set_ylabel(literal(AXIS_LABELS.get(metric, metric)))
    axes.set_xlabel(label)
    axes.grid(alpha=0.25)
    if metric.startswith("eval/accuracy"):
        axes.set_ylim(0, 1)
    if not axes.lines:
        say_empty(axes)


def _add_legend(
    figure: Figure,
    panels: list[Axes],
    heading: str,
    title: str | None,
    space: float,
) -> None:
    """Put one legend below all panels, and the title above them."""
    entries = legend_entries(panels)
    if entries:
        figure.legend(
            entries.values(),
            entries.keys(),
            loc="lower center",
            ncols=min(4, len(entries)),
            title=heading,
            frameon=False,
            fontsize=9,
            title_fontsize=8,
        )
    if title:
        figure.suptitle(literal(title))
    lines = -(-len(entries) // 4)
    figure.tight_layout(rect=(0, (space + 0.22 * lines) / figure.get_figheight(), 1, 1))
