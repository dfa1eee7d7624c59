"""The loss: from a rollout to a number with a gradient.

prepare      once per rollout: group-relative advantages, the teacher's weight, the normaliser
terms        per micro-batch: what each token contributes
token_loss   their sum over the normaliser, and statistics
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rlkd_lab.objectives.batch import TokenBatch
from rlkd_lab.objectives.estimators import k3
from rlkd_lab.objectives.method import Method
from rlkd_lab.objectives.methods import METHODS, REWARD_ALONE, needs_of, resolve_options
from rlkd_lab.objectives.rules import HEAD_ALONE, TRACES_APART, Surrogate, reference_penalty
from rlkd_lab.objectives.settings import Coefs, Options, check_coef, nearest
from rlkd_lab.objectives.surrogates import aggregate, log_importance
from rlkd_lab.objectives.weights import weigh_rollout

USED_BY_PREPARE = ("aggregation", "constant_length", "kd_mask", "kd_normalizer", "scale_rewards")
"""Options that :func:`prepare` uses, and :func:`token_loss` can no longer change."""
WORDS = {
    "teacher": "teacher_logps: the teacher's log-probabilities of the same tokens",
    "groups": "rewards and group_ids (or advantages)",
    "reference": "ref_logps, the reference's log-probabilities of the same tokens",
    "verdicts": "correct: which completions are right",
    "entropy": "teacher_entropy: the entropy of the teacher's next token",
    "divergence": "divergence: the full-vocabulary divergence to the teacher",
}


@dataclass(frozen=True)
class ResolvedMethod:
    """A method with all its coefficients and options, checked once. See :func:`resolve`."""

    name: str
    row: Method
    coefs: Coefs
    options: dict[str, Any]

    @property
    def needs(self) -> set[str]:
        """What it needs with these coefficients."""
        return needs_of(self.row, self.coefs, self.options)

    def at(self, coefs: Coefs) -> ResolvedMethod:
        """Return the method with other values of coefficients, which the caller has checked."""
        return replace(self, coefs={**self.coefs, **coefs})


def resolve(
    method: str | ResolvedMethod, coefs: Coefs | None = None, options: Options | None = None
) -> ResolvedMethod:
    """Return a method with its defaults and the caller's values on top.

    Args:
        method: a key of :data:`METHODS`, or a method that is resolved.
        coefs: knob values that differ.
        options: choices that differ, see :data:`~rlkd_lab.objectives.settings.CHOICES`.

    Raises:
        ValueError: an unknown name, or a value out of range.
    """
    if isinstance(method, ResolvedMethod):
        if not coefs and not options:
            return method
        name, row = method.name, method.row
        coefs = {**method.coefs, **(coefs or {})}
        options = {**method.options, **(options or {})}
    else:
        name = nearest(method, METHODS, "method")
        row = METHODS[name]
    for knob, value in (coefs or {}).items():
        check_coef(nearest(knob, row.coefs or {"(none)": None}, f"knob of {name}"), value)
    return ResolvedMethod(name, row, {**row.coefs, **(coefs or {})}, resolve_options(row, options))


def prepare(
    method: str | ResolvedMethod,
    batch: TokenBatch,
    coefs: Coefs | None = None,
    options: Options | None = None,
) -> TokenBatch:
    """Compute advantages, the teacher's weight and the normaliser of a whole rollout.

    Args:
        method: see :func:`resolve`, as are ``coefs`` and ``options``.
        batch: the whole rollout, so that groups and the normaliser are complete. Log-probabilities
            may come later.
        coefs: knob values that differ from the method's.
        options: choices that differ from the method's.

    Returns:
        The batch with Â in ``advantages``, the teacher's weight per token in ``kd_weight`` and the
        normaliser; ``old_logps`` is filled in where it is missing.

    Raises:
        ValueError: an unknown name, a value out of range, or an input that the method needs and the
            batch lacks.
    """
    found = resolve(method, coefs, options)
    _require(found, batch, found.needs & {"groups"})
    if batch.prepared_for is not None:
        raise ValueError(
            f"this batch is already prepared (for {batch.prepared_for!r}): prepare the"
            " unprepared batch"
        )
    row, choices = found.row, found.options
    batch = replace(batch, old_logps=batch.old).blank_padding()
    weighed = weigh_rollout(batch, choices, "groups" in row.needs, row.penalty in TRACES_APART)
    return replace(weighed, prepared_for=found.name, prepared_with=_prepared_with(choices))


@dataclass(frozen=True)
class Terms:
    """What each token contributes to the loss, (B, T) each; the mask is not applied yet."""

    importance: Tensor
    """π_θ/π_old, detached."""
    ratio: Tensor | None
    """ρ of the surrogate, detached; ``None``: the method has no policy gradient."""
    advantage: Tensor | None
    """A, detached."""
    surrogate: Surrogate | None
    """The policy term with its graph, and where it is cut."""
    bound: Tensor | None
    """Where a bound inside the ratio acts and A is not 0, of bool."""
    penalty: Tensor | None
    """The method's penalty, with its graph."""
    reference: Tensor | None
    """kl_coef·KL to the reference, with its graph."""

    @property
    def clipped(self) -> Tensor | None:
        """Where the surrogate's gradient is cut, of bool; ``None``: nothing is clipped."""
        cut = self.surrogate
        if cut is None or cut.low is None or cut.high is None or cut.cap is None:
            return None
        return cut.low | cut.high | cut.cap


