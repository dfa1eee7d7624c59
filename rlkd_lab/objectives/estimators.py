"""KL estimators on samples, exact divergences over a vocabulary, and a top-k version that keeps the
tail.

Sampled estimators take the log-probabilities of sampled tokens, ``k(logps, other_logps)``, with R =
other_logps − logps. What their *value* estimates and where their *gradient* points are different
questions (tokens sampled from π_θ, gradient of the next-token divergence at the sampled prefixes):

==== ================= ======================== ===================
name per-token value   expected value           expected gradient
==== ================= ======================== ===================
k1   −R                KL(π_θ‖π_other)          0
k2   ½R²               biased                   ∇KL(π_θ‖π_other)
k3   exp(R) − R − 1    KL(π_θ‖π_other)          ∇KL(π_other‖π_θ)
==== ================= ======================== ===================

The influence of a token on later prefixes is not part of these gradients (discount 0). On sequences
of two and more tokens the per-token gradient is therefore not the gradient of the sequence KL.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Divergence = Literal["reverse", "forward", "jsd"]
LARGE = 40.0
"""Nats of R above which k3 is exp(R) to the last digit of float64."""


def k1(logps: Tensor, other_logps: Tensor) -> Tensor:
    """−R: unbiased in value, but useless as a loss: its expected gradient is 0.

    Any shape; nats; any sign.
    """
    return logps - other_logps


def k2(logps: Tensor, other_logps: Tensor) -> Tensor:
    """½R²: biased in value, and as an on-policy loss the gradient of the reverse KL.

    Any shape; nats²; ≥ 0. KDRL (arXiv 2506.02208), Eq. 8.
    """
    return 0.5 * (other_logps - logps).square()


def k3(logps: Tensor, other_logps: Tensor) -> Tensor:
    """exp(R) − R − 1: unbiased in value; as an on-policy loss the gradient of the *forward* KL. Any
    shape; nats; ≥ 0.

    >>> k3(torch.tensor([-1.0]), torch.tensor([-1.0]))
    tensor([0.])
    """
    log_ratio = other_logps - logps
    return torch.expm1(log_ratio) - log_ratio


def weigh(
    kind: Literal["k2", "k3"], logps: Tensor, other_logps: Tensor, log_weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Return a weight and an estimate whose product is exp(log_weight)·k2 or k3, also where one
    overflows and the other is 0. Any shape; each ≥ 0.

    Where the estimate is 0 the weight is 1. Where R is above :data:`LARGE`, the weight of k3 is 1
    and its estimate exp(log_weight + R).
    """
    if kind == "k2":
        estimate = k2(logps, other_logps)
        return log_weight.masked_fill(estimate == 0, 0.0).exp(), estimate
    log_ratio = other_logps - logps
    large = log_ratio > LARGE
    near = k3(logps, torch.where(large, logps, other_logps))
    estimate = torch.where(large, (log_weight + log_ratio).masked_fill(~large, 0.0).exp(), near)
    return log_weight.masked_fill(large | (estimate == 0), 0.0).exp(), estimate


def _logsumexp(log_probs: Tensor, dim: int, keepdim: bool = False) -> Tensor:
    # torch's has a NaN gradient where every term is -inf
    floor = torch.finfo(log_probs.dtype).min
    total = torch.logsumexp(log_probs.clamp(min=floor), dim=dim, keepdim=keepdim)
    return torch.where(total > floor / 2, total, -torch.inf)


def _relative_entropy(log_p: Tensor, log_q: Tensor) -> Tensor:
    # A token that p excludes contributes 0; where log_p is -inf both factors are replaced, or 0·inf
    # would poison the gradient.
    possible = torch.isfinite(log_p)
    difference = torch.where(possible, log_p, 0.0) - torch.where(possible, log_q, 0.0)
    return (torch.where(possible, log_p, -torch.inf).exp() * difference).sum(-1)


def reverse_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(π_θ‖π_T) = Σ_v p (log p − log q), with ``log_p`` the student's and ``log_q`` the
    teacher's. (..., V) → (...); nats; ≥ 0.
    """
    return _relative_entropy(log_p, log_q)


def forward_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(π_T‖π_θ) = Σ_v q (log q − log p), arguments as in :func:`reverse_kl`. (..., V) →
    (...); nats; ≥ 0.
    """
    return _relative_entropy(log_q, log_p)


def jsd(log_p: Tensor, log_q: Tensor, weight: float = 0.5) -> Tensor:
    """Generalised Jensen–Shannon divergence of GKD (arXiv 2306.13649), as TRL's
    ``generalized_jsd_loss``.

    m = (1−w)·p + w·q;  JSD = w·KL(q‖m) + (1−w)·KL(p‖m), and by convention forward KL at w = 0 and
    reverse KL at w = 1.

    Args:
        log_p: student log-probabilities, (..., V).
        log_q: teacher log-probabilities, (..., V).
        weight: w in [0, 1].

    Returns:
        (...); nats; ≥ 0; for 0 < w < 1 at most the entropy of the coin w.
    """
    if not 0.0 <= weight <= 1.0:
        raise ValueError(f"the JSD weight lies in [0, 1]; got {weight}")
    if weight == 0.0:
        return forward_kl(log_p, log_q)
    if weight == 1.0:
        return reverse_kl(log_p, log_q)
    log_weights = torch.tensor([1.0 - weight, weight], dtype=log_p.dtype, device=log_p.device).log()
    mixture = _logsumexp(torch.stack([log_p + log_weights[0], log_q + log_weights[1]]), dim=0)
    return weight * _relative_entropy(log_q, mixture) + (1.0 - weight) * _relative_entropy(
        log_p, mixture
    )


def divergence(kind: Divergence, log_p: Tensor, log_q: Tensor, weight: float = 0.5) -> Tensor:
    """One of the three exact divergences by name;

    ``weight`` is used by ``jsd`` alone. (..., V) → (...).
    """
    if kind == "jsd":
        return jsd(log_p, log_q, weight)
    if kind not in ("reverse", "forward"):
        raise ValueError(f"unknown divergence {kind!r}: use 'reverse', 'forward' or 'jsd'")
    return reverse_kl(log_p, log_q) if kind == "reverse" else forward_kl(log_p, log_q)


def topk_with_tail(log_p: Tensor, log_q: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Coarsen two distributions to the teacher's ``k`` likeliest tokens and one bucket for all the
    rest.

    Merging tokens can only lower a divergence, so what is computed on the result lies between 0 and
    the exact value. Without the tail bucket it could be negative.

    Args:
        log_p: student log-probabilities, (..., V).
        log_q: teacher log-probabilities, (..., V).
        k: number of tokens kept, 1 ≤ k ≤ V; k = V changes nothing.

    Returns:
        Both, (..., k + 1), or (..., V) for k = V; each sums to 1 in probability.
    """
    vocabulary = log_q.shape[-1]
    if not 1 <= k <= vocabulary:
        raise ValueError(f"top-k needs 1 ≤ k ≤ {vocabulary} (the vocabulary); got {k}")
    if k == vocabulary:
        return log_p, log_q
    index = log_q.topk(k, dim=-1).indices
    kept = torch.zeros_like(log_q, dtype=torch.bool).scatter(-1, index, True)

    def coarse(log_probs: Tensor) -> Tensor:
        # The tail is summed, not taken as 1 − top: that difference loses all its digits where the
        # top holds nearly everything.
        tail = _logsumexp(log_probs.masked_fill(kept, -torch.inf), dim=-1, keepdim=True)
        return torch.cat([log_probs.gather(-1, index), tail], dim=-1)

    return coarse(log_p), coarse(log_q)
