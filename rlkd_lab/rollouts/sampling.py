"""Rollouts: completions sampled from a model, by one of two engines behind one function.

``hf`` is transformers' ``generate``. ``fast`` is a batched sampler of our own: every prompt is prefilled once for its whole group, finished sequences leave
the batch, and it may sample from a dequantised copy of the base, whose log-probabilities are checked against the training forward in every step, through a
lean decoder where the model has a known shape.
Left out: paged caches and continuous batching.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, GenerationConfig

from rlkd_lab.models import LanguageModel, Sequences, processes
from rlkd_lab.rollouts.twin import DenseTwin

Engine = Literal["fast", "hf"]


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn. ``top_p`` and ``top_k`` bias the policy ratio by the mass they cut: leave them off for training."""

    temperature: float = 1.0
    max_new_tokens: int = 96
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        if not self.temperature > 0 or self.max_new_tokens < 1 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError(f"temperature > 0, max_new_tokens ≥ 1, 0 < top_p ≤ 1 and top_k ≥ 0 (0 is off) are needed; got {self}")


@dataclass(frozen=True)
class Completions:
    """Sampled completions; rows are grouped by prompt, ``group_size`` in a row."""

    sequences: Sequences
    """Prompts (padded left) and completions (padded right), one row a completion."""
    sampler_logps: Tensor | None
    """(B, T): log-probabilities as the sampler drew them (after temperature and top-p/top-k), 0 where the mask is 0; ``hf`` does not report them."""
    texts: list[str]
    """Decoded without special tokens."""
    finished: Tensor
    """(B,) of bool: ended by an end-of-sequence token, not by the length limit."""


class Stopped(Exception):
    """Raised between two tokens when the stop flag is set."""


