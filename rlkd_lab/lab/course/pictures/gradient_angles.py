"""The angle between what the reward wants and what the teacher wants."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rlkd_lab.lab.course.pictures.prediction import BLUE, GREEN, GREY, ORANGE, Picture
from rlkd_lab.plots.styles import line, literal, title_of, white_figure
from rlkd_lab.runs import RunFolder

NOT_RECORDED = "this run recorded no interference: train it with --set interference_every=5"


def angles(metrics: pd.DataFrame) -> pd.DataFrame:
    """Return angles in degrees, 0–180, indexed by step.

    ``angle`` lies between the reward's and the teacher's gradient.
    ``floor_reward`` and ``floor_teacher`` lie between the gradients of one objective on two
    halves of the groups.

    Raises:
        ValueError: the run did not record interference.
    """
    if "interference/cosine" not in metrics:
        raise ValueError(NOT_RECORDED)
    columns = {"angle": "", "floor_reward": "_split_reward", "floor_teacher": "_split_teacher"}
    recorded = metrics[[f"interference/cosine{suffix}" for suffix in columns.values()]]
    cosines = recorded.apply(pd.to_numeric).clip(-1, 1)
    found = np.degrees(np.arccos(cosines))
    found.columns = list(columns)
    return found.dropna(subset=["angle"])


def gradient_angle(run: RunFolder) -> Figure:
    """Draw the angle between the reward's and the teacher's gradient, step by step.

    Crosses show the angles that noise alone makes between two halves of a batch.
    """
    found = angles(run.metrics())
    figure = white_figure(7.6, 4.6)
    axes = figure.subplots()
    axes.axhline(90, color="black", linewidth=0.9)
    for name, colour in (("reward", BLUE), ("teacher", ORANGE)):
        floor = found[f"floor_{name}"]
        label = f"noise floor: {name} against itself, halves"
        look = line((colour, ":"), marker="x", markersize=5, linewidth=1.2)
        axes.plot(found.index, floor, label=label, **look)
    label = "reward against teacher, whole batch"
    axes.plot(found.index, found["angle"], color=GREEN, marker="o", linewidth=2.0, label=label)
    axes.set_ylim(0, 180)
    axes.set_yticks(range(0, 181, 30))
    place: dict[str, Any] = {"ha": "right", "va": "bottom", "transform": axes.transAxes}
    for height, word in ((3, "same direction"), (93, "90°: unrelated"), (171, "opposed")):
        axes.text(0.99, height / 180, word, fontsize=8, color=GREY, **place)
    axes.set_xlabel("step")
    axes.set_ylabel("angle, degrees")
    title = f"{literal(title_of(run.config()['method']))}: two gradients at the LoRA coordinates"
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.25)
    axes.legend(loc="upper left", frameon=False, fontsize=9)
    figure.tight_layout()
    return figure


def gradient_angle_picture(run: RunFolder) -> Picture:
    """Return the question and the picture, for a run trained with ``interference_every``.

    Raises:
        ValueError: the run did not record interference.
    """
    found = angles(run.metrics())
    if found.empty:
        raise ValueError(NOT_RECORDED)
    middle = float(found["angle"].median())
    floor = float(pd.concat([found["floor_reward"], found["floor_teacher"]]).median())
    if np.isnan(floor):
        words = "With one group a batch there are no halves, so no noise floor."
    elif middle < floor:
        words = (
            f"Two halves of one batch are {floor:.0f}° apart for one and the same objective:"
            " single steps are mostly noise, so compare many."
        )
    else:
        words = (
            f"That is more than the {floor:.0f}° that two halves of one batch are apart for"
            " one and the same objective."
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
        why=f"The median is {middle:.0f}°. {words} Both gradients come from the same completions,"
        " so they share noise, which brings them closer.",
        draw=lambda: gradient_angle(run),
    )
