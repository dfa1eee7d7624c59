"""Effects over seeds, and what one comparison of a claim makes of them.

Two arms are two groups of independent runs, so the 95 % interval of their difference is Welch's.
Sharing a seed makes two arms hardly more alike, so it pairs nothing.
Differences within a run or from a common checkpoint are paired (:func:`effect_of` of a − b).

- An order, a > b, is supported where the interval of a − b lies above 0.
  It is contradicted where the interval lies below 0.
- "Not worse", a ≥ b, is the same with −margin instead of 0.
- Equality is supported where the interval lies within ±margin.
  It is contradicted where the interval lies outside of ±margin.

Anything else is undecided, and so is anything with fewer than :data:`SEEDS` seeds.
So is a comparison with a doubt: a reason why its interval may not decide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
import scipy

from rlkd_lab.study.statistics import (
    chance_to_see_equality,
    half_width,
    smallest_effect,
    standard_error,
)

Outcome = Literal["supported", "contradicted", "undecided"]
SEEDS = 5
"""Fewest seeds that decide anything."""


@dataclass(frozen=True)
class Effect:
    """A mean difference over seeds with its 95 % interval; NaN bounds below two seeds."""

    mean: float
    low: float
    high: float
    seeds: int
    """Runs of the side that has fewer."""
    freedom: float | None = None
    """Degrees of freedom of the interval; without, one fewer than seeds."""

    @property
    def df(self) -> float:
        """The degrees of freedom."""
        return self.seeds - 1.0 if self.freedom is None else self.freedom

    @property
    def error(self) -> float:
        """The standard error of the mean difference."""
        return (self.high - self.low) / 2 / float(scipy.stats.t.ppf(0.975, self.df))

    @property
    def seen(self) -> float:
        """The smallest true difference that these runs would have seen with 80 %."""
        return smallest_effect(self.error, self.df)

    def above(self, margin: float = 0.0) -> Outcome:
        """Judge the claim that the difference is larger than ``margin``."""
        if self.seeds < SEEDS or not (self.low > margin or self.high < margin):
            return "undecided"
        return "supported" if self.low > margin else "contradicted"

    def within(self, margin: float) -> Outcome:
        """Judge the claim that the difference is no larger than ``margin``, to either side."""
        if self.seeds < SEEDS:
            return "undecided"
        if -margin < self.low and self.high < margin:
            return "supported"
        return "contradicted" if self.low > margin or self.high < -margin else "undecided"

    def of_many(self, comparisons: int) -> Effect:
        """Widen the interval so that all comparisons hold at once with 95 % (Bonferroni)."""
        if not math.isfinite(self.low):
            return self
        wider = float(
            scipy.stats.t.ppf(1 - 0.025 / comparisons, self.df) / scipy.stats.t.ppf(0.975, self.df)
        )
        return replace(
            self,
            low=self.mean - wider * (self.mean - self.low),
            high=self.mean + wider * (self.high - self.mean),
        )


def _known(values: pd.Series) -> pd.Series:
    return values.replace([np.inf, -np.inf], np.nan).dropna().astype(float)


def effect_of(values: pd.Series) -> Effect:
    """Return the mean of one number per seed, with its interval (Student's t)."""
    known = _known(values)
    mean = float(known.mean()) if len(known) else math.nan
    half = half_width(known)
    return Effect(mean, mean - half, mean + half, len(known))


def unpaired(a: pd.Series, b: pd.Series) -> Effect:
    """Return mean(a) − mean(b) of two groups of independent runs, with Welch's interval."""
    one, other = _known(a), _known(b)
    seeds = min(len(one), len(other))
    mean = float(one.mean() - other.mean()) if seeds else math.nan
    error, freedom = standard_error(one, other)
    half = error * float(scipy.stats.t.ppf(0.975, freedom)) if freedom == freedom else math.nan
    return Effect(mean, mean - half, mean + half, seeds, freedom)


def over_prompts(effect: Effect, a: pd.DataFrame, b: pd.DataFrame) -> Effect:
    """Widen an interval over runs, so that it holds for other prompts of the task too.

    ``a`` and ``b`` are shares of right samples, (seeds, prompts), on the same prompts.
    The squared error gains Var(d) / prompts, where d is the difference of a prompt's means over
    seeds (two crossed random factors: Owen, The pigeonhole bootstrap, 2007, section 3).
    It is a little too wide: the noise of one run on one prompt counts in both terms.

    Raises:
        ValueError: the sides were not asked the same prompts.
    """
    if set(a.columns) != set(b.columns):
        raise ValueError("the sides were not asked the same prompts")
    differences = a.mean() - b.mean()
    error = math.hypot(effect.error, float(differences.std()) / math.sqrt(len(differences)))
    half = error * float(scipy.stats.t.ppf(0.975, effect.df))
    return replace(effect, low=effect.mean - half, high=effect.mean + half)


@dataclass(frozen=True)
class Check:
    """One comparison of a claim: a difference is larger than ``margin``.

    With ``equal`` the comparison is that the difference lies within ±``margin``.
    """

    text: str
    effect: Effect
    margin: float = 0.0
    equal: bool = False
    wide: Effect | None = None
    """The same difference with the interval that holds for other prompts too, where known."""
    best: Effect | None = None
    """The same difference at the best checkpoint on validation prompts, where it was measured."""
    collapsed: tuple[int, int] | None = None
    """How many runs of either side collapsed."""
    doubt: str = ""
    """Why the comparison decides nothing whatever its interval says; empty without a reason."""

    def outcome_of(self, effect: Effect) -> Outcome:
        """Judge the comparison with this effect, at face value."""
        return effect.within(self.margin) if self.equal else effect.above(self.margin)

    def turns(self, mean: float) -> bool:
        """Whether the comparison is decided, and ``mean`` lies on its other side."""
        point = Effect(mean, mean, mean, SEEDS)
        return self.face != "undecided" and self.outcome_of(point) != self.face

    @property
    def face(self) -> Outcome:
        """The outcome of the interval alone."""
        return self.outcome_of(self.effect)

    @property
    def outcome(self) -> Outcome:
        """The outcome: that of the interval, unless there is a doubt."""
        return "undecided" if self.doubt else self.face

    @property
    def seen(self) -> float:
        """The smallest true difference that would have been decided with 80 %."""
        return (self.wide or self.effect).seen

    @property
    def seen_if_equal(self) -> float:
        """How probably these runs support an equality that holds exactly; NaN for an order."""
        if not self.equal:
            return math.nan
        decides = self.wide or self.effect
        return chance_to_see_equality(self.margin, decides.error, decides.df)


def all_of(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the outcome of a claim with several comparisons."""
    if "contradicted" in outcomes:
        return "contradicted"
    return "supported" if outcomes and set(outcomes) == {"supported"} else "undecided"


def strict(check: Check, comparisons: int) -> Outcome:
    """Return the outcome of a comparison if all ``comparisons`` must hold at once."""
    return "undecided" if check.doubt else check.outcome_of(check.effect.of_many(comparisons))
