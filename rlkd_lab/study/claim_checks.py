"""The comparisons of claims 1 to 9, computed from the tables of a study."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from rlkd_lab.study.comparing import ACCURACY, LENGTH, Side, compare, doubt_of
from rlkd_lab.study.effects import Check, Effect, effect_of, unpaired
from rlkd_lab.study.parts import Part, Study
from rlkd_lab.study.statistics import WINDOW

POINTS = 0.02
"""Margin of equality and of "not worse" in accuracy: two points."""
WINDOWS = (5, 7, 9, 11, 13)
"""Further windows; a verdict about a curve must not depend on the window."""
NOT_WORSE = "≥ is: not worse by two points or more"


@dataclass(frozen=True)
class Found:
    """The comparisons of a claim, a note beside them, and why they may not decide, if so."""

    checks: list[Check]
    note: str = ""
    why: str = ""


def order_of(
    part: Part, arms: Sequence[str], measure: str, what: str, margin: float = 0.0
) -> list[Check]:
    """Return a > b, b > c, … for neighbouring arms."""
    sides = [Side(part, arm) for arm in arms]
    return [above(a, b, measure, what, margin) for a, b in itertools.pairwise(sides)]


def above(a: Side, b: Side, measure: str, what: str, margin: float = 0.0) -> Check:
    """Return a > b, or a ≥ b with a margin below 0."""
    sign = ">" if margin >= 0 else "≥"
    return compare(f"{a.arm} {sign} {b.arm}: {what}", a, b, measure, margin)


def order_of_methods(study: Study) -> Found:
    """1: compare accuracy on test prompts."""
    return Found(order_of(study["core"], ("kdrl", "opd", "grpo", "sft"), ACCURACY, "accuracy"))


def steps_to_reach(curve: pd.Series, level: float, window: int = WINDOW) -> float:
    """Return the first step at which the trailing mean over a full window reaches ``level``.

    A curve that never reaches it counts as one step after its last.
    """
    smooth = curve.rolling(window).mean()
    reached = np.flatnonzero(smooth.to_numpy() >= level - 1e-9)  # sums in another order
    return float(smooth.index[reached[0]]) if len(reached) else float(curve.index[-1]) + 1


def _steps_needed(part: Part, window: int) -> pd.DataFrame:
    """Return by seed the steps to GRPO's final training accuracy, for GRPO and KDRL."""
    grpo, kdrl = part.curve("grpo", "accuracy"), part.curve("kdrl", "accuracy")
    rows = {}
    for seed in grpo.keys() & kdrl.keys():
        level = float(grpo[seed].tail(window).mean())
        steps = [steps_to_reach(curve, level, window) for curve in (grpo[seed], kdrl[seed])]
        rows[seed] = [*steps, steps[1] > kdrl[seed].index[-1]]
    return pd.DataFrame.from_dict(rows, orient="index", columns=["grpo", "kdrl", "never"])


def steps_ahead(part: Part, window: int) -> pd.Series:
    """Return by seed how many steps earlier than GRPO KDRL reaches GRPO's final accuracy."""
    needed = _steps_needed(part, window)
    return (needed["grpo"] - needed["kdrl"]).astype(float)


def fewer_steps(study: Study) -> Found:
    """2: compare the steps to GRPO's final training accuracy, and the mean accuracy of the run.

    The steps decide only where the outcome is the same for every smoothing window.
    Their level favours KDRL, which may pass it early by luck; the mean accuracy favours nobody.
    """
    part = study["core"]
    effects = {window: effect_of(steps_ahead(part, window)) for window in WINDOWS}
    agree = len({effect.above() for effect in effects.values()}) == 1
    needed = _steps_needed(part, WINDOW)
    notes = []
    if never := int(needed["never"].sum()):
        notes.append(
            f"in {never} of {len(needed)} seeds KDRL does not get there within the run;"
            " these count as one step after its end"
        )
    if not agree:
        each = ", ".join(
            f"{window}: {effect.mean:+.1f} [{effect.low:+.1f}, {effect.high:+.1f}]"
            for window, effect in effects.items()
        )
        notes.append(f"in steps, by window: {each.replace('-', '−')}")
    kdrl, grpo = (part.curve_means(arm, "accuracy") for arm in ("kdrl", "grpo"))
    notes.append("steps are paired by seed, since the level is that of the same seed's GRPO")
    doubt = doubt_of(Side(part, "kdrl"), Side(part, "grpo"))
    checks = [
        Check("steps that GRPO needs − steps that KDRL needs", effects[WINDOW], doubt=doubt),
        Check("kdrl > grpo: mean accuracy in training", unpaired(kdrl, grpo), doubt=doubt),
    ]
    why = "" if agree else "the outcome depends on the window of the trailing mean"
    return Found(checks, "; ".join(notes), why)


