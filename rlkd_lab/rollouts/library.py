"""transformers' own engines: ``hf`` is its ``generate``, ``continuous`` its continuous batching.

``continuous`` keeps keys and values in pages. The completions of a group share the pages of their
prompt, and a waiting completion starts where another has ended. On a GPU it captures CUDA graphs.
It reports the log-probabilities that it drew with. With both engines a completion depends on what
is sampled beside it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import ContinuousBatchingConfig, GenerationConfig

from rlkd_lab.rollouts.request import Request, Stopped

PAGE = 32
"""Tokens in a page of the cache."""
PREFILL = 1024
"""Tokens in a forward pass of ``continuous``, unless more completions than that are decoded
together.
"""
_PAGE_SIZE: Any = (
    "page_size" if hasattr(ContinuousBatchingConfig, "page_size") else "block_size"
)  # transformers 5.17 has the older name


def hf(request: Request) -> tuple[Tensor, None]:
    """Draw with transformers' ``generate``, as an :class:`~rlkd_lab.rollouts.request.Engine`."""
    return torch.cat([_generate(part) for part in request.parts()]), None


def _generate(request: Request) -> Tensor:
    def check(input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        if request.stop():
            raise Stopped("stopped between two tokens of a rollout")
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    lm, size = request.lm, request.group_size
    model: Any = lm.causal_lm
    own = model.generation_config
    # The model's defaults (a repetition penalty, min_p, …) would sample another distribution than
    # the one that is trained.
    model.generation_config = _settings(request)
    try:
        with _own_stream(request):
            ids = model.generate(
                input_ids=request.prompt_ids.repeat_interleave(size, 0),
                attention_mask=request.prompt_mask.repeat_interleave(size, 0),
                stopping_criteria=[check],
            )
    finally:
        model.generation_config = own
    drawn = ids[:, request.prompt_ids.shape[1] :]
    return pad(
        drawn,
        (0, request.sampling.max_new_tokens - drawn.shape[1]),
        value=lm.tokenizer.pad_token_id,
    )


def continuous(request: Request) -> tuple[Tensor, Tensor]:
    """Draw with continuous batching, as an :class:`~rlkd_lab.rollouts.request.Engine`.

    The cache holds ``at_once`` completions at their limit.
    """
    lm, size, limit = request.lm, request.group_size, request.sampling.max_new_tokens
    model: Any = lm.causal_lm if request.dense is None else request.dense.model
    if getattr(model.config, "attn_logit_softcapping", None) is not None:
        # its paged attention leaves them out (seen with transformers 5.23)
        raise ValueError(
            "transformers' continuous batching does not compute the soft caps of"
            f" {lm.source}: use --set engine=fast"
        )
    prompts = request.unpadded()
    together = min(request.at_once or request.rows, request.rows)
    pages = -(-(max(map(len, prompts)) + limit) // PAGE)
    page: dict[str, Any] = {_PAGE_SIZE: PAGE}
    settings = ContinuousBatchingConfig(
        **page,
        num_blocks=together * pages + 1,
        max_batch_tokens=max(together, PREFILL),
        max_requests_per_batch=together,
        return_logprobs=True,
        seed=request.seed,
    )
    with _own_stream(request):
        manager = model.init_continuous_batching(
            _settings(request, num_return_sequences=size), settings
        )
        # before its thread runs: who is decoded beside whom must not depend on the clock
        names = manager.add_requests(prompts, max_new_tokens=limit)
        manager.start()
        stopped = True
        try:
            ids, logps = _collect(request, manager, names)
            stopped = False
        finally:
            manager.stop(block=True, hard_stop=stopped)
            manager.destroy()
    return ids.to(lm.device), logps.to(lm.device)


def _collect(request: Request, manager: Any, names: list[str]) -> tuple[Tensor, Tensor]:
    """Wait for the completions of all requests. Return their tokens and log-probabilities."""
    limit = request.sampling.max_new_tokens
    ids = torch.full((request.rows, limit), request.lm.tokenizer.pad_token_id)
    logps = torch.zeros(request.rows, limit)
    # a group's first completion has the request's name, the others are its children
    children = [
        [name, *(f"{name}__child#{child}" for child in range(request.group_size - 1))]
        for name in names
    ]
    rows = {name: row for row, name in enumerate(itertools.chain(*children))}
    while rows:
        if request.stop():
            raise Stopped("stopped between two tokens of a rollout")
        found = manager.get_result(timeout=0.05)
        if found is not None and found.error is not None:
            raise RuntimeError(
                f"transformers' continuous batching: {found.error}; use --set engine=fast"
            )
        if found is not None and found.is_finished():
            row, drawn = rows.pop(found.request_id), found.generated_tokens
            ids[row, : len(drawn)] = torch.tensor(drawn)
            logps[row, : len(drawn)] = torch.tensor(found.logprobs)
        elif found is None and not manager.is_running():
            raise RuntimeError(
                "transformers' continuous batching ended early:"
                f" {manager.background_thread_status.fatal_error}; use --set"
                " engine=fast"
            )
    return ids, logps


@contextmanager
def _own_stream(request: Request) -> Iterator[None]:
    """Seed the global random stream inside the block, and put it back afterwards.

    transformers takes no generator.
    """
    device = request.lm.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(request.seed)
        yield


def _settings(request: Request, **further: Any) -> GenerationConfig:
    sampling = request.sampling
    return GenerationConfig(
        do_sample=True,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=sorted(request.lm.eos_ids),
        pad_token_id=request.lm.tokenizer.pad_token_id,
        use_cache=True,
        **further,
    )
