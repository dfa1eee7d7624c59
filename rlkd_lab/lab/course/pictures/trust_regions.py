"""TRRD's trust region: where its gradient is not 0, over two log-ratios.

Gradients come from autograd of the functions that the trainer calls.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from rlkd_lab.lab.course.pictures.prediction import BLUE, GREEN, GREY, ORANGE, Picture
from rlkd_lab.objectives import TokenBatch, group_advantages
from rlkd_lab.objectives.surrogates import clipped_surrogate, log_importance, trrd_log_ratio
from rlkd_lab.plots.styles import white_figure
from rlkd_lab.training.samples import counted_of


def trrd_gradient(
    gap: ArrayLike,
    moved: ArrayLike,
    advantages: ArrayLike,
    alpha: float = 0.5,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    gap_bound: float | None = None,
    ratio_cap: float | None = None,
) -> NDArray[np.float64]:
    """Return the gradient of TRRD's objective at log π_θ, (N,); exactly 0 for dead tokens.

    Args:
        gap: x = log π_old/π_T, (N,) nats.
        moved: y = log π_θ/π_old, (N,) nats, or one for all.
        advantages: A, (N,), or one for all.
        alpha: α in [0, 1]; 1 is GRPO.
        clip_low, clip_high: ε_low, ε_high.
        gap_bound: bound on |log π_θ/π_T| inside the ratio; ``None`` is off.
        ratio_cap: dual clip where A < 0; ``None`` is off.
    """
    arrays = [np.atleast_1d(np.asarray(each, float)) for each in (gap, moved, advantages)]
    x, y, credit = (torch.as_tensor(part.copy())[None] for part in np.broadcast_arrays(*arrays))
    # only differences count, so the teacher may stand at 0
    logps: Tensor = (x + y).requires_grad_()
    batch = TokenBatch(logps, torch.ones_like(x), old_logps=x, teacher_logps=torch.zeros_like(x))
    log_ratio, _ = trrd_log_ratio(batch, log_importance(batch), alpha, gap_bound)
    loss, _ = clipped_surrogate(log_ratio, credit, clip_low, clip_high, ratio_cap)
    (gradient,) = torch.autograd.grad(loss.sum(), logps)
    return -gradient[0].numpy()


def dead_threshold(
    alpha: float, sign: float, clip: float = 0.2, gap_bound: float | None = None
) -> float:
    """Return the probability ratio of the models above which a token is dead at step 0.

    π_θ = π_old. The value comes from a search on the gradient; it is inf where none is dead.

    Args:
        alpha: α in [0, 1).
        sign: of A. For A > 0 the ratio is π_old/π_T, for A < 0 it is π_T/π_old.
        clip: ε on either side.
        gap_bound: as in :func:`trrd_gradient`.

    >>> round(dead_threshold(0.5, 1.0), 4)
    1.44
    """

    low, high = 0.0, 50.0
    for _ in range(6):
        gaps = np.linspace(low, high, 1001)
        dead = trrd_gradient(math.copysign(1, sign) * gaps, 0.0, sign, alpha, clip, clip, gap_bound)
        if not (dead == 0).any():
            return math.inf
        first = max(int((dead == 0).argmax()), 1)
        low, high = gaps[first - 1], gaps[first]
    return math.exp(high)


def trrd_tokens(samples: pd.DataFrame) -> pd.DataFrame:
    """Return the tokens of a recorded step, a row each.

    Columns: ``gap`` (log π_old/π_T), ``moved`` (0: recorded before the update) and
    ``advantages`` (group-relative).

    Raises:
        ValueError: the run recorded no teacher.
    """
    if "teacher_logps" not in samples or samples["teacher_logps"].isna().any():
        raise ValueError("these samples have no teacher_logps: take a run with a teacher")
    rewards = torch.tensor(samples["reward"].to_numpy(float))
    groups = torch.tensor(samples["group"].to_numpy(int))
    credit = group_advantages(rewards, groups, counted=counted_of(samples)).numpy()
    pairs = zip(samples["logps"], samples["teacher_logps"], strict=True)
    gap = [np.asarray(old, float) - np.asarray(teacher, float) for old, teacher in pairs]
    lengths = [len(part) for part in gap]
    return pd.DataFrame(
        {"gap": np.concatenate(gap), "moved": 0.0, "advantages": np.repeat(credit, lengths)}
    )


def trust_region_numbers(
    alpha: float = 0.5,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    gap_bound: float | None = 1.0,
    ratio_cap: float | None = 3.0,
    tokens: pd.DataFrame | None = None,
) -> dict[str, Any]:
    """Return what :func:`trust_region` draws; arguments as there.

    ``positive`` and ``negative`` say for each point whether its gradient is 0 (0), whether the
    gap bound acts (1), or neither (2). ``thresholds`` are those of :func:`dead_threshold`.
    """
    settings = (alpha, clip_low, clip_high, gap_bound, ratio_cap)
    axis = _GapAxis(tokens)
    gaps = axis.gap(np.linspace(-axis.edge, axis.edge, 251))
    moves = np.linspace(-1.2, 1.2, 241)
    x, y = np.meshgrid(gaps, moves)
    bounded = np.zeros(x.shape, bool)
    if gap_bound is not None and alpha < 1:  # α = 1 has no teacher's part that could be bounded
        bounded = np.abs(x + y) > gap_bound

    def states(sign: float) -> NDArray[np.int_]:
        gradient = trrd_gradient(x.ravel(), y.ravel(), sign, *settings).reshape(x.shape)
        return np.where(gradient == 0, 0, np.where(bounded, 1, 2))

    return {
        "gaps": gaps,
        "moves": moves,
        "positive": states(1.0),
        "negative": states(-1.0),
        "thresholds": [
            dead_threshold(alpha, sign, clip, gap_bound)
            for sign, clip in ((1.0, clip_high), (-1.0, clip_low))
        ],
        "tokens": None
        if tokens is None
        else trrd_gradient(tokens["gap"], tokens["moved"], tokens["advantages"], *settings),
    }


def trust_region(
    alpha: float = 0.5,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    gap_bound: float | None = 1.0,
    ratio_cap: float | None = 3.0,
    tokens: pd.DataFrame | None = None,
) -> Figure:
    """Draw where TRRD's gradient is not 0, over log π_old/π_T and log π_θ/π_old.

    The left panel has A > 0, the right one A < 0; dead tokens are hollow.

    Args:
        alpha: α in [0, 1]; 1 is GRPO, whose band is level.
        clip_low, clip_high: ε_low, ε_high.
        gap_bound: ``trrd_gap_bound`` in nats, or ``None``.
        ratio_cap: dual clip, or ``None``.
        tokens: ``gap``, ``moved``, ``advantages``, a row a token, as :func:`trrd_tokens`
            makes them.
    """
    found = trust_region_numbers(alpha, clip_low, clip_high, gap_bound, ratio_cap, tokens)
    axis = _GapAxis(tokens)
    figure = white_figure(10.4, 4.9)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, sign, colour in zip(panels, (1.0, -1.0), (BLUE, ORANGE), strict=True):
        _draw_region(axes, axis, found["positive" if sign > 0 else "negative"])
        words = ""
        if tokens is not None:
            of_sign = np.sign(tokens["advantages"].to_numpy(float)) == sign
            words = _dots(axes, tokens[of_sign], found["tokens"][of_sign] == 0, colour, axis)
        axes.set_title(f"A {'>' if sign > 0 else '<'} 0 {words}", fontsize=11)
        axis.finish(axes)
        axes.set_ylim(-1.2, 1.2)
    panels[0].set_ylabel("log π_θ/π_old   (0: before any update)", fontsize=9)
    handles = _region_legend(tokens is not None)
    bound, cap = ("off" if value is None else f"{value:g}" for value in (gap_bound, ratio_cap))
    title = f"TRRD at α = {alpha:.2f}, gap bound {bound}, ratio cap {cap}"
    figure.suptitle(title, fontsize=11)
    figure.legend(handles=handles, loc="lower center", ncols=3, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.06 + 0.05 * (len(handles) > 3), 1, 1))
    return figure


class _GapAxis:
    """The x-axis: log π_old/π_T, linear, or logarithmic further out for distant tokens."""

    def __init__(self, tokens: pd.DataFrame | None) -> None:
        self.furthest = 0.0 if tokens is None else float(tokens["gap"].abs().max())
        self.far = self.furthest > 2.4  # a few tokens lie at 10 nats and more
        self.edge = float(self.place(1.3 * self.furthest if self.far else 2.5))

    def place(self, gap: Any) -> Any:
        """Return where a gap in nats stands on the axis."""
        return np.arcsinh(2 * gap) if self.far else gap

    def gap(self, place: Any) -> Any:
        """Return the gap in nats at a place on the axis."""
        return np.sinh(place) / 2 if self.far else place

    def finish(self, axes: Axes) -> None:
        """Set label, limits and ticks."""
        further = "; logarithmic further out)" if self.far else ")"
        label = "log π_old/π_T\n(left: teacher likes it more; right: less" + further
        axes.set_xlabel(label, fontsize=9)
        axes.set_xlim(-self.edge, self.edge)
        if self.far:
            gaps = (-10, -5, -2, -1, -0.3, 0, 0.3, 1, 2, 5, 10)
            ticks = [tick for tick in gaps if abs(tick) < 1.1 * self.furthest]
            places = [float(self.place(tick)) for tick in ticks]
            axes.set_xticks(places, [f"{tick:g}" for tick in ticks])


def _draw_region(axes: Axes, axis: _GapAxis, states: NDArray[np.int_]) -> None:
    """Colour each point by its gradient: alive, bounded or dead."""
    axes.imshow(
        states,
        origin="lower",
        extent=(-axis.edge, axis.edge, -1.2, 1.2),
        aspect="auto",
        cmap=ListedColormap(["#D0D0D0", "#EAF3DC", "#BFE3D5"]),
        vmin=0,
        vmax=2,
        interpolation="nearest",
    )
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.axvline(0, color=GREY, linewidth=0.8)


def _region_legend(tokens: bool) -> list[Patch | Line2D]:
    bounded = "alive, but bounded: only the α part is left"
    handles: list[Patch | Line2D] = [
        Patch(facecolor="#BFE3D5", edgecolor=GREEN, label="gradient alive"),
        Patch(facecolor="#EAF3DC", edgecolor=GREEN, label=bounded),
        Patch(facecolor="#D0D0D0", edgecolor=GREY, label="dead: gradient 0"),
    ]
    if tokens:
        alive = "token, alive (spread upwards and downwards to be seen)"
        dot: dict[str, Any] = {"marker": "o", "linestyle": "", "color": GREY}
        handles.append(Line2D([], [], label=alive, **dot))
        handles.append(Line2D([], [], label="token, dead", markerfacecolor="white", **dot))
    return handles


def _dots(
    axes: Axes, tokens: pd.DataFrame, dead: NDArray[np.bool_], colour: str, axis: _GapAxis
) -> str:
    """Draw tokens as dots, dead ones hollow; return the share of dead ones in words."""
    if tokens.empty:
        return "(no tokens)"
    gap, moved = tokens["gap"].to_numpy(float), tokens["moved"].to_numpy(float)
    spread = np.random.default_rng(0).uniform(-0.09, 0.09, len(tokens))
    x, y = axis.place(gap), moved + spread
    axes.scatter(x[~dead], y[~dead], s=11, color=colour, alpha=0.6, linewidths=0)
    hollow: dict[str, Any] = {"facecolors": "white", "edgecolors": colour, "linewidths": 0.9}
    axes.scatter(x[dead], y[dead], s=20, **hollow)
    return f"– {dead.mean():.0%} of {len(tokens)} tokens dead"


def trust_region_picture(samples: pd.DataFrame | None = None) -> Picture:
    """Return the question and the picture; ``samples`` of a run with a teacher add tokens."""
    tokens = None if samples is None else trrd_tokens(samples)
    threshold = dead_threshold(0.5, 1.0)
    return Picture(
        question="No update yet: π_θ = π_old. A token of a right completion (A > 0) has twice "
        "the probability under the student that it has under the teacher. "
        "GRPO would raise it. What does TRRD do with α = 0.5?",
        choices=(
            "it raises it like GRPO",
            "it raises it by half",
            "nothing: no gradient",
            "it lowers it",
        ),
        answer=2,
        why="r = (π_old/π_T)^½ = 1.41 lies above 1 + ε already. "
        f"Dead is every token with A > 0 and π_old/π_T above {threshold:.2f}: "
        "TRRD never turns the reward's push around, it only leaves it out. "
        "α = 1 is GRPO, α = 0 makes the teacher the anchor.",
        draw=lambda **values: trust_region(**values, tokens=tokens),
        explorable="trust_region",
        data={} if tokens is None else {"tokens": tokens.to_dict("list")},
    )
