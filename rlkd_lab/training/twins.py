"""The untouched twin: a fork of a run from the step before a knob was moved, trained beside it
without the move.

Both have the same weights, random streams and prompts at the fork, so that their difference is the
knob's. A noise twin is untouched too and samples other completions of the same prompts: how far it
drifts from the untouched one is what chance alone does. Twins are run folders below ``RUN/twins/``;
one loop trains run and twins in turns, by exchanging weights and optimizer.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from rlkd_lab.rollouts import Stopped
from rlkd_lab.runs import RunFolder
from rlkd_lab.runs.checkpoints import Damaged, step_of
from rlkd_lab.training.guards import Watch
from rlkd_lab.training.knobs import Knobs
from rlkd_lab.training.loop import Loop, Row, State
from rlkd_lab.training.room import Room

RUN_FAILED = "its run failed"
FORK = "fork.json"
"""In the folder of a twin alone."""


class Twin:
    """One fork: its folder, knobs and weights, while it is not its turn.

    What it made smaller for memory is its own, since its record is.
    """

    def __init__(
        self, loop: Loop, folder: RunFolder, state: State, stream: str, room: Room
    ) -> None:
        self.folder, self.knobs, self.state, self.stream, self.room = (
            folder,
            Knobs(loop.config),
            state,
            stream,
            room,
        )
        self.guards = Watch(
            loop.config.guards, loop.guards.tell
        )  # which writes into the folder whose turn it is

    @contextmanager
    def turn(self, loop: Loop) -> Iterator[None]:
        """Inside, the loop trains the twin. A step that is cut short leaves the twin as it was."""
        state, own = loop.snapshot(), (loop.folder, loop.knobs, loop.stream, loop.room, loop.guards)
        self.folder.wait = loop.folder.wait
        loop.restore(self.state)
        loop.folder, loop.knobs, loop.stream, loop.room, loop.guards = (
            self.folder,
            self.knobs,
            self.stream,
            self.room,
            self.guards,
        )
        try:
            yield
            self.state = loop.snapshot()
        finally:
            loop.restore(state)
            loop.folder, loop.knobs, loop.stream, loop.room, loop.guards = own


def fork(loop: Loop, kind: Literal["untouched", "noise"], number: int = 1) -> Twin:
    """A twin of the run as it is now, before the moves that wait."""
    name = f"step_{loop.step:06d}" + (f"-noise{number}" if kind == "noise" else "")
    path = loop.folder.path / "twins" / name
    shutil.rmtree(path, ignore_errors=True)
    path.parent.mkdir(exist_ok=True)
    folder = RunFolder.create(
        path, {k: v for k, v in loop.folder.config().items() if k != "format"}, loop.folder.env()
    )
    stream = f", chance {number}" if kind == "noise" else ""
    folder.write_json(FORK, {"step": loop.step, "kind": kind, "stream": stream})
    for row in loop.folder.rows("metrics.jsonl"):
        folder.append("metrics.jsonl", row)
    for row in loop.folder.rows("events.jsonl"):
        folder.append("events.jsonl", row)
    twin = Twin(loop, folder, loop.snapshot(), stream, loop.room.copy())
    twin.knobs.held = dict(loop.knobs.held)
    with twin.turn(loop):
        loop.save_checkpoint()
        folder.set_status("running", loop.step)
    return twin


def load(loop: Loop) -> list[Twin]:
    """The twins of a run that is resumed, each from its last whole checkpoint that the run and its
    own rows have reached. One that was forked later is dropped: the move that made it will come
    again. One that is damaged has failed, and the run goes on without it.
    """
    found = []
    for path in sorted((loop.folder.path / "twins").glob("step_*")):
        if path.is_symlink() or not path.is_dir():
            continue
        try:
            about = _about(path)
            if about["step"] >= loop.step:
                shutil.rmtree(path)
                continue
            twin = _taken_up(loop, RunFolder.open(path), about["stream"])
        except (OSError, ValueError) as error:
            if (path / "config.json").exists():  # otherwise it is nobody's run
                RunFolder(path).set_status("failed", 0, f"{type(error).__name__}: {error}")
            text = f"the twin {path.name} cannot go on ({error}); the run does"
            loop.folder.append(
                "events.jsonl",
                {"event": "warning", "step": loop.step, "text": text, "time": time.time()},
            )
        else:
            found += [twin] if twin is not None else []
    return found


def _taken_up(loop: Loop, folder: RunFolder, stream: str) -> Twin | None:
    """A twin as it was at its last whole checkpoint; None if it has ended."""
    ended, last = folder.last_status(), folder.last_step()
    if ended["state"] == "done" or (ended["state"] == "failed" and ended["why"] != RUN_FAILED):
        return None
    reached = [point for point in folder.checkpoints() if step_of(point) <= min(loop.step, last)]
    for point in reversed(reached):
        twin = Twin(
            loop,
            folder,
            loop.snapshot(),
            stream,
            Room.of(loop.config, folder.rows("events.jsonl"), step_of(point)),
        )
        with contextlib.suppress(Damaged), twin.turn(loop):
            loop.load_checkpoint(point)
            folder.truncate("metrics.jsonl", loop.step)
            return twin
    raise ValueError(f"it has no whole checkpoint that its {last} rows reach")


def _about(path: Path) -> dict[str, Any]:
    try:
        about = json.loads((path / FORK).read_text(encoding="utf-8"))
        return {"step": int(about["step"]), "stream": str(about["stream"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{FORK}, which says where it was forked, is missing or damaged") from None


class Twins:
    """The living twins of one run."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.alive = load(loop)

    def before_step(self, kind: Literal["off", "untouched", "noise"], chances: int = 1) -> None:
        """Fork if the coming step would be the first with a moved knob."""
        if kind != "off" and not self.alive and self.loop.knobs.moving(self.loop.step + 1):
            self.alive = [fork(self.loop, "untouched")]
            if kind == "noise":
                self.alive += [fork(self.loop, "noise", number) for number in range(1, chances + 1)]
            text = (
                f"{len(self.alive)} twin{'s' * (len(self.alive) > 1)} from step"
                f" {self.loop.step} on, without the change"
            )
            self.loop.folder.append(
                "events.jsonl",
                {"event": "twin", "step": self.loop.step, "text": text, "time": time.time()},
            )

    def follow(self) -> Iterator[Row]:
        """Train every twin up to the run's step."""
        step = self.loop.step
        for twin in list(self.alive):
            while twin.state.step < step and not self.loop.stopping:
                try:
                    with twin.turn(self.loop):
                        row = self.loop.take_step()
                        twin.folder.append("metrics.jsonl", row)
                        twin.folder.set_status("running", self.loop.step)
                except Stopped:
                    raise
                except Exception as error:  # perhaps what the move of the knob has spared the run
                    self._lose(twin, f"{type(error).__name__}: {error}")
                    break
                yield row

    def _lose(self, twin: Twin, why: str) -> None:
        """A twin that fails ends; the run goes on."""
        self.alive.remove(twin)
        twin.folder.set_status("failed", twin.state.step, why)
        text = (
            f"{'a noise' if twin.stream else 'the untouched'} twin failed after its step"
            f" {twin.state.step} and has ended ({why}); the run goes on"
        )
        self.loop.folder.append(
            "events.jsonl",
            {"event": "warning", "step": self.loop.step, "text": text, "time": time.time()},
        )

    def save(self) -> None:
        """A checkpoint of each."""
        for twin in self.alive:
            with twin.turn(self.loop):
                self.loop.save_checkpoint()

    def end(self, state: Literal["idle", "done", "failed"], why: str | None = None) -> None:
        """Say how it ended; a twin that was switched off is not taken up again."""
        for twin in self.alive:
            twin.folder.set_status("done" if why == "switched off" else state, twin.state.step, why)
        if why == "switched off":
            self.alive = []
