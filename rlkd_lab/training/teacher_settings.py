"""The settings of teachers: several, the student itself, or one that reads another prompt."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from rlkd_lab.models.language_model import Quant
from rlkd_lab.models.served import check_address, is_served
from rlkd_lab.objectives.methods import METHODS, needs_of, resolve_options
from rlkd_lab.objectives.rules import teacher_penalty
from rlkd_lab.objectives.schedules import values_of
from rlkd_lab.objectives.settings import nearest
from rlkd_lab.tasks.fields import SIBLING, columns_in, fields_in

if TYPE_CHECKING:
    from rlkd_lab.training.config import RunConfig

START, CURRENT, AVERAGE = "self", "self:current", "self:ema"
SELF = (START, CURRENT, AVERAGE)
"""Teachers that are the student: as it began, as it is, and an average over its steps."""
RATE = 0.05

Teacher = Annotated[
    str | None,
    Field(
        description="embedded name, folder, hub id or http://HOST:PORT/v1, or several with commas;"
        " self, self:current or self:ema for the student; off for none"
    ),
]
TeacherHome = Annotated[
    Literal["device", "host"],
    Field(
        description="host: the teacher lies in host memory and comes to the GPU once a step, for a"
        " pass of its own"
    ),
]
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
TeacherTokenizer = Annotated[
    str | None,
    Field(
        description="of a teacher on a server: folder or hub id with its tokenizer; the student's"
        " by default"
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


def local_teachers(config: RunConfig) -> list[str]:
    """Return the teachers whose weights are here, as the config names them."""
    return [name for name in teachers_of(config) if not is_served(name)]


def teacher_models(config: RunConfig) -> list[str]:
    """Return the names of the models that the local teachers are."""
    return [model_of(config, teacher) for teacher in local_teachers(config)]


def tokenizer_of(config: RunConfig, teacher: str) -> str:
    """Return the name of the model whose tokenizer a teacher has."""
    if is_served(teacher):
        return config.teacher_tokenizer or config.student
    return model_of(config, teacher)


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
        if not is_served(name) and ("://" in name or re.match(r"[\w.-]+:\d+(/|$)", name)):
            raise ValueError(f"teacher={name} looks like a server's: write http://HOST:PORT/v1")
    _check_several(config, names)
    _check_served(config, names)
    _check_cache(config, names)
    asked = [("temperature", value) for value in values_of(config.schedules()["temperature"])]
    for knob, value in [*asked, *((move.knob, move.value) for move in config.moves)]:
        check_temperature(config, knob, value)
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
    if METHODS[config.method].samples(config.on_policy_frac, lambda: 1.0 - 1e-9) != "student":
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


def _needs(config: RunConfig) -> set[str]:
    """Return what the method needs of a teacher with its coefficients at their start."""
    method = METHODS[config.method]
    return needs_of(method, {}, resolve_options(method, config.options))


def _check_served(config: RunConfig, names: list[str]) -> None:
    """Refuse what a teacher behind a server cannot give."""
    served = [name for name in names if is_served(name)]
    for name in served:
        check_address(name)
    if not served:
        if config.teacher_tokenizer is not None:
            raise ValueError(
                "teacher_tokenizer is for a teacher on a server: other models have their own"
            )
        return
    if wrong := _needs(config) & {"traces", "divergence", "entropy"}:
        what = "texts of the teacher" if "traces" in wrong else "the teacher's whole distribution"
        raise ValueError(
            f"{config.method} needs {what}, and a server gives log-probabilities of the student's"
            " tokens alone: use opd, kdrl or the like"
        )
    _check_of_one(config, "a teacher whose weights are here: leave it out")


def _check_of_one(config: RunConfig, why: str) -> None:
    """Refuse settings of a single model whose weights are here; ``why`` ends the sentence."""
    wanted = {
        "teacher_adapter": config.teacher_adapter is not None,
        "teacher_home=host": config.teacher_home == "host",
    }
    for name in (name for name, there in wanted.items() if there):
        raise ValueError(f"{name} is for {why}")


def check_other_tokenizer(config: RunConfig, teacher: str, detail: str) -> None:
    """Refuse what a teacher with another tokenizer cannot give.

    Args:
        config: of the run.
        teacher: as the config names it.
        detail: where the tokenizers differ.

    Raises:
        ValueError: in one sentence.
    """
    differ = (
        f"student ({config.student}) and teacher ({teacher}) have different tokenizers: {detail}"
    )
    method = METHODS[config.method]
    if len(teachers_of(config)) > 1:
        raise ValueError(f"{differ}. Several teachers need the student's: name one teacher")
    if _needs(config) & {"divergence", "entropy"}:
        raise ValueError(
            f"{differ}. {config.method} compares whole distributions over the vocabulary: use opd,"
            " kdrl_advantage, trrd or sft, or take a teacher of the student's family"
        )
    if method.penalty is teacher_penalty:
        raise ValueError(
            f"{differ}. {config.method} adds a KL estimate of each token, and only sums over"
            " spans of text can be compared: use kdrl_advantage, or take a teacher of the"
            " student's family"
        )


def _check_cache(config: RunConfig, names: list[str]) -> None:
    """Refuse what a stored teacher cannot do."""
    if config.teacher_cache is None:
        return
    method = METHODS[config.method]
    if method.samples(config.on_policy_frac, lambda: 0.0) != "teacher":
        raise ValueError(
            f"teacher_cache holds what the teacher said of its own texts, and {config.method}"
            " trains on the student's: use sft, rft or kd_forward, or gkd with on_policy_frac=0"
        )
    if len(names) != 1 or names[0] in SELF or is_served(names[0]):
        raise ValueError(
            f"teacher_cache is of one model, and teacher={config.teacher} is not: name that model"
        )
    needs = _needs(config)
    if "entropy" in needs or ("teacher" in needs and "divergence" not in needs):
        raise ValueError(
            f"teacher_cache holds the teacher's likeliest tokens, and {config.method} needs more:"
            " leave teacher_cache out"
        )
    if config.teacher_home == "host":
        raise ValueError("with teacher_cache no teacher is loaded: leave teacher_home=host out")


def check_temperature(config: RunConfig, name: str, value: float | None) -> None:
    """Refuse a temperature at which the teacher does not answer.

    Raises:
        ValueError: it is not 1, and the teacher is on a server, or stored and compared with.
    """
    if name != "temperature" or value in (None, 1.0):
        return
    served = any(map(is_served, teachers_of(config)))
    stored = config.teacher_cache is not None and "divergence" in METHODS[config.method].needs
    if served or stored:
        what = "a server answers" if served else "teacher_cache holds the teacher"
        raise ValueError(f"temperature={value:g}: {what} at temperature 1, so leave it at 1")


def _check_several(config: RunConfig, names: list[str]) -> None:
    """Refuse what several teachers cannot do together."""
    if len(names) < 2:
        if config.teacher_mix is not None:
            raise ValueError("teacher_mix is for several teachers: --set teacher=NAME,NAME")
        return
    if not all(names) or len(set(names)) < len(names):
        raise ValueError(f"teacher={config.teacher}: write different names with a comma between")
    weights_in(config.teacher_mix, len(names))
    if wrong := _needs(config) & {"traces", "divergence", "entropy"}:
        what = "the texts" if "traces" in wrong else "the whole distribution"
        raise ValueError(
            f"{config.method} needs {what} of one teacher; several teachers give"
            " log-probabilities of the student's tokens: take one, or opd, kdrl or the like"
        )
    _check_of_one(config, "one teacher: leave it out, or name one teacher")
