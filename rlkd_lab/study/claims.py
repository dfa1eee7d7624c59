"""What the papers claim, and whether it holds here: from the tables of a study to supported, contradicted or undecided.

Arms share their seeds, and a seed fixes the start of the adapter and the prompts of every step: differences are taken seed by seed. Their 95 % interval is
Student's t over seeds. Each claim is one or several comparisons:

- of an order, a > b: supported where the interval of a − b lies above 0, contradicted where it lies below;
- of "not worse", a ≥ b: supported where the interval lies above −margin, contradicted where it lies below it;
- of equality: supported where the interval lies within ±margin, contradicted where it lies outside of it.

Anything else is undecided, and so is anything with fewer than :data:`SEEDS` seeds. A claim with several comparisons is supported if all of them are, and
contradicted if one is. The intervals are not corrected for their number: of twenty comparisons without any effect one is expected to be decided wrongly.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy.stats import t

from rlkd_lab.study.results import Part
from rlkd_lab.study.statistics import half_width

Outcome = Literal["supported", "contradicted", "undecided"]
Study = Mapping[str, Part]
"""Parts by name: core, estimators, …"""
SEEDS = 5
"""Fewest seeds that decide anything."""
POINTS = 0.02
"""Margin of equality and of "not worse" in accuracy: two points."""
CHANCE = 0.05
"""A pass@k that blind guesses reach this often decides nothing."""
WINDOW = 9
"""Steps of the trailing mean of a training curve."""


@dataclass(frozen=True)
class Effect:
    """A mean difference over seeds with its 95 % interval; NaN bounds below two seeds."""

    mean: float
    low: float
    high: float
    seeds: int

    def above(self, margin: float = 0.0) -> Outcome:
        """Of the claim that the difference is larger than ``margin``."""
        if self.seeds < SEEDS or not (self.low > margin or self.high < margin):
            return "undecided"
        return "supported" if self.low > margin else "contradicted"

    def within(self, margin: float) -> Outcome:
        """Of the claim that the difference is no larger than ``margin``, to either side."""
        if self.seeds < SEEDS:
            return "undecided"
        if -margin < self.low and self.high < margin:
            return "supported"
        return "contradicted" if self.low > margin or self.high < -margin else "undecided"

    def seeds_needed(self, margin: float = 0.0) -> int | None:
        """Seeds with which an effect of this size and spread would be told from ``margin``, at least :data:`SEEDS`; ``None``: not with ten thousand, or too
        few were run to say."""
        if self.seeds < 2 or not math.isfinite(self.low):
            return None
        spread = (self.high - self.low) / 2 * math.sqrt(self.seeds) / t.ppf(0.975, self.seeds - 1)
        # the half-width falls with n, so the first n that is enough can be found by halving
        low, high = SEEDS, 10_000
        if t.ppf(0.975, high - 1) * spread / math.sqrt(high) >= abs(self.mean - margin):
            return None
        while low < high:
            middle = (low + high) // 2
            if t.ppf(0.975, middle - 1) * spread / math.sqrt(middle) < abs(self.mean - margin):
                high = middle
            else:
                low = middle + 1
        return low


def effect_of(values: pd.Series) -> Effect:
    """Mean of one number a seed, with its interval."""
    known = values.replace([np.inf, -np.inf], np.nan).dropna().to_numpy(dtype=float)
    if len(known) < 2:
        return Effect(float(known.mean()) if len(known) else math.nan, math.nan, math.nan, len(known))
    half = half_width(known)
    return Effect(float(known.mean()), float(known.mean() - half), float(known.mean() + half), len(known))


def paired(a: pd.Series, b: pd.Series) -> Effect:
    """a − b over the seeds that both have."""
    return effect_of(a - b)


@dataclass(frozen=True)
class Check:
    """One comparison of a claim."""

    text: str
    effect: Effect
    outcome: Outcome
    needed: int | None = None
    """Seeds that would decide it, where it is undecided."""

    @classmethod
    def order(cls, text: str, effect: Effect, margin: float = 0.0) -> Check:
        """Of a difference that is claimed to be larger than ``margin``."""
        outcome = effect.above(margin)
        return cls(text, effect, outcome, effect.seeds_needed(margin) if outcome == "undecided" else None)

    @classmethod
    def same(cls, text: str, effect: Effect, margin: float) -> Check:
        """Of a difference that is claimed to be no larger than ``margin``."""
        outcome = effect.within(margin)
        # an interval inside the margin needs a half-width below the distance to its nearer end
        nearer = math.copysign(margin, effect.mean) if effect.mean else margin
        return cls(text, effect, outcome, effect.seeds_needed(nearer) if outcome == "undecided" else None)


@dataclass(frozen=True)
class Verdict:
    """What became of a claim."""

    number: int
    outcome: Outcome
    checks: tuple[Check, ...]
    note: str = ""
    """Why it is undecided whatever the numbers say, or what to know beside them."""


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper and the comparisons that it comes to here."""

    number: int
    source: str
    text: str
    needs: tuple[str, ...]
    """Parts of the study."""
    checks: Callable[[Study], tuple[list[Check], str, bool]]
    """Comparisons, a note, and whether they may decide."""


