"""How far two ways to compute the same log-probabilities may differ."""

from __future__ import annotations

from torch import Tensor

MAX_GAP = 1e-2
"""Nats, at the worst token, in float32: between the policy, its dense copy and the sampler."""
MAX_GAP_OTHER = 1e-3
"""Nats, at the worst token, in float32, without a merged copy: rounding is about 1e-5 there."""
MAX_GAP_16 = 0.05
"""Nats, in the mean over tokens, in 16 bit."""


def gap_and_limit(gaps: Tensor, exact: bool = True, limit: float = MAX_GAP) -> tuple[float, float]:
    """Return the difference that counts, and how large it may be.

    Args:
        gaps: absolute differences of log-probabilities, (N,), nats.
        exact: whether both sides compute in float32. Then the worst token counts, else the mean.
        limit: in float32, nats.
    """
    return (float(gaps.max()), limit) if exact else (float(gaps.mean()), MAX_GAP_16)


def check_gap(
    gaps: Tensor, wrong: str, instead: str, exact: bool = True, limit: float = MAX_GAP
) -> None:
    """Raise ValueError where the difference is above its limit.

    Args:
        gaps: as in :func:`gap_and_limit`, as are ``exact`` and ``limit``.
        wrong: what a large difference means.
        instead: what to do then.
    """
    gap, limit = gap_and_limit(gaps, exact, limit)
    if gap > limit:  # a NaN is the loss's to report
        raise ValueError(f"{wrong}; log-probabilities differ by {gap:.2g} nats; {instead}")
