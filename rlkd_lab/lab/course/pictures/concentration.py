"""The share of the KL to the teacher that few tokens carry."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from rlkd_lab.lab.course.pictures.prediction import BLUE, GREY, ORANGE, Picture, PictureControl
from rlkd_lab.plots.styles import literal, white_figure


def kl_of_samples(samples: pd.DataFrame) -> NDArray[np.float64]:
    """Return the exact KL(π_old‖π_T) of the next token, (tokens,), nats, ≥ 0.

    Raises:
        ValueError: the run recorded no teacher.
    """
    if "kl_teacher_rev" not in samples or samples["kl_teacher_rev"].isna().any():
        raise ValueError(
            "these samples have no KL to a teacher: take a run with a teacher, recorded by"
            " this version"
        )
    return np.concatenate([np.asarray(row, float) for row in samples["kl_teacher_rev"]]).clip(
        min=0.0
    )  # rounding leaves ±1e-8 where both agree


def share_of_top(kl: ArrayLike, top: float = 0.05) -> float:
    """Return the share of the summed KL that the ``top`` share of tokens carries.

    At least one token counts.

    Raises:
        ValueError: no tokens, or no KL at all.
    """
    ordered = np.sort(np.asarray(kl, dtype=float).ravel())[::-1]
    if len(ordered) == 0 or not ordered.sum() > 0:
        raise ValueError("the KL of these tokens is 0 throughout: there is nothing to share out")
    return float(ordered[: max(1, round(top * len(ordered)))].sum() / ordered.sum())


def kl_concentration(kl: ArrayLike, top: float = 0.05, label: str = "KL to the teacher") -> Figure:
    """Draw the cumulative share of the KL over tokens, largest first.

    A dot marks what the ``top`` share of tokens carries.

    Args:
        kl: per token, (N,), nats, ≥ 0.
        top: share of tokens that is marked, in (0, 1].
        label: what the values are.
    """
    ordered = np.sort(np.asarray(kl, dtype=float).ravel())[::-1]
    carried = share_of_top(ordered, top)
    at = np.arange(len(ordered) + 1) / len(ordered)
    figure = white_figure(7.0, 4.4)
    axes = figure.subplots()
    axes.plot(
        100 * at,
        100 * np.concatenate([[0.0], ordered.cumsum() / ordered.sum()]),
        color=BLUE,
        linewidth=2.2,
        label="tokens, largest KL first",
    )
    axes.plot(
        [0, 100],
        [0, 100],
        color=GREY,
        linestyle="--",
        linewidth=1,
        label="if all tokens carried the same",
    )
    axes.plot([100 * top], [100 * carried], "o", color=ORANGE, markersize=9)
    axes.vlines(100 * top, 0, 100 * carried, color=ORANGE, linewidth=1.2)
    axes.annotate(
        f"the top {top:.0%} carry {carried:.0%}",
        (100 * top, 100 * carried),
        (14, -16),
        textcoords="offset points",
        color=ORANGE,
        fontsize=12,
    )
    axes.set_xlabel("share of tokens, %")
    axes.set_ylabel("share of the KL, %")
    axes.set_title(f"{literal(label)}, {len(ordered)} tokens", fontsize=11)
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 103)
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    figure.tight_layout()
    return figure


def kl_concentration_picture(samples: pd.DataFrame | ArrayLike) -> Picture:
    """Return the question and the picture, from recorded samples or values of tokens."""
    recorded = isinstance(samples, pd.DataFrame)
    kl = (
        kl_of_samples(samples)
        if isinstance(samples, pd.DataFrame)
        else np.asarray(samples, dtype=float)
    )
    carried = share_of_top(kl)
    return Picture(
        question="Student and teacher disagree by some KL at each token. What share of the whole"
        " do the 5 % of tokens with the largest values carry?",
        choices=("under 15 %", "15 to 40 %", "40 to 70 %", "over 70 %"),
        answer=int(np.searchsorted([0.15, 0.4, 0.7], carried, side="right")),
        why=f"Here the top 5 % carry {carried:.0%}. Most tokens follow from what stands before"
        " them, and both models know them; the two part at few forks.",
        draw=lambda top: kl_concentration(
            kl, top / 100, "exact KL(π_old‖π_T)" if recorded else "KL to the teacher"
        ),
        controls={"top": PictureControl("top share of tokens, %", 5, 1, 50, 1)},
    )
