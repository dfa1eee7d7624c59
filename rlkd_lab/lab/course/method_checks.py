"""The exact tests of a method, on small random batches and by enumeration, in float64: what a new
row of the table should pass before anybody trains with it.

The method sees only what its ``needs`` promise. A wrong sign, a k1 used as a loss, a missing detach
or a normaliser that depends on the micro-batch each has a check that it cannot pass. What the
checks cannot know is what you meant: they hold the gradient against three known ones, and say what
it follows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rlkd_lab.objectives import (
    METHODS,
    TokenBatch,
    divergence,
    forward_kl,
    nearest,
    needs_of,
    prepare,
    resolve_options,
    reverse_kl,
    token_loss,
)

CHECKS = (
    "finite differences",
    "micro-batches",
    "padding",
    "limit",
    "teacher = student",
    "reward in expectation",
    "teacher in expectation",
)
NEXT_TO_NOTHING = 1e-9
LENGTHS = (5, 3, 4, 1, 0, 2)  # one completion has no token at all
GROUPS = (0, 1, 2, 0, 1, 2)  # interleaved, so that every micro-batch cuts a group
VOCABULARY = 6
POLICIES = 8
"""Random pairs of student and teacher that the expectations are taken over."""
MOST_SPLIT = 6
FOLLOWS = 0.5
"""Smallest cosine to the reward's or a teacher's gradient.

