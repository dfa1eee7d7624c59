"""Rollouts: what a step trains on, and how it is recorded token by token.

One parquet file a step, a row a completion: ``prompt``, ``answer``, ``completion``, ``reward``,
``parts`` (the reward's, unweighted, as JSON), ``correct``, ``why`` (where it could not be judged),
``counted`` (whether it may enter its group's statistics), ``group``, ``finished``, and per-token
lists ``ids``, ``tokens``, ``logps``, ``teacher_logps``, ``ref_logps``, ``entropy``,
``kl_teacher_rev``, ``kl_teacher_fwd`` (at the sampling temperature; None where nobody was asked).
``teacher_prompt`` is there where the teacher reads another prompt. ``trace`` is there, and says
whether the teacher wrote the completion, where a step trains on both.
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

from rlkd_lab.models import LanguageModel, Sequences
from rlkd_lab.models.logprobs import hidden_states, top_alternatives
from rlkd_lab.models.top_logps import Top
from rlkd_lab.objectives import TokenBatch
from rlkd_lab.runs import RunFolder
from rlkd_lab.tasks import Example
from rlkd_lab.tasks.rewards import Verdict

PROBES = 4
DETAILED = 4
ALTERNATIVES = 5


@dataclass(frozen=True)
class Rollout:
    """Holds what a step trains on: completions of the student, traces of the teacher, or both.

    There is one example, one text and one row for each completion.
    """

    examples: list[Example]
    texts: list[str]
    sequences: Sequences
    sampler_logps: Tensor | None
    finished: Tensor
    on_policy: bool
    """Whether the student wrote them; so it is with ``off_policy``."""
    off_policy: Tensor | None = None
    """(B,) of bool: traces of the teacher among the student's completions."""
    teacher_prompts: list[str] | None = None
    """Where the teacher reads other prompts than the student."""
    teacher_top: list[Top] | None = None
    """What a stored teacher said of the tokens of each row."""


def joined(rollouts: Sequence[Rollout], rows: Tensor, pad: int) -> Rollout:
    """Return some rows of several rollouts as one, padded to common widths.

    Rows are counted through all of them.
    """

    def column(name: str, left: bool, fill: int | float) -> Tensor:
        parts = [
            getattr(one.sequences, name) if hasattr(one.sequences, name) else getattr(one, name)
            for one in rollouts
        ]
        gaps = [max(part.shape[1] for part in parts) - part.shape[1] for part in parts]
        sides = [(gap, 0) if left else (0, gap) for gap in gaps]
        filled = (pad_tensor(*pair, value=fill) for pair in zip(parts, sides, strict=True))
        return torch.cat(list(filled))[rows]

    sequences = Sequences(
        column("prompt_ids", True, pad),
        column("prompt_mask", True, 0),
        column("completion_ids", False, pad),
        column("completion_mask", False, 0),
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
    """Return which recorded completions entered their group's statistics, (B,) of bool.

    ``None`` stands for all, and for runs of older versions.
    """
    if "counted" not in samples or samples["counted"].all():
        return None
    return torch.tensor(samples["counted"].to_numpy(dtype=bool))


def off_policy_of(samples: pd.DataFrame) -> Tensor | None:
    """Return which recorded completions are the teacher's, (B,) of bool; ``None``: not recorded."""
    return torch.tensor(samples["trace"].to_numpy(dtype=bool)) if "trace" in samples else None


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
    per_token = {
        "logps": batch.old_logps,
        "teacher_logps": batch.teacher_logps,
        "ref_logps": batch.ref_logps,
        **{name: measured.get(name) for name in ("entropy", "kl_teacher_rev", "kl_teacher_fwd")},
    }
    groups = range(len(rollout.texts)) if batch.group_ids is None else batch.group_ids.tolist()
    rows = [
        _row(policy, rollout, i, verdict, group, per_token)
        for i, (verdict, group) in enumerate(zip(verdicts, groups, strict=True))
    ]
    starts = [i for i, row in enumerate(rows) if i == 0 or row["group"] != rows[i - 1]["group"]]
    for prefix, lm in (("", policy), ("teacher_", teacher)):
        if lm is None:
            continue
        for i in starts[:DETAILED]:
            one = rollout.sequences.select(torch.tensor([i]))
            states = hidden_states(lm, one.for_teacher if prefix else one)
            likeliest, logps = top_alternatives(lm, states, ALTERNATIVES, temperature)
            ids, convert = likeliest.tolist(), policy.tokenizer.convert_ids_to_tokens
            rows[i][f"{prefix}top_ids"] = ids
            rows[i][f"{prefix}top_logps"] = logps.tolist()
            rows[i][f"{prefix}top_tokens"] = [convert(place) for place in ids]
    beside, frame = path.with_suffix(".tmp"), pd.DataFrame(rows)

    def write() -> None:
        path.parent.mkdir(exist_ok=True)
        frame.to_parquet(beside)
        beside.replace(path)

    folder.written(write)


def _row(
    policy: LanguageModel,
    rollout: Rollout,
    i: int,
    verdict: Verdict,
    group: int,
    per_token: Mapping[str, Tensor | None],
) -> dict[str, Any]:
    """Return the row of completion ``i``."""
    keep = rollout.sequences.completion_mask[i].bool()
    ids = rollout.sequences.completion_ids[i][keep].tolist()
    row = {
        "prompt": rollout.examples[i].prompt,
        "answer": rollout.examples[i].answer,
        "completion": rollout.texts[i],
        "reward": verdict.reward,
        "parts": json.dumps(verdict.parts),
        "correct": verdict.correct,
        "why": verdict.why,
        "counted": verdict.counted,
        "group": group,
        "finished": bool(rollout.finished[i]),
        "ids": ids,
        "tokens": policy.tokenizer.convert_ids_to_tokens(ids),
    }
    if rollout.off_policy is not None:
        row["trace"] = bool(rollout.off_policy[i])
    if rollout.teacher_prompts is not None:
        row["teacher_prompt"] = rollout.teacher_prompts[i]
    for name, values in per_token.items():
        row[name] = None if values is None else values[i][keep].tolist()
    return row
