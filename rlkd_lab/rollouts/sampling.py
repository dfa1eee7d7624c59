"""Rollouts: completions sampled from a model, by one of several engines behind one function.

``fast`` is our own sampler, ``hf`` transformers' ``generate``, ``continuous`` its continuous
batching. ``vllm`` is vLLM, and ``PATH.py:NAME`` is an engine of your own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from rlkd_lab.models import LanguageModel, Sequences, distributed
from rlkd_lab.models.dense_copy import DenseCopy
from rlkd_lab.rollouts.fast import fast
from rlkd_lab.rollouts.library import continuous, hf
from rlkd_lab.rollouts.request import Engine, Request, Sampling, Stopped, unpadded
from rlkd_lab.rollouts.vllm_engine import Vllm
from rlkd_lab.tasks.lengths import Limit
from rlkd_lab.tasks.registry import from_file

ENGINES: Mapping[str, Engine] = MappingProxyType(
    {"fast": fast, "hf": hf, "continuous": continuous, "vllm": Vllm()}
)


@dataclass(frozen=True)
class Completions:
    """Holds sampled completions, ``group_size`` rows in a row for each prompt."""

    sequences: Sequences
    """Prompts (padded left) and completions (padded right), one row a completion."""
    sampler_logps: Tensor | None
    """(B, T): log-probabilities as the sampler drew them, 0 where the mask is 0.

    They are taken after temperature and top-p/top-k. ``hf`` does not report them.
    """
    texts: list[str]
    """Decoded without special tokens."""
    finished: Tensor
    """(B,) of bool: ended by an end-of-sequence token, not by the length limit."""
    at_once: int = 0
    """As asked for, halved as often as memory ran out."""


def find_engine(name: str) -> Engine:
    """Return the engine of that name. A file is run: give none that you would not run.

    Raises:
        ValueError, OSError: in one sentence.
    """
    path, colon, attribute = name.rpartition(":")
    if colon and path.endswith(".py"):
        return _own(name, Path(path), attribute)
    if name not in ENGINES:
        raise ValueError(
            f"unknown engine {name!r}: use {', '.join(ENGINES)}, or PATH.py:NAME for one of"
            " your own"
        )
    return ENGINES[name]


def _within_memory(draw: Engine, request: Request) -> tuple[tuple[Tensor, Tensor | None], int]:
    """Draw, and halve the completions at once whenever memory runs out.

    Returns:
        The engine's answer, and how many completions it drew at once.
    """
    while True:
        try:
            return draw(request), request.at_once
        except torch.OutOfMemoryError:
            if request.groups_at_once == 1:
                raise
        # only here is what the engine held let go
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        request = replace(request, at_once=request.groups_at_once // 2 * request.group_size)


def _own(name: str, path: Path, attribute: str) -> Engine:
    found = from_file(path, attribute, "engine")
    if isinstance(found, type):
        try:
            found = found()
        except Exception as error:
            raise ValueError(
                f"engine {name} cannot be made: {type(error).__name__}: {error}; a class is"
                " called without arguments, once a run"
            ) from error
    if not callable(found):
        raise ValueError(
            f"engine {name} cannot be called: it is a {type(found).__name__}, and an engine"
            " is a function or a class with __call__(request)"
        )

    def ask(request: Request) -> tuple[Tensor, Tensor | None]:
        try:
            return found(request)
        except (Stopped, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise ValueError(f"the engine {name} raised {type(error).__name__}: {error}") from error

    return ask


def _checked(answer: Any, shape: torch.Size, lm: LanguageModel) -> tuple[Tensor, Tensor | None]:
    """Return the answer of a user's engine, or raise ValueError."""
    if not (
        isinstance(answer, tuple)
        and len(answer) == 2
        and isinstance(answer[0], Tensor)
        and (answer[1] is None or isinstance(answer[1], Tensor))
    ):
        raise ValueError(
            f"the engine gave a {type(answer).__name__}; its answer is a pair: tokens, and"
            " log-probabilities or None, both tensors"
        )
    ids, logps = answer
    for what, found in (("tokens", ids), ("log-probabilities", logps)):
        if found is not None and found.shape != shape:
            raise ValueError(
                f"the engine gave {what} of shape {tuple(found.shape)} where {tuple(shape)}"
                " were asked for"
            )
    if ids.is_floating_point():
        raise ValueError(f"the engine gave tokens as {ids.dtype}; they are integers")
    size = int(lm.head.out_features)  # type: ignore[arg-type]
    if ((ids < 0) | (ids >= size)).any():
        raise ValueError(
            f"the engine gave the tokens {int(ids.min())} to {int(ids.max())}; the model has"
            f" 0 to {size - 1}"
        )
    # a NaN is neither
    if logps is not None and not (logps.to(ids.device)[counted(ids, lm)[0]] < 1e-3).all():
        raise ValueError("the engine gave log-probabilities that are above 0 or no numbers")
    return ids, logps


