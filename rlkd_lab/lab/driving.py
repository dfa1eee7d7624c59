"""Three ways to drive a run, one handle: a thread of this kernel, a process of its own, or attached
to what runs already.

The handle holds no state of the run: it reads the run folder and writes requests into it. So it
does not matter who drives, and a new kernel can take over.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlkd_lab.objectives import is_added, nearest
from rlkd_lab.runs import RunFolder, Tail
from rlkd_lab.training import RunConfig, config_of, create, resume
from rlkd_lab.training.config import check_knob
from rlkd_lab.training.environment import alive

Where = Literal["thread", "process", "elsewhere", "nowhere"]
TwinKind = Literal["off", "untouched", "noise"]
STATES = {
    "idle": "idle: Start goes on from the last checkpoint, or begins",
    "running": "running",
    "paused": "paused between two steps",
    "stopping": "stopping: the completion that is being written is given up",
    "done": "done",
    "failed": "failed",
    "lost": "lost: the process that drove it is gone; Start goes on from the last checkpoint",
}


@dataclass(frozen=True)
class Status:
    """What a run is doing.

    ``where``: a thread of this kernel, a process started by it, elsewhere, or nowhere.
    """

    state: Literal["idle", "running", "paused", "stopping", "done", "failed", "lost"]
    step: int
    steps: int
    why: str | None
    where: Where


class RunFailed(RuntimeError):
    """A run that another process drove has failed; the message is its reason."""


class _Worker:
    """A thread of this kernel that drives a run."""

    def __init__(self, path: Path) -> None:
        self.error: BaseException | None = None
        self.thread = threading.Thread(
            target=self._work, args=(path,), name=f"run {path.name}", daemon=True
        )
        self.thread.start()

    def _work(self, path: Path) -> None:
        try:
            resume(path)
        except BaseException as error:  # `wait` raises it where somebody sees it
            self.error = error


_workers: dict[Path, _Worker] = {}
_processes: dict[Path, subprocess.Popen[bytes]] = {}


class Handle:
    """A run to watch and to steer."""

    def __init__(self, path: str | Path, drive: Literal["thread", "process"] = "thread") -> None:
        self.folder = RunFolder.open(path)
        self.path = self.folder.path.resolve()
        self.config: RunConfig = config_of(self.folder)
        self.drive = drive
        self._stop_asked = False

    def __repr__(self) -> str:
        now = self.status()
        return (
            f"Run {self.path.name}: {self.config.method}, {STATES[now.state]}, step"
            f" {now.step} of {now.steps}" + (f" ({now.why})" if now.why else "")
        )

    def status(self) -> Status:
        """State in one word, step, reason, and where it runs.

        Raises:
            FileNotFoundError: the run folder is gone.
        """
        try:
            written = self.folder.status()
        except FileNotFoundError:
            raise FileNotFoundError(
                f"the run folder {self.path} is gone: deleted or moved; open_run(its new"
                " place) attaches to a run that was moved"
            ) from None
        except ValueError as error:  # a crash has spoilt it: whoever starts the run writes it anew
            return Status("lost", self.folder.last_step(), self.config.steps, str(error), "nowhere")
        state, where = written["state"], "nowhere"
        if state in ("running", "paused"):
            where = self._where(written)
            if where == "nowhere":
                state = "lost"
            elif self._stop_asked:
                state = "stopping"
        else:
            self._stop_asked = False
        return Status(state, written["step"], self.config.steps, written.get("why"), where)  # type: ignore[arg-type]

    def _where(self, written: dict[str, Any]) -> Where:
        worker, process = _workers.get(self.path), _processes.get(self.path)
        if worker is not None and worker.thread.is_alive():
            return "thread"
        if process is not None and process.poll() is None:
            return "process"
        if written.get("pid") == os.getpid() and worker is not None:
            return "nowhere"
        return "elsewhere" if alive(written) else "nowhere"

    # --- knobs ------------------------------------------------------------------------------------

    def request(
        self, knob: str, value: float | None, at: int | None = None, source: str = "panel"
    ) -> int:
        """Ask for a knob's value, from the next step on or from step ``at`` on; ``None`` is off. A
        run that is idle takes it when it goes on.

        Returns:
            the id with which events.jsonl answers.

        Raises:
            ValueError: unknown knob, value out of range; RuntimeError: the run is done. Nothing is
                changed.
        """
        checked = check_knob(self.config.method, knob, value)
        if at is not None and (
            isinstance(at, bool) or not isinstance(at, int) or not 1 <= at <= self.config.steps
        ):
            raise ValueError(
                f"at={at!r} is no step of this run: it has steps 1–{self.config.steps}."
                " Nothing was changed"
            )
        self._check_not_over()
        return self.folder.ask(
            "knob", knob=knob, value=checked, source=source, **({} if at is None else {"at": at})
        )

    def release(self, knob: str, source: str = "panel") -> int:
        """Give a knob back to its schedule."""
        nearest(knob, self.config.schedules(), f"knob of {self.config.method}")
        self._check_not_over()
        return self.folder.ask("release", knob=knob, source=source)

    def twin(self, kind: TwinKind, chances: int = 1) -> None:
        """What a moved knob forks: nothing, an untouched twin, or that and ``chances`` twins
        that show what chance alone does.
        """
        nearest(kind, ("off", "untouched", "noise"), "twin")
        if isinstance(chances, bool) or not isinstance(chances, int) or not 1 <= chances <= 16:
            raise ValueError(f"chances={chances!r}: a whole number of noise twins, 1–16")
        self._check_not_over()
        self.folder.ask("twin", kind=kind, chances=chances)

    def _check_not_over(self) -> None:
        if self.status().state == "done":
            raise RuntimeError(
                "the run is done: nothing was changed. Start another one to move its knobs"
            )

    # --- buttons ----------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start, or go on from the last checkpoint.

        Raises:
            RuntimeError: it is running already, or done.
        """
        now = self.status()
        if now.state == "paused":
            return self.go_on()
        if now.state not in ("idle", "failed", "lost"):
            raise RuntimeError(f"the run is {now.state}: there is nothing to start")
        self._stop_asked = False
        self.folder.ask("begin")
        if self.drive == "thread":
            self.folder.set_status("running", now.step, "loading the models")
            _workers[self.path] = _Worker(self.path)
        else:
            _workers.pop(self.path, None)  # what it raised is history
            command = [sys.executable, "-m", "rlkd_lab.cli", "resume", str(self.path)]
            away: dict[str, Any] = (
                {"creationflags": 0x8} if sys.platform == "win32" else {"start_new_session": True}
            )  # DETACHED_PROCESS
            with (self.path / "log.txt").open("ab") as log:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **away
                )
            _processes[self.path] = process
            self.folder.set_status("running", now.step, "loading the models", process.pid)
        return None

    def pause(self) -> None:
        """Wait after the step that is running."""
        self._check_live("pause")
        self.folder.ask("pause")

    def go_on(self) -> None:
        """End a pause."""
        self._check_live("go on")
        self.folder.ask("go_on")

    def step(self) -> None:
        """One step, then pause. A run that is not running is started for it."""
        if self.status().state in ("idle", "failed", "lost"):
            raise RuntimeError(
                "the run is not running: start it, pause it, then let it take a step"
            )
        self._check_live("step")
        self.folder.ask("step")

    def stop(self) -> None:
        """Stop now, within a token; what is finished is kept, and ``begin`` goes on."""
        self._check_live("stop")
        self._stop_asked = True
        self.folder.ask("stop")

    def checkpoint(self) -> None:
        """Write a checkpoint after the step that is running."""
        self._check_live("write a checkpoint")
        self.folder.ask("checkpoint")

    def _check_live(self, what: str) -> None:
        state = self.status().state
        if state not in ("running", "paused", "stopping"):
            raise RuntimeError(f"cannot {what}: the run is {STATES[state]}")

    # --- the end ----------------------------------------------------------------------------------

    def wait(self, timeout: float | None = None) -> RunFolder:
        """Wait until nothing drives the run any more, and raise what it raised. Widgets do not
        answer while a cell waits.

        Raises:
            what the loop raised (thread), RunFailed (elsewhere), TimeoutError.
        """
        began = time.monotonic()
        while (now := self.status()).state in ("running", "paused", "stopping"):
            if timeout is not None and time.monotonic() - began > timeout:
                raise TimeoutError(
                    f"still {now.state} at step {now.step} of {now.steps} after {timeout:g} s"
                )
            time.sleep(0.05)
        worker = _workers.get(self.path)
        if worker is not None:
            worker.thread.join()
            if worker.error is not None and now.state in ("failed", "lost"):
                raise worker.error
        if now.state == "failed":
            raise RunFailed(now.why or "no reason given")
        if now.state == "lost":
            raise RunFailed(
                f"the process that drove {self.path.name} is gone" + _last_words(self.path)
            )
        return self.folder

    def settle(self) -> None:
        """For the end of a notebook: wait where nobody can press a button (``RLKD_WAIT`` or
        ``RLKD_SHORT`` is set); with a reader, say how far it is and do not block the widgets.
        Raises what the loop raised.
        """
        if (
            os.environ.get("RLKD_WAIT")
            or os.environ.get("RLKD_SHORT")
            or self.status().state not in ("running", "paused", "stopping")
        ):
            self.wait()
            from rlkd_lab.lab.panel import draw_now  # it imports this module for its types

            draw_now(self.path)
        print(self)


