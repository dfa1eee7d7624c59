"""Where the gradient is alive: the clipped surrogate against its ratio, and TRRD's trust region.

Gradients by autograd of the trainer's own functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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

from rlkd_lab.lab.pictures.prediction import BLUE, GREEN, GREY, ORANGE, Control, Picture, blank
from rlkd_lab.objectives import TokenBatch, group_advantages
from rlkd_lab.objectives.surrogates import clipped_surrogate, log_importance, trrd_log_ratio

OFF = {"off": None, "1.5": 1.5, "3 (TRRD's default)": 3.0}


def surrogate_at(
    ratios: ArrayLike,
    advantage: float,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    ratio_cap: float | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Objective and its gradient with respect to log π_θ, for each ρ > 0 of ``ratios``, (N,)
    each.
    """
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
    """min(ρ·A, clip(ρ)·A) and its gradient against ρ; regions without gradient are shaded.

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
    figure = blank(7.6, 5.2)
    top, bottom = figure.subplots(2, 1, sharex=True)
    for axes, line, point in ((top, value, here), (bottom, gradient, push)):
        axes.plot(at, line, color=colour, linewidth=2.2)
        axes.plot([rho], [point], "o", color="black", markersize=8, zorder=5)
        axes.axvline(1.0, color=GREY, linewidth=0.8)
        axes.grid(alpha=0.25)
        dead = gradient == 0
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
    for edge in (1 - clip_low, 1 + clip_high):
        top.axvline(edge, color=GREY, linewidth=0.8, linestyle=":")
        bottom.axvline(edge, color=GREY, linewidth=0.8, linestyle=":")
    top.plot(at, sign * at, color=GREY, linewidth=1, linestyle="--", label="ρ·A, unclipped")
    top.legend(loc="upper left" if sign > 0 else "lower left", frameon=False, fontsize=9)
    top.set_ylabel("objective")
    bottom.set_ylabel("gradient at log π_θ")
    bottom.set_xlabel("ρ = π_θ / π_old")
    state = (
        "no gradient: dead"
        if push == 0
        else "gradient raises π_θ"
        if push > 0
        else "gradient lowers π_θ"
    )
    top.set_title(
        f"A = {sign:+.0f}, ρ = {rho:.2f}: objective {here:+.2f}, gradient {push:+.2f} –"
        f" {state}\nhatched: the gradient is exactly 0",
        fontsize=11,
    )
    figure.tight_layout()
    return figure


CLIP = Picture(
    question="A token of a right completion, A > 0. Updates have pushed its probability *down* to"
    " ρ = 0.5, far outside 1 ± 0.2. Is there a gradient?",
    choices=("no: the ratio is clipped", "yes: it is pulled up again"),
    answer=1,
    why="The minimum keeps the unclipped branch where it is the worse one, so what moved the"
    " wrong way can come back. Only what has already moved far in"
    " the wanted direction is dead: ρ > 1 + ε_high for A > 0, ρ < 1 − ε_low for A < 0.",
    draw=clip_surrogate,
    controls={
        "rho": Control("ρ", 0.5, 0.05, 3.5),
        "sign": Control("sign of A", 1.0, options={"A > 0": 1.0, "A < 0": -1.0}),
        "clip_low": Control("ε_low", 0.2, 0.0, 0.9),
        "clip_high": Control("ε_high", 0.2, 0.0, 1.0),
        "ratio_cap": Control("ratio_cap (A < 0)", None, options=OFF),
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
    """Gradient of TRRD's objective with respect to log π_θ, token by token; exactly 0 where the
    token is dead.

    Args:
        gap: x = log π_old/π_T, (N,) nats.
        moved: y = log π_θ/π_old, (N,) nats, or one for all.
        advantages: A, (N,), or one for all.
        alpha: α in [0, 1]; 1 is GRPO.
        clip_low, clip_high: ε_low, ε_high.
        gap_bound: bound on |log π_θ/π_T| inside the ratio; ``None`` is off.
        ratio_cap: dual clip where A < 0; ``None`` is off.
    """
    x, y, credit = (
        torch.as_tensor(part.copy())[None]
        for part in np.broadcast_arrays(
            *(np.atleast_1d(np.asarray(a, float)) for a in (gap, moved, advantages))
        )
    )
    # only differences count, so the teacher may stand at 0
    logps: Tensor = (x + y).requires_grad_()
    batch = TokenBatch(logps, torch.ones_like(x), old_logps=x, teacher_logps=torch.zeros_like(x))
    log_ratio, _ = trrd_log_ratio(batch, log_importance(batch), alpha, gap_bound)
    loss, _ = clipped_surrogate(log_ratio, credit, clip_low, clip_high, ratio_cap)
    (gradient,) = torch.autograd.grad(loss.sum(), logps)
    return -gradient[0].numpy()


def dead_threshold(alpha: float, sign: float, clip: float = 0.2) -> float:
    """How many times likelier one model must find a token than the other for it to be dead at step
    0 (π_θ = π_old, bounds off): by bisection on the gradient.

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
    """Tokens of a recorded step as dots: ``gap`` (log π_old/π_T), ``moved`` (0: recorded before the
    update), ``advantages`` (group-relative).

    Raises:
        ValueError: the run recorded no teacher.
    """
    if "teacher_logps" not in samples or samples["teacher_logps"].isna().any():
        raise ValueError("these samples have no teacher_logps: take a run with a teacher")
    credit = group_advantages(
        torch.tensor(samples["reward"].to_numpy(float)),
        torch.tensor(samples["group"].to_numpy(int)),
    ).numpy()
    gap = [
        np.asarray(old, float) - np.asarray(teacher, float)
        for old, teacher in zip(samples["logps"], samples["teacher_logps"], strict=True)
    ]
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
    """Where TRRD's gradient is alive, for A > 0 and A < 0, over log π_old/π_T and log π_θ/π_old;
    dead tokens are hollow.

    Args:
        alpha: α in [0, 1]; 1 is GRPO, whose band is level.
        clip_low, clip_high: ε_low, ε_high.
        gap_bound: ``trrd_gap_bound`` in nats, or ``None``.
        ratio_cap: dual clip, or ``None``.
        tokens: ``gap``, ``moved``, ``advantages``, a row a token, as :func:`trrd_tokens` makes
            them.
    """
    furthest = 0.0 if tokens is None else float(tokens["gap"].abs().max())
    far = (
        furthest > 2.4
    )  # a few tokens lie at 10 nats and more: then the axis is linear near 0 and logarithmic further out
    place, back = (
        (lambda x: np.arcsinh(2 * x), lambda u: np.sinh(u) / 2)
        if far
        else (lambda x: x, lambda u: u)
    )
    edge = float(place(1.3 * furthest if far else 2.5))
    grid_x, grid_y = np.meshgrid(back(np.linspace(-edge, edge, 251)), np.linspace(-1.2, 1.2, 241))
    settings = (alpha, clip_low, clip_high, gap_bound, ratio_cap)
    figure = blank(10.4, 4.9)
    panels = figure.subplots(1, 2, sharey=True)
    kinds: Sequence[tuple[Axes, float, str]] = [(panels[0], 1.0, BLUE), (panels[1], -1.0, ORANGE)]
    for axes, sign, colour in kinds:
        gradient = trrd_gradient(grid_x.ravel(), grid_y.ravel(), sign, *settings).reshape(
            grid_x.shape
        )
        # at α = 1 there is no teacher's branch to lose
        bounded = (np.abs(grid_x + grid_y) > (np.inf if gap_bound is None else gap_bound)) & (
            alpha < 1
        )
        state = np.where(gradient == 0, 0, np.where(bounded, 1, 2))
        axes.imshow(
            state,
            origin="lower",
            extent=(-edge, edge, -1.2, 1.2),
            aspect="auto",
            cmap=ListedColormap(["#D0D0D0", "#EAF3DC", "#BFE3D5"]),
            vmin=0,
            vmax=2,
            interpolation="nearest",
        )
        axes.axhline(0, color=GREY, linewidth=0.8)
        axes.axvline(0, color=GREY, linewidth=0.8)
        words = ""
        if tokens is not None:
            words = _dots(
                axes, tokens[np.sign(tokens["advantages"]) == sign], settings, colour, place
            )
        axes.set_title(f"A {'>' if sign > 0 else '<'} 0 {words}", fontsize=11)
        axes.set_xlabel(
            "log π_old/π_T   (left: teacher likes it more; right: less"
            + ("; logarithmic further out)" if far else ")"),
            fontsize=9,
        )
        axes.set_xlim(-edge, edge)
        if far:
            ticks = [
                tick
                for tick in (-10, -5, -2, -1, -0.3, 0, 0.3, 1, 2, 5, 10)
                if abs(tick) < 1.1 * furthest
            ]
            axes.set_xticks([float(place(tick)) for tick in ticks], [f"{tick:g}" for tick in ticks])
        axes.set_ylim(-1.2, 1.2)
    panels[0].set_ylabel("log π_θ/π_old   (0: before any update)", fontsize=9)
    handles: list[Patch | Line2D] = [
        Patch(facecolor="#BFE3D5", edgecolor=GREEN, label="gradient alive"),
        Patch(
            facecolor="#EAF3DC",
            edgecolor=GREEN,
            label="alive, but bounded: only the α part is left",
        ),
        Patch(facecolor="#D0D0D0", edgecolor=GREY, label="dead: gradient 0"),
    ]
    if tokens is not None:
        handles.append(
            Line2D(
                [],
                [],
                marker="o",
                linestyle="",
                color=GREY,
                label="token, alive (spread upwards and downwards to be seen)",
            )
        )
        handles.append(
            Line2D(
                [],
                [],
                marker="o",
                linestyle="",
                markerfacecolor="white",
                color=GREY,
                label="token, dead",
            )
        )
    bound = "off" if gap_bound is None else f"{gap_bound:g}"
    figure.suptitle(
        f"TRRD at α = {alpha:.2f}, gap bound {bound}, ratio cap"
        f" {'off' if ratio_cap is None else f'{ratio_cap:g}'}",
        fontsize=11,
    )
    figure.legend(handles=handles, loc="lower center", ncols=3, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.06 + 0.05 * (len(handles) > 3), 1, 1))
    return figure


