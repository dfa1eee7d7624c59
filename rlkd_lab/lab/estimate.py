"""What a run will cost, before it is started: hours from a few measured steps, and memory from the shapes of the models.

Nothing here was fitted to a GPU. What is computed follows from shapes; what is measured was measured on the machine that you sit at.
"""

from __future__ import annotations

import gc
from typing import Any

import pandas as pd
import torch
from torch import nn

from rlkd_lab.models import LanguageModel
from rlkd_lab.training import RunConfig

GIB = 2**30
BLOCK = 64
"""Weights that share a scale in NF4."""
EVALUATED = 128
"""Completions that an evaluation in a run samples at a time."""
PARTS = ("rollout", "old", "teacher", "divergences", "reference", "update")


def gpu_hours(rows: pd.DataFrame, steps: int, evaluations: int = 0) -> pd.DataFrame:
    """Hours for a planned run from the rows of a short one on the same machine.

    Args:
        rows: ``folder.metrics()`` of the short run. Its first step is left out, which loads and compiles; so it has 2 or more.
        steps: of the planned run.
        evaluations: of the planned run; the short one must hold one then, and it may not be in the first step.

    Returns:
        A row a part, with ``seconds`` (mean of a step, or of an evaluation), ``times`` and ``hours`` = seconds·times / 3600; and ``total``, whose seconds are
        those of a step with its share of the evaluations. Completions that get longer in training cost more: measure again later.

    Raises:
        ValueError: too few rows, or no evaluation to measure.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps={steps!r}: hours are computed for 1 or more steps")
    if len(rows) < 2:
        raise ValueError("hours need 2 or more measured steps: the first one, which warms up, does not count")
    rows = rows.iloc[1:]
    evaluated = rows["eval/accuracy"].notna() if "eval/accuracy" in rows else pd.Series(False, index=rows.index)
    parts = [part for part in PARTS if f"time/{part}" in rows and rows[f"time/{part}"].notna().any()]
    rest = rows["step_time"] - sum((rows[f"time/{part}"].fillna(0.0) for part in parts), pd.Series(0.0, index=rows.index))
    between = float(rest[~evaluated].mean()) if not evaluated.all() else 0.0
    found: list[dict[str, Any]] = [{"part": part, "seconds": float(rows[f"time/{part}"].fillna(0.0).mean()), "times": steps} for part in parts]
    found.append({"part": "the rest", "seconds": between, "times": steps})
    if evaluations:
        if not evaluated.any():
            raise ValueError("no evaluation was measured after the first step: set eval_every so that the short run has one")
        found.append({"part": "evaluation", "seconds": float(rest[evaluated].mean()) - between, "times": evaluations})
    table = pd.DataFrame(found).set_index("part")
    table["hours"] = table["seconds"] * table["times"] / 3600
    table.loc["total"] = [float((table["seconds"] * table["times"]).sum()) / steps, steps, float(table["hours"].sum())]
    return table.astype({"times": int})


def nf4_bytes(parameters: float, double: bool = True) -> float:
    """Bytes of weights in NF4: half a byte each and a scale for every 64: 4 bytes, or with double quantisation 1 byte and 4 bytes for every 256 scales.

    >>> round(nf4_bytes(64 * 256, double=False)), round(nf4_bytes(64 * 256))
    (9216, 8452)
    """
    return parameters * (0.5 + (1 / BLOCK + 4 / (256 * BLOCK) if double else 4 / BLOCK))


def adapter_bytes(parameters: float) -> float:
    """Bytes of an adapter in training: float32 weights, gradients and AdamW's two moments, 16 a parameter."""
    return 16.0 * parameters


def cache_bytes(shape: Any, tokens: int, element: int = 2) -> float:
    """Bytes of the key-value cache: 2 · layers · key-value heads · head width · tokens · bytes an element.

    Args:
        shape: a transformers config.
        tokens: prompts and completions that are alive at a time.
        element: bytes a number: 2 in 16 bit, 4 in float32.
    """
    width = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
    return 2.0 * shape.num_hidden_layers * heads * width * tokens * element


