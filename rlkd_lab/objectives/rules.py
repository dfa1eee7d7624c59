"""Rules: the pieces that a method is put together from, one kind of function each.

    samples     (on_policy_frac, uniform draw)        → whose completions the step trains on
    ratio       (batch, log π_θ/π_old, coefs)          → log ρ and where a bound acts, (B, T)
    surrogate   (log ρ, A, batch, coefs)               → the policy term and where it is cut, (B, T)
    advantage   (batch, coefs, options)                → A, (B, T)
    penalty     (batch, log π_θ/π_old, coefs, options) → P, (B, T)

A ratio and a surrogate also name the coefficients that they read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rlkd_lab.objectives.advantages import teacher_gap
from rlkd_lab.objectives.batch import TokenBatch
from rlkd_lab.objectives.estimators import weigh
from rlkd_lab.objectives.settings import Coefs, Options
from rlkd_lab.objectives.surrogates import (
    cispo_surrogate,
    clipped_surrogate,
    trace_surrogate,
    trrd_log_ratio,
)

Source = Literal["student", "teacher", "both"]
SamplesRule = Callable[[float, Callable[[], float]], Source]
AdvantageRule = Callable[[TokenBatch, Coefs, Options], Tensor]
PenaltyRule = Callable[[TokenBatch, Tensor, Coefs, Options], Tensor]


class LogRatio(NamedTuple):
    """What a ratio rule returns."""

    log_ratio: Tensor
    """log ρ, (B, T)."""
    bound: Tensor | None
    """Where a bound inside the ratio acts, (B, T) of bool; ``None``: the rule has none."""


class Surrogate(NamedTuple):
    """What a surrogate returns."""

    loss: Tensor
    """Per token, (B, T), with its graph."""
    low: Tensor | None = None
    """Where ρ < 1 − ε_low cuts the gradient, (B, T) of bool; ``None``: nothing is clipped."""
    high: Tensor | None = None
    """Where ρ > 1 + ε_high cuts the gradient."""
    cap: Tensor | None = None
    """Where the dual clip cuts the gradient."""


@dataclass(frozen=True)
class RatioRule:
    """A ratio, and the coefficients that it reads."""

    compute: Callable[[TokenBatch, Tensor, Coefs], LogRatio]
    reads: tuple[str, ...] = ()


@dataclass(frozen=True)
class SurrogateRule:
    """A surrogate, and the coefficients that it reads."""

    compute: Callable[[Tensor, Tensor, TokenBatch, Coefs], Surrogate]
    reads: tuple[str, ...] = ()


def number(coefs: Coefs, name: str, default: float | None = None) -> float:
    """Return a coefficient that must have a value."""
    value = coefs.get(name, default)
    if value is None:
        raise ValueError(f"{name} has no value here")
    return value


# --- where samples come from ----------------------------------------------------------------------


def from_student(on_policy_frac: float, uniform: Callable[[], float]) -> Source:
    """Train every step on the student's own completions."""
    return "student"


def from_teacher(on_policy_frac: float, uniform: Callable[[], float]) -> Source:
    """Train every step on the teacher's traces."""
    return "teacher"


def from_both(on_policy_frac: float, uniform: Callable[[], float]) -> Source:
    """Train every step on groups of the student's completions and one trace of the teacher each."""
    return "both"


def from_either(on_policy_frac: float, uniform: Callable[[], float]) -> Source:
    """Train a share ``on_policy_frac`` of the steps on the student's completions, the others on
    the teacher's traces. GKD (arXiv 2306.13649).
    """
    return "teacher" if uniform() >= on_policy_frac else "student"


# --- ratios ---------------------------------------------------------------------------------------


def _importance(batch: TokenBatch, log_ratio: Tensor, coefs: Coefs) -> LogRatio:
    return LogRatio(log_ratio, None)


def _trrd(batch: TokenBatch, log_ratio: Tensor, coefs: Coefs) -> LogRatio:
    alpha, bound = number(coefs, "trrd_alpha"), coefs["trrd_gap_bound"]
    return LogRatio(*trrd_log_ratio(batch, log_ratio, alpha, bound))


importance_ratio = RatioRule(_importance)
"""ρ = π_θ/π_old."""
trrd_ratio = RatioRule(_trrd, ("trrd_alpha", "trrd_gap_bound"))
"""ρ = (π_θ/π_old)^α · (π_θ/π_T)^(1−α). RLAD (arXiv 2602.22495), Eq. 3–5."""