def _dots(
    axes: Axes,
    tokens: pd.DataFrame,
    settings: tuple[float | None, ...],
    colour: str,
    place: Callable[[Any], Any],
) -> str:
    if tokens.empty:
        return "(no tokens)"
    gap, moved = tokens["gap"].to_numpy(float), tokens["moved"].to_numpy(float)
    dead = trrd_gradient(gap, moved, tokens["advantages"].to_numpy(float), *settings) == 0  # type: ignore[arg-type]
    spread = np.random.default_rng(0).uniform(-0.09, 0.09, len(tokens))
    where = place(gap)
    axes.scatter(where[~dead], (moved + spread)[~dead], s=11, color=colour, alpha=0.6, linewidths=0)
    axes.scatter(
        where[dead],
        (moved + spread)[dead],
        s=20,
        facecolors="white",
        edgecolors=colour,
        linewidths=0.9,
    )
    return f"– {dead.mean():.0%} of {len(tokens)} tokens dead"


def trust_region_picture(samples: pd.DataFrame | None = None) -> Picture:
    """The picture behind its question; ``samples`` of a run with a teacher add real tokens."""
    tokens = None if samples is None else trrd_tokens(samples)
    return Picture(
        question="No update yet: π_θ = π_old. A token of a right completion (A > 0) has twice the"
        " probability under the student that it has under the teacher."
        " GRPO would raise it. What does TRRD do with α = 0.5?",
        choices=(
            "it raises it like GRPO",
            "it raises it by half",
            "nothing: no gradient",
            "it lowers it",
        ),
        answer=2,
        why="r = (π_old/π_T)^½ = 1.41 lies above 1 + ε already. Dead is every token with A > 0"
        f" and π_old/π_T above {dead_threshold(0.5, 1.0):.2f}:"
        " TRRD never turns the reward's push around, it only leaves it out. α = 1 is GRPO, α"
        " = 0 makes the teacher the anchor.",
        draw=lambda **values: trust_region(**values, tokens=tokens),
        controls={
            "alpha": Control("α", 0.5, 0.0, 1.0),
            "clip_low": Control("ε_low", 0.2, 0.0, 0.9),
            "clip_high": Control("ε_high", 0.2, 0.0, 1.0),
            "gap_bound": Control(
                "gap bound", 1.0, options={"off": None, "0.3": 0.3, "1 (default)": 1.0, "2": 2.0}
            ),
            "ratio_cap": Control("ratio cap (A < 0)", 3.0, options=OFF),
        },
    )
