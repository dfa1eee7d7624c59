"""Two arms compared: one interval, and every reason why it may not decide."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain

import pandas as pd

from rlkd_lab.study.effects import Check, Effect, over_prompts, unpaired
from rlkd_lab.study.parts import Part

ACCURACY, LENGTH = "id avg", "id length"


@dataclass(frozen=True)
class Side:
    """One side of a comparison: the runs of an arm."""

    part: Part
    arm: str

    def of(self, measure: str, without: list[int] | None = None) -> pd.Series:
        """Return a measure by seed, without some of the seeds."""
        return self.part.of(self.arm, measure).drop(without or [], errors="ignore")

    @cached_property
    def collapsed(self) -> list[int]:
        """The seeds that collapsed and still count."""
        return self.part.collapsed(self.arm)

    @property
    def diverged(self) -> int:
        """How many runs diverged; these have no measures."""
        return self.part.diverged.get(self.arm, 0)

    @property
    def lost(self) -> int:
        """How many runs collapsed, those that diverged included."""
        return len(self.collapsed) + self.diverged


def compare(
    text: str, ours: Side, theirs: Side, measure: str, margin: float = 0.0, equal: bool = False
) -> Check:
    """Compare a measure of two arms, with Welch's interval and every doubt about it.

    Accuracy is also compared at the best checkpoint on validation prompts, where it is known.
    """
    effect, of_accuracy = unpaired(ours.of(measure), theirs.of(measure)), measure == ACCURACY
    best = unpaired(ours.part.best(ours.arm), theirs.part.best(theirs.arm))
    check = Check(
        text,
        effect,
        margin,
        equal,
        _over_prompts(effect, ours, theirs) if of_accuracy else None,
        best if of_accuracy and best.seeds else None,
        (ours.lost, theirs.lost),
    )
    found = (
        mixed(ours, theirs),
        _hangs_on_divergence(check, ours, theirs, measure),
        _hangs_on_collapse(check, ours, theirs, measure),
        _turns(check),
        _hangs_on_prompts(check),
    )
    return replace(check, doubt="; ".join(filter(None, found)))


def doubt_of(*sides: Side) -> str:
    """Return why a comparison that was not made by :func:`compare` may not decide."""
    lost = sum(side.lost for side in sides)
    fell = f"{lost} runs collapsed" if lost else ""
    return "; ".join(filter(None, (mixed(*sides), fell)))


def mixed(*sides: Side) -> str:
    """Return why arms of two versions of the program are not compared; nothing for one version."""
    versions = set(chain.from_iterable(side.part.versions(side.arm) for side in sides))
    if len(versions) < 2:
        return ""
    both = " and ".join(sorted(versions))
    return f"two versions of the program made its sides ({both})"


def _hangs_on_collapse(check: Check, ours: Side, theirs: Side, measure: str) -> str:
    """Return what a comparison would be without the runs that collapsed, if another.

    An arm of which every run collapsed is taken as it is.
    """
    if not ours.collapsed and not theirs.collapsed:
        return ""
    a, b = (
        side.of(measure, without=fell if len(fell) < len(side.of(measure)) else [])
        for side, fell in ((ours, ours.collapsed), (theirs, theirs.collapsed))
    )
    other = check.outcome_of(unpaired(a, b))
    return "" if other == check.face else f"without the runs that collapsed it is {other}"


def _hangs_on_divergence(check: Check, ours: Side, theirs: Side, measure: str) -> str:
    """Return what a comparison would be if runs that diverged had answered nothing rightly.

    Of other measures than accuracy they say nothing, so these decide nothing.
    """
    if not ours.diverged and not theirs.diverged:
        return ""
    if measure != ACCURACY:
        return "runs diverged"
    a, b = (
        pd.concat([side.of(measure), pd.Series([0.0] * side.diverged)], ignore_index=True)
        for side in (ours, theirs)
    )
    other = check.outcome_of(unpaired(a, b))
    return "" if other == check.face else f"with 0 for the runs that diverged it is {other}"


def _turns(check: Check) -> str:
    """Return that the best checkpoint points elsewhere than the last step, if it does."""
    if check.best is None or not check.turns(check.best.mean):
        return ""
    return "at the best checkpoint on validation prompts it points the other way"


def _over_prompts(effect: Effect, ours: Side, theirs: Side) -> Effect | None:
    """Return the difference with its interval over other prompts too, where it is known."""
    a, b = (side.part.shares(side.arm) for side in (ours, theirs))
    return None if a.empty or b.empty else over_prompts(effect, a, b)


def _hangs_on_prompts(check: Check) -> str:
    """Return that other prompts might decide otherwise, where outcomes by prompt tell so."""
    if check.wide is None or check.face == "undecided":
        return ""
    wider = check.outcome_of(check.wide)
    return "" if wider == check.face else f"over other prompts too it is {wider}"
