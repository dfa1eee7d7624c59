"""Groups of completions: their advantages, and where the teacher has a weight."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import ArrayLike, NDArray

from rlkd_lab.lab.course.pictures.prediction import BLUE, ORANGE, Picture, PictureControl
from rlkd_lab.objectives import group_advantages
from rlkd_lab.objectives.advantages import reward_guided_mask
from rlkd_lab.objectives.settings import CHOICES
from rlkd_lab.plots.styles import white_figure

EVEN = ((1.0, 1.0, 0.0, 0.0), (0.51, 0.51, 0.5, 0.5), (1.0, 0.0, 0.0, 0.0))


def advantages_of(rewards: Sequence[float], scale: bool = True) -> NDArray[np.float64]:
    """Return the group-relative advantages of one group, (G,)."""
    return group_advantages(
        torch.tensor(list(rewards), dtype=torch.float64),
        torch.zeros(len(rewards), dtype=torch.long),
        scale,
    ).numpy()


def group_advantage(groups: Sequence[Sequence[float]] = EVEN) -> Figure:
    """Draw the advantages of each completion, group by group.

    Above they are divided by the spread (GRPO), below they are not (Dr. GRPO).

    Args:
        groups: rewards, two or more completions a group.
    """
    figure = white_figure(8.4, 6.0)
    panels = figure.subplots(2, 1)
    crowded = sum(map(len, groups)) > 20
    for axes, scale, name in (
        (panels[0], True, "GRPO: (r − mean) / std"),
        (panels[1], False, "Dr. GRPO: r − mean"),
    ):
        position, ticks, labels = 0, [], []
        values: list[float] = []
        for rewards in groups:
            credit = advantages_of(rewards, scale)
            places = position + np.arange(len(rewards))
            axes.bar(places, credit, color=np.where(credit >= 0, BLUE, ORANGE), width=0.8)
            for place, value in zip(places, credit, strict=True) if not crowded else ():
                axes.annotate(
                    f"{value:+.2f}",
                    (place, value),
                    (0, 3 if value >= 0 else -11),
                    textcoords="offset points",
                    ha="center",
                    fontsize=8,
                )
            ticks += list(places)
            labels += [f"{reward:g}" for reward in rewards]
            values += list(credit)
            position += len(rewards) + 1
        axes.axhline(0, color="black", linewidth=0.8)
        limit = 1.25 * max(0.05, max(abs(value) for value in values))
        axes.set_ylim(-limit, limit)
        axes.set_xticks(ticks, labels, fontsize=8, rotation=90 if crowded else 0)
        axes.set_xlabel("reward of each completion, group by group")
        axes.set_ylabel("advantage")
        axes.set_title(name, fontsize=11)
        axes.grid(axis="y", alpha=0.25)
    figure.tight_layout()
    return figure


def read_groups(text: str) -> list[list[float]]:
    """Return a text such as ``1, 1, 0, 0 | .5, .6`` as groups of rewards.

    Raises:
        ValueError: the text cannot be read; the message says what is wrong.
    """
    try:
        groups = [
            [float(number) for number in re.split(r"[,\s]+", part.strip())]
            for part in text.split("|")
        ]
    except ValueError:
        raise ValueError(
            f"{text!r} cannot be read: write rewards as 1, 1, 0, 0 and put | between groups"
        ) from None
    if any(len(group) < 2 for group in groups) or not all(
        np.isfinite(number) for group in groups for number in group
    ):
        raise ValueError(
            "every group needs two or more finite rewards: one completion has nothing to be"
            " compared with"
        )
    if sum(map(len, groups)) > 40:
        raise ValueError("at most 40 rewards fit into the picture")
    return groups


SPREAD = Picture(
    question="One group has the rewards 1, 1, 0, 0, another .51, .51, .50, .50, fifty times "
    "closer together. How much larger are the first one's advantages in GRPO, which divides by "
    "the spread?",
    choices=("fifty times", "about seven times (the square root)", "hardly at all"),
    answer=2,
    why="The division makes every group equally loud: a hair's breadth counts like right "
    "against wrong, and a lone success in a hard group is pushed hardest. Dr. GRPO leaves the "
    "spread in. Groups without any spread give 0 in both.",
    draw=lambda text: group_advantage(read_groups(text)),
    controls={
        "text": PictureControl(
            "rewards, | between groups", "1, 1, 0, 0 | .51, .51, .5, .5 | 1, 0, 0, 0"
        )
    },
)

GRID = (
    (1, 1, 0, 1, 0, 1, 1, 0),
    (0, 0, 0, 0, 0, 0, 0, 0),
    (0, 1, 0, 0, 0, 0, 0, 0),
    (1, 1, 1, 1, 1, 1, 1, 1),
    (0, 0, 0, 1, 0, 0, 1, 0),
)


def mask_grid(correct: ArrayLike = GRID) -> Figure:
    """Draw right and wrong completions, and for each ``kd_mask`` where the teacher has a weight.

    Sign and colour say right or wrong. Strong colour and T: the teacher has a weight.

    Args:
        correct: (prompts, samples) of 0 and 1; a row is a group.
    """
    right = torch.as_tensor(np.asarray(correct, dtype=float))
    prompts, samples = right.shape
    groups = torch.arange(prompts).repeat_interleave(samples)
    figure = white_figure(11.0, 1.8 + 0.36 * prompts)
    for axes, kind in zip(figure.subplots(1, 3), CHOICES["kd_mask"], strict=True):
        mask = reward_guided_mask(kind, right.flatten(), groups)  # type: ignore[arg-type]
        speaks = mask.reshape(prompts, samples)
        for row, column in np.ndindex(prompts, samples):
            _draw_cell(axes, row, column, bool(right[row, column]), bool(speaks[row, column]))
        axes.set_xlim(0, samples)
        axes.set_ylim(prompts, 0)
        axes.set_xticks(np.arange(samples) + 0.47, range(1, samples + 1), fontsize=8)
        axes.set_yticks(np.arange(prompts) + 0.47, range(1, prompts + 1), fontsize=8)
        axes.set_xlabel("sample")
        axes.set_ylabel("prompt")
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_title(
            f"kd_mask={kind}\nthe teacher speaks on {float(speaks.mean()):.0%}", fontsize=10
        )
    words = "T, strong colour: M = 1, the teacher speaks"
    handles = [
        Patch(color=BLUE, label="+ right"),
        Patch(color=ORANGE, label="− wrong"),
        Patch(color="#333333", alpha=0.85, label=words),
        Patch(color="#333333", alpha=0.15, label="pale: M = 0"),
    ]
    figure.legend(handles=handles, loc="lower center", ncols=4, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.35 / figure.get_figheight(), 1, 1))
    return figure


def _draw_cell(axes: Axes, row: int, column: int, good: bool, on: bool) -> None:
    """Draw a completion: right or wrong, and whether the teacher has a weight."""
    look: dict[str, Any] = {"facecolor": BLUE if good else ORANGE, "alpha": 0.85 if on else 0.15}
    axes.add_patch(Rectangle((column, row), 0.94, 0.94, linewidth=0, **look))
    axes.text(
        column + 0.47,
        row + 0.5,
        ("+" if good else "−") + (" T" if on else ""),
        ha="center",
        va="center",
        fontsize=9,
        color="white" if on else "#333333",
        fontweight="bold" if on else None,
    )


def drawn_grid(
    success: float, prompts: int = 6, samples: int = 8, seed: int = 0
) -> NDArray[np.float64]:
    """Return right and wrong completions, (prompts, samples), with a mean success rate.

    Prompts differ in difficulty: each has a rate from a Beta with mean ``success``.
    """
    rng = np.random.default_rng(seed)
    rates = rng.beta(max(success, 1e-3), max(1 - success, 1e-3), size=(prompts, 1))
    return (rng.random((prompts, samples)) < rates).astype(float)


MASKS = Picture(
    question="Eight completions of one prompt, one of them right. KDRL with kd_mask=group_wrong:"
    " on how many of them does the teacher speak?",
    choices=("all eight", "the seven wrong ones", "none"),
    answer=2,
    why="group_wrong asks the teacher only where nobody in the group is right: "
    "one success and the reward alone speaks. wrong silences it on the right ones alone.",
    draw=lambda success, seed: mask_grid(drawn_grid(success, seed=seed)),
    controls={
        "success": PictureControl("mean success rate", 0.4, 0.0, 1.0),
        "seed": PictureControl("draw", 1, 0, 20, 1),
    },
)
