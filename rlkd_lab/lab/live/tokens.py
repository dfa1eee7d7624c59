"""Values of each token of a recorded step: what the models said, what the method makes of it.

Recorded log-probabilities are those before the first update of a rollout, so π_θ = π_old.
Later updates of the same rollout may clip more tokens, which the record does not show.
The loop may weigh an end-of-sequence token less where the teacher would write another one.
The record does not hold that weight, so advantage and gradient use the full weight there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlkd_lab.lab.live.handle import Handle
from rlkd_lab.objectives import METHODS, TokenBatch, prepare, terms, token_loss
from rlkd_lab.objectives.loss import ResolvedMethod, resolve
from rlkd_lab.objectives.settings import nearest
from rlkd_lab.runs import RunFolder
from rlkd_lab.training.samples import counted_of, off_policy_of

Kind = Literal["step", "probe"]
Values = NDArray[Any]


@dataclass(frozen=True)
class Array:
    """A value of each token.

    ``scale`` is ``signed`` (around 0), ``positive`` (from 0 up) or ``ratio`` (around 1,
    logarithmic).
    """

    title: str
    formula: str
    scale: Literal["signed", "positive", "ratio"]


ARRAYS: dict[str, Array] = {
    "log_ratio": Array("log-ratio to the teacher", "d = log π_T − log π_old, nats", "signed"),
    "kl_teacher_rev": Array("KL(student‖teacher)", "of the next token, exact, nats", "positive"),
    "kl_teacher_fwd": Array("KL(teacher‖student)", "of the next token, exact, nats", "positive"),
    "entropy": Array("entropy", "of the student's next token, nats", "positive"),
    "surprisal": Array("surprisal", "−log π_old, nats", "positive"),
    "advantage": Array("advantage", "A, what the method credits the token with", "signed"),
    "trrd_ratio": Array("TRRD ratio", "r = (π_θ/π_old)^α · (π_θ/π_T)^(1−α)", "ratio"),
    "gradient_weight": Array(
        "gradient weight", "−∂loss/∂log π_θ: above 0 the token is made likelier", "signed"
    ),
}
MARKS: dict[str, str] = {
    "dead": "dead: A is not 0, but the clip cuts the policy gradient",
    "bound": "bounded: trrd_gap_bound acts, so at most α's share of the policy gradient is left",
}
"""Marks of tokens, arrays of bool, and their meaning."""


@dataclass(frozen=True)
class TokenArrays:
    """Arrays of a recorded step, a value for each token."""

    step: int
    frame: pd.DataFrame
    """The completions as they were recorded, a row each."""
    arrays: dict[str, list[Values]]
    """By name: a list with an array for each completion, (T,) each.

    Names are those of :data:`ARRAYS` (float) and :data:`MARKS` (bool) that can be computed.
    """
    missing: dict[str, str]
    """Why each other array cannot be computed, a sentence each."""


def folder_of(run: RunFolder | Handle | str | Path) -> RunFolder:
    """Return the run folder of a handle, a path or a run folder."""
    if isinstance(run, Handle):
        return run.folder
    return run if isinstance(run, RunFolder) else RunFolder.open(run)


def token_arrays(
    run: RunFolder | Handle | str,
    step: int | None = None,
    rows: Sequence[int] | None = None,
    *,
    kind: Kind = "step",
) -> TokenArrays:
    """Return the values of each token of a recorded rollout.

    Advantages and gradients come from :func:`~rlkd_lab.objectives.prepare` and
    :func:`~rlkd_lab.objectives.token_loss`, with the settings of that step.
    They are computed on the whole rollout, so ``rows`` does not change them.

    Args:
        run: a run folder, a handle, or a path.
        step: a recorded step; the last by default.
        rows: numbers of the completions to return; all by default.
        kind: ``step``, or ``probe`` for the fixed prompts.
            Nothing is trained on probes: they have no advantage and no gradient.

    Raises:
        FileNotFoundError: nothing was recorded there.
        ValueError: a damaged file.
    """
    folder = folder_of(run)
    step, frame = _recorded(folder, step, kind)
    lengths = [len(ids) for ids in frame["ids"]]
    arrays, missing = _measured(frame, lengths)
    credited = ("advantage", "trrd_ratio", "gradient_weight", *MARKS)
    if kind == "probe":
        missing |= dict.fromkeys(credited, "nothing is trained on the probe's prompts")
    else:
        made, why = _credit(folder, step, frame, lengths)
        for name, array in made.items():
            arrays[name] = [array[i, :length].numpy() for i, length in enumerate(lengths)]
        if isinstance(why, str):
            missing |= {name: why for name in credited if name not in made}
        else:
            missing |= why
    chosen = list(range(len(frame))) if rows is None else list(rows)
    order = [name for name in (*ARRAYS, *MARKS) if name in arrays]
    picked = {name: [arrays[name][i] for i in chosen] for name in order}
    return TokenArrays(step, frame.iloc[chosen].reset_index(drop=True), picked, missing)


def _recorded(folder: RunFolder, step: int | None, kind: Kind) -> tuple[int, pd.DataFrame]:
    """Return a recorded step, the last by default, and its completions."""
    recorded = folder.sample_steps(kind)
    if not recorded:
        what = "recorded rollouts" if kind == "step" else "recorded probes"
        raise FileNotFoundError(
            f"{folder.path} has no {what} (yet): train with --set samples_every=1 to record"
            " every step, and 0 records none"
        )
    if step is not None and step not in recorded:
        there = ", ".join(map(str, recorded))
        raise FileNotFoundError(
            f"step {step} of {folder.path} was not recorded: choose one of {there}"
        )
    step = recorded[-1] if step is None else int(step)
    try:
        frame = folder.samples(step, kind)
        _ = [len(ids) for ids in frame["ids"]]
    except (ValueError, KeyError, TypeError) as error:
        file = f"{folder.path}/samples/{kind}_{step:06d}.parquet"
        raise ValueError(
            f"{file} is damaged: delete it and look at another step ({error})"
        ) from error
    return step, frame


def _measured(
    frame: pd.DataFrame, lengths: list[int]
) -> tuple[dict[str, list[Values]], dict[str, str]]:
    """Return the arrays that were recorded as they are, and why others were not."""
    arrays: dict[str, list[Values]] = {}
    missing: dict[str, str] = {}
    columns = {"surprisal": "logps"}
    for name in ("surprisal", "kl_teacher_rev", "kl_teacher_fwd", "entropy"):
        values = _lists(frame, columns.get(name, name), lengths)
        if values is not None:
            arrays[name] = [-one for one in values] if name == "surprisal" else values
        else:
            asked = ": no teacher was asked for its distribution (kl_every)"
            missing[name] = "it was not measured at this step" + (
                asked if name != "entropy" else ""
            )
    ours = _lists(frame, "logps", lengths)
    theirs = _lists(frame, "teacher_logps", lengths)
    if ours is None or theirs is None:
        missing["log_ratio"] = "no teacher was asked at this step (teacher=off)"
    else:
        arrays["log_ratio"] = [t - o for o, t in zip(ours, theirs, strict=True)]
    return arrays, missing


def _lists(frame: pd.DataFrame, column: str, lengths: list[int]) -> list[Values] | None:
    """Return a column of lists as arrays, or ``None`` where a completion has no value."""
    if column not in frame:
        return None
    if any(value is None or isinstance(value, float) for value in frame[column]):
        return None
    values = [np.asarray(value, dtype=np.float64) for value in frame[column]]
    if [len(value) for value in values] != lengths:
        raise ValueError(
            f"the samples are damaged: {column} has other lengths than the completions; look"
            " at another step"
        )
    return values


# --- what the method makes of the tokens ----------------------------------------------------------


def _credit(
    folder: RunFolder, step: int, frame: pd.DataFrame, lengths: list[int]
) -> tuple[dict[str, Tensor], dict[str, str] | str]:
    """Return advantage, ratio, gradient and marks of the first update on a rollout.

    Returns:
        The arrays, (B, T) each, and why others, or all, cannot be computed.
    """
    rows = (row for row in folder.rows("metrics.jsonl") if row["step"] == step)
    row = next(rows, None)
    if row is None:
        return {}, (
            f"step {step} is still being trained, or was cut: its coefficients are not in"
            " metrics.jsonl yet"
        )
    config = folder.config()
    name = nearest(config["method"], METHODS, "method")
    knobs = METHODS[name].coefs
    unknown = [coef for coef in knobs if f"coef/{coef}" not in row]
    if unknown:
        lacks = ", ".join(unknown)
        return {}, f"the row of step {step} does not say {lacks}: an older version made the run"
    if _lists(frame, "logps", lengths) is None:
        return {}, "the student's log-probabilities were not recorded"
    coefs = {coef: row[f"coef/{coef}"] for coef in knobs}
    options = {"constant_length": config.get("max_new_tokens"), **config.get("options", {})}
    with torch.enable_grad():
        try:
            method = resolve(name, coefs, options)
            batch = _rebuilt(frame, lengths, bool(config.get("mask_truncated")), method)
            prepared = prepare(method, batch)
            found, missing = _policy_terms(method, prepared, batch.logps)
            why = _no_gradient(method, config)
            if why:
                missing["gradient_weight"] = why
            else:
                loss, _ = token_loss(method, prepared)
                found["gradient_weight"] = -_gradient(loss, batch.logps)
        except ValueError as error:
            return {}, str(error)
    return {name: array.detach() for name, array in found.items()}, missing


def _rebuilt(
    frame: pd.DataFrame, lengths: list[int], mask_truncated: bool, method: ResolvedMethod
) -> TokenBatch:
    """Return the recorded rollout as the loop had it, (B, T); ``logps`` is a new leaf."""
    width = max([1, *lengths])

    def padded(column: str) -> Tensor | None:
        values = _lists(frame, column, lengths)
        if values is None:
            return None
        return torch.tensor(np.stack([np.pad(one, (0, width - len(one))) for one in values]))

    def per_row(column: str) -> Tensor | None:
        if column not in frame or frame[column].isna().any():
            return None
        return torch.tensor(frame[column].to_numpy(dtype=np.float64))

    old, groups = padded("logps"), per_row("group")
    assert old is not None
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).double()
    if mask_truncated:
        mask = mask * torch.tensor(frame["finished"].to_numpy(dtype=np.float64))[:, None]
    # the teacher's entropy is not recorded; where it is needed the gradient is not shown
    unsure = torch.zeros_like(old) if "entropy" in method.needs else None
    divergence = None
    if "divergence" in method.needs:
        # of a penalty it is not recorded; a baseline is the reverse KL, which is
        divergence = torch.zeros_like(old) if method.row.penalty else padded("kl_teacher_rev")
    return TokenBatch(
        logps=old.clone().requires_grad_(),
        completion_mask=mask,
        old_logps=old,
        teacher_logps=padded("teacher_logps"),
        ref_logps=padded("ref_logps"),
        teacher_entropy=unsure,
        rewards=per_row("reward"),
        correct=per_row("correct"),
        group_ids=None if groups is None else groups.long(),
        counted=counted_of(frame),
        off_policy=off_policy_of(frame),
        divergence=divergence,
    )


def _policy_terms(
    method: ResolvedMethod, prepared: TokenBatch, logps: Tensor
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return advantage, dead tokens and TRRD's ratio, (B, T), and why some are missing."""
    parts, mask = terms(method, prepared), prepared.mask
    if parts.surrogate is None or parts.advantage is None or parts.ratio is None:
        why = f"{method.name} has none: it is no policy-gradient method"
        return {}, dict.fromkeys(("advantage", "trrd_ratio", *MARKS), why)
    gradient = _gradient((parts.surrogate.loss * mask).sum(), logps)
    credited = (mask > 0) & (parts.advantage != 0)
    found = {"advantage": parts.advantage * mask, "dead": (gradient == 0) & credited}
    if parts.bound is None:
        why = f"{method.name} has no such ratio: it is TRRD's"
        return found, dict.fromkeys(("trrd_ratio", "bound"), why)
    return found | {"trrd_ratio": parts.ratio, "bound": parts.bound & (mask > 0)}, {}


def _no_gradient(method: ResolvedMethod, config: dict[str, Any]) -> str:
    """Return why the gradient cannot be rebuilt, or an empty string."""
    held = "divergence" in method.needs and method.row.penalty is not None
    if held and method.coefs.get("kd_coef", 1.0):
        return "the loss holds a divergence over the whole vocabulary, which the record does not"
    if method.coefs.get("importance_cap") is not None and config.get("engine") != "hf":
        return "importance_cap weighs tokens by what the sampler reported, which is not recorded"
    return ""


def _gradient(loss: Tensor, logps: Tensor) -> Tensor:
    """Return ∂loss/∂logps, (B, T)."""
    if not loss.requires_grad:
        return torch.zeros_like(logps)
    (gradient,) = torch.autograd.grad(loss, logps, retain_graph=True, allow_unused=True)
    return torch.zeros_like(logps) if gradient is None else gradient
