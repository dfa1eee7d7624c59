"""Which divergence a gradient follows: k1, k2 and k3 as losses against the exact KLs.

The gradients are arrows on a simplex of three tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch
from numpy.typing import NDArray
from torch import Tensor

from rlkd_lab.lab.course.pictures.prediction import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    Picture,
)
from rlkd_lab.objectives import forward_kl, k1, k2, k3, reverse_kl
from rlkd_lab.plots.styles import white_figure

Kind = Literal["reverse", "forward"]
COLOURS: dict[Kind, str] = {"reverse": GREEN, "forward": PURPLE}
EXACT: dict[Kind, Callable[[Tensor, Tensor], Tensor]] = {
    "reverse": reverse_kl,
    "forward": forward_kl,
}
ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
STUDENT, TEACHER = (0.35, 0.45, 0.2), (0.02, 0.38, 0.6)
"""Probabilities of three tokens, for which the two KLs pull in different directions."""


def _logits(student: Sequence[float]) -> Tensor:
    return torch.tensor(student, dtype=torch.float64).log().requires_grad_()


def exact_gradient(
    kind: Kind, student: Sequence[float] = STUDENT, teacher: Sequence[float] = TEACHER
) -> NDArray[np.float64]:
    """Return the gradient of the exact KL at the student's logits, (V,)."""
    logits = _logits(student)
    loss = EXACT[kind](logits.log_softmax(-1), torch.tensor(teacher, dtype=torch.float64).log())
    return torch.autograd.grad(loss, logits)[0].numpy()


def token_gradients(
    estimator: str, student: Sequence[float] = STUDENT, teacher: Sequence[float] = TEACHER
) -> NDArray[np.float64]:
    """Return the gradient of an estimator as a loss at the logits, (V, V).

    Each row belongs to a token that may be sampled.
    """
    logits = _logits(student)
    losses = ESTIMATORS[estimator](
        logits.log_softmax(-1), torch.tensor(teacher, dtype=torch.float64).log()
    )
    return torch.stack(
        [torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in losses]
    ).numpy()


def followed(
    estimator: str, student: Sequence[float] = STUDENT, teacher: Sequence[float] = TEACHER
) -> str:
    """Return which gradient an estimator has in expectation, by enumeration of the tokens.

    The answer is ``zero``, ``reverse`` or ``forward``.

    >>> followed("k2")
    'reverse'
    """
    mean = np.asarray(student) @ token_gradients(estimator, student, teacher)
    if np.allclose(mean, 0.0, atol=1e-10):
        return "zero"
    return next(
        kind
        for kind in COLOURS
        if np.allclose(mean, exact_gradient(kind, student, teacher), atol=1e-10)
    )


_CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2]])

LOW, HIGH = (-0.12, -0.1), (1.12, 0.95)
"""Corners of a panel; the mean's way is drawn from where it stays within."""


def arrow(gradient: NDArray[np.float64], student: Sequence[float] = STUDENT) -> NDArray[np.float64]:
    """Return where a small step against a gradient moves the student on the simplex, (2,).

    The gradient is one at the logits; the move is per unit of step size.
    """
    p = np.asarray(student)
    moved = -(p * gradient - p * (p @ gradient))  # the softmax's Jacobian, diag(p) − p·pᵀ
    return moved @ _CORNERS


def uniforms(seed: int, count: int) -> list[float]:
    """Return numbers in [0, 1) of the generator mulberry32, which a browser can follow exactly."""
    low, state, drawn = 0xFFFFFFFF, seed, []
    for _ in range(count):
        state = (state + 0x6D2B79F5) & low
        mixed = ((state ^ state >> 15) * (state | 1)) & low
        mixed ^= (mixed + (mixed ^ mixed >> 7) * (mixed | 61)) & low
        drawn.append((mixed ^ mixed >> 14) / 2**32)
    return drawn


def estimator_numbers(
    n: int = 20,
    seed: int = 0,
    student: Sequence[float] = STUDENT,
    teacher: Sequence[float] = TEACHER,
) -> dict[str, NDArray[np.float64]]:
    """Return what :func:`estimator_arrows` draws; arguments as there.

    ``k1``, ``k2`` and ``k3`` hold the mean arrows of the first sample, of two, and so on, (n, 2).
    """
    p = np.asarray(student)
    found = {"student": p @ _CORNERS, "teacher": np.asarray(teacher) @ _CORNERS}
    for kind in COLOURS:
        found[kind] = arrow(exact_gradient(kind, student, teacher), student)
    drawn = np.searchsorted(p.cumsum()[:2], uniforms(seed, n), side="right")
    for name in ESTIMATORS:
        steps = [arrow(row, student) for row in token_gradients(name, student, teacher)]
        found[name] = np.array(steps)[drawn].cumsum(0) / np.arange(1, n + 1)[:, None]
    return found


