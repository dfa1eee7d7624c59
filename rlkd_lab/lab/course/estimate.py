"""Estimate what a run will cost before it starts: hours and memory.

Hours follow from a few measured steps on this machine.
Memory follows from shapes, and stands beside the bytes that loaded models take now.
"""

from __future__ import annotations

import gc
from typing import Any

import pandas as pd
import torch

from rlkd_lab.models import LanguageModel
from rlkd_lab.training import RunConfig
from rlkd_lab.training.plan import GIB, plan

PARTS = ("rollout", "reward", "old", "teacher", "divergences", "reference", "update")


def gpu_hours(rows: pd.DataFrame, steps: int, evaluations: int = 0) -> pd.DataFrame:
    """Return the hours of a planned run from the rows of a short run on the same machine.

    Completions that get longer in training cost more, so measure again later.

    Args:
        rows: ``folder.metrics()`` of the short run, with 2 or more steps.
            Its first step loads and compiles, and is left out.
        steps: number of steps of the planned run.
        evaluations: number of evaluations of the planned run.
            If above 0, the short run needs an evaluation after its first step.

    Returns:
        A row for each part and a row ``total``.
        ``seconds`` is the mean of a step or an evaluation, ``hours`` = seconds·times / 3600.
        The seconds of ``total`` are those of a step with its share of the evaluations.

    Raises:
        ValueError: too few rows, or no evaluation to measure.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps={steps!r}: hours are computed for 1 or more steps")
    if len(rows) < 2:
        raise ValueError(
            "hours need 2 or more measured steps: the first one, which warms up, does not count"
        )
    rows = rows.iloc[1:]
    measured = _seconds_of_parts(rows)
    rest = rows["step_time"] - sum(measured.values(), pd.Series(0.0, index=rows.index))
    evaluated = pd.Series(False, index=rows.index)
    if "eval/accuracy" in rows:
        evaluated = rows["eval/accuracy"].notna()
    between = float(rest[~evaluated].mean()) if not evaluated.all() else 0.0
    parts: list[dict[str, Any]] = [
        {"part": part, "seconds": float(seconds.mean()), "times": steps}
        for part, seconds in measured.items()
    ]
    parts.append({"part": "the rest", "seconds": between, "times": steps})
    if evaluations:
        if not evaluated.any():
            raise ValueError(
                "no evaluation was measured after the first step: set eval_every so that the"
                " short run has one"
            )
        each = float(rest[evaluated].mean()) - between
        parts.append({"part": "evaluation", "seconds": each, "times": evaluations})
    table = pd.DataFrame(parts).set_index("part")
    spent = table["seconds"] * table["times"]
    table["hours"] = spent / 3600
    table.loc["total"] = [float(spent.sum()) / steps, steps, float(table["hours"].sum())]
    return table.astype({"times": int})


def _seconds_of_parts(rows: pd.DataFrame) -> dict[str, pd.Series]:
    """Return the seconds of each part of a step, 0 where a step did not need it."""
    columns = {part: f"time/{part}" for part in PARTS}
    return {
        part: rows[column].fillna(0.0)
        for part, column in columns.items()
        if column in rows and rows[column].notna().any()
    }


def held_bytes(lm: LanguageModel) -> int:
    """Return the bytes that the frozen weights take now, 4-bit scales included, adapters not."""
    total = 0
    for name, parameter in lm.model.named_parameters():
        if "lora_" in name:
            continue
        total += parameter.numel() * parameter.element_size()
        state = getattr(parameter, "quant_state", None)
        for tensor in (
            ()
            if state is None
            else (state.absmax, *((state.state2.absmax,) if state.nested else ()))
        ):
            total += tensor.numel() * tensor.element_size()
    return total


HOW = {
    "student": "weights; 4-bit layers with their scales, all else in the compute precision",
    "teacher": "the same; none where it shares the student's base",
    "adapter": "float32",
    "gradients and optimizer": "of the adapter, float32: 4 bytes and AdamW's 8",
    "dense copies": "on a CPU in float32, of student, merged student, reference, teacher; on a"
    " GPU of the student",
    "cache": "keys and values of the completions sampled at a time, all as long as the limit"
    " allows",
    "logits of a token": "of all rows, and what is computed from them",
    "activations": "of a micro-batch: forward and backward, the teacher beside it, a chunk of"
    " logits",
    "values of all tokens": "log-probabilities, masks and ids of the rollout",
    "prompts": "what frozen models keep of the prompts of a rollout",
    "a layer unpacked": "the largest 4-bit layer in 16 bit",
    "activations, or the teacher and fewer": "with the teacher in host memory: it comes for"
    " passes without gradient, which hold less",
}
"""What each part of the plan counts."""


def memory_table(
    student: LanguageModel,
    teacher: LanguageModel | None,
    config: RunConfig,
) -> pd.DataFrame:
    """Return where the memory of a run goes, planned and measured.

    Parts of sampling and parts of updating are never in memory together.
    The peak counts the larger of the two sums.

    Args:
        student: as :func:`~rlkd_lab.models.load_policy` returns it.
        teacher: a model or ``None``.
        config: of the planned run.

    Returns:
        A row for each part: ``predicted`` by :func:`~rlkd_lab.training.plan.plan`,
        ``measured`` on this machine (empty: not measured), and ``how``; all text.
    """
    planned = plan(config, gpu=student.head.weight.element_size() == 2)  # type: ignore[operator]
    loaded = {"student": student, "teacher": teacher}
    groups = {"": planned.held, "sampling: ": planned.sampling, "updating: ": planned.updating}
    rows = []
    for when, parts in groups.items():
        for name, count in parts.items():
            lm = loaded.get(name)
            measured = "" if lm is None or not count else size(held_bytes(lm))
            rows.append((when + name, size(count), measured, HOW[name]))
    peak = "all the time, and the larger of sampling and updating"
    rows.append(("peak", size(planned.peak), "", peak))
    columns = ["part", "predicted", "measured", "how"]
    return pd.DataFrame(rows, columns=columns).set_index("part")


def release() -> None:
    """Return the memory of deleted models to the GPU, for the next process."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def size(count: float) -> str:
    """Return a number of bytes in words.

    >>> size(1.5e9), size(3 * 2**20)
    ('1.4 GiB', '3.0 MiB')
    """
    value, unit = (count / GIB, "GiB") if count >= GIB else (count / 2**20, "MiB")
    return f"{value:.{1 if value < 100 else 0}f} {unit}"