def sample(
    lm: LanguageModel,
    prompts: Sequence[str],
    group_size: int,
    sampling: Sampling,
    generator: torch.Generator,
    stop: Callable[[], bool] = lambda: False,
    engine: Engine | str = "fast",
    dense: DenseCopy | None = None,
    at_once: int = 0,
) -> Completions:
    """Sample ``group_size`` completions for each prompt.

    Several processes share the prompts, and all get all completions.

    Args:
        lm: the model, in the view (adapter) that is to be sampled.
        prompts: at least one.
        group_size: ≥ 1.
        sampling: temperature, limits.
        generator: the run's random stream, on the model's device.
        stop: asked between tokens.
        engine: one of :data:`ENGINES`, ``PATH.py:NAME``, or the engine itself.
        dense: a dense copy to sample from (not for ``hf``), see
            :class:`~rlkd_lab.models.dense_copy.DenseCopy`.
        at_once: completions whose cache fits into memory, at least a group; 0 is all.

    Raises:
        Stopped: the stop flag was set.
        ValueError: no prompt, a prompt that leaves no room for the completion in the context, or an
            engine's answer of another shape.
    """
    if not prompts or group_size < 1:
        raise ValueError(
            "sampling needs at least one prompt and a group of at least 1; got"
            f" {len(prompts)} prompts, group_size {group_size}"
        )
    check_length(lm, prompts, sampling.max_new_tokens)
    prompt_ids, prompt_mask = lm.encode(prompts)
    shape = (len(prompts) * group_size, sampling.max_new_tokens)
    noise = torch.rand(shape, generator=generator, device=generator.device)
    request = Request(
        lm, prompt_ids, prompt_mask, group_size, sampling, noise, stop, dense, at_once
    )
    draw = find_engine(engine) if isinstance(engine, str) else engine
    ids, logps, fewest = _shared(request, draw)
    return _completions(request, ids, logps, fewest)


def _shared(request: Request, draw: Engine) -> tuple[Tensor, Tensor | None, int]:
    """Share the prompts among the processes.

    Returns:
        Tokens and log-probabilities of all of them, and the fewest completions sampled at once.
    """
    lm = request.lm
    mine = distributed.share(len(request.prompt_ids))
    place = slice(mine.start * request.group_size, mine.stop * request.group_size)
    ids = torch.zeros(request.noise.shape, dtype=torch.long, device=lm.device)
    logps = torch.zeros(request.noise.shape, device=lm.device)
    at_once, known = request.at_once, True
    if len(mine):
        part = request.part(mine.start, mine.stop)
        with request.inferring():
            answer, at_once = _within_memory(draw, part)
        if draw not in ENGINES.values():
            answer = _checked(answer, ids[place].shape, lm)
        drawn, told = answer
        ids[place] = drawn.to(ids)
        known = told is not None
        if told is not None:
            logps[place] = told.to(logps)
    distributed.add_up(ids)
    distributed.add_up(logps)
    told_by_all = all(distributed.from_all(known))
    fewest = min((fewer for fewer in distributed.from_all(at_once) if fewer), default=0)
    return ids, logps if told_by_all else None, fewest


def check_length(lm: LanguageModel, prompts: Sequence[str], max_new_tokens: int) -> None:
    """Raise ValueError for a prompt that, with its completion, does not fit the context."""
    lengths = [len(ids) for ids in lm.prompt_ids(prompts)]
    if min(lengths) == 0:
        raise ValueError("a prompt has no tokens: there is nothing to continue")
    longest = max(lengths)
    if longest + max_new_tokens > lm.context:
        raise ValueError(
            f"a prompt of {longest} tokens and a completion of up to {max_new_tokens} do not"
            f" fit the context of {lm.context} tokens of {lm.source}:"
            f" {prompts[lengths.index(longest)][:60]!r}…"
        )


def prompt_limit(
    lm: LanguageModel,
    max_new_tokens: int,
    most: int | None = None,
    remark: Callable[[str], str] = str,
) -> Limit:
    """Return how long prompts may be beside completions of up to ``max_new_tokens``.

    ``most`` is another upper limit.
    """
    return Limit(
        lambda prompts: [len(ids) for ids in lm.prompt_ids(prompts)],
        lm.source,
        lm.context,
        max_new_tokens,
        most,
        remark,
    )


def counted(ids: Tensor, lm: LanguageModel) -> tuple[Tensor, Tensor]:
    """Return which tokens count, and which are an end of sequence, (B, T) of bool each.

    Tokens count up to and including the first end of sequence.
    """
    ended = torch.isin(ids, torch.tensor(sorted(lm.eos_ids), device=ids.device))
    return (ended.cumsum(1) - ended.long()) == 0, ended


def _completions(request: Request, ids: Tensor, logps: Tensor | None, at_once: int) -> Completions:
    """Cut and decode what was drawn."""
    tokenizer, size = request.lm.tokenizer, request.group_size
    counts, ended = counted(ids, request.lm)
    mask = counts.long()
    width = int(mask.sum(1).max())
    ids, mask = ids[:, :width], mask[:, :width]
    ids = torch.where(mask.bool(), ids, tokenizer.pad_token_id)
    sequences = Sequences(
        request.prompt_ids.repeat_interleave(size, 0),
        request.prompt_mask.repeat_interleave(size, 0),
        ids,
        mask,
    )
    texts = [str(tokenizer.decode(row, skip_special_tokens=True)) for row in unpadded(ids, mask)]
    sampler_logps = None if logps is None else logps[:, :width].masked_fill(mask == 0, 0.0)
    finished = (ended[:, :width] & mask.bool()).any(1)
    return Completions(sequences, sampler_logps, texts, finished, at_once)
