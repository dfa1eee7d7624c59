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
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from rlkd_lab.models import LanguageModel, Sequences, distributed
from rlkd_lab.models.dense_copy import DenseCopy, make_dense_copy
from rlkd_lab.rollouts.request import Sampling
from rlkd_lab.rollouts.sampling import sample
from rlkd_lab.tasks import Task

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
) -> pa.Table:
    """``n`` prompts of the training split answered by the teacher, filtered and cached; a cache
    that fits is read instead.

    Args:
        teacher: sampled at the temperature of ``sampling``.
        task: gives prompts and judges.
        n: number of prompts, one trace each.
        seed: of prompts and sampling.
        cache: parquet file to read or write.
        difficulty: of the prompts; the task's own by default.
        keep: ``all``, ``finished`` (not cut by the length limit) or ``correct`` (rejection
            sampling).
        sampling: temperature and limits.
        batch: completions in a batch.
        at_once: of them sampled at a time; 0 is all.
        stop: asked between tokens.
        dense: the teacher's dense copy, if there is one already.
        written: calls what writes the cache, and calls it again where the disk is full, say.

    Raises:
        ValueError: the cache was made with other settings, or nothing is left after filtering.
    """
    sampling = sampling or Sampling()
    key = {
        "version": VERSION,
        "teacher": teacher.source,
        "quant": teacher.quant,
        "adapter": teacher.adapter_source,
        "task": task.name,
        "difficulty": None if difficulty is None else list(difficulty),
        **asdict(sampling),
        "seed": seed,
        "sampled": n,
        "keep": keep,
    }
    examples = task.examples(n, seed, "train", difficulty)
    # whatever changes the prompts or what is right (a template, a setting, a file's rows) makes
    # other traces
    key["prompts"] = hashlib.sha256(
        json.dumps([[example.prompt, example.answer] for example in examples]).encode()
    ).hexdigest()
    if cache.exists():
        table = pq.read_table(cache)
        found = json.loads((table.schema.metadata or {}).get(b"rlkd_traces", b"{}"))
        if found != key:
            raise ValueError(
                f"{cache} holds traces made with other settings ({found}); delete it, or name"
                " another file"
            )
        return table
    generator = torch.Generator(device=teacher.device).manual_seed(seed)
    if dense is None and DenseCopy.suits(
        teacher
    ):  # a teacher's copy in 16 bit may not fit beside the rest
        dense = make_dense_copy(teacher)
    rows = []
    for start in range(0, n, batch):
        part = examples[start : start + batch]
        drawn = sample(
            teacher,
            [e.prompt for e in part],
            1,
            sampling,
            generator,
            stop,
            dense=dense,
            at_once=at_once,
        )
        whole = drawn.finished.tolist()
        asked = zip(part, drawn.texts, whole, strict=True)
        right = distributed.from_first(
            [finished and task.score(text, example).correct for example, text, finished in asked]
            if distributed.first()
            else []
        )
        for example, text, ids, mask, finished, correct in zip(
            part,
            drawn.texts,
            drawn.sequences.completion_ids,
            drawn.sequences.completion_mask,
            whole,
            right,
            strict=True,
        ):
            rows.append(
                {
                    "example_id": example.id,
                    "prompt": example.prompt,
                    "answer": example.answer,
                    "completion": text,
                    "completion_ids": ids[mask.bool()].tolist(),
                    "correct": correct,
                    "finished": finished,
                }
            )
    kept = [row for row in rows if keep == "all" or row[keep]]
    if not kept:
        raise ValueError(
            f"none of the teacher's {n} traces is {keep}: raise max_new_tokens, or take"
            " another teacher"
        )
    tokens = sum(len(row["completion_ids"]) for row in rows)
    table = pa.Table.from_pylist(kept).replace_schema_metadata(
        {"rlkd_traces": json.dumps(key), "rlkd_tokens": str(tokens)}
    )
    if not distributed.first():
        return table

    def write() -> None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, cache.with_suffix(".tmp"))
        cache.with_suffix(".tmp").replace(cache)

    written(write)
    return table


def sequences_of(
    lm: LanguageModel, prompts: list[str], completion_ids: list[list[int]]
) -> Sequences:
    """Prompts and given completions as padded tensors."""
    prompt_ids, prompt_mask = lm.encode(prompts)
    width = max(len(ids) for ids in completion_ids)
    ids = torch.tensor(
        [row + [lm.tokenizer.pad_token_id] * (width - len(row)) for row in completion_ids],
        device=lm.device,
    )
    mask = torch.tensor(
        [[1] * len(row) + [0] * (width - len(row)) for row in completion_ids], device=lm.device
    )
    return Sequences(prompt_ids, prompt_mask, ids, mask)
