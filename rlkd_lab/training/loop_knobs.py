"""The live knobs that every method has, beside its own coefficients, and their moves."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from rlkd_lab.objectives.methods import METHODS
from rlkd_lab.objectives.settings import Knob, check_coef

LOOP_KNOBS: dict[str, Knob] = {
    "temperature": Knob(
        0.05,
        5.0,
        "sampling temperature; divides the logits of student, old policy, reference and"
        " teacher alike",
    ),
    "learning_rate": Knob(0.0, 1.0, "AdamW step size", log=True),
}
LOOP_DEFAULTS: dict[str, float] = {"temperature": 1.0, "learning_rate": 1e-3}


def check_knob(method: str, name: str, value: float | None) -> float | None:
    """Return the value of a live knob.

    Raises:
        ValueError: the method does not have the knob, or the value is out of range.
    """
    return check_coef(name, value, {**METHODS[method].knobs, **LOOP_KNOBS})


class Move(BaseModel):
    """Moves a knob at a step. The value replaces the schedule until the next move or a release."""

    model_config = ConfigDict(extra="forbid")

    step: Annotated[int, Field(ge=1)]
    knob: str
    value: float | None = None
    release: bool = False
