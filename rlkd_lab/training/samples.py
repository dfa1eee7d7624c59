"""Rollouts: what a step trains on, and how it is recorded, with what each model thought of each
token.

One parquet file a step, a row a completion: ``prompt``, ``answer``, ``completion``, ``reward``,
``parts`` (the reward's, unweighted, as JSON), ``correct``, ``why`` (where it could not be judged),
``counted`` (whether it entered its group's statistics), ``group``, ``finished``, and per-token
lists ``ids``, ``tokens``, ``logps``, ``teacher_logps``, ``ref_logps``, ``entropy``,
``kl_teacher_rev``, ``kl_teacher_fwd`` (at the sampling temperature; None where nobody was asked).
The first completion of the first :data:`DETAILED` prompts also has both models' likeliest tokens
there: ``top_tokens``, ``top_logps``, ``teacher_top_tokens``, ``teacher_top_logps`` (lists of
:data:`ALTERNATIVES`, ids in ``…top_ids``).

Beside it lies a probe: the same for :data:`PROBES` fixed validation prompts at T = 1, with the same
random stream every time, so that what changes from one probe to the next is the policy. There every
row has the alternatives.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import pad as pad_tensor

from rlkd_lab.models import LanguageModel, Sequences, hidden_states, top_alternatives
from rlkd_lab.objectives import TokenBatch
from rlkd_lab.runs import RunFolder
from rlkd_lab.tasks import Example, Verdict

PROBES = 4
DETAILED = 4
ALTERNATIVES = 5


@dataclass(frozen=True)
class Rollout:
    """What a step trains on: completions of the student, or traces of the teacher; one example,
    text and row a completion.
    """

    examples: list[Example]
    texts: list[str]
    sequences: Sequences
    sampler_logps: Tensor | None
    finished: Tensor
    on_policy: bool


def joined(rollouts: Sequence[Rollout], rows: Tensor, pad: int) -> Rollout:
    """Some rows of several rollouts as one, padded to common widths; rows are counted through
    all of them.
    """

    def column(name: str, left: bool, fill: int | float) -> Tensor:
        parts = [
            getattr(one.sequences, name) if hasattr(one.sequences, name) else getattr(one, name)
            for one in rollouts
        ]
        width = max(part.shape[1] for part in parts)
        return torch.cat(
            [
                pad_tensor(
                    part,
                    (width - part.shape[1], 0) if left else (0, width - part.shape[1]),
                    value=fill,
                )
                for part in parts
            ]
        )[rows]

    mask = column("completion_mask", False, 0)
    sequences = Sequences(
        column("prompt_ids", True, pad),
        column("prompt_mask", True, 0),
        column("completion_ids", False, pad),
        mask,
    )
    sampler = (
        column("sampler_logps", False, 0.0)
        if all(one.sampler_logps is not None for one in rollouts)
        else None
    )
    examples = [example for one in rollouts for example in one.examples]
    texts = [text for one in rollouts for text in one.texts]
    finished = torch.cat([one.finished for one in rollouts])[rows]
    return Rollout(
        [examples[i] for i in rows],
        [texts[i] for i in rows],
        sequences,
        sampler,
        finished,
        on_policy=True,
    )


def counted_of(samples: pd.DataFrame) -> Tensor | None:
    """Which recorded completions entered the statistics of their group, (B,) of bool;

    ``None``: all of them, or the run was made by an older version.
    """
    if "counted" not in samples or samples["counted"].all():
        return None
    return torch.tensor(samples["counted"].to_numpy(dtype=bool))


@torch.no_grad()
def write_samples(
    folder: RunFolder,
    path: Path,
    policy: LanguageModel,
    teacher: LanguageModel | None,
    batch: TokenBatch,
    rollout: Rollout,
    verdicts: Sequence[Verdict],
    measured: Mapping[str, Tensor],
    temperature: float,
) -> None:
    """Write the rollout of a step, beside and renamed.

    Args:
        folder: of the run.
        path: the parquet file in it.
        policy: asked for its alternatives, as is ``teacher``.
        teacher: or ``None``.
        batch: log-probabilities and rewards.
        rollout: the completions.
        verdicts: one a completion.
        measured: further values per token, (B, T) each, by column name.
        temperature: at which the alternatives are asked for.
    """
    if not folder.writes:
        return
    sequences = rollout.sequences
    per_token = {
        "logps": batch.old_logps,
        "teacher_logps": batch.teacher_logps,
        "ref_logps": batch.ref_logps,
    }
    per_token |= {
        name: measured.get(name) for name in ("entropy", "kl_teacher_rev", "kl_teacher_fwd")
    }
    rows: list[dict[str, Any]] = []
    for i, (example, text, verdict) in enumerate(
        zip(rollout.examples, rollout.texts, verdicts, strict=True)
    ):
        keep = sequences.completion_mask[i].bool()
        ids = sequences.completion_ids[i][keep].tolist()
        row = {
            "prompt": example.prompt,
            "answer": example.answer,
            "completion": text,
            "reward": verdict.reward,
            "parts": json.dumps(verdict.parts),
            "correct": verdict.correct,
            "why": verdict.why,
            "counted": verdict.counted,
            "group": int(batch.group_ids[i]) if batch.group_ids is not None else i,
            "finished": bool(rollout.finished[i]),
            "ids": ids,
            "tokens": policy.tokenizer.convert_ids_to_tokens(ids),
        }
        rows.append(
            row
            | {
                name: None if values is None else values[i][keep].tolist()
                for name, values in per_token.items()
            }
        )
    first_of_group = [
        i for i, row in enumerate(rows) if i == 0 or row["group"] != rows[i - 1]["group"]
    ][:DETAILED]
    for prefix, lm in (("", policy), ("teacher_", teacher)):
        if lm is None:
            continue
        for i in first_of_group:
            likeliest, logps = top_alternatives(
                lm,
                hidden_states(lm, sequences.select(torch.tensor([i]))),
                ALTERNATIVES,
                temperature,
            )
            rows[i][f"{prefix}top_ids"], rows[i][f"{prefix}top_logps"] = (
                likeliest.tolist(),
                logps.tolist(),
            )
            rows[i][f"{prefix}top_tokens"] = [
                policy.tokenizer.convert_ids_to_tokens(place) for place in likeliest.tolist()
            ]
    beside, frame = path.with_suffix(".tmp"), pd.DataFrame(rows)

    def write() -> None:
        path.parent.mkdir(exist_ok=True)
        frame.to_parquet(beside)
        beside.replace(path)

    folder.written(write)
