"""What a step did to each token, from the run folder alone: values the models gave, and the
gradient that the method makes of them.

The log-probabilities of a recorded rollout are those before its first update, so everything here is
said of that update: π_θ = π_old. What later updates of the same rollout clip cannot be rebuilt from
the record. Nor can the weight that the loop gives to an end-of-sequence token which the teacher
would write
otherwise: there, advantage and gradient are those of a teacher who has a say.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlkd_lab.lab.driving import Handle
from rlkd_lab.objectives import (
    METHODS,
    TokenBatch,
    advantage,
    nearest,
    needs_of,
    prepare,
    resolve_options,
    token_loss,
)
from rlkd_lab.objectives.surrogates import log_importance, trrd_log_ratio
from rlkd_lab.runs import RunFolder

Kind = Literal["step", "probe"]
Values = NDArray[Any]


@dataclass(frozen=True)
class Array:
    """A value per token.

    ``scale``: ``signed`` is about 0, ``positive`` starts there, ``ratio`` is about 1 on a
    logarithmic scale.
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
"""What is said of some tokens; arrays of bool."""


@dataclass(frozen=True)
class TokenArrays:
    """Per-token arrays of a recorded step."""

    step: int
    frame: pd.DataFrame
    """The completions, a row each, as they were recorded."""
    arrays: dict[str, list[Values]]
    """By name, an array a completion, as long as its tokens: :data:`ARRAYS` (float) and
    :data:`MARKS` (bool), as far as they can be had.
    """
    missing: dict[str, str]
    """Why the others cannot be had, a sentence each."""


def folder_of(run: RunFolder | Handle | str) -> RunFolder:
    """The folder of a run, a handle of one, or a path."""
    return (
        run.folder
        if isinstance(run, Handle)
        else run
        if isinstance(run, RunFolder)
        else RunFolder.open(run)
    )


def token_arrays(
    run: RunFolder | Handle | str,
    step: int | None = None,
    rows: Sequence[int] | None = None,
    *,
    kind: Kind = "step",
) -> TokenArrays:
    """Everything that can be said of each token of a recorded rollout.

    Advantages and gradients come from :func:`~rlkd_lab.objectives.prepare` and
    :func:`~rlkd_lab.objectives.token_loss`, with the method, options and coefficients of that step,
    on the whole rollout, whichever rows are asked for: groups and normalisers are those of the run.

    Args:
        run: a run folder, a handle, or a path.
        step: a recorded one; the last by default.
        rows: numbers of the completions to return; all by default.
        kind: ``step``, or ``probe`` for the fixed prompts, which nothing is trained on: they have
            no advantage and no gradient.

    Raises:
        FileNotFoundError: nothing was recorded there.
        ValueError: a damaged file.
    """
    folder = folder_of(run)
    recorded = folder.sample_steps(kind)
    if not recorded:
        what = "recorded rollouts" if kind == "step" else "recorded probes"
        raise FileNotFoundError(
            f"{folder.path} has no {what} (yet): train with --set samples_every=1 to record"
            " every step, and 0 records none"
        )
    if step is not None and step not in recorded:
        raise FileNotFoundError(
            f"step {step} of {folder.path} was not recorded: choose one of"
            f" {', '.join(map(str, recorded))}"
        )
    step = recorded[-1] if step is None else int(step)
    try:
        frame = folder.samples(step, kind)
        lengths = [len(ids) for ids in frame["ids"]]
    except (ValueError, KeyError, TypeError) as error:
        name = f"{kind}_{step:06d}.parquet"
        raise ValueError(
            f"{folder.path}/samples/{name} is damaged: delete it and look at another step ({error})"
        ) from error
    found: dict[str, list[Values]] = {}
    missing: dict[str, str] = {}
    for name, column, sign in (
        ("surprisal", "logps", -1),
        *((name, name, 1) for name in ("kl_teacher_rev", "kl_teacher_fwd", "entropy")),
    ):
        values = _lists(frame, column, lengths)
        if values is None:
            missing[name] = "it was not measured at this step" + (
                ""
                if name == "entropy"
                else ": no teacher was asked for its distribution (kl_every)"
            )
        else:
            found[name] = [sign * one for one in values]
    logps, theirs = _lists(frame, "logps", lengths), _lists(frame, "teacher_logps", lengths)
    if logps is None or theirs is None:
        missing["log_ratio"] = "no teacher was asked at this step (teacher=off)"
    else:
        found["log_ratio"] = [
            theirs_of - ours for ours, theirs_of in zip(logps, theirs, strict=True)
        ]
    credited = ("advantage", "trrd_ratio", "gradient_weight", *MARKS)
    if kind == "probe":
        missing |= dict.fromkeys(credited, "nothing is trained on the probe's prompts")
    else:
        made, lacking = _credit(folder, step, frame, lengths)
        found |= {
            name: [array[i, :length].numpy() for i, length in enumerate(lengths)]
            for name, array in made.items()
        }
        missing |= (
            {name: lacking for name in credited if name not in made}
            if isinstance(lacking, str)
            else lacking
        )
    chosen = list(range(len(frame))) if rows is None else list(rows)
    order = [name for name in (*ARRAYS, *MARKS) if name in found]
    return TokenArrays(
        step,
        frame.iloc[chosen].reset_index(drop=True),
        {name: [found[name][i] for i in chosen] for name in order},
        missing,
    )


