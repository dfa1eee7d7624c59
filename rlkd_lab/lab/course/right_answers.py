"""The right answers of the exercises, mostly by the functions that the trainer calls."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence

import torch

from rlkd_lab.objectives import METHODS, TokenBatch
from rlkd_lab.objectives.loss import advantage

T_975 = 2.776445105
"""97.5 % quantile of Student's t with 4 degrees of freedom: five seeds."""
DIFFERENCES = (0.04, 0.01, -0.02, 0.05, 0.03)


def no_spread(size: int, success: float) -> float:
    """Return the probability that all ``size`` completions are right, or all wrong."""
    return success**size + (1 - success) ** size


def smallest_group(success: float = 0.13, below: float = 0.1) -> int:
    """Return the smallest group size whose probability of no spread is under ``below``."""
    return next(size for size in range(2, 10_000) if no_spread(size, success) < below)


def reversal_threshold(kd_coef: float = 0.1, credit: float = 0.866) -> float:
    """Return the gap d where Â + kd_coef·d crosses 0, by bisection on the method's own rule.

    Below it, KDRL's advantage form pushes a token down although Â > 0.
    """
    low, high = -1000.0, 0.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if joint(kd_coef, credit, [middle])[0] < 0 else (low, middle)
    return (low + high) / 2


def joint(kd_coef: float, credit: float, gaps: Sequence[float]) -> list[float]:
    """Return A of ``kdrl_advantage`` for the tokens of a completion, given their teacher gaps."""
    gap = torch.tensor([list(gaps)], dtype=torch.float64)
    batch = TokenBatch(
        torch.zeros_like(gap),
        torch.ones_like(gap),
        teacher_logps=gap,
        advantages=torch.tensor([credit], dtype=torch.float64),
    )
    return advantage("kdrl_advantage", batch, {"kd_coef": kd_coef})[0].tolist()


def intervals(values: Sequence[float] = DIFFERENCES) -> dict[str, tuple[float, float]]:
    """Return 95 % intervals of a mean of five: Student's t, and the percentile bootstrap."""
    from rlkd_lab.study.statistics import bootstrap  # here: its package loads transformers

    mean = statistics.mean(values)
    half = T_975 * statistics.stdev(values) / math.sqrt(len(values))
    drawn = bootstrap(values, resamples=20_000)
    return {"t interval": (mean - half, mean + half), "bootstrap": (drawn.low, drawn.high)}


def verdict() -> str:
    """Return what the t interval of :data:`DIFFERENCES` says about its sign."""
    low, high = intervals()["t interval"]
    return "better" if low > 0 else "worse" if high < 0 else "undecided"


def without_teacher() -> str:
    """Return the method that equals KDRL without its penalty."""
    parts = ("ratio", "surrogate", "advantage", "coefs")
    kdrl = {name: getattr(METHODS["kdrl"], name) for name in parts}
    coefs = kdrl["coefs"].items()
    kdrl["coefs"] = {name: value for name, value in coefs if name != "kd_coef"}
    return next(
        name
        for name, method in METHODS.items()
        if not method.needs & {"teacher", "traces"}
        and {part: getattr(method, part) for part in parts} == kdrl
    )


def disagreement(
    right: Sequence[float] = (0.5, -0.2, 0.1),
    wrong: Sequence[float] = (-1.0, 0.3, -0.4, 0.2, -0.1),
) -> float:
    """Return the share of tokens that OPDVR leaves out, given the gaps of two completions."""
    left_out = 0
    for gaps, correct in ((right, 1.0), (wrong, 0.0)):
        gap = torch.tensor([list(gaps)])
        batch = TokenBatch(
            torch.zeros_like(gap),
            torch.ones_like(gap),
            teacher_logps=gap,
            correct=torch.tensor([correct]),
        )
        left_out += int((advantage("opdvr", batch) == 0).sum())
    return left_out / (len(right) + len(wrong))


def placebo(probabilities: Sequence[float] = (0.9, 0.2, 0.99, 0.6, 0.95)) -> list[float]:
    """Return the advantages of ``opsa`` for the tokens of a completion."""
    logps = torch.tensor([list(probabilities)]).log()
    batch = TokenBatch(logps, torch.ones_like(logps))
    return advantage("opsa", batch, {"push": 0.1, "push_share": 0.2})[0].tolist()


def nf4_gib(parameters: float = 1.5e9, double: bool = False) -> float:
    """Return the GiB of NF4 weights.

    A weight has half a byte, and each block of 64 weights a 4-byte scale.
    With ``double`` quantisation a scale has one byte, and 256 scales share a 4-byte scale.
    """
    return parameters * (0.5 + (1 + 4 / 256 if double else 4) / 64) / 2**30


def weak_verifier(completion: str, answer: str) -> bool:
    """Return whether the answer stands anywhere in the text as a number.

    It is easy to fool: see exercise 01.fool.

    >>> weak_verifier("41, 42, 43, 44", "44")
    True
    """
    return isinstance(completion, str) and answer in re.findall(r"\d+", completion)
