"""Rules of the methods that change what OPD's teacher says: see :mod:`~rlkd_lab.objectives.rules`.

d = log π_T − log π_old, which is 0 where the teacher has no weight.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlkd_lab.objectives.advantages import teacher_gap
from rlkd_lab.objectives.batch import TokenBatch
from rlkd_lab.objectives.rules import (
    divergence_penalty,
    number,
    reward_advantage,
    teacher_advantage,
)
from rlkd_lab.objectives.settings import Coefs, Options

# --- where the teacher speaks ---------------------------------------------------------------------


def gated_advantage(batch: TokenBatch, coefs: Coefs, options: Options) -> Tensor:
    """kd_coef·M·s·max(0, s·d_t), s = +1 on right completions and −1 on others: the teacher's gap
    where its sign is the verifier's. OPDVR (arXiv 2608.24696).
    """
    assert batch.correct is not None
    verdict = 2.0 * batch.correct.to(batch.logps.dtype) - 1.0
    if batch.counted is not None:  # what could not be judged has no verdict
        verdict = torch.where(batch.counted, verdict, 0.0)
    return _agreeing(teacher_advantage(batch, coefs, options), verdict[:, None])


def group_gated_advantage(batch: TokenBatch, coefs: Coefs, options: Options) -> Tensor:
    """kd_coef·M·s·max(0, s·d_t), s = sign(Â): 0 where Â is 0. GRPD (arXiv 2608.24696)."""
    assert batch.advantages is not None
    sign = reward_advantage(batch, {"rl_coef": 1.0}, options).sign()
    return _agreeing(teacher_advantage(batch, coefs, options), sign)


def _agreeing(gap: Tensor, sign: Tensor) -> Tensor:
    """Return the gap where it has the given sign, else 0."""
    return torch.where(gap * sign > 0, gap, 0.0)


def extrapolated_advantage(batch: TokenBatch, coefs: Coefs, options: Options) -> Tensor:
    """kd_coef·M·(d_t + (λ − 1)·(log π_T − log π_ref)). G-OPD (arXiv 2602.12125)."""
    assert batch.teacher_logps is not None and batch.kd_weight is not None
    assert batch.ref_logps is not None
    beyond = teacher_gap(batch.teacher_logps, batch.ref_logps)
    weight = number(coefs, "kd_coef") * batch.kd_weight * (number(coefs, "extrapolation") - 1.0)
    return teacher_advantage(batch, coefs, options) + weight * beyond


def centred_advantage(batch: TokenBatch, coefs: Coefs, options: Options) -> Tensor:
    """kd_coef·M·(d_t + KL(π_θ‖π_T)): its mean over the policy is 0 on-policy.

    The exact KL is a baseline: it does not depend on the token. vOPD (arXiv 2605.07865).
    """
    assert batch.divergence is not None and batch.kd_weight is not None
    if options["divergence"] != "reverse":
        raise ValueError(
            f"the baseline of the gap is the reverse KL, and divergence={options['divergence']}"
            " is another number: leave divergence=reverse"
        )
    baseline = batch.divergence.detach().masked_fill(batch.kd_weight == 0, 0.0)
    weight = number(coefs, "kd_coef") * batch.kd_weight
    return teacher_advantage(batch, coefs, options) + weight * baseline


def positive_advantage(batch: TokenBatch, coefs: Coefs, options: Options) -> Tensor:
    """kd_coef·M·max(0, d_t). AOPD (arXiv 2605.06387), Eq. 9–10."""
    return teacher_advantage(batch, coefs, options).clamp(min=0.0)


# --- how much it counts ---------------------------------------------------------------------------


def early_advantage(batch: TokenBatch, coefs: Coefs, options: Options) -> Tensor:
    """kd_coef·M·d_t·(1 + γ·(1 − Σ_{s<t} |d_s| / Σ_s |d_s|)). IW-OPD (arXiv 2606.22600).

    The first token counts 1 + γ times, the last one about once.
    """
    assert batch.teacher_logps is not None
    size = teacher_gap(batch.teacher_logps, batch.old).abs()
    total = size.sum(-1, keepdim=True).clamp(min=torch.finfo(size.dtype).tiny)
    before = (size.cumsum(-1) - size) / total
    weight = 1.0 + number(coefs, "early_weight") * (1.0 - before)
    return weight * teacher_advantage(batch, coefs, options)


def floored_advantage(batch: TokenBatch, coefs: Coefs, options: Options) -> Tensor:
    """kd_coef·M·max(d_t, log(λ/(1−λ))). REOPOLD (arXiv 2603.11137), Eq. 7."""
    assert batch.teacher_logps is not None and batch.kd_weight is not None
    share = number(coefs, "mixture")
    gap = teacher_gap(batch.teacher_logps, batch.old).clamp(min=math.log(share / (1.0 - share)))
    return number(coefs, "kd_coef") * batch.kd_weight * gap


def power_advantage(batch: TokenBatch, coefs: Coefs, options: Options) -> Tensor:
    """kd_coef·M·(π_T^a − π_old^a). PowerOPD (arXiv 2606.17199).

    Without the weight it lies within ±1, and is about a·d_t for a small a.
    """
    assert batch.teacher_logps is not None and batch.kd_weight is not None
    power = number(coefs, "gap_power")
    gap = (power * batch.teacher_logps).exp() - (power * batch.old).exp()
    return number(coefs, "kd_coef") * batch.kd_weight * gap


def sparse_advantage(batch: TokenBatch, coefs: Coefs, options: Options) -> Tensor:
    """rl_coef·Â + kd_coef·M·c·tanh(d_t) on the share gap_share of a completion's largest gaps.

    The number of tokens is rounded up. SAF-OPD (arXiv 2607.29209).
    """
    assert batch.teacher_logps is not None and batch.kd_weight is not None
    gap = teacher_gap(batch.teacher_logps, batch.old)
    chosen = _lowest(-gap.abs(), batch.completion_mask, number(coefs, "gap_share"))
    pressed = number(coefs, "gap_scale") * gap.tanh().masked_fill(~chosen, 0.0)
    reward = reward_advantage(batch, coefs, options)
    return reward + number(coefs, "kd_coef") * batch.kd_weight * pressed


def unlikely_advantage(batch: TokenBatch, coefs: Coefs, options: Options) -> Tensor:
    """−push on the share push_share of a completion's tokens with the lowest log π_old, else 0.

    The number of tokens is rounded up. A placebo: no teacher and no reward. OPSA (arXiv
    2608.31046).
    """
    chosen = _lowest(batch.old, batch.completion_mask, number(coefs, "push_share"))
    return torch.zeros_like(batch.logps).masked_fill(chosen, -number(coefs, "push"))


def _lowest(values: Tensor, mask: Tensor, share: float) -> Tensor:
    """Return the share of each row's tokens with the lowest values, (B, T) of bool; rounded up."""
    real = mask != 0
    lowest_first = values.masked_fill(~real, torch.inf).argsort(dim=-1, stable=True)
    rank = lowest_first.argsort(dim=-1, stable=True)
    count = share * real.sum(-1, keepdim=True).double()
    return real & (rank < count - 1e-9)  # 0.07·100 is above 7 by rounding alone