def _lists(frame: pd.DataFrame, column: str, lengths: list[int]) -> list[Values] | None:
    """A column of lists as arrays, or ``None`` where it was not recorded for every completion."""
    if column not in frame or any(
        value is None or isinstance(value, float) for value in frame[column]
    ):
        return None
    values = [np.asarray(value, dtype=np.float64) for value in frame[column]]
    if [len(value) for value in values] != lengths:
        raise ValueError(
            f"the samples are damaged: {column} has other lengths than the completions; look"
            " at another step"
        )
    return values


def _credit(
    folder: RunFolder, step: int, frame: pd.DataFrame, lengths: list[int]
) -> tuple[dict[str, Tensor], dict[str, str] | str]:
    """Advantage, ratio, gradient and marks, (B, T) each, of the first update on a rollout; and
    why some, or all, cannot be had.
    """
    row = next((row for row in folder.rows("metrics.jsonl") if row["step"] == step), None)
    if row is None:
        return (
            {},
            f"step {step} is still being trained, or was cut: its coefficients are not in"
            " metrics.jsonl yet",
        )
    config = folder.config()
    name = config["method"]
    method = METHODS[nearest(name, METHODS, "method")]
    unknown = [coef for coef in method.coefs if f"coef/{coef}" not in row]
    if unknown:
        return (
            {},
            f"the row of step {step} does not say {', '.join(unknown)}: the run was made by"
            " an older version",
        )
    coefs = {coef: row[f"coef/{coef}"] for coef in method.coefs}
    width = max([1, *lengths])

    def padded(column: str) -> Tensor | None:
        values = _lists(frame, column, lengths)
        return (
            None
            if values is None
            else torch.tensor(
                np.stack([np.pad(value, (0, width - len(value))) for value in values])
            )
        )

    def per_row(column: str) -> Tensor | None:
        return (
            None
            if column not in frame or frame[column].isna().any()
            else torch.tensor(frame[column].to_numpy(dtype=np.float64))
        )

    old, groups = padded("logps"), per_row("group")
    if old is None:
        return {}, "the student's log-probabilities were not recorded"
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).double()
    if config.get("mask_truncated"):
        mask = mask * torch.tensor(frame["finished"].to_numpy(dtype=np.float64))[:, None]
    lacking: dict[str, str] = {}
    found: dict[str, Tensor] = {}
    with torch.enable_grad():
        try:
            options = resolve_options(
                method,
                {"constant_length": config.get("max_new_tokens"), **config.get("options", {})},
            )
            needs = needs_of(method, coefs, options)
            batch = TokenBatch(
                logps=old.clone().requires_grad_(),
                completion_mask=mask,
                old_logps=old,
                teacher_logps=padded("teacher_logps"),
                ref_logps=padded("ref_logps"),
                rewards=per_row("reward"),
                correct=per_row("correct"),
                group_ids=None if groups is None else groups.long(),
                divergence=torch.zeros_like(old) if "divergence" in needs else None,
            )
            prepared = prepare(name, batch, coefs, options)
            if method.ratio == "none":
                lacking |= dict.fromkeys(
                    ("advantage", "trrd_ratio", *MARKS),
                    f"{name} has none: it is no policy-gradient method",
                )
            else:
                credit = advantage(name, prepared, coefs, options)
                # the penalties off: what is left is the policy gradient
                alone = {
                    **coefs,
                    "kl_coef": 0.0,
                    **({"kd_coef": 0.0} if method.penalty is not None else {}),
                }
                cut = (
                    (_gradient(name, prepared, batch.logps, alone, options) == 0)
                    & (mask > 0)
                    & (credit != 0)
                )
                found |= {"advantage": credit * mask, "dead": cut}
                lacking |= dict.fromkeys(
                    ("trrd_ratio", "bound"), f"{name} has no such ratio: it is TRRD's"
                )
            if method.ratio == "trrd":
                assert prepared.teacher_logps is not None and prepared.kd_weight is not None
                silent = torch.where(
                    prepared.kd_weight == 0, prepared.old, prepared.teacher_logps
                )  # as token_loss has it
                said = TokenBatch(
                    logps=old, completion_mask=mask, old_logps=prepared.old, teacher_logps=silent
                )
                ratio, bound = trrd_log_ratio(
                    said,
                    log_importance(said),
                    float(coefs["trrd_alpha"] or 0.0),
                    coefs["trrd_gap_bound"],
                )
                found |= {"trrd_ratio": ratio.exp(), "bound": bound & (mask > 0) & (credit != 0)}
                lacking = {}
            if "divergence" in needs and coefs.get("kd_coef", 1.0):
                lacking["gradient_weight"] = (
                    "the loss holds a divergence over the whole vocabulary, which the record"
                    " does not"
                )
            elif coefs.get("importance_cap") is not None and config.get("engine") != "hf":
                lacking["gradient_weight"] = (
                    "importance_cap weighs tokens by what the sampler reported, which is not"
                    " recorded"
                )
            else:
                found["gradient_weight"] = -_gradient(name, prepared, batch.logps, coefs, options)
        except ValueError as error:
            return {}, str(error)
    return {name: array.detach() for name, array in found.items()}, lacking