def order_of_lengths(study: Study) -> Found:
    """3: compare the tokens of a completion to a test prompt."""
    return Found(order_of(study["core"], ("opd", "kdrl", "grpo"), LENGTH, "length in tokens"))


def k2_against_k3(study: Study) -> Found:
    """4: compare the two estimators, each with the same trials."""
    k2, k3 = (Side(study["core"], arm) for arm in ("kdrl", "kdrl_k3"))
    return Found([compare("k2 > k3: accuracy", k2, k3, ACCURACY)])


def best_fixed(study: Study) -> Side:
    """Return KDRL at the fixed coefficient with the best mean accuracy on validation prompts.

    The core's own coefficient is one of them; the part ``betas`` has the others.
    """
    sides = [Side(study["core"], "kdrl")]
    if "betas" in study:
        sides += [Side(study["betas"], str(arm)) for arm in study["betas"].runs["arm"].unique()]
    return max(sides, key=_last_validation)


def _last_validation(side: Side) -> float:
    curves = side.part.curve(side.arm, "eval/accuracy").values()
    return float(np.mean([curve.iloc[-1] for curve in curves])) if curves else -1.0


def annealed_against_fixed(study: Study) -> Found:
    """5: compare the annealed coefficient with the best fixed one."""
    annealed = Side(study["core"], "kdrl_annealed")
    return Found([above(annealed, best_fixed(study), ACCURACY, "accuracy")])


def masking(study: Study) -> Found:
    """6: check that masking is not less accurate by two points, and shorter."""
    masked, kdrl = (Side(study["core"], arm) for arm in ("kdrl_masked", "kdrl"))
    shorter = compare("kdrl > kdrl_masked: length in tokens", kdrl, masked, LENGTH)
    return Found([above(masked, kdrl, ACCURACY, "accuracy", -POINTS), shorter], NOT_WORSE)


def trrd_on_logic(study: Study) -> Found:
    """7: compare the methods on Knights and Knaves, and TRRD's lead over GRPO by puzzle size.

    Puzzles of two people are too few: 72 in all, a dozen of them in the test split.
    The sizes are paired within a run.
    """
    part = study["logic"]
    more = {arm: part.level(arm, "4") - part.level(arm, "3") for arm in ("trrd", "grpo")}
    grows = Check(
        "lead of trrd over grpo: 4 people > 3 people",
        unpaired(more["trrd"], more["grpo"]),
        doubt=doubt_of(Side(part, "trrd"), Side(part, "grpo")),
    )
    order = order_of(part, ("trrd", "kdrl", "grpo"), ACCURACY, "accuracy")
    return Found([*order, grows], "short contexts were not varied")


def alpha_near_a_half(study: Study) -> Found:
    """8: compare the accuracy at α = .4 and .6 with that at .5."""
    at = {a: Side(study["alphas"], f"trrd,trrd_alpha={a}") for a in (0.4, 0.5, 0.6)}
    return Found(
        [
            compare(f"α = {a} ≈ α = 0.5: accuracy", at[a], at[0.5], ACCURACY, POINTS, equal=True)
            for a in (0.4, 0.6)
        ]
    )


def step_seconds(part: Part, arm: str) -> pd.Series:
    """Return by seed the median seconds of a step, without the first step."""
    curves = part.curve(arm, "train_time")
    medians = {seed: curve.loc[2:].median() for seed, curve in curves.items()}
    return pd.Series(medians, dtype=float)


def _tokens(part: Part, arm: str) -> float:
    """Return the mean tokens of a completion, without the first step."""
    curves = part.curve(arm, "completions/mean_length").values()
    return float(np.mean([curve.loc[2:].mean() for curve in curves]))


def _ratio(part: Part, other: str, claimed: float) -> Effect:
    """Return TRRD's seconds of a step over another method's, minus the ratio that is claimed."""
    theirs = step_seconds(part, other)
    mean = theirs.mean()
    return unpaired(step_seconds(part, "trrd") / mean, claimed * theirs / mean)


def cost_of_a_step(study: Study) -> Found:
    """9: compare the seconds of a step as ratios, while completions are still alike."""
    part = study["cost"]
    checks = []
    for other, claimed in (("kdrl", 1.0), ("grpo", 1.15)):
        text = f"seconds of a step, trrd / {other} ≈ {claimed:g} (± 0.10)"
        doubt = doubt_of(Side(part, "trrd"), Side(part, other))
        checks.append(Check(text, _ratio(part, other, claimed), 0.10, equal=True, doubt=doubt))
    tokens = ", ".join(f"{arm} {_tokens(part, arm):.1f}" for arm in ("trrd", "kdrl", "grpo"))
    note = (
        "seconds are medians of steps 2–11; the effect is the distance from the number claimed;"
        f" GRPO skips the backward pass of groups without spread; tokens of a completion: {tokens}"
    )
    return Found(checks, note)
