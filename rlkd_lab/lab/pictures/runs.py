"""Pictures of recorded runs: annealing, and the angle between what the reward wants and what the teacher wants."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rlkd_lab.lab.pictures.prediction import BLUE, GREEN, GREY, ORANGE, Control, Picture, blank
from rlkd_lab.lab.plots import STYLES
from rlkd_lab.objectives import METHODS
from rlkd_lab.runs import RunFolder

COSINES = ("interference/cosine", "interference/cosine_reward_method", "interference/cosine_teacher_method")


def kd_share_of_gradient(metrics: pd.DataFrame) -> pd.Series:
    """KD's share of the method's gradient in the steps whose interference was recorded: |y| / (|x| + |y|) with g_M ∝ x·g_R/‖g_R‖ + y·g_T/‖g_T‖.

    x and y follow from the three cosines. The plane of the two gradients is a projection: GRPO's gradient is measured with its own aggregation, so a part of
    g_M lies outside. Empty where nothing was recorded; 0–1.
    """
    if not set(COSINES) <= set(metrics):
        return pd.Series(dtype=float)
    both, reward, teacher = (pd.to_numeric(metrics[name]) for name in COSINES)
    y = (teacher - both * reward).abs()
    x = (reward - both * teacher).abs()
    return (y / (x + y)).dropna()


def kd_share_of_loss(metrics: pd.DataFrame) -> pd.Series:
    """|loss/kd| / (|loss/kd| + |loss/policy|), 0–1. Not a share of the gradient: the policy loss is near 0 however strongly it pulls."""
    if not {"loss/kd", "loss/policy"} <= set(metrics):
        return pd.Series(dtype=float)
    kd, policy = (pd.to_numeric(metrics[name]).abs() for name in ("loss/kd", "loss/policy"))
    return (kd / (kd + policy)).dropna()


def annealing_stack(runs: RunFolder | Sequence[RunFolder], window: int = 5) -> Figure:
    """kd_coef, KD's share and accuracy, one above the other over the same steps.

    The share is that of the gradient where the runs recorded interference (``interference_every``), otherwise that of the loss, and the axis says which.
    Accuracy is held-out accuracy where it was evaluated (points), and the rollouts' own (faint, with a trailing mean).

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
    of_gradient = any(len(kd_share_of_gradient(frame)) for frame in frames if "coef/kd_coef" in frame)
    share = kd_share_of_gradient if of_gradient else kd_share_of_loss
    figure = blank(7.6, 7.4)
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    drawn = [0, 0, 0]
    for run, frame in zip(folders, frames, strict=True):
        config = run.config()
        colour, style = STYLES.get(config["method"], ("#555555", "-"))
        look = {"color": colour, "linestyle": style, "linewidth": 1.8}
        has_teacher_term = "coef/kd_coef" in frame
        coefficient = pd.to_numeric(frame["coef/kd_coef"]) if has_teacher_term else pd.Series([], dtype=float)
        name = f"{METHODS[config['method']].title}, seed {config['seed']}" + ("" if has_teacher_term else " (no kd_coef)")
        top.plot(coefficient.index, coefficient, label=name, **look)
        drawn[0] += has_teacher_term
        shares = share(frame) if has_teacher_term else pd.Series(dtype=float)
        if len(shares):
            middle.plot(shares.index, 100 * shares, marker="o" if len(shares) < 40 else None, markersize=4, **look)
            drawn[1] += 1
        if "accuracy" in frame:
            values = pd.to_numeric(frame["accuracy"]).dropna()
            bottom.plot(values.index, 100 * values, color=colour, alpha=0.25, linewidth=0.8)
            bottom.plot(
                values.index, 100 * values.rolling(window, min_periods=1).mean(), label=f"rollouts, trailing mean of {window}" if not drawn[2] else None, **look
            )
            drawn[2] += 1
        if "eval/accuracy" in frame:
            held_out = pd.to_numeric(frame["eval/accuracy"]).dropna()
            bottom.plot(
                held_out.index, 100 * held_out, "D", color=colour, markeredgecolor="black", markersize=6, label="held-out prompts" if drawn[2] < 2 else None
            )
            drawn[2] += 1
    names = (
        "β: kd_coef",
        "KD's share of the gradient, %\n(from the three cosines)" if of_gradient else "KD's share of |loss|, %\n(not of the gradient)",
        "accuracy, %",
    )
    for axes, label, found in zip((top, middle, bottom), names, drawn, strict=True):
        axes.set_ylabel(label)
        axes.grid(alpha=0.25)
        if not found:
            axes.text(0.5, 0.5, "not recorded", ha="center", va="center", transform=axes.transAxes, color=GREY)
    top.set_ylim(bottom=0)
    for axes in (middle, bottom):
        axes.set_ylim(0, 103)
    for axes in (top, bottom):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=9, loc="upper right" if axes is top else "lower right")
    bottom.set_xlabel("step")
    figure.align_ylabels()
    figure.tight_layout()
    return figure


