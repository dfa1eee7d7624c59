"""Per-token log-probabilities, entropy and divergences from hidden states, in chunks: (B, T, V)
logits are never held.

Each chunk's logits are recomputed in the backward pass. Only positions that count are computed:
padding never reaches the head.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from rlkd_lab.models.language_model import LanguageModel
from rlkd_lab.models.sequences import Sequences
from rlkd_lab.objectives import divergence
from rlkd_lab.objectives.estimators import Divergence, topk_with_tail

CHUNK_MIB = 64
"""MiB of logits, in float32, held at a time."""
Head = tuple[Tensor, Tensor | None]
"""Weight (V, H) and bias (V,) of an output head, which is not trained."""


def hidden_states(lm: LanguageModel, sequences: Sequences) -> Tensor:
    """Return hidden states that predict the completion tokens that count, in row order: (N, H) with
    N = completion_mask.sum().
    """
    width = int(sequences.completion_mask.sum(1).max()) if len(sequences.completion_mask) else 0
    ids = torch.cat([sequences.prompt_ids, sequences.completion_ids[:, :width]], dim=1)
    mask = torch.cat([sequences.prompt_mask, sequences.completion_mask[:, :width]], dim=1)
    # Left padding must not shift the positions: the first real token has position 0 in every row.
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with lm.active():
        states = lm.backbone(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state
    start = sequences.prompt_ids.shape[1] - 1
    return states[:, start : start + width][sequences.completion_mask[:, :width].bool()]


def targets(sequences: Sequences) -> Tensor:
    """Return the completion tokens that count, (N,), in the order of :func:`hidden_states`."""
    return sequences.completion_ids[sequences.completion_mask.bool()]


def unflatten(values: Tensor, mask: Tensor) -> Tensor:
    """(N,) back to (B, T), 0 where the mask is 0; keeps the graph."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(
        mask.bool(), values
    )


def token_logps(
    lm: LanguageModel,
    hidden: Tensor,
    target_ids: Tensor,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """log softmax(logits / temperature) of the target tokens and the entropy there.

    Args:
        lm: whose head to use.
        hidden: (N, H) of :func:`hidden_states`.
        target_ids: (N,).
        temperature: > 0; divides the logits.
        chunk: tokens a chunk; by default what :data:`CHUNK_MIB` allows.

    Returns:
        Log-probabilities with gradient, (N,), nats, ≤ 0; and entropies without, (N,), nats, ≥ 0.
        Both float32 at least.
    """
    logps, entropy = _TokenLogps.apply(
        hidden, head_of(lm), target_ids, temperature, _chunk(lm, chunk)
    )
    return logps, entropy


class _TokenLogps(torch.autograd.Function):
    """log p(y) and entropy of z = (W·h + b) / T.

    With p = softmax(z): ∂log p(y)/∂h = Wᵀ·(1_y − p) / T, from logits that are computed again.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Head, ids: Tensor, temperature: float, chunk: int
    ) -> tuple[Tensor, Tensor]:
        kind = torch.promote_types(hidden.dtype, torch.float32)
        logps, entropy, normalizer = (hidden.new_empty(len(ids), dtype=kind) for _ in range(3))
        for rows in chunks(len(ids), chunk):
            logits = _scaled(hidden[rows], head, temperature)
            normalizer[rows] = torch.logsumexp(logits, dim=-1)
            logps[rows] = logits.gather(-1, ids[rows, None])[:, 0] - normalizer[rows]
            log_probs = logits.sub_(normalizer[rows, None])
            entropy[rows] = -log_probs.exp().mul_(log_probs).sum(-1)
        ctx.save_for_backward(hidden, ids, normalizer)
        ctx.head, ctx.temperature, ctx.chunk = head, temperature, chunk
        ctx.mark_non_differentiable(entropy)
        return logps, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden, ids, normalizer = ctx.saved_tensors
        to_hidden = torch.empty_like(hidden)
        for rows in chunks(len(ids), ctx.chunk):
            share = gradient[rows, None] / ctx.temperature
            probs = (
                _scaled(hidden[rows], ctx.head, ctx.temperature).sub_(normalizer[rows, None]).exp_()
            )
            to_logits = probs.mul_(-share).scatter_add_(-1, ids[rows, None], share)
            to_hidden[rows] = (to_logits.to(ctx.head[0].dtype) @ ctx.head[0]).to(hidden.dtype)
        return to_hidden, None, None, None, None


class _TokenKL(torch.autograd.Function):
    """KL between p = softmax((W·h + b) / T) and the teacher's q. Of KL(p‖q) = D the gradient by the
    logits is p·(log p − log q − D), of KL(q‖p) it is p − q; both over T. The logits of both are
    computed again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Head,
        teacher_hidden: Tensor,
        teacher_head: Head,
        reverse: bool,
        temperature: float,
        chunk: int,
    ) -> Tensor:
        found = hidden.new_empty(
            len(hidden), dtype=torch.promote_types(hidden.dtype, torch.float32)
        )
        size = min(len(head[0]), len(teacher_head[0]))
        for rows in chunks(len(hidden), chunk):
            log_p = _log_softmax_(_scaled(hidden[rows], head, temperature, size))
            log_q = _log_softmax_(_scaled(teacher_hidden[rows], teacher_head, temperature, size))
            if reverse:
                gap = log_q.neg_().add_(log_p)
                found[rows] = log_p.exp_().mul_(gap).sum(-1)
            else:
                gap = log_p.neg_().add_(log_q)
                found[rows] = log_q.exp_().mul_(gap).sum(-1)
        ctx.save_for_backward(hidden, teacher_hidden, found)
        ctx.heads, ctx.settings = (head, teacher_head), (reverse, temperature, chunk, size)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, teacher_hidden, found = ctx.saved_tensors
        head, teacher_head = ctx.heads
        reverse, temperature, chunk, size = ctx.settings
        to_hidden = torch.empty_like(hidden)
        for rows in chunks(len(hidden), chunk):
            log_p = _log_softmax_(_scaled(hidden[rows], head, temperature, size))
            log_q = _log_softmax_(_scaled(teacher_hidden[rows], teacher_head, temperature, size))
            if reverse:
                gap = log_q.neg_().add_(log_p).sub_(found[rows, None])
                to_logits = log_p.exp_().mul_(gap)
            else:
                to_logits = log_p.exp_().sub_(log_q.exp_())
            to_logits.mul_(gradient[rows, None] / temperature)
            to_hidden[rows] = (to_logits.to(head[0].dtype) @ head[0][:size]).to(hidden.dtype)
        return to_hidden, None, None, None, None, None, None


