"""The settings of teachers: several, the student itself, or one that reads another prompt."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from rlkd_lab.models.language_model import Quant
from rlkd_lab.objectives.methods import METHODS, needs_of, resolve_options
from rlkd_lab.objectives.schedules import values_of
from rlkd_lab.objectives.settings import nearest
from rlkd_lab.tasks.fields import SIBLING, columns_in, fields_in

if TYPE_CHECKING:
    from rlkd_lab.training.config import RunConfig

START, CURRENT, AVERAGE = "self", "self:current", "self:ema"
SELF = (START, CURRENT, AVERAGE)
"""Teachers that are the student: as it began, as it is, and an average over its steps."""
RATE = 0.05

TeacherPrompt = Annotated[
    str | None,
    Field(
        description="the teacher scores the student's tokens after this prompt: text with {prompt},"
        " {answer}, {trace}, {sibling} or a column of your file"
    ),
]
TeacherMix = Annotated[
    str | None,
    Field(
        description="of several teachers: their weights, such as 0.7,0.3, or the column that names"
        " the teacher of each row; by default all weigh the same"
    ),
]
TeacherCache = Annotated[
    str | None,
    Field(
        description="a file of `rlkd teacher-cache`: no teacher is loaded, its traces and its"
        " likeliest tokens are read"
    ),
]
TeacherEma = Annotated[
    float,
    Field(
        gt=0,
        le=1,
        description="with teacher=self:ema: share of the student's adapter that enters the"
        " average in each step",
    ),
]


def teachers_of(config: RunConfig) -> list[str]:
    """Return the teachers to load, as the config names them."""
    return [] if config.teacher_cache is not None else names_in(config.teacher)


def names_in(teacher: str | None) -> list[str]:
    """Return the names in the setting ``teacher``; a folder may have commas in its name."""
    if teacher is None or Path(teacher).is_dir():
        return [] if teacher is None else [teacher]
    return [name.strip() for name in teacher.split(",")]


def model_of(config: RunConfig, teacher: str) -> str:
    """Return the name of the model that a teacher is."""
    return config.student if teacher in SELF else teacher


def quant_of(config: RunConfig, teacher: str) -> Quant:
    """Return how the weights of a teacher are held."""
    return config.quant if teacher in SELF else config.teacher_quant


def teacher_models(config: RunConfig) -> list[str]:
    """Return the names of the models that the teachers are."""
    return [model_of(config, teacher) for teacher in teachers_of(config)]


def weights_in(mix: str | None, count: int) -> list[float] | None:
    """Return the weights of teachers, which add up to 1, or ``None`` where a field routes."""
    if mix is None:
        return [1 / count] * count
    try:
        found = [float(word) for word in mix.split(",")]
    except ValueError:
        return None
    if len(found) != count or not all(0 < one < math.inf for one in found):
        raise ValueError(f"teacher_mix={mix}: {count} teachers need {count} weights above 0")
    return [one / sum(found) for one in found]


def route_of(config: RunConfig) -> str | None:
    """Return the field that names the teacher of an example, or ``None``."""
    count = len(teachers_of(config))
    return (
        config.teacher_mix if count > 1 and weights_in(config.teacher_mix, count) is None else None
    )


def teacher_columns(config: RunConfig) -> tuple[str, ...]:
    """Return the columns of a file that the teachers need."""
    route = route_of(config)
    return (*columns_in(config.teacher_prompt), *([] if route is None else [route]))


def check_teacher(config: RunConfig) -> None:
    """Refuse settings of the teacher that contradict each other or the method.

    Raises:
        ValueError: in one sentence.
    """
    teacher, template = config.teacher, config.teacher_prompt
    names = names_in(teacher)
    for name in names:
        if name.partition(":")[0] == START:
            nearest(name, SELF, "teacher")
    _check_several(config, names)
    _check_cache(config, names)
    if teacher in SELF and config.teacher_adapter is not None:
        raise ValueError(
            f"teacher={teacher} is the student with its own adapter: leave teacher_adapter out"
        )
    if config.teacher_ema != RATE and AVERAGE not in names:
        raise ValueError(f"teacher_ema cannot act: use --set teacher={AVERAGE}, or leave it out")
    if template is None:
        if CURRENT in names:
            raise ValueError(
                f"teacher={CURRENT} says of every token what the student says: give it another"
                " prompt with --set teacher_prompt=TEXT"
            )
        return
    fields = fields_in(template)
    if not fields:
        raise ValueError(
            f"teacher_prompt has no field, such as {{prompt}} or {{answer}}: {template[:60]!r}"
        )
    if teacher is None:
        raise ValueError(
            "teacher_prompt needs a teacher: --set teacher=self, or the name of another model"
        )
    if METHODS[config.method].samples(config.on_policy_frac, lambda: 1.0 - 1e-9):
        raise ValueError(
            f"{config.method} trains on the teacher's texts, and teacher_prompt is for the"
            " student's own: use opd, kdrl or another method on its completions, or gkd with"
            " on_policy_frac=1"
        )
    if SIBLING in fields and config.group_size < 2:
        raise ValueError(
            f"teacher_prompt asks for {{{SIBLING}}}, another completion of the group: use --set"
            " group_size=2 or more"
        )


def _check_cache(config: RunConfig, names: list[str]) -> None:
    """Refuse what a stored teacher cannot do."""
    if config.teacher_cache is None:
        return
    method = METHODS[config.method]
    if not method.samples(config.on_policy_frac, lambda: 0.0):
        raise ValueError(
            f"teacher_cache holds what the teacher said of its own texts, and {config.method}"
            " trains on the student's: use sft, rft or kd_forward, or gkd with on_policy_frac=0"
        )
    if len(names) > 1 or set(names) & set(SELF):
        raise ValueError(
            f"teacher_cache is of one model, and teacher={config.teacher} is not: name that model"
        )
    needs = needs_of(method, {}, resolve_options(method, config.options))
    if "entropy" in needs or ("teacher" in needs and "divergence" not in needs):
        raise ValueError(
            f"teacher_cache holds the teacher's likeliest tokens, and {config.method} needs more:"
            " leave teacher_cache out"
        )
    if config.teacher_home == "host":
        raise ValueError("with teacher_cache no teacher is loaded: leave teacher_home=host out")
    for value in values_of(config.schedules()["temperature"]):
        check_stored_knob(config, "temperature", value)
    for move in config.moves:
        check_stored_knob(config, move.knob, move.value)


def check_stored_knob(config: RunConfig, name: str, value: float | None) -> None:
    """Refuse a temperature at which a stored teacher was not asked.

    Raises:
        ValueError: it is not 1, and the method compares with the file.
    """
    if config.teacher_cache is None or name != "temperature" or value in (None, 1.0):
        return
    if "divergence" in METHODS[config.method].needs:
        raise ValueError(
            f"temperature={value:g}: teacher_cache holds the teacher at temperature 1, so leave it"
            " at 1"
        )


def _check_several(config: RunConfig, names: list[str]) -> None:
    """Refuse what several teachers cannot do together."""
    if len(names) < 2:
        if config.teacher_mix is not None:
            raise ValueError("teacher_mix is for several teachers: --set teacher=NAME,NAME")
        return
    if not all(names) or len(set(names)) < len(names):
        raise ValueError(f"teacher={config.teacher}: write different names with a comma between")
    weights_in(config.teacher_mix, len(names))
    needs = needs_of(
        METHODS[config.method], {}, resolve_options(METHODS[config.method], config.options)
    )
    if wrong := needs & {"traces", "divergence", "entropy"}:
        what = "the texts" if "traces" in wrong else "the whole distribution"
        raise ValueError(
            f"{config.method} needs {what} of one teacher; several teachers give"
            " log-probabilities of the student's tokens: take one, or opd, kdrl or the like"
        )
    if config.teacher_adapter is not None or config.teacher_home == "host":
        name = "teacher_adapter" if config.teacher_adapter is not None else "teacher_home=host"
        raise ValueError(f"{name} is for one teacher: leave it out, or name one teacher")
