"""Figures: curves of one run or several, drawn without pyplot and saved with a sidecar that says
what went in.

One fixed colour and line style per method (Okabe–Ito, safe for colour-blind readers). Raw values
are faint; the line is a trailing mean whose window stands in the legend; evaluation points are
never smoothed.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from rlkd_lab.objectives import METHODS
from rlkd_lab.runs import RunFolder
from rlkd_lab.study.statistics import half_width

XAxis = Literal["steps", "tokens", "seconds"]

STYLES: dict[str, tuple[str, str]] = {
    "grpo": ("#0072B2", "-"),
    "dr_grpo": ("#0072B2", "--"),
    "dapo": ("#0072B2", ":"),
    "gspo": ("#0072B2", "-."),
    "cispo": ("#56B4E9", "-"),
    "opd": ("#D55E00", "-"),
    "sft": ("#D55E00", "--"),
    "kd_forward": ("#D55E00", ":"),
    "gkd": ("#D55E00", "-."),
    "rft": ("#F0E442", "--"),
    "kdrl": ("#009E73", "-"),
    "kdrl_advantage": ("#009E73", "--"),
    "kdrl_annealed": ("#009E73", ":"),
    "kdrl_masked": ("#009E73", "-."),
    "trrd": ("#CC79A7", "-"),
    "opd_then_rl": ("#E69F00", "-"),
    "srpo": ("#E69F00", "--"),
    "hdpo": ("#E69F00", ":"),
    "rlsd": ("#E69F00", "-."),
}
"""Colour and line style of each method, in every figure."""

PANELS: dict[str, str] = {
    "reward": "reward",
    "kl_teacher_rev": "KL(student‖teacher), nats per token",
    "completions/mean_length": "response length, tokens",
    "entropy": "entropy, nats per token",
    "clip_ratio/high": "share of tokens clipped above",
    "clip_ratio/low": "share of tokens clipped below",
    "eval/accuracy": "accuracy, held-out prompts",
    "eval/accuracy_ood": "accuracy, out of distribution",
    "eval/mean_length": "length, held-out prompts, tokens",
    "trrd/dead_frac": "share of tokens that are dead",
    "kl_ref": "KL(student‖reference), nats per token",
    "grad_norm": "gradient norm",
}
"""What the y-axes are called."""

MAIN = ("reward", "kl_teacher_rev", "completions/mean_length")
ALL = (
    "reward",
    "kl_teacher_rev",
    "completions/mean_length",
    "entropy",
    "clip_ratio/high",
    "eval/accuracy",
)


def literal(text: object, legend: bool = False) -> str:
    r"""A user's text for a figure, which matplotlib then shows as it stands: it would read ``$…$``
    as a formula.

    Args:
        text: a name of a run, an arm, a method, a column or a knob, or a value of one.
        legend: for a legend, which leaves out names that begin with ``_``; they begin with a space
            here.

    >>> literal("5$ to 7$"), literal("_own", legend=True)
    ('5\$ to 7\$', ' _own')
    """
    return (" " if legend and str(text).startswith("_") else "") + str(text).replace("$", r"\$")


def x_values(frame: pd.DataFrame, x: XAxis) -> pd.Series:
    """Steps, generated tokens so far, or seconds so far."""
    if x == "tokens":
        return frame["num_tokens"]
    if x == "seconds":
        return frame["step_time"].cumsum()
    return frame.index.to_series()


def draw_metric(
    axes: Axes, runs: Sequence[RunFolder], metric: str, *, x: XAxis = "steps", window: int = 9
) -> None:
    """One metric of several runs; runs of one method share colour and style, one line a seed."""
    methods = [run.config()["method"] for run in runs]
    labelled: set[str] = set()
    for run, method in zip(runs, methods, strict=True):
        frame = run.metrics()
        if metric not in frame or frame[metric].dropna().empty:
            continue
        colour, style = STYLES.get(method, ("#555555", "-"))
        values = frame[metric].dropna()
        at = x_values(frame, x).loc[values.index]
        label = None
        if method not in labelled:
            seeds = methods.count(method)
            title = METHODS[method].title if method in METHODS else method
            label = literal(title + (f", {seeds} runs" if seeds > 1 else ""), legend=True)
            labelled.add(method)
        if metric.startswith("eval/"):
            axes.plot(
                at, values, color=colour, linestyle=style, marker="o", markersize=4, label=label
            )
        else:
            axes.plot(at, values, color=colour, alpha=0.25, linewidth=0.8)
            axes.plot(
                at,
                values.rolling(window, min_periods=1).mean(),
                color=colour,
                linestyle=style,
                linewidth=1.8,
                label=label,
            )
    axes.set_ylabel(literal(PANELS.get(metric, metric)))
    axes.set_xlabel({"steps": "step", "tokens": "generated tokens", "seconds": "seconds"}[x])
    axes.grid(alpha=0.25)
    if metric.startswith("eval/accuracy"):
        axes.set_ylim(0, 1)
    if not labelled:
        axes.text(
            0.5,
            0.5,
            "not recorded",
            ha="center",
            va="center",
            transform=axes.transAxes,
            color="#777777",
        )


def plot_runs(
    runs: Sequence[RunFolder],
    metrics: Sequence[str] = MAIN,
    *,
    x: XAxis = "steps",
    window: int = 9,
    title: str | None = None,
) -> Figure:
    """Small multiples, a panel a metric, three in a row, with one legend.

    Args:
        runs: one or several.
        metrics: names of metrics.jsonl, see docs/metrics.md.
        x: ``steps``, ``tokens`` or ``seconds``.
        window: of the trailing mean, in steps.
        title: above the figure.
    """
    if not runs or not metrics:
        raise ValueError("there is nothing to plot: give at least one run and one metric")
    columns = min(3, len(metrics))
    lines = -(-len(metrics) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.1 * lines + 0.7), facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes, metric in zip(grid.flat, metrics, strict=False):
        draw_metric(axes, runs, metric, x=x, window=window)
    for axes in list(grid.flat)[len(metrics) :]:
        axes.set_visible(False)
    found: dict[str, Any] = {}
    for axes in grid.flat:
        handles, labels = axes.get_legend_handles_labels()
        for label, handle in zip(labels, handles, strict=True):
            found.setdefault(label, handle)
    seeds = sorted({run.config()["seed"] for run in runs})
    heading = f"trailing mean of {window} steps · " + (
        f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds"
    )
    if found:
        figure.legend(
            found.values(),
            found.keys(),
            loc="lower center",
            ncols=min(4, len(found)),
            title=heading,
            frameon=False,
            fontsize=9,
            title_fontsize=8,
        )
    if title:
        figure.suptitle(literal(title))
    height = figure.get_figheight()
    rows_of_legend = -(-len(found) // 4)
    figure.tight_layout(rect=(0, (0.35 + 0.22 * rows_of_legend) / height, 1, 1))
    return figure


def plot_groups(
    groups: Mapping[str, Sequence[RunFolder]],
    metrics: Sequence[str] = MAIN,
    *,
    window: int = 9,
    title: str | None = None,
) -> Figure:
    """The same small multiples for runs that differ in their seed: a group's mean over its seeds,
    and each seed behind it, faint.

    Colours are the methods'; where several have one, shades and line styles tell them apart. Every
    curve is a trailing mean over ``window`` steps; evaluation points are not smoothed.

    Args:
        groups: by label.
        metrics: names of metrics.jsonl.
        window: in steps.
        title: above the figure.
    """
    if window < 1:
        raise ValueError(f"window={window}: a trailing mean needs 1 or more steps")
    groups = _seeds(groups, metrics)
    columns = min(3, len(metrics))
    lines = -(-len(metrics) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.1 * lines + 0.9), facecolor="white")
    FigureCanvasAgg(figure)
    styles = looks({label: runs[0].config()["method"] for label, runs in groups.items()})
    frames = {label: [run.metrics() for run in runs] for label, runs in groups.items()}
    grid = list(figure.subplots(lines, columns, squeeze=False).flat)
    handles = {}
    for axes, metric in zip(grid, metrics, strict=False):
        evaluated = metric.startswith("eval/")
        for label, of_seeds in frames.items():
            colour, style = styles[label]
            curves = [
                frame[metric].dropna()
                for frame in of_seeds
                if metric in frame and frame[metric].notna().any()
            ]
            if not curves:
                continue
            curves = (
                curves
                if evaluated
                else [curve.rolling(window, min_periods=1).mean() for curve in curves]
            )
            for curve in curves:
                axes.plot(
                    curve.index, curve, color=colour, linestyle=style, alpha=0.25, linewidth=0.8
                )
            mean = pd.concat(curves, axis=1, join="inner").mean(
                axis=1
            )  # where every seed has a value
            (handles[label],) = axes.plot(
                mean.index,
                mean,
                color=colour,
                linestyle=style,
                linewidth=2,
                marker="o" if evaluated else None,
                markersize=4,
            )
        axes.set_ylabel(literal(PANELS.get(metric, metric)))
        axes.set_xlabel("step")
        axes.grid(alpha=0.25)
        if metric.startswith("eval/accuracy"):
            axes.set_ylim(0, 1)
        if not axes.lines:
            axes.text(
                0.5,
                0.5,
                "not recorded",
                ha="center",
                va="center",
                transform=axes.transAxes,
                color="#777777",
            )
    for axes in grid[len(metrics) :]:
        axes.set_visible(False)
    counts = {len(runs) for runs in groups.values()}
    seeds = f"{min(counts)} seeds" if len(counts) == 1 else f"{min(counts)}–{max(counts)} seeds"
    heading = f"mean over {seeds}, each seed faint · trailing mean of {window} steps"
    labels = [literal(label, legend=True) for label in handles]
    figure.legend(
        handles.values(),
        labels,
        loc="lower center",
        ncols=min(4, len(handles)),
        title=heading,
        frameon=False,
        fontsize=9,
        title_fontsize=8,
    )
    if title:
        figure.suptitle(literal(title))
    figure.tight_layout(
        rect=(0, (0.4 + 0.22 * -(-len(handles) // 4)) / figure.get_figheight(), 1, 1)
    )
    return figure


def looks(methods: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Colour and line style of each label: the method's own, and darker shades and other styles
    for further labels of the same colour.
    """
    taken: dict[str, int] = {}
    looks = {}
    for label, method in methods.items():
        colour, style = STYLES.get(method, ("#555555", "-"))
        number = min(taken.get(colour, 0), 3)
        others = [each for each in ("-", "--", ":", "-.") if each != style]
        red, green, blue = (part * (1 - 0.27 * number) for part in to_rgb(colour))
        looks[label] = (
            colour if number == 0 else to_hex((red, green, blue)),
            [style, *others][number],
        )
        taken[colour] = taken.get(colour, 0) + 1
    return looks


