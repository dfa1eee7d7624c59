"""Before the first step: which of a task's prompts fit the models, and what the task gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any

from rlkd_lab.models import LanguageModel
from rlkd_lab.rollouts.sampling import prompt_limit
from rlkd_lab.tasks import Chat, Example, QuestionTask
from rlkd_lab.tasks.fields import OF_COMPLETION, fields_in, filled, value_of
from rlkd_lab.tasks.lengths import Limit, check_drawn
from rlkd_lab.tasks.verifier import GuardedTask
from rlkd_lab.training.config import RunConfig
from rlkd_lab.training.config_checks import of_teacher
from rlkd_lab.training.data import data_of
from rlkd_lab.training.teacher_settings import route_of, teachers_of

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
    teachers: Sequence[LanguageModel],
) -> Asked:
    """Keep a task to the prompts that fit the context of student and teachers beside a completion,
    and ``max_prompt_tokens``.

    Args:
        task: of the run; it is changed.
        config: of the run.
        student: with its chat template set, as ``teachers``.
        teachers: none, one or several.

    Raises:
        ValueError: the task has no prompts, or none fits, or ``long_prompts`` is ``refuse`` and
            some do not.
    """
    limit = partial(prompt_limit, most=config.max_prompt_tokens)
    own = [limit(student, config.max_new_tokens)]
    for teacher in teachers:
        theirs = limit(teacher, config.max_new_tokens)
        own.append(_of_teacher(config, student, theirs))
        own += _of_teacher_prompt(task, config, own[-1])
    harder: list[Limit] = []
    harder_too = config.eval_every and config.eval_ood and config.eval_task is None
    if harder_too and task.ood_difficulty is not None:
        harder = [limit(student, 2 * config.max_new_tokens)]
        if config.difficulty == task.ood_difficulty:
            own = harder = own + harder
    drawn = _some(task, DRAWN, config.seed, config.difficulty)
    hard = _some(task, DRAWN_OOD, config.seed, task.ood_difficulty) if harder else []
    data = data_of(task, config.task, drawn, what_teachers_need(task, config))
    found = [task.keep_to(own, config.long_prompts, drawn, harder)]
    if harder:
        found.append(
            check_drawn(f"{task.name}, out of distribution", hard, harder, config.long_prompts)
        )
    repeated = _asked_twice(task, config) if config.eval_task is None else []
    notes = [note for lm in (student, *teachers) for note in lm.prompts.notes()]
    return Asked(
        drawn,
        found[0].longest,
        data,
        [each.told for each in found if each.told] + repeated + list(dict.fromkeys(notes)),
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
    harder = harder if config.eval_ood and task.ood_difficulty is not None else []
    found = task.keep_to(limits, config.long_prompts, drawn, harder)
    if found.told:
        asked.told.append(found.told)
    asked.told.extend(_asked_twice(task, config))
    if isinstance(inner, QuestionTask) and isinstance(own, QuestionTask):
        known = {row.id for row in own.rows("train")}
        both = sum(row.id in known for row in inner.rows("validation"))
        if both:
            asked.told.append(
                f"{task.name}: {both:,} of its questions are trained on too, so its accuracy is"
                " not of held-out prompts"
            )


def _asked_twice(task: GuardedTask, config: RunConfig) -> list[str]:
    """Return a sentence if evaluations during training ask rows twice."""
    inner = task.task
    rows = len(inner.rows("validation")) if isinstance(inner, QuestionTask) else 0
    if not config.eval_every or not 0 < rows < config.eval_prompts:
        return []
    return [
        f"{task.name} has {rows} validation rows: {config.eval_prompts} prompts repeat them;"
        f" eval_prompts={rows} asks each once"
    ]


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


def teacher_text(
    task: Any, template: str, example: Example, given: Mapping[str, str] = MappingProxyType({})
) -> str:
    """Return the prompt after which a teacher is asked; of a chat, another last turn.

    ``given`` has what is known of the completion, by field.

    Raises:
        ValueError: the example lacks a field of the template.
    """
    if isinstance(example.prompt, Chat):
        *before, (role, last) = example.prompt.turns
        text = teacher_text(task, template, replace(example, prompt=last), given)
        return Chat((*before, (role, text)))
    values = {
        name: given.get(name, "") if name in OF_COMPLETION else value_of(task, example, name)
        for name in fields_in(template)
    }
    return filled(template, values)


def asked_by(task: Any, config: RunConfig) -> Callable[[Example], str] | None:
    """Return how an example becomes the teacher's prompt, or ``None`` for the student's prompt."""
    template = config.teacher_prompt
    return None if template is None else lambda example: teacher_text(task, template, example)


def teacher_number(task: Any, config: RunConfig, route: str, example: Example) -> int:
    """Return the place of the teacher that an example names, from 0.

    Raises:
        ValueError: the example has no such field, or it names no teacher.
    """
    value, names = value_of(task, example, route).strip(), teachers_of(config)
    if value in names:
        return names.index(value)
    if value in map(str, range(1, len(names) + 1)):
        return int(value) - 1
    raise ValueError(
        f"{example.meta.get('where', task.name)} has {route}={value!r:.60}, and teacher_mix={route}"
        f" needs the name of a teacher ({', '.join(names)}) or its number, from 1"
    )


def what_teachers_need(task: Any, config: RunConfig) -> Callable[[Example], str] | None:
    """Return what teachers read of an example and who reads it, as one text, or ``None``."""
    asked, route = asked_by(task, config), route_of(config)
    if route is None:
        return asked

    def both(example: Example) -> str:
        number = teacher_number(task, config, route, example)
        return f"{number} {'' if asked is None else asked(example)}"

    return both


def _of_teacher_prompt(task: Any, config: RunConfig, own: Limit) -> list[Limit]:
    """Return the limit of the prompts that ``teacher_prompt`` makes, if it is set.

    A field of a completion counts as long as one may be.

    Args:
        task: of the run.
        config: of the run.
        own: the teacher's limit of the student's prompts.
    """
    asked = asked_by(task, config)
    if asked is None:
        return []
    known_later = set(OF_COMPLETION) & set(fields_in(config.teacher_prompt))
    room = config.max_new_tokens * len(known_later)

    def measure(prompts: Sequence[str]) -> list[int]:
        return [size + room for size in own.measure(prompts)]

    def remark(text: str) -> str:
        return own.remark(f"as teacher_prompt makes them, {text}")

    return [replace(own, measure=measure, most=None, remark=remark, asked=asked)]
