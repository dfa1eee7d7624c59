"""What a teacher is asked: the student's own tokens, after the student's prompt or another one.

Every teacher is a :class:`~rlkd_lab.training.models.FrozenModel`, and gives log-probabilities of
the sampled tokens. What it reads stands in :class:`~rlkd_lab.models.sequences.Sequences`: another
prompt, and another tokenizer's tokens of the same text. So all that ask a teacher ask alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rlkd_lab.objectives import TokenBatch
from rlkd_lab.tasks.fields import COMPLETION, FEEDBACK, OF_COMPLETION, SIBLING, fields_in
from rlkd_lab.tasks.rewards import Verdict
from rlkd_lab.training.models import FrozenModel
from rlkd_lab.training.prompts import teacher_number, teacher_text
from rlkd_lab.training.samples import Rollout
from rlkd_lab.training.setup import Row, Setup
from rlkd_lab.training.teacher_settings import route_of, weights_in


def with_teacher_prompts(
    setup: Setup, rollout: Rollout, batch: TokenBatch, verdicts: Sequence[Verdict]
) -> tuple[Rollout, TokenBatch, Row]:
    """Put the teacher's prompts beside the student's.

    Where the prompt asks for a right sibling and there is none, the teacher reads the student's
    prompt and has no weight.

    Returns:
        The rollout with them, the batch with the teacher's weight, and
        ``teacher/without_hint``, the share of completions without one, in [0, 1]. With another
        tokenizer ``teacher/aligned`` is the share of tokens with a span, in [0, 1], and
        ``teacher/span_tokens`` is the student's tokens in a span, in the mean.
    """
    models, template = setup.models, setup.config.teacher_prompt
    if models.more:
        sequences = replace(rollout.sequences, teacher_shares=_shares(setup, rollout))
        rollout = replace(rollout, sequences=sequences)
    if models.teacher is None:
        return rollout, batch, {}
    row: Row = {}
    texts = [example.prompt for example in rollout.examples]
    if template is not None and not set(OF_COMPLETION) & set(fields_in(template)):
        texts = [teacher_text(models.task, template, example) for example in rollout.examples]
    elif template is not None:
        hints = _hints(setup, template, rollout, batch, verdicts)
        texts = [text if hint is None else hint for text, hint in zip(texts, hints, strict=True)]
        has = torch.tensor([[hint is not None] for hint in hints]).float()
        batch = _weighed(batch, has.to(batch.completion_mask.device))
        row = {"teacher/without_hint": 1 - has.mean().item()}
    if template is not None:
        rollout = replace(rollout, teacher_prompts=texts)
    if models.teacher.reader is not None:
        return _read_otherwise(models.teacher, rollout, batch, texts, row)
    if template is not None:
        asked = rollout.sequences.after(*models.policy.encode(texts))
        rollout = replace(rollout, sequences=asked)
    return rollout, batch, row


def _read_otherwise(
    teacher: FrozenModel, rollout: Rollout, batch: TokenBatch, texts: list[str], row: Row
) -> tuple[Rollout, TokenBatch, Row]:
    """Let a teacher with another tokenizer read the completions; see :func:`with_teacher_prompts`.

    Tokens without a span have no teacher.
    """
    assert teacher.reader is not None
    sequences = teacher.reader.read(rollout.sequences, texts, teacher.own.context)
    assert sequences.spans is not None
    there = (sequences.spans >= 0) & batch.completion_mask.bool()
    rows = torch.arange(len(there), device=there.device)[:, None] * there.shape[1]
    spans = len((sequences.spans + rows)[there].unique())
    row = row | {
        "teacher/aligned": float(there.sum() / batch.completion_mask.sum().clamp(min=1)),
        "teacher/span_tokens": float(there.sum() / max(spans, 1)),
    }
    return replace(rollout, sequences=sequences), _weighed(batch, there.float()), row


def _weighed(batch: TokenBatch, weight: Tensor) -> TokenBatch:
    """Return the batch with another factor of the teacher's weight, (B, T) or (B, 1)."""
    before = 1.0 if batch.kd_weight is None else batch.kd_weight
    return replace(batch, kd_weight=(weight * before).expand(batch.completion_mask.shape))


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


def _hints(
    setup: Setup, template: str, rollout: Rollout, batch: TokenBatch, verdicts: Sequence[Verdict]
) -> list[str | None]:
    """Return the teacher's prompts; ``None`` where a sibling is asked for and there is none.

    A sibling is another completion of the group that is right and finished. A prompt after which
    the completion does not fit the context is none.
    """
    models, rows = setup.models, range(len(rollout.texts))
    groups = list(rows) if batch.group_ids is None else batch.group_ids.tolist()
    good = [verdict.correct and bool(rollout.finished[i]) for i, verdict in enumerate(verdicts)]
    found: list[str | None] = []
    for i, example in enumerate(rollout.examples):
        others = (j for j in rows if j != i and groups[j] == groups[i] and good[j])
        first = next(others, None)
        if first is None and SIBLING in fields_in(template):
            found.append(None)
            continue
        given = {
            SIBLING: "" if first is None else rollout.texts[first],
            COMPLETION: rollout.texts[i],
            FEEDBACK: feedback(verdicts[i], bool(rollout.finished[i])),
        }
        found.append(teacher_text(models.task, template, example, given))
    # a text that is read again may have more tokens than were written
    room = (
        min(one.own.context for one in models.teachers) - rollout.sequences.completion_mask.shape[1]
    )
    assert models.teacher is not None
    reads = models.policy if models.teacher.reader is None else models.teacher.own
    lengths = [len(ids) for ids in reads.prompt_ids([text or "" for text in found])]
    return [text if size <= room else None for text, size in zip(found, lengths, strict=True)]


def feedback(verdict: Verdict, finished: bool) -> str:
    """Return what the verifier says of a completion, as a sentence without its reference answer."""
    if not finished:
        return "It was cut before its end."
    if verdict.why is not None:
        return "It could not be judged."
    if verdict.answer is None:
        return "It is right." if verdict.correct else "No answer was found."
    return f"The answer {verdict.answer} is {'right' if verdict.correct else 'wrong'}."