def annealing_picture(runs: RunFolder | Sequence[RunFolder]) -> Picture:
    """The picture behind its question, for runs with a teacher term.

    Raises:
        ValueError: no run recorded its loss shares.
    """
    folders = [runs] if isinstance(runs, RunFolder) else list(runs)
    if not folders:
        raise ValueError("there is nothing to draw: give at least one run")
    frame = folders[0].metrics()
    recorded, loss = kd_share_of_gradient(frame), kd_share_of_loss(frame)
    share = recorded if len(recorded) else loss
    if len(share) < 2 or "coef/kd_coef" not in frame:
        raise ValueError("this run has no KD share: take a run of kdrl or kdrl_annealed")
    third = max(1, len(share) // 3)
    early, late = float(share.iloc[:third].mean()), float(share.iloc[-third:].mean())
    change = late - early
    what = "gradient" if len(recorded) else "loss"
    return Picture(
        question=f"kd_coef of this run goes from {frame['coef/kd_coef'].iloc[0]:g} to {frame['coef/kd_coef'].iloc[-1]:g}. What happens to KD's share of the"
        f" {what} from the first third of the run to the last?",
        choices=("it falls", "it stays within 5 points", "it grows"),
        answer=0 if change < -0.05 else 2 if change > 0.05 else 1,
        why=f"It goes from {early:.0%} to {late:.0%}. The share depends on the coefficient and on how far the student still is from the"
        " teacher; whether accuracy follows stands below it.",
        draw=lambda window: annealing_stack(folders, window),
        controls={"window": Control("trailing mean, steps", 5, 1, 25, 1)},
    )


def angles(metrics: pd.DataFrame) -> pd.DataFrame:
    """Angles in degrees, 0–180, indexed by step: ``angle`` of reward and teacher gradient; ``floor_reward`` and ``floor_teacher``, of one gradient with itself
    on two halves of the groups.

    Raises:
        ValueError: the run did not record interference.
    """
    if "interference/cosine" not in metrics:
        raise ValueError("this run recorded no interference: train it with --set interference_every=5")
    columns = {"angle": "", "floor_reward": "_split_reward", "floor_teacher": "_split_teacher"}
    cosines = metrics[[f"interference/cosine{suffix}" for suffix in columns.values()]].apply(pd.to_numeric)
    found = np.degrees(np.arccos(cosines.clip(-1, 1)))
    found.columns = list(columns)
    return found.dropna(subset=["angle"])


def gradient_angle(run: RunFolder) -> Figure:
    """The angle between the reward's and the teacher's gradient, step by step, with the angles that noise alone makes between two halves of one batch."""
    found = angles(run.metrics())
    figure = blank(7.6, 4.6)
    axes = figure.subplots()
    axes.axhline(90, color="black", linewidth=0.9)
    for name, colour, label in (
        ("floor_reward", BLUE, "noise floor: reward against itself, halves"),
        ("floor_teacher", ORANGE, "noise floor: teacher against itself, halves"),
    ):
        axes.plot(found.index, found[name], color=colour, linestyle=":", marker="x", markersize=5, linewidth=1.2, label=label)
    axes.plot(found.index, found["angle"], color=GREEN, marker="o", linewidth=2.0, label="reward against teacher, whole batch")
    axes.set_ylim(0, 180)
    axes.set_yticks(range(0, 181, 30))
    for height, word in ((3, "same direction"), (93, "90°: unrelated"), (171, "opposed")):
        axes.text(0.99, height / 180, word, ha="right", va="bottom", fontsize=8, color=GREY, transform=axes.transAxes)
    axes.set_xlabel("step")
    axes.set_ylabel("angle, degrees")
    axes.set_title(f"{METHODS[run.config()['method']].title}: two gradients at the LoRA coordinates", fontsize=11)
    axes.grid(alpha=0.25)
    axes.legend(loc="upper left", frameon=False, fontsize=9)
    figure.tight_layout()
    return figure


def gradient_angle_picture(run: RunFolder) -> Picture:
    """The picture behind its question, for a run trained with ``interference_every``."""
    found = angles(run.metrics())
    if found.empty:
        raise ValueError("this run recorded no interference: train it with --set interference_every=5")
    middle, floor = float(found["angle"].median()), float(pd.concat([found["floor_reward"], found["floor_teacher"]]).median())
    if np.isnan(floor):
        floor_words = "With one group a batch there are no halves, so no noise floor."
    elif middle < floor:
        floor_words = f"Two halves of one batch are {floor:.0f}° apart for one and the same objective: single steps are mostly noise, so compare many."
    else:
        floor_words = f"That is more than the {floor:.0f}° that two halves of one batch are apart for one and the same objective."
    return Picture(
        question="Reward and teacher pull at the same adapter. At what angle, in the median step?",
        choices=("under 60°: much the same way", "60 to 80°: partly", "80 to 100°: unrelated", "over 100°: against each other"),
        answer=int(np.searchsorted([60, 80, 100], middle, side="right")),
        why=f"The median is {middle:.0f}°. {floor_words} Both gradients come from the same completions, so they share noise, which brings them closer.",
        draw=lambda: gradient_angle(run),
    )