def all_of(outcomes: Sequence[Outcome]) -> Outcome:
    """Of a claim with several comparisons."""
    if "contradicted" in outcomes:
        return "contradicted"
    return "supported" if outcomes and set(outcomes) == {"supported"} else "undecided"


def judge_claims(study: Study) -> list[Verdict]:
    """A verdict for every claim; one whose parts were not run is undecided and says so."""
    verdicts = []
    for claim in CLAIMS:
        missing = [name for name in claim.needs if name not in study]
        if missing:
            verdicts.append(Verdict(claim.number, "undecided", (), f"not run: {', '.join(missing)}"))
            continue
        checks, note, decides = claim.checks(study)
        few = [check for check in checks if check.effect.seeds < SEEDS]
        if few:
            had = min(check.effect.seeds for check in few)
            note = f"{had} seeds where at least {SEEDS} are needed. {note}".strip()
        outcome = all_of([check.outcome for check in checks]) if decides else "undecided"
        verdicts.append(Verdict(claim.number, outcome, tuple(checks), note))
    return verdicts


# --- the claims -------------------------------------------------------------------------------------------------------

ACCURACY, LENGTH = "id avg", "id length"
Found = tuple[list[Check], str, bool]


def _chain(part: Part, arms: Sequence[str], measure: str, what: str, margin: float = 0.0) -> list[Check]:
    """a > b > c …: neighbours."""
    sign = ">" if margin >= 0 else "≥"
    pairs = itertools.pairwise(arms)
    return [Check.order(f"{a} {sign} {b}: {what}", paired(part.of(a, measure), part.of(b, measure)), margin) for a, b in pairs]


def order_of_methods(study: Study) -> Found:
    """1: accuracy on test prompts."""
    return _chain(study["core"], ("kdrl", "opd", "grpo", "sft"), ACCURACY, "accuracy"), "", True


def steps_to_reach(curve: pd.Series, level: float, window: int = WINDOW) -> float:
    """First step at which the trailing mean over a full window reaches ``level``; one more than the last step if it never does."""
    smooth = curve.rolling(window).mean()
    reached = np.flatnonzero(smooth.to_numpy() >= level)
    return float(smooth.index[reached[0]]) if len(reached) else float(curve.index[-1]) + 1


def fewer_steps(study: Study) -> Found:
    """2: steps until the training accuracy reaches what GRPO's ends with, seed by seed."""
    grpo, kdrl = study["core"].curve("grpo", "accuracy"), study["core"].curve("kdrl", "accuracy")
    gaps = {}
    for seed in grpo.keys() & kdrl.keys():
        level = float(grpo[seed].tail(WINDOW).mean())
        gaps[seed] = steps_to_reach(grpo[seed], level) - steps_to_reach(kdrl[seed], level)
    never = [seed for seed in gaps if steps_to_reach(kdrl[seed], float(grpo[seed].tail(WINDOW).mean())) > kdrl[seed].index[-1]]
    note = f"KDRL does not get there within the run in {len(never)} of {len(gaps)} seeds; these count as one step after its end" if never else ""
    return [Check.order("steps that GRPO needs − steps that KDRL needs", effect_of(pd.Series(gaps, dtype=float)))], note, True


def order_of_lengths(study: Study) -> Found:
    """3: tokens of a completion to a test prompt."""
    return _chain(study["core"], ("opd", "kdrl", "grpo"), LENGTH, "length in tokens"), "", True


def k2_against_k3(study: Study) -> Found:
    """4: the same trials for both estimators."""
    gap = paired(study["core"].of("kdrl", ACCURACY), study["estimators"].of("kdrl_k3", ACCURACY))
    return [Check.order("k2 > k3: accuracy", gap)], "", True


def _best(part: Part, method: str) -> str:
    """The arm of a method with the highest mean accuracy at the end of training, on validation prompts."""
    last = part.curves[(part.curves["method"] == method) & part.curves["eval/accuracy"].notna()]
    last = last.loc[last.groupby(["arm", "seed"])["step"].idxmax()]
    return str(last.groupby("arm", sort=False)["eval/accuracy"].mean().idxmax())


