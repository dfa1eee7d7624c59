"""Errors that public implementations of these methods make, as rows of the method table: to be seen
failing, never to be used.

    kdrl_k1         differentiates k1, log π_θ − log π_T at sampled tokens: an unbiased estimate of the KL whose expected gradient is 0
    kdrl_k1_flipped the same with its sign turned around: still 0
    kdrl_flipped    KDRL's advantage form with −d in place of d: the student is driven away from its teacher

Their fourth companion, TRRD without bounds, needs no row: ``trrd_gap_bound=off`` and
``ratio_cap=off``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from torch import Tensor

from rlkd_lab.objectives import METHODS, Method, TokenBatch, add_method, k1
from rlkd_lab.objectives.methods import Coefs, Options, reward_advantage, teacher_advantage


def k1_penalty(batch: TokenBatch, log_ratio: Tensor, coefs: Coefs, options: Options) -> Tensor:
    """kd_coef·M·k1, with its gradient: the mistake."""
    assert batch.teacher_logps is not None and batch.kd_weight is not None
    return float(coefs["kd_coef"] or 0.0) * batch.kd_weight * k1(batch.logps, batch.teacher_logps)


def flipped_k1_penalty(
    batch: TokenBatch, log_ratio: Tensor, coefs: Coefs, options: Options
) -> Tensor:
    """−kd_coef·M·k1, with its gradient."""
    return -k1_penalty(batch, log_ratio, coefs, options)


def flipped_advantage(batch: TokenBatch, coefs: Coefs, options: Options) -> Tensor:
    """rl_coef·Â − kd_coef·M·d: the teacher's likes punished."""
    return reward_advantage(batch, coefs, options) - teacher_advantage(batch, coefs, options)


MISTAKES: Mapping[str, Method] = MappingProxyType(
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


def add_mistakes() -> None:
    """Put them into the method table of this process, so that ``check_method`` and a run can
    show what they do.
    """
    for name, method in MISTAKES.items():
        add_method(name, method)
