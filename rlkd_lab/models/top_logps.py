"""The k likeliest tokens of a teacher and a bucket of all others: taken once, compared later.

Nothing of the teacher is needed then but its k log-probabilities a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlkd_lab.models.language_model import LanguageModel
from rlkd_lab.models.logprobs import (
    CHUNK_MIB,
    Head,
    chunk_of,
    chunks,
    head_of,
    logits_of,
    token_logps,
    vocabulary,
)
from rlkd_lab.objectives import divergence
from rlkd_lab.objectives.estimators import Divergence

UNDERFLOW = -60.0
"""Nats below which the sum of probabilities loses digits, and that of logarithms is taken."""


@dataclass(frozen=True)
class Top:
    """Holds what a teacher said of N tokens, likeliest first."""

    ids: Tensor
    """(N, k), whole numbers."""
    logps: Tensor
    """(N, k + 1), nats: of these tokens, and of all others together."""
    vocabulary: int
    """Tokens that the teacher chose from."""

    def cut(self, k: int) -> Top:
        """Return the ``k`` likeliest alone. The others join the bucket."""
        tail = torch.logsumexp(self.logps[:, k:], dim=-1, keepdim=True)
        return Top(self.ids[:, :k], torch.cat([self.logps[:, :k], tail], dim=-1), self.vocabulary)


def joined_top(parts: Sequence[Top]) -> Top:
    """Return several as one."""
    ids, logps = torch.cat([top.ids for top in parts]), torch.cat([top.logps for top in parts])
    return Top(ids, logps, parts[0].vocabulary)


@torch.no_grad()
def top_of(lm: LanguageModel, hidden: Tensor, k: int, size: int) -> Top:
    """Return the ``k`` likeliest of the first ``size`` tokens, at temperature 1.

    Args:
        lm: whose head to use.
        hidden: (N, H) of :func:`~rlkd_lab.models.logprobs.hidden_states`.
        k: at most ``size``.
        size: tokens that student and teacher have in common.
    """
    ids = torch.empty(len(hidden), k, dtype=torch.long, device=hidden.device)
    logps = torch.empty(len(hidden), k + 1, device=hidden.device)
    for rows in chunks(len(hidden), chunk_of(CHUNK_MIB, vocabulary(lm))):
        log_q = logits_of(hidden[rows], head_of(lm))[:, :size].log_softmax(-1)
        logps[rows, :k], ids[rows] = log_q.topk(k, dim=-1)
        logps[rows, k] = log_q.scatter_(-1, ids[rows], -torch.inf).logsumexp(-1)
    return Top(ids, logps, size)


class _Against(torch.autograd.Function):
    """Log p(y) and entropy of z = W·h + b, and log-probabilities of a top k and all others.

    With p = softmax(z), ∂log p_i/∂z = 1_i − p for a token i. For the others together, ∂log p_o/∂z =
    p·1[others]/p_o − p. The logits are computed once on each way.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Head, targets: Tensor, ids: Tensor, size: int, chunk: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        kind = torch.promote_types(hidden.dtype, torch.float32)
        logps, entropy, shift = (hidden.new_empty(len(ids), dtype=kind) for _ in range(3))
        buckets = hidden.new_empty(len(ids), ids.shape[1] + 1, dtype=kind)
        for rows in chunks(len(ids), chunk):
            logits = logits_of(hidden[rows], head)
            normalizer = logits.logsumexp(-1)
            logps[rows] = logits.gather(-1, targets[rows, None])[:, 0] - normalizer
            log_probs = logits.sub_(normalizer[:, None])
            top = buckets[rows, :-1] = log_probs.gather(-1, ids[rows])
            # the tail is summed: as 1 − top it would lose all digits where the top holds nearly all
            rest = log_probs.exp().scatter_(-1, ids[rows], 0.0)
            tail = rest[:, :size].sum(-1).log_()
            entropy[rows] = -(top.exp() * top).sum(-1) - rest.mul_(log_probs).sum(-1)
            if bool((few := tail < UNDERFLOW).any()):
                others = log_probs[few, :size].scatter_(-1, ids[rows][few], -torch.inf)
                tail[few] = others.logsumexp(-1)
            buckets[rows, -1] = tail
            shift[rows] = tail + normalizer
        buckets -= buckets.logsumexp(-1, keepdim=True)
        ctx.save_for_backward(hidden, targets, ids, buckets, shift)
        ctx.head, ctx.size, ctx.chunk = head, size, chunk
        ctx.mark_non_differentiable(entropy)
        ctx.set_materialize_grads(False)
        return logps, entropy, buckets

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, to_logps: Tensor | None, _: Tensor | None, to_buckets: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        hidden, targets, ids, buckets, shift = ctx.saved_tensors
        given = torch.zeros_like(buckets) if to_buckets is None else to_buckets
        share = given - buckets.exp() * given.sum(-1, keepdim=True)
        to_hidden, weight = torch.empty_like(hidden), ctx.head[0]
        for rows in chunks(len(ids), ctx.chunk):
            logits = logits_of(hidden[rows], ctx.head)
            own = None
            if to_logps is not None:
                own = logits.softmax(-1).mul_(-to_logps[rows, None])
                own.scatter_add_(-1, targets[rows, None], to_logps[rows, None])
            logits[:, ctx.size :] = 0.0
            known = logits[:, : ctx.size]
            if ids.shape[1] < ctx.size:
                known.sub_(shift[rows, None]).exp_().mul_(share[rows, -1:])
            known.scatter_(-1, ids[rows], share[rows, :-1])
            to_logits = logits if own is None else own.add_(logits)
            to_hidden[rows] = (to_logits.to(weight.dtype) @ weight).to(hidden.dtype)
        return to_hidden, None, None, None, None, None


def logps_and_top(
    lm: LanguageModel,
    hidden: Tensor,
    target_ids: Tensor,
    top: Top | None,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return what a policy says of its tokens and, at temperature 1, of a stored teacher's.

    Args:
        lm: the policy, whose head to use.
        hidden: (N, H) of :func:`~rlkd_lab.models.logprobs.hidden_states`.
        target_ids: (N,).
        top: of the teacher at the same places, if there is one.
        temperature: without a stored teacher.
        chunk: tokens a chunk.

    Returns:
        Log-probabilities and entropies as :func:`~rlkd_lab.models.logprobs.token_logps` gives them,
        and log-probabilities of the teacher's k tokens and of all others together, (N, k + 1), with
        gradient.
    """
    if top is None:
        return *token_logps(lm, hidden, target_ids, temperature, chunk), None
    chunk = chunk or chunk_of(CHUNK_MIB, vocabulary(lm))
    ids = top.ids.to(hidden.device, torch.long)
    logps, entropy, buckets = _Against.apply(
        hidden, head_of(lm), target_ids, ids, top.vocabulary, chunk
    )
    return logps, entropy, buckets


def top_divergence(buckets: Tensor, top: Top, kind: Divergence, weight: float = 0.5) -> Tensor:
    """Return the divergence from a policy to a stored teacher.

    It is :func:`~rlkd_lab.models.logprobs.token_divergence` with as many tokens in ``topk``.

    Args:
        buckets: of :func:`logps_and_top`.
        top: of the teacher.
        kind: of the divergence.
        weight: of ``jsd``.

    Returns:
        (N,), nats, ≥ 0, with gradient.
    """
    theirs = top.logps.to(buckets)
    if top.ids.shape[1] == top.vocabulary:  # no other token is left
        buckets, theirs = buckets[:, :-1], theirs[:, :-1]
    return divergence(kind, buckets, theirs, weight)
