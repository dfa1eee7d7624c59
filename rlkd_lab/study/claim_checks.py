"""The comparisons of claims 1 to 9, computed from the tables of a study."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from rlkd_lab.study.comparing import ACCURACY, LENGTH, Side, compare, mixed
from rlkd_lab.study.effects import Check, Effect, effect_of, unpaired
from rlkd_lab.study.parts import Part, Study
from rlkd_lab.study.statistics import WINDOW

POINTS = 0.02
"""Margin of equality and of "not worse" in accuracy: two points."""
WINDOWS = (5, 7, 9, 11, 13)
"""Further windows; a verdict about a curve must not depend on the window."""
MASKS_RATE = 0.0005
"""Learning rate of part masks, and of the runs of part rates that it is compared with."""
NOT_WORSE = "≥ is: not worse by two points or more"
SCHEDULE = (
    "the paper's coefficient falls to a fifth and is there at step 80 of 280; the one tested falls"
    " to a hundredth over the whole run"
)


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
            f"KDRL does not get there within the run in {never} of {len(needed)} seeds;"
            " these count as one step after its end"
        )
    if not agree:
        each = ", ".join(
            f"{window}: {effect.mean:+.1f} [{effect.low:+.1f}, {effect.high:+.1f}]"
            for window, effect in effects.items()
        )
        notes.append(f"by window, in steps: {each.replace('-', '−')}")
    kdrl, grpo = (part.curve_means(arm, "accuracy") for arm in ("kdrl", "grpo"))
    notes.append("steps are paired by seed, since the level is that of the same seed's GRPO")
    doubt = mixed(Side(part, "kdrl"), Side(part, "grpo"))
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
    """4: compare the two estimators, each with the same number of trials."""
    k2, k3 = Side(study["core"], "kdrl"), Side(study["estimators"], "kdrl_k3")
    return Found([compare("k2 > k3: accuracy", k2, k3, ACCURACY)])


def last_evaluations(part: Part, method: str) -> pd.DataFrame:
    """Return the last evaluation on validation prompts of each run of a method."""
    if "eval/accuracy" not in part.curves:
        return part.curves.iloc[:0]
    rows = part.curves[(part.curves["method"] == method) & part.curves["eval/accuracy"].notna()]
    return rows.loc[rows.groupby(["arm", "seed"])["step"].idxmax()]


def best_arm(part: Part, method: str) -> str | None:
    """Return the arm of a method with the highest final accuracy on validation prompts.

    ``None`` where no arm was evaluated.
    """
    means = last_evaluations(part, method).groupby("arm", sort=False)["eval/accuracy"].mean()
    return None if means.empty else str(means.idxmax())


def annealed_against_fixed(study: Study) -> Found:
    """5: compare the best annealed with the best fixed coefficient.

    Validation prompts choose them, and test prompts compare them.
    """
    part = study["betas"]
    best = {method: best_arm(part, method) for method in ("kdrl_annealed", "kdrl")}
    for method, arm in best.items():
        if arm is None:
            why = f"no run of {method} in the part betas counts and was evaluated on the way"
            return Found([], why=why)
    checks = order_of(part, [str(arm) for arm in best.values()], ACCURACY, "accuracy")
    falls = re.search(r"linear:([^:]+):([^:,]+):([^:,]+)", str(best["kdrl_annealed"]))
    start, end, share = map(float, falls.groups()) if falls else (1.0, 0.01, 1.0)
    if math.isclose(start / end, 5, rel_tol=0.05) and math.isclose(share, 80 / 280, abs_tol=0.05):
        return Found(checks)
    return Found(checks, why=SCHEDULE)


def masking(study: Study) -> Found:
    """6: check that masking is not less accurate by two points, and shorter.

    Each method has the settings chosen for it.
    Parts rates and masks, where they were run, add pairs at equal coefficients.
    """
    core = study["core"]
    pairs = [("kdrl_masked", "kdrl", core, core)]
    if {"rates", "masks"} <= study.keys():
        at = f"learning_rate={MASKS_RATE}"
        pairs += [
            (f"kdrl_masked,kd_coef={b}", f"kdrl,kd_coef={b},{at}", study["masks"], study["rates"])
            for b in (0.03, 0.1, 0.3)
        ]
    checks = []
    for masked, kdrl, with_mask, without in pairs:
        a, b = Side(with_mask, masked), Side(without, kdrl)
        kdrl = masked.replace("kdrl_masked", "kdrl")  # the rate is the same on both sides
        checks.append(compare(f"{masked} ≥ {kdrl}: accuracy", a, b, ACCURACY, -POINTS))
        checks.append(compare(f"{kdrl} > {masked}: length in tokens", b, a, LENGTH))
    with_beta = f"; where a β stands, the learning rate is {MASKS_RATE} on both sides"
    return Found(checks, NOT_WORSE + with_beta * (len(pairs) > 1))


def trrd_on_knights(study: Study) -> Found:
    """7: compare the methods on Knights and Knaves, and TRRD's lead over GRPO by puzzle size.

    Puzzles of two people are too few: 72 in all, a dozen of them in the test split.
    The sizes are paired within a run.
    """
    part = study["knights"]
    more = {arm: part.level(arm, "4") - part.level(arm, "3") for arm in ("trrd", "grpo")}
    grows = Check(
        "lead of trrd over grpo: 4 people > 3 people",
        unpaired(more["trrd"], more["grpo"]),
        doubt=mixed(Side(part, "trrd"), Side(part, "grpo")),
    )
    order = order_of(part, ("trrd", "kdrl", "grpo"), ACCURACY, "accuracy")
    order = [with_other_setting(study, check, part) for check in order]
    return Found([*order, grows], "short contexts were not varied")


def with_other_setting(study: Study, check: Check, part: Part) -> Check:
    """Add a doubt to a comparison with KDRL that another setting of KDRL would judge otherwise.

    That is the coefficient of the part knights_betas that is best on validation prompts.
    The setting of the part knights was chosen on one seed.
    """
    arms = check.text.partition(":")[0].split(" > ")
    other = best_arm(study["knights_betas"], "kdrl") if "knights_betas" in study else None
    if "kdrl" not in arms or other is None:
        return check
    places = {"kdrl": Side(study["knights_betas"], other)}
    a, b = (places.get(arm, Side(part, arm)) for arm in arms)
    again = compare(check.text, a, b, ACCURACY)
    if again.doubt or again.face == check.face:
        return check
    effect = again.effect
    shown = f"{effect.mean:+.3f} [{effect.low:+.3f}, {effect.high:+.3f}]".replace("-", "−")
    doubt = (
        f"it hangs on KDRL's setting, chosen on one seed; with that of part knights_betas it is"
        f" {again.face} ({shown})"
    )
    return replace(check, doubt="; ".join(filter(None, (check.doubt, doubt))))


def alpha_near_a_half(study: Study) -> Found:
    """8: compare the accuracy at α = .4 and .6 with that at .5."""
    at = {a: Side(study["alphas"], f"trrd,trrd_alpha={a}") for a in (0.4, 0.5, 0.6)}
    return Found(
        [
            compare(f"α = {a} ≈ α = 0.5: accuracy", at[a], at[0.5], ACCURACY, POINTS, equal=True)
            for a in (0.4, 0.6)
        ]
    )


def _seconds(part: Part, arm: str, last: int | None) -> pd.Series:
    """Return by seed the median seconds of a step, from step 2 to ``last``."""
    curves = part.curve(arm, "train_time")
    medians = {seed: curve.loc[2:last].median() for seed, curve in curves.items()}
    return pd.Series(medians, dtype=float)


def _ratio(part: Part, other: str, claimed: float, last: int | None) -> Effect:
    """Return TRRD's seconds of a step over another method's, minus the ratio that is claimed."""
    theirs = _seconds(part, other, last)
    mean = theirs.mean()
    return unpaired(_seconds(part, "trrd", last) / mean, claimed * theirs / mean)


def cost_of_a_step(study: Study) -> Found:
    """9: compare the seconds of steps 2 to 11 as ratios, while completions are still alike."""
    part = study["core"]
    checks, whole = [], []
    for other, claimed in (("kdrl", 1.0), ("grpo", 1.15)):
        text = f"seconds of a step, trrd / {other} ≈ {claimed:g} (± 0.10)"
        doubt = mixed(Side(part, "trrd"), Side(part, other))
        effect = _ratio(part, other, claimed, 11)
        checks.append(Check(text, effect, 0.10, equal=True, doubt=doubt))
        later = _ratio(part, other, 1.0, None)
        mean, low, high = (1 + bound for bound in (later.mean, later.low, later.high))
        whole.append(f"trrd / {other} {mean:.2f} [{low:.2f}, {high:.2f}]")
    note = (
        "medians of steps 2–11; the effect is the distance from the number claimed; GRPO skips"
        " the backward pass of groups without spread; over all steps, where lengths differ: "
    )
    return Found(checks, note + ", ".join(whole))
