"""Rollouts: completions sampled from a model, by one of several engines behind one function.

``fast`` is our own sampler, ``hf`` transformers' ``generate``, ``continuous`` its continuous
batching, and ``PATH.py:NAME`` an engine of your own, such as one that asks a server.
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
from rlkd_lab.rollouts.request import Engine, Request, Sampling, Stopped
from rlkd_lab.tasks import Limit, from_file

ENGINES: Mapping[str, Engine] = MappingProxyType({"fast": fast, "hf": hf, "continuous": continuous})


@dataclass(frozen=True)
class Completions:
    """Sampled completions; rows are grouped by prompt, ``group_size`` in a row."""

    sequences: Sequences
    """Prompts (padded left) and completions (padded right), one row a completion."""
    sampler_logps: Tensor | None
    """(B, T): log-probabilities as the sampler drew them (after temperature and top-p/top-k), 0
    where the mask is 0; ``hf`` does not report them.
    """
    texts: list[str]
    """Decoded without special tokens."""
    finished: Tensor
    """(B,) of bool: ended by an end-of-sequence token, not by the length limit."""
    at_once: int = 0
    """As asked for, halved as often as memory ran out."""


def find_engine(name: str) -> Engine:
    """The engine of that name. A file is run: give none that you would not run.

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
    """The answer, with half as many completions at once as often as the memory is too small;
    and how many that are.
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
    """The answer of somebody's engine, if it is one."""
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
    if (
        logps is not None and not (logps.to(ids.device)[counted(ids, lm)[0]] < 1e-3).all()
    ):  # a NaN is neither
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
    """``group_size`` completions for each prompt. Of several processes each samples its share of
    the prompts, and all get all completions.

    Args:
        lm: the model, in the view (adapter) that is to be sampled.
        prompts: at least one.
        group_size: ≥ 1.
        sampling: temperature, limits.
        generator: the loop's own random stream, on the model's device.
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
    draw = find_engine(engine) if isinstance(engine, str) else engine
    rows, limit = len(prompts) * group_size, sampling.max_new_tokens
    noise = torch.rand(rows, limit, generator=generator, device=generator.device)
    ids, logps = (
        torch.zeros(rows, limit, dtype=torch.long, device=lm.device),
        torch.zeros(rows, limit, device=lm.device),
    )
    mine = distributed.share(len(prompts))
    some, place = (
        slice(mine.start, mine.stop),
        slice(mine.start * group_size, mine.stop * group_size),
    )
    known = True
    was_training = lm.model.training
    lm.model.eval()
    try:
        if len(mine):
            request = Request(
                lm,
                prompt_ids[some],
                prompt_mask[some],
                group_size,
                sampling,
                noise[place],
                stop,
                dense,
                at_once,
            )
            with torch.no_grad(), lm.active():
                answer, at_once = _within_memory(draw, request)
            drawn, told = (
                answer if draw in ENGINES.values() else _checked(answer, ids[place].shape, lm)
            )
            ids[place] = drawn.to(ids)
            known = told is not None
            if told is not None:
                logps[place] = told.to(logps)
    finally:
        lm.model.train(was_training)
    distributed.add_up(ids)
    distributed.add_up(logps)
    told_by_all = all(distributed.from_all(known))
    fewest = min((fewer for fewer in distributed.from_all(at_once) if fewer), default=0)
    return _completions(
        lm, prompt_ids, prompt_mask, group_size, ids, logps if told_by_all else None, fewest
    )


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
    context: int | None = None,
) -> Limit:
    """The room that a model has for prompts beside completions of up to ``max_new_tokens``; at most
    ``most`` tokens, if given.

    ``context`` is the model's, for one of which only the tokenizer is loaded.
    """
    return Limit(
        lambda prompts: [len(ids) for ids in lm.prompt_ids(prompts)],
        lm.source,
        context or lm.context,
        max_new_tokens,
        most,
        remark,
    )


def counted(ids: Tensor, lm: LanguageModel) -> tuple[Tensor, Tensor]:
    """Which tokens count, up to and including the first end of sequence, and which are one; (B,
    T) of bool each.
    """
    ended = torch.isin(ids, torch.tensor(sorted(lm.eos_ids), device=ids.device))
    return (ended.cumsum(1) - ended.long()) == 0, ended


def _completions(
    lm: LanguageModel,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    group_size: int,
    ids: Tensor,
    logps: Tensor | None,
    at_once: int,
) -> Completions:
    counts, ended = counted(ids, lm)
    mask = counts.long()
    width = int(mask.sum(1).max())
    ids, mask = ids[:, :width] * mask[:, :width], mask[:, :width]
    ids = torch.where(mask.bool(), ids, lm.tokenizer.pad_token_id)
    sequences = Sequences(
        prompt_ids.repeat_interleave(group_size, 0),
        prompt_mask.repeat_interleave(group_size, 0),
        ids,
        mask,
    )
    texts = [
        str(lm.tokenizer.decode(row[keep.bool()], skip_special_tokens=True))
        for row, keep in zip(ids, mask, strict=True)
    ]
    return Completions(
        sequences,
        None if logps is None else logps[:, :width] * mask,
        texts,
        (ended[:, :width] & mask.bool()).any(1),
        at_once,
    )
