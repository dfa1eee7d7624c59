"""Update: gradients of a prepared rollout in micro-batches, and the optimizer steps.

The first pass over a rollout is on-policy. So teacher and reference score the tokens in the same
pass (:func:`~rlkd_lab.training.token_stats.score_rows`), unless they have done so before.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from rlkd_lab.models import distributed
from rlkd_lab.objectives import TokenBatch, prepare, token_loss
from rlkd_lab.objectives.loss import idle_rows
from rlkd_lab.training.collect import generator_for
from rlkd_lab.training.context import Context
from rlkd_lab.training.setup import Row, Setup, StepValues
from rlkd_lab.training.speed import Clock, tokens
from rlkd_lab.training.state import TrainState
from rlkd_lab.training.token_stats import (
    TokenStats,
    live_batch,
    micro_batches,
    own_rows,
    score_all,
    score_rows,
)

Result = TypeVar("Result")
NOT_FINITE = "losses that are not finite"
SUMMED = ("loss/", NOT_FINITE)
"""Statistics of a micro-batch that add up to the rollout's. Others are means over its tokens."""


@dataclass(frozen=True)
class Update:
    """What the passes of one step share."""

    setup: Setup
    step: StepValues
    context: Context
    state: TrainState
    stats: TokenStats
    clock: Clock
    batch: TokenBatch
    prepared: TokenBatch
    idle: Tensor
    """(B,) of bool: rows without gradient, whatever the model says."""
    scoring: bool
    """The first pass scores the tokens too."""


def update(
    setup: Setup,
    step: StepValues,
    context: Context,
    state: TrainState,
    batch: TokenBatch,
    stats: TokenStats,
    clock: Clock,
) -> Row:
    """Make all optimizer steps of a rollout.

    Args:
        setup: config, method and models.
        step: knob values.
        context: guards and recorded decisions.
        state: adapter and optimizer, which change.
        batch: the whole rollout, not prepared.
        stats: what the models said of its tokens; filled in the first pass if it is empty.
        clock: takes time and floating-point operations.

    Returns:
        Means over the passes of what :func:`~rlkd_lab.objectives.token_loss` reports,
        ``grad_norm``, and ``guard/skipped`` where updates were left out.

    Raises:
        FloatingPointError: a guard ends the run.
    """
    config = setup.config
    method = setup.method.at(step.coefs)
    prepared = prepare(method, batch)
    idle = idle_rows(method, prepared).cpu()
    job = Update(setup, step, context, state, stats, clock, batch, prepared, idle, not stats.values)
    for group in state.optimizer.param_groups:
        group["lr"] = step.learning_rate
    shuffle = generator_for(config, step.number, "minibatches")
    totals: dict[str, float] = {}
    norms: list[float] = []
    skipped = 0
    for number in range(config.updates_per_rollout):
        order = torch.arange(len(batch.logps))
        if config.minibatches > 1:
            order = torch.randperm(len(order), generator=shuffle)
        for norm, made in _one_pass(job, number, order, totals):
            norms.append(norm)
            skipped += not made
    state.follow()
    row = {
        name: value if name.endswith("/max") else value / config.updates_per_rollout
        for name, value in totals.items()
        if name != NOT_FINITE
    }
    row["grad_norm"] = sum(norms) / len(norms)
    return row | ({"guard/skipped": float(skipped)} if skipped else {})