def seed_table(
    groups: Mapping[str, Sequence[RunFolder]], metrics: Sequence[str] = MAIN, last: int = 10
) -> pd.DataFrame:
    """Mean of the last steps of each run, then mean over seeds with a 95 % t-interval, as text; one
    seed has no interval.

    Args:
        groups: by label.
        metrics: names of metrics.jsonl; of ``eval/…`` the last evaluation is taken.
        last: steps.
    """
    if last < 1:
        raise ValueError(f"last={last}: a mean of the last steps needs 1 or more")
    rows = []
    for label, runs in _seeds(groups, metrics).items():
        row: dict[str, object] = {"": label, "seeds": len(runs)}
        for metric in metrics:
            frames = [run.metrics() for run in runs]
            series = [frame[metric].dropna() for frame in frames if metric in frame]
            values = np.array(
                [
                    one.iloc[-1 if metric.startswith("eval/") else -last :].mean()
                    for one in series
                    if len(one)
                ]
            )
            row[PANELS.get(metric, metric)] = _mean_and_interval(values)
        rows.append(row)
    return pd.DataFrame(rows).set_index("")


def _seeds(
    groups: Mapping[str, Sequence[RunFolder]], metrics: Sequence[str]
) -> dict[str, list[RunFolder]]:
    """The runs that stand for seeds: each once, and none that was moved by hand unless it is
    alone.
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
        if len(untouched) < len(runs):
            warnings.warn(
                f"{label}: {len(runs) - len(untouched)} of {len(runs)} runs were moved by"
                " hand and are left out",
                stacklevel=3,
            )
        if not untouched:
            raise ValueError(
                f"{label}: every run was moved by hand, so there is no mean over seeds; `rlkd"
                " train --schedule-from` makes ordinary runs of them"
            )
        kept[label] = untouched
    return kept


def _mean_and_interval(values: np.ndarray) -> str:
    if len(values) == 0:
        return "–"
    if len(values) == 1:
        return f"{values[0]:.3g}"
    return f"{values.mean():.3g} ± {half_width(values):.2g}"


def save_figure(figure: Figure, path: str | Path, runs: Sequence[RunFolder], **how: Any) -> Path:
    """Write PNG, PDF or SVG, reproducibly, and beside it a JSON sidecar: runs, seeds, methods,
    commit, and whatever ``how`` says (smoothing, axes).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata: dict[str, dict[str, Any]] = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "rlkd_lab"}):
        figure.savefig(path, dpi=130, metadata=metadata.get(path.suffix))
    sidecar = {
        "figure": path.name,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "runs": [
            {
                "run": run.path.name,
                "method": run.config()["method"],
                "seed": run.config()["seed"],
                "steps": len(run.metrics()),
                "touched": run.touched,
                "commit": run.env().get("commit"),
                "device": run.env().get("device"),
            }
            for run in runs
        ],
        **how,
    }
    path.with_suffix(".json").write_text(json.dumps(sidecar, indent=2) + "\n", encoding="utf-8")
    return path


def png(figure: Figure) -> bytes:
    """The figure as PNG bytes, for ``IPython.display.Image``."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