def terms(
    method: str | ResolvedMethod,
    batch: TokenBatch,
    coefs: Coefs | None = None,
    options: Options | None = None,
) -> Terms:
    """Return what each token of a batch or micro-batch contributes. Prepares by itself.

    Args:
        method: see :func:`resolve`, as are ``coefs`` and ``options``.
        batch: see :class:`TokenBatch`.
        coefs: knob values that differ from the method's.
        options: choices that differ from the method's.

    Raises:
        ValueError: as :func:`prepare`, and for a batch prepared for another method.
    """
    found = resolve(method, coefs, options)
    return _terms(found, _ready(found, batch))


def _terms(method: ResolvedMethod, batch: TokenBatch) -> Terms:
    row, coefs, options = method.row, method.coefs, method.options
    importance = log_importance(batch, options["level"])
    credit, ratio, surrogate, bound = None, None, None, None
    if row.ratio is not None:
        assert row.advantage is not None
        credit = row.advantage(batch, coefs, options).detach()
        log_ratio, bound = row.ratio.compute(batch, importance, coefs)
        surrogate = row.surrogate.compute(log_ratio, credit, batch, coefs)
        surrogate = surrogate._replace(loss=_corrected(surrogate.loss, batch, coefs))
        ratio = log_ratio.detach().exp()
        bound = None if bound is None else bound & (credit != 0)
    penalty, reference = None, None
    if row.penalty is not None:
        penalty = row.penalty(batch, importance, coefs, options)
    if coefs.get("kl_coef"):
        reference = reference_penalty(batch, importance, coefs, options)
    moved = importance.detach().exp()
    return Terms(moved, ratio, credit, surrogate, bound, penalty, reference)


def _corrected(per_token: Tensor, batch: TokenBatch, coefs: Coefs) -> Tensor:
    """Weigh tokens by π_old/π_sampler, capped at ``importance_cap`` if that is on; traces by 1."""
    cap = coefs["importance_cap"]
    if cap is None or batch.sampler_logps is None:
        return per_token
    # not 0, or an infinite surrogate would become a NaN
    tiny = torch.finfo(per_token.dtype).tiny
    weight = (batch.old - batch.sampler_logps).exp().clamp(min=tiny, max=cap)
    if batch.off_policy is not None:
        weight = weight.masked_fill(batch.off_policy[:, None], 1.0)
    return per_token * weight


