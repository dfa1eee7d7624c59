"""The k likeliest tokens of a teacher and a bucket of all others: taken once, compared later.

Nothing of the teacher is needed then but its k log-probabilities a token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlkd_lab.models.language_model import LanguageModel
from rlkd_lab.models.logprobs import CHUNK_MIB, Head, chunk_of, logits_of, vocabulary
from rlkd_lab.objectives import divergence
from rlkd_lab.objectives.estimators import Divergence


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


def joined_top(parts: Sequence[Top], device: torch.device) -> Top:
    """Return several as one, on a device."""
    ids = torch.cat([top.ids for top in parts]).to(device, torch.long)
    return Top(ids, torch.cat([top.logps for top in parts]).to(device), parts[0].vocabulary)


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
    for rows in _slices(len(hidden), chunk_of(CHUNK_MIB, vocabulary(lm))):
        log_q = logits_of(hidden[rows], _head(lm))[:, :size].log_softmax(-1)
        logps[rows, :k], ids[rows] = log_q.topk(k, dim=-1)
        # the tail is summed: as 1 − top it would lose all digits where the top holds nearly all
        logps[rows, k] = log_q.scatter_(-1, ids[rows], -torch.inf).logsumexp(-1)
    return Top(ids, logps, size)


def _head(lm: LanguageModel) -> Head:
    head: Any = lm.head
    return head.weight, head.bias


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))


class _BucketLogps(torch.autograd.Function):
    """Log-probabilities of given tokens, and in the last column of all others together.

    Of token i, ∂log p_i/∂z = 1_i − p. Of the others, ∂log p_o/∂z = p·1[others]/p_o − p. The logits
    z are computed again.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Head, ids: Tensor, size: int, chunk: int) -> Tensor:
        kind = torch.promote_types(hidden.dtype, torch.float32)
        found = hidden.new_empty(len(ids), ids.shape[1] + 1, dtype=kind)
        for rows in _slices(len(ids), chunk):
            logits = logits_of(hidden[rows], head)[:, :size]
            found[rows, :-1] = logits.gather(-1, ids[rows])
            found[rows, -1] = logits.scatter_(-1, ids[rows], -torch.inf).logsumexp(-1)
        others = found[:, -1].clone()
        found -= found.logsumexp(-1, keepdim=True)
        ctx.save_for_backward(hidden, ids, found, others)
        ctx.head, ctx.size, ctx.chunk = head, size, chunk
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, ids, found, others = ctx.saved_tensors
        to_buckets = gradient - found.exp() * gradient.sum(-1, keepdim=True)
        whole = ids.shape[1] == ctx.size
        to_hidden = torch.empty_like(hidden)
        for rows in _slices(len(ids), ctx.chunk):
            logits = logits_of(hidden[rows], ctx.head)[:, : ctx.size]
            shares = logits.zero_() if whole else logits.sub_(others[rows, None]).exp_()
            to_logits = shares.mul_(to_buckets[rows, -1:])
            to_logits.scatter_(-1, ids[rows], to_buckets[rows, :-1])
            weight = ctx.head[0][: ctx.size]
            to_hidden[rows] = (to_logits.to(weight.dtype) @ weight).to(hidden.dtype)
        return to_hidden, None, None, None, None


def top_divergence(
    lm: LanguageModel,
    hidden: Tensor,
    top: Top,
    kind: Divergence,
    *,
    weight: float = 0.5,
    chunk: int | None = None,
) -> Tensor:
    """Divergence from a policy to a stored teacher, at temperature 1.

    It is :func:`~rlkd_lab.models.logprobs.token_divergence` with as many tokens in ``topk``.

    Returns:
        (N,), nats, ≥ 0, with gradient to ``hidden``.
    """
    chunk = chunk or chunk_of(CHUNK_MIB, vocabulary(lm))
    ours = _BucketLogps.apply(hidden, _head(lm), top.ids, top.vocabulary, chunk)
    theirs = top.logps
    if top.ids.shape[1] == top.vocabulary:  # no other token is left
        ours, theirs = ours[:, :-1], theirs[:, :-1]
    return divergence(kind, ours, theirs, weight)
