"""Advantages: what a completion, or a token, is credited with."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

KDMask = Literal["none", "wrong", "group_wrong"]


def group_advantages(rewards: Tensor, group_ids: Tensor, scale: bool = True) -> Tensor:
    """Â = (r − group mean) / (group std + 1e-4), with the unbiased std, as TRL; Dr.GRPO (arXiv
    2503.20783) leaves the division out.

    Args:
        rewards: (B,).
        group_ids: (B,) integers; completions of one prompt share an id.
        scale: divide by the spread.

    Returns:
        (B,), zero mean in every group; 0 throughout a group whose rewards are all equal.

    Raises:
        ValueError: for a group of one, which has no spread.

    >>> group_advantages(torch.tensor([1.0, 0.0, 3.0, 3.0]), torch.tensor([0, 0, 1, 1]), scale=False)
    tensor([ 0.5000, -0.5000,  0.0000,  0.0000])
    """
    # bf16 rewards would lose the small differences that a group lives on
    precise = rewards if rewards.dtype == torch.float64 else rewards.float()
    count: Tensor
    _, index, count = torch.unique(group_ids, return_inverse=True, return_counts=True)
    if int(count.min()) < 2:
        raise ValueError(
            "a group of one completion has no spread, so it has no group-relative advantage:"
            " sample at least 2 completions a prompt, or give advantages"
        )
    zeros = torch.zeros(len(count), dtype=precise.dtype, device=precise.device)
    centred = precise - (zeros.index_add(0, index, precise) / count)[index]
    # Rounding leaves ~1e-8 in a group of equal rewards, which the division by 1e-4 would turn into
    # a gradient.
    lowest = zeros.scatter_reduce(0, index, precise, "amin", include_self=False)
    highest = zeros.scatter_reduce(0, index, precise, "amax", include_self=False)
    centred = torch.where((lowest == highest)[index], 0.0, centred)
    if not scale:
        return centred
    variance = zeros.index_add(0, index, centred.square()) / (count - 1)
    return centred / (variance.sqrt()[index] + 1e-4)


def teacher_gap(teacher_logps: Tensor, old_logps: Tensor) -> Tensor:
    """d_t = log π_T − log π_old, detached, (B, T), nats.

    As an advantage its policy gradient is −∇KL(π_θ‖π_T) of the next token, on-policy.
    """
    return (teacher_logps - old_logps).detach()


def reward_guided_mask(kind: KDMask, correct: Tensor, group_ids: Tensor | None) -> Tensor:
    """M_i of KDRL (arXiv 2506.02208), §3.4: the teacher speaks only where the reward does not.

    Args:
        kind: ``none`` (1 everywhere), ``wrong`` (1 where the completion is wrong) or
            ``group_wrong`` (1 where nobody in the group is right).
        correct: (B,), 0 or 1.
        group_ids: (B,), needed for ``group_wrong``.

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
    right = torch.zeros(len(count), dtype=correct.dtype, device=correct.device).index_add(
        0, index, correct
    )
    return (right == 0).to(correct.dtype)[index]
