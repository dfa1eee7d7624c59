"""What can be checked and measured before a model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from rlkd_lab.models.adapter_config import check_policy_adapter
from rlkd_lab.models.adapters import attach
from rlkd_lab.models.language_model import LanguageModel
from rlkd_lab.models.locating import locate
from rlkd_lab.models.served import ENDLESS, is_served
from rlkd_lab.models.spans import Bytes
from rlkd_lab.models.tokenizers import difference_of_tokenizers, load_tokenizer
from rlkd_lab.models.verification import check_head
from rlkd_lab.runs import checkpoints
from rlkd_lab.tasks.registry import find_task
from rlkd_lab.tasks.verifier import GuardedTask
from rlkd_lab.training.config import RunConfig
from rlkd_lab.training.config_checks import of_teacher
from rlkd_lab.training.evaluation import evaluation_task
from rlkd_lab.training.memory_passes import made
from rlkd_lab.training.model_shape import Shape
from rlkd_lab.training.prompts import Asked, fit_evaluation, fit_prompts
from rlkd_lab.training.teacher_settings import (
    check_other_tokenizer,
    teacher_columns,
    teacher_models,
    teachers_of,
    tokenizer_of,
)


def check_pair(config: RunConfig) -> None:
    """Refuse a student and a teacher by their configs and tokenizers.

    Reasons are an architecture that is not supported, weights that are no safetensors, and
    tokenizers that differ.

    Raises:
        FileNotFoundError, ValueError: in one sentence.
    """
    teachers = teacher_models(config)
    for name in dict.fromkeys((config.student, *teachers)):
        locate(name, weights=Path(name).is_dir())
        Shape.of(name)
    student = load_tokenizer(config.student, weights=False)
    for teacher in teachers_of(config):
        name = tokenizer_of(config, teacher)
        if name == config.student:
            continue
        try:
            theirs = load_tokenizer(name, weights=False)
            if (detail := difference_of_tokenizers(student, theirs)) is not None:
                check_other_tokenizer(config, teacher, detail)
                for tokenizer, source in ((student, config.student), (theirs, teacher)):
                    Bytes(tokenizer, source)
        except ValueError as error:
            raise ValueError(of_teacher(config, error)) from None
    _check_adapters(config)


def _check_adapters(config: RunConfig) -> None:
    """Refuse adapters that do not fit their base. The base is made without data."""
    if config.adapter is not None:
        checkpoints.check(Path(config.adapter))
        check_policy_adapter(config.adapter)
        _check_adapter(config.student, config.adapter, trained=True)
    if teachers_of(config) and config.teacher_adapter is not None:
        try:
            checkpoints.check(Path(config.teacher_adapter))
            _check_adapter(teachers_of(config)[0], config.teacher_adapter, trained=False)
        except ValueError as error:
            raise ValueError(of_teacher(config, error)) from None


def _check_adapter(name: str, adapter: str, trained: bool) -> None:
    shape = Shape.of(name)
    check_head(name, attach(made(shape.config, shape.layers), adapter, "default", name), trained)


def asked_prompts(config: RunConfig) -> Asked:
    """Return what the run may ask, found with tokenizers and configs alone."""
    return fitted_task(config)[1]


def fitted_task(config: RunConfig) -> tuple[GuardedTask, Asked, LanguageModel]:
    """Return the task kept to what the run may ask, that, and the student without weights."""
    columns = teacher_columns(config)
    task = GuardedTask(
        find_task(config.task, config.task_settings, config.prompt_template, columns)
    )
    student = reader_of(config.student, config.chat, config.system_prompt)
    try:
        theirs = [_reader_of_teacher(config, teacher) for teacher in teachers_of(config)]
    except ValueError as error:
        raise ValueError(of_teacher(config, error)) from None
    asked = fit_prompts(task, config, student, theirs)
    evaluated = evaluation_task(config, task)
    if evaluated is not task:
        fit_evaluation(evaluated, task, config, student, asked)
    return task, asked, student


def _reader_of_teacher(config: RunConfig, teacher: str) -> LanguageModel:
    """Return a teacher that reads prompts, as :func:`reader_of` does; a server is not asked."""
    name = tokenizer_of(config, teacher)
    if not is_served(teacher):
        return reader_of(name, config.chat, config.system_prompt)
    lm = _without_weights(name, teacher, ENDLESS)
    lm.use_chat(config.chat, config.system_prompt)
    return lm


def reader_of(name: str, chat: Literal["auto", "off"], system_prompt: str | None) -> LanguageModel:
    """Return a model without weights, which can read prompts and knows its context.

    Raises:
        FileNotFoundError, ValueError: no such model, or the system prompt would not be asked.
    """
    lm = _without_weights(name, name, Shape.of(name).context)
    lm.use_chat(chat, system_prompt)
    return lm


def _without_weights(tokenizer: str, source: str, context: int) -> LanguageModel:
    found = load_tokenizer(tokenizer, weights=False)
    return LanguageModel(None, found, source, "none", room=context)  # type: ignore[arg-type]
