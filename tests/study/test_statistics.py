"""Each number against its definition by enumeration, and the intervals against simulations
whose truth is known.
"""

from collections import Counter
from itertools import combinations
from math import sqrt

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from rlkd_lab.study.statistics import (
    avg_at_k,
    bootstrap,
    chance_pass_at_k,
    chance_to_see_equality,
    collapsed,
    half_width,
    majority_at_k,
    paired_bootstrap,
    pass_at_k,
    smallest_effect,
    standard_error,
)

MATRICES = st.tuples(st.integers(1, 5), st.integers(1, 7)).flatmap(
    lambda shape: arrays(bool, shape)
)
ANSWERS = ["12", "7", "40", None]


# --- pass@k ---------------------------------------------------------------------------------------


@given(MATRICES, st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(correct, data):
    k = data.draw(st.integers(1, correct.shape[1]))
    expected = [np.mean([any(subset) for subset in combinations(row, k)]) for row in correct]
    np.testing.assert_allclose(pass_at_k(correct, k), expected, atol=1e-12)


@given(MATRICES)
def test_pass_at_1_is_the_average_and_pass_at_k_grows_within_0_and_1(correct):
    curve = np.array([pass_at_k(correct, k) for k in range(1, correct.shape[1] + 1)])
    np.testing.assert_allclose(curve[0], avg_at_k(correct), atol=1e-12)
    assert (np.diff(curve, axis=0) >= -1e-12).all()
    assert ((curve >= 0) & (curve <= 1)).all()
    np.testing.assert_allclose(curve[-1], correct.any(1))


def test_pass_at_k_does_not_overflow():
    correct = np.arange(10_000) < 10
    assert pass_at_k(correct[None], 1000)[0] == pytest.approx(1 - 0.9**10, abs=1e-3)


def test_pass_at_k_is_unbiased_where_the_estimate_by_powers_is_not():
    rng = np.random.default_rng(0)
    correct = rng.random((40_000, 8)) < 0.2
    truth = 1 - 0.8**8
    assert pass_at_k(correct, 8).mean() == pytest.approx(truth, abs=0.008)
    assert truth - np.mean(1 - (1 - correct.mean(1)) ** 8) > 0.05


@pytest.mark.parametrize(
    "number", [pass_at_k, lambda correct, k: majority_at_k([["1"] * 16], correct, k)]
)
def test_a_k_beyond_the_samples_is_refused_in_words(number):
    with pytest.raises(
        ValueError, match="pass@64 needs 64 samples a prompt; 16 were taken: raise --samples"
    ):
        number(np.ones((1, 16)), 64)
    with pytest.raises(ValueError, match="at least 1"):
        number(np.ones((1, 16)), 0)


def test_the_chance_line():
    assert (
        chance_pass_at_k(np.full(7, 0.01), 32)
        == pytest.approx(1 - 0.99**32)
        == pytest.approx(0.275, abs=5e-4)
    )
    assert chance_pass_at_k([2**-5], 32) == pytest.approx(0.638, abs=5e-4)
    assert chance_pass_at_k([0.5, 0.0], 2) == pytest.approx(
        0.375
    )  # the mean of the curve, not the curve of the mean
    rng = np.random.default_rng(1)
    guessed = rng.random((20_000, 8)) < 0.05
    assert pass_at_k(guessed, 4).mean() == pytest.approx(chance_pass_at_k([0.05], 4), abs=0.005)


# --- majority -------------------------------------------------------------------------------------


@given(
    st.lists(st.lists(st.sampled_from(ANSWERS), min_size=6, max_size=6), min_size=1, max_size=4),
    st.integers(1, 6),
)
def test_majority_is_the_expectation_over_tie_breaks(answers, k):
    expected = []
    for row in answers:
        blocks = [row[start : start + k] for start in range(0, 6, k) if start + k <= 6]
        shares = []
        for block in blocks:
            read = [answer for answer in block if answer is not None]
            top = Counter(read).most_common(1)[0][1] if read else 0
            # one ballot for each vote of a leading answer: leaders have equally many
            ballots = [answer == "12" for answer in read if read.count(answer) == top]
            shares.append(sum(ballots) / len(ballots) if ballots else 0.0)
        expected.append(np.mean(shares))
    correct = [[answer == "12" for answer in row] for row in answers]
    np.testing.assert_allclose(majority_at_k(answers, correct, k), expected)


def test_majority_at_1_is_the_average_and_many_samples_drown_noise():
    rng = np.random.default_rng(2)
    answers = rng.choice(["12", "7", "40", "9"], p=[0.4, 0.2, 0.2, 0.2], size=(200, 64))
    correct = answers == "12"
    np.testing.assert_allclose(majority_at_k(answers.tolist(), correct, 1), avg_at_k(correct))
    assert majority_at_k(answers.tolist(), correct, 64).mean() > 0.95


# --- intervals ------------------------------------------------------------------------------------


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """Prompts of different difficulty, eight completions each: the truth is the mean of the
    distribution that difficulties come from.
    """
    rng = np.random.default_rng(3)
    covered = 0
    for repetition in range(300):
        correct = rng.random((80, 8)) < rng.beta(0.8, 1.2, size=(80, 1))
        found = bootstrap(avg_at_k(correct), resamples=500, seed=repetition)
        covered += found.low <= 0.4 <= found.high
    assert 0.90 <= covered / 300 <= 0.98


def test_completions_of_a_prompt_are_not_independent():
    """Counted as if they were, they would give an interval of a third of the width."""
    rng = np.random.default_rng(4)
    correct = np.repeat(rng.random((100, 1)) < 0.5, 8, axis=1)
    found = bootstrap(avg_at_k(correct))
    assert found.high - found.low == pytest.approx(2 * 1.96 * sqrt(0.25 / 100), rel=0.1)


def test_the_bootstrap_is_the_same_every_time_and_leaves_the_global_stream_alone():
    values = np.random.default_rng(5).random(30)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    assert bootstrap(values) == bootstrap(values)
    assert bootstrap(values, seed=1) != bootstrap(values)
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002


def test_large_sets_are_resampled_in_pieces():
    values = np.random.default_rng(6).random(2**20)  # four resamples at a time
    found = bootstrap(values, resamples=10)
    assert found.mean - 0.001 < found.low < found.high < found.mean + 0.001


def test_one_prompt_has_no_interval_and_no_prompt_is_an_error():
    found = bootstrap([1.0])
    assert found.mean == 1.0
    assert np.isnan([found.low, found.high]).all()
    with pytest.raises(ValueError, match="at least one prompt"):
        bootstrap([])
    pair = paired_bootstrap(series([1.0]), series([1.0]))
    assert pair.mean == 0.0
    assert np.isnan([pair.low, pair.high, pair.p]).all()


def series(values):
    return pd.Series(values, index=[f"p{i}" for i in range(len(values))], dtype=float)


def test_pairs_give_a_narrower_interval_where_prompts_are_hard_for_both():
    rng = np.random.default_rng(7)
    hardness = rng.random((120, 1))
    a, b = (series((rng.random((120, 8)) < hardness).mean(1)) for _ in range(2))
    paired = paired_bootstrap(a, b)
    unpaired = sqrt(sum((bootstrap(x).high - bootstrap(x).low) ** 2 for x in (a, b)))
    assert paired.high - paired.low < 0.6 * unpaired


def test_prompts_are_matched_by_their_id_and_not_by_their_place():
    a = series(np.linspace(0, 1, 20))
    shuffled = a.sample(frac=1, random_state=0)
    found = paired_bootstrap(a, shuffled)
    assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_other_prompts_are_refused():
    for other in (
        series([1.0, 0.0]),
        series([1.0, 0.0, 1.0, 0.0]),
        series([1.0, 0.0, 1.0]).rename({"p2": "p9"}),
        series([1.0, 0.0, 1.0]).rename({"p2": "p1"}),
    ):
        with pytest.raises(ValueError, match="the same prompts"):
            paired_bootstrap(series([1.0, 0.0, 1.0]), other)


def test_the_p_value_is_about_uniform_under_the_null():
    rng = np.random.default_rng(8)
    found = []
    for repetition in range(400):
        hardness = rng.random((60, 1))
        a, b = (series((rng.random((60, 8)) < hardness).mean(1)) for _ in range(2))
        found.append(paired_bootstrap(a, b, resamples=400, seed=repetition).p)
    for level in (0.05, 0.2, 0.5, 0.8):
        assert np.mean(np.array(found) <= level) == pytest.approx(
            level, abs=3 * sqrt(level * (1 - level) / 400) + 0.01
        )


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.floats(-0.5, 0.5))
def test_the_p_value_agrees_with_the_interval_and_with_the_mirror_image(seed, shift):
    rng = np.random.default_rng(seed)
    a, b = series(rng.random(40) + shift), series(rng.random(40))
    found, mirrored = paired_bootstrap(a, b), paired_bootstrap(b, a)
    assert found.mean == pytest.approx(-mirrored.mean)
    assert found.p == pytest.approx(mirrored.p)
    if found.p < 0.049:
        assert not found.low <= 0 <= found.high
    if found.p > 0.051:
        assert found.low <= 0 <= found.high


