"""Start runs from a notebook, attach to them and wait for them.

A run is driven by a thread of this kernel, by a process that outlives the kernel,
or by somebody else. A handle is the same in all three cases.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Literal

from rlkd_lab.lab.live.family import place_beside
from rlkd_lab.objectives.adding import is_added
from rlkd_lab.objectives.settings import nearest
from rlkd_lab.runs import RunFolder
from rlkd_lab.runs.tail import Tail
from rlkd_lab.training import RunConfig, resume
from rlkd_lab.training.folders import create
from rlkd_lab.training.remote import FORK_KINDS, LIVE, ForkKind, RemoteRun, Where

Drive = Literal["thread", "process"]


class RunFailed(RuntimeError):
    """Raised for a run of another process that has failed; the message is its reason."""


class _Worker:
    """A thread of this kernel that drives a run.

    It waits for the thread that drove the run before: that one holds the folder's lock
    for a moment after it has written that it stopped.
    """

    def __init__(self, path: Path, before: threading.Thread | None) -> None:
        self.error: BaseException | None = None
        name, work = f"run {path.name}", (path, before)
        self.thread = threading.Thread(target=self._work, args=work, name=name, daemon=True)
        self.thread.start()

    def _work(self, path: Path, before: threading.Thread | None) -> None:
        if before is not None:
            before.join()
        try:
            resume(path)
        except BaseException as error:  # `wait` raises it
            self.error = error


_workers: dict[Path, _Worker] = {}
_processes: dict[Path, subprocess.Popen[bytes]] = {}


class Handle(RemoteRun):
    """A run to watch, to steer and to start.

    Args:
        path: the run folder.
        drive: what ``begin`` starts, a thread or a process.
    """

    def __init__(self, path: str | Path, drive: Drive = "thread") -> None:
        super().__init__(path)
        self.drive = drive

    def _where(self, written: dict[str, Any]) -> Where:
        worker, process = _workers.get(self.path), _processes.get(self.path)
        if worker is not None and worker.thread.is_alive():
            return "thread"
        if process is not None and process.poll() is None:
            return "process"
        if written.get("pid") == os.getpid() and worker is not None:
            return "nowhere"
        return super()._where(written)

    def driven(self, written: dict[str, Any]) -> bool:
        """Return whether a thread or a process drives the run, by the status that was written."""
        return self._where(written) != "nowhere"

    def begin(self) -> None:
        """Start the run, or continue it from its last checkpoint.

        Raises:
            RuntimeError: the run is running already, or done.
        """
        now = self.status()
        if now.state == "paused":
            return self.unpause()
        if now.state not in ("idle", "failed", "lost"):
            raise RuntimeError(f"the run is {now.state}: there is nothing to start")
        self._stop_asked = False
        self.folder.ask("begin")
        if self.drive == "thread":
            self.folder.set_status("running", now.step, "loading the models")
            before = _workers.get(self.path)
            _workers[self.path] = _Worker(self.path, before.thread if before else None)
        else:
            _workers.pop(self.path, None)  # an earlier thread's error no longer counts
            process = _start_process(self.path)
            _processes[self.path] = process
            self.folder.set_status("running", now.step, "loading the models", process.pid)
        return None

    def another(self, config: RunConfig) -> Handle:
        """Start another run in a new folder beside this one, driven as this one is."""
        asked = forks_asked(self.path)
        kinds = [kind for kind in FORK_KINDS if asked and kind == asked[-1]]
        fork: ForkKind | Literal["auto"] = kinds[0] if kinds else "auto"
        return _open_or_create(config, place_beside(self.path), self.drive, fork, True)

    def wait(self, timeout: float | None = None) -> RunFolder:
        """Wait until nothing drives the run any more.

        Widgets do not answer while a cell waits.

        Args:
            timeout: seconds; without limit by default.

        Returns:
            The run folder.

        Raises:
            TimeoutError: the run is still going on.
            RunFailed: the run failed elsewhere, or its process is gone.
                A run in a thread raises the error of its thread.
        """
        began = time.monotonic()
        while (now := self.status()).state in LIVE:
            if timeout is not None and time.monotonic() - began > timeout:
                where = f"at step {now.step} of {now.steps}"
                raise TimeoutError(f"still {now.state} {where} after {timeout:g} s")
            time.sleep(0.05)
        worker = _workers.get(self.path)
        if worker is not None:
            worker.thread.join()
            if worker.error is not None and now.state in ("failed", "lost"):
                raise worker.error
        if now.state == "failed":
            raise RunFailed(now.why or "no reason given")
        if now.state == "lost":
            gone = f"the process that drove {self.path.name} is gone"
            raise RunFailed(gone + _last_words(self.path))
        return self.folder

    def settle(self) -> None:
        """End a notebook: wait for the run where nobody can press a button.

        That is where ``RLKD_WAIT`` or ``RLKD_SHORT`` is set.
        Otherwise the method prints how far the run is, and widgets go on answering.
        It raises what :meth:`wait` raises.
        """
        nobody = os.environ.get("RLKD_WAIT") or os.environ.get("RLKD_SHORT")
        if nobody or self.status().state not in LIVE:
            self.wait()
            from rlkd_lab.lab.live.panel import draw_now  # that module imports this one

            draw_now(self.path)
        print(self)


def start(
    config: RunConfig,
    out: str | Path,
    fork: ForkKind | Literal["auto"] = "auto",
    begin: bool = True,
) -> Handle:
    """Drive a run in a thread of this kernel.

    A run that is in ``out`` already is attached to: a done run is loaded, an interrupted
    run continues.

    Args:
        config: of the run.
        out: its folder.
        fork: what the first moved knob forks: ``off``, ``untouched`` or ``noise``.
            ``auto`` is ``untouched`` on a CPU and ``off`` on a GPU.
            A later choice in a panel holds until this argument changes.
        begin: False leaves the run idle, for the panel's Start button.

    Raises:
        ValueError: ``out`` holds a run with other settings.
    """
    return _open_or_create(config, out, "thread", fork, begin)


def launch(
    config: RunConfig,
    out: str | Path,
    fork: ForkKind | Literal["auto"] = "auto",
    begin: bool = True,
) -> Handle:
    """Drive a run in a process that outlives the kernel, otherwise as :func:`start`.

    The process writes its output to ``OUT/log.txt``.

    Raises:
        ValueError: also for a method of :func:`~rlkd_lab.objectives.add_method`, which
            exists in this process alone.
    """
    if is_added(config.method):
        raise ValueError(
            f"{config.method} was added in this process, and another process does not have"
            " it: drive the run with start()"
        )
    return _open_or_create(config, out, "process", fork, begin)


def open_run(path: str | Path, drive: Drive = "thread") -> Handle:
    """Attach to a run, wherever it is driven, or load a finished one.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: the run folder is damaged.
    """
    return Handle(path, drive)


def _open_or_create(
    config: RunConfig,
    out: str | Path,
    drive: Drive,
    fork: ForkKind | Literal["auto"],
    begin: bool,
) -> Handle:
    from rlkd_lab.models import default_device
    from rlkd_lab.training.fingerprint import fingerprint

    nearest(fork, ("auto", *FORK_KINDS), "fork")
    new = not (Path(out) / "config.json").exists()
    handle = Handle(create(config, out).path if new else out, drive)
    if not new and fingerprint(handle.config) != fingerprint(config):
        raise ValueError(
            f"{out} holds a run with other settings: delete it, or choose another folder"
        )
    kind: ForkKind = "untouched"
    if fork != "auto":
        kind = fork
    elif default_device().type == "cuda":
        kind = "off"
    # A panel may have chosen since: only a changed cell overrides that choice.
    changed = fork != "auto" and kind != next(iter(forks_asked(handle.path)), kind)
    if new or (changed and handle.status().state != "done"):
        handle.fork(kind)
    if begin and handle.status().state in ("idle", "failed", "lost"):
        handle.begin()
    return handle


def forks_asked(path: Path) -> list[Any]:
    """Return the kinds of fork that were asked for, oldest first."""
    requests = Tail(path / "requests.jsonl").read()
    return [request.get("kind") for request in requests if request.get("request") == "twin"]


def _start_process(path: Path) -> subprocess.Popen[bytes]:
    """Resume the run in a process that outlives this one."""
    command = [sys.executable, "-m", "rlkd_lab", "resume", str(path)]
    detached: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        detached = {"creationflags": 0x8}  # DETACHED_PROCESS
    with (path / "log.txt").open("ab") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **detached
        )


def _last_words(path: Path) -> str:
    log = path / "log.txt"
    if not log.exists():
        return ""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"; its log ends: {lines[-1][-300:]}" if lines else ""
