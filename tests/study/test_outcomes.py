"""Outcomes by prompt: an interval that holds for other seeds and other prompts."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from made_up import part

from rlkd_lab.study.comparing import ACCURACY, Side, compare
from rlkd_lab.study.effects import over_prompts, unpaired

PROMPTS = [f"p{i}" for i in range(40)]


def shares(rng, mean, seeds=6, seed_spread=0.02, prompts=None):
    """Shares of right samples: a mean, an effect of the seed, one of the prompt, and noise."""
    effects = 0.0 if prompts is None else prompts
    own = seed_spread * rng.standard_normal((seeds, 1))
    noise = 0.05 * rng.standard_normal((seeds, len(PROMPTS)))
    return pd.DataFrame(mean + own + effects + noise, columns=PROMPTS)


def test_it_covers_the_difference_over_all_prompts_and_welch_alone_does_not():
    rng = np.random.default_rng(0)
    hits = {"runs": 0, "prompts": 0}
    for _ in range(400):
        # a prompt suits one method more than the other: the difference varies by prompt
        a, b = (shares(rng, 0.5, prompts=0.1 * rng.standard_normal(len(PROMPTS))) for _ in "ab")
        over_runs = unpaired(a.mean(axis=1), b.mean(axis=1))
        hits["runs"] += over_runs.low < 0 < over_runs.high
        wide = over_prompts(over_runs, a, b)
        hits["prompts"] += wide.low < 0 < wide.high
    assert hits["prompts"] / 400 > 0.94
    assert hits["runs"] / 400 < 0.85


def test_prompts_on_which_the_methods_differ_alike_widen_little():
    rng = np.random.default_rng(1)
    easy = 0.2 * rng.standard_normal(len(PROMPTS))  # the same for both sides: no part of the gap
    a, b = shares(rng, 0.6, prompts=easy), shares(rng, 0.5, prompts=easy)
    over_runs = unpaired(a.mean(axis=1), b.mean(axis=1))
    wide = over_prompts(over_runs, a, b)
    assert over_runs.error < wide.error < 1.2 * over_runs.error
    with pytest.raises(ValueError, match="the same prompts"):
        over_prompts(over_runs, a, b.drop(columns="p0"))


def test_a_comparison_that_other_prompts_might_turn_decides_nothing():
    found = part({"kdrl": 0.6, "grpo": 0.5})

    def outcomes(spread):
        rows = [
            {"arm": arm, "seed": seed, "set": "id", "prompt_id": prompt, "right": right}
            for seed in range(5)
            for i, prompt in enumerate(PROMPTS)
            for arm, right in (("kdrl", 60 + (spread if i % 2 else -spread)), ("grpo", 50))
        ]
        return replace(found, outcomes=pd.DataFrame(rows).assign(samples=100))

    calm, torn = outcomes(0), outcomes(40)
    sides = [[Side(one, arm) for arm in ("kdrl", "grpo")] for one in (found, calm, torn)]
    plain, even, uneven = (compare("a > b", *side, ACCURACY) for side in sides)
    assert plain.outcome == even.outcome == "supported"
    assert uneven.outcome == "undecided"
    assert "over other prompts too it is undecided" in uneven.doubt
