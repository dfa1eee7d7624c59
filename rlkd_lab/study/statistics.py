"""The numbers of an evaluation and their intervals: numpy and scipy alone, no models.

Everything starts from a matrix of completions, (prompts, samples).
It becomes one value for each prompt.
The bootstrap resamples prompts with all of their samples, since prompts are drawn from the task.
Completions of one prompt are not independent; resampling them would make intervals too narrow.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy  # imports its parts when they are first used
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 4000
LEVEL = 0.95
POWER = 0.8
"""Probability with which a study should see an effect."""
WINDOW = 9
"""Steps of the trailing mean of a training curve."""
LOST = 0.5
"""A run collapsed if less than this share of its highest accuracy is left."""


@dataclass(frozen=True)
class Interval:
    """A mean over prompts and its bootstrap interval; the bounds of a single prompt are NaN."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Mean of a − b, its 95 % interval, and a two-sided p-value in [0, 1].

    They are over prompts (:func:`paired_bootstrap`) or over runs (:func:`welch`).
    """

    mean: float
    low: float
    high: float
    p: float


def check_k(k: int, samples: int) -> None:
    """Raise ValueError for a k that these samples cannot give."""
    if k < 1:
        raise ValueError(f"pass@k needs a k of at least 1; got {k}")
    if k > samples:
        raise ValueError(
            f"pass@{k} needs {k} samples a prompt; {samples} were taken: raise --samples"
        )


def avg_at_k(correct: ArrayLike) -> NDArray[np.float64]:
    """Return the share of right completions: (prompts, samples) of 0 and 1 → (prompts,)."""
    return np.asarray(correct, dtype=float).mean(1)


def pass_at_k(correct: ArrayLike, k: int) -> NDArray[np.float64]:
    """Estimate by prompt, without bias, the probability that one of k completions is right.

    Chen et al. (arXiv 2107.03374), Eq. 1, with c right ones of n samples:

        pass@k = 1 − C(n − c, k) / C(n, k)

    1 − (1 − c/n)^k draws with replacement, so it is too low.

    Args:
        correct: (prompts, samples) of 0 and 1.
        k: from 1 to the number of samples.

    Returns:
        (prompts,), in [0, 1].

    Raises:
        ValueError: k is larger than the number of samples.

    >>> pass_at_k([[1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]], k=2).tolist()
    [0.5, 0.0, 1.0]
    """
    matrix = np.asarray(correct, dtype=float)
    return pass_at_k_of_counts(matrix.sum(1), matrix.shape[1], k)


def pass_at_k_of_counts(right: ArrayLike, samples: int, k: int) -> NDArray[np.float64]:
    """Return :func:`pass_at_k` from the number of right completions, (prompts,).

    C(n − c, k) / C(n, k) is the product of (n − c − i) / (n − i) for i < k.
    """
    check_k(k, samples)
    wrong = samples - np.asarray(right, dtype=float)[:, None]
    drawn = np.arange(k)
    # the binomials overflow for a few hundred samples; a factor below 0 comes after one that is 0
    return 1.0 - (np.maximum(wrong - drawn, 0.0) / (samples - drawn)).prod(1)


def majority_at_k(
    answers: Sequence[Sequence[str | None]], correct: ArrayLike, k: int
) -> NDArray[np.float64]:
    """Return by prompt the probability that the most frequent of k answers is right.

    Self-consistency (arXiv 2203.11171).
    Answers that could not be read (``None``) have no vote.
    Where several answers lead, each is taken with the same probability.
    ``samples // k`` disjoint blocks of k are averaged; samples that fill no block are left out.

    Args:
        answers: (prompts, samples), equal answers being equal texts.
        correct: (prompts, samples) of 0 and 1.
        k: from 1 to the number of samples.

    Raises:
        ValueError: k is larger than the number of samples.

    >>> majority_at_k([["7", "7", "4", None]], [[1, 1, 0, 0]], k=4).tolist()
    [1.0]
    >>> majority_at_k([["7", "4", None, None]], [[1, 0, 0, 0]], k=4).tolist()
    [0.5]
    """
    matrix = np.asarray(correct, dtype=float)
    check_k(k, matrix.shape[1])
    starts = range(0, matrix.shape[1] - k + 1, k)
    return np.array(
        [
            np.mean(
                [_winner(texts[start : start + k], right[start : start + k]) for start in starts]
            )
            for texts, right in zip(answers, matrix, strict=True)
        ]
    )


def _winner(answers: Sequence[str | None], correct: NDArray[np.float64]) -> float:
    votes = Counter(answer for answer in answers if answer is not None)
    leading = [answer for answer, count in votes.items() if count == max(votes.values())]
    return (
        float(np.mean([correct[list(answers).index(answer)] for answer in leading]))
        if leading
        else 0.0
    )


def chance_pass_at_k(p: ArrayLike, k: int) -> float:
    """Return pass@k of blind guessing: the mean over prompts of 1 − (1 − p)^k.

    ``p``, (prompts,), is the probability that one guess is right.

    >>> round(chance_pass_at_k([0.01], k=32), 3)
    0.275
    """
    return float(np.mean(1.0 - (1.0 - np.asarray(p, dtype=float)) ** k))


def bootstrap(values: ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Return the mean over prompts with its 95 % percentile interval.

    Args:
        values: (prompts,), one number for each prompt.
        resamples: number of resamples of the prompts, with replacement.
        seed: seed of the resampling.

    Raises:
        ValueError: there is no prompt.
    """
    array = np.asarray(values, dtype=float)
    means = _resampled_means(array, resamples, seed)
    return Interval(float(array.mean()), *_bounds(means))


