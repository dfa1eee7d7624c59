"""Before the first step: which of a task's prompts fit the models, and what the task gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rlkd_lab.models import LanguageModel
from rlkd_lab.rollouts.sampling import prompt_limit
from rlkd_lab.tasks import Example, QuestionTask
from rlkd_lab.tasks.lengths import Limit, check_drawn
from rlkd_lab.tasks.verifier import GuardedTask
from rlkd_lab.training.config import RunConfig
from rlkd_lab.training.config_checks import of_teacher
from rlkd_lab.training.data import data_of

DRAWN = 64
"""Prompts by which a task that makes them is judged; rows are measured one and all."""
DRAWN_OOD = 16
"""The same, out of distribution."""


@dataclass(frozen=True)
class Asked:
    """What a run may ask."""

    examples: list[Example]
    """Some, for checks."""
    longest: int
    """Tokens of the longest prompt in distribution, as student and teacher read it."""
    data: dict[str, Any]
    """See :func:`~rlkd_lab.training.data.data_of`."""
    told: list[str] = field(default_factory=list)
    """Sentences about prompts that are not asked as they stand."""


def fit_prompts(
    task: GuardedTask,
    config: RunConfig,
    student: LanguageModel,
    teacher: LanguageModel | None,
    contexts: Sequence[int | None] = (None, None),
) -> Asked:
    """Keep a task to the prompts that fit the context of student and teacher beside a completion,
    and ``max_prompt_tokens``.

    Args:
        task: of the run; it is changed.
        config: of the run.
        student: with its chat template set, as ``teacher``.
        teacher: or ``None``.
        contexts: of student and teacher, where only their tokenizers are loaded.

    Raises:
        ValueError: the task has no prompts, or none fits, or ``long_prompts`` is ``refuse`` and
            some do not.
    """
    limit = partial(prompt_limit, most=config.max_prompt_tokens)
    own = [limit(student, config.max_new_tokens, context=contexts[0])]
    if teacher is not None:
        own.append(
            _of_teacher(config, student, limit(teacher, config.max_new_tokens, context=contexts[1]))
        )
    harder: list[Limit] = []
    if config.eval_every and config.eval_task is None and task.ood_difficulty is not None:
        harder = [limit(student, 2 * config.max_new_tokens, context=contexts[0])]
        if config.difficulty == task.ood_difficulty:
            own = harder = own + harder
    drawn = _some(task, DRAWN, config.seed, config.difficulty)
    hard = _some(task, DRAWN_OOD, config.seed, task.ood_difficulty) if harder else []
    data = data_of(task, config.task, drawn)
    found = [task.keep_to(own, config.long_prompts, drawn, harder)]
    if harder:
        found.append(
            check_drawn(f"{task.name}, out of distribution", hard, harder, config.long_prompts)
        )
    notes = [note for lm in (student, teacher) if lm is not None for note in lm.prompts.notes()]
    return Asked(
        drawn,
        found[0].longest,
        data,
        [each.told for each in found if each.told] + list(dict.fromkeys(notes)),
    )


def fit_evaluation(
    task: GuardedTask, trained: GuardedTask, config: RunConfig, student: LanguageModel, asked: Asked
) -> None:
    """Keep the task of evaluations to prompts that fit, and note in ``asked`` what it gives.

    Raises:
        ValueError: as :func:`fit_prompts`.
    """
    limits, harder = (
        [prompt_limit(student, times * config.max_new_tokens, config.max_prompt_tokens)]
        for times in (1, 2)
    )
    inner, own = task.task, trained.task
    drawn = (
        [] if isinstance(inner, QuestionTask) else task.examples(DRAWN, config.seed, "validation")
    )
    asked.data["evaluation"] = data_of(task, str(config.eval_task), drawn)["digest"]
    found = task.keep_to(
        limits, config.long_prompts, drawn, harder if task.ood_difficulty is not None else ()
    )
    if found.told:
        asked.told.append(found.told)
    if isinstance(inner, QuestionTask) and isinstance(own, QuestionTask):
        known = {row.id for row in own.rows("train")}
        both = sum(row.id in known for row in inner.rows("validation"))
        if both:
            asked.told.append(
                f"{task.name}: {both:,} of its questions are trained on too, so its accuracy is"
                " not of held-out prompts"
            )


def _of_teacher(config: RunConfig, student: LanguageModel, own: Limit) -> Limit:
    """Return the limit of a teacher, which reads the student's prompts where it scores and its own
    where it writes traces.
    """

    def measure(prompts: Sequence[str]) -> list[int]:
        theirs = [len(ids) for ids in student.prompt_ids(prompts)]
        return [max(pair) for pair in zip(theirs, own.measure(prompts), strict=True)]

    return Limit(
        measure, own.source, own.context, own.completion, own.most, partial(of_teacher, config)
    )


def _some(
    task: GuardedTask, n: int, seed: int, difficulty: tuple[int, int] | None
) -> list[Example]:
    try:
        found = task.examples(n, seed, "train", difficulty)
    except (ValueError, OSError):
        raise
    except Exception as error:
        raise ValueError(
            f"the task {task.name}: examples raised {type(error).__name__}: {error}"
        ) from error
    if not found:
        raise ValueError(f"the task {task.name} has no training prompts")
    return found