def sample(
    lm: LanguageModel,
    prompts: Sequence[str],
    group_size: int,
    sampling: Sampling,
    generator: torch.Generator,
    stop: Callable[[], bool] = lambda: False,
    engine: Engine = "fast",
    twin: DenseTwin | None = None,
    at_once: int = 0,
) -> Completions:
    """``group_size`` completions for each prompt. Of several processes each samples its share of the prompts, and all get all completions.

    A completion of the ``fast`` engine follows from the generator, its place and the prompt: how many are sampled at once, and by how many processes, changes
    nothing but rounding.

    Args:
        lm: the model, in the view (adapter) that is to be sampled.
        prompts: at least one.
        group_size: ≥ 1.
        sampling: temperature, limits.
        generator: the loop's own random stream, on the model's device.
        stop: asked between tokens.
        engine: ``fast`` or ``hf``.
        twin: a dense copy to sample from (``fast`` alone), see :class:`~rlkd_lab.rollouts.twin.DenseTwin`.
        at_once: completions whose cache fits into memory, at least a group; 0 is all.

    Raises:
        Stopped: the stop flag was set.
        ValueError: no prompt, or a prompt that leaves no room for the completion in the context.
    """
    if not prompts or group_size < 1:
        raise ValueError(f"sampling needs at least one prompt and a group of at least 1; got {len(prompts)} prompts, group_size {group_size}")
    check_length(lm, prompts, sampling.max_new_tokens)
    prompt_ids, prompt_mask = lm.encode(prompts)
    if engine not in ("fast", "hf"):
        raise ValueError(f"unknown engine {engine!r}: use 'fast' or 'hf'")
    rows, limit = len(prompts) * group_size, sampling.max_new_tokens
    noise = torch.rand(rows, limit, generator=generator, device=generator.device) if engine == "fast" else None
    ids = torch.zeros(rows, limit, dtype=torch.long, device=lm.device)
    logps = None if noise is None else torch.zeros(rows, limit, device=lm.device)
    mine = processes.share(len(prompts))
    step = max(at_once // group_size, 1) if at_once else max(len(mine), 1)
    was_training = lm.model.training
    lm.model.eval()
    try:
        with torch.no_grad(), lm.active():
            for start in range(mine.start, mine.stop, step):
                some = slice(start, min(start + step, mine.stop))
                place = slice(some.start * group_size, some.stop * group_size)
                pair = prompt_ids[some], prompt_mask[some]
                if noise is None or logps is None:
                    ids[place] = _hf(lm, *pair, group_size, sampling, generator, stop)
                else:
                    ids[place], logps[place] = _fast(lm, *pair, group_size, sampling, noise[place], stop, twin)
    finally:
        lm.model.train(was_training)
    processes.add_up(ids)
    if logps is not None:
        processes.add_up(logps)
    return _completions(lm, prompt_ids, prompt_mask, group_size, ids, logps)


def check_length(lm: LanguageModel, prompts: Sequence[str], max_new_tokens: int) -> None:
    """Raise ValueError for a prompt that, with its completion, does not fit the context."""
    lengths = [len(ids) for ids in lm.prompt_ids(prompts)]
    if min(lengths) == 0:
        raise ValueError("a prompt has no tokens: there is nothing to continue")
    longest = max(lengths)
    if longest + max_new_tokens > lm.context:
        raise ValueError(
            f"a prompt of {longest} tokens and a completion of up to {max_new_tokens} do not fit the context of {lm.context} tokens of {lm.source}:"
            f" {prompts[lengths.index(longest)][:60]!r}…"
        )


def _completions(lm: LanguageModel, prompt_ids: Tensor, prompt_mask: Tensor, group_size: int, ids: Tensor, logps: Tensor | None) -> Completions:
    ended = torch.isin(ids, torch.tensor(sorted(lm.eos_ids), device=ids.device))
    # up to and including the first end of sequence
    mask = ((ended.cumsum(1) - ended.long()) == 0).long()
    width = int(mask.sum(1).max())
    ids, mask = ids[:, :width] * mask[:, :width], mask[:, :width]
    ids = torch.where(mask.bool(), ids, lm.tokenizer.pad_token_id)
    sequences = Sequences(prompt_ids.repeat_interleave(group_size, 0), prompt_mask.repeat_interleave(group_size, 0), ids, mask)
    texts = [str(lm.tokenizer.decode(row[keep.bool()], skip_special_tokens=True)) for row, keep in zip(ids, mask, strict=True)]
    return Completions(sequences, None if logps is None else logps[:, :width] * mask, texts, (ended[:, :width] & mask.bool()).any(1))


def _filtered(logits: Tensor, sampling: Sampling) -> Tensor:
    """Log-probabilities after temperature, top-k and top-p, (B, V) float32; cut tokens are −inf."""
    log_probs = torch.log_softmax(logits.float() / sampling.temperature, dim=-1)
    if sampling.top_k:
        lowest = log_probs.topk(min(sampling.top_k, log_probs.shape[-1]), dim=-1).values[:, -1:]
        log_probs = log_probs.masked_fill(log_probs < lowest, -torch.inf)
    if sampling.top_p < 1:
        ordered, index = log_probs.softmax(-1).sort(dim=-1, descending=True)
        # the token that crosses the threshold stays
        cut = (ordered.cumsum(-1) - ordered) >= sampling.top_p
        log_probs = log_probs.masked_fill(torch.zeros_like(cut).scatter(-1, index, cut), -torch.inf)
    return torch.log_softmax(log_probs, dim=-1) if sampling.top_k or sampling.top_p < 1 else log_probs


def _pick(log_probs: Tensor, noise: Tensor) -> Tensor:
    """The token at which the cumulated probability passes the noise, uniform on [0, 1): (B, V), (B, 1) → (B, 1). It is never one with probability 0."""
    total = log_probs.exp().cumsum(-1)
    last = torch.searchsorted(total, total[:, -1:].contiguous())  # the last token that adds anything
    return torch.minimum(torch.searchsorted(total, noise * total[:, -1:], right=True), last)


class OwnForward:
    """Decoding through the model's own forward: any architecture, 4-bit layers and adapters included. The same two methods as :class:`Decoder`."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def prefill(self, prompt_ids: Tensor, prompt_mask: Tensor, group_size: int, room: int) -> tuple[GrowingCache, Tensor]:
        positions = (prompt_mask.cumsum(1) - 1).clamp(min=0)
        cache = GrowingCache(DynamicCache(config=self.model.config), prompt_mask.repeat_interleave(group_size, 0))
        out = self.model(
            input_ids=prompt_ids, attention_mask=prompt_mask, position_ids=positions, past_key_values=cache.states, use_cache=True, logits_to_keep=1
        )
        cache.states.batch_repeat_interleave(group_size)
        return cache, out.logits[:, -1].repeat_interleave(group_size, 0)

    def step(self, token: Tensor, positions: Tensor, cache: GrowingCache) -> Tensor:
        cache.mask = torch.cat([cache.mask, torch.ones_like(cache.mask[:, :1])], dim=1)
        out = self.model(input_ids=token[:, None], attention_mask=cache.mask, position_ids=positions[:, None], past_key_values=cache.states, use_cache=True)
        return out.logits[:, -1]


@dataclass
class GrowingCache:
    """transformers' cache and the mask over its columns, (B, columns)."""

    states: DynamicCache
    mask: Tensor

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these."""
        self.states.batch_select_indices(rows)
        self.mask = self.mask[rows]


def _fast(
    lm: LanguageModel,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    group_size: int,
    sampling: Sampling,
    noise: Tensor,
    stop: Callable[[], bool],
    twin: DenseTwin | None,
) -> tuple[Tensor, Tensor]:
    rows = prompt_ids.shape[0] * group_size
    ids = torch.full((rows, sampling.max_new_tokens), lm.tokenizer.pad_token_id, device=lm.device)
    logps = torch.zeros(rows, sampling.max_new_tokens, device=lm.device)
    eos = torch.tensor(sorted(lm.eos_ids), device=lm.device)
    if twin is not None and twin.decoder is not None:
        decoder: Any = twin.decoder
    else:
        decoder = OwnForward(lm.causal_lm if twin is None else twin.model)
    cache, logits = decoder.prefill(prompt_ids, prompt_mask, group_size, sampling.max_new_tokens)
    positions = prompt_mask.sum(1).repeat_interleave(group_size, 0)
    alive = torch.arange(rows, device=lm.device)  # which row of the result each row of the shrinking batch is
    running = torch.ones_like(alive, dtype=torch.bool)
    for column in range(sampling.max_new_tokens):
        if stop():
            raise Stopped("stopped between two tokens of a rollout")
        if not torch.isfinite(logits).all():
            raise FloatingPointError(f"the logits of {lm.source} are not finite: training has diverged; lower learning_rate, or bound the ratio")
        log_probs = _filtered(logits, sampling)
        token = _pick(log_probs, noise[alive, column, None])
        ids[alive[running], column] = token[running, 0]
        logps[alive[running], column] = log_probs.gather(-1, token)[running, 0]
        running = running & ~torch.isin(token[:, 0], eos)
        left = int(running.sum())
        if left == 0:
            break
        # Copying the cache costs about a decoding step, so it waits until an eighth of the batch is finished.
        if left <= len(running) * 7 // 8:
            keep = running.nonzero()[:, 0]
            cache.keep(keep)
            alive, positions, token, running = alive[keep], positions[keep], token[keep], running[keep]
        logits = decoder.step(token[:, 0], positions, cache)
        positions = positions + 1
    return ids, logps


def _hf(
    lm: LanguageModel,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    group_size: int,
    sampling: Sampling,
    generator: torch.Generator,
    stop: Callable[[], bool],
) -> Tensor:
    def check(input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        if stop():
            raise Stopped("stopped between two tokens of a rollout")
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    # `generate` takes no generator: it draws from the global stream, which is put back afterwards.
    cuda = [lm.device] if lm.device.type == "cuda" else []
    model: Any = lm.causal_lm
    own = model.generation_config
    # The model's own defaults (a repetition penalty, min_p, …) would sample another distribution than the one that is trained.
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=sorted(lm.eos_ids),
        pad_token_id=lm.tokenizer.pad_token_id,
        use_cache=True,
    )
    try:
        with torch.random.fork_rng(devices=cuda):
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator, device=generator.device)))
            ids = model.generate(
                input_ids=prompt_ids.repeat_interleave(group_size, 0), attention_mask=prompt_mask.repeat_interleave(group_size, 0), stopping_criteria=[check]
            )
    finally:
        model.generation_config = own
    drawn = ids[:, prompt_ids.shape[1] :]
    return pad(drawn, (0, sampling.max_new_tokens - drawn.shape[1]), value=lm.tokenizer.pad_token_id)