def annealed_against_fixed(study: Study) -> Found:
    """5: the best annealed against the best fixed coefficient, each chosen on validation prompts, compared on test prompts."""
    part = study["betas"]
    annealed, fixed = _best(part, "kdrl_annealed"), _best(part, "kdrl")
    gap = paired(part.of(annealed, ACCURACY), part.of(fixed, ACCURACY))
    return [Check.order(f"{annealed} > {fixed}: accuracy", gap)], "", True


def masking(study: Study) -> Found:
    """6: the same accuracy within two points, and shorter."""
    part = study["core"]
    return [
        Check.same("kdrl_masked ≈ kdrl: accuracy", paired(part.of("kdrl_masked", ACCURACY), part.of("kdrl", ACCURACY)), POINTS),
        Check.order("kdrl > kdrl_masked: length in tokens", paired(part.of("kdrl", LENGTH), part.of("kdrl_masked", LENGTH))),
    ], "", True  # fmt: skip


def trrd_on_knights(study: Study) -> Found:
    """7: the order on Knights and Knaves, and a larger lead over GRPO on the largest puzzles than on the smallest."""
    part = study["knights"]
    checks = _chain(part, ("trrd", "kdrl", "grpo"), ACCURACY, "accuracy")
    lead = {size: part.level("trrd", size) - part.level("grpo", size) for size in ("2", "4")}
    checks.append(Check.order("lead of trrd over grpo: 4 people > 2 people", paired(lead["4"], lead["2"])))
    return checks, "short contexts were not varied", True


def alpha_near_a_half(study: Study) -> Found:
    """8: accuracy at α = .4 and .6 against .5."""
    part = study["alphas"]
    arm = "trrd,trrd_alpha={}".format
    return [
        Check.same(f"α = {alpha} ≈ α = 0.5: accuracy", paired(part.of(arm(alpha), ACCURACY), part.of(arm(0.5), ACCURACY)), POINTS) for alpha in (0.4, 0.6)
    ], "", True  # fmt: skip


def cost_of_a_step(study: Study) -> Found:
    """9: seconds of the first ten steps after the first, while the completions are still alike, as ratios."""
    spent = {
        arm: pd.Series({seed: curve.loc[2:11].median() for seed, curve in study["core"].curve(arm, "train_time").items()}, dtype=float)
        for arm in ("trrd", "kdrl", "grpo")
    }
    return [
        Check.same("seconds of a step, trrd / kdrl ≈ 1 (± 0.10)", effect_of(spent["trrd"] / spent["kdrl"] - 1), 0.10),
        Check.same("seconds of a step, trrd / grpo ≈ 1.15 (± 0.10)", effect_of(spent["trrd"] / spent["grpo"] - 1.15), 0.10),
    ], "medians of steps 2–11; the effect is the distance from the number claimed; GRPO skips the backward pass of groups without spread", True  # fmt: skip


def joint_on_knights(study: Study) -> Found:
    """10: each joint method against each pure one."""
    part = study["knights"]
    return [
        Check.order(f"{joint} > {pure}: accuracy", paired(part.of(joint, ACCURACY), part.of(pure, ACCURACY)))
        for joint in ("kdrl", "trrd") for pure in ("grpo", "opd")
    ], "", True  # fmt: skip


def passes(study: Study) -> Found:
    """11: pass@1, and pass@k at the largest k that chance leaves room for; the claim's own k = 32 has to be among them to decide."""
    part = study["core"]
    ks = sorted(int(name.removeprefix("id chance@")) for name in map(str, part.runs) if name.startswith("id chance@"))
    fair = [k for k in ks if part.runs[f"id chance@{k}"].max() < CHANCE]
    large = max(fair, default=1)
    gaps = {k: paired(part.of("kdrl", f"id pass@{k}"), part.of("opd", f"id pass@{k}")) for k in {1, large}}
    checks = [Check.order("kdrl > opd: pass@1", gaps[1])]
    if large > 1:
        checks.append(Check.order(f"opd > kdrl: pass@{large}", Effect(-gaps[large].mean, -gaps[large].high, -gaps[large].low, gaps[large].seeds)))
        checks.append(Check.same(f"trrd ≈ opd: pass@{large}", paired(part.of("trrd", f"id pass@{large}"), part.of("opd", f"id pass@{large}")), POINTS))
    if large >= 32:
        return checks, "", True
    return checks, f"pass@32 is not decided here: guesses alone reach {CHANCE:.0%} from k = {large + 1} or so on; k = {large} is shown instead", False


def sequential_or_joint(study: Study) -> Found:
    """12: not worse by more than two points."""
    return _chain(study["core"], ("opd_then_rl", "kdrl_annealed", "kdrl"), ACCURACY, "accuracy", -POINTS), "≥ is: not worse by two points or more", True


