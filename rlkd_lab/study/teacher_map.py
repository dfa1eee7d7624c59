"""When a teacher helps: accuracy gained over GRPO, by student, teacher and method.

The part ``map`` has an arm for each cell. GRPO on the same student is what each is held against.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Literal

import pandas as pd

from rlkd_lab.study.budgets import Budget, at_budget, shared_budget
from rlkd_lab.study.comparing import ACCURACY, Side
from rlkd_lab.study.effects import unpaired
from rlkd_lab.study.parts import Part, on_policy_steps

Reading = Literal["steps", "tokens", "seconds"]
BUDGETS: dict[Reading, Budget] = {"tokens": "sampled_tokens", "seconds": "train_seconds"}
READINGS: tuple[Reading, ...] = ("steps", *BUDGETS)
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
    """Return a row for each arm: its name, method, student, teacher, and the student's start.

    The start is the mean accuracy of the first step over all runs of the student. Their
    completions come from the student as it was.
    """
    runs = part.runs.drop_duplicates("arm")
    teacher = runs["teacher"].astype(str).map(lambda path: PurePath(path).name)
    frame = pd.DataFrame(
        {
            "arm": runs["arm"].astype(str),
            "method": runs["method"].astype(str),
            "student": runs["student"].astype(str).map(lambda path: PurePath(path).name),
            "teacher": teacher.where(~runs["method"].isin(NO_TEACHER), ""),
        }
    )
    first = part.curves[(part.curves["step"] == 1) & on_policy_steps(part.curves)]
    by_arm = first.groupby("arm")["accuracy"].mean()
    starts = frame["arm"].map(by_arm).groupby(frame["student"]).mean()
    return frame.assign(start=frame["student"].map(starts)).reset_index(drop=True)


def gains(part: Part, reading: Reading = "steps") -> pd.DataFrame:
    """Return each arm minus GRPO on the same student, with Welch's interval.

    Args:
        part: the part ``map``.
        reading: ``steps`` is the accuracy on test prompts after the last step. ``tokens`` and
            ``seconds`` are the accuracy on validation prompts where the cheapest arm of that
            student had spent all that it needed.

    Returns:
        A row for each arm but GRPO's: the columns of :func:`cells`, ``gain``, ``low``, ``high``,
        ``seeds`` and ``collapsed``.
    """
    rows = []
    for _, group in cells(part).groupby("student", sort=False):
        reached = _reached(part, list(group["arm"]), reading)
        alone = reached[str(group.loc[group["method"] == "grpo", "arm"].iloc[0])]
        for cell in group[group["method"] != "grpo"].to_dict("records"):
            effect = unpaired(reached[cell["arm"]], alone)
            found = {"gain": effect.mean, "low": effect.low, "high": effect.high}
            rows.append(cell | found | {"seeds": effect.seeds})
    lost = {str(arm): Side(part, str(arm)).lost for arm in part.runs["arm"].unique()}
    table = pd.DataFrame(rows)
    return table.assign(collapsed=table["arm"].map(lost))


def _reached(part: Part, arms: list[str], reading: Reading) -> dict[str, pd.Series]:
    """Return the accuracy of each run by arm."""
    if reading == "steps":
        return {arm: part.of(arm, ACCURACY) for arm in arms}
    curves = part.curves[part.curves["arm"].isin(arms)]
    budget = BUDGETS[reading]
    table = at_budget(curves, budget, spent=shared_budget(curves, budget))
    by_arm = table.set_index("seed").groupby("arm")["eval/accuracy"]
    return {str(arm): values for arm, values in by_arm}