def paired_bootstrap(
    a: pd.Series, b: pd.Series, resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
    """Return the difference of two models' means over the same prompts.

    How hard a prompt is drops out of a − b, so the interval is narrower than for two samples.
    The p-value inverts the percentile interval: 2·min(share of resampled differences ≤ 0, share
    ≥ 0), with one added to each count, and at most 1.
    So p is below .05 where the interval leaves out 0.
    One prompt has neither: interval and p are NaN.

    Args:
        a, b: one number for each prompt, indexed by prompt id in any order.
        resamples: number of resamples of the prompts, with replacement.
        seed: seed of the resampling.

    Raises:
        ValueError: there is no prompt, or the two have different prompts.
    """
    if not (
        a.index.is_unique and b.index.is_unique and len(a) == len(b) and a.index.isin(b.index).all()
    ):
        shared = len(a.index.intersection(b.index))
        raise ValueError(
            f"a paired comparison needs the same prompts: {len(a)} here, {len(b)} there,"
            f" {shared} in common"
        )
    gaps = (a - b.reindex(a.index)).to_numpy(dtype=float)
    means = _resampled_means(gaps, resamples, seed)
    tail = min(int((means <= 0).sum()), int((means >= 0).sum()))
    # a NaN is on neither side of 0
    p = float("nan") if np.isnan(means).any() else min(1.0, 2 * (1 + tail) / (1 + resamples))
    return Difference(float(gaps.mean()), *_bounds(means), p)


def half_width(values: ArrayLike) -> float:
    """Return half of the 95 % interval of a mean, Student's t; NaN below two values.

    It is for seeds, which are too few to resample.

    >>> round(half_width([0.0, 1.0, 2.0]), 3)
    2.484
    """
    array = np.asarray(values, dtype=float)
    return float(half_widths(array)) if len(array) > 1 else float("nan")


def half_widths(array: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return :func:`half_width` over the first axis, (N, …) → (…); N is at least 2."""
    scale = scipy.stats.t.ppf((1 + LEVEL) / 2, len(array) - 1) / np.sqrt(len(array))
    return np.asarray(scale * array.std(axis=0, ddof=1))


def standard_error(a: ArrayLike, b: ArrayLike) -> tuple[float, float]:
    """Return the standard error of mean(a) − mean(b) and its degrees of freedom, after Welch.

    The groups are independent and may spread differently.
    Both numbers are NaN where a group has fewer than two values.

    >>> [round(one, 3) for one in standard_error([1.0, 2.0, 3.0], [1.0, 3.0, 5.0])]
    [1.291, 2.941]
    """
    groups = [np.asarray(values, dtype=float) for values in (a, b)]
    if min(map(len, groups)) < 2:
        return float("nan"), float("nan")
    parts = [group.var(ddof=1) / len(group) for group in groups]
    most = float(sum(len(group) - 1 for group in groups))
    if not sum(parts):
        return 0.0, most
    each = zip(parts, groups, strict=True)
    freedom = sum(parts) ** 2 / sum(part**2 / (len(group) - 1) for part, group in each)
    return float(np.sqrt(sum(parts))), float(freedom)


def smallest_effect(error: float, freedom: float) -> float:
    """Return the true difference that a 95 % interval leaves 0 out of, with this probability.

    It follows from the spread of the runs alone, not from the difference that they showed.
    With Student's noncentral t, to the side of the difference.

    >>> round(smallest_effect(1.0, 8.0), 2)
    3.2
    """
    if not (error > 0 and freedom > 0):
        return float("nan")
    bound = scipy.stats.t.ppf((1 + LEVEL) / 2, freedom)
    far = scipy.optimize.brentq(
        lambda shift: scipy.stats.nct.sf(bound, freedom, shift) - POWER, 0.0, 10.0 * bound + 10.0
    )
    return error * float(far)


def chance_to_see_equality(margin: float, error: float, freedom: float) -> float:
    """Return how probably the interval lies within ±margin where there is no difference at all.

    >>> round(chance_to_see_equality(0.02, 0.02, 8.0), 3), chance_to_see_equality(1, 0.01, 8.0)
    (0.001, 1.0)
    """
    if not (error > 0 and freedom > 0):
        return float("nan")
    shares = (np.arange(2000) + 0.5) / 2000  # quantiles of the standard error that is measured
    measured = error * np.sqrt(scipy.stats.chi2.ppf(shares, freedom) / freedom)
    room = margin - scipy.stats.t.ppf((1 + LEVEL) / 2, freedom) * measured
    return float(np.mean(np.where(room > 0, 2 * scipy.stats.norm.cdf(room / error) - 1, 0.0)))


def collapsed(accuracy: ArrayLike) -> bool:
    """Return whether a run collapsed: it lost half of the accuracy that it had reached.

    Accuracy in training is averaged over the last :data:`WINDOW` steps.
    A run collapsed if the last of these means is below :data:`LOST` times the highest.
    A run that diverged collapsed too, and has no curve to show it.

    >>> collapsed([0.5] * 20 + [0.2] * 20), collapsed([0.5] * 20 + [0.3] * 20)
    (True, False)
    """
    values = np.asarray(accuracy, dtype=float)
    if len(values) < WINDOW:
        return False
    means = np.convolve(values, np.full(WINDOW, 1 / WINDOW), "valid")
    return bool(means[-1] < LOST * means.max())


def welch(a: ArrayLike, b: ArrayLike) -> Difference:
    """Return the difference of the means of two groups of runs, with Welch's t.

    The interval is mean(a) − mean(b) ± t·√(s²_a/n_a + s²_b/n_b), with unequal variances.

    Args:
        a, b: one number for each run; the runs have different seeds. A group of one is a fixed
            model without seeds, and the spread is the other group's.

    Returns:
        The difference. Interval and p are NaN where neither group has two runs, or where no two
        runs differ by more than rounding.

    >>> welch([0.5, 0.6, 0.7], [0.2, 0.3, 0.4]).mean.__round__(3)
    0.3
    """
    one, other = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    gap = float(one.mean() - other.mean())
    rounding = 1e-12 * max(np.abs(one).max(), np.abs(other).max())
    if max(len(one), len(other)) < 2 or max(np.ptp(one), np.ptp(other)) <= rounding:
        return Difference(gap, float("nan"), float("nan"), float("nan"))
    with warnings.catch_warnings():  # scipy's, of a group whose runs are alike
        warnings.filterwarnings("ignore", message="Precision loss", category=RuntimeWarning)
        if min(len(one), len(other)) > 1:
            found = scipy.stats.ttest_ind(one, other, equal_var=False)
        else:
            found = scipy.stats.ttest_1samp((one[:, None] - other[None, :]).ravel(), 0.0)
    low, high = found.confidence_interval(LEVEL)
    return Difference(gap, float(low), float(high), float(found.pvalue))


def _resampled_means(values: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    if len(values) == 0:
        raise ValueError("a bootstrap needs at least one prompt")
    if len(values) == 1:  # every resample is the same: that is no interval
        return np.full(resamples, np.nan)
    rng = np.random.default_rng(seed)
    rows = max(1, 2**22 // len(values))  # as many resamples at a time as fit in 32 MiB
    sizes = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    return np.concatenate(
        [values[rng.integers(len(values), size=(size, len(values)))].mean(1) for size in sizes]
    )


def _bounds(means: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
