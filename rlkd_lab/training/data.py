"""Digests of what a task gives, and how two of them differ in words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlkd_lab.tasks.base import SPLITS, Example
from rlkd_lab.tasks.questions import QuestionTask
from rlkd_lab.tasks.reasoning import ReasoningGymTask
from rlkd_lab.tasks.verifier import GuardedTask
from rlkd_lab.training.environment import version_of

Data = dict[str, Any]


def data_of(
    task: GuardedTask,
    name: str,
    drawn: Sequence[Example],
    teacher_prompt: Callable[[Example], str] | None = None,
) -> Data:
    """Return digests of what a task gives.

    Args:
        task: before prompts are left out for their length.
        name: as in the config.
        drawn: some examples, always the same ones of a run.
        teacher_prompt: of an example, where the teacher has another than the student.

    Returns:
        ``digest``: SHA-256 of all rows in their order and splits, or of ``drawn`` for a task that
            makes its prompts. Rows also have ``unordered``, a digest without their order, and
            ``rows``, their number by split. A set of reasoning-gym has its ``version``, a class
            in a file the file's digest, ``code``.
    """
    inner = task.task

    def line(split: str, question: str, example: Example) -> str:
        own = [split, question, example.answer, example.difficulty]
        more = [] if teacher_prompt is None else [teacher_prompt(example)]
        return json.dumps(own + more, default=str)

    if isinstance(inner, QuestionTask):
        rows = {split: inner.rows(split) for split in SPLITS}
        lines = [line(split, row.id, row) for split in SPLITS for row in rows[split]]
        return {
            "digest": _sha(lines),
            "unordered": _sha(sorted(lines)),
            "rows": {split: len(rows[split]) for split in SPLITS},
        }
    found: Data = {"digest": _sha(line("", example.prompt, example) for example in drawn)}
    if isinstance(inner, ReasoningGymTask):
        found["version"] = f"reasoning-gym {version_of('reasoning-gym')}"
    file, colon, _ = name.rpartition(":")
    if colon and file.endswith(".py"):
        found["code"] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return found


def _sha(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def what_changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return how data differs, in words, or ``None``.

    >>> before = {"digest": "a", "unordered": "c", "rows": {"train": 8}}
    >>> what_changed(before, before | {"digest": "b"})
    'the same rows in another order'
    """
    if before.get("digest") == now["digest"]:
        then, here = before.get("evaluation"), now.get("evaluation")
        return "evaluations ask other prompts than then" if then and here and then != here else None
    if "rows" in before and "rows" in now:
        if before.get("unordered") == now["unordered"]:
            return "the same rows in another order"
        then, here = (
            ", ".join(f"{count:,} {split}" for split, count in data["rows"].items())
            for data in (before, now)
        )
        return (
            f"rows then: {then}; now: {here}"
            if then != here
            else f"as many rows as then ({here}), some with another question, answer or difficulty,"
            " or another field of teacher_prompt"
        )
    then, here = (str(data.get("version")) for data in (before, now))
    if then != here:
        detail = f" ({then} then, {here} now)"
    else:
        detail = " (its file was edited)" if _edited(before, now) else ""
    return f"it draws other prompts than then{detail}"


def notes(before: Mapping[str, Any], now: Mapping[str, Any], task: str) -> list[str]:
    """Return sentences about what is new though the same prompts are drawn."""
    texts = []
    if before.get("version") != now.get("version"):
        texts.append(
            f"{task} is of {now.get('version')} now, and was of {before.get('version')}; the"
            " prompts that were compared are the same"
        )
    if _edited(before, now):
        texts.append(
            f"the file of {task} was edited since the run began; it draws the same prompts,"
            " and may judge otherwise"
        )
    return texts


def _edited(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    return before.get("code") != now.get("code")
