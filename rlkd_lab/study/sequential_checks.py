"""The comparisons of claims 10 to 14, those of *Sequential Beats Joint* (arXiv 2609.04108).

Its KDRL is the advantage form, and its sentences about pass@k and about order are about logic.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pandas as pd

from rlkd_lab.study.claim_checks import NOT_WORSE, POINTS, Found, above, order_of
from rlkd_lab.study.comparing import ACCURACY, Side, compare, doubt_of
from rlkd_lab.study.effects import Check, unpaired
from rlkd_lab.study.parts import Part, Study

CHANCE = 0.05
"""A pass@k decides nothing where blind guesses reach this share."""


def joint_on_logic(study: Study) -> Found:
    """10: compare each joint method with each pure one."""
    part = study["logic"]
    pairs = itertools.product(("kdrl_advantage", "trrd"), ("grpo", "opd"))
    checks = [above(Side(part, a), Side(part, b), ACCURACY, "accuracy") for a, b in pairs]
    return Found(checks)


def passes(study: Study) -> Found:
    """11: compare pass@1, and pass@k at the largest k that chance leaves room for.

    The comparisons decide only if the k of the claim, 32, is among those.
    """
    part = study["logic"]
    kdrl, opd, trrd = (Side(part, arm) for arm in ("kdrl_advantage", "opd", "trrd"))
    names = [str(name).partition("@") for name in part.runs]
    ks = sorted(int(k) for measure, _, k in names if measure == "id chance")
    fair = [k for k in ks if part.runs[f"id chance@{k}"].max() < CHANCE]
    large, most = max(fair, default=1), max(ks, default=0)
    checks = [above(kdrl, opd, "id pass@1", "pass@1")]
    if large > 1:
        measure = f"id pass@{large}"
        checks.append(above(opd, kdrl, measure, f"pass@{large}"))
        text = f"trrd ≈ opd: pass@{large}"
        checks.append(compare(text, trrd, opd, measure, POINTS, equal=True))
    why = ""
    if large < 32:
        missing = [] if 32 in ks else [f"only {most} completions a prompt were taken"]
        if large < most:
            first = min(k for k in ks if k not in fair)
            share = part.runs[f"id chance@{first}"].max()
            missing.append(f"guesses alone reach {share:.0%} at k = {first} already")
        why = f"pass@32 is not decided here: {', and '.join(missing)}"
    return Found(checks, why=why)


def sequential_or_joint(study: Study) -> Found:
    """12: check that each is not worse than the next by more than two points."""
    order = ("opd_then_rl", "kdrl_advantage_annealed", "kdrl_advantage")
    return Found(order_of(study["logic"], order, ACCURACY, "accuracy", -POINTS), NOT_WORSE)


def last_evaluations(part: Part, method: str) -> pd.DataFrame:
    """Return the last evaluation on validation prompts of each run of a method."""
    if "eval/accuracy" not in part.curves:
        return part.curves.iloc[:0]
    rows = part.curves[(part.curves["method"] == method) & part.curves["eval/accuracy"].notna()]
    return rows.loc[rows.groupby(["arm", "seed"])["step"].idxmax()]


def best_beta(part: Part) -> pd.Series:
    """Return log₁₀ of the best fixed coefficient on validation prompts, by seed.

    Of equals the smallest is taken.
    """
    rows = last_evaluations(part, "kdrl")
    if rows.empty:
        return pd.Series(dtype=float)
    rows = rows.sort_values("coef/kd_coef", kind="stable")
    best = rows.loc[rows.groupby("seed")["eval/accuracy"].idxmax()].set_index("seed")
    return best["coef/kd_coef"].astype(float).map(math.log10)


def _at_end(part: Part, best: pd.Series) -> int:
    """Count the seeds whose best coefficient lies at an end of the grid."""
    tried = np.log10(part.curves.loc[part.curves["method"] == "kdrl", "coef/kd_coef"].astype(float))
    ends = [np.isclose(best, end, atol=1e-3) for end in (tried.min(), tried.max())]
    return int((ends[0] | ends[1]).sum())


def _is_flat(part: Part) -> bool:
    """Return whether a coefficient a power of ten away is not seen to be worse than the best."""
    rows = last_evaluations(part, "kdrl")
    powers = rows["coef/kd_coef"].astype(float).map(math.log10).round(3)
    reached: dict[float, pd.Series] = dict(list(rows["eval/accuracy"].groupby(powers)))
    top = max(reached, key=lambda power: float(reached[power].mean()))
    far = [values for power, values in reached.items() if abs(power - top) > 0.99]
    return not all(unpaired(reached[top], values).above() == "supported" for values in far)


def betas_of_tasks(study: Study) -> Found:
    """13: take the powers of ten between the best coefficients of the tasks, seed by seed.

    One power or more supports the claim.
    Less contradicts it only where the grid holds the best coefficient in most seeds of each task,
    and where coefficients a power of ten away are worse on both tasks.
    A best one at an end may lie beyond, and then the difference is not known.
    """
    parts = {"arithmetic": study["betas"], "Knights and Knaves": study["logic_betas"]}
    best = {task: best_beta(part) for task, part in parts.items()}
    if any(found.empty for found in best.values()):
        why = "no run of kdrl counts and was evaluated on the way, on one of the tasks"
        return Found([], why=why)
    gap = unpaired(best["arithmetic"], best["Knights and Knaves"])
    low, high = (gap.low, gap.high) if gap.mean >= 0 else (-gap.high, -gap.low)
    size = replace(gap, mean=abs(gap.mean), low=low, high=high)
    text = "powers of ten between the best β of arithmetic and of Knights and Knaves ≥ 1"
    arms = [
        Side(part, str(arm))
        for part in parts.values()
        for arm in part.runs.loc[part.runs["method"] == "kdrl", "arm"].unique()
    ]
    check = Check(text, size, 1 - 1e-9, doubt=doubt_of(*arms))
    at_end = {task: _at_end(part, best[task]) for task, part in parts.items()}
    note = "the paper says up to 100 times; best at an end of the grid: " + ", ".join(
        f"{task} {at_end[task]} of {len(best[task])} seeds" for task in best
    )
    if check.face == "contradicted" and any(at_end[task] > len(best[task]) / 2 for task in best):
        why = "the grid ends too early, and a larger difference is not ruled out"
        return Found([check], note, why)
    if check.face == "contradicted" and any(map(_is_flat, parts.values())):
        return Found([check], note, "the curve is flat: a best one far away is not ruled out")
    return Found([check], note)


def weight_signs(study: Study) -> Found:
    """14: compare the sign conflict of trained weight differences with those of OPD.

    OPD's conflict with OPD of another seed is the noise floor.
    """
    part = study["logic"]
    arms = ("grpo", "kdrl_advantage", "trrd")
    conflict = {arm: part.conflict(arm) for arm in (*arms, "opd")}
    if any(found.empty for found in conflict.values()):
        return Found([], why="the weights were not compared")
    checks = [
        Check(
            f"{a} > {b}: sign conflict",
            unpaired(conflict[a], conflict[b]),
            doubt=doubt_of(Side(part, a), Side(part, b)),
        )
        for a, b in itertools.pairwise(arms)
    ]
    shown = ", ".join(f"{arm} {conflict[arm].mean():.3f}" for arm in arms)
    floor = f"OPD against OPD of another seed: {conflict['opd'].mean():.3f}"
    return Found(checks, f"mean conflict {shown}; {floor}; .5 is chance")
