"""Effects over seeds, and what one comparison of a claim makes of them.

Arms share their seeds, and a seed fixes the first adapter and the prompts of every step.
So differences are taken seed by seed. Their 95 % interval is Student's t over seeds.

- An order, a > b, is supported where the interval of a − b lies above 0.
  It is contradicted where the interval lies below 0.
- "Not worse", a ≥ b, is the same with −margin instead of 0.
- Equality is supported where the interval lies within ±margin.
  It is contradicted where the interval lies outside of ±margin.

Anything else is undecided, and so is anything with fewer than :data:`SEEDS` seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
from scipy.stats import t

from rlkd_lab.study.statistics import half_width

Outcome = Literal["supported", "contradicted", "undecided"]
SEEDS = 5
"""Fewest seeds that decide anything."""
MOST_SEEDS = 10_000
"""Most seeds that :meth:`Effect.seeds_needed` considers."""


@dataclass(frozen=True)
class Effect:
    """A mean difference over seeds with its 95 % interval; NaN bounds below two seeds."""

    mean: float
    low: float
    high: float
    seeds: int

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
        wider = float(t.ppf(1 - 0.025 / comparisons, self.seeds - 1) / t.ppf(0.975, self.seeds - 1))
        return replace(
            self,
            low=self.mean - wider * (self.mean - self.low),
            high=self.mean + wider * (self.high - self.mean),
        )

    def seeds_needed(self, margin: float = 0.0) -> int | None:
        """Return how many seeds would tell an effect of this size and spread from ``margin``.

        The number is at least :data:`SEEDS`.
        ``None``: :data:`MOST_SEEDS` are too few, or too few seeds were run to say.
        """
        if not math.isfinite(self.low):
            return None
        spread = (self.high - self.low) / 2 * math.sqrt(self.seeds) / t.ppf(0.975, self.seeds - 1)
        counts = np.arange(SEEDS, MOST_SEEDS + 1)
        halves = t.ppf(0.975, counts - 1) * spread / np.sqrt(counts)
        enough = counts[halves < abs(self.mean - margin)]
        return int(enough[0]) if len(enough) else None


def effect_of(values: pd.Series) -> Effect:
    """Return the mean of one number per seed, with its interval."""
    known = values.replace([np.inf, -np.inf], np.nan).dropna().to_numpy(dtype=float)
    mean = float(known.mean()) if len(known) else math.nan
    half = half_width(known)
    return Effect(mean, mean - half, mean + half, len(known))


def paired(a: pd.Series, b: pd.Series) -> Effect:
    """Return a − b over the seeds that both have."""
    return effect_of(a - b)


@dataclass(frozen=True)
class Check:
    """One comparison of a claim: a difference is larger than ``margin``.

    With ``equal`` the comparison is that the difference lies within ±``margin``.
    """

    text: str
    effect: Effect
    margin: float = 0.0
    equal: bool = False

    def outcome_of(self, effect: Effect) -> Outcome:
        """Judge the comparison with this effect."""
        return effect.within(self.margin) if self.equal else effect.above(self.margin)

    @property
    def outcome(self) -> Outcome:
        """The outcome with the measured effect."""
        return self.outcome_of(self.effect)

    @property
    def needed(self) -> int | None:
        """Seeds with which an effect of this size and spread would decide.

        ``None`` where the comparison is decided, or where no number of seeds is known to.
        """
        if self.outcome != "undecided":
            return None
        nearer = self.margin
        if self.equal and self.effect.mean:  # the interval must end before the nearer margin
            nearer = math.copysign(self.margin, self.effect.mean)
        return self.effect.seeds_needed(nearer)

    @property
    def leans(self) -> Outcome:
        """What those seeds would decide: the outcome of the effect without its interval."""
        return self.outcome_of(replace(self.effect, low=self.effect.mean, high=self.effect.mean))


def all_of(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the outcome of a claim with several comparisons."""
    if "contradicted" in outcomes:
        return "contradicted"
    return "supported" if outcomes and set(outcomes) == {"supported"} else "undecided"


def strict(check: Check, comparisons: int) -> Outcome:
    """Return the outcome of a comparison if all ``comparisons`` must hold at once."""
    return check.outcome_of(check.effect.of_many(comparisons))