def _gradient(
    name: str,
    prepared: TokenBatch,
    logps: Tensor,
    coefs: dict[str, float | None],
    options: dict[str, Any],
) -> Tensor:
    """∂loss/∂logps, (B, T)."""
    loss, _ = token_loss(
        name,
        prepared,
        {coef: value for coef, value in coefs.items() if coef in METHODS[name].coefs},
        options,
    )
    (gradient,) = torch.autograd.grad(loss, logps, retain_graph=True, allow_unused=True)
    return torch.zeros_like(logps) if gradient is None else gradient


# --- tokens to look at ----------------------------------------------------------------------------


def _byte_alphabet() -> dict[str, int]:
    """The characters by which byte-level tokenizers (GPT-2's and its heirs) write bytes:
    printable ones are themselves, the others follow from U+0100 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + i): byte for i, byte in enumerate(others)
    }


_BYTES = _byte_alphabet()


def visible(tokens: Sequence[str]) -> list[str]:
    """Token strings as a reader should see them: spaces as ␣, line ends as ⏎, tabs as ⇥, and
    whatever else has no look of its own by its number.

    >>> visible(["Ġof", "Ċ", "<eos>", "Â"])
    ['␣of', '⏎', '<eos>', '⟨C2⟩']
    >>> visible(["▁of", " ", "\\u202e"])
    ['␣of', '␣', '⟨U+202E⟩']
    """
    # Only a byte-level vocabulary writes a space as U+0120: elsewhere an É is an É.
    bytes_meant = any(character in token for token in tokens for character in "ĠĊ")
    return [_visible(token, bytes_meant) for token in tokens]


def _visible(token: str, bytes_meant: bool) -> str:
    if bytes_meant and all(character in _BYTES for character in token):
        raw = bytes(_BYTES[character] for character in token)
        try:
            token = raw.decode()
        except UnicodeDecodeError:  # part of a character
            return "⟨" + " ".join(f"{byte:02X}" for byte in raw) + "⟩"
    signs = {" ": "␣", "▁": "␣", "\n": "⏎", "\t": "⇥"}
    shown = "".join(
        signs.get(c) or (f"⟨U+{ord(c):04X}⟩" if unicodedata.category(c)[0] in "CZ" else c)
        for c in token
    )
    if shown and unicodedata.combining(shown[0]):
        shown = "◌" + shown
    return shown or "⟨empty⟩"
