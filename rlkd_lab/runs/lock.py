"""A lock on a folder, which the system releases when its holder is gone."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = "lock"
"""The file that names the last holder; it stays, and the lock on it counts."""

PATIENCE = 2.0
"""Seconds to wait for a holder: a run that was stopped clears up for a moment."""


@contextmanager
def alone(folder: str | Path, doing: str) -> Iterator[None]:
    """Hold the folder's lock, so that no other process or thread works in the folder.

    Args:
        folder: an existing folder.
        doing: what is done there, for the message: ``trained``.

    Raises:
        ValueError: the lock stays held for two seconds; the message names the holder.
        PermissionError: the folder cannot be written.
    """
    file = Path(folder) / LOCK
    lock = FileLock(file, thread_local=False)
    try:
        lock.acquire(timeout=PATIENCE)
    except (Timeout, RuntimeError):  # the latter: by this thread
        raise ValueError(
            f"{folder} is being {doing} by {_holder(file)}: two at once would mix what they"
            " write. Stop that one first"
        ) from None
    except PermissionError as error:
        raise PermissionError(f"no permission to write {folder}: {error.strerror}") from error
    try:
        # On a full disk, or where a locked file cannot be written, only the holder's name is lost.
        with suppress(OSError):
            file.write_text(
                json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()})
                + "\n",
                encoding="utf-8",
            )
        yield
    finally:
        lock.release()


def _holder(file: Path) -> str:
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
        pid, host = int(held["pid"]), str(held["host"])
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
    if host != socket.gethostname():
        return f"process {pid} of {host}"
    return "this process already" if pid == os.getpid() else f"process {pid}"