def token_loss(
    method: str | ResolvedMethod,
    batch: TokenBatch,
    coefs: Coefs | None = None,
    options: Options | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Compute the loss of a method on a batch or micro-batch. Pure; prepares by itself.

        loss = ( Σ mask·(−min(ρ·A, clip(ρ)·A) + P) ) / normaliser

    Args:
        method: see :func:`resolve`, as are ``coefs`` and ``options``.
        batch: see :class:`TokenBatch`.
        coefs: knob values that differ from the method's.
        options: choices that differ from the method's.

    Returns:
        The scalar loss with its graph, and detached statistics: ``loss/policy`` and ``loss/kd``
        (shares of this batch in the rollout's loss, any sign and ≥ 0 for k2), ``clip_ratio/low``,
        ``clip_ratio/high``, ``trrd/dead_frac``, ``trrd/bound_frac`` (shares of tokens in [0, 1]),
        ``ratio/max`` (the largest ρ of new to old policy, ≥ 0), ``kl_ref`` (nats, ≥ 0).

        The loss is +∞ where a number that nothing bounds is too large for the dtype (ρ with A < 0,
        k3 of a teacher that is far likelier). It is never NaN for finite log-probabilities. The
        guard ``loss`` leaves such an update out, or stops the run.

    Raises:
        ValueError: as :func:`prepare`, and for a batch prepared for another method.
    """
    found = resolve(method, coefs, options)
    batch = _ready(found, batch)
    parts, mask = _terms(found, batch), batch.mask

    def summed(per_token: Tensor | None) -> Tensor:
        if per_token is None:
            return batch.logps.new_zeros(())
        return aggregate(per_token, mask, found.options["aggregation"], batch.normalizer or 1.0)

    policy = summed(None if parts.surrogate is None else parts.surrogate.loss)
    penalty = summed(parts.penalty)
    stats = _statistics(parts, batch)
    stats["loss/policy"] = policy
    if parts.penalty is not None:
        stats["loss/kd"] = penalty
    loss = policy + penalty + summed(parts.reference)
    # together: a GPU's host waits once
    numbers = torch.stack([value.detach() for value in stats.values()]).tolist()
    return loss, dict(zip(stats, numbers, strict=True))


def _statistics(parts: Terms, batch: TokenBatch) -> dict[str, Tensor]:
    mask = batch.own_mask
    tokens = mask.sum().clamp(min=1)

    def share(where: Tensor) -> Tensor:
        return (where * mask).sum() / tokens

    ratios = parts.importance
    if batch.off_policy is not None:  # of a trace it may be infinite
        ratios = ratios.masked_fill(batch.off_policy[:, None], 0.0)
    ratios = ratios * mask
    stats = {"ratio/max": ratios.max() if mask.numel() else batch.logps.new_zeros(())}
    cut = parts.surrogate
    if cut is not None and cut.low is not None and cut.high is not None:
        stats |= {"clip_ratio/low": share(cut.low), "clip_ratio/high": share(cut.high)}
        if parts.bound is not None and parts.clipped is not None:
            stats["trrd/dead_frac"] = share(parts.clipped)
            stats["trrd/bound_frac"] = share(parts.bound)
    if batch.ref_logps is not None:
        stats["kl_ref"] = share(k3(batch.logps.detach(), batch.ref_logps))
    return stats


def advantage(
    method: str | ResolvedMethod,
    batch: TokenBatch,
    coefs: Coefs | None = None,
    options: Options | None = None,
) -> Tensor:
    """Return A, (B, T), detached: what the method credits each token with.

    Args: see :func:`terms`.

    Raises:
        ValueError: as :func:`terms`, and for a method without a policy gradient.
    """
    found = resolve(method, coefs, options)
    if found.row.advantage is None:
        raise ValueError(f"{found.name} has no advantage: it is not a policy-gradient method")
    return found.row.advantage(_ready(found, batch), found.coefs, found.options).detach()


def idle_rows(
    method: str | ResolvedMethod,
    batch: TokenBatch,
    coefs: Coefs | None = None,
    options: Options | None = None,
) -> Tensor:
    """Return which rows of a prepared batch have no gradient, whatever the model says: (B,) of
    bool.

    Where the reward alone speaks, these are the groups whose rewards are all equal.
    """
    found = resolve(method, coefs, options)
    teaches = found.row.penalty is not None or bool(found.coefs.get("kl_coef"))
    if found.row.advantage not in REWARD_ALONE or teaches or batch.advantages is None:
        return torch.zeros(len(batch.logps), dtype=torch.bool, device=batch.logps.device)
    return batch.advantages.reshape(len(batch.logps), -1).eq(0).all(1)


def _prepared_with(options: Options) -> dict[str, str | int | bool | None]:
    return {name: options[name] for name in USED_BY_PREPARE}


def _ready(method: ResolvedMethod, batch: TokenBatch) -> TokenBatch:
    """Return the batch as the rules read it: prepared for this method, complete, padding blanked,
    and the teacher silent where it has no weight.
    """
    if batch.prepared_for is None:
        batch = prepare(method, batch)
    if batch.prepared_for != method.name or batch.normalizer is None:
        raise ValueError(
            f"this batch was prepared for {batch.prepared_for!r}, not for {method.name!r}: prepare"
            " the unprepared batch again"
        )
    if batch.prepared_with != _prepared_with(method.options):
        raise ValueError(
            f"this batch was prepared with {batch.prepared_with}, not with"
            f" {_prepared_with(method.options)}: prepare it again"
        )
    _require(method, batch, method.needs - {"groups"})
    batch = batch.blank_padding()
    if batch.kd_weight is not None and method.coefs.get("kd_coef") == 0:
        batch = replace(batch, kd_weight=torch.zeros_like(batch.kd_weight))
    if batch.teacher_logps is not None and batch.kd_weight is not None:
        # where the teacher has no say it repeats the old policy, so that 0·inf is no NaN
        silent = batch.kd_weight == 0
        batch = replace(batch, teacher_logps=torch.where(silent, batch.old, batch.teacher_logps))
    return batch


def _require(method: ResolvedMethod, batch: TokenBatch, needs: set[str]) -> None:
    """Raise ValueError for an input that the method needs and the batch lacks."""
    if batch.advantages is not None:
        needs = needs - {"groups"}
    # the head that made the divergence has already seen the teacher
    if "divergence" in needs and method.row.penalty in HEAD_ALONE:
        needs = needs - {"teacher"}
    given = {
        "teacher": batch.teacher_logps is not None,
        "groups": batch.rewards is not None and batch.group_ids is not None,
        "reference": batch.ref_logps is not None,
        "divergence": batch.divergence is not None,
        "verdicts": batch.correct is not None,
        "entropy": batch.teacher_entropy is not None,
    }
    for need in sorted(needs):
        if not given.get(need, True):
            raise ValueError(f"{method.name} needs {WORDS[need]}")
    kd_mask = method.options["kd_mask"]
    if kd_mask != "none" and batch.correct is None:
        raise ValueError(
            f"{method.name} with kd_mask={kd_mask!r} needs correct: which completions are right"
        )
