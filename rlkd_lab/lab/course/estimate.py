"""What a run will cost, before it is started: hours from a few measured steps, and memory as
planned beside what is there.

Nothing here was fitted to a GPU. What is computed follows from shapes; what is measured was
measured on the machine that you sit at.
"""

from __future__ import annotations

import gc
from typing import Any

import pandas as pd
import torch

from rlkd_lab.models import LanguageModel
from rlkd_lab.training import RunConfig
from rlkd_lab.training.plan import plan

GIB = 2**30
PARTS = ("rollout", "reward", "old", "teacher", "divergences", "reference", "update")


def gpu_hours(rows: pd.DataFrame, steps: int, evaluations: int = 0) -> pd.DataFrame:
    """Hours for a planned run from the rows of a short one on the same machine.

    Args:
        rows: ``folder.metrics()`` of the short run. Its first step is left out, which loads and
            compiles; so it has 2 or more.
        steps: of the planned run.
        evaluations: of the planned run; the short one must hold one then, and it may not be in the
            first step.

    Returns:
        A row a part, with ``seconds`` (mean of a step, or of an evaluation), ``times`` and
        ``hours`` = seconds·times / 3600; and ``total``, whose seconds are those of a step with its
        share of the evaluations. Completions that get longer in training cost more: measure again
        later.

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
    evaluated = (
        rows["eval/accuracy"].notna()
        if "eval/accuracy" in rows
        else pd.Series(False, index=rows.index)
    )
    parts = [
        part for part in PARTS if f"time/{part}" in rows and rows[f"time/{part}"].notna().any()
    ]
    rest = rows["step_time"] - sum(
        (rows[f"time/{part}"].fillna(0.0) for part in parts), pd.Series(0.0, index=rows.index)
    )
    between = float(rest[~evaluated].mean()) if not evaluated.all() else 0.0
    found: list[dict[str, Any]] = [
        {"part": part, "seconds": float(rows[f"time/{part}"].fillna(0.0).mean()), "times": steps}
        for part in parts
    ]
    found.append({"part": "the rest", "seconds": between, "times": steps})
    if evaluations:
        if not evaluated.any():
            raise ValueError(
                "no evaluation was measured after the first step: set eval_every so that the"
                " short run has one"
            )
        found.append(
            {
                "part": "evaluation",
                "seconds": float(rest[evaluated].mean()) - between,
                "times": evaluations,
            }
        )
    table = pd.DataFrame(found).set_index("part")
    table["hours"] = table["seconds"] * table["times"] / 3600
    table.loc["total"] = [
        float((table["seconds"] * table["times"]).sum()) / steps,
        steps,
        float(table["hours"].sum()),
    ]
    return table.astype({"times": int})


def held_bytes(lm: LanguageModel) -> int:
    """Bytes of the frozen weights as they lie in memory now, with the scales of 4 bit.

    Adapters are left out.
    """
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
    "student": "weights; 4-bit layers with their scales, everything else in the precision that is"
    " computed in",
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


def memory_table(
    student: LanguageModel, teacher: LanguageModel | None, config: RunConfig
) -> pd.DataFrame:
    """Where the memory of a run goes: :func:`~rlkd_lab.training.plan.plan` beside what lies in
    memory now.

    Args:
        student: as :func:`~rlkd_lab.models.load_policy` gave it.
        teacher: or none.
        config: of the planned run.

    Returns:
        A row a part: ``predicted``, ``measured`` on this machine (missing: not measured), as text,
        and ``how``. Parts of sampling and of updating are never there together: the peak counts the
        larger of the two sums.
    """
    found = plan(config, gpu=student.head.weight.element_size() == 2)  # type: ignore[operator]
    here = {"student": student, "teacher": teacher}
    rows = []
    for when, parts in (
        ("", found.held),
        ("sampling: ", found.sampling),
        ("updating: ", found.updating),
    ):
        for name, count in parts.items():
            lm = here.get(name)
            rows.append(
                (
                    when + name,
                    size(count),
                    "" if lm is None or not count else size(held_bytes(lm)),
                    HOW[name],
                )
            )
    rows.append(
        ("peak", size(found.peak), "", "all the time, and the larger of sampling and updating")
    )
    return pd.DataFrame(rows, columns=["part", "predicted", "measured", "how"]).set_index("part")


def release() -> None:
    """Give the memory of models that were deleted back to the GPU, for the next process."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def size(count: float) -> str:
    """Bytes in words.

    >>> size(1.5e9), size(3 * 2**20)
    ('1.4 GiB', '3.0 MiB')
    """
    value, unit = (count / GIB, "GiB") if count >= GIB else (count / 2**20, "MiB")
    return f"{value:.{1 if value < 100 else 0}f} {unit}"
