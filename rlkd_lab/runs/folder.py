"""The run folder, plain files: training writes it, and everything that shows a run reads it.

    config.json      settings
    env.json         versions, device, seed, commit, digest of the data
    status.json      idle, running, paused, done, or failed and why
    metrics.jsonl    a row a step
    events.jsonl     knob requests and outcomes, decisions, warnings
    requests.jsonl   what people ask of the run; it answers in events.jsonl
    samples/         step_000010.parquet: completions with per-token arrays
    checkpoints/     step_000010/
    twins/           forks of the run without its moved knobs, run folders themselves
    lock             held by the process that trains the run

Appends are whole lines; replacements are written beside and renamed.
A reader tolerates a torn last line.
Where the disk is full, the run waits (``RunFolder.wait``) and writes again.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import pandas as pd

from rlkd_lab.runs.checks import FORMAT, check_whole

Written = TypeVar("Written")
State = Literal["idle", "running", "paused", "done", "failed"]
Kind = Literal["step", "probe"]
FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors that say that the disk is full, or the user's share of it."""


class RunFolder:
    """A run on disk, opened for reading and appending."""

    def __init__(self, path: str | Path, writes: bool = True) -> None:
        self.path = Path(path)
        self.writes = writes
        """Whether this process writes; one of several that train the run together does."""
        self.wait: Callable[[OSError], None] | None = None
        """Called with the error of a failed write; the write is tried again when it returns."""

    def written(self, write: Callable[[], Written]) -> Written:
        """Return ``write()``; call it again after :attr:`wait` as long as the disk refuses.

        ``write`` leaves nothing half done.
        """
        while True:
            try:
                return write()
            except OSError as error:
                if self.wait is None:
                    raise
                self.wait(error)

    @classmethod
    def create(cls, path: str | Path, config: dict[str, Any], env: dict[str, Any]) -> RunFolder:
        """Make a new run folder.

        Raises:
            FileExistsError: something is there already.
            PermissionError: the folder cannot be written.
        """
        cls.check_free(path)
        target = Path(path)
        # Made beside and renamed, so that a refused or killed start leaves no half of a run.
        beside = target.with_name(f".{target.name}.new-{os.getpid()}")
        try:
            (beside / "samples").mkdir(parents=True)
            (beside / "checkpoints").mkdir()
            folder = cls(beside)
            folder.write_json("config.json", {"format": FORMAT, **config})
            folder.write_json("env.json", env)
            folder.write_json("status.json", {"state": "idle", "step": 0, "updated": time.time()})
            for name in ("metrics.jsonl", "events.jsonl"):
                (beside / name).touch()
            if target.exists():
                target.rmdir()
            beside.rename(target)
        except BaseException as error:
            shutil.rmtree(beside, ignore_errors=True)
            if isinstance(error, PermissionError) or (
                isinstance(error, OSError) and error.errno == errno.EROFS
            ):
                raise PermissionError(
                    f"no permission to write {target}: choose another --out"
                ) from error
            if isinstance(error, OSError) and error.errno in FULL:
                raise OSError(
                    error.errno, f"no space left for {target}: free some, or choose another --out"
                ) from error
            raise
        return cls(target)

    @staticmethod
    def check_free(path: str | Path) -> None:
        """Raise FileExistsError unless ``path`` is missing or an empty folder."""
        target = Path(path)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise FileExistsError(
                f"{target} exists and is not empty: choose another --out, `rlkd resume"
                f" {target}` it, or delete it"
            )
        for parent in target.parents:
            if parent.exists() and not parent.is_dir():
                raise FileExistsError(f"{target} cannot be made: {parent} is a file")

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Open an existing run.

        Raises:
            FileNotFoundError: no run there.
            ValueError: the folder is torn, has a newer format, or has a link that leads out.
        """
        check_whole(Path(path))
        return cls(path)

    def config(self) -> dict[str, Any]:
        """Return the run's config as it was written."""
        return json.loads((self.path / "config.json").read_text(encoding="utf-8"))

    def env(self) -> dict[str, Any]:
        """Return versions, device and commit."""
        return json.loads((self.path / "env.json").read_text(encoding="utf-8"))

    def status(self) -> dict[str, Any]:
        """Return ``state`` and ``step``.

        A failed or paused run has ``why``; a running one ``pid``, ``host`` and ``updated``.

        Raises:
            FileNotFoundError: the folder is gone.
            ValueError: status.json is damaged.
        """
        try:
            status = json.loads((self.path / "status.json").read_text(encoding="utf-8"))
            needed: dict[str, Any] = {"step": int}
            if status["state"] in ("running", "paused"):
                needed |= {"pid": int, "updated": int | float}
            if status["state"] not in get_args(State) or not all(
                isinstance(status[name], kind) for name, kind in needed.items()
            ):
                raise KeyError
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ValueError(
                f"{self.path / 'status.json'} is damaged: `rlkd resume {self.path}` goes on"
                " from the last checkpoint and writes it anew"
            ) from None
        return status

    def last_status(self) -> dict[str, Any]:
        """Return :meth:`status`, or an idle one where a crash has damaged it.

        The lock says whether the run is being trained.
        """
        try:
            return self.status()
        except ValueError:
            return {"state": "idle", "step": self.last_step()}

    def last_step(self) -> int:
        """Return the step of the last row; 0 before the first."""
        return len(self.rows("metrics.jsonl"))

    def set_status(
        self, state: State, step: int, why: str | None = None, pid: int | None = None
    ) -> None:
        """Replace status.json; ``pid`` is this process's by default."""
        self.write_json("status.json", _status(state, step, why, pid))

    def say_over(self, state: State, step: int, why: str) -> None:
        """Write the status over the old one, on a disk that may have no room for another file.

        A failure is ignored.
        """
        with contextlib.suppress(OSError), (self.path / "status.json").open("r+b") as file:
            file.write(json.dumps(_status(state, step, why), ensure_ascii=False).encode())
            file.truncate()

    def write_json(self, name: str, value: Any) -> None:
        """Write beside and rename, so that a reader never sees half of a file."""
        self._replace(name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def _replace(self, name: str, text: str) -> None:
        if not self.writes:
            return
        beside = self.path / (name + ".tmp")

        def write() -> None:
            beside.write_text(text, encoding="utf-8", errors="replace")
            beside.replace(self.path / name)

        self.written(write)

    def ask(self, request: str, **what: Any) -> int:
        """Append a request to requests.jsonl, from any thread or process.

        The run answers in events.jsonl, with the same id.

        Args:
            request: ``knob`` (with ``knob`` and ``value``), ``release`` (with ``knob``), ``pause``,
                ``go_on``, ``step``, ``stop``, ``checkpoint``, ``twin`` (with ``kind``) or ``begin``
                (forgets the buttons pressed before).
            what: the rest. ``at`` is the step from which a knob is moved, by default the next.

        Returns:
            The id, unique in the run.

        Raises:
            OSError: the request cannot be written; no part of it stays in the file.
        """
        number = time.time_ns()
        with contextlib.suppress(OSError, ValueError):
            now = self.status()
            # a run killed before it reads this must not act on it in the steps that it repeats
            if now["state"] in ("running", "paused"):
                what = {"after": now["step"], **what}
        line = (json.dumps({"id": number, "request": request, **what}) + "\n").encode()
        path = self.path / "requests.jsonl"
        try:
            with path.open("ab+", buffering=0) as file:
                if file.seek(0, os.SEEK_END):
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":  # the last line is torn
                        line = b"\n" + line
                _add(file, line)
        except OSError as error:
            raise OSError(
                error.errno, f"nothing was asked, for {path} cannot be written: {error.strerror}"
            ) from error
        return number

    def append(self, name: Literal["metrics.jsonl", "events.jsonl"], row: dict[str, Any]) -> None:
        """Append one line in one write; NaN and infinities become null, since JSON has none."""
        if not self.writes:
            return
        clean = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in row.items()
        }
        line = (json.dumps(clean, ensure_ascii=False) + "\n").encode("utf-8", errors="replace")

        def write() -> None:
            # r+ does not make the file, so a folder that was removed is an error
            with (self.path / name).open("r+b", buffering=0) as file:
                _add(file, line)

        self.written(write)

    def rows(
        self, name: Literal["metrics.jsonl", "events.jsonl"] = "metrics.jsonl"
    ) -> list[dict[str, Any]]:
        """Return all whole lines; a torn last line is left out.

        Raises:
            ValueError: another line is broken, or metrics miss a step or have one twice.
        """
        lines = (self.path / name).read_bytes().split(b"\n")
        mend = (
            "put the file back from a copy, or cut it before that line, and `rlkd resume"
            f" {self.path}` computes the rest again"
        )
        found: list[dict[str, Any]] = []
        for number, line in enumerate(lines, 1):
            if not line:
                continue
            try:
                row = json.loads(line)
                if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                    raise ValueError("a row without its step")
            except (ValueError, RecursionError):
                if number == len(lines):  # no newline after it: the write was cut
                    break
                raise ValueError(
                    f"{self.path}/{name} is damaged in line {number}: {mend}"
                ) from None
            before = found[-1]["step"] if found else 0
            if name == "metrics.jsonl" and row["step"] != before + 1:
                raise ValueError(
                    f"{self.path}/{name} is damaged in line {number}, step {row['step']}"
                    f" after step {before}: {mend}"
                )
            found.append(row)
        return found

    def truncate(
        self, name: Literal["metrics.jsonl", "events.jsonl"], step: int, keep: tuple[str, ...] = ()
    ) -> None:
        """Keep the rows up to and including ``step``, and later events of the kinds ``keep``."""
        self.rewrite(name, lambda row: row["step"] <= step or row.get("event") in keep)

    def rewrite(
        self, name: Literal["metrics.jsonl", "events.jsonl"], keep: Callable[[dict[str, Any]], bool]
    ) -> None:
        """Keep some rows and drop the others, with any torn line."""
        if not self.writes:
            return
        kept = [json.dumps(row, ensure_ascii=False) for row in self.rows(name) if keep(row)]
        self._replace(name, "".join(line + "\n" for line in kept))

    def metrics(self) -> pd.DataFrame:
        """Return a row for each step with a column for each metric, indexed by step."""
        frame = pd.DataFrame(self.rows("metrics.jsonl"))
        return frame.set_index("step") if len(frame) else frame

    def sample_steps(self, kind: Kind = "step") -> list[int]:
        """Return the recorded steps of rollouts (``step``) or fixed prompts (``probe``)."""
        return sorted(
            int(file.stem.partition("_")[2])
            for file in (self.path / "samples").glob(f"{kind}_*.parquet")
        )

    def samples(self, step: int | None = None, kind: Kind = "step") -> pd.DataFrame:
        """Return the recorded completions of a step, by default the last recorded one.

        ``kind="probe"`` returns those of a few prompts that never change.

        Raises:
            FileNotFoundError: nothing was recorded at that step.
            ValueError: the file is damaged.
        """
        recorded = self.sample_steps(kind)
        if not recorded or (step is not None and step not in recorded):
            listed = ", ".join(map(str, recorded)) or "none"
            raise FileNotFoundError(
                f"no samples of step {step} in {self.path}; recorded steps: {listed}"
            )
        file = self._sample_file(kind, recorded[-1] if step is None else int(step))
        try:
            return pd.read_parquet(file)
        except (OSError, ValueError) as error:  # pyarrow's errors are both
            raise ValueError(f"{file} is damaged: {error}") from error

    def thin_samples(self, keep: int) -> None:
        """Keep at most ``keep`` recorded steps, the first and the last among them; 0 keeps all.

        The steps whose neighbours are nearest are removed.
        """
        for kind in get_args(Kind) if keep and self.writes else ():
            steps = self.sample_steps(kind)
            while len(steps) > max(keep, 2):
                between = min(range(1, len(steps) - 1), key=lambda i: steps[i + 1] - steps[i - 1])
                self._sample_file(kind, steps.pop(between)).unlink(missing_ok=True)

    def _sample_file(self, kind: Kind, step: int) -> Path:
        return self.path / "samples" / f"{kind}_{step:06d}.parquet"

    def checkpoints(self) -> list[Path]:
        """Return the whole checkpoints, oldest first."""
        found = [
            path
            for path in (self.path / "checkpoints").glob("step_*")
            if path.name[5:].isdecimal() and (path / "state.json").exists()
        ]
        return sorted(found, key=lambda path: int(path.name[5:]))

    @property
    def touched(self) -> bool:
        """Whether a knob was moved by hand; such a run stays out of means over seeds."""
        return any(row["event"] == "knob" for row in self.rows("events.jsonl"))


def _status(state: State, step: int, why: str | None, pid: int | None = None) -> dict[str, Any]:
    status = {"state": state, "step": step, "why": why, "updated": time.time()}
    if state in ("running", "paused"):
        status |= {"pid": pid or os.getpid(), "host": socket.gethostname()}
    return status


def _add(file: io.FileIO, line: bytes) -> None:
    """Write all of a line at the end of a file, or nothing."""
    end = file.seek(0, os.SEEK_END)
    try:
        if file.write(line) != len(line):
            raise OSError(errno.ENOSPC, "no space left on device")
    except OSError:
        file.truncate(end)
        raise