# --- surrogates -----------------------------------------------------------------------------------


def _clipped(log_ratio: Tensor, advantages: Tensor, batch: TokenBatch, coefs: Coefs) -> Surrogate:
    low, high = number(coefs, "clip_low"), number(coefs, "clip_high")
    loss, cut = clipped_surrogate(log_ratio, advantages, low, high, coefs["ratio_cap"])
    return Surrogate(loss, cut["low"], cut["high"], cut["cap"])


def _cispo(log_ratio: Tensor, advantages: Tensor, batch: TokenBatch, coefs: Coefs) -> Surrogate:
    return Surrogate(cispo_surrogate(log_ratio, advantages, batch.logps, coefs["ratio_cap"]))


def _likelihood(
    log_ratio: Tensor, advantages: Tensor, batch: TokenBatch, coefs: Coefs
) -> Surrogate:
    return Surrogate(-advantages * batch.logps)


def _shaped(log_ratio: Tensor, advantages: Tensor, batch: TokenBatch, coefs: Coefs) -> Surrogate:
    if batch.off_policy is None:
        return _clipped(log_ratio, advantages, batch, coefs)
    trace = batch.off_policy[:, None]
    own = _clipped(log_ratio.masked_fill(trace, 0.0), advantages, batch, coefs)
    theirs = trace_surrogate(batch.logps, advantages, number(coefs, "trace_gamma"))
    return own._replace(loss=own.loss.where(~trace, theirs))


clipped = SurrogateRule(_clipped, ("clip_low", "clip_high", "ratio_cap", "importance_cap"))
"""−min(ρ·A, clip(ρ, 1 − ε_low, 1 + ε_high)·A), with an optional dual clip."""
cispo = SurrogateRule(_cispo, ("ratio_cap", "importance_cap"))
"""−stop-grad(min(ρ, ratio_cap))·A·log π_θ. CISPO (arXiv 2506.13585)."""
reinforce = SurrogateRule(_likelihood, ("importance_cap",))
"""−A·log π_θ, without a ratio: REINFORCE."""


shaped = SurrogateRule(_shaped, (*clipped.reads, "trace_gamma"))
"""``clipped`` on the policy's tokens, −p/(p + γ)·A on a trace's. LUFFY (arXiv 2504.14945)."""


# --- advantage rules: (batch, coefs, options) -> (B, T) -------------------------------------------


def reward_advantage(batch: TokenBatch, coefs: Coefs, options: Options) -> Tensor:
    """rl_coef·Â, the same in every column."""
    assert batch.advantages is not None
    given = batch.advantages.to(batch.logps.dtype)
    return number(coefs, "rl_coef", 1.0) * (
        given if given.dim() == 2 else given[:, None].expand_as(batch.logps)
    )


def remaining_advantage(batch: TokenBatch, coefs: Coefs, options: Options) -> Tensor:
    """(1 − μ)·Â on the policy's completions, 0 on traces. CHORD (arXiv 2508.11408)."""
    credit = (1.0 - number(coefs, "trace_weight")) * reward_advantage(batch, {}, options)
    return credit if batch.off_policy is None else credit.masked_fill(batch.off_policy[:, None], 0)


def teacher_advantage(batch: TokenBatch, coefs: Coefs, options: Options) -> Tensor:
    """kd_coef·M·d_t. KDRL (arXiv 2506.02208), Eq. 5."""
    assert batch.teacher_logps is not None and batch.kd_weight is not None
    return number(coefs, "kd_coef") * batch.kd_weight * teacher_gap(batch.teacher_logps, batch.old)


def joint_advantage(batch: TokenBatch, coefs: Coefs, options: Options) -> Tensor:
    """rl_coef·Â + kd_coef·M·d_t."""
    return reward_advantage(batch, coefs, options) + teacher_advantage(batch, coefs, options)


def routed_advantage(batch: TokenBatch, coefs: Coefs, options: Options) -> Tensor:
    """c·rl_coef·Â + kd_coef·M·d_t with c = 1 on right completions; with M = 1 − c
    (``kd_mask='wrong'``) each token listens to one of the two.
    """
    assert batch.correct is not None
    right = batch.correct.to(batch.logps.dtype)[:, None]
    return right * reward_advantage(batch, coefs, options) + teacher_advantage(
        batch, coefs, options
    )


