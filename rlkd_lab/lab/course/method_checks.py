"""Exact tests of a method, on small random batches and by enumeration, in float64.

A new row of the method table should pass them before a run is trained with it.
The method sees only what its ``needs`` name.
Each of these bugs fails a check: a wrong sign, k1 used as a loss, a missing detach,
a normaliser that depends on the micro-batch.
The checks cannot know what the method is meant to do.
They compare its gradient with three known ones and say which it follows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rlkd_lab.lab.course.expected_gradients import reward_in_expectation, teacher_in_expectation
from rlkd_lab.lab.course.method_cases import (
    NEXT_TO_NOTHING,
    Case,
    Coefs,
    Finding,
    gap_between,
    gradient_of,
    leaves_of,
    outcome_of,
)
from rlkd_lab.objectives import METHODS, TokenBatch, prepare, token_loss
from rlkd_lab.objectives.settings import nearest

CHECKS = (
    "finite differences",
    "micro-batches",
    "padding",
    "limit",
    "teacher = student",
    "reward in expectation",
    "teacher in expectation",
)
MOST_SPLIT = 6


def check_method(
    name: str, reduces_to: str | None = None, at: Mapping[str, float | None] | None = None
) -> pd.DataFrame:
    """Run the exact tests on a method of :data:`~rlkd_lab.objectives.METHODS`.

    - finite differences: the gradient is the derivative of the value, with everything
      detached held fixed.
    - micro-batches: splitting a prepared batch changes neither loss nor gradient.
    - padding: neither its content nor its width matters; a batch without tokens gives 0.
    - limit: value and gradient equal those of ``reduces_to``.
    - teacher = student: on-policy, a teacher that agrees with the student does not pull.
    - reward in expectation, teacher in expectation: the exact expected gradient over all
      one-token completions of 8 random policies. It is written as a least-squares
      combination of ∇(−E[r]), ∇KL(π_θ‖π_T) and ∇KL(π_T‖π_θ), with the share that is
      none of them. The teacher's is taken where Â = 0. It passes if it is finite and its
      cosine is above 0.5.

    Args:
        name: of the method; :func:`~rlkd_lab.objectives.add_method` can add it first.
        reduces_to: a known method that it should equal …
        at: … at these coefficients.

    Returns:
        A row for each check: ``check``, ``passed`` and ``measured``, in words.
        ``passed`` is missing where a check does not apply; ``passed.all()`` skips those rows.

    Raises:
        ValueError: an unknown name, or a method that trains on teacher traces alone.
            Errors of the method's rules are raised as they are.
    """
    case = Case(nearest(name, METHODS, "method"))
    if "traces" in case.needs and not {"divergence", "groups"} & case.needs:
        raise ValueError(
            f"{name} is trained on teacher traces: these checks are for methods that see the"
            " student's own tokens"
        )
    limit: Finding = (None, "not asked for: give reduces_to and at")
    if reduces_to is not None:
        limit = _limit(case, nearest(reduces_to, METHODS, "method"), dict(at or {}))
    findings = [
        _finite_differences(case),
        _micro_batches(case),
        _padding(case),
        limit,
        _agreeing_teacher(case),
        reward_in_expectation(case),
        teacher_in_expectation(case),
    ]
    frame = pd.DataFrame(findings, columns=["passed", "measured"])
    frame.insert(0, "check", CHECKS)
    return frame.astype({"passed": "boolean"})


# --- the checks -----------------------------------------------------------------------------------


class _Frozen(TorchFunctionMode):
    """Records detached values in a first pass and returns them unchanged in later passes.

    A perturbation then moves only what has a gradient.
    """

    def __init__(self) -> None:
        super().__init__()
        self.values: list[Tensor] = []
        self.next: int | None = None

    def replaying(self) -> _Frozen:
        """Return this mode, set to return the recorded values from the first on."""
        self.next = 0
        return self

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is not Tensor.detach:
            return result
        if self.next is None:
            self.values.append(result.clone())
            return result
        self.next += 1
        return self.values[self.next - 1].clone()


def _finite_differences(case: Case) -> Finding:
    step, worst = 1e-6, 0.0
    for on_policy in (False, True):
        batch = case.rollout(on_policy=on_policy)
        frozen = _Frozen()
        with frozen:
            loss = case.loss(batch)
        analytic = gradient_of(loss, leaves_of(batch))
        numeric = []
        for leaf in leaves_of(batch):
            kept = leaf.data.clone()
            for index in range(leaf.numel()):
                values = []
                for sign in (1, -1):
                    leaf.data.view(-1)[index] += sign * step
                    with frozen.replaying(), torch.no_grad():
                        values.append(float(case.loss(batch)))
                    leaf.data.copy_(kept)
                numeric.append((values[0] - values[1]) / (2 * step))
        worst = max(worst, gap_between(analytic, torch.tensor(numeric, dtype=torch.float64)))
    words = f"gradient and finite differences differ by {worst:.1g} of their size"
    if worst < 1e-5:
        return True, words
    return False, f"{words}: something leaves the graph without detach"


def _micro_batches(case: Case) -> Finding:
    batch = case.rollout()
    whole = outcome_of(case.loss(batch), batch)
    prepared = prepare(case.name, batch, case.active, case.options)
    gaps = {}
    for n in (2, 3, MOST_SPLIT):
        total = sum((case.loss(part) for part in prepared.split(n)), torch.zeros(()))
        gaps[n] = gap_between(outcome_of(total, batch), whole)
    worst = max(gaps, key=lambda n: gaps[n])
    words = f"split into {worst}, loss and gradient change by {gaps[worst]:.1g}"
    if gaps[worst] < NEXT_TO_NOTHING:
        return True, words
    return False, f"{words}: a rule looks at all rows, which is for prepare"


def _padding(case: Case) -> Finding:
    batch = case.rollout()
    clean, padding = outcome_of(case.loss(batch), batch), batch.completion_mask == 0
    for poison in (float("nan"), float("inf"), -1e9):
        poisoned = _poisoned(batch, padding, poison)
        outcome = outcome_of(case.loss(poisoned), poisoned)
        if not gap_between(outcome, clean) < NEXT_TO_NOTHING:
            return False, (
                f"{poison} in the padding changes loss or gradient: mask before you compute"
                " (torch.where), not after"
            )
    wide: dict[str, Any] = {
        field: torch.nn.functional.pad(value, (0, 3))
        for field, value in vars(batch).items()
        if isinstance(value, Tensor) and value.dim() == 2
    }
    change = gap_between(outcome_of(case.loss(replace(batch, **wide)), batch), clean)
    if not change < NEXT_TO_NOTHING:
        return False, (
            f"three more columns of padding change loss or gradient by {change:.1g}: a mean"
            " over columns counts padding"
        )
    empty = replace(batch, completion_mask=torch.zeros_like(batch.completion_mask))
    outcome = outcome_of(case.loss(empty), empty)
    if not bool((outcome == 0).all()):
        loss, norm = float(outcome[0]), float(outcome[1:].norm())
        return False, (
            f"a batch without tokens has loss {loss:.3g} and a gradient of norm {norm:.3g}, not 0"
        )
    return True, "content and width of the padding change nothing; a batch without tokens gives 0"


def _poisoned(batch: TokenBatch, padding: Tensor, poison: float) -> TokenBatch:
    """Return the batch with ``poison`` in the padding of every field that has one."""
    with_gradient = ("logps", "divergence")
    fields = (*with_gradient, "old_logps", "sampler_logps", "teacher_logps", "ref_logps")
    filled: dict[str, Any] = {}
    for name in fields:
        value = getattr(batch, name)
        if value is not None:
            value = value.detach().masked_fill(padding, poison)
            filled[name] = value.requires_grad_(name in with_gradient)
    return replace(batch, **filled)


def _limit(case: Case, known: str, at: Coefs) -> Finding:
    other, worst = METHODS[known], 0.0
    coefs = {**case.active, **at}
    shared = {name: value for name, value in coefs.items() if name in other.coefs}
    options = {name: value for name, value in case.options.items() if name != "topk"}
    for seed in range(3):
        for on_policy in (False, True):
            batch = case.rollout(seed, on_policy)
            wanted = outcome_of(token_loss(known, batch, shared, options)[0], batch)
            worst = max(worst, gap_between(outcome_of(case.loss(batch, coefs), batch), wanted))
    texts = [f"{name}={'off' if value is None else f'{value:g}'}" for name, value in at.items()]
    where = ", ".join(texts) or "its defaults"
    words = f"at {where}, value and gradient differ from {known}'s by {worst:.1g}"
    return worst < NEXT_TO_NOTHING, words


def _agreeing_teacher(case: Case) -> Finding:
    if "teacher" not in case.needs:
        return None, "it needs no teacher"
    if "divergence" in case.needs:
        return None, "its divergence comes from the whole vocabulary, and is 0 between equal models"
    batch = case.rollout(on_policy=True)
    batch = replace(batch, teacher_logps=batch.logps.detach())
    if "reference" in case.method.needs:  # a gap to the reference would pull by itself
        batch = replace(batch, ref_logps=batch.logps.detach())
    remains = gradient_of(case.loss(batch), [batch.logps])
    if "kd_coef" in case.active:
        loss = case.loss(batch, {**case.active, "kd_coef": 0.0})
        what = "its own at kd_coef=0"
    else:
        coefs = METHODS["grpo"].coefs
        shared = {name: value for name, value in case.active.items() if name in coefs}
        loss, what = token_loss("grpo", batch, shared, case.options)[0], "GRPO's"
    gap = gap_between(remains, gradient_of(loss, [batch.logps]))
    if gap < NEXT_TO_NOTHING:
        return True, f"a teacher that agrees does not pull: the gradient is {what}"
    return False, (
        f"a teacher that agrees still pulls ({gap:.1g} away from {what}): is a detach"
        " missing, or k1 a loss?"
    )
