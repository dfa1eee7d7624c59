"""Curves of runs: a panel for each metric, and a table of means over seeds.

Raw values are faint. The line is a trailing mean, and the caption names its window.
Evaluations are drawn as points and never smoothed.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlkd_lab.plots.styles import (
    AXIS_LABELS,
    finish,
    in_print,
    label_of,
    legend_entries,
    line,
    literal,
    panel_figure,
    say_empty,
    style_of,
    styles_of,
    title_of,
    title_of_arm,
    wrap,
)
from rlkd_lab.runs import RunFolder
from rlkd_lab.study.statistics import half_width

XAxis = Literal["steps", "tokens", "seconds"]
X_LABELS = {"steps": "step", "tokens": "generated tokens", "seconds": "seconds"}

MAIN = ("reward", "kl_teacher_rev", "completions/mean_length")
ALL = (*MAIN, "entropy", "clip_ratio/high", "eval/accuracy")


@in_print
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
    figure, panels = panel_figure(len(metrics))
    methods = [run.config()["method"] for run in runs]
    counts = Counter(methods)
    frames = [run.metrics() for run in runs]
    for axes, metric in zip(panels, metrics, strict=True):
        for method, frame in zip(methods, frames, strict=True):
            if metric not in frame or frame[metric].dropna().empty:
                continue
            look = line(style_of(method))
            values = frame[metric].dropna()
            at = _x_values(frame, x).loc[values.index]
            if metric.startswith("eval/"):
                (curve,) = axes.plot(at, values, marker="o", markersize=3, **look)
            else:
                axes.plot(at, values, color=look["color"], alpha=0.25, linewidth=0.6)
                smooth = _trailing(values, window)
                (curve,) = axes.plot(at, smooth, **look)
            several = f", {counts[method]} runs" if counts[method] > 1 else ""
            label = literal(title_of(method), legend=True) + several
            if label not in legend_entries([axes]):  # a name for all runs of a method
                curve.set_label(label)
        _finish_panel(axes, metric, X_LABELS[x])
    seeds = sorted({run.config()["seed"] for run in runs})
    count = f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds"
    return finish(figure, title, f"trailing mean of {window} steps · {count}")


@in_print
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
    figure, panels = panel_figure(len(metrics))
    styles = styles_of({label: runs[0].config()["method"] for label, runs in groups.items()})
    frames = {label: [run.metrics() for run in runs] for label, runs in groups.items()}
    for axes, metric in zip(panels, metrics, strict=True):
        evaluated = metric.startswith("eval/")
        for label, group in frames.items():
            curves = [frame[metric].dropna() for frame in group if metric in frame]
            curves = [curve for curve in curves if len(curve)]
            if not curves:
                continue
            if not evaluated:
                curves = [_trailing(curve, window) for curve in curves]
            for curve in curves:
                axes.plot(curve, alpha=0.25, linewidth=0.6, color=styles[label][0])
            mean = pd.concat(curves, axis=1, join="inner").mean(axis=1)  # where all have a value
            look = line(styles[label], label=literal(title_of_arm(label), legend=True))
            axes.plot(mean, marker="o" if evaluated else None, markersize=3, **look)
        _finish_panel(axes, metric, "step")
    counts = {len(runs) for runs in groups.values()}
    seeds = f"{min(counts)}" if len(counts) == 1 else f"{min(counts)}–{max(counts)}"
    over = "one seed" if counts == {1} else f"mean over {seeds} seeds, each seed faint"
    caption = f"{over} · trailing mean of {window} steps"
    return finish(figure, title, caption)


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


def _trailing(values: pd.Series, window: int) -> pd.Series:
    """Return the trailing mean over so many steps, of a metric that not every step may have."""
    steps = range(int(values.index.min()), int(values.index.max()) + 1)
    return values.reindex(steps).rolling(window, min_periods=1).mean().loc[values.index]


def _x_values(frame: pd.DataFrame, x: XAxis) -> pd.Series:
    """Return steps, tokens generated so far, or seconds so far."""
    if x == "tokens":
        return frame["num_tokens"]
    if x == "seconds":
        return frame["step_time"].cumsum()
    return frame.index.to_series()


def _finish_panel(axes: Axes, metric: str, label: str) -> None:
    axes.set_ylabel(wrap(label_of(metric)))
    axes.set_xlabel(label)
    if metric.startswith("eval/accuracy"):
        axes.set_ylim(0, 1)
    if not axes.lines:
        say_empty(axes)
