"""Delete a run folder that nobody uses."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlkd_lab.runs.folder import RunFolder
from rlkd_lab.runs.lock import alone
from rlkd_lab.runs.overview import WITH_A_PROCESS


def delete(path: Path, alive: Callable[[dict[str, Any]], bool]) -> None:
    """Delete a run for good, whole or torn.

    Args:
        path: the run folder.
        alive: takes a status and says whether its process is still there.

    Raises:
        ValueError: a process drives the run, or holds its lock; nothing was deleted.
    """
    with contextlib.suppress(FileNotFoundError):
        status: dict[str, Any] = {}
        with contextlib.suppress(ValueError):
            status = RunFolder(path).status()
        if status.get("state") in WITH_A_PROCESS and alive(status):
            raise ValueError(f"{path.name} is {status['state']}: stop it first. It was not deleted")
    with alone(path, "trained"):  # nobody finds it under its name any more
        gone = path.rename(path.with_name(f".{path.name}.deleted-{os.getpid()}"))
    shutil.rmtree(gone)
