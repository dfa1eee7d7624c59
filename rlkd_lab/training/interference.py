"""Interference: do the reward and the teacher pull the same way, and whom does the method follow?

On one on-policy batch, at the LoRA coordinates: g_R = GRPO's gradient, g_T = OPD's, g_M =
the method's. Each figure comes with its split-half value (the same objective on two halves of the
groups) as its noise floor: two noisy copies of one gradient conflict near 50 % at a signal-to-noise
of .3. LoRA coordinates are not full-parameter ones; figures of papers that train all parameters are
not comparable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from rlkd_lab.models import LanguageModel, Sequences
from rlkd_lab.objectives import TokenBatch, prepare, token_loss
from rlkd_lab.objectives.loss import ResolvedMethod, resolve

Forward = Callable[[TokenBatch, Sequences], TokenBatch]


def cosine(a: Tensor, b: Tensor) -> float:
    """Return cosine of two gradients; NaN where one is zero."""
    norms = float(a.norm() * b.norm())
    return min(max(float(a @ b) / norms, -1.0), 1.0) if norms > 0 else float("nan")  # rounding


def sign_conflict(a: Tensor, b: Tensor) -> float:
    """Share of the coordinates that are non-zero in both where the signs differ, in [0, 1];

    NaN where there is none.
    """
    joint = (a != 0) & (b != 0)
    count = int(joint.sum())
    return int((torch.sign(a) != torch.sign(b))[joint].sum()) / count if count else float("nan")


def interference(
    policy: LanguageModel,
    method: ResolvedMethod,
    batch: TokenBatch,
    sequences: Sequences,
    forward: Forward,
    micro_batch: int,
) -> dict[str, float]:
    """Return the three cosines and sign conflicts, with their split-half values.

    Args:
        policy: whose trainable parameters are the coordinates.
        method: of the run, with the coefficients of the step.
        batch: the whole rollout, unprepared, on-policy, with rewards, groups and teacher.
        sequences: its tokens.
        forward: fills ``logps`` (and ``divergence``) of a micro-batch with gradient.
        micro_batch: rows in one pass.

    Returns:
        ``interference/cosine`` and ``interference/sign_conflict`` (reward against teacher), the
        same with ``_reward_method`` and ``_teacher_method``, and with ``_split_reward``,
        ``_split_teacher`` and ``_split_method``.
    """
    objectives = {"reward": resolve("grpo"), "teacher": resolve("opd"), "method": method}
    prepared = {name: prepare(objective, batch) for name, objective in objectives.items()}
    assert batch.group_ids is not None
    groups = (
        batch.group_ids.unique()
    )  # with a single group the first half is empty, and the split-half values are NaN
    first = torch.isin(batch.group_ids, groups[: len(groups) // 2])
    halves: dict[str, list[Tensor]] = {name: [] for name in prepared}
    parameters = policy.trainable()
    for half in (first, ~first):
        sums = {name: [torch.zeros_like(p) for p in parameters] for name in prepared}
        for rows in half.nonzero()[:, 0].split(micro_batch) if half.any() else ():
            live = forward(batch.select(rows), sequences.select(rows))
            for position, (name, whole) in enumerate(prepared.items()):
                part = replace(whole.select(rows), logps=live.logps, divergence=live.divergence)
                loss, _ = token_loss(objectives[name], part)
                grads = torch.autograd.grad(
                    loss, parameters, retain_graph=position < len(prepared) - 1, allow_unused=True
                )
                for total, grad in zip(sums[name], grads, strict=True):
                    if grad is not None:
                        total += grad
        for name, totals in sums.items():
            halves[name].append(torch.cat([total.flatten() for total in totals]))
    whole_gradient = {name: parts[0] + parts[1] for name, parts in halves.items()}
    pairs = {
        "": (whole_gradient["reward"], whole_gradient["teacher"]),
        "_reward_method": (whole_gradient["reward"], whole_gradient["method"]),
        "_teacher_method": (whole_gradient["teacher"], whole_gradient["method"]),
        **{f"_split_{name}": (parts[0], parts[1]) for name, parts in halves.items()},
    }
    found: dict[str, float] = {}
    for suffix, (a, b) in pairs.items():
        found[f"interference/cosine{suffix}"] = cosine(a, b)
        found[f"interference/sign_conflict{suffix}"] = sign_conflict(a, b)
    return found
