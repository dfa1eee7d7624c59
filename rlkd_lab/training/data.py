"""What a task gives, as a digest in the run: a run that goes on or is replayed on other data says
so before it trains.

env.json holds under ``data`` what the run began with. A change that was accepted is an event
``data`` with the step after which it holds.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlkd_lab.models import distributed
from rlkd_lab.runs import RunFolder
from rlkd_lab.tasks import Example, GuardedTask, QuestionTask, ReasoningGymTask
from rlkd_lab.tasks.base import SPLITS
from rlkd_lab.training.environment import version_of

Data = dict[str, Any]
ACCEPT = "--accept-changed-data"


def data_of(task: GuardedTask, name: str, drawn: Sequence[Example]) -> Data:
    """What a task gives.

    Args:
        task: before prompts are left out for their length.
        name: as in the config.
        drawn: some examples, always the same ones of a run.

    Returns:
        ``digest``: SHA-256 of all rows in their order and splits, or of ``drawn`` for a task that
            makes its prompts. Of rows also ``unordered``, the same
        without their order, and ``rows``, their number by split. Of reasoning-gym also its
        ``version``; of a class in a file the file's digest, ``code``.
    """
    inner = task.task
    if isinstance(inner, QuestionTask):
        rows = {split: inner.rows(split) for split in SPLITS}
        lines = [_line(split, row.id, row) for split in SPLITS for row in rows[split]]
        return {
            "digest": _sha(lines),
            "unordered": _sha(sorted(lines)),
            "rows": {split: len(rows[split]) for split in SPLITS},
        }
    found: Data = {"digest": _sha(_line("", example.prompt, example) for example in drawn)}
    if isinstance(inner, ReasoningGymTask):
        found["version"] = f"reasoning-gym {version_of('reasoning-gym')}"
    file, colon, _ = name.rpartition(":")
    if colon and file.endswith(".py"):
        found["code"] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return found


def _line(split: str, question: str, example: Example) -> str:
    return json.dumps([split, question, example.answer, example.difficulty], default=str)


def _sha(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def what_changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """How data differs, in words; ``None``: it does not.

    >>> before = {"digest": "a", "unordered": "c", "rows": {"train": 8}}
    >>> what_changed(before, before | {"digest": "b"})
    'the same rows in another order'
    """
    if before.get("digest") == now["digest"]:
        return None
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
            else f"as many rows as then ({here}), some with another question, answer or difficulty"
        )
    versions = [str(data.get("version")) for data in (before, now)]
    detail = (
        f" ({versions[0]} then, {versions[1]} now)"
        if versions[0] != versions[1]
        else " (its file was edited)"
        if _edited(before, now)
        else ""
    )
    return f"it draws other prompts than then{detail}"


def _edited(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    return before.get("code") != now.get("code")


def data_until(folder: RunFolder, step: float = math.inf) -> Data | None:
    """The data that a run was trained on after ``step``;

    ``None`` for runs of versions that did not record it.
    """
    found = folder.env().get("data")
    changes = [
        event
        for event in folder.rows("events.jsonl")
        if event["event"] == "data" and event["step"] <= step
    ]
    return (
        dict(changes[-1]["data"])
        if changes
        else found
        if isinstance(found, dict) and "digest" in found
        else None
    )


def changed_after(events: Iterable[Mapping[str, Any]]) -> list[int]:
    """Steps after which a change of the data was accepted."""
    return [event["step"] for event in events if event["event"] == "data" and event["step"] > 0]


def refuse_changed(
    before: Mapping[str, Any] | None, now: Mapping[str, Any], task: str, command: str
) -> None:
    """Raise ValueError, in every process, where the data is not what it was;

    ``command`` would go on all the same.
    """
    changed = distributed.from_first(None if before is None else what_changed(before, now))
    if changed is not None:
        raise ValueError(
            f"the data of {task} was changed since the run began: {changed}. Put it back, or"
            f" go on with what is there: `{command} {ACCEPT}`"
        )


def record_data(folder: RunFolder, data: Data, told: Sequence[str], step: int, task: str) -> None:
    """Write down what the run is trained on from the next step on, if that is new, with what
    was told of its prompts.
    """
    if not distributed.first():
        return
    before = data_until(folder)
    texts = list(told) if before is None else []
    if before is None:
        folder.write_json("env.json", folder.env() | {"data": data})
        if step:
            texts.append(
                f"the run was made by a version that did not record its data; what {task}"
                f" gives is recorded from step {step} on"
            )
            warnings.warn(texts[-1], stacklevel=3)
    elif changed := what_changed(data_until(folder, step) or before, data):
        text = f"from here on the run is trained on changed data of {task}: {changed}"
        folder.append(
            "events.jsonl",
            {"event": "data", "step": step, "data": data, "text": text, "time": time.time()},
        )
        warnings.warn(f"after step {step}: {text}", stacklevel=3)
    else:
        texts += _notes(before, data, task)
    for text in texts:
        folder.append(
            "events.jsonl", {"event": "warning", "step": step, "text": text, "time": time.time()}
        )


def _notes(before: Mapping[str, Any], now: Mapping[str, Any], task: str) -> list[str]:
    """What else is new, though the same prompts are drawn."""
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
    for text in texts:
        warnings.warn(text, stacklevel=4)
    return texts