# --- power, equality, collapse --------------------------------------------------------------------


def differences(rng, shift=0.0, studies=6000, runs=5, spreads=(1.0, 1.0)):
    """Mean differences of many studies of two groups, and half of their intervals."""
    a = rng.normal(shift, spreads[0], (studies, runs))
    b = rng.normal(0.0, spreads[1], (studies, runs))
    found = np.array([standard_error(*groups) for groups in zip(a, b, strict=True)])
    return a.mean(1) - b.mean(1), stats.t.ppf(0.975, found[:, 1]) * found[:, 0]


@pytest.mark.parametrize("spreads", [(1.0, 1.0), (1.0, 3.0)])
def test_intervals_cover_the_truth_as_often_as_they_say(spreads):
    gap, half = differences(np.random.default_rng(0), spreads=spreads)
    assert np.mean(np.abs(gap) < half) == pytest.approx(0.95, abs=0.01)


def test_runs_of_which_one_in_ten_collapses_are_not_covered():
    """So a collapse is reported and not averaged in silence."""
    rng = np.random.default_rng(1)
    runs = np.where(rng.random((4000, 5)) < 0.1, 0.3, rng.normal(0.9, 0.02, (4000, 5)))
    half = np.array([half_width(study) for study in runs])
    covered = np.mean(np.abs(runs.mean(1) - (0.1 * 0.3 + 0.9 * 0.9)) < half)
    assert covered < 0.6


