"""The engine ``fast``: a batched sampler of our own.

Every prompt is prefilled once for its whole group, finished sequences leave the batch, and it may
sample from a dequantised copy of the base, whose log-probabilities are checked against the training
forward in the first steps of a run, through a lean decoder where the model has a known shape. Left
out: paged caches and continuous batching, which are transformers'
(:mod:`rlkd_lab.rollouts.library`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from rlkd_lab.models.logprobs import logits_of
from rlkd_lab.rollouts.request import Request, Sampling, Stopped

LOOK = {"cpu": 1}
"""Tokens between two looks at which rows have ended, by device.

On a GPU the host waits for the answer, and what ended rows compute until then costs little.
"""
LOOK_ELSEWHERE = 16


def _filtered(logits: Tensor, sampling: Sampling) -> Tensor:
    """Return log-probabilities after temperature, top-k and top-p, (B, V) float32; cut tokens are
    −inf.
    """
    scaled = logits.float() if sampling.temperature == 1 else logits.float() / sampling.temperature
    log_probs = torch.log_softmax(scaled, dim=-1)
    if sampling.top_k:
        lowest = log_probs.topk(min(sampling.top_k, log_probs.shape[-1]), dim=-1).values[:, -1:]
        log_probs = log_probs.masked_fill(log_probs < lowest, -torch.inf)
    if sampling.top_p < 1:
        ordered, index = log_probs.softmax(-1).sort(dim=-1, descending=True)
        # the token that crosses the threshold stays
        cut = (ordered.cumsum(-1) - ordered) >= sampling.top_p
        log_probs = log_probs.masked_fill(torch.zeros_like(cut).scatter(-1, index, cut), -torch.inf)
    return (
        torch.log_softmax(log_probs, dim=-1) if sampling.top_k or sampling.top_p < 1 else log_probs
    )


def _pick(log_probs: Tensor, noise: Tensor) -> Tensor:
    """Return the token at which the cumulated probability passes the noise, uniform on [0, 1): (B,
    V), (B, 1) → (B, 1). It is never one with probability 0. Where nothing is a number, it is any.
    """
    total = log_probs.exp().cumsum(-1)
    # the last token that adds anything
    last = torch.searchsorted(total, total[:, -1:].contiguous()).clamp_(max=total.shape[-1] - 1)
    return torch.minimum(torch.searchsorted(total, noise * total[:, -1:], right=True), last)


class OwnForward:
    """Decoding through the model's own forward: any architecture, 4-bit layers and adapters
    included. The same two methods as :class:`Decoder`.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def prefill(
        self, prompt_ids: Tensor, prompt_mask: Tensor, group_size: int, room: int
    ) -> tuple[GrowingCache, Tensor]:
        positions = (prompt_mask.cumsum(1) - 1).clamp(min=0)
        cache = GrowingCache(
            DynamicCache(config=self.model.config), prompt_mask.repeat_interleave(group_size, 0)
        )
        logits = self._logits(
            input_ids=prompt_ids,
            attention_mask=prompt_mask,
            position_ids=positions,
            past_key_values=cache.states,
            use_cache=True,
        )
        cache.states.batch_repeat_interleave(group_size)
        return cache, logits.repeat_interleave(group_size, 0)

    def step(self, token: Tensor, positions: Tensor, cache: GrowingCache) -> Tensor:
        cache.mask = torch.cat([cache.mask, torch.ones_like(cache.mask[:, :1])], dim=1)
        return self._logits(
            input_ids=token[:, None],
            attention_mask=cache.mask,
            position_ids=positions[:, None],
            past_key_values=cache.states,
            use_cache=True,
        )

    def _logits(self, **inputs: Any) -> Tensor:
        """Return those of the last column, (B, V)."""
        states = self.model.base_model(**inputs).last_hidden_state[:, -1]
        head = self.model.get_output_embeddings()
        if isinstance(head, nn.Linear):
            return logits_of(states, (head.weight, head.bias))
        return head(states)  # in peft's wrapping


@dataclass
class GrowingCache:
    """transformers' cache and the mask over its columns, (B, columns)."""

    states: DynamicCache
    mask: Tensor

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these."""
        self.states.batch_select_indices(rows)
        self.mask = self.mask[rows]


def fast(request: Request) -> tuple[Tensor, Tensor]:
    """Our own sampler, as an :class:`~rlkd_lab.rollouts.request.Engine`.

    A completion follows from its noise and its prompt: how many are sampled at once, and by how
    many processes, changes nothing but rounding.
    """
    ids, logps = zip(*map(_sample, request.parts()), strict=True)
    return torch.cat(ids), torch.cat(logps)


def _sample(request: Request) -> tuple[Tensor, Tensor]:
    lm, sampling, rows, dense = request.lm, request.sampling, request.rows, request.dense
    limit, device = sampling.max_new_tokens, lm.device
    ids = torch.full((rows, limit), lm.tokenizer.pad_token_id, device=device)
    logps = torch.zeros(rows, limit, device=device)
    eos = torch.tensor(sorted(lm.eos_ids), device=device)
    every = LOOK.get(device.type, LOOK_ELSEWHERE)
    if dense is not None and dense.decoder is not None:
        decoder: Any = dense.decoder
    else:
        decoder = OwnForward(lm.causal_lm if dense is None else dense.model)
    cache, logits = decoder.prefill(
        request.prompt_ids, request.prompt_mask, request.group_size, limit
    )
    positions = request.prompt_mask.sum(1).repeat_interleave(request.group_size, 0)
    # which row of the result each row of the shrinking batch is
    alive = torch.arange(rows, device=device)
    running = torch.ones_like(alive, dtype=torch.bool)
    for column in range(limit):
        if request.stop():
            raise Stopped("stopped between two tokens of a rollout")
        log_probs = _filtered(logits, sampling)
        token = _pick(log_probs, request.noise[alive, column, None])
        ids[alive, column] = token[:, 0]
        logps[alive, column] = log_probs.gather(-1, token)[:, 0]
        if (column + 1) % every == 0 or column + 1 == limit:
            news = slice(column // every * every, column + 1)
            running = running & ~torch.isin(ids[alive, news], eos).any(1)
            finite = logits.isfinite().all() & logps[alive, news].isfinite().all()
            left, sound = torch.stack([running.sum(), finite.long()]).tolist()
            if not sound:
                raise FloatingPointError(
                    f"the logits of {lm.source} are not finite: training has diverged; lower"
                    " learning_rate, or bound the ratio"
                )
            if left == 0 or column + 1 == limit:
                break
            # Copying the cache costs about a decoding step, so it waits until an eighth of the
            # batch is finished.
            if left <= len(running) * 7 // 8:
                keep = (~running).int().argsort(stable=True)[:left]
                cache.keep(keep)
                alive, positions, token, running = (
                    each[keep] for each in (alive, positions, token, running)
                )
        logits = decoder.step(token[:, 0], positions, cache)
        positions = positions + 1
    return ids, logps
