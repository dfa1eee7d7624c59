"""What the papers claim, and whether it holds here: from the tables of a study to supported,
contradicted or undecided.

Arms share their seeds, and a seed fixes the start of the adapter and the prompts of every step:
differences are taken seed by seed. Their 95 % interval is Student's t over seeds. Each claim is one
or several comparisons:

- of an order, a > b: supported where the interval of a − b lies above 0, contradicted where it lies
  below;
- of "not worse", a ≥ b: supported where the interval lies above −margin, contradicted where it lies
  below it;
- of equality: supported where the interval lies within ±margin, contradicted where it lies outside
  of it.

Anything else is undecided, and so is anything with fewer than :data:`SEEDS` seeds. A claim with
several comparisons is supported if all of them are, and contradicted if one is. The intervals are
not corrected for their number: of twenty comparisons without any effect one is expected to be
decided wrongly. A verdict that would not stand if they were (Bonferroni, over all comparisons of
the scorecard) is marked as on the edge.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
WINDOWS = (5, 7, 9, 11, 13)
"""Others, with which a verdict about a curve has to be the same."""
MASKS_RATE = 0.0005
"""The learning rate of part masks, and of those runs of part rates that it is held against."""


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

    def of_many(self, comparisons: int) -> Effect:
        """With an interval so much wider that all of so many hold at once with 95 %
        (Bonferroni).
        """
        if self.seeds < 2 or not math.isfinite(self.low):
            return self
        wider = float(t.ppf(1 - 0.025 / comparisons, self.seeds - 1) / t.ppf(0.975, self.seeds - 1))
        return replace(
            self,
            low=self.mean - wider * (self.mean - self.low),
            high=self.mean + wider * (self.high - self.mean),
        )

    def seeds_needed(self, margin: float = 0.0) -> int | None:
        """Seeds with which an effect of this size and spread would be told from ``margin``, at
        least :data:`SEEDS`; ``None``: not with ten thousand, or too few were run to say.
        """
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
        return Effect(
            float(known.mean()) if len(known) else math.nan, math.nan, math.nan, len(known)
        )
    half = half_width(known)
    return Effect(
        float(known.mean()), float(known.mean() - half), float(known.mean() + half), len(known)
    )


def paired(a: pd.Series, b: pd.Series) -> Effect:
    """a − b over the seeds that both have."""
    return effect_of(a - b)


@dataclass(frozen=True)
class Check:
    """One comparison of a claim: that a difference is larger than ``margin``, or (``equal``) no
    larger than it to either side.
    """

    text: str
    effect: Effect
    margin: float = 0.0
    equal: bool = False

    def outcome_of(self, effect: Effect) -> Outcome:
        """What an effect makes of the comparison."""
        return effect.within(self.margin) if self.equal else effect.above(self.margin)

    @property
    def outcome(self) -> Outcome:
        return self.outcome_of(self.effect)

    @property
    def needed(self) -> int | None:
        """Seeds that would tell an effect of this size and spread, whichever way it points;

        ``None`` where it is decided, or where none are known to.
        """
        if self.outcome != "undecided":
            return None
        # an interval inside the margin needs a half-width below the distance to its nearer end
        nearer = (
            math.copysign(self.margin, self.effect.mean)
            if self.equal and self.effect.mean
            else self.margin
        )
        return self.effect.seeds_needed(nearer)

    @property
    def leans(self) -> Outcome:
        """What those seeds would decide: the outcome of the effect without its interval."""
        return self.outcome_of(replace(self.effect, low=self.effect.mean, high=self.effect.mean))


@dataclass(frozen=True)
class Verdict:
    """What became of a claim."""

    number: int
    outcome: Outcome
    checks: tuple[Check, ...]
    note: str = ""
    """Why it is undecided whatever the numbers say, or what to know beside them."""
    among: int = 1
    """Comparisons of all the claims that were judged with it."""

    @property
    def edge(self) -> bool:
        """Whether it would be another one if the intervals were corrected for the number of
        comparisons.
        """
        return self.outcome not in (
            "undecided",
            all_of([strict(check, self.among) for check in self.checks]),
        )


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

    def missing(self, study: Study) -> list[str]:
        """Parts that it needs and that were not run."""
        return [name for name in self.needs if name not in study]


def all_of(outcomes: Sequence[Outcome]) -> Outcome:
    """Of a claim with several comparisons."""
    if "contradicted" in outcomes:
        return "contradicted"
    return "supported" if outcomes and set(outcomes) == {"supported"} else "undecided"


def judge_claims(study: Study) -> list[Verdict]:
    """A verdict for every claim; one whose parts were not run is undecided and says so."""
    verdicts: list[Verdict] = []
    for claim in CLAIMS:
        if missing := claim.missing(study):
            verdicts.append(
                Verdict(claim.number, "undecided", (), f"not run: {', '.join(missing)}")
            )
            continue
        checks, note, decides = claim.checks(study)
        few = [check for check in checks if check.effect.seeds < SEEDS]
        if few:
            had = min(check.effect.seeds for check in few)
            note = (
                f"{had} seed{'s' * (had != 1)} where at least {SEEDS} are"
                f" needed{'; ' * bool(note)}{note}"
            )
        gone = {name: len(study[name].left_out) for name in claim.needs if study[name].left_out}
        if gone:
            told = ", ".join(f"{name} {count}" for name, count in gone.items())
            note = f"{note}{'; ' * bool(note)}runs that do not count, named below: {told}"
        outcome = all_of([check.outcome for check in checks]) if decides else "undecided"
        verdicts.append(Verdict(claim.number, outcome, tuple(checks), note))
    total = sum(len(verdict.checks) for verdict in verdicts)
    return [replace(verdict, among=total) for verdict in verdicts]


def strict(check: Check, comparisons: int) -> Outcome:
    """The outcome of a comparison that is one of so many."""
    return check.outcome_of(check.effect.of_many(comparisons))


# --- the claims -----------------------------------------------------------------------------------

ACCURACY, LENGTH = "id avg", "id length"
Found = tuple[list[Check], str, bool]


def _chain(
    part: Part, arms: Sequence[str], measure: str, what: str, margin: float = 0.0
) -> list[Check]:
    """a > b > c …: neighbours."""
    sign = ">" if margin >= 0 else "≥"
    pairs = itertools.pairwise(arms)
    return [
        Check(f"{a} {sign} {b}: {what}", paired(part.of(a, measure), part.of(b, measure)), margin)
        for a, b in pairs
    ]


def order_of_methods(study: Study) -> Found:
    """1: accuracy on test prompts."""
    return _chain(study["core"], ("kdrl", "opd", "grpo", "sft"), ACCURACY, "accuracy"), "", True


def steps_to_reach(curve: pd.Series, level: float, window: int = WINDOW) -> float:
    """First step at which the trailing mean over a full window reaches ``level``; one more than
    the last step if it never does.
    """
    smooth = curve.rolling(window).mean()
    reached = np.flatnonzero(smooth.to_numpy() >= level - 1e-9)  # sums in another order
    return float(smooth.index[reached[0]]) if len(reached) else float(curve.index[-1]) + 1


def fewer_steps(study: Study) -> Found:
    """2: steps until the training accuracy reaches what GRPO's ends with, seed by seed; decided
    where it does not hang on how the curves are smoothed. That level favours the other side, who
    may pass it by luck long before GRPO may; so the accuracy in the mean over the run, which
    favours nobody, is asked too.
    """
    part = study["core"]
    checks = {
        window: Check(
            "steps that GRPO needs − steps that KDRL needs", effect_of(steps_ahead(part, window))
        )
        for window in WINDOWS
    }
    grpo, kdrl = part.curve("grpo", "accuracy"), part.curve("kdrl", "accuracy")
    seeds = grpo.keys() & kdrl.keys()
    never = [
        seed
        for seed in seeds
        if steps_to_reach(kdrl[seed], _end(grpo[seed], WINDOW)) > kdrl[seed].index[-1]
    ]
    notes = (
        [
            f"KDRL does not get there within the run in {len(never)} of {len(seeds)} seeds;"
            " these count as one step after its end"
        ]
        if never
        else []
    )
    agree = len({check.outcome for check in checks.values()}) == 1
    if not agree:
        each = ", ".join(
            f"{window}: {c.effect.mean:+.1f} [{c.effect.low:+.1f}, {c.effect.high:+.1f}]"
            for window, c in checks.items()
        )
        notes.append(
            "the outcome hangs on the window of the trailing mean, in steps, so it decides"
            f" nothing ({each.replace('-', '−')})"
        )
    whole = {
        arm: pd.Series({seed: curve.mean() for seed, curve in curves.items()}, dtype=float)
        for arm, curves in (("kdrl", kdrl), ("grpo", grpo))
    }
    return (
        [
            checks[WINDOW],
            Check("kdrl > grpo: mean accuracy in training", paired(whole["kdrl"], whole["grpo"])),
        ],
        "; ".join(notes),
        agree,
    )


def steps_ahead(part: Part, window: int) -> pd.Series:
    """By seed, steps that GRPO needs to the training accuracy it ends with, minus those that
    KDRL needs to the same.
    """
    grpo, kdrl = part.curve("grpo", "accuracy"), part.curve("kdrl", "accuracy")
    needed = {
        seed: [
            steps_to_reach(curve, _end(grpo[seed], window), window)
            for curve in (grpo[seed], kdrl[seed])
        ]
        for seed in grpo.keys() & kdrl.keys()
    }
    return pd.Series({seed: grpos - kdrls for seed, (grpos, kdrls) in needed.items()}, dtype=float)


def _end(curve: pd.Series, window: int) -> float:
    return float(curve.tail(window).mean())


def order_of_lengths(study: Study) -> Found:
    """3: tokens of a completion to a test prompt."""
    return _chain(study["core"], ("opd", "kdrl", "grpo"), LENGTH, "length in tokens"), "", True


def k2_against_k3(study: Study) -> Found:
    """4: the same trials for both estimators."""
    gap = paired(study["core"].of("kdrl", ACCURACY), study["estimators"].of("kdrl_k3", ACCURACY))
    return [Check("k2 > k3: accuracy", gap)], "", True


def _ends(part: Part, method: str) -> pd.DataFrame:
    """The last evaluation on validation prompts of each run of a method, as rows of the curves."""
    if "eval/accuracy" not in part.curves:
        return part.curves.iloc[:0]
    rows = part.curves[(part.curves["method"] == method) & part.curves["eval/accuracy"].notna()]
    return rows.loc[rows.groupby(["arm", "seed"])["step"].idxmax()]


def _best(part: Part, method: str) -> str | None:
    """The arm of a method with the highest mean accuracy at the end of training, on validation
    prompts; ``None`` where none has one.
    """
    ends = _ends(part, method)
    return (
        None
        if ends.empty
        else str(ends.groupby("arm", sort=False)["eval/accuracy"].mean().idxmax())
    )


def annealed_against_fixed(study: Study) -> Found:
    """5: the best annealed against the best fixed coefficient, each chosen on validation
    prompts, compared on test prompts.
    """
    part = study["betas"]
    annealed, fixed = _best(part, "kdrl_annealed"), _best(part, "kdrl")
    if annealed is None or fixed is None:
        return (
            [],
            f"no run of {'kdrl_annealed' if annealed is None else 'kdrl'} in the part betas"
            " counts and was evaluated on the way",
            False,
        )
    gap = paired(part.of(annealed, ACCURACY), part.of(fixed, ACCURACY))
    return [Check(f"{annealed} > {fixed}: accuracy", gap)], "", True


def masking(study: Study) -> Found:
    """6: not less accurate by two points, and shorter: with the settings chosen for each, and,
    where those parts were run, at the same coefficients.
    """
    core = study["core"]
    pairs = [("kdrl_masked", "kdrl", core, core)]
    if {"rates", "masks"} <= study.keys():
        at = f"learning_rate={MASKS_RATE}"
        pairs += [
            (
                f"kdrl_masked,kd_coef={beta}",
                f"kdrl,kd_coef={beta},{at}",
                study["masks"],
                study["rates"],
            )
            for beta in (0.03, 0.1, 0.3)
        ]
    checks = []
    for masked, kdrl, of_masked, of_kdrl in pairs:
        checks.append(
            Check(
                f"{masked} ≥ {kdrl}: accuracy",
                paired(of_masked.of(masked, ACCURACY), of_kdrl.of(kdrl, ACCURACY)),
                -POINTS,
            )
        )
        checks.append(
            Check(
                f"{kdrl} > {masked}: length in tokens",
                paired(of_kdrl.of(kdrl, LENGTH), of_masked.of(masked, LENGTH)),
            )
        )
    return checks, "≥ is: not worse by two points or more", True


def trrd_on_knights(study: Study) -> Found:
    """7: the order on Knights and Knaves, and a larger lead over GRPO on the largest puzzles than
    on smaller ones. Of two people there are too few puzzles: 72 in all, a dozen of them in the test
    split.
    """
    part = study["knights"]
    checks = _chain(part, ("trrd", "kdrl", "grpo"), ACCURACY, "accuracy")
    lead = {size: part.level("trrd", size) - part.level("grpo", size) for size in ("3", "4")}
    checks.append(
        Check("lead of trrd over grpo: 4 people > 3 people", paired(lead["4"], lead["3"]))
    )
    return checks, "short contexts were not varied", True


def alpha_near_a_half(study: Study) -> Found:
    """8: accuracy at α = .4 and .6 against .5."""
    at = {
        alpha: study["alphas"].of(f"trrd,trrd_alpha={alpha}", ACCURACY) for alpha in (0.4, 0.5, 0.6)
    }
    return (
        [
            Check(
                f"α = {alpha} ≈ α = 0.5: accuracy", paired(at[alpha], at[0.5]), POINTS, equal=True
            )
            for alpha in (0.4, 0.6)
        ],
        "",
        True,
    )


def cost_of_a_step(study: Study) -> Found:
    """9: seconds of the first ten steps after the first, while the completions are still alike,
    as ratios.
    """

    def spent(arm: str, last: int | None) -> pd.Series:
        curves = study["core"].curve(arm, "train_time")
        return pd.Series(
            {seed: curve.loc[2:last].median() for seed, curve in curves.items()}, dtype=float
        )

    checks, whole = [], []
    for other, claimed in (("kdrl", 1.0), ("grpo", 1.15)):
        effect = effect_of(spent("trrd", 11) / spent(other, 11) - claimed)
        checks.append(
            Check(
                f"seconds of a step, trrd / {other} ≈ {claimed:g} (± 0.10)",
                effect,
                0.10,
                equal=True,
            )
        )
        later = effect_of(spent("trrd", None) / spent(other, None))
        whole.append(f"trrd / {other} {later.mean:.2f} [{later.low:.2f}, {later.high:.2f}]")
    note = (
        "medians of steps 2–11; the effect is the distance from the number claimed; GRPO skips"
        " the backward pass of groups without spread"
    )
    return checks, f"{note}; over all steps, where lengths differ: {', '.join(whole)}", True


def joint_on_knights(study: Study) -> Found:
    """10: each joint method against each pure one."""
    part = study["knights"]
    return (
        [
            Check(
                f"{joint} > {pure}: accuracy",
                paired(part.of(joint, ACCURACY), part.of(pure, ACCURACY)),
            )
            for joint in ("kdrl", "trrd")
            for pure in ("grpo", "opd")
        ],
        "",
        True,
    )


def passes(study: Study) -> Found:
    """11: pass@1, and pass@k at the largest k that chance leaves room for; the claim's own k =
    32 has to be among them to decide.
    """
    part = study["core"]
    ks = sorted(
        int(name.removeprefix("id chance@"))
        for name in map(str, part.runs)
        if name.startswith("id chance@")
    )
    fair = [k for k in ks if part.runs[f"id chance@{k}"].max() < CHANCE]
    large = max(fair, default=1)
    gaps = {
        k: paired(part.of("kdrl", f"id pass@{k}"), part.of("opd", f"id pass@{k}"))
        for k in {1, large}
    }
    checks = [Check("kdrl > opd: pass@1", gaps[1])]
    if large > 1:
        checks.append(
            Check(
                f"opd > kdrl: pass@{large}",
                Effect(-gaps[large].mean, -gaps[large].high, -gaps[large].low, gaps[large].seeds),
            )
        )
        checks.append(
            Check(
                f"trrd ≈ opd: pass@{large}",
                paired(part.of("trrd", f"id pass@{large}"), part.of("opd", f"id pass@{large}")),
                POINTS,
                equal=True,
            )
        )
    if large >= 32:
        return checks, "", True
    why = [] if 32 in ks else [f"only {max(ks, default=0)} completions a prompt were taken"]
    why += (
        [f"guesses alone reach {CHANCE:.0%} from k = {large + 1} or so on"]
        if large < max(ks, default=0)
        else []
    )
    return (
        checks,
        f"pass@32 is not decided here: {', and '.join(why)}; k = {large} is shown instead",
        False,
    )


def sequential_or_joint(study: Study) -> Found:
    """12: not worse by more than two points."""
    return (
        _chain(
            study["core"], ("opd_then_rl", "kdrl_annealed", "kdrl"), ACCURACY, "accuracy", -POINTS
        ),
        "≥ is: not worse by two points or more",
        True,
    )


def best_beta(part: Part) -> pd.Series:
    """log₁₀ of the fixed coefficient with the best end on validation prompts, by seed; of
    equals the smallest.
    """
    rows = _ends(part, "kdrl")
    if rows.empty:
        return pd.Series(dtype=float)
    rows = rows.sort_values("coef/kd_coef", kind="stable")
    best = rows.loc[rows.groupby("seed")["eval/accuracy"].idxmax()].set_index("seed")[
        "coef/kd_coef"
    ]
    return pd.Series(np.log10(best.to_numpy(dtype=float)), index=best.index)


def best_at_end(part: Part, best: pd.Series) -> int:
    """Seeds whose best coefficient is the smallest or the largest fixed one that was tried."""
    tried = np.log10(part.curves.loc[part.curves["method"] == "kdrl", "coef/kd_coef"].astype(float))
    return int(
        (np.isclose(best, tried.min(), atol=1e-3) | np.isclose(best, tried.max(), atol=1e-3)).sum()
    )


def betas_of_tasks(study: Study) -> Found:
    """13: decades between the best coefficients of the two tasks, seed by seed; a difference of one
    decade or more supports it. A smaller one contradicts it only where the grid holds the best: one
    that lies at its end, in most seeds of a task, may lie beyond, and then the difference is not
    known.
    """
    parts = {"arithmetic": study["betas"], "knights": study["knights_betas"]}
    best = {task: best_beta(part) for task, part in parts.items()}
    if any(found.empty for found in best.values()):
        return [], "no run of kdrl counts and was evaluated on the way, on one of the tasks", False
    gap = paired(best["arithmetic"], best["knights"])
    size = Effect(
        abs(gap.mean), *((gap.low, gap.high) if gap.mean >= 0 else (-gap.high, -gap.low)), gap.seeds
    )
    at_end = {task: best_at_end(part, best[task]) for task, part in parts.items()}
    note = "the paper says up to two decades; best at an end of the grid: " + ", ".join(
        f"{task} {at_end[task]} of {len(best[task])} seeds" for task in best
    )
    check = Check(
        "decades between the best kd_coef on arithmetic and on knights ≥ 1", size, 1 - 1e-9
    )
    if check.outcome == "contradicted" and any(at_end[task] > len(best[task]) / 2 for task in best):
        return (
            [check],
            f"{note}: the grid ends too early, and a larger difference is not ruled out",
            False,
        )
    return [check], note, True


def interference(study: Study) -> Found:
    """14: sign conflict of the method's gradient with on-policy KD's on the same batch, mean over
    training. It decides nothing where on-policy KD's gradient conflicts as much with itself, on two
    halves of the batch: then the signs are noise, and how much of it two gradients share is all
    that is seen.
    """
    part, name = study["core"], "interference/sign_conflict_{}".format
    conflict = {
        arm: pd.Series(
            {seed: curve.mean() for seed, curve in part.curve(arm, name("teacher_method")).items()},
            dtype=float,
        )
        for arm in ("grpo", "kdrl", "trrd")
    }
    floors = [
        curve.mean()
        for arm in conflict
        for curve in part.curve(arm, name("split_teacher")).values()
    ]
    checks = [
        Check(f"{a} > {b}: sign conflict", paired(conflict[a], conflict[b]))
        for a, b in (("grpo", "kdrl"), ("kdrl", "trrd"))
    ]
    if not floors:
        return checks, "not measured", False
    means = ", ".join(f"{arm} {values.mean():.3f}" for arm, values in conflict.items())
    floor = float(np.mean(floors))
    clear = floor < min(values.mean() for values in conflict.values())
    note = (
        f"mean conflict {means}; on-policy KD's gradient against itself on two halves of a"
        f" batch, the noise floor: {floor:.3f}"
    )
    return (
        checks,
        note
        + (
            ""
            if clear
            else ": the signs are mostly noise at this batch size, so the comparisons decide"
            " nothing"
        ),
        clear,
    )


CLAIMS: tuple[Claim, ...] = (
    Claim(1, "KDRL", "accuracy: KDRL > on-policy KD > GRPO > SFT", ("core",), order_of_methods),
    Claim(2, "KDRL", "KDRL reaches GRPO's final score in fewer steps", ("core",), fewer_steps),
    Claim(
        3,
        "KDRL",
        "on-policy KD writes the longest completions, KDRL lies between it and GRPO",
        ("core",),
        order_of_lengths,
    ),
    Claim(4, "KDRL", "k2 is better than k3 as KDRL's loss", ("core", "estimators"), k2_against_k3),
    Claim(
        5,
        "KDRL",
        "an annealed coefficient beats the best fixed one",
        ("betas",),
        annealed_against_fixed,
    ),
    Claim(
        6,
        "KDRL",
        "masking right responses keeps the accuracy and shortens completions",
        ("core",),
        masking,
    ),
    Claim(
        7,
        "RLAD",
        "TRRD > KDRL > GRPO on Knights and Knaves, most on the largest puzzles",
        ("knights",),
        trrd_on_knights,
    ),
    Claim(8, "RLAD", "α near .5 does not matter", ("alphas",), alpha_near_a_half),
    Claim(
        9,
        "RLAD",
        "a step of TRRD costs what KDRL's does, 15 % more than GRPO's",
        ("core",),
        cost_of_a_step,
    ),
    Claim(
        10,
        "S",
        "joint methods beat pure GRPO and pure on-policy KD on logic",
        ("knights",),
        joint_on_knights,
    ),
    Claim(
        11,
        "S",
        "KDRL raises pass@1 and lowers pass@32 against on-policy KD, TRRD stays close to it",
        ("core",),
        passes,
    ),
    Claim(12, "S", "OPD-then-RL ≥ annealed KDRL ≥ KDRL", ("core",), sequential_or_joint),
    Claim(
        13,
        "S",
        "the best coefficient differs between tasks, by up to 100 times",
        ("betas", "knights_betas"),
        betas_of_tasks,
    ),
    Claim(
        14, "S", "conflict with on-policy KD's update: GRPO > KDRL > TRRD", ("core",), interference
    ),
)
"""KDRL = arXiv 2506.02208, RLAD = arXiv 2602.22495, S = arXiv 2609.04108."""