@pytest.mark.parametrize("runs", [5, 20])
def test_the_smallest_effect_is_seen_in_four_studies_of_five(runs):
    """Two groups of equal spread: 2(n − 1) degrees of freedom, error √(2/n)."""
    shift = smallest_effect(np.sqrt(2 / runs), 2 * (runs - 1))
    gap, half = differences(np.random.default_rng(2), shift, runs=runs)
    assert np.mean(gap > half) == pytest.approx(0.8, abs=0.015)


@pytest.mark.parametrize("margin", [2.0, 2.5])
def test_the_chance_to_see_equality_is_that_of_a_simulation(margin):
    """Eight degrees of freedom, a standard error of .6."""
    rng = np.random.default_rng(3)
    gap, error = rng.normal(0, 0.6, 20_000), 0.6 * np.sqrt(rng.chisquare(8, 20_000) / 8)
    seen = np.mean(np.abs(gap) + stats.t.ppf(0.975, 8) * error < margin)
    expected = chance_to_see_equality(margin, 0.6, 8)
    assert expected == pytest.approx(seen, abs=0.01) and expected > 0.4


def test_a_run_that_lost_half_of_what_it_had_reached_collapsed():
    assert collapsed([0.1] * 20 + [0.8] * 20 + [0.3] * 20)
    assert not collapsed([0.1] * 20 + [0.8] * 20 + [0.5] * 20)
    assert not collapsed([0.8] + [0.3] * 40)  # one lucky step is no height
    assert not collapsed([0.9, 0.1]) and not collapsed([])