def start(
    config: RunConfig,
    out: str | Path,
    twin: TwinKind | Literal["auto"] = "auto",
    begin: bool = True,
) -> Handle:
    """Drive a run in a thread of this kernel. What is in ``out`` already is attached to: a done run
    is loaded, an interrupted one goes on.

    Args:
        config: of the run.
        out: its folder.
        twin: ``off``, ``untouched`` or ``noise``; ``auto`` is untouched on a CPU and off on a GPU.
            What was chosen in a panel since stays.
        begin: False leaves it idle, for the panel's Start button.

    Raises:
        ValueError: there is a run with other settings.
    """
    return _open_or_create(config, out, "thread", twin, begin)


def launch(
    config: RunConfig,
    out: str | Path,
    twin: TwinKind | Literal["auto"] = "auto",
    begin: bool = True,
) -> Handle:
    """Drive a run in a process of its own, which outlives the kernel; its output is in
    ``OUT/log.txt``. Otherwise as :func:`start`.

    Raises:
        ValueError: also for a method of :func:`~rlkd_lab.objectives.add_method`, which another
            process does not have.
    """
    if is_added(config.method):
        raise ValueError(
            f"{config.method} was added in this process, and a process of its own does not"
            " have it: drive the run with start()"
        )
    return _open_or_create(config, out, "process", twin, begin)