def _one_pass(
    job: Update, number: int, order: Tensor, totals: dict[str, float]
) -> list[tuple[float, bool]]:
    """One optimizer step for each minibatch of a pass.

    Statistics go into ``totals``.

    Returns:
        The gradient's norm, and whether the update was made, a minibatch.
    """
    config, state = job.setup.config, job.state
    parts = min(config.minibatches, len(order))
    scoring = job.scoring and number == 0
    done = []
    for place, chosen in enumerate(order.tensor_split(parts)):
        if number or place:
            job.setup.models.sync()
        passes = functools.partial(gradients, job, chosen, parts, scoring)
        name = f"update {number * parts + place + 1}"
        found = within_memory(job.context, state, job.step.number, name, passes)
        for each in distributed.from_all(found):
            _join(totals, each)
        _add_up_gradients(state.parameters)
        if scoring:
            job.stats.share()
        norm = float(torch.nn.utils.clip_grad_norm_(state.parameters, config.max_grad_norm))
        made = job.context.guards.update(job.step.number, _problems(job, norm, totals))
        if made:
            state.optimizer.step()
        done.append((norm, made))
    return done


def gradients(job: Update, chosen: Tensor, parts: int, scoring: bool) -> dict[str, float]:
    """Compute the gradient of a minibatch.

    Args:
        job: of the step.
        chosen: its rows.
        parts: number of minibatches in a pass. The normaliser is the whole rollout's, so a
            minibatch holds only its share of the mean.
        scoring: let the models score the tokens in the same forward.

    Returns:
        Its share of the statistics.
    """
    setup, prepared, stats = job.setup, job.prepared, job.stats
    job.state.optimizer.zero_grad()
    scale = _loss_scale(setup, prepared)
    found: dict[str, float] = {}
    unmoved, whole = _unmoved(job), max(float(prepared.own_mask.sum()), 1.0)
    # a minibatch of idle rows alone still has a gradient, of zeros
    idle = job.idle[chosen] & ~job.idle[chosen].all()
    mine = own_rows(chosen[~idle], stats.sequences)
    for rows in micro_batches(stats.sequences, mine, job.context.decisions.micro_batch):
        part = stats.sequences.select(rows)
        scored = score_rows(setup, stats, rows, job.clock) if scoring else None
        with job.clock("update"):
            known = stats.fill(prepared, rows)
            live = live_batch(setup, stats, job.step.coefs, known, part, scored, rows)
            live = _without_rounding(live, unmoved)
            loss, values = token_loss(setup.method.at(job.step.coefs), live)
            (loss * parts * scale).backward()
        # backwards through frozen weights is as much as forwards
        passes = 1 + (not scoring) + setup.config.gradient_checkpointing
        job.clock.flops += setup.models.size.forward(*tokens(part)) * passes
        share = float(live.own_mask.sum() / whole)
        values[NOT_FINITE] = float(not math.isfinite(loss.item()))
        _join(found, {name: _part_of(name, value, share) for name, value in values.items()})
    for parameter in job.state.parameters if scale != 1 else ():
        if parameter.grad is not None:
            parameter.grad /= scale
    if scoring:  # what has no gradient still counts in the metrics
        score_all(setup, stats, chosen[idle], job.context.decisions.micro_batch, job.clock)
    return found


def _loss_scale(setup: Setup, prepared: TokenBatch) -> float:
    """Return a power of two by which a float16 loss is multiplied, which rounds nothing: the share
    of one token in a mean over many would be too small a number on its way back.
    """
    if setup.models.policy.head.weight.dtype != torch.float16:
        return 1.0
    many = max(float(prepared.mask.sum()), prepared.normalizer or 1.0)
    return float(2.0 ** int(math.log2(many)))


def _unmoved(job: Update) -> set[str]:
    """Those of teacher and reference that the method needs and whose weights are the policy's, such
    as its own base before the first update.
    """
    models = job.setup.models
    if models.copy is None:
        return set()
    unmoved = set()
    other = job.setup.config.teacher_prompt is not None or models.whole_teacher is None
    for name in job.setup.needs(job.step.coefs) & job.setup.all_scorers:
        if name == "teacher" and other:  # it is asked something else, or is not alone
            continue
        copy = models.frozen(name).copy
        if copy is not None and models.copy.equals(copy):
            unmoved.add(name)
    return unmoved


