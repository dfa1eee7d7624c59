"""Pictures of recorded runs: annealing, and the angle between what the reward wants and what
the teacher wants.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rlkd_lab.lab.pictures.prediction import BLUE, GREEN, GREY, ORANGE, Control, Picture, blank
from rlkd_lab.lab.plots import STYLES, literal
from rlkd_lab.objectives import METHODS
from rlkd_lab.runs import RunFolder


def leaning(metrics: pd.DataFrame) -> pd.DataFrame:
    """Cosine of the method's gradient with the ``teacher``'s (on-policy KD's) and with the
    ``reward``'s (GRPO's), −1 – 1, in the steps that recorded it.

    These are no shares: the two gradients are not at right angles, and GRPO's is measured with its
    own aggregation, so that KDRL with kd_coef = 0 need not have a cosine of 1 with it.
    """
    columns = {name: f"interference/cosine_{name}_method" for name in ("teacher", "reward")}
    if not set(columns.values()) <= set(metrics):
        return pd.DataFrame(columns=list(columns), dtype=float)
    return pd.DataFrame(
        {name: pd.to_numeric(metrics[column]) for name, column in columns.items()}
    ).dropna()


def kd_share_of_loss(metrics: pd.DataFrame) -> pd.Series:
    """|loss/kd| / (|loss/kd| + |loss/policy|), 0–1.

    Not a share of the gradient: the policy loss is near 0 however strongly it pulls.
    """
    if not {"loss/kd", "loss/policy"} <= set(metrics):
        return pd.Series(dtype=float)
    kd, policy = (pd.to_numeric(metrics[name]).abs() for name in ("loss/kd", "loss/policy"))
    return (kd / (kd + policy)).dropna()


def annealing_stack(runs: RunFolder | Sequence[RunFolder], window: int = 5) -> Figure:
    """kd_coef, KD's part and accuracy, one above the other over the same steps.

    KD's part is whom the gradient follows (cosines with the teacher's and the reward's) where a run
    recorded interference (``interference_every``), otherwise KD's share of the loss; the axis says
    which. Accuracy: on held-out prompts (points), and the rollouts' own (faint, with a trailing
    mean).

    Args:
        runs: one or several.
        window: of the trailing mean, in steps.

    Raises:
        ValueError: no runs.
    """
    folders = [runs] if isinstance(runs, RunFolder) else list(runs)
    if not folders:
        raise ValueError("there is nothing to draw: give at least one run")
    frames = [run.metrics() for run in folders]
    cosines = any(len(leaning(frame)) for frame in frames if "coef/kd_coef" in frame)
    figure = blank(7.6, 7.4)
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    drawn = [0, 0, 0]
    for run, frame in zip(folders, frames, strict=True):
        config = run.config()
        colour, style = STYLES.get(config["method"], ("#555555", "-"))
        look = {
            "color": colour,
            "linestyle": "-" if style == ":" else style,
            "linewidth": 1.8,
        }  # dotted is the untouched twin everywhere else
        has_teacher_term = "coef/kd_coef" in frame
        coefficient = (
            pd.to_numeric(frame["coef/kd_coef"]) if has_teacher_term else pd.Series([], dtype=float)
        )
        name = literal(
            f"{METHODS[config['method']].title}, seed {config['seed']}"
            + ("" if has_teacher_term else " (no kd_coef)"),
            legend=True,
        )
        top.plot(coefficient.index, coefficient, label=name, **look)
        drawn[0] += has_teacher_term
        drawn[1] += has_teacher_term and _kd_part(middle, frame, cosines, look)
        if "accuracy" in frame:
            values = pd.to_numeric(frame["accuracy"]).dropna()
            bottom.plot(values.index, 100 * values, color=colour, alpha=0.25, linewidth=0.8)
            bottom.plot(
                values.index,
                100 * values.rolling(window, min_periods=1).mean(),
                label=f"rollouts, trailing mean of {window}" if not drawn[2] else None,
                **look,
            )
            drawn[2] += 1
        if "eval/accuracy" in frame:
            held_out = pd.to_numeric(frame["eval/accuracy"]).dropna()
            bottom.plot(
                held_out.index,
                100 * held_out,
                "D",
                color=colour,
                markeredgecolor="black",
                markersize=6,
                label="held-out prompts" if drawn[2] < 2 else None,
            )
            drawn[2] += 1
    names = (
        "β: kd_coef",
        "whom the gradient follows,\ncosine"
        if cosines
        else "KD's share of |loss|, %\n(not of the gradient)",
        "accuracy, %",
    )
    for axes, label, found in zip((top, middle, bottom), names, drawn, strict=True):
        axes.set_ylabel(label)
        axes.grid(alpha=0.25)
        if not found:
            axes.text(
                0.5,
                0.5,
                "not recorded",
                ha="center",
                va="center",
                transform=axes.transAxes,
                color=GREY,
            )
    top.set_ylim(bottom=0)
    middle.set_ylim((min(-0.2, middle.get_ylim()[0]), 1.05) if cosines else (0, 103))
    bottom.set_ylim(0, 103)
    if cosines:
        marks = [
            Line2D([], [], color=GREY, marker="o", label="with the teacher's gradient"),
            Line2D(
                [],
                [],
                color=GREY,
                marker="s",
                markerfacecolor="white",
                label="with the reward's gradient",
            ),
        ]
        middle.legend(handles=marks, frameon=False, fontsize=9, loc="lower right")
    for axes in (top, bottom):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(
                frameon=False, fontsize=9, loc="upper right" if axes is top else "lower right"
            )
    bottom.set_xlabel("step")
    figure.align_ylabels()
    figure.tight_layout()
    return figure


def _kd_part(axes: Axes, frame: pd.DataFrame, cosines: bool, look: dict[str, Any]) -> bool:
    if not cosines:
        shares = kd_share_of_loss(frame)
        axes.plot(shares.index, 100 * shares, **look)
        return len(shares) > 0
    found = leaning(frame)
    axes.plot(found.index, found["teacher"], marker="o", markersize=5, **look)
    axes.plot(
        found.index,
        found["reward"],
        marker="s",
        markersize=5,
        markerfacecolor="white",
        alpha=0.7,
        **look,
    )
    return len(found) > 0


def annealing_picture(runs: RunFolder | Sequence[RunFolder]) -> Picture:
    """The picture behind its question, for runs with a teacher term.

    Raises:
        ValueError: no run recorded its loss shares.
    """
    folders = [runs] if isinstance(runs, RunFolder) else list(runs)
    if not folders:
        raise ValueError("there is nothing to draw: give at least one run")
    frame = folders[0].metrics()
    lean, loss = leaning(frame), kd_share_of_loss(frame)
    if "coef/kd_coef" not in frame or max(len(lean), len(loss)) < 2:
        raise ValueError("this run has no teacher term: take a run of kdrl or kdrl_annealed")
    first, last = frame["coef/kd_coef"].iloc[0], frame["coef/kd_coef"].iloc[-1]
    recorded = len(lean) >= 2
    if recorded:
        value, edge = lean["teacher"] - lean["reward"], 0.1
        what, choices = (
            "Whose gradient is the method's own gradient closer to in the last third?",
            ("the reward's", "both alike, within 0.1", "the teacher's"),
        )
    else:
        value, edge = loss, 0.05
        what, choices = (
            "What happens to KD's share of the loss from the first third to the last?",
            ("it falls", "it stays within 5 points", "it grows"),
        )
    third = max(1, len(value) // 3)
    early, late = float(value.iloc[:third].mean()), float(value.iloc[-third:].mean())
    decided = late if recorded else late - early
    if recorded:
        ends = [
            f"{part['teacher'].mean():.2f} with the teacher's and {part['reward'].mean():.2f}"
            " with the reward's"
            for part in (lean[:third], lean[-third:])
        ]
        why = f"Cosines: {ends[0]} in the first third, {ends[1]} in the last."
    else:
        why = (
            f"It goes from {early:.0%} to {late:.0%}. That is no share of the gradient: the"
            " policy loss is near 0 however strongly it pulls."
        )
    return Picture(
        question=f"kd_coef of this run goes from {first:g} to {last:g}. {what}",
        choices=choices,
        answer=0 if decided < -edge else 2 if decided > edge else 1,
        why=why + " Whether accuracy follows stands below it.",
        draw=lambda window: annealing_stack(folders, window),
        controls={"window": Control("trailing mean, steps", 5, 1, 25, 1)},
    )


def angles(metrics: pd.DataFrame) -> pd.DataFrame:
    """Angles in degrees, 0–180, indexed by step: ``angle`` of reward and teacher gradient;
    ``floor_reward`` and ``floor_teacher``, of one gradient with itself on two halves of the groups.

    Raises:
        ValueError: the run did not record interference.
    """
    if "interference/cosine" not in metrics:
        raise ValueError(
            "this run recorded no interference: train it with --set interference_every=5"
        )
    columns = {"angle": "", "floor_reward": "_split_reward", "floor_teacher": "_split_teacher"}
    cosines = metrics[[f"interference/cosine{suffix}" for suffix in columns.values()]].apply(
        pd.to_numeric
    )
    found = np.degrees(np.arccos(cosines.clip(-1, 1)))
    found.columns = list(columns)
    return found.dropna(subset=["angle"])


def gradient_angle(run: RunFolder) -> Figure:
    """The angle between the reward's and the teacher's gradient, step by step, with the angles
    that noise alone makes between two halves of one batch.
    """
    found = angles(run.metrics())
    figure = blank(7.6, 4.6)
    axes = figure.subplots()
    axes.axhline(90, color="black", linewidth=0.9)
    for name, colour, label in (
        ("floor_reward", BLUE, "noise floor: reward against itself, halves"),
        ("floor_teacher", ORANGE, "noise floor: teacher against itself, halves"),
    ):
        axes.plot(
            found.index,
            found[name],
            color=colour,
            linestyle=":",
            marker="x",
            markersize=5,
            linewidth=1.2,
            label=label,
        )
    axes.plot(
        found.index,
        found["angle"],
        color=GREEN,
        marker="o",
        linewidth=2.0,
        label="reward against teacher, whole batch",
    )
    axes.set_ylim(0, 180)
    axes.set_yticks(range(0, 181, 30))
    for height, word in ((3, "same direction"), (93, "90°: unrelated"), (171, "opposed")):
        axes.text(
            0.99,
            height / 180,
            word,
            ha="right",
            va="bottom",
            fontsize=8,
            color=GREY,
            transform=axes.transAxes,
        )
    axes.set_xlabel("step")
    axes.set_ylabel("angle, degrees")
    axes.set_title(
        f"{literal(METHODS[run.config()['method']].title)}: two gradients at the LoRA coordinates",
        fontsize=11,
    )
    axes.grid(alpha=0.25)
    axes.legend(loc="upper left", frameon=False, fontsize=9)
    figure.tight_layout()
    return figure


def gradient_angle_picture(run: RunFolder) -> Picture:
    """The picture behind its question, for a run trained with ``interference_every``."""
    found = angles(run.metrics())
    if found.empty:
        raise ValueError(
            "this run recorded no interference: train it with --set interference_every=5"
        )
    middle, floor = (
        float(found["angle"].median()),
        float(pd.concat([found["floor_reward"], found["floor_teacher"]]).median()),
    )
    if np.isnan(floor):
        floor_words = "With one group a batch there are no halves, so no noise floor."
    elif middle < floor:
        floor_words = (
            f"Two halves of one batch are {floor:.0f}° apart for one and the same"
            " objective: single steps are mostly noise, so compare many."
        )
    else:
        floor_words = (
            f"That is more than the {floor:.0f}° that two halves of one batch are apart"
            " for one and the same objective."
        )
    return Picture(
        question="Reward and teacher pull at the same adapter. At what angle, in the median step?",
        choices=(
            "under 60°: much the same way",
            "60 to 80°: partly",
            "80 to 100°: unrelated",
            "over 100°: against each other",
        ),
        answer=int(np.searchsorted([60, 80, 100], middle, side="right")),
        why=f"The median is {middle:.0f}°. {floor_words} Both gradients come from the same"
        " completions, so they share noise, which brings them closer.",
        draw=lambda: gradient_angle(run),
    )
