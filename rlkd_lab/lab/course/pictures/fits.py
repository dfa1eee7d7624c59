"""A student with one hump, fitted to a teacher with two by forward and by reverse KL."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from rlkd_lab.lab.course.pictures.estimators import COLOURS, EXACT, Kind
from rlkd_lab.lab.course.pictures.prediction import GREEN, ORANGE, PURPLE, Picture
from rlkd_lab.plots.styles import white_figure

HUMPS = (0.49, 0.02, 0.49)
"""The teacher's probabilities of 0, 1 and 2."""
KINDS: tuple[Kind, Kind] = ("forward", "reverse")


def binomial(q: Tensor) -> Tensor:
    """Return the log-probabilities of Binomial(2, q), (...) → (..., 3)."""
    return torch.stack(
        [2 * torch.log1p(-q), math.log(2) + q.log() + torch.log1p(-q), 2 * q.log()], -1
    )


def binomial_divergence(
    kind: Kind, q: ArrayLike, teacher: Sequence[float] = HUMPS
) -> NDArray[np.float64]:
    """Return the KL of Binomial(2, q) and a teacher on {0, 1, 2}, nats, for each 0 < q < 1."""
    probabilities = torch.as_tensor(np.asarray(q, dtype=float))
    return EXACT[kind](
        binomial(probabilities), torch.tensor(teacher, dtype=torch.float64).log()
    ).numpy()


def binomial_fits(kind: Kind, teacher: Sequence[float] = HUMPS) -> list[float]:
    """Return every q with the smallest divergence, to 1e-4, ascending.

    >>> [round(q, 3) for q in binomial_fits("reverse")]
    [0.024, 0.976]
    """
    q = np.linspace(0.0, 1.0, 10001)[1:-1]
    values = binomial_divergence(kind, q, teacher)
    lowest = [
        i for i in range(1, len(q) - 1) if values[i] <= values[i - 1] and values[i] <= values[i + 1]
    ]
    return [float(q[i]) for i in lowest if values[i] < values.min() + 1e-6]


def hump_numbers(q: float = 0.3, middle: float = 0.02, left: float = 0.5) -> dict[str, Any]:
    """Return what :func:`two_humps` draws; arguments as there."""
    teacher = ((1 - middle) * left, middle, (1 - middle) * (1 - left))
    at = np.linspace(0.002, 0.998, 499)
    found: dict[str, Any] = {"at": at, "teacher": np.asarray(teacher), "student": _probabilities(q)}
    for kind in KINDS:
        fits = binomial_fits(kind, teacher)
        found[kind] = {
            "along": binomial_divergence(kind, at, teacher),
            "here": binomial_divergence(kind, q, teacher),
            "fits": np.asarray(fits),
            "lowest": binomial_divergence(kind, fits, teacher),
            "student": _probabilities(fits[0]),
        }
    return found


def _probabilities(q: float) -> NDArray[np.float64]:
    return binomial(torch.tensor(q, dtype=torch.float64)).exp().numpy()


def two_humps(q: float = 0.3, middle: float = 0.02, left: float = 0.5) -> Figure:
    """Draw both divergences of a Binomial(2, q) student to the teacher as functions of q.

    The right panel has the distributions as bars.

    Args:
        q: of the student that is marked, in (0, 1).
        middle: the teacher's probability of 1, in (0, 1).
        left: the part of the rest that 0 has, in (0, 1); 2 has the other part.
    """
    found = hump_numbers(q, middle, left)
    figure = white_figure(10.4, 4.3)
    left_axes, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    labels: dict[Kind, str] = {"forward": "forward KL(π_T‖π_θ)", "reverse": "reverse KL(π_θ‖π_T)"}
    for kind, label in labels.items():
        colour = COLOURS[kind]
        numbers = found[kind]
        left_axes.plot(found["at"], numbers["along"], color=colour, linewidth=2, label=label)
        marks = {"color": colour, "markersize": 9, "label": "its minimum"}
        left_axes.plot(numbers["fits"], numbers["lowest"], "v", **marks)
        left_axes.plot([q], [numbers["here"]], "o", color="black", markersize=6)
    left_axes.axvline(q, color="black", linewidth=0.9, linestyle=":")
    left_axes.set_ylim(0, 3.2)
    left_axes.set_xlabel("q of the student, Binomial(2, q)")
    left_axes.set_ylabel("divergence, nats")
    above = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "frameon": False}
    left_axes.legend(fontsize=9, ncols=2, **above)
    left_axes.grid(alpha=0.25)
    shown = [
        ("teacher", found["teacher"], ORANGE),
        ("fit of forward KL", found["forward"]["student"], PURPLE),
        ("fit of reverse KL", found["reverse"]["student"], GREEN),
        (f"q = {q:.2f}", found["student"], "black"),
    ]
    for i, (name, probabilities, colour) in enumerate(shown):
        right.bar(
            np.arange(3) + 0.2 * (i - 1.5), probabilities, width=0.18, color=colour, label=name
        )
    right.set_xticks([0, 1, 2], ["0", "1", "2"])
    right.set_xlabel("outcome")
    right.set_ylabel("probability")
    right.set_ylim(0, 1.3)
    right.legend(fontsize=9, ncols=2, loc="upper center", frameon=False)
    figure.tight_layout()
    return figure


HUMPED = Picture(
    question="The teacher says 0 or 2 with 49 % each and hardly ever 1. The student, "
    "Binomial(2, q), has one hump. Where does the *forward* KL, the one that SFT on teacher "
    "traces follows, put most of the student's probability?",
    choices=("on 0 or on 2", "on 1, where the teacher has 2 %", "evenly on all three"),
    answer=1,
    why="Forward KL punishes every outcome of the teacher that the student misses, so "
    "half of the student's mass lies in the valley. Reverse KL punishes what the teacher would not "
    "say: the student takes one hump and forgets the other.",
    draw=two_humps,
    explorable="humps",
)
