"""Where the gradient is not 0: the clipped surrogate against its ratio, TRRD's trust region.

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

from rlkd_lab.lab.course.pictures.prediction import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    Picture,
    PictureControl,
)
from rlkd_lab.objectives import TokenBatch, group_advantages
from rlkd_lab.objectives.surrogates import clipped_surrogate, log_importance, trrd_log_ratio
from rlkd_lab.plots.styles import white_figure
from rlkd_lab.training.samples import counted_of

GAP_BOUNDS = {"off": None, "0.3": 0.3, "1 (default)": 1.0, "2": 2.0}
OFF = {"off": None, "1.5": 1.5, "3 (TRRD's default)": 3.0}


def surrogate_at(
    ratios: ArrayLike,
    advantage: float,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    ratio_cap: float | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the objective and its gradient at log π_θ for each ρ > 0, (N,) each."""
    log_ratio = torch.as_tensor(np.asarray(ratios, dtype=float)).log().requires_grad_()
    loss, _ = clipped_surrogate(
        log_ratio, torch.full_like(log_ratio, advantage), clip_low, clip_high, ratio_cap
    )
    (gradient,) = torch.autograd.grad(loss.sum(), log_ratio)
    return -loss.detach().numpy(), -gradient.numpy()


def clip_surrogate(
    rho: float = 1.4,
    sign: float = 1.0,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    ratio_cap: float | None = None,
) -> Figure:
    """Draw min(ρ·A, clip(ρ)·A) and its gradient against ρ; regions without gradient are shaded.

    Args:
        rho: ρ = π_θ/π_old of the marked token, > 0.
        sign: A, 1 or −1.
        clip_low: ε_low in [0, 1].
        clip_high: ε_high ≥ 0.
        ratio_cap: dual clip where A < 0; ``None`` is off.
    """
    at = np.linspace(0.02, max(4.0 if ratio_cap else 2.5, 1.1 * rho), 1500)
    value, gradient = surrogate_at(at, sign, clip_low, clip_high, ratio_cap)
    (here,), (push,) = surrogate_at([rho], sign, clip_low, clip_high, ratio_cap)
    push = push + 0.0  # no −0 in the title
    colour = BLUE if sign > 0 else ORANGE
    figure = white_figure(7.6, 5.2)
    top, bottom = figure.subplots(2, 1, sharex=True)
    for axes, line, point in ((top, value, here), (bottom, gradient, push)):
        axes.plot(at, line, color=colour, linewidth=2.2)
        axes.plot([rho], [point], "o", color="black", markersize=8, zorder=5)
        axes.axvline(1.0, color=GREY, linewidth=0.8)
        axes.grid(alpha=0.25)
        _shade(axes, at, gradient == 0)
    for edge in (1 - clip_low, 1 + clip_high):
        top.axvline(edge, color=GREY, linewidth=0.8, linestyle=":")
        bottom.axvline(edge, color=GREY, linewidth=0.8, linestyle=":")
    top.plot(at, sign * at, color=GREY, linewidth=1, linestyle="--", label="ρ·A, unclipped")
    top.legend(loc="upper left" if sign > 0 else "lower left", frameon=False, fontsize=9)
    top.set_ylabel("objective")
    bottom.set_ylabel("gradient at log π_θ")
    bottom.set_xlabel("ρ = π_θ / π_old")
    state = "no gradient: dead"
    if push != 0:
        state = "gradient raises π_θ" if push > 0 else "gradient lowers π_θ"
    now = f"A = {sign:+.0f}, ρ = {rho:.2f}: objective {here:+.2f}, gradient {push:+.2f}"
    top.set_title(f"{now} – {state}\nhatched: the gradient is exactly 0", fontsize=11)
    figure.tight_layout()
    return figure


def _shade(axes: Axes, at: NDArray[np.float64], dead: NDArray[np.bool_]) -> None:
    axes.fill_between(
        at,
        0,
        1,
        where=dead,
        transform=axes.get_xaxis_transform(),
        color="#BBBBBB",
        alpha=0.5,
        linewidth=0,
        hatch="//",
        edgecolor="#888888",
    )


CLIP = Picture(
    question="A token of a right completion, A > 0. Updates have pushed its probability *down* to"
    " ρ = 0.5, far outside 1 ± 0.2. Is there a gradient?",
    choices=("no: the ratio is clipped", "yes: it is pulled up again"),
    answer=1,
    why="The minimum keeps the unclipped branch where it is the worse one, so what moved the "
    "wrong way can come back. Only what has already moved far in the wanted direction is dead: "
    "ρ > 1 + ε_high for A > 0, ρ < 1 − ε_low for A < 0.",
    draw=clip_surrogate,
    controls={
        "rho": PictureControl("ρ", 0.5, 0.05, 3.5),
        "sign": PictureControl("sign of A", 1.0, options={"A > 0": 1.0, "A < 0": -1.0}),
        "clip_low": PictureControl("ε_low", 0.2, 0.0, 0.9),
        "clip_high": PictureControl("ε_high", 0.2, 0.0, 1.0),
        "ratio_cap": PictureControl("ratio_cap (A < 0)", None, options=OFF),
    },
)


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


