"""The settings of a teacher that is the student itself, or that is asked after another prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from rlkd_lab.models.language_model import Quant
from rlkd_lab.objectives.methods import METHODS
from rlkd_lab.objectives.settings import nearest
from rlkd_lab.tasks.fields import SIBLING, fields_in

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
TeacherEma = Annotated[
    float,
    Field(
        gt=0,
        le=1,
        description="with teacher=self:ema: share of the student's adapter that enters the"
        " average in each step",
    ),
]


def teacher_model(config: RunConfig) -> str | None:
    """Return the name of the model that the teacher is."""
    return config.student if config.teacher in SELF else config.teacher


def teacher_quant(config: RunConfig) -> Quant:
    """Return how its weights are held."""
    return config.quant if config.teacher in SELF else config.teacher_quant


def check_teacher(config: RunConfig) -> None:
    """Refuse settings of the teacher that contradict each other or the method.

    Raises:
        ValueError: in one sentence.
    """
    teacher, template = config.teacher, config.teacher_prompt
    if teacher is not None and teacher.partition(":")[0] == START:
        nearest(teacher, SELF, "teacher")
    if teacher in SELF and config.teacher_adapter is not None:
        raise ValueError(
            f"teacher={teacher} is the student with its own adapter: leave teacher_adapter out"
        )
    if config.teacher_ema != RATE and teacher != AVERAGE:
        raise ValueError(f"teacher_ema cannot act: use --set teacher={AVERAGE}, or leave it out")
    if template is None:
        if teacher == CURRENT:
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
