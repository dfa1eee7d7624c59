"""Figures: curves of one run or several, drawn without pyplot and saved with a sidecar that says what went in.

One fixed colour and line style per method (Okabe–Ito, safe for colour-blind readers). Raw values are faint; the line is a trailing mean whose window stands
in the legend; evaluation points are never smoothed.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rlkd_lab.objectives import METHODS
from rlkd_lab.runs import RunFolder

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
    "kl_ref": "KL(student‖reference), nats per token",
    "grad_norm": "gradient norm",
}
"""What the y-axes are called."""

MAIN = ("reward", "kl_teacher_rev", "completions/mean_length")
ALL = ("reward", "kl_teacher_rev", "completions/mean_length", "entropy", "clip_ratio/high", "eval/accuracy")


def x_values(frame: pd.DataFrame, x: XAxis) -> pd.Series:
    """Steps, generated tokens so far, or seconds so far."""
    if x == "tokens":
        return frame["num_tokens"]
    if x == "seconds":
        return frame["step_time"].cumsum()
    return frame.index.to_series()


def draw_metric(axes: Axes, runs: Sequence[RunFolder], metric: str, *, x: XAxis = "steps", window: int = 9) -> None:
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
            label = METHODS[method].title + (f", {seeds} runs" if seeds > 1 else "")
            labelled.add(method)
        if metric.startswith("eval/"):
            axes.plot(at, values, color=colour, linestyle=style, marker="o", markersize=4, label=label)
        else:
            axes.plot(at, values, color=colour, alpha=0.25, linewidth=0.8)
            axes.plot(at, values.rolling(window, min_periods=1).mean(), color=colour, linestyle=style, linewidth=1.8, label=label)
    axes.set_ylabel(PANELS.get(metric, metric))
    axes.set_xlabel({"steps": "step", "tokens": "generated tokens", "seconds": "seconds"}[x])
    axes.grid(alpha=0.25)
    if metric.startswith("eval/"):
        axes.set_ylim(0, 1)
    if not labelled:
        axes.text(0.5, 0.5, "not recorded", ha="center", va="center", transform=axes.transAxes, color="#777777")


def plot_runs(runs: Sequence[RunFolder], metrics: Sequence[str] = MAIN, *, x: XAxis = "steps", window: int = 9, title: str | None = None) -> Figure:
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
    heading = f"trailing mean of {window} steps · " + (f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds")
    if found:
        figure.legend(found.values(), found.keys(), loc="lower center", ncols=min(4, len(found)), title=heading, frameon=False, fontsize=9, title_fontsize=8)
    if title:
        figure.suptitle(title)
    height = figure.get_figheight()
    rows_of_legend = -(-len(found) // 4)
    figure.tight_layout(rect=(0, (0.35 + 0.22 * rows_of_legend) / height, 1, 1))
    return figure


def save_figure(figure: Figure, path: str | Path, runs: Sequence[RunFolder], **how: Any) -> Path:
    """Write PNG, PDF or SVG, reproducibly, and beside it a JSON sidecar: runs, seeds, methods, commit, and whatever ``how`` says (smoothing, axes)."""
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
            {"run": run.path.name, "method": run.config()["method"], "seed": run.config()["seed"], "steps": len(run.metrics()), "touched": run.touched,
             "commit": run.env().get("commit"), "device": run.env().get("device")}
            for run in runs
        ],
        **how,
    }  # fmt: skip
    path.with_suffix(".json").write_text(json.dumps(sidecar, indent=2) + "\n")
    return path


def png(figure: Figure) -> bytes:
    """The figure as PNG bytes, for ``IPython.display.Image``."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
