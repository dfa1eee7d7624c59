"""Teacher traces: completions of the teacher on training prompts, for SFT, forward KL and GKD.

File format (version 1): one parquet file, a row a trace, columns ``example_id`` (str), ``prompt``
(str), ``answer`` (str), ``completion`` (str), ``completion_ids`` (list of int, with the end of
sequence), ``correct`` (bool), ``finished`` (bool); schema metadata ``rlkd_traces`` = ``{"version":
1, "teacher": …, "temperature": …, "seed": …, "sampled": number before filtering, "prompts": hash of
prompts and answers, …}`` and ``rlkd_tokens`` = tokens that the teacher wrote, those of traces that
were not kept included.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from rlkd_lab.models import LanguageModel, Sequences, distributed
from rlkd_lab.models.dense_copy import DenseCopy, make_dense_copy
from rlkd_lab.rollouts.request import Sampling
from rlkd_lab.rollouts.sampling import Completions, sample
from rlkd_lab.tasks import Example, Task

VERSION = 1
BATCH = 128
"""Traces in a batch."""
Keep = Literal["all", "finished", "correct"]


def teacher_traces(
    teacher: LanguageModel,
    task: Task,
    n: int,
    seed: int,
    cache: Path,
    *,
    keep: Keep = "finished",
    difficulty: tuple[int, int] | None = None,
    sampling: Sampling | None = None,
    batch: int = BATCH,
    stop: Callable[[], bool] = lambda: False,
    dense: DenseCopy | None = None,
    at_once: int = 0,
    written: Callable[[Callable[[], object]], object] = lambda write: write(),
    show: Callable[[int], object] = lambda done: None,
) -> pa.Table:
    """Let the teacher answer ``n`` prompts of the training split; filter and cache its answers.

    Args:
        teacher: sampled at the temperature of ``sampling``.
        task: gives prompts and judges.
        n: number of prompts, one trace each.
        seed: of prompts and sampling.
        cache: parquet file, which is read where it fits, or written.
        difficulty: of the prompts; the task's own by default.
        keep: ``all``, ``finished`` (not cut by the length limit) or ``correct``.
        sampling: temperature and limits.
        batch: completions in a batch.
        at_once: of them sampled at a time; 0 is all.
        stop: asked between tokens.
        dense: the teacher's dense copy, if there is one already.
        written: calls what writes the cache, and may call it again after a failure.
        show: called with the number of traces that are drawn.

    Raises:
        ValueError: the cache was made with other settings, or nothing is left after filtering.
    """
    sampling = sampling or Sampling()
    examples = task.examples(n, seed, "train", difficulty)
    key = _key(teacher, task, sampling, examples, difficulty)
    key |= {"seed": seed, "sampled": n, "keep": keep}
    if cache.exists():
        return _read(cache, key)
    if dense is None and DenseCopy.suits(teacher):  # a copy in 16 bit may not fit beside the rest
        dense = make_dense_copy(teacher)
    generator = torch.Generator(device=teacher.device).manual_seed(seed)
    rows: list[dict[str, Any]] = []
    for start in range(0, n, batch):
        part = examples[start : start + batch]
        prompts = [example.prompt for example in part]
        drawn = sample(teacher, prompts, 1, sampling, generator, stop, dense=dense, at_once=at_once)
        at_once = drawn.at_once
        rows += _judged(task, part, drawn)
        show(len(rows))
    table = _kept(rows, keep, key)
    if distributed.first():
        written(lambda: write_traces(table, cache))
    return table


def _kept(rows: Sequence[Mapping[str, Any]], keep: Keep, key: Mapping[str, Any]) -> pa.Table:
    """Return the table of the rows that are kept, with the key and all tokens in its metadata."""
    kept = [row for row in rows if keep == "all" or row[keep]]
    if not kept:
        raise ValueError(
            f"none of the teacher's {len(rows)} traces is {keep}: raise max_new_tokens, or take"
            " another teacher"
        )
    tokens = sum(len(row["completion_ids"]) for row in rows)
    return pa.Table.from_pylist(kept).replace_schema_metadata(
        {"rlkd_traces": json.dumps(key), "rlkd_tokens": str(tokens)}
    )


def _key(
    teacher: LanguageModel,
    task: Task,
    sampling: Sampling,
    examples: Sequence[Example],
    difficulty: tuple[int, int] | None,
) -> dict[str, Any]:
    """Return what traces depend on. Of prompts and answers it is a digest."""
    return {
        "version": VERSION,
        "teacher": teacher.source,
        "quant": teacher.quant,
        "adapter": teacher.adapter_source,
        "task": task.name,
        **asdict(sampling),
        "prompts": digest_of(examples),
        "difficulty": None if difficulty is None else list(difficulty),
    }


def digest_of(examples: Sequence[Example]) -> str:
    """Return the SHA-256 of prompts and answers."""
    asked = json.dumps([[example.prompt, example.answer] for example in examples])
    return hashlib.sha256(asked.encode()).hexdigest()


def _read(cache: Path, key: Mapping[str, Any]) -> pa.Table:
    table = pq.read_table(cache)
    found = json.loads((table.schema.metadata or {}).get(b"rlkd_traces", b"{}"))
    if found != key:
        raise ValueError(
            f"{cache} holds traces made with other settings ({found}); delete it, or name"
            " another file"
        )
    return table


def write_traces(table: pa.Table, cache: Path) -> None:
    """Write traces, beside and renamed."""
    cache.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, cache.with_suffix(".tmp"))
    cache.with_suffix(".tmp").replace(cache)


def _judged(
    task: Task, examples: Sequence[Example], drawn: Completions
) -> Iterator[dict[str, Any]]:
    """Yield a row for each completion. The first process judges."""
    finished = drawn.finished.tolist()
    asked = zip(examples, drawn.texts, finished, strict=True)
    right: list[bool] = distributed.from_first(
        [bool(whole) and task.score(text, example).correct for example, text, whole in asked]
        if distributed.first()
        else []
    )
    for i, example in enumerate(examples):
        mask = drawn.sequences.completion_mask[i].bool()
        yield {
            "example_id": example.id,
            "prompt": example.prompt,
            "answer": example.answer,
            "completion": drawn.texts[i],
            "completion_ids": drawn.sequences.completion_ids[i][mask].tolist(),
            "correct": right[i],
            "finished": finished[i],
        }


def sequences_of(
    lm: LanguageModel, prompts: list[str], completion_ids: list[list[int]]
) -> Sequences:
    """Return prompts and given completions as padded tensors."""
    prompt_ids, prompt_mask = lm.encode(prompts)
    pad = lm.tokenizer.pad_token_id
    ids = _padded(completion_ids, pad, lm.device)
    mask = _padded([[1] * len(row) for row in completion_ids], 0, lm.device)
    return Sequences(prompt_ids, prompt_mask, ids, mask)


def _padded(rows: list[list[int]], fill: int, device: torch.device) -> Tensor:
    """Return rows of numbers as one tensor, filled on the right."""
    width = max(map(len, rows))
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows], device=device)
