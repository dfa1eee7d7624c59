"""What a teacher is asked: the student's own tokens, after the student's prompt or another one.

A step needs log-probabilities, entropies and hidden states of the sampled tokens. Every teacher
gives them through one :class:`~rlkd_lab.training.models.FrozenModel`. Which prompt comes before the
tokens stands in :class:`~rlkd_lab.models.sequences.Sequences`. So all that ask a teacher ask alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rlkd_lab.objectives import TokenBatch
from rlkd_lab.tasks.fields import SIBLING, fields_in
from rlkd_lab.tasks.rewards import Verdict
from rlkd_lab.training.prompts import teacher_number, teacher_text
from rlkd_lab.training.samples import Rollout
from rlkd_lab.training.setup import Row, Setup
from rlkd_lab.training.teacher_settings import route_of, weights_in


def with_teacher_prompts(
    setup: Setup, rollout: Rollout, batch: TokenBatch, verdicts: Sequence[Verdict]
) -> tuple[Rollout, TokenBatch, Row]:
    """Put the teacher's prompts beside the student's.

    Where a completion has no right sibling, the teacher reads the student's prompt and has no
    weight.

    Returns:
        The rollout with them, the batch with the teacher's weight, and
        ``teacher/without_sibling``, the share of completions without one, in [0, 1].
    """
    models, template = setup.models, setup.config.teacher_prompt
    if models.more:
        sequences = replace(rollout.sequences, teacher_shares=_shares(setup, rollout))
        rollout = replace(rollout, sequences=sequences)
    if template is None or models.teacher is None:
        return rollout, batch, {}
    if SIBLING not in fields_in(template):
        texts = [teacher_text(models.task, template, example) for example in rollout.examples]
        return _asked_after(setup, rollout, texts), batch, {}
    hints = _after_siblings(setup, template, rollout, batch, verdicts)
    texts = [
        example.prompt if hint is None else hint
        for example, hint in zip(rollout.examples, hints, strict=True)
    ]
    mask = batch.completion_mask
    has = torch.tensor([[hint is not None] for hint in hints], device=mask.device).float()
    weight = has * (torch.ones_like(has) if batch.kd_weight is None else batch.kd_weight)
    batch = replace(batch, kd_weight=weight.expand(mask.shape))
    row = {"teacher/without_sibling": 1 - has.mean().item()}
    return _asked_after(setup, rollout, texts), batch, row


def _shares(setup: Setup, rollout: Rollout) -> Tensor:
    """Return the weight of each teacher for each completion, (B, teachers)."""
    config, route = setup.config, route_of(setup.config)
    count, device = len(setup.models.teachers), rollout.sequences.completion_mask.device
    if route is None:
        weights = torch.tensor(weights_in(config.teacher_mix, count), device=device)
        return weights.expand(len(rollout.texts), -1)
    task, examples = setup.models.task, rollout.examples
    numbers = [teacher_number(task, config, route, example) for example in examples]
    return torch.eye(count, device=device)[numbers]


def _asked_after(setup: Setup, rollout: Rollout, texts: list[str]) -> Rollout:
    """Return the rollout with the prompts after which the teacher is asked."""
    ids, mask = setup.models.policy.encode(texts)
    sequences = replace(rollout.sequences, teacher_prompt_ids=ids, teacher_prompt_mask=mask)
    return replace(rollout, sequences=sequences, teacher_prompts=texts)


def _after_siblings(
    setup: Setup, template: str, rollout: Rollout, batch: TokenBatch, verdicts: Sequence[Verdict]
) -> list[str | None]:
    """Return the prompts with the first right sibling of each completion; ``None`` without one.

    A sibling is another completion of the group that is right and finished. One after which the
    completion does not fit the context is none.
    """
    models, rows = setup.models, range(len(rollout.texts))
    groups = list(rows) if batch.group_ids is None else batch.group_ids.tolist()
    good = [verdict.correct and bool(rollout.finished[i]) for i, verdict in enumerate(verdicts)]
    found: list[str | None] = []
    for i, example in enumerate(rollout.examples):
        others = (j for j in rows if j != i and groups[j] == groups[i] and good[j])
        first = next(others, None)
        found.append(
            None
            if first is None
            else teacher_text(models.task, template, example, rollout.texts[first])
        )
    # a text that is read again may have more tokens than were written
    room = (
        min(one.own.context for one in models.teachers) - rollout.sequences.completion_mask.shape[1]
    )
    lengths = [len(ids) for ids in models.policy.prompt_ids([text or "" for text in found])]
    return [text if size <= room else None for text, size in zip(found, lengths, strict=True)]