def estimator_arrows(
    n: int = 20,
    seed: int = 0,
    student: Sequence[float] = STUDENT,
    teacher: Sequence[float] = TEACHER,
) -> Figure:
    """Draw the mean arrows of k1, k2 and k3 over ``n`` samples beside the exact arrows.

    Args:
        n: samples drawn from the student, ≥ 1.
        seed: of the draw; the first samples stay the same as n grows.
        student, teacher: probabilities of three tokens, all > 0.
    """
    found = estimator_numbers(n, seed, student, teacher)
    here, there = found["student"], found["teacher"]
    scale = 0.42 / max(float(np.linalg.norm(found[kind])) for kind in COLOURS)
    length = float(np.linalg.norm(found["reverse"]))
    figure = white_figure(11.0, 4.3)
    for axes, name in zip(figure.subplots(1, 3), ESTIMATORS, strict=True):
        _triangle(axes, here, there)
        means = found[name]
        path = here + scale * means
        outside = np.flatnonzero(((path < LOW) | (path > HIGH)).any(axis=1))
        shown = path[outside[-1] + 1 :] if len(outside) else path  # few samples may lie far out
        axes.plot(shown[:, 0], shown[:, 1], color=GREY, linewidth=0.9, alpha=0.8)
        for kind, colour in COLOURS.items():
            _arrow(axes, here, here + scale * found[kind], colour, 5.0, alpha=0.45)
        if np.linalg.norm(scale * means[-1]) > 0.02:
            _arrow(axes, here, path[-1], "black", 1.8)
        share = np.linalg.norm(means[-1]) / length
        title = f"{name} as a loss\nlength {share:.2f} of the reverse arrow"
        axes.set_title(title, fontsize=10)
        axes.set_xlim(LOW[0], HIGH[0])
        axes.set_ylim(LOW[1], HIGH[1])
    figure.legend(handles=_legend(n), loc="lower center", ncols=4, frameon=False, fontsize=9)
    figure.suptitle("Where a small step moves the student: all arrows to one scale", fontsize=11)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    return figure


def _legend(n: int) -> list[Line2D]:
    mean = f"mean of {n} sample{'' if n == 1 else 's'}"
    reverse, forward = "exact: down the reverse KL(π_θ‖π_T)", "exact: down the forward KL(π_T‖π_θ)"
    return [
        Line2D([], [], color="black", linewidth=1.8, label=mean),
        Line2D([], [], color=GREY, linewidth=0.9, label="the mean's way there"),
        Line2D([], [], color=GREEN, linewidth=5, alpha=0.45, label=reverse),
        Line2D([], [], color=PURPLE, linewidth=5, alpha=0.45, label=forward),
    ]


def _triangle(axes: Axes, here: NDArray[np.float64], there: NDArray[np.float64]) -> None:
    """Draw the simplex with student and teacher."""
    edge = np.vstack([_CORNERS, _CORNERS[:1]])
    axes.plot(edge[:, 0], edge[:, 1], color=GREY, linewidth=1)
    for corner, label, way in zip(
        _CORNERS, ("token 0", "token 1", "token 2"), ("top", "top", "bottom"), strict=True
    ):
        axes.text(
            corner[0],
            corner[1] + (-0.03 if way == "top" else 0.03),
            label,
            ha="center",
            va=way,
            fontsize=8,
            color="#444444",
        )
    axes.plot(*here, "o", color=BLUE, markersize=8, zorder=4)
    axes.plot(*there, "s", color=ORANGE, markersize=8, zorder=4)
    axes.annotate(
        "student",
        (here[0], here[1]),
        (-8, -3),
        textcoords="offset points",
        ha="right",
        fontsize=9,
        color=BLUE,
    )
    axes.annotate(
        "teacher",
        (there[0], there[1]),
        (8, 6),
        textcoords="offset points",
        fontsize=9,
        color=ORANGE,
    )
    axes.set_aspect("equal")
    axes.axis("off")


def _arrow(
    axes: Axes,
    start: NDArray[np.float64],
    end: NDArray[np.float64],
    colour: str,
    width: float,
    alpha: float = 1.0,
) -> None:
    axes.add_patch(
        FancyArrowPatch(
            tuple(start),
            tuple(end),
            arrowstyle="-|>",
            mutation_scale=10 + 2 * width,
            color=colour,
            linewidth=width,
            alpha=alpha,
            shrinkA=0,
            shrinkB=0,
            zorder=3,
        )
    )


ARROWS = Picture(
    question="The mean of k1 = log π_θ − log π_T over the student's samples is an unbiased "
    "estimate of KL(π_θ‖π_T). Differentiate it as a loss: "
    "where does its mean arrow point once many samples have come in?",
    choices=(
        "to the teacher, down the reverse KL",
        "to the teacher, down the forward KL",
        "nowhere: it shrinks to 0",
    ),
    answer=2,
    why="An unbiased value says nothing about the gradient. The teacher is a constant in k1, "
    "and the mean of ∇log π_θ over its own samples is 0. k2 follows the reverse KL, "
    "k3, unbiased as well, the forward KL.",
    draw=estimator_arrows,
    explorable="estimators",
)
