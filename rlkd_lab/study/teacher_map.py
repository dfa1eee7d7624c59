"""When a teacher helps: accuracy gained over GRPO, by student, teacher and method.

The part ``map`` has an arm for each cell. GRPO on the same student is what each is held against.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Literal

import pandas as pd

from rlkd_lab.study.budgets import Budget, at_budget
from rlkd_lab.study.comparing import ACCURACY, Side
from rlkd_lab.study.effects import unpaired
from rlkd_lab.study.parts import Part

Reading = Literal["steps", "tokens", "seconds"]
BUDGETS: dict[Reading, Budget] = {"tokens": "sampled_tokens", "seconds": "train_seconds"}
READINGS: tuple[Reading, ...] = ("steps", *BUDGETS)
STARTS = {
    "start-05": 0.054,
    "start-15": 0.124,
    "start-30": 0.294,
    "start-45": 0.450,
    "start-60": 0.606,
}
"""Accuracy of the students before training, in ``results/embedded/map/models.json``."""
NO_TEACHER = ("grpo", "opsa")
"""Methods of the map that ask no teacher."""
TEACHERS = {
    "teacher-concise": "concise",
    "teacher": "checking",
    "weak": "weak",
    "one-way": "wrong in one way",
    "self": "itself, with the steps",
    "": "none",
}
"""Titles of the teachers, in the order of the figure."""


def cells(part: Part) -> pd.DataFrame:
    """Return a row for each arm: its name, method, student, teacher, and the student's start."""
    runs = part.runs.drop_duplicates("arm")
    names = {
        column: runs[column].fillna("").map(lambda path: PurePath(path).name)
        for column in ("student", "teacher")
    }
    return pd.DataFrame(
        {
            "arm": runs["arm"].astype(str),
            "method": runs["method"].astype(str),
            "student": names["student"],
            "teacher": names["teacher"].where(~runs["method"].isin(NO_TEACHER), ""),
            "start": names["student"].map(STARTS),
        }
    ).reset_index(drop=True)


def gains(part: Part, reading: Reading = "steps") -> pd.DataFrame:
    """Return each arm minus GRPO on the same student, with Welch's interval.

    Args:
        part: the part ``map``.
        reading: ``steps`` is the accuracy on test prompts after the last step. ``tokens`` and
            ``seconds`` are the accuracy on validation prompts where the cheaper of the two arms
            had spent all that it needed.

    Returns:
        A row for each arm but GRPO's: the columns of :func:`cells`, ``gain``, ``low``, ``high``,
        ``seeds`` and ``collapsed``.
    """
    rows = []
    for _, group in cells(part).groupby("student", sort=False):
        grpo = next(arm for arm in group["arm"] if arm.startswith("grpo,"))
        for cell in group[group["method"] != "grpo"].to_dict("records"):
            effect = unpaired(*_reached(part, cell["arm"], grpo, reading))
            found = {"gain": effect.mean, "low": effect.low, "high": effect.high}
            rows.append(
                cell | found | {"seeds": effect.seeds, "collapsed": Side(part, cell["arm"]).lost}
            )
    return pd.DataFrame(rows)


def _reached(part: Part, ours: str, theirs: str, reading: Reading) -> list[pd.Series]:
    """Return the accuracy of each run of two arms."""
    if reading == "steps":
        return [part.of(arm, ACCURACY) for arm in (ours, theirs)]
    table = at_budget(part.curves[part.curves["arm"].isin((ours, theirs))], BUDGETS[reading])
    return [table.loc[table["arm"] == arm, "eval/accuracy"] for arm in (ours, theirs)]
