"""Annealing: kd_coef, the part that KD has in training, and accuracy over the same steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rlkd_lab.lab.course.pictures.prediction import GREY, Picture, PictureControl
from rlkd_lab.plots.styles import line, literal, say_empty, style_of, title_of, white_figure
from rlkd_lab.runs import RunFolder


def leaning(metrics: pd.DataFrame) -> pd.DataFrame:
    """Return cosines of the method's gradient, −1 – 1, in the steps that recorded them.

    ``teacher`` is the cosine with OPD's gradient, ``reward`` with GRPO's.
    They are no shares, because the two gradients are not at right angles.
    GRPO's gradient has GRPO's aggregation, so KDRL with kd_coef = 0 may differ from 1.
    """
    columns = {name: f"interference/cosine_{name}_method" for name in ("teacher", "reward")}
    if not set(columns.values()) <= set(metrics):
        return pd.DataFrame(columns=list(columns), dtype=float)
    cosines = {name: pd.to_numeric(metrics[column]) for name, column in columns.items()}
    return pd.DataFrame(cosines).dropna()


def kd_share_of_loss(metrics: pd.DataFrame) -> pd.Series:
    """Return |loss/kd| / (|loss/kd| + |loss/policy|), 0–1.

    It is no share of the gradient: the policy loss is near 0 however strongly it pulls.
    """
    if not {"loss/kd", "loss/policy"} <= set(metrics):
        return pd.Series(dtype=float)
    kd, policy = (pd.to_numeric(metrics[name]).abs() for name in ("loss/kd", "loss/policy"))
    return (kd / (kd + policy)).dropna()


def annealing_stack(runs: RunFolder | Sequence[RunFolder], window: int = 5) -> Figure:
    """Draw kd_coef, KD's part and accuracy, one above the other over the same steps.

    KD's part is the cosine of the gradient with the teacher's and with the reward's, where a
    run recorded interference (``interference_every``). Otherwise it is KD's share of the loss.
    Accuracy has points for held-out prompts, and a trailing mean for rollouts, faint per step.

    Args:
        runs: one or several.
        window: of the trailing mean, in steps.

    Raises:
        ValueError: no runs.
    """
    folders = _folders(runs)
    frames = [run.metrics() for run in folders]
    cosines = any(len(leaning(frame)) for frame in frames if "coef/kd_coef" in frame)
    figure = white_figure(7.6, 7.4)
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    for run, frame in zip(folders, frames, strict=True):
        config = run.config()
        colour, style = style_of(config["method"])
        # Dotted is the untouched fork in every other figure.
        look = line((colour, "-" if style == ":" else style), linewidth=1.8)
        name = literal(f"{title_of(config['method'])}, seed {config['seed']}", legend=True)
        if "coef/kd_coef" in frame:
            coefficient = pd.to_numeric(frame["coef/kd_coef"])
            top.plot(coefficient.index, coefficient, label=name, **look)
            _draw_kd_part(middle, frame, cosines, look)
        else:
            top.plot([], [], label=f"{name} (no kd_coef)", **look)
        _draw_accuracy(bottom, frame, window, look)
    part = "KD's share of |loss|, %\n(not of the gradient)"
    if cosines:
        part = "whom the gradient follows,\ncosine"
    labels = ("β: kd_coef", part, "accuracy, %")
    for axes, label in zip((top, middle, bottom), labels, strict=True):
        axes.set_ylabel(label)
        axes.grid(alpha=0.25)
        if not any(len(curve.get_xdata()) for curve in axes.lines):
            say_empty(axes)
    top.set_ylim(bottom=0)
    middle.set_ylim((min(-0.2, middle.get_ylim()[0]), 1.05) if cosines else (0, 103))
    bottom.set_ylim(0, 103)
    bottom.set_xlabel("step")
    _add_legends(top, middle if cosines else None, bottom)
    figure.align_ylabels()
    figure.tight_layout()
    return figure


def _folders(runs: RunFolder | Sequence[RunFolder]) -> list[RunFolder]:
    folders = [runs] if isinstance(runs, RunFolder) else list(runs)
    if not folders:
        raise ValueError("there is nothing to draw: give at least one run")
    return folders


def _draw_kd_part(axes: Axes, frame: pd.DataFrame, cosines: bool, look: dict[str, Any]) -> None:
    if not cosines:
        shares = kd_share_of_loss(frame)
        axes.plot(shares.index, 100 * shares, **look)
        return
    found = leaning(frame)
    axes.plot(found.index, found["teacher"], marker="o", markersize=5, **look)
    square: dict[str, Any] = {
        "marker": "s",
        "markersize": 5,
        "markerfacecolor": "white",
        "alpha": 0.7,
    }
    axes.plot(found.index, found["reward"], **square, **look)


def _draw_accuracy(axes: Axes, frame: pd.DataFrame, window: int, look: dict[str, Any]) -> None:
    """Draw the accuracy of rollouts and of held-out prompts; the first run names them."""
    first, colour = not axes.lines, look["color"]
    if "accuracy" in frame:
        values = 100 * pd.to_numeric(frame["accuracy"]).dropna()
        axes.plot(values.index, values, color=colour, alpha=0.25, linewidth=0.8)
        smooth = values.rolling(window, min_periods=1).mean()
        label = f"rollouts, trailing mean of {window}" if first else None
        axes.plot(smooth.index, smooth, label=label, **look)
    if "eval/accuracy" in frame:
        points = 100 * pd.to_numeric(frame["eval/accuracy"]).dropna()
        label = "held-out prompts" if first else None
        diamond: dict[str, Any] = {"markeredgecolor": "black", "markersize": 6}
        axes.plot(points.index, points, "D", color=colour, label=label, **diamond)


def _add_legends(top: Axes, cosines: Axes | None, bottom: Axes) -> None:
    if cosines is not None:
        square: dict[str, Any] = {"marker": "s", "markerfacecolor": "white"}
        marks = [
            Line2D([], [], color=GREY, marker="o", label="with the teacher's gradient"),
            Line2D([], [], color=GREY, label="with the reward's gradient", **square),
        ]
        cosines.legend(handles=marks, frameon=False, fontsize=9, loc="lower right")
    if top.get_legend_handles_labels()[0]:
        top.legend(frameon=False, fontsize=9, loc="upper right")
    if bottom.get_legend_handles_labels()[0]:
        bottom.legend(frameon=False, fontsize=9, loc="lower right")


def annealing_picture(runs: RunFolder | Sequence[RunFolder]) -> Picture:
    """Return the question and the picture, for runs with a teacher term.

    Raises:
        ValueError: no runs, or the first run has no teacher term.
    """
    folders = _folders(runs)
    frame = folders[0].metrics()
    cosines, shares = leaning(frame), kd_share_of_loss(frame)
    if "coef/kd_coef" not in frame or max(len(cosines), len(shares)) < 2:
        raise ValueError("this run has no teacher term: take a run of kdrl or kdrl_annealed")
    first, last = frame["coef/kd_coef"].iloc[0], frame["coef/kd_coef"].iloc[-1]
    ask = _ask_cosines(cosines) if len(cosines) >= 2 else _ask_shares(shares)
    question, choices, answer, why = ask
    return Picture(
        question=f"kd_coef of this run goes from {first:g} to {last:g}. {question}",
        choices=choices,
        answer=answer,
        why=why + " Whether accuracy follows stands below it.",
        draw=lambda window: annealing_stack(folders, window),
        controls={"window": PictureControl("trailing mean, steps", 5, 1, 25, 1)},
    )


def _ask_cosines(cosines: pd.DataFrame) -> tuple[str, tuple[str, ...], int, str]:
    """Return question, choices, answer and reason about the last third's gradient."""
    third = max(1, len(cosines) // 3)
    early, late = (
        f"{part['teacher'].mean():.2f} with the teacher's and {part['reward'].mean():.2f}"
        " with the reward's"
        for part in (cosines[:third], cosines[-third:])
    )
    lead = cosines["teacher"] - cosines["reward"]
    return (
        "Whose gradient is the method's own gradient closer to in the last third?",
        ("the reward's", "both alike, within 0.1", "the teacher's"),
        _answer(float(lead.iloc[-third:].mean()), 0.1),
        f"Cosines: {early} in the first third, {late} in the last.",
    )


def _ask_shares(shares: pd.Series) -> tuple[str, tuple[str, ...], int, str]:
    """Return question, choices, answer and reason about KD's share of the loss."""
    third = max(1, len(shares) // 3)
    early, late = float(shares.iloc[:third].mean()), float(shares.iloc[-third:].mean())
    return (
        "What happens to KD's share of the loss from the first third to the last?",
        ("it falls", "it stays within 5 points", "it grows"),
        _answer(late - early, 0.05),
        f"It goes from {early:.0%} to {late:.0%}. That is no share of the gradient: the"
        " policy loss is near 0 however strongly it pulls.",
    )


def _answer(value: float, edge: float) -> int:
    """Return 0 below −edge, 2 above edge, else 1."""
    return 0 if value < -edge else 2 if value > edge else 1
