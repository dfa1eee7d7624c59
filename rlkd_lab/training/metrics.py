"""Metrics: the parts of a row that follow from what the phases of a step returned."""

from __future__ import annotations

import torch
from torch import Tensor

from rlkd_lab.models import distributed
from rlkd_lab.objectives import TokenBatch, k1, k2, k3
from rlkd_lab.training.environment import peak_memory_gib
from rlkd_lab.training.samples import Rollout
from rlkd_lab.training.setup import Row, Setup, StepValues, mean
from rlkd_lab.training.speed import Clock, matmul_flops, tokens
from rlkd_lab.training.token_stats import KL_METRICS, TokenStats


def token_row(batch: TokenBatch, rollout: Rollout, stats: TokenStats) -> Row:
    """Return entropy, KLs and the sampler's difference, as means over the sampled tokens, nats.

    ``traces/logp`` is the mean log π_old of a trace's tokens, nats, ≤ 0.

    Where the teacher reads something else, its KLs are means over the tokens with a teacher. With
    another tokenizer only k1 is one: the others are no sums over spans.
    """
    counts, values = rollout.sequences.completion_mask.bool(), stats.values
    trace = torch.zeros_like(counts)
    if rollout.off_policy is not None:
        trace = counts & rollout.off_policy[:, None]
        counts = counts & ~trace
    other = rollout.sequences.teacher is not None
    taught = _taught(counts, batch) if other else counts
    row: Row = {"entropy": mean(values["entropy"][counts])}
    if rollout.off_policy is not None:
        row["traces/logp"] = mean(values["old_logps"][trace])
    for kind, name in KL_METRICS.items():
        if kind in values:
            # of two equal models rounding leaves ±1e-8
            row[name] = _least(values[kind][taught])
            row[f"{name}_t1"] = _least(values[f"{kind}_t1"][taught])
    shares = rollout.sequences.teacher_shares
    for number, share in enumerate([] if shares is None else shares.unbind(1), 1):
        if f"teacher {number}" in values:
            kl = values[f"teacher {number}"][taught & (share > 0)[:, None]]
            row[f"teacher/kl_{number}"] = _least(kl)
    old = values["old_logps"]
    if "teacher_logps" in values:
        spans = rollout.sequences.spans is not None
        for name, estimate in (("k1", k1), ("k2", k2), ("k3", k3))[: 1 if spans else 3]:
            found = estimate(old, values["teacher_logps"])[taught]
            row[f"kl_teacher_{name}"] = mean(found) if found.numel() else None
    if "ref_logps" in values:
        row["kl_ref"] = mean(k3(old, values["ref_logps"])[counts])
    if rollout.sampler_logps is not None:
        gap = (old - rollout.sampler_logps)[counts].abs()
        row["sampling/logp_difference_mean"] = mean(gap)
        row["sampling/logp_difference_max"] = gap.max().item()
    return row


def _least(kl: Tensor) -> float | None:
    """Return the mean, at least 0; ``None`` where no token had a teacher."""
    return max(mean(kl), 0.0) if kl.numel() else None


def _taught(counts: Tensor, batch: TokenBatch) -> Tensor:
    """Return which of the tokens that count have a teacher, (B, T)."""
    return counts if batch.kd_weight is None else counts & (batch.kd_weight != 0)


def gate_row(setup: Setup, step: StepValues, batch: TokenBatch, stats: TokenStats) -> Row:
    """Return what gates the teacher, for methods with such a gate and prompted teachers.

    ``teacher/entropy`` is the mean entropy of the teacher's next token, nats, ≥ 0.
    ``teacher/gap_right`` and ``teacher/gap_wrong`` are means of log π_T − log π_old, nats.
    ``teacher/disagree`` is the share of judged tokens whose gap has the other sign, in [0, 1].
    Each is ``None`` where there is no such token.
    """
    needs, counts = setup.needs(step.coefs), batch.own_mask.bool()
    if "entropy" in needs:
        return {"teacher/entropy": mean(stats.values["teacher_entropy"][counts])}
    gated = "verdicts" in needs or setup.config.teacher_prompt is not None
    if not gated or batch.correct is None or "teacher_logps" not in stats.values:
        return {}
    gap = stats.values["teacher_logps"] - stats.values["old_logps"]
    if batch.counted is not None:
        counts = counts & batch.counted[:, None]
    if setup.config.teacher_prompt is not None:
        counts = _taught(counts, batch)
    right = (batch.correct > 0)[:, None].expand_as(counts)
    against = (torch.where(right, gap, -gap) < 0).float()

    def over(values: Tensor, where: Tensor) -> float | None:
        return mean(values[where]) if bool(where.any()) else None

    return {
        "teacher/gap_right": over(gap, counts & right),
        "teacher/gap_wrong": over(gap, counts & ~right),
        "teacher/disagree": over(against, counts),
    }


def time_row(
    setup: Setup, step: StepValues, rollout: Rollout, sampled: int, clock: Clock, seconds: float
) -> Row:
    """Return times, speed and memory of a step.

    Args:
        setup: config, method and models.
        step: knob values.
        rollout: of the step.
        sampled: tokens.
        clock: of the phases.
        seconds: of the step, without what is not training: evaluation and recorded samples.
    """
    config, policy = setup.config, setup.models.policy
    needed = setup.needs(step.coefs) | ({"old"} if config.minibatches > 1 else set())
    for_curves = {"divergences", "teacher", "reference", "old"} - needed
    row: Row = {f"time/{name}": spent for name, spent in clock.seconds.items()}
    row["train_time"] = seconds - sum(clock.seconds.get(name, 0.0) for name in for_curves)
    row["memory/peak_gib"] = peak_memory_gib(policy.device)
    if rollout.on_policy:
        # more, where groups without spread were left out
        forward = setup.models.size.forward(*tokens(rollout.sequences))
        clock.flops += forward / distributed.count()
        row["speed/sampled_tokens_per_second"] = sampled / clock.seconds["rollout"]
    peak = matmul_flops(policy.device, policy.head.weight.dtype)
    found = distributed.from_all((clock.flops, peak))
    computed, peak = (sum(each) for each in zip(*found, strict=True))
    speed = computed / sum(clock.seconds.values())
    return row | {"speed/tflops": speed / 1e12, "speed/utilisation": speed / peak}