def open_run(path: str | Path, drive: Literal["thread", "process"] = "thread") -> Handle:
    """Attach to a run, whoever drives it, or load a finished one.

    Raises:
        FileNotFoundError, ValueError: no run there, or a torn one.
    """
    return Handle(path, drive)


def _open_or_create(
    config: RunConfig,
    out: str | Path,
    drive: Literal["thread", "process"],
    twin: TwinKind | Literal["auto"],
    begin: bool,
) -> Handle:
    from rlkd_lab.models import default_device
    from rlkd_lab.training.loop import fingerprint

    nearest(twin, ("auto", "off", "untouched", "noise"), "twin")
    new = not (Path(out) / "config.json").exists()
    handle = Handle(create(config, out).path if new else out, drive)
    if not new and fingerprint(handle.config) != fingerprint(config):
        raise ValueError(
            f"{out} holds a run with other settings: delete it, or choose another folder"
        )
    kind: TwinKind = (
        ("off" if default_device().type == "cuda" else "untouched") if twin == "auto" else twin
    )
    first = next(
        (
            request.get("kind")
            for request in Tail(handle.path / "requests.jsonl").read()
            if request.get("request") == "twin"
        ),
        kind,
    )
    if new or (
        twin != "auto" and kind != first and handle.status().state != "done"
    ):  # what was chosen since, in a panel, outlives a cell that is run again
        handle.twin(kind)
    if begin and handle.status().state in ("idle", "failed", "lost"):
        handle.begin()
    return handle


def _last_words(path: Path) -> str:
    log = path / "log.txt"
    lines = (
        log.read_text(errors="replace", encoding="utf-8").strip().splitlines()
        if log.exists()
        else []
    )
    return f"; its log ends: {lines[-1][-300:]}" if lines else ""