The lowest in the table is .8: TRRD, whose teacher sizes the steps.
"""

Coefs = dict[str, float | None]
Finding = tuple[bool | None, str]


def check_method(
    name: str, reduces_to: str | None = None, at: Mapping[str, float | None] | None = None
) -> pd.DataFrame:
    """Run the exact tests on a method of :data:`~rlkd_lab.objectives.METHODS`.

    Args:
        name: of the method, perhaps one that :func:`~rlkd_lab.objectives.add_method` has put there.
        reduces_to: a known method that it should equal, value and gradient, …
        at: … at these coefficients.

    Returns:
        A row a check: ``check``, ``passed`` (missing: it does not apply, and ``measured`` says why)
        and ``measured``, in words. ``passed.all()`` leaves the missing ones out.

        - finite differences: the gradient is the derivative of the value, with everything that is
          detached held fixed.
        - micro-batches: splitting a prepared batch changes neither loss nor gradient.
        - padding: neither its content nor its width matters, and a batch without tokens gives 0.
        - limit: ``reduces_to``.
        - teacher = student: on-policy, a teacher that agrees leaves what the method is without it.
        - reward in expectation, teacher in expectation: exact expected gradients over all one-token
          completions of 8 random policies, as a least-squares combination of ∇(−E[r]), ∇KL(π_θ‖π_T)
          and ∇KL(π_T‖π_θ), with the share that is none of them. The teacher's is taken where Â = 0.
          Passed: finite, with a cosine above .5.

    Raises:
        ValueError: unknown names, or a method that trains on teacher traces alone; otherwise
            whatever its rules raise.
    """
    case = _Case(nearest(name, METHODS, "method"))
    if "traces" in case.needs and "divergence" not in case.needs:
        raise ValueError(
            f"{name} is trained on teacher traces: these checks are for methods that see the"
            " student's own tokens"
        )
    found = [
        _finite_differences(case),
        _micro_batches(case),
        _padding(case),
        (None, "not asked for: give reduces_to and at")
        if reduces_to is None
        else _limit(case, nearest(reduces_to, METHODS, "method"), dict(at or {})),
        _agreeing_teacher(case),
        _reward_in_expectation(case),
        _teacher_in_expectation(case),
    ]
    frame = pd.DataFrame(
        {
            "check": CHECKS,
            "passed": [passed for passed, _ in found],
            "measured": [words for _, words in found],
        }
    )
    return frame.astype({"passed": "boolean"})


# --- a method and its batches ---------------------------------------------------------------------


@dataclass
class _Case:
    """A method with every term of its loss switched on."""

    name: str

    def __post_init__(self) -> None:
        self.method = METHODS[self.name]
        self.defaults: Coefs = dict(self.method.coefs)
        if self.defaults.get("rl_coef") == 0:  # a preset that begins without the reward
            self.defaults["rl_coef"] = 1.0
        self.loud: Coefs = {
            **self.defaults,
            **{
                name: value
                for name, value in (("kl_coef", 0.3), ("importance_cap", 1.5))
                if name in self.defaults
            },
        }
        self.options = resolve_options(self.method, {"constant_length": max(LENGTHS)})
        self.needs = needs_of(self.method, self.loud, self.options)

    def rollout(self, seed: int = 0, on_policy: bool = False) -> TokenBatch:
        """Six completions of three prompts, padded; off-policy unless asked for."""
        rows, width = len(LENGTHS), max(LENGTHS)
        logps = (-1.5 - _random(rows, width, seed=seed).abs()).requires_grad_()

        def near(offset: int, spread: float) -> Tensor:
            return logps.detach() + spread * _random(rows, width, seed=100 * seed + offset)

        batch = TokenBatch(
            logps=logps,
            completion_mask=(torch.arange(width) < torch.tensor(LENGTHS)[:, None]).long(),
            old_logps=None if on_policy else near(1, 0.3),
            sampler_logps=near(2, 0.3),
            teacher_logps=near(3, 0.8) if "teacher" in self.needs else None,
            ref_logps=near(4, 0.5),
            correct=torch.tensor([1, 0, 0, 0, 1, 0]),
            group_ids=torch.tensor(GROUPS),
            divergence=_random(rows, width, seed=seed + 6).abs().requires_grad_()
            if "divergence" in self.needs
            else None,
        )
        return (
            replace(batch, rewards=_random(rows, seed=seed + 5))
            if "groups" in self.needs
            else batch
        )

    def loss(self, batch: TokenBatch, coefs: Coefs | None = None) -> Tensor:
        return token_loss(self.name, batch, self.loud if coefs is None else coefs, self.options)[0]


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _leaves(batch: TokenBatch) -> list[Tensor]:
    return [batch.logps] if batch.divergence is None else [batch.logps, batch.divergence]


def _gradient(loss: Tensor, leaves: list[Tensor]) -> Tensor:
    """∂loss/∂leaves as one vector, 0 where a leaf was not used."""
    if not loss.requires_grad:
        return torch.zeros(sum(leaf.numel() for leaf in leaves), dtype=torch.float64)
    parts = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(leaf) if part is None else part).flatten()
            for leaf, part in zip(leaves, parts, strict=True)
        ]
    )


def _outcome(loss: Tensor, batch: TokenBatch) -> Tensor:
    """Value and gradient as one vector."""
    return torch.cat([loss.detach().reshape(1), _gradient(loss, _leaves(batch))])


def _gap(ours: Tensor, theirs: Tensor) -> float:
    """‖a − b‖ over ‖b‖, or the norm of what is left where b is 0."""
    norm = float(theirs.norm())
    gap = float((ours - theirs).norm()) / (norm if norm > NEXT_TO_NOTHING else 1.0)
    return gap if gap == gap else float("inf")  # a NaN is as wrong as can be


# --- the checks -----------------------------------------------------------------------------------


class _Frozen(TorchFunctionMode):
    """Everything that is detached, recorded in a first pass and given back unchanged in the
    next ones: so a perturbation moves only what has a gradient.
    """

    def __init__(self) -> None:
        super().__init__()
        self.values: list[Tensor] = []
        self.next: int | None = None

    def replaying(self) -> _Frozen:
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


def _finite_differences(case: _Case) -> Finding:
    step, worst = 1e-6, 0.0
    for on_policy in (False, True):
        batch = case.rollout(on_policy=on_policy)
        frozen = _Frozen()
        with frozen:
            loss = case.loss(batch)
        analytic = _gradient(loss, _leaves(batch))
        numeric = []
        for leaf in _leaves(batch):
            kept = leaf.data.clone()
            for index in range(leaf.numel()):
                values = []
                for sign in (1, -1):
                    leaf.data.view(-1)[index] += sign * step
                    with frozen.replaying(), torch.no_grad():
                        values.append(float(case.loss(batch)))
                    leaf.data.copy_(kept)
                numeric.append((values[0] - values[1]) / (2 * step))
        worst = max(worst, _gap(analytic, torch.tensor(numeric, dtype=torch.float64)))
    words = f"gradient and finite differences differ by {worst:.1g} of their size"
    return (
        (True, words)
        if worst < 1e-5
        else (False, f"{words}: something leaves the graph without detach")
    )


def _micro_batches(case: _Case) -> Finding:
    batch = case.rollout()
    whole = _outcome(case.loss(batch), batch)
    prepared = prepare(case.name, batch, case.loud, case.options)
    gaps = {
        n: _gap(
            _outcome(sum((case.loss(part) for part in prepared.split(n)), torch.zeros(())), batch),
            whole,
        )
        for n in (2, 3, MOST_SPLIT)
    }
    worst = max(gaps, key=lambda n: gaps[n])
    words = f"split into {worst}, loss and gradient change by {gaps[worst]:.1g}"
    return (
        (True, words)
        if gaps[worst] < NEXT_TO_NOTHING
        else (False, f"{words}: a rule looks at all rows, which is for prepare")
    )


def _padding(case: _Case) -> Finding:
    batch = case.rollout()
    clean, padding = _outcome(case.loss(batch), batch), batch.completion_mask == 0
    for poison in (float("nan"), float("inf"), -1e9):
        fields = {
            name: getattr(batch, name)
            for name in (
                "logps",
                "old_logps",
                "sampler_logps",
                "teacher_logps",
                "ref_logps",
                "divergence",
            )
        }
        filled = {
            name: value.detach().masked_fill(padding, poison)
            for name, value in fields.items()
            if value is not None
        }
        odd = replace(
            batch,
            **{
                name: value.requires_grad_(name in ("logps", "divergence"))
                for name, value in filled.items()
            },
        )
        if not _gap(_outcome(case.loss(odd), odd), clean) < NEXT_TO_NOTHING:
            return (
                False,
                f"{poison} in the padding changes loss or gradient: mask before you compute"
                " (torch.where), not after",
            )
    wide: dict[str, Any] = {
        f: torch.nn.functional.pad(v, (0, 3))
        for f, v in vars(batch).items()
        if isinstance(v, Tensor) and v.dim() == 2
    }
    change = _gap(_outcome(case.loss(replace(batch, **wide)), batch), clean)
    if not change < NEXT_TO_NOTHING:
        return (
            False,
            f"three more columns of padding change loss or gradient by {change:.1g}: a mean"
            " over columns counts padding",
        )
    empty = replace(batch, completion_mask=torch.zeros_like(batch.completion_mask))
    outcome = _outcome(case.loss(empty), empty)
    if not bool((outcome == 0).all()):
        return (
            False,
            f"a batch without tokens has loss {float(outcome[0]):.3g} and a gradient of norm"
            f" {float(outcome[1:].norm()):.3g}, not 0",
        )
    return True, "content and width of the padding change nothing; a batch without tokens gives 0"


def _limit(case: _Case, known: str, at: Coefs) -> Finding:
    other, worst = METHODS[known], 0.0
    coefs = {**case.loud, **at}
    shared = {name: value for name, value in coefs.items() if name in other.coefs}
    options = {name: value for name, value in case.options.items() if name not in ("topk",)}
    for seed in range(3):
        for on_policy in (False, True):
            batch = case.rollout(seed, on_policy)
            wanted = _outcome(token_loss(known, batch, shared, options)[0], batch)
            worst = max(worst, _gap(_outcome(case.loss(batch, coefs), batch), wanted))
    where = (
        ", ".join(
            f"{name}={'off' if value is None else f'{value:g}'}" for name, value in at.items()
        )
        or "its defaults"
    )
    words = f"at {where}, value and gradient differ from {known}'s by {worst:.1g}"
    return worst < NEXT_TO_NOTHING, words


def _agreeing_teacher(case: _Case) -> Finding:
    if "teacher" not in case.needs:
        return None, "it needs no teacher"
    if "divergence" in case.needs:
        return None, "its divergence comes from the whole vocabulary, and is 0 between equal models"
    batch = case.rollout(on_policy=True)
    batch = replace(batch, teacher_logps=batch.logps.detach())
    remains = _gradient(case.loss(batch), [batch.logps])
    if "kd_coef" in case.loud:
        without, what = (
            _gradient(case.loss(batch, {**case.loud, "kd_coef": 0.0}), [batch.logps]),
            "its own at kd_coef=0",
        )
    else:
        shared = {name: value for name, value in case.loud.items() if name in METHODS["grpo"].coefs}
        without, what = (
            _gradient(token_loss("grpo", batch, shared, case.options)[0], [batch.logps]),
            "GRPO's",
        )
    gap = _gap(remains, without)
    if gap < NEXT_TO_NOTHING:
        return True, f"a teacher that agrees does not pull: the gradient is {what}"
    return (
        False,
        f"a teacher that agrees still pulls ({gap:.1g} away from {what}): is a detach"
        " missing, or k1 a loss?",
    )


# --- expectations ---------------------------------------------------------------------------------


@dataclass
class _Expected:
    """Exact expected gradients with respect to the logits of a one-token policy, for one random
    pair of student and teacher.
    """

    method: Tensor
    loudest: float
    """Norm of the largest gradient of a single completion."""
    reward: Tensor
    reverse: Tensor
    forward: Tensor


def _expected(
    case: _Case, seed: int, credit: float, correct: float, teacher_seed: int = 0
) -> _Expected:
    """Â of a completion is ``credit`` times its centred random reward, so that its policy
    gradient is ``credit``·∇(−E[r]).
    """
    logits = _random(VOCABULARY, seed=seed).requires_grad_()
    log_p, log_q = (
        logits.log_softmax(-1),
        _random(VOCABULARY, seed=1000 + 7 * seed + teacher_seed).log_softmax(-1),
    )
    p, rewards = log_p.detach().exp(), _random(VOCABULARY, seed=2000 + seed)
    advantages = credit * (rewards - (p * rewards).sum())
    kind, weight = case.options["divergence"], case.defaults.get("jsd_weight")
    exact = (
        divergence(kind, log_p, log_q, 0.5 if weight is None else weight).reshape(1, 1)
        if "divergence" in case.needs
        else None
    )  # type: ignore[arg-type]
    options = {**case.options, "aggregation": "constant", "constant_length": 1}
    total, loudest = torch.zeros_like(logits), 0.0
    for token in range(VOCABULARY):
        logps = log_p[token].reshape(1, 1)
        batch = TokenBatch(
            logps=logps,
            completion_mask=torch.ones(1, 1),
            teacher_logps=log_q[token].reshape(1, 1) if "teacher" in case.needs else None,
            correct=torch.tensor([correct]),
            group_ids=torch.zeros(1, dtype=torch.long),
            advantages=advantages[token].reshape(1) if "groups" in case.needs else None,
            divergence=exact,
        )
        loss = token_loss(case.name, batch, case.defaults, options)[0]
        mine = (
            torch.autograd.grad(loss, logits, retain_graph=True, allow_unused=True)[0]
            if loss.requires_grad
            else None
        )
        if mine is not None:
            total, loudest = total + p[token] * mine, max(loudest, float(mine.norm()))
    targets = (-(log_p.exp() * rewards).sum(), reverse_kl(log_p, log_q), forward_kl(log_p, log_q))
    return _Expected(
        total,
        loudest,
        *(torch.autograd.grad(target, logits, retain_graph=True)[0] for target in targets),
    )


def _fit(mine: Tensor, targets: dict[str, Tensor]) -> str:
    """Least-squares weights over all policies at once, and the share that they leave."""
    columns = torch.stack(list(targets.values()), 1)
    weights = torch.linalg.lstsq(columns, mine[:, None], driver="gelsd").solution[:, 0]
    rest = float((mine - columns @ weights).norm() / mine.norm())
    terms = [
        f"{float(weight):.2g}·{title}"
        for title, weight in zip(targets, weights, strict=True)
        if abs(float(weight)) > 1e-6
    ]
    return " + ".join(terms).replace("+ -", "− ") + (
        ", exactly" if rest < 1e-6 else f"; {rest:.0%} none of these"
    )


def _cosine(ours: Tensor, theirs: Tensor) -> float:
    return float(ours @ theirs / (ours.norm() * theirs.norm()))


def _followed(mine: Tensor, targets: dict[str, Tensor], wanted: dict[str, Tensor]) -> Finding:
    """Whether an expected gradient follows one of those that are wanted: a cosine above
    :data:`FOLLOWS`.
    """
    if not mine.isfinite().all():
        return (
            False,
            "the expected gradient is not finite: a logarithm of 0, a division by 0, or an"
            " exponential without a bound?",
        )
    words, cosines = (
        _fit(mine, targets),
        {name: _cosine(mine, theirs) for name, theirs in wanted.items()},
    )
    nearest_one = max(cosines, key=lambda name: cosines[name])
    if cosines[nearest_one] > FOLLOWS:
        return True, words
    if cosines[nearest_one] > 0:
        return (
            False,
            f"hardly follows {nearest_one} (cosine {cosines[nearest_one]:.2f}): most of the"
            " expected gradient is something else",
        )
    furthest = min(cosines, key=lambda name: cosines[name])
    return (
        False,
        f"pushes AWAY from {furthest.split(',')[0]} (cosine {cosines[furthest]:.2f}): {words}",
    )


def _reward_in_expectation(case: _Case) -> Finding:
    if "groups" not in case.needs:
        return None, "it does not look at rewards"
    with_reward, without = (
        [_expected(case, seed, credit, correct=1.0) for seed in range(POLICIES)]
        for credit in (1.0, 0.0)
    )
    mine = torch.cat([a.method - b.method for a, b in zip(with_reward, without, strict=True)])
    reward = torch.cat([each.reward for each in with_reward])
    if mine.norm() < NEXT_TO_NOTHING * reward.norm():
        return False, "the reward drops out: the expected gradient is the same without it"
    targets = {"∇(−E[r])": reward}
    if "teacher" in case.needs:
        targets |= {
            "∇KL(π_θ‖π_T)": torch.cat([e.reverse for e in with_reward]),
            "∇KL(π_T‖π_θ)": torch.cat([e.forward for e in with_reward]),
        }
    return _followed(mine, targets, {"the reward": reward})


def _teacher_in_expectation(case: _Case) -> Finding:
    if "teacher" not in case.needs:
        return None, "it needs no teacher"
    silent = [_expected(case, seed, credit=0.0, correct=0.0) for seed in range(POLICIES)]
    credit, correct = (
        (0.0, 0.0) if max(each.loudest for each in silent) > NEXT_TO_NOTHING else (1.0, 1.0)
    )  # no pull of its own: does it size the reward's?
    ours, theirs = (
        [_expected(case, seed, credit, correct, teacher) for seed in range(POLICIES)]
        for teacher in (0, 1)
    )
    change = max(float((a.method - b.method).norm()) for a, b in zip(ours, theirs, strict=True))
    if change < NEXT_TO_NOTHING * max(each.loudest for each in ours):
        return (
            False,
            "the teacher drops out: another teacher gives the same expected gradient, as with"
            " k1 as a loss",
        )
    if credit:
        return (
            True,
            "where Â = 0 it moves nothing; it sizes, token by token, the update that the"
            " reward asks for",
        )
    mine, reverse, forward = (
        torch.cat([getattr(each, field) for each in ours])
        for field in ("method", "reverse", "forward")
    )
    return _followed(
        mine,
        {"∇KL(π_θ‖π_T)": reverse, "∇KL(π_T‖π_θ)": forward},
        {"the teacher": reverse, "the teacher, forward": forward},
    )
