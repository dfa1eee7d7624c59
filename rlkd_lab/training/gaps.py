"""How far two ways to compute the same log-probabilities, or gradients, may differ."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rlkd_lab.models import LanguageModel, Sequences, policy_logps
from rlkd_lab.models.verification import NOISES_16
from rlkd_lab.models.wide import in_float32

MAX_GAP = 1e-2
"""Nats, at the worst token, in float32: between the policy, its dense copy and the sampler."""
MAX_GAP_OTHER = 1e-3
"""Nats, at the worst token, in float32, without a merged copy: rounding is about 1e-5 there."""
MAX_GAP_16 = 0.05
"""Nats, in the mean over tokens, in 16 bit; more, where the model's own noise explains it."""
MAX_GRADIENT_GAP = {True: 1e-3, False: 0.05}
"""Relative difference of gradients before and after a generation, in float32 or not; rounding
leaves about 1e-6 and 1e-2.
"""
MAX_COPY_GAP = {True: 1e-2, False: 0.1}
"""The same for gradients through the dense copy and through the policy. In 16 bit the policy's own
noise comes twice on top; of it were seen .3 to .9, over depths of 2 to 64 layers.
"""
MAX_SLOPE_GAP = 0.05
"""Relative difference of a gradient's norm and the slope along it, from two values of the loss;
in float32 alone.
"""
MAX_BASE_GAP = 1e-4
"""Nats. The same products on the same machine: no difference was seen."""
MIN_ADAPTER_GAP = 1e-3
"""Nats by which an adapter of size STIR of the self-check changes some token at least."""
Noise = Callable[[], float]


def gap_and_limit(
    gaps: Tensor, exact: bool = True, limit: float = MAX_GAP, noise: Noise = float
) -> tuple[float, float]:
    """Return the difference that counts, and how large it may be.

    Args:
        gaps: absolute differences of log-probabilities, (N,), nats.
        exact: whether both sides compute in float32. Then the worst token counts, else the mean.
        limit: in float32, nats.
        noise: of the model, as :func:`noise_of` gives it; called in 16 bit, above the limit.
    """
    if exact:
        return float(gaps.max()), limit
    gap = float(gaps.mean())
    return gap, MAX_GAP_16 if gap <= MAX_GAP_16 else max(MAX_GAP_16, NOISES_16 * noise())


@torch.no_grad()
def noise_of(lm: LanguageModel, sequences: Sequences, temperature: float = 1.0) -> float:
    """Return how far a 16-bit model is from itself in float32, in the mean over tokens, nats."""
    own = policy_logps(lm, sequences, temperature)[0]
    with in_float32(lm.causal_lm):
        wide = policy_logps(lm, sequences, temperature)[0]
    return float((wide - own)[sequences.completion_mask.bool()].abs().mean())


def check_gap(
    gaps: Tensor,
    wrong: str,
    instead: str,
    exact: bool = True,
    limit: float = MAX_GAP,
    noise: Noise = float,
) -> None:
    """Raise ValueError where the difference is above its limit.

    Args:
        gaps: as in :func:`gap_and_limit`, as are ``exact``, ``limit`` and ``noise``.
        wrong: what a large difference means.
        instead: what to do then.
    """
    gap, limit = gap_and_limit(gaps, exact, limit, noise)
    if gap > limit:  # a NaN is the loss's to report
        raise ValueError(f"{wrong}; log-probabilities differ by {gap:.2g} nats; {instead}")