def dead_threshold(alpha: float, sign: float, clip: float = 0.2) -> float:
    """Return the probability ratio of the models above which a token is dead at step 0.

    π_θ = π_old, and the bounds are off. The value comes from bisection on the gradient.

    Args:
        alpha: α in [0, 1).
        sign: of A. For A > 0 the ratio is π_old/π_T, for A < 0 it is π_T/π_old.
        clip: ε on either side.

    >>> round(dead_threshold(0.5, 1.0), 4)
    1.44
    """
    low, high = 0.0, 50.0
    for _ in range(60):
        middle = (low + high) / 2
        dead = trrd_gradient(math.copysign(middle, sign), 0.0, sign, alpha, clip, clip)[0] == 0
        low, high = (low, middle) if dead else (middle, high)
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
    furthest = 0.0 if tokens is None else float(tokens["gap"].abs().max())
    axis = _GapAxis(furthest)
    settings = (alpha, clip_low, clip_high, gap_bound, ratio_cap)
    figure = white_figure(10.4, 4.9)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, sign, colour in zip(panels, (1.0, -1.0), (BLUE, ORANGE), strict=True):
        _draw_region(axes, axis, sign, settings)
        words = ""
        if tokens is not None:
            of_sign = tokens[np.sign(tokens["advantages"]) == sign]
            words = _dots(axes, of_sign, settings, colour, axis)
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

    def __init__(self, furthest: float) -> None:
        self.furthest, self.far = furthest, furthest > 2.4  # a few tokens lie at 10 nats and more
        self.edge = float(self.place(1.3 * furthest if self.far else 2.5))

    def place(self, gap: Any) -> Any:
        """Return where a gap in nats stands on the axis."""
        return np.arcsinh(2 * gap) if self.far else gap

    def gap(self, place: Any) -> Any:
        """Return the gap in nats at a place on the axis."""
        return np.sinh(place) / 2 if self.far else place

    def finish(self, axes: Axes) -> None:
        """Set label, limits and ticks."""
        further = "; logarithmic further out)" if self.far else ")"
        label = "log π_old/π_T   (left: teacher likes it more; right: less" + further
        axes.set_xlabel(label, fontsize=9)
        axes.set_xlim(-self.edge, self.edge)
        if self.far:
            gaps = (-10, -5, -2, -1, -0.3, 0, 0.3, 1, 2, 5, 10)
            ticks = [tick for tick in gaps if abs(tick) < 1.1 * self.furthest]
            places = [float(self.place(tick)) for tick in ticks]
            axes.set_xticks(places, [f"{tick:g}" for tick in ticks])


Settings = tuple[float, float, float, float | None, float | None]
"""α, ε_low, ε_high, gap bound, ratio cap."""


def _draw_region(axes: Axes, axis: _GapAxis, sign: float, settings: Settings) -> None:
    """Colour each point by its gradient: alive, bounded or dead."""
    alpha, _, _, gap_bound, _ = settings
    places = axis.gap(np.linspace(-axis.edge, axis.edge, 251))
    x, y = np.meshgrid(places, np.linspace(-1.2, 1.2, 241))
    gradient = trrd_gradient(x.ravel(), y.ravel(), sign, *settings).reshape(x.shape)
    bounded = np.zeros(x.shape, bool)
    if gap_bound is not None and alpha < 1:  # α = 1 has no teacher's part that could be bounded
        bounded = np.abs(x + y) > gap_bound
    axes.imshow(
        np.where(gradient == 0, 0, np.where(bounded, 1, 2)),
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


def _dots(axes: Axes, tokens: pd.DataFrame, settings: Settings, colour: str, axis: _GapAxis) -> str:
    """Draw tokens as dots, dead ones hollow; return the share of dead ones in words."""
    if tokens.empty:
        return "(no tokens)"
    gap, moved = tokens["gap"].to_numpy(float), tokens["moved"].to_numpy(float)
    dead = trrd_gradient(gap, moved, tokens["advantages"].to_numpy(float), *settings) == 0
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
        controls={
            "alpha": PictureControl("α", 0.5, 0.0, 1.0),
            "clip_low": PictureControl("ε_low", 0.2, 0.0, 0.9),
            "clip_high": PictureControl("ε_high", 0.2, 0.0, 1.0),
            "gap_bound": PictureControl("gap bound", 1.0, options=GAP_BOUNDS),
            "ratio_cap": PictureControl("ratio cap (A < 0)", 3.0, options=OFF),
        },
    )
