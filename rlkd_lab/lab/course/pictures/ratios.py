"""The clipped surrogate against its ratio, and where its gradient is 0.

The gradient comes from autograd of the function that the trainer calls.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from rlkd_lab.lab.course.pictures.prediction import BLUE, GREY, ORANGE, Picture
from rlkd_lab.objectives.surrogates import clipped_surrogate
from rlkd_lab.plots.styles import white_figure


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


def clip_numbers(
    rho: float = 0.5,
    sign: float = 1.0,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    ratio_cap: float | None = None,
) -> dict[str, Any]:
    """Return what :func:`clip_surrogate` draws; arguments as there."""
    at = np.linspace(0.02, max(4.0 if ratio_cap else 2.5, 1.1 * rho), 1500)
    value, gradient = surrogate_at(at, sign, clip_low, clip_high, ratio_cap)
    (here,), (push,) = surrogate_at([rho], sign, clip_low, clip_high, ratio_cap)
    return {"at": at, "value": value, "gradient": gradient, "here": here, "push": push}


def clip_surrogate(
    rho: float = 0.5,
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
    found = clip_numbers(rho, sign, clip_low, clip_high, ratio_cap)
    at, value, gradient, here = (found[name] for name in ("at", "value", "gradient", "here"))
    push = found["push"] + 0.0  # no −0 in the title
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
    explorable="clip",
)
