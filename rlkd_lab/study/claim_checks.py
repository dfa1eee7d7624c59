"""The comparisons of each claim, computed from the tables of a study."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from rlkd_lab.study.effects import Check, Effect, effect_of, paired
from rlkd_lab.study.results import Part, Study

ACCURACY, LENGTH = "id avg", "id length"
POINTS = 0.02
"""Margin of equality and of "not worse" in accuracy: two points."""
CHANCE = 0.05
"""A pass@k decides nothing where blind guesses reach this share."""
WINDOW = 9
"""Steps of the trailing mean of a training curve."""
WINDOWS = (5, 7, 9, 11, 13)
"""Further windows; a verdict about a curve must not depend on the window."""
MASKS_RATE = 0.0005
"""Learning rate of part masks, and of the runs of part rates that it is compared with."""
NOT_WORSE = "≥ is: not worse by two points or more"


@dataclass(frozen=True)
class Found:
    """The comparisons of a claim, a note beside them, and whether they may decide."""

    checks: list[Check]
    note: str = ""
    decides: bool = True


def _order(
    part: Part, arms: Sequence[str], measure: str, what: str, margin: float = 0.0
) -> list[Check]:
    """Return a > b, b > c, … for neighbouring arms."""
    sign = ">" if margin >= 0 else "≥"
    return [
        Check(f"{a} {sign} {b}: {what}", paired(part.of(a, measure), part.of(b, measure)), margin)
        for a, b in itertools.pairwise(arms)
    ]


def order_of_methods(study: Study) -> Found:
    """1: compare accuracy on test prompts."""
    return Found(_order(study["core"], ("kdrl", "opd", "grpo", "sft"), ACCURACY, "accuracy"))


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
        notes.append(
            "the outcome depends on the window of the trailing mean, in steps, so it decides"
            f" nothing ({each.replace('-', '−')})"
        )
    kdrl, grpo = (part.curve_means(arm, "accuracy") for arm in ("kdrl", "grpo"))
    checks = [
        Check("steps that GRPO needs − steps that KDRL needs", effects[WINDOW]),
        Check("kdrl > grpo: mean accuracy in training", paired(kdrl, grpo)),
    ]
    return Found(checks, "; ".join(notes), agree)


def order_of_lengths(study: Study) -> Found:
    """3: compare the tokens of a completion to a test prompt."""
    return Found(_order(study["core"], ("opd", "kdrl", "grpo"), LENGTH, "length in tokens"))


def k2_against_k3(study: Study) -> Found:
    """4: compare the two estimators, each with the same number of trials."""
    gap = paired(study["core"].of("kdrl", ACCURACY), study["estimators"].of("kdrl_k3", ACCURACY))
    return Found([Check("k2 > k3: accuracy", gap)])


def _ends(part: Part, method: str) -> pd.DataFrame:
    """Return the last evaluation on validation prompts of each run of a method."""
    if "eval/accuracy" not in part.curves:
        return part.curves.iloc[:0]
    rows = part.curves[(part.curves["method"] == method) & part.curves["eval/accuracy"].notna()]
    return rows.loc[rows.groupby(["arm", "seed"])["step"].idxmax()]


def best_arm(part: Part, method: str) -> str | None:
    """Return the arm of a method with the highest final accuracy on validation prompts.

    ``None`` where no arm was evaluated.
    """
    means = _ends(part, method).groupby("arm", sort=False)["eval/accuracy"].mean()
    return None if means.empty else str(means.idxmax())


def annealed_against_fixed(study: Study) -> Found:
    """5: compare the best annealed with the best fixed coefficient.

    Validation prompts choose them, and test prompts compare them.
    """
    part = study["betas"]
    best = {method: best_arm(part, method) for method in ("kdrl_annealed", "kdrl")}
    for method, arm in best.items():
        if arm is None:
            note = f"no run of {method} in the part betas counts and was evaluated on the way"
            return Found([], note, False)
    return Found(_order(part, [str(arm) for arm in best.values()], ACCURACY, "accuracy"))


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
        accuracy = paired(with_mask.of(masked, ACCURACY), without.of(kdrl, ACCURACY))
        length = paired(without.of(kdrl, LENGTH), with_mask.of(masked, LENGTH))
        kdrl = masked.replace("kdrl_masked", "kdrl")  # the rate is the same on both sides
        checks.append(Check(f"{masked} ≥ {kdrl}: accuracy", accuracy, -POINTS))
        checks.append(Check(f"{kdrl} > {masked}: length in tokens", length))
    with_beta = f"; where a β stands, the learning rate is {MASKS_RATE} on both sides"
    return Found(checks, NOT_WORSE + with_beta * (len(pairs) > 1))


def trrd_on_knights(study: Study) -> Found:
    """7: compare the methods on Knights and Knaves, and TRRD's lead over GRPO by puzzle size.

    Puzzles of two people are too few: 72 in all, a dozen of them in the test split.
    """
    part = study["knights"]
    lead = {size: part.level("trrd", size) - part.level("grpo", size) for size in ("3", "4")}
    grows = Check("lead of trrd over grpo: 4 people > 3 people", paired(lead["4"], lead["3"]))
    order = _order(part, ("trrd", "kdrl", "grpo"), ACCURACY, "accuracy")
    return Found([*order, grows], "short contexts were not varied")


def alpha_near_a_half(study: Study) -> Found:
    """8: compare the accuracy at α = .4 and .6 with that at .5."""
    at = {a: study["alphas"].of(f"trrd,trrd_alpha={a}", ACCURACY) for a in (0.4, 0.5, 0.6)}
    return Found(
        [
            Check(f"α = {a} ≈ α = 0.5: accuracy", paired(at[a], at[0.5]), POINTS, equal=True)
            for a in (0.4, 0.6)
        ]
    )


def _seconds(part: Part, arm: str, last: int | None) -> pd.Series:
    """Return by seed the median seconds of a step, from step 2 to ``last``."""
    curves = part.curve(arm, "train_time")
    medians = {seed: curve.loc[2:last].median() for seed, curve in curves.items()}
    return pd.Series(medians, dtype=float)


def cost_of_a_step(study: Study) -> Found:
    """9: compare the seconds of steps 2 to 11 as ratios, while completions are still alike."""
    part = study["core"]
    checks, whole = [], []
    for other, claimed in (("kdrl", 1.0), ("grpo", 1.15)):
        effect = effect_of(_seconds(part, "trrd", 11) / _seconds(part, other, 11) - claimed)
        text = f"seconds of a step, trrd / {other} ≈ {claimed:g} (± 0.10)"
        checks.append(Check(text, effect, 0.10, equal=True))
        later = effect_of(_seconds(part, "trrd", None) / _seconds(part, other, None))
        whole.append(f"trrd / {other} {later.mean:.2f} [{later.low:.2f}, {later.high:.2f}]")
    note = (
        "medians of steps 2–11; the effect is the distance from the number claimed; GRPO skips"
        " the backward pass of groups without spread; over all steps, where lengths differ: "
    )
    return Found(checks, note + ", ".join(whole))


def joint_on_knights(study: Study) -> Found:
    """10: compare each joint method with each pure one."""
    pairs = itertools.product(("kdrl", "trrd"), ("grpo", "opd"))
    orders = [_order(study["knights"], pair, ACCURACY, "accuracy") for pair in pairs]
    return Found([check for order in orders for check in order])


def passes(study: Study) -> Found:
    """11: compare pass@1, and pass@k at the largest k that chance leaves room for.

    The comparisons decide only if the k of the claim, 32, is among those.
    """
    part = study["core"]
    names = [str(name).partition("@") for name in part.runs]
    ks = sorted(int(k) for measure, _, k in names if measure == "id chance")
    fair = [k for k in ks if part.runs[f"id chance@{k}"].max() < CHANCE]
    large, most = max(fair, default=1), max(ks, default=0)
    checks = _order(part, ("kdrl", "opd"), "id pass@1", "pass@1")
    if large > 1:
        measure = f"id pass@{large}"
        checks += _order(part, ("opd", "kdrl"), measure, f"pass@{large}")
        gap = paired(part.of("trrd", measure), part.of("opd", measure))
        checks.append(Check(f"trrd ≈ opd: pass@{large}", gap, POINTS, equal=True))
    if large >= 32:
        return Found(checks)
    why = [] if 32 in ks else [f"only {most} completions a prompt were taken"]
    if large < most:
        why.append(f"guesses alone reach {CHANCE:.0%} from k = {large + 1} or so on")
    note = f"pass@32 is not decided here: {', and '.join(why)}; k = {large} is shown instead"
    return Found(checks, note, False)


def sequential_or_joint(study: Study) -> Found:
    """12: check that each is not worse than the next by more than two points."""
    arms = ("opd_then_rl", "kdrl_annealed", "kdrl")
    return Found(_order(study["core"], arms, ACCURACY, "accuracy", -POINTS), NOT_WORSE)


def best_beta(part: Part) -> pd.Series:
    """Return log₁₀ of the best fixed coefficient on validation prompts, by seed.

    Of equals the smallest is taken.
    """
    rows = _ends(part, "kdrl")
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


def betas_of_tasks(study: Study) -> Found:
    """13: take the powers of ten between the best coefficients of the tasks, seed by seed.

    One power or more supports the claim.
    Less contradicts it only where the grid holds the best coefficient in most seeds of each task.
    A best one at an end may lie beyond, and then the difference is not known.
    """
    parts = {"arithmetic": study["betas"], "Knights and Knaves": study["knights_betas"]}
    best = {task: best_beta(part) for task, part in parts.items()}
    if any(found.empty for found in best.values()):
        note = "no run of kdrl counts and was evaluated on the way, on one of the tasks"
        return Found([], note, False)
    gap = paired(best["arithmetic"], best["Knights and Knaves"])
    low, high = (gap.low, gap.high) if gap.mean >= 0 else (-gap.high, -gap.low)
    text = "powers of ten between the best β of arithmetic and of Knights and Knaves ≥ 1"
    check = Check(text, Effect(abs(gap.mean), low, high, gap.seeds), 1 - 1e-9)
    at_end = {task: _at_end(part, best[task]) for task, part in parts.items()}
    note = "the paper says up to 100 times; best at an end of the grid: " + ", ".join(
        f"{task} {at_end[task]} of {len(best[task])} seeds" for task in best
    )
    if check.outcome == "contradicted" and any(at_end[task] > len(best[task]) / 2 for task in best):
        note += ": the grid ends too early, and a larger difference is not ruled out"
        return Found([check], note, False)
    return Found([check], note)


def interference(study: Study) -> Found:
    """14: compare the sign conflict with OPD's gradient on the same batch.

    The conflict is the mean over training.
    It decides nothing where OPD conflicts as much with itself on two halves of a batch.
    The signs are then noise.
    """
    part, name = study["core"], "interference/sign_conflict_{}".format
    arms = ("grpo", "kdrl", "trrd")
    conflict = {arm: part.curve_means(arm, name("teacher_method")) for arm in arms}
    floors = pd.concat([part.curve_means(arm, name("split_teacher")) for arm in arms])
    checks = [
        Check(f"{a} > {b}: sign conflict", paired(conflict[a], conflict[b]))
        for a, b in itertools.pairwise(arms)
    ]
    if floors.empty:
        return Found(checks, "not measured", False)
    means = {arm: values.mean() for arm, values in conflict.items()}
    floor = floors.mean()
    shown = ", ".join(f"{arm} {mean:.3f}" for arm, mean in means.items())
    note = (
        f"mean conflict {shown}; OPD's gradient against itself on two halves of a"
        f" batch, the noise floor: {floor:.3f}"
    )
    if floor < min(means.values()):
        return Found(checks, note)
    noise = "the signs are mostly noise at this batch size, so the comparisons decide nothing"
    return Found(checks, f"{note}: {noise}", False)
