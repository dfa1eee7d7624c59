"""Bugs of public implementations, as rows of the method table: to be seen failing.

    kdrl_k1          differentiates k1 = log π_θ − log π_T at sampled tokens.
                     k1 is an unbiased estimate of the KL, but its expected gradient is 0.
    kdrl_k1_flipped  differentiates −k1; the expected gradient is still 0.
    kdrl_flipped     uses −d in place of d in KDRL's advantage form.
                     It drives the student away from its teacher.

A fourth bug, TRRD without bounds, needs no row: ``trrd_gap_bound=off`` and ``ratio_cap=off``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from torch import Tensor

from rlkd_lab.objectives import METHODS, Method, TokenBatch, add_method, k1
from rlkd_lab.objectives.rules import reward_advantage, teacher_advantage
from rlkd_lab.objectives.settings import Coefs, Options


def k1_penalty(batch: TokenBatch, log_ratio: Tensor, coefs: Coefs, options: Options) -> Tensor:
    """Return kd_coef·M·k1 with its gradient, which is the bug; (B, T)."""
    assert batch.teacher_logps is not None and batch.kd_weight is not None
    weight = float(coefs["kd_coef"] or 0.0) * batch.kd_weight
    return weight * k1(batch.logps, batch.teacher_logps)


def flipped_k1_penalty(
    batch: TokenBatch, log_ratio: Tensor, coefs: Coefs, options: Options
) -> Tensor:
    """Return −kd_coef·M·k1 with its gradient; (B, T)."""
    return -k1_penalty(batch, log_ratio, coefs, options)


def flipped_advantage(batch: TokenBatch, coefs: Coefs, options: Options) -> Tensor:
    """Return rl_coef·Â − kd_coef·M·d, the teacher's term with the wrong sign; (B, T)."""
    return reward_advantage(batch, coefs, options) - teacher_advantage(batch, coefs, options)


COMMON_BUGS: Mapping[str, Method] = MappingProxyType(
    {
        "kdrl_k1": replace(
            METHODS["kdrl"],
            title="KDRL with k1 as a loss",
            formula="−min(ρ·Â, clip(ρ)·Â) + kd_coef·M·k1",
            penalty=k1_penalty,
        ),
        "kdrl_k1_flipped": replace(
            METHODS["kdrl"],
            title="KDRL with −k1 as a loss",
            formula="−min(ρ·Â, clip(ρ)·Â) − kd_coef·M·k1",
            penalty=flipped_k1_penalty,
        ),
        "kdrl_flipped": replace(
            METHODS["kdrl_advantage"],
            title="KDRL with the teacher's sign turned",
            formula="A = Â − kd_coef·M·d",
            advantage=flipped_advantage,
        ),
    }
)
"""Rows by name."""


def add_common_bugs() -> None:
    """Add the rows to the method table of this process.

    ``check_method`` and a run then show what each bug does.
    """
    for name, method in COMMON_BUGS.items():
        add_method(name, method)
