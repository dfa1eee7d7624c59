"""Expected gradients of a method, exact by enumeration, beside three known ones.

A policy samples one token out of six; every token is enumerated, so there is no noise.
The known gradients are ∇(−E[r]), ∇KL(π_θ‖π_T) and ∇KL(π_T‖π_θ).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlkd_lab.lab.course.method_cases import NEXT_TO_NOTHING, Case, Finding, random_normal
from rlkd_lab.objectives import TokenBatch, divergence, forward_kl, reverse_kl, token_loss

VOCABULARY = 6
POLICIES = 8
"""Random pairs of student and teacher that the expectations are taken over."""
FOLLOWS = 0.5
"""Smallest cosine to the reward's or a teacher's gradient that passes.

The lowest in the table is 0.8: TRRD, whose teacher sizes the steps."""


@dataclass
class _Expected:
    """Expected gradients at the logits of a one-token policy, (6,) each.

    They belong to one random pair of student and teacher.
    """

    method: Tensor
    largest: float
    """Norm of the largest gradient of one completion."""
    reward: Tensor
    reverse: Tensor
    forward: Tensor


def _expected(
    case: Case, seed: int, credit: float, correct: float, teacher_seed: int = 0
) -> _Expected:
    """Enumerate the tokens of a policy and return its expected gradients.

    Â of a completion is ``credit`` times its centred random reward.
    Its policy gradient is then ``credit``·∇(−E[r]).
    """
    logits = random_normal(VOCABULARY, seed=seed).requires_grad_()
    log_p = logits.log_softmax(-1)
    log_q = random_normal(VOCABULARY, seed=1000 + 7 * seed + teacher_seed).log_softmax(-1)
    p, rewards = log_p.detach().exp(), random_normal(VOCABULARY, seed=2000 + seed)
    advantages = credit * (rewards - (p * rewards).sum())
    exact = None
    if "divergence" in case.needs:
        weight = case.defaults.get("jsd_weight")
        kind = case.options["divergence"]
        mix = 0.5 if weight is None else weight
        exact = divergence(kind, log_p, log_q, mix).reshape(1, 1)  # type: ignore[arg-type]
    options = {**case.options, "aggregation": "constant", "constant_length": 1}
    total, largest = torch.zeros_like(logits), 0.0
    for token in range(VOCABULARY):
        logps = log_p[token].reshape(1, 1)
        batch = TokenBatch(
            logps=logps,
            completion_mask=torch.ones(1, 1),
            teacher_logps=log_q[token].reshape(1, 1) if "teacher" in case.needs else None,
            ref_logps=logps.detach(),
            teacher_entropy=-(log_q.exp() * log_q).sum().reshape(1, 1),
            correct=torch.tensor([correct]),
            group_ids=torch.zeros(1, dtype=torch.long),
            advantages=advantages[token].reshape(1) if "groups" in case.needs else None,
            divergence=exact,
        )
        loss = token_loss(case.name, batch, case.defaults, options)[0]
        if not loss.requires_grad:
            continue
        (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True, allow_unused=True)
        if gradient is not None:
            total = total + p[token] * gradient
            largest = max(largest, float(gradient.norm()))
    targets = (
        -(log_p.exp() * rewards).sum(),
        reverse_kl(log_p, log_q),
        forward_kl(log_p, log_q),
    )
    known = [torch.autograd.grad(target, logits, retain_graph=True)[0] for target in targets]
    return _Expected(total, largest, *known)


def _fit(mine: Tensor, targets: dict[str, Tensor]) -> str:
    """Return the least-squares combination over all policies, and the share it leaves, in words."""
    columns = torch.stack(list(targets.values()), 1)
    weights = torch.linalg.lstsq(columns, mine[:, None], driver="gelsd").solution[:, 0]
    rest = float((mine - columns @ weights).norm() / mine.norm())
    terms = [
        f"{float(weight):.2g}·{title}"
        for title, weight in zip(targets, weights, strict=True)
        if abs(float(weight)) > 1e-6
    ]
    words = " + ".join(terms).replace("+ -", "− ")
    return words + (", exactly" if rest < 1e-6 else f"; {rest:.0%} none of these")


def _cosine(ours: Tensor, theirs: Tensor) -> float:
    return float(ours @ theirs / (ours.norm() * theirs.norm()))


def _followed(mine: Tensor, targets: dict[str, Tensor], wanted: dict[str, Tensor]) -> Finding:
    """Return whether a gradient has a cosine above :data:`FOLLOWS` with a wanted gradient."""
    if not mine.isfinite().all():
        return False, (
            "the expected gradient is not finite: a logarithm of 0, a division by 0, or an"
            " exponential without a bound?"
        )
    words = _fit(mine, targets)
    cosines = {name: _cosine(mine, theirs) for name, theirs in wanted.items()}
    best = max(cosines, key=lambda name: cosines[name])
    if cosines[best] > FOLLOWS:
        return True, words
    if cosines[best] > 0:
        return False, (
            f"hardly follows {best} (cosine {cosines[best]:.2f}): most of the expected"
            " gradient is something else"
        )
    worst = min(cosines, key=lambda name: cosines[name])
    away = worst.split(",")[0]
    return False, f"pushes AWAY from {away} (cosine {cosines[worst]:.2f}): {words}"


def reward_in_expectation(case: Case) -> Finding:
    """Check that the reward's part of the expected gradient follows ∇(−E[r])."""
    if "groups" not in case.needs:
        return None, "it does not look at rewards"
    if case.method.advantage is None:
        return None, "the reward is no part of its gradient"
    with_reward = [_expected(case, seed, 1.0, correct=1.0) for seed in range(POLICIES)]
    without = [_expected(case, seed, 0.0, correct=1.0) for seed in range(POLICIES)]
    mine = _joined(with_reward, "method") - _joined(without, "method")
    reward = _joined(with_reward, "reward")
    if mine.norm() < NEXT_TO_NOTHING * reward.norm():
        return False, "the reward drops out: the expected gradient is the same without it"
    targets = {"∇(−E[r])": reward}
    if "teacher" in case.needs:
        targets["∇KL(π_θ‖π_T)"] = _joined(with_reward, "reverse")
        targets["∇KL(π_T‖π_θ)"] = _joined(with_reward, "forward")
    return _followed(mine, targets, {"the reward": reward})


