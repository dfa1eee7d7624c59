"""Per-token log-probabilities, entropy and divergences from hidden states, in chunks: (B, T, V) logits are never held.

Each chunk's logits are recomputed in the backward pass. Only positions that count are computed: padding never reaches the head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rlkd_lab.models.loading import LanguageModel
from rlkd_lab.objectives import divergence, topk_with_tail
from rlkd_lab.objectives.estimators import Divergence

CHUNK_ENTRIES = 2**24
"""Logits held at a time: 2²⁴ in float32 are 64 MiB."""


@dataclass(frozen=True)
class Sequences:
    """Prompts, padded left, and completions, padded right."""

    prompt_ids: Tensor
    """(B, P)."""
    prompt_mask: Tensor
    """(B, P): 1 on tokens."""
    completion_ids: Tensor
    """(B, T)."""
    completion_mask: Tensor
    """(B, T): 1 on tokens up to and including the end of sequence."""

    def select(self, rows: Tensor | slice) -> Sequences:
        """Some rows, without columns that are padding in all of them."""
        prompt_mask, completion_mask = self.prompt_mask[rows], self.completion_mask[rows]
        first = self.prompt_mask.shape[1] - int(prompt_mask.sum(1).max())
        return Sequences(self.prompt_ids[rows][:, first:], prompt_mask[:, first:], self.completion_ids[rows], completion_mask)


def hidden_states(lm: LanguageModel, sequences: Sequences) -> Tensor:
    """Hidden states that predict the completion tokens that count, in row order: (N, H) with N = completion_mask.sum()."""
    width = int(sequences.completion_mask.sum(1).max()) if sequences.completion_mask.any() else 0
    ids = torch.cat([sequences.prompt_ids, sequences.completion_ids[:, :width]], dim=1)
    mask = torch.cat([sequences.prompt_mask, sequences.completion_mask[:, :width]], dim=1)
    # Left padding must not shift the positions: the first real token has position 0 in every row.
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with lm.active():
        states = lm.backbone(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).last_hidden_state
    start = sequences.prompt_ids.shape[1] - 1
    return states[:, start : start + width][sequences.completion_mask[:, :width].bool()]


def targets(sequences: Sequences) -> Tensor:
    """The completion tokens that count, (N,), in the order of :func:`hidden_states`."""
    return sequences.completion_ids[sequences.completion_mask.bool()]


def unflatten(values: Tensor, mask: Tensor) -> Tensor:
    """(N,) back to (B, T), 0 where the mask is 0; keeps the graph."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask.bool(), values)


def token_logps(lm: LanguageModel, hidden: Tensor, target_ids: Tensor, temperature: float = 1.0, chunk: int | None = None) -> tuple[Tensor, Tensor]:
    """log softmax(logits / temperature) of the target tokens and the entropy there.

    Args:
        lm: whose head to use.
        hidden: (N, H) of :func:`hidden_states`.
        target_ids: (N,).
        temperature: > 0; divides the logits.
        chunk: tokens a chunk; by default what :data:`CHUNK_ENTRIES` allows.

    Returns:
        Log-probabilities with gradient, (N,), nats, ≤ 0; and entropies without, (N,), nats, ≥ 0. Both float32 at least.
    """

    def one(states: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = _log_probs(lm, states, temperature)
        with torch.no_grad():
            entropy = -(log_probs.exp() * log_probs).sum(-1)
        return log_probs.gather(-1, ids[:, None]).squeeze(-1), entropy

    pieces = [_recomputed(one, hidden[rows], target_ids[rows]) for rows in _chunks(lm, len(target_ids), chunk)]
    if not pieces:
        return hidden.sum(-1), hidden.detach().sum(-1)
    return torch.cat([a for a, _ in pieces]), torch.cat([b for _, b in pieces])


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
    """Divergence between the next-token distributions of policy and teacher, over the vocabulary or the teacher's top k with a tail bucket.

    Vocabularies padded to different sizes are compared on their common prefix.

    Returns:
        (N,), nats, ≥ 0, with gradient to ``hidden``.
    """
    size = min(vocabulary(lm), vocabulary(teacher))

    def one(states: Tensor, teacher_states: Tensor) -> Tensor:
        log_p = _log_probs(lm, states, temperature, size)
        log_q = _log_probs(teacher, teacher_states, temperature, size)
        if topk is not None:
            log_p, log_q = topk_with_tail(log_p, log_q, topk)
        return divergence(kind, log_p, log_q, weight)

    rows = _chunks(lm, len(hidden), chunk)
    pieces = [_recomputed(one, hidden[part], teacher_hidden[part]) for part in rows]
    return torch.cat(pieces) if pieces else hidden.sum(-1)


def top_alternatives(lm: LanguageModel, hidden: Tensor, k: int, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """The ``k`` likeliest next tokens: ids and log-probabilities, each (N, k)."""
    with torch.no_grad():
        pieces = [_log_probs(lm, hidden[rows], temperature).topk(k, dim=-1) for rows in _chunks(lm, len(hidden), None)]
    if not pieces:
        return torch.zeros(0, k, dtype=torch.long, device=hidden.device), torch.zeros(0, k, device=hidden.device)
    return torch.cat([p.indices for p in pieces]), torch.cat([p.values for p in pieces])


def policy_logps(lm: LanguageModel, sequences: Sequences, temperature: float = 1.0, chunk: int | None = None) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of the completion tokens, (B, T) each, 0 where the mask is 0."""
    logps, entropy = token_logps(lm, hidden_states(lm, sequences), targets(sequences), temperature, chunk)
    return unflatten(logps, sequences.completion_mask), unflatten(entropy, sequences.completion_mask)


def vocabulary(lm: LanguageModel) -> int:
    """Rows of the output head, padding included."""
    weight: Any = lm.head.weight
    return int(weight.shape[0])


def _log_probs(lm: LanguageModel, states: Tensor, temperature: float, size: int | None = None) -> Tensor:
    head: Any = lm.head
    logits = head(states.to(head.weight.dtype))[..., :size]
    # a softmax in 16 bit would bias training
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return torch.log_softmax(logits / temperature, dim=-1)


def _chunks(lm: LanguageModel, tokens: int, chunk: int | None) -> Iterator[slice]:
    size = chunk or max(16, CHUNK_ENTRIES // vocabulary(lm))
    return (slice(start, min(start + size, tokens)) for start in range(0, tokens, size))


def _recomputed(function, *inputs: Tensor):
    if torch.is_grad_enabled() and inputs[0].requires_grad:
        return checkpoint(function, *inputs, use_reentrant=False)
    return function(*inputs)
