"""What a whole rollout decides: advantages, the teacher's weight and the normaliser."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlkd_lab.objectives.advantages import group_advantages, reward_guided_mask
from rlkd_lab.objectives.batch import TokenBatch
from rlkd_lab.objectives.surrogates import normalizer


def weigh_rollout(
    batch: TokenBatch, options: dict[str, Any], grouped: bool, apart: bool
) -> TokenBatch:
    """Return the batch with Â, the teacher's weight and the normaliser.

    Args:
        batch: the whole rollout.
        options: of the method.
        grouped: whether the method compares completions of a group.
        apart: whether traces enter no group. Then the normaliser is that of the other rows, and
            the weight of a trace's token turns it into the normaliser of the traces.
    """
    traces = batch.off_policy if apart else None
    own = slice(None) if traces is None else ~traces

    def count(rows: Tensor | slice) -> float:
        mask = batch.mask[rows]
        return normalizer(mask, options["aggregation"], options["constant_length"])

    denominator = count(own) if batch.normalizer is None else batch.normalizer
    weight, advantages, counted = teacher_weight(batch, options), batch.advantages, batch.counted
    if traces is not None:
        weight = torch.full_like(weight, max(denominator, 1.0) / max(count(traces), 1.0))
        counted = ~traces if counted is None else counted & ~traces
    if advantages is None and grouped:
        assert batch.rewards is not None and batch.group_ids is not None
        scale = options["scale_rewards"] == "group"
        advantages = group_advantages(batch.rewards, batch.group_ids, scale, counted)
    return replace(
        batch,
        kd_weight=weight,
        advantages=None if advantages is None else advantages.detach(),
        normalizer=denominator,
    )


def teacher_weight(batch: TokenBatch, options: dict[str, Any]) -> Tensor:
    """Return what the teacher term is multiplied by, per token, (B, T), ≥ 0: the batch's own weight
    times the reward-guided mask M, rescaled where the normaliser counts kept tokens alone.
    """
    kind, aggregation = options["kd_mask"], options["aggregation"]
    weight = torch.ones_like(batch.logps)
    if batch.kd_weight is not None:
        given = batch.kd_weight.to(weight.dtype)
        weight = given if given.dim() == 2 else given[:, None].expand_as(batch.logps)
    if kind != "none":
        assert batch.correct is not None
        correct = batch.correct.to(weight.dtype)
        weight = weight * reward_guided_mask(kind, correct, batch.group_ids, batch.counted)[:, None]
    if options["kd_normalizer"] == "kept":
        kept = batch.mask * (weight > 0)
        if aggregation == "token":
            total, full = float(kept.sum()), float(batch.mask.sum())
        else:
            total, full = float((kept.sum(-1) > 0).sum()), float(len(kept))
        weight = weight * (full / max(total, 1.0))
    return weight.detach()
