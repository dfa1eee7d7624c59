"""Advantages: what a completion, or a token, is credited with."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

KDMask = Literal["none", "wrong", "group_wrong"]


def group_advantages(
    rewards: Tensor, group_ids: Tensor, scale: bool = True, counted: Tensor | None = None
) -> Tensor:
    """Â = (r − group mean) / (group std + 1e-4), with the unbiased std, as TRL.

    Dr. GRPO (arXiv 2503.20783) leaves the division out.

    Args:
        rewards: (B,).
        group_ids: (B,) integers; completions of one prompt share an id.
        scale: divide by the spread.
        counted: (B,) of bool: completions that enter mean and spread; all by default.

    Returns:
        (B,), zero mean in every group; 0 throughout a group whose rewards are all equal.
        A completion that does not count has 0. So has a group in which fewer than two count.

    Raises:
        ValueError: for a group of one, which has no spread.

    >>> rewards, groups = torch.tensor([1.0, 0.0, 3.0, 3.0]), torch.tensor([0, 0, 1, 1])
    >>> group_advantages(rewards, groups, scale=False)
    tensor([ 0.5000, -0.5000,  0.0000,  0.0000])
    >>> judged = torch.tensor([True, True, False])
    >>> group_advantages(torch.tensor([1.0, 0.0, 0.0]), torch.zeros(3), scale=False, counted=judged)
    tensor([ 0.5000, -0.5000,  0.0000])
    """
    # bf16 rewards would lose the small differences that a group lives on
    precise = rewards if rewards.dtype == torch.float64 else rewards.float()
    size: Tensor
    _, index, size = torch.unique(group_ids, return_inverse=True, return_counts=True)
    if int(size.min()) < 2:
        raise ValueError(
            "a group of one completion has no spread, so it has no group-relative advantage:"
            " sample at least 2 completions a prompt, or give advantages"
        )
    enters = torch.ones_like(index, dtype=torch.bool) if counted is None else counted
    zeros = torch.zeros(len(size), dtype=precise.dtype, device=precise.device)
    count = zeros.index_add(0, index, enters.to(precise.dtype))
    # where, not a product: the reward of a completion that does not count may be a NaN
    total = zeros.index_add(0, index, torch.where(enters, precise, 0.0))
    centred = precise - (total / count.clamp(min=1))[index]
    # Rounding leaves ~1e-8 in a group of equal rewards. Divided by 1e-4 it would be a gradient.
    lowest, highest = (
        zeros.scatter_reduce(0, index, torch.where(enters, precise, fill), how, include_self=False)
        for how, fill in (("amin", torch.inf), ("amax", -torch.inf))
    )
    centred = torch.where((lowest == highest)[index] | ~enters, 0.0, centred)
    if not scale:
        return centred
    variance = zeros.index_add(0, index, centred.square()) / (count - 1).clamp(min=1)
    return centred / (variance.sqrt()[index] + 1e-4)


def teacher_gap(teacher_logps: Tensor, old_logps: Tensor) -> Tensor:
    """d_t = log π_T − log π_old, detached, (B, T), nats.

    As an advantage its policy gradient is −∇KL(π_θ‖π_T) of the next token, on-policy.
    """
    return (teacher_logps - old_logps).detach()


def reward_guided_mask(
    kind: KDMask, correct: Tensor, group_ids: Tensor | None, counted: Tensor | None = None
) -> Tensor:
    """M_i of KDRL (arXiv 2506.02208), §3.4: the teacher speaks only where the reward does not.

    Args:
        kind: ``none`` (1 everywhere), ``wrong`` (1 where the completion is wrong) or
            ``group_wrong`` (1 where nobody in the group is right).
        correct: (B,), 0 or 1.
        group_ids: (B,), needed for ``group_wrong``.
        counted: (B,) of bool: completions that ``group_wrong`` looks at; all by default. A group
            in which none counts has nobody who is right, so the teacher speaks there.

    Returns:
        (B,), 0 or 1.
    """
    if kind == "none":
        return torch.ones_like(correct)
    if kind == "wrong":
        return 1 - correct
    if group_ids is None:
        raise ValueError("kd_mask='group_wrong' needs group_ids: which completions share a prompt")
    _, index, count = torch.unique(group_ids, return_inverse=True, return_counts=True)
    seen = correct if counted is None else correct * counted
    right = torch.zeros(len(count), dtype=correct.dtype, device=correct.device).index_add(
        0, index, seen
    )
    return (right == 0).to(correct.dtype)[index]
