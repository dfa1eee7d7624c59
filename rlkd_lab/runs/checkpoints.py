"""Checkpoints on disk: whole or not there, and checked when they are read.

A checkpoint is a folder ``checkpoints/step_000010`` with ``state.json``.
That file holds a SHA-256 of every other file and one of itself.
A checkpoint is written beside and renamed.
It and the rows up to it reach the disk before older checkpoints are removed.
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
"""Entry with the digest of the state's text without this entry, as json.dumps writes it."""
STATE = "state.json"


class Damaged(ValueError):
    """Raised for a checkpoint that cannot be read, or is not what was written."""


def step_of(checkpoint: Path) -> int:
    """Return the step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("step_"))


def save(
    folder: RunFolder, step: int, fill: Callable[[Path], None], state: Mapping[str, Any]
) -> Path:
    """Write the checkpoint of a step: ``state``, and the files that ``fill`` writes."""
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
        _remove(target)  # a session that was cut may have come as far
        beside.rename(target)
        _to_disk(target.parent)

    folder.written(write)
    return target


def read(checkpoint: Path) -> dict[str, Any]:
    """Return the state of a checkpoint.

    Raises:
        Damaged: a file is not as it was written.
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
    """Raise :class:`Damaged` for a damaged checkpoint of a run; other folders pass."""
    place = folder.resolve()
    if place.parent.name == "checkpoints" and (place / STATE).exists():
        read(folder)


def prune(folder: RunFolder, keep: int) -> None:
    """Remove all checkpoints but the newest ``keep`` and the best; 0 keeps all.

    The best is the newest with the highest ``accuracy`` in its state.
    """
    if not folder.writes or not keep:
        return
    found = folder.checkpoints()
    best = max(found, key=_accuracy, default=None) if len(found) > keep else None
    for path in found[:-keep]:
        if path != best:
            _remove(path)


def sweep_up(folder: RunFolder) -> None:
    """Remove what a session that was cut left half written or half removed."""
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
    """Rename and remove a folder, so that no part of it ever looks whole."""
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
    """Write a file or folder through the system's cache.

    Later renames and removals cannot reach the disk before it when the power fails.
    """
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