def _without_rounding(batch: TokenBatch, unmoved: set[str]) -> TokenBatch:
    """Let models with the policy's weights say what the policy says.

    The frozen models run through another forward, which rounds differently. Where their term is the
    whole gradient, Adam would make a full step of 1e-7 nats.
    """
    same = batch.logps.detach()
    if "reference" in unmoved:
        batch = replace(batch, ref_logps=same)
    if "teacher" in unmoved:
        # with a graph, through which the update goes back
        divergence = None if batch.divergence is None else 0.0 * batch.logps
        teacher = None if batch.teacher_logps is None else same
        batch = replace(batch, old_logps=same, teacher_logps=teacher, divergence=divergence)
    return batch


def within_memory(
    context: Context, state: TrainState, step: int, name: str, passes: Callable[[], Result]
) -> Result:
    """Run some passes over a rollout. Out of memory, begin them again with half of the micro-batch.

    The sums are the same to rounding. The smaller size stays, and an event records it.

    Args:
        context: its decisions are followed.
        state: gradients are cleared before another try.
        step: of the run.
        name: of the passes, such as ``update 1``.
        passes: called without arguments.

    Raises:
        torch.OutOfMemoryError: one completion at a time does not fit.
    """
    decisions = context.decisions
    decisions.before_pass(step, name)
    while True:
        try:
            return passes()
        except torch.OutOfMemoryError as error:
            if decisions.micro_batch == 1:
                raise torch.OutOfMemoryError(
                    f"not even one completion at a time fits into memory: {error}"
                ) from None
        # only here is what the passes held let go
        state.optimizer.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        decisions.halve(step, name)


def _problems(job: Update, norm: float, totals: dict[str, float]) -> dict[str, str | None]:
    """By guard, what is wrong before an update, in words, or ``None``."""
    batch, values, guards = job.batch, job.stats.values, job.context.guards
    counts = batch.completion_mask.bool()
    teacher = None
    needed = "teacher" in job.setup.needs(job.step.coefs)
    if needed and job.step.coefs.get("kd_coef") != 0:
        speaks = counts if batch.kd_weight is None else counts & (batch.kd_weight != 0)
        teacher = _not_finite(values.get("teacher_logps"), speaks, "the teacher's log-probability")
    broken = None
    if totals.get(NOT_FINITE) or not math.isfinite(norm):
        assert batch.rewards is not None
        finite = bool(batch.rewards.isfinite().all())
        broken = (
            _not_finite(values.get("old_logps"), counts, "the policy's log-probability")
            or (None if finite else "a reward is not finite")
            or ("the loss is not finite" if totals.get(NOT_FINITE) else None)
            or "the gradient is not finite"
        )
    ratio = totals.get("ratio/max", 0.0)
    exploded = f"the largest probability ratio is {ratio:.3g}"
    return {
        "teacher": teacher,
        "loss": broken,
        "ratio": exploded if guards.over("ratio", ratio) else None,
    }


def _not_finite(values: Tensor | None, where: Tensor, what: str) -> str | None:
    number = 0 if values is None else int((~values.isfinite() & where).sum())
    return f"{what} of {number} token{'s' * (number > 1)} is −∞ or not a number" if number else None


def _add_up_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Over the processes: each has the gradient of its rows."""
    if distributed.count() == 1:
        return
    flat = torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
    )
    sizes = [parameter.numel() for parameter in parameters]
    for parameter, total in zip(parameters, distributed.add_up(flat).split(sizes), strict=True):
        parameter.grad = total.view_as(parameter).clone()


def _part_of(name: str, value: float, share: float) -> float:
    """Return what a micro-batch with a share of the tokens adds to the rollout's statistic."""
    return value if name.startswith(SUMMED) or name.endswith("/max") else value * share


def _join(totals: dict[str, float], found: dict[str, float]) -> None:
    """Add statistics of a part of the rollout: maxima by the larger, others by their sum."""
    for name, value in found.items():
        before = totals.get(name, 0.0)
        totals[name] = max(before, value) if name.endswith("/max") else before + value
