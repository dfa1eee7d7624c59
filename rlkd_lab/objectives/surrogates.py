"""Ratio rules, clipping and aggregation: the parts of the one template behind every on-policy
method.

loss = aggregate( −min(ρ·A, clip(ρ, 1−ε_low, 1+ε_high)·A) + P , mask )
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from rlkd_lab.objectives.batch import TokenBatch

Aggregation = Literal["token", "sequence", "constant"]
Level = Literal["token", "sequence"]
FAR = 20.0
"""Nats of log ρ, above every clip and cap.

Where one of them acts, a larger ρ changes neither loss nor gradient, and exp would overflow.
"""


def log_importance(batch: TokenBatch, level: Level = "token") -> Tensor:
    """log π_θ/π_old, (B, T).

    At ``sequence`` level the length-normalised ratio of GSPO (arXiv 2507.18071), the same in every
    column of a row.
    """
    log_ratio = (batch.logps - batch.old) * batch.mask
    if level == "token":
        return log_ratio
    mean = log_ratio.sum(-1, keepdim=True) / batch.mask.sum(-1, keepdim=True).clamp(min=1)
    return mean.expand_as(log_ratio)


def trrd_log_ratio(
    batch: TokenBatch, log_ratio: Tensor, alpha: float, bound: float | None
) -> tuple[Tensor, Tensor]:
    """log r = α·log π_θ/π_old + (1−α)·log π_θ/π_T, the ratio of TRRD. RLAD (arXiv 2602.22495), Eq.
    3–5.

    Where the teacher is silent (``kd_weight`` 0) and at α = 1, log r is the ratio of GRPO, without
    a bound.

    Args:
        batch: with ``teacher_logps``.
        log_ratio: log π_θ/π_old, (B, T).
        alpha: α in [0, 1]; 1 is GRPO.
        bound: the teacher's log-ratio is clamped to ±bound nats; ``None`` leaves it free. A clamp
            also removes the gradient through that branch.

    Returns:
        log r, (B, T), and where the bound acts, (B, T) of bool.
    """
    assert batch.teacher_logps is not None
    nowhere = torch.zeros_like(log_ratio, dtype=torch.bool)
    if alpha == 1:  # a product with 0 would make a NaN of a teacher at −∞
        return log_ratio, nowhere
    silent = nowhere if batch.kd_weight is None else (batch.kd_weight == 0).view(len(log_ratio), -1)
    to_teacher = batch.logps - torch.where(silent, batch.old, batch.teacher_logps)
    bounded = to_teacher if bound is None else to_teacher.clamp(-bound, bound)
    acts = nowhere if bound is None else (to_teacher.abs() > bound) & ~silent
    return torch.where(silent, log_ratio, alpha * log_ratio + (1 - alpha) * bounded), acts


def clipped_surrogate(
    log_ratio: Tensor,
    advantages: Tensor,
    clip_low: float,
    clip_high: float,
    ratio_cap: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """−min(ρ·A, clip(ρ, 1−ε_low, 1+ε_high)·A), with a dual clip −max(…, c·A) for A < 0 where
    ``ratio_cap`` c is given (arXiv 1912.09729).

    Args:
        log_ratio: log ρ, (B, T).
        advantages: A, (B, T).
        clip_low: ε_low in [0, 1].
        clip_high: ε_high ≥ 0.
        ratio_cap: c, or ``None``. Below 1 + ε_high it differs from TRL's ``delta``, which for A < 0
            then leaves the value of the clipped branch.

    Returns:
        The per-token loss, (B, T), and where its gradient is cut, each (B, T) of bool: ``low`` (ρ <
        1−ε_low and A < 0), ``high`` (ρ > 1+ε_high and A > 0), ``cap`` (ρ > c and A < 0). The loss
        is +∞ where A < 0, nothing bounds ρ, and exp(log ρ) overflows. It is never NaN.
    """
    cut_anyway = log_ratio.clamp(max=FAR)  # 0·inf would be a NaN, in the loss or in its gradient
    ratio = (
        cut_anyway if ratio_cap is not None else torch.where(advantages < 0, log_ratio, cut_anyway)
    ).exp()
    objective = torch.minimum(
        ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    )
    cut = {
        "low": (ratio < 1 - clip_low) & (advantages < 0),
        "high": (ratio > 1 + clip_high) & (advantages > 0),
    }
    cut["cap"] = torch.zeros_like(cut["low"])
    if ratio_cap is not None:
        cut["cap"] = (ratio > ratio_cap) & (advantages < 0)
        objective = torch.where(cut["cap"], ratio_cap * advantages, objective)
    return -objective, cut


def cispo_surrogate(
    log_ratio: Tensor, advantages: Tensor, logps: Tensor, ratio_cap: float | None
) -> Tensor:
    """−stop-grad(min(ρ, c))·A·log π_θ: the ratio is cut, the gradient is not. CISPO (arXiv
    2506.13585); c is absolute, as TRL's ``epsilon_high``.

    Without a cap the weight is at most exp(:data:`FAR`), so that it cannot overflow.
    """
    weight = log_ratio.detach().clamp(max=FAR).exp()
    return -(weight if ratio_cap is None else weight.clamp(max=ratio_cap)) * advantages * logps


def trace_surrogate(logps: Tensor, advantages: Tensor, gamma: float) -> Tensor:
    """−p/(p + γ)·A with p = π_θ, for tokens that another model wrote. LUFFY (arXiv 2504.14945).

    Its weight in the gradient of log p is γ·p/(p + γ)², at most ¼, where p = γ.
    """
    return -(logps - math.log(gamma)).sigmoid() * advantages


def normalizer(mask: Tensor, aggregation: Aggregation, constant_length: int | None = None) -> float:
    """Return what the whole rollout's sum is divided by.

    Args:
        mask: (B, T) of the whole rollout.
        aggregation: ``token`` (number of tokens that count; KDRL, DAPO), ``sequence`` (B; GRPO) or
            ``constant`` (B × length limit; Dr. GRPO).
        constant_length: the length limit of ``constant``; the width T where it is not given.
    """
    rows, width = mask.shape
    if aggregation == "token":
        return float(mask.sum())
    if aggregation == "sequence":
        return float(rows)
    if aggregation == "constant":
        return float(rows * (constant_length or width))
    raise ValueError(f"unknown aggregation {aggregation!r}: use 'token', 'sequence' or 'constant'")


def aggregate(
    per_token: Tensor, mask: Tensor, aggregation: Aggregation, denominator: float
) -> Tensor:
    """(B, T) → scalar: the masked sum over ``denominator``; under ``sequence`` each row is first
    divided by its own length.

    A row without tokens adds 0; an all-masked batch gives 0, never NaN.
    """
    # where, not a product: a masked NaN or inf must not leak
    kept = torch.where(mask > 0, per_token, 0.0)
    if aggregation == "sequence":
        kept = kept / mask.sum(-1, keepdim=True).clamp(min=1)
    return kept.sum() / max(denominator, 1.0)
