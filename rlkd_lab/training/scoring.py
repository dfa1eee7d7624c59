"""Score: rewards of the completions, and what can be seen of them before a model scores tokens."""

from __future__ import annotations

import functools
from typing import Any, Literal

import torch
from torch import Tensor

from rlkd_lab.models import Sequences, distributed
from rlkd_lab.objectives import TokenBatch
from rlkd_lab.tasks import judge
from rlkd_lab.tasks.rewards import Verdict, check_verifier
from rlkd_lab.training.samples import Rollout
from rlkd_lab.training.setup import Row, Setup, mean


def score(setup: Setup, rollout: Rollout) -> tuple[TokenBatch, Row, list[Verdict]]:
    """Judge the completions of a rollout.

    Returns:
        The batch with rewards, groups and masks (log-probabilities are still 0), metrics, and a
        verdict a completion.

    Raises:
        ValueError: the verifier failed on every completion.
    """
    config, sequences = setup.config, rollout.sequences
    device = setup.models.policy.device
    lengths = sequences.completion_mask.sum(1)
    verdicts = _judged(setup, rollout, lengths)
    correct = torch.tensor([float(verdict.correct) for verdict in verdicts], device=device)
    mask = sequences.completion_mask
    if config.mask_truncated:
        mask = mask * rollout.finished.to(mask.device)[:, None]
    counted = torch.tensor([verdict.counted for verdict in verdicts], device=device)
    batch = TokenBatch(
        logps=torch.zeros(mask.shape, device=device),
        completion_mask=mask,
        sampler_logps=rollout.sampler_logps,
        rewards=torch.tensor([verdict.reward for verdict in verdicts], device=device),
        correct=correct,
        group_ids=torch.arange(len(verdicts), device=device) // config.group_size,
        counted=None if bool(counted.all()) else counted,
        off_policy=rollout.off_policy,
        kd_weight=teacher_weight(setup, sequences),
    )
    off, size = rollout.off_policy, config.group_size
    if off is None:
        row = _lengths(setup, rollout, lengths.float(), correct)
        return batch, row | (_rewards(batch, verdicts, size) if rollout.on_policy else {}), verdicts
    own = (~off).nonzero()[:, 0]
    some, mine = batch.select(own), [verdicts[i] for i in own.tolist()]
    row = _lengths(setup, rollout, lengths.float(), correct, own.tolist())
    assert batch.rewards is not None
    row["traces/reward"] = batch.rewards[off].mean().item()
    return batch, row | _rewards(some, mine, size - 1), verdicts


def _judged(setup: Setup, rollout: Rollout, lengths: Tensor) -> list[Verdict]:
    """In the first of several processes: time limits may pass in one and not in another."""
    config, finished = setup.config, rollout.finished.tolist()
    ask = functools.partial(
        judge,
        setup.models.task,
        config.reward,
        rollout.texts,
        rollout.examples,
        finished,
        lengths.tolist(),
        config.max_new_tokens,
        config.group_size,
        _left_out(setup),
    )
    verdicts = distributed.from_first(ask() if distributed.first() else [])
    check_verifier(setup.models.task, verdicts, finished)
    return verdicts


def _left_out(setup: Setup) -> tuple[Literal["unjudged", "truncated"], ...]:
    """Return which completions do not enter the statistics of their group."""
    if setup.options["group_rows"] == "all":
        return ()
    return ("unjudged", "truncated") if setup.config.mask_truncated else ("unjudged",)


def _rewards(batch: TokenBatch, verdicts: list[Verdict], group_size: int) -> Row:
    assert batch.rewards is not None and batch.correct is not None
    rewards = batch.rewards
    row: Row = {"reward": rewards.mean().item(), "accuracy": batch.correct.mean().item()}
    for name in verdicts[0].parts:
        row[f"reward/{name}"] = sum(one.parts[name] for one in verdicts) / len(verdicts)
    if any(verdict.why for verdict in verdicts):
        row["reward/unjudged"] = sum(bool(one.why) for one in verdicts) / len(verdicts)
    if group_size > 1:
        spread = group_spread(batch, group_size)
        row["reward_std"] = spread.mean().item()
        row["frac_reward_zero_std"] = (spread == 0).float().mean().item()
    return row


def _lengths(
    setup: Setup, rollout: Rollout, lengths: Tensor, correct: Tensor, rows: list[int] | None = None
) -> Row:
    """Return lengths in tokens, and what the tokens are spent on: the three parts add up to the
    mean. Some rows alone, if they are given.
    """
    rows = list(range(len(rollout.texts))) if rows is None else rows
    lengths, correct, whole = lengths[rows], correct[rows], rollout.finished[rows]
    # a task may say which part of a completion checks the rest
    part = getattr(setup.models.task, "checking", None)
    tokenizer: Any = setup.models.policy.tokenizer
    checks = [
        0 if part is None else len(tokenizer(part(text), add_special_tokens=False).input_ids)
        for text in (rollout.texts[i] for i in rows)
    ]
    finished = whole.to(lengths.device)
    checking = torch.tensor(checks, device=lengths.device).clamp(max=lengths.max())
    checking = (checking * finished).float()
    truncated = (lengths * ~finished).float()
    return {
        "completions/mean_length": lengths.mean().item(),
        "completions/mean_length_correct": mean(lengths[correct == 1]),
        "completions/mean_length_wrong": mean(lengths[correct == 0]),
        "completions/clipped_ratio": 1 - whole.float().mean().item(),
        "completions/length_working": (lengths - checking - truncated).mean().item(),
        "completions/length_checking": checking.mean().item(),
        "completions/length_truncated": truncated.mean().item(),
    }


def teacher_weight(setup: Setup, sequences: Sequences) -> Tensor | None:
    """Return the weight of the teacher per token, (B, T), or ``None`` where it is 1 everywhere.

    It is 0 at an end of sequence that the teacher would write with another token: there its
    log-probability says nothing about the answer.
    """
    if not setup.models.teachers:
        return None
    same = [one.own.eos_ids for one in setup.models.teachers if one.reader is None]
    ours = setup.models.policy.eos_ids
    theirs = frozenset.intersection(ours, *same)
    if theirs >= ours:
        return None
    ids = sequences.completion_ids
    return (~torch.isin(ids, torch.tensor(sorted(ours - theirs), device=ids.device))).float()


def group_spread(batch: TokenBatch, group_size: int) -> Tensor:
    """Return the unbiased std of the rewards that count, by group, (prompts,), ≥ 0.

    It is 0 where fewer than two count.
    """
    assert batch.rewards is not None
    grouped = batch.rewards.view(-1, group_size)
    if batch.counted is None:
        return grouped.std(1)
    kept = zip(grouped, batch.counted.view(-1, group_size), strict=True)
    groups = [group[counts] for group, counts in kept]
    return torch.stack([g.std() if len(g) > 1 else g.new_zeros(()) for g in groups])


def rewards_differ(batch: TokenBatch, group_size: int) -> Tensor:
    """Return which groups have rewards that count and differ, (prompts,) of bool."""
    assert batch.rewards is not None
    grouped = batch.rewards.view(-1, group_size).cpu()
    counts = torch.ones_like(grouped, dtype=torch.bool)
    if batch.counted is not None:
        counts = batch.counted.view(-1, group_size).cpu()
    largest = grouped.masked_fill(~counts, -torch.inf).amax(1)
    return largest > grouped.masked_fill(~counts, torch.inf).amin(1)
