"""What a run had reached when it had spent a number of tokens or seconds.

``curves`` is a table with a row for each step, as in :mod:`rlkd_lab.plots.budgets`.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pandas as pd

Budget = Literal["sampled_tokens", "train_seconds", "step"]


def shared_budget(curves: pd.DataFrame, budget: Budget) -> float:
    """Return what the cheapest arm spends in its most expensive seed.

    Every arm has spent at least that much in one of its seeds.
    """
    return float(curves.groupby(["arm", "seed"])[budget].max().groupby("arm").max().min())


def at_budget(
    curves: pd.DataFrame,
    budget: Budget,
    metric: str = "eval/accuracy",
    spent: float | None = None,
) -> pd.DataFrame:
    """Return the metric of each run where ``spent`` was spent.

    Between two evaluations the value lies on the line that joins them.
    After the last evaluation it is the last value.
    An arm has NaN for every seed if one seed was not evaluated yet.

    Args:
        curves: a row for each step.
        budget: the column that is spent.
        metric: the column to read.
        spent: in units of the budget; :func:`shared_budget` by default.

    Returns:
        A row for each run: ``arm``, ``seed``, ``method`` and the metric.

    Raises:
        ValueError: a missing column.
    """
    check_steps(curves, budget, metric)
    limit = shared_budget(curves, budget) if spent is None else spent
    rows = []
    for (arm, seed), one in curves.groupby(["arm", "seed"], sort=False):
        known = one[one[metric].notna()]
        value = math.nan
        if len(known):
            x, y = known[budget].to_numpy(float), known[metric].to_numpy(float)
            value = float(np.interp(limit, x, y, left=math.nan))
        rows.append({"arm": arm, "seed": seed, "method": one["method"].iloc[0], metric: value})
    found = pd.DataFrame(rows)
    too_early = found.groupby("arm")[metric].transform(lambda values: values.isna().any())
    read = found[metric].mask(too_early)
    return found.assign(**{metric: read}, diverged=False, touched=False)


def check_steps(curves: pd.DataFrame, *columns: str) -> None:
    """Check that the table has these columns.

    Raises:
        ValueError: one is missing or empty.
    """
    for name in ("arm", "seed", "method", *columns):
        if name not in curves or curves[name].isna().all():
            raise ValueError(
                f"the table has no column {name!r}, or nothing in it: give a row a step"
                " (curves.parquet, or curves_of a run), with evaluations on the way"
            )