def teacher_in_expectation(case: Case) -> Finding:
    """Check that the teacher's part of the expected gradient follows one of the two KLs."""
    if "teacher" not in case.needs:
        return None, "it needs no teacher"
    silent = [_expected(case, seed, credit=0.0, correct=0.0) for seed in range(POLICIES)]
    # A teacher that does not pull where Â = 0 may still size the reward's update.
    pulls = max(each.largest for each in silent) > NEXT_TO_NOTHING
    credit, correct = (0.0, 0.0) if pulls else (1.0, 1.0)
    ours = [_expected(case, seed, credit, correct, 0) for seed in range(POLICIES)]
    theirs = [_expected(case, seed, credit, correct, 1) for seed in range(POLICIES)]
    change = max(float((a.method - b.method).norm()) for a, b in zip(ours, theirs, strict=True))
    if change < NEXT_TO_NOTHING * max(each.largest for each in ours):
        return False, (
            "the teacher drops out: another teacher gives the same expected gradient, as with"
            " k1 as a loss"
        )
    if credit:
        return True, (
            "where Â = 0 it moves nothing; it sizes, token by token, the update that the"
            " reward asks for"
        )
    mine, reverse, forward = (_joined(ours, part) for part in ("method", "reverse", "forward"))
    targets = {"∇KL(π_θ‖π_T)": reverse, "∇KL(π_T‖π_θ)": forward}
    return _followed(mine, targets, {"the teacher": reverse, "the teacher, forward": forward})


def _joined(policies: list[_Expected], part: str) -> Tensor:
    """Return one gradient of all policies as one vector."""
    return torch.cat([getattr(each, part) for each in policies])