def sized_advantage(batch: TokenBatch, coefs: Coefs, options: Options) -> Tensor:
    """((1 − λ) + λ·clip(exp(sign(Â)·d_t), 1 ± ε_w))·Â: the reward says where to, the teacher
    how far, token by token. RLSD (arXiv 2604.03128).
    """
    assert batch.teacher_logps is not None
    reward = reward_advantage(batch, coefs, options)
    weight, width = number(coefs, "gap_weight"), number(coefs, "gap_clip")
    # clipped as a logarithm, so that a gap of a thousand nats does not overflow
    gap = (
        (reward.sign() * teacher_gap(batch.teacher_logps, batch.old))
        .masked_fill(reward == 0, 0.0)
        .clamp(-50.0, 50.0)
    )
    return ((1 - weight) + weight * gap.exp().clamp(1 - width, 1 + width)) * reward


# --- penalty rules: (batch, log π_θ/π_old, coefs, options) -> (B, T) ------------------------------


def teacher_penalty(batch: TokenBatch, log_ratio: Tensor, coefs: Coefs, options: Options) -> Tensor:
    """kd_coef·M·k2, times the detached ρ. KDRL (arXiv 2506.02208), Eq. 8."""
    assert batch.kd_weight is not None
    if options["estimator"] == "exact":
        return divergence_penalty(batch, log_ratio, coefs, options)
    assert batch.teacher_logps is not None
    theirs = torch.where(batch.kd_weight == 0, batch.logps.detach(), batch.teacher_logps)
    log_weight = log_ratio.detach() if options["kd_ratio"] == "on" else torch.zeros_like(log_ratio)
    weight, estimate = weigh(
        "k2" if options["estimator"] == "k2" else "k3", batch.logps, theirs, log_weight
    )
    return number(coefs, "kd_coef") * batch.kd_weight * weight * estimate


def divergence_penalty(
    batch: TokenBatch, log_ratio: Tensor, coefs: Coefs, options: Options
) -> Tensor:
    """kd_coef·M·D(π_θ, π_T) over the vocabulary."""
    assert batch.divergence is not None and batch.kd_weight is not None
    # the divergence may be infinite where the teacher has no say
    return (
        number(coefs, "kd_coef", 1.0)
        * batch.kd_weight
        * batch.divergence.masked_fill(batch.kd_weight == 0, 0.0)
    )


HEAD_ALONE = (teacher_penalty, divergence_penalty)
"""Penalties that read a divergence and then no log-probability of the teacher."""


def likelihood_penalty(
    batch: TokenBatch, log_ratio: Tensor, coefs: Coefs, options: Options
) -> Tensor:
    """−log π_θ of the teacher's own tokens."""
    return -batch.logps


def trace_penalty(batch: TokenBatch, log_ratio: Tensor, coefs: Coefs, options: Options) -> Tensor:
    """−μ·φ·log π_θ on traces with φ = p·(1 − p), detached, and 0 elsewhere. CHORD (arXiv
    2508.11408).
    """
    if batch.off_policy is None:
        return torch.zeros_like(batch.logps)
    assert batch.kd_weight is not None
    likely = batch.logps.detach().exp()
    weight = number(coefs, "trace_weight") * batch.kd_weight * likely * (1.0 - likely)
    return torch.where(batch.off_policy[:, None], -weight * batch.logps, 0.0)


TRACES_APART = (trace_penalty,)
"""Penalties that are all a trace has: it enters no group, and has a normaliser of its own."""


def reference_penalty(
    batch: TokenBatch, log_ratio: Tensor, coefs: Coefs, options: Options
) -> Tensor:
    """kl_coef·KL(π_θ‖π_ref) by k3·ρ (TRL's ``use_bias_correction_kl``), k3 or k2; 0 on traces."""
    assert batch.ref_logps is not None
    kind, theirs = options["ref_estimator"], batch.ref_logps
    log_weight = log_ratio if kind == "k3_ratio" else torch.zeros_like(log_ratio)
    if batch.off_policy is not None:
        theirs = torch.where(batch.off_policy[:, None], batch.logps.detach(), theirs)
    weight, estimate = weigh("k2" if kind == "k2" else "k3", batch.logps, theirs, log_weight)
    return number(coefs, "kl_coef") * estimate * weight