def best_beta(part: Part) -> pd.Series:
    """log₁₀ of the fixed coefficient with the best end on validation prompts, by seed; of equals the smallest."""
    rows = part.curves[(part.curves["method"] == "kdrl") & part.curves["eval/accuracy"].notna()]
    rows = rows.loc[rows.groupby(["arm", "seed"])["step"].idxmax()].sort_values("coef/kd_coef", kind="stable")
    best = rows.loc[rows.groupby("seed")["eval/accuracy"].idxmax()].set_index("seed")["coef/kd_coef"]
    return pd.Series(np.log10(best.to_numpy(dtype=float)), index=best.index)


def betas_of_tasks(study: Study) -> Found:
    """13: decades between the best coefficients of the two tasks, seed by seed; a difference of one decade or more supports it."""
    gap = paired(best_beta(study["betas"]), best_beta(study["knights_betas"]))
    size = Effect(abs(gap.mean), *((gap.low, gap.high) if gap.mean >= 0 else (-gap.high, -gap.low)), gap.seeds)
    return [Check.order("decades between the best kd_coef on arithmetic and on knights ≥ 1", size, 1.0)], "the paper says up to two decades", True


def interference(study: Study) -> Found:
    """14: sign conflict of the method's gradient with on-policy KD's on the same batch, mean over training. It decides nothing where on-policy KD's gradient
    conflicts as much with itself, on two halves of the batch: then the signs are noise, and how much of it two gradients share is all that is seen."""
    part, name = study["core"], "interference/sign_conflict_{}".format
    conflict = {
        arm: pd.Series({seed: curve.mean() for seed, curve in part.curve(arm, name("teacher_method")).items()}, dtype=float) for arm in ("grpo", "kdrl", "trrd")
    }
    floors = [curve.mean() for arm in conflict for curve in part.curve(arm, name("split_teacher")).values()]
    checks = [Check.order(f"{a} > {b}: sign conflict", paired(conflict[a], conflict[b])) for a, b in (("grpo", "kdrl"), ("kdrl", "trrd"))]
    if not floors:
        return checks, "not measured", False
    means = ", ".join(f"{arm} {values.mean():.3f}" for arm, values in conflict.items())
    floor = float(np.mean(floors))
    clear = floor < min(values.mean() for values in conflict.values())
    note = f"mean conflict {means}; on-policy KD's gradient against itself on two halves of a batch, the noise floor: {floor:.3f}"
    return checks, note + ("" if clear else ": the signs are mostly noise at this batch size, so the comparisons decide nothing"), clear


CLAIMS: tuple[Claim, ...] = (
    Claim(1, "KDRL", "accuracy: KDRL > on-policy KD > GRPO > SFT", ("core",), order_of_methods),
    Claim(2, "KDRL", "KDRL reaches GRPO's final score in fewer steps", ("core",), fewer_steps),
    Claim(3, "KDRL", "on-policy KD writes the longest completions, KDRL lies between it and GRPO", ("core",), order_of_lengths),
    Claim(4, "KDRL", "k2 is better than k3 as KDRL's loss", ("core", "estimators"), k2_against_k3),
    Claim(5, "KDRL", "an annealed coefficient beats the best fixed one", ("betas",), annealed_against_fixed),
    Claim(6, "KDRL", "masking right responses keeps the accuracy and shortens completions", ("core",), masking),
    Claim(7, "RLAD", "TRRD > KDRL > GRPO on Knights and Knaves, most on the largest puzzles", ("knights",), trrd_on_knights),
    Claim(8, "RLAD", "α near .5 does not matter", ("alphas",), alpha_near_a_half),
    Claim(9, "RLAD", "a step of TRRD costs what KDRL's does, 15 % more than GRPO's", ("core",), cost_of_a_step),
    Claim(10, "S", "joint methods beat pure GRPO and pure on-policy KD on logic", ("knights",), joint_on_knights),
    Claim(11, "S", "KDRL raises pass@1 and lowers pass@32 against on-policy KD, TRRD stays close to it", ("core",), passes),
    Claim(12, "S", "OPD-then-RL ≥ annealed KDRL ≥ KDRL", ("core",), sequential_or_joint),
    Claim(13, "S", "the best coefficient differs between tasks, by up to 100 times", ("betas", "knights_betas"), betas_of_tasks),
    Claim(14, "S", "conflict with on-policy KD's update: GRPO > KDRL > TRRD", ("core",), interference),
)
"""KDRL = arXiv 2506.02208, RLAD = arXiv 2602.22495, S = arXiv 2609.04108."""