# --- penalties ------------------------------------------------------------------------------------


def sigmoid_penalty(batch: TokenBatch, log_ratio: Tensor, coefs: Coefs, options: Options) -> Tensor:
    """kd_coef·M·stop-grad(σ(b·R))·R with R = log π_T − log π_θ. SDAR (arXiv 2605.15155).

    In expectation its gradient is that of the advantage kd_coef·M·½·tanh(b·R/2).
    """
    assert batch.teacher_logps is not None and batch.kd_weight is not None
    theirs = torch.where(batch.kd_weight == 0, batch.logps.detach(), batch.teacher_logps)
    gap = theirs - batch.logps
    gate = (number(coefs, "gate_slope") * gap.detach()).sigmoid()
    return number(coefs, "kd_coef") * batch.kd_weight * gate * gap


def reward_gated_penalty(
    batch: TokenBatch, log_ratio: Tensor, coefs: Coefs, options: Options
) -> Tensor:
    """kd_coef·M·D(π_θ, π_T) where the teacher judges a completion as the reward does.

    That is where Â > 0 and Σd > δ, and where Â ≤ 0 and Σd < −δ. The sum is over the completion;
    with ``level='token'`` it is one token. RG-OPD (arXiv 2607.04037), Eq. 1–4.
    """
    assert batch.teacher_logps is not None and batch.advantages is not None
    gap = teacher_gap(batch.teacher_logps, batch.old)
    if options["level"] == "sequence":
        gap = gap.sum(-1, keepdim=True)
    margin = number(coefs, "gate_margin")
    good = batch.advantages.view(len(gap), -1) > 0
    kept = torch.where(good, gap > margin, gap < -margin)
    if batch.counted is not None:  # what could not be judged has no reward
        kept = kept & batch.counted[:, None]
    return divergence_penalty(batch, log_ratio, coefs, options).where(kept, 0.0)


def unsure_penalty(batch: TokenBatch, log_ratio: Tensor, coefs: Coefs, options: Options) -> Tensor:
    """cover_coef·kd_coef·M·D(π_θ, π_T) where the teacher's entropy is above unsure_above.

    EOPD (arXiv 2603.07079), with the forward KL.
    """
    assert batch.teacher_entropy is not None
    unsure = batch.teacher_entropy > number(coefs, "unsure_above")
    return _cover(batch, log_ratio, coefs, options).where(unsure, 0.0)


def negative_penalty(
    batch: TokenBatch, log_ratio: Tensor, coefs: Coefs, options: Options
) -> Tensor:
    """cover_coef·kd_coef·M·D(π_θ, π_T) where d_t ≤ 0. AOPD (arXiv 2605.06387), Eq. 7–10."""
    assert batch.teacher_logps is not None
    gap = teacher_gap(batch.teacher_logps, batch.old)
    return _cover(batch, log_ratio, coefs, options).where(gap <= 0, 0.0)


def _cover(batch: TokenBatch, log_ratio: Tensor, coefs: Coefs, options: Options) -> Tensor:
    divergence = divergence_penalty(batch, log_ratio, coefs, options)
    return number(coefs, "cover_coef") * divergence