def token_divergence(
    lm: LanguageModel,
    hidden: Tensor,
    teacher: LanguageModel,
    teacher_hidden: Tensor,
    kind: Divergence = "reverse",
    *,
    weight: float = 0.5,
    topk: int | None = None,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> Tensor:
    """Divergence between the next-token distributions of policy and teacher, over the vocabulary or
    the teacher's top k with a tail bucket.

    Vocabularies padded to different sizes are compared on their common prefix.

    Returns:
        (N,), nats, ≥ 0, with gradient to ``hidden``.
    """
    if topk is None and kind in ("reverse", "forward"):
        return _TokenKL.apply(
            hidden,
            head_of(lm),
            teacher_hidden,
            head_of(teacher),
            kind == "reverse",
            temperature,
            _chunk(lm, chunk),
        )
    size = min(vocabulary(lm), vocabulary(teacher))

    def one(states: Tensor, teacher_states: Tensor) -> Tensor:
        log_p = _log_probs(lm, states, temperature, size)
        log_q = _log_probs(teacher, teacher_states, temperature, size)
        if topk is not None:
            log_p, log_q = topk_with_tail(log_p, log_q, topk)
        return divergence(kind, log_p, log_q, weight)

    rows = chunks(len(hidden), _chunk(lm, chunk))
    pieces = [_recomputed(one, hidden[part], teacher_hidden[part]) for part in rows]
    return torch.cat(pieces) if pieces else hidden.sum(-1)


@torch.no_grad()
def measured_divergences(
    lm: LanguageModel,
    hidden: Tensor,
    teacher: LanguageModel,
    teacher_hidden: Tensor,
    kinds: Sequence[Divergence],
    temperatures: Iterable[float],
    chunk: int | None = None,
) -> dict[tuple[Divergence, float], Tensor]:
    """Return what :func:`token_divergence` gives, (N,) each, by kind and temperature and without
    gradient: the logits are computed once for all of them.
    """
    size = min(vocabulary(lm), vocabulary(teacher))
    found = {
        (kind, temperature): hidden.new_empty(len(hidden), dtype=torch.float32)
        for temperature in temperatures
        for kind in kinds
    }
    for rows in chunks(len(hidden), _chunk(lm, chunk)):
        ours, theirs = (
            _logits(states[rows], head_of(one), size)
            for one, states in ((lm, hidden), (teacher, teacher_hidden))
        )
        for temperature in temperatures:
            log_p, log_q = (
                torch.log_softmax(ours / temperature, dim=-1),
                torch.log_softmax(theirs / temperature, dim=-1),
            )
            for kind in kinds:
                found[kind, temperature][rows] = divergence(kind, log_p, log_q).float()
    return found


def top_alternatives(
    lm: LanguageModel, hidden: Tensor, k: int, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return the ``k`` likeliest next tokens: ids and log-probabilities, each (N, k)."""
    with torch.no_grad():
        pieces = [
            _log_probs(lm, hidden[rows], temperature).topk(k, dim=-1)
            for rows in chunks(len(hidden), _chunk(lm, None))
        ]
    if not pieces:
        return torch.zeros(0, k, dtype=torch.long, device=hidden.device), torch.zeros(
            0, k, device=hidden.device
        )
    return torch.cat([p.indices for p in pieces]), torch.cat([p.values for p in pieces])


def policy_logps(
    lm: LanguageModel, sequences: Sequences, temperature: float = 1.0, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return log-probabilities and entropies of the completion tokens, (B, T) each, 0 where the
    mask is 0.
    """
    logps, entropy = token_logps(
        lm, hidden_states(lm, sequences), targets(sequences), temperature, chunk
    )
    return unflatten(logps, sequences.completion_mask), unflatten(
        entropy, sequences.completion_mask
    )


def vocabulary(lm: LanguageModel) -> int:
    """Return rows of the output head, padding included."""
    weight: Any = lm.head.weight
    return int(weight.shape[0])


def head_of(lm: LanguageModel) -> Head:
    """Return weight and bias of the output head."""
    head: Any = lm.head
    return head.weight, head.bias


def logits_of(states: Tensor, head: Head) -> Tensor:
    """W·h + b in float32 at least: a softmax in 16 bit would bias training.

    Where the device can, the sums of a 16-bit product are not rounded to 16 bit on the way.
    """
    weight, bias = head
    if _sums_stay_wide(weight.device.type, weight.dtype):
        values = _WideProduct.apply(states.to(weight.dtype), weight)
        return values if bias is None else values + bias
    values = linear(states.to(weight.dtype), weight, bias)
    return values if values.dtype == torch.float64 else values.float()


@functools.cache
def _sums_stay_wide(device: str, dtype: torch.dtype) -> bool:
    """Return whether a 16-bit product can be had in float32: on CUDA, by version of PyTorch."""
    if device != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    few = torch.zeros(16, 16, device=device, dtype=dtype)
    try:
        return torch.mm(few, few, out_dtype=torch.float32).dtype == torch.float32
    except (NotImplementedError, RuntimeError, TypeError):
        return False


class _WideProduct(torch.autograd.Function):
    """h·Wᵀ in float32 of 16-bit h and W; W is not trained."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        flat = states.reshape(-1, states.shape[-1])
        return torch.mm(flat, weight.T, out_dtype=torch.float32).view(*states.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return gradient.to(weight.dtype) @ weight, None


def _logits(states: Tensor, head: Head, size: int | None = None) -> Tensor:
    return logits_of(states, head)[..., :size]


def _scaled(states: Tensor, head: Head, temperature: float, size: int | None = None) -> Tensor:
    return _logits(states, head, size).div_(
        temperature
    )  # nobody else holds what a product gives back


def _log_softmax_(logits: Tensor) -> Tensor:
    """In place."""
    return logits.sub_(torch.logsumexp(logits, dim=-1, keepdim=True))


def _log_probs(
    lm: LanguageModel, states: Tensor, temperature: float, size: int | None = None
) -> Tensor:
    return torch.log_softmax(_logits(states, head_of(lm), size) / temperature, dim=-1)


def _chunk(lm: LanguageModel, chunk: int | None) -> int:
    return chunk or chunk_of(CHUNK_MIB, vocabulary(lm))


def chunk_of(mib: int, vocabulary: int) -> int:
    """Tokens whose logits in float32 take so many MiB; at least 16."""
    return max(16, mib * 2**18 // vocabulary)


def chunks(tokens: int, size: int) -> Iterator[slice]:
    """Yield the places of at most ``size`` tokens each."""
    return (slice(start, min(start + size, tokens)) for start in range(0, tokens, size))


def _recomputed(function, *inputs: Tensor):
    if torch.is_grad_enabled() and inputs[0].requires_grad:
        return checkpoint(function, *inputs, use_reentrant=False)
    return function(*inputs)