def parameters_of(lm: LanguageModel) -> dict[str, int]:
    """Parameters by kind: ``linear`` (in the layers that 4 bit quantises), ``other`` (embeddings, norms, head) and ``adapter`` (trained)."""
    counts = {"linear": 0, "other": 0, "adapter": 0}
    head = lm.head
    inside = {
        id(module.weight) for name, module in lm.causal_lm.named_modules() if isinstance(module, nn.Linear) and module is not head and "lora_" not in name
    }
    for name, parameter in lm.model.named_parameters():
        state = getattr(parameter, "quant_state", None)  # packed two to a byte
        size = parameter.numel() if state is None else state.shape.numel()
        kind = "adapter" if "lora_" in name else "linear" if id(parameter) in inside else "other"
        counts[kind] += size if kind != "adapter" or parameter.requires_grad else 0
    return counts


def held_bytes(lm: LanguageModel) -> int:
    """Bytes of the frozen weights as they lie in memory now, with the scales of 4 bit. Adapters are left out."""
    total = 0
    for name, parameter in lm.model.named_parameters():
        if "lora_" in name:
            continue
        total += parameter.numel() * parameter.element_size()
        state = getattr(parameter, "quant_state", None)
        for tensor in () if state is None else (state.absmax, *((state.state2.absmax,) if state.nested else ())):
            total += tensor.numel() * tensor.element_size()
    return total


def memory_table(student: LanguageModel, teacher: LanguageModel | None, config: RunConfig) -> pd.DataFrame:
    """Where the memory of a run goes.

    Args:
        student: as :func:`~rlkd_lab.models.load_policy` gave it.
        teacher: or none.
        config: of the planned run.

    Returns:
        A row a part: ``computed`` from shapes, ``measured`` on this machine (missing: not measured), as text, and ``how``. Activations have no row: they
        depend on kernels and lengths, and only a measured peak (``memory/peak_gib`` of a short run) tells.
    """
    element = student.head.weight.element_size()  # type: ignore[operator]
    rows: list[tuple[str, float, float | None, str]] = []
    for title, lm in (("student", student), ("teacher", teacher)):
        if lm is None:
            continue
        counts = parameters_of(lm)
        packed = nf4_bytes(counts["linear"]) if lm.quant == "nf4" else counts["linear"] * element
        words = f"{counts['linear'] / 1e6:.3g} M in {lm.quant}, {counts['other'] / 1e6:.3g} M in {8 * element} bit"
        rows.append((f"{title}: weights", packed + counts["other"] * element, float(held_bytes(lm)), words))
    trained = parameters_of(student)["adapter"]
    rows.append(("adapter, gradients, AdamW", adapter_bytes(trained), None, f"{trained / 1e6:.3g} M parameters of 16 bytes"))
    alive = {"rollout": (config.prompts_per_step * config.group_size, config.max_new_tokens)}
    if config.eval_every:
        alive["evaluation"] = (min(config.eval_prompts, EVALUATED), 2 * config.max_new_tokens)  # out of distribution the limit is doubled
    what, (completions, length) = max(alive.items(), key=lambda item: item[1][0] * item[1][1])
    cache = cache_bytes(student.causal_lm.config, completions * length, element)
    rows.append(("key-value cache, at most", cache, None, f"{what}: {completions} completions of {length} tokens at a time, prompts not counted"))
    if config.dense_twin and element == 4:
        dense = 4.0 * sum(parameters_of(lm)["linear"] * copies for lm, copies in ((student, 3), (teacher, 1)) if lm is not None)
        rows.append(("dense copies", dense, None, "float32, of student, merged student, reference and teacher: on a CPU alone"))
    frame = pd.DataFrame(rows, columns=["part", "computed", "measured", "how"])
    total = float(frame["computed"].sum())
    frame["computed"] = frame["computed"].map(size)
    frame["measured"] = frame["measured"].map(lambda value: "" if pd.isna(value) else size(value))
    frame.loc[len(frame)] = ["sum, without activations", size(total), "", "a lower bound"]
    return frame.set_index("part")


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
