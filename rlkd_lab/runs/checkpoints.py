"""Checkpoints on disk: whole or not there, checked when they are read, and no more of them than
asked for.

A checkpoint is a folder ``checkpoints/step_000010`` with ``state.json``, which holds a SHA-256 of
every other file and one of itself. It is written beside and renamed, and it and the rows up to it
have reached the disk before older ones are removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlkd_lab.runs.folder import RunFolder

DIGESTS = "sha256"
OWN = "sha256_of_this"
"""Of the state's own text without this entry, as json.dumps writes it."""
STATE = "state.json"


class Damaged(ValueError):
    """A checkpoint that cannot be read, or is not what was written."""


def step_of(checkpoint: Path) -> int:
    """The step after which it was written."""
    return int(checkpoint.name.removeprefix("step_"))


def save(
    folder: RunFolder, step: int, fill: Callable[[Path], None], state: Mapping[str, Any]
) -> Path:
    """Write the checkpoint of a step: the files that ``fill`` puts into the folder it is given,
    and ``state``.
    """
    target = folder.path / "checkpoints" / f"step_{step:06d}"
    if not folder.writes:
        return target
    beside = target.with_suffix(".tmp")

    def write() -> None:
        shutil.rmtree(beside, ignore_errors=True)
        target.parent.mkdir(exist_ok=True)
        beside.mkdir()
        fill(beside)
        files = sorted(path for path in beside.rglob("*") if path.is_file())
        digests = {str(path.relative_to(beside)): _digest(path) for path in files}
        whole = {**state, DIGESTS: digests}
        (beside / STATE).write_text(
            json.dumps({**whole, OWN: _digest_of_text(whole)}), encoding="utf-8"
        )
        for path in (
            *files,
            beside / STATE,
            beside,
            folder.path / "metrics.jsonl",
            folder.path / "events.jsonl",
        ):
            _to_disk(path)
        _remove(target)  # of a life that came as far and was cut
        beside.rename(target)
        _to_disk(target.parent)

    folder.written(write)
    return target


def read(checkpoint: Path) -> dict[str, Any]:
    """The state of a checkpoint whose files are as they were written.

    Raises:
        Damaged: they are not.
    """
    try:
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        own = state.pop(OWN, None)  # versions before wrote none
        if own is not None and own != _digest_of_text(state):
            raise ValueError(f"{STATE} is not what was written")
        present = {
            str(path.relative_to(checkpoint)): path
            for path in checkpoint.rglob("*")
            if path.is_file()
        }  # no name leads out of the folder
        wrong = [
            name
            for name, digest in state.get(DIGESTS, {}).items()
            if name not in present or _digest(present[name]) != digest
        ]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise Damaged(
            f"the checkpoint {checkpoint} is damaged: {type(error).__name__}: {error}"
        ) from error
    if wrong:
        raise Damaged(f"the checkpoint {checkpoint} is damaged: {wrong[0]} is not what was written")
    return dict(state)


def check(folder: Path) -> None:
    """Raise :class:`Damaged` if a folder is a run's checkpoint whose files are not as they were
    written; any other passes, a copy elsewhere too.
    """
    place = folder.resolve()
    if place.parent.name == "checkpoints" and (place / STATE).exists():
        read(folder)


def prune(folder: RunFolder, keep: int) -> None:
    """Remove all checkpoints but the newest ``keep`` and the best: the newest of those with the
    highest ``accuracy`` in their state. 0 keeps all.
    """
    if not folder.writes or not keep:
        return
    found = folder.checkpoints()
    best = max(found, key=_accuracy, default=None) if len(found) > keep else None
    for path in found[:-keep]:
        if path != best:
            _remove(path)


def sweep_up(folder: RunFolder) -> None:
    """Remove what a life that was cut left half written or half removed."""
    if folder.writes:
        for path in (folder.path / "checkpoints").glob("*.tmp"):
            shutil.rmtree(path, ignore_errors=True)


def _accuracy(checkpoint: Path) -> tuple[float, str]:
    try:
        return float(
            json.loads((checkpoint / STATE).read_text(encoding="utf-8"))["accuracy"]
        ), checkpoint.name
    except (OSError, ValueError, TypeError, KeyError):
        return -1.0, checkpoint.name


def _remove(path: Path) -> None:
    """So that at no moment a part of it looks whole."""
    gone = path.with_suffix(".gone.tmp")
    with contextlib.suppress(FileNotFoundError):
        path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _digest_of_text(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _to_disk(path: Path) -> None:
    """Past the system's cache: what is renamed or removed after this cannot overtake it when
    the power goes.
    """
    if path.is_dir() and os.name == "nt":
        return  # where a folder cannot be opened
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
