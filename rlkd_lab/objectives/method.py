"""A method: one row of the table, and the numbers that many rows share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rlkd_lab.objectives.rules import (
    AdvantageRule,
    PenaltyRule,
    RatioRule,
    SamplesRule,
    SurrogateRule,
    clipped,
    from_student,
    importance_ratio,
)
from rlkd_lab.objectives.settings import KNOBS, Coefs, Knob


@dataclass(frozen=True)
class Method:
    """One row of the table: rules from :mod:`~rlkd_lab.objectives.rules`, numbers and words."""

    title: str
    source: str
    formula: str
    needs: frozenset[str] = frozenset()
    """Any of ``teacher``, ``groups``, ``traces``, ``divergence``, ``reference``, ``verdicts``,
    ``entropy``.
    """
    samples: SamplesRule = from_student
    ratio: RatioRule | None = importance_ratio
    """``None``: no policy gradient, the penalty alone."""
    surrogate: SurrogateRule = clipped
    advantage: AdvantageRule | None = None
    penalty: PenaltyRule | None = None
    coefs: Coefs = field(default_factory=dict)
    """Coefficients that the method listens to, with their defaults."""
    options: Mapping[str, str] = field(default_factory=dict)
    schedules: Mapping[str, str] = field(default_factory=dict)
    """Of coefficients that move by default; ``coefs`` holds where each starts."""
    watch: str = ""
    """What to look at in its curves."""

    @property
    def knobs(self) -> dict[str, Knob]:
        """The coefficients with their ranges."""
        return {name: KNOBS[name] for name in self.coefs}


CLIP: dict[str, float | None] = {
    "clip_low": 0.2,
    "clip_high": 0.2,
    "ratio_cap": None,
    "importance_cap": None,
}
GRPO: dict[str, float | None] = {"rl_coef": 1.0, "kl_coef": 0.0, **CLIP}
KDRL: dict[str, float | None] = {"kd_coef": 0.1, **GRPO}
OPD: dict[str, float | None] = {"kd_coef": 1.0, "kl_coef": 0.0, **CLIP}
REWARD = frozenset({"groups"})
TEACHER = frozenset({"teacher"})
