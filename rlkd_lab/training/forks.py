"""Forks: a run from the step before a knob was moved, trained beside it without the move.

Both have the same weights, random streams and prompts at the fork, so their difference is the
knob's. A noise fork is untouched too and samples other completions of the same prompts: how far it
drifts from the untouched one is what chance alone does. Forks are run folders below ``RUN/twins/``.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from rlkd_lab.rollouts import Stopped
from rlkd_lab.runs import RunFolder
from rlkd_lab.runs.checkpoints import Damaged, step_of
from rlkd_lab.training.context import Context
from rlkd_lab.training.decisions import Decisions
from rlkd_lab.training.requests import ForkKind
from rlkd_lab.training.setup import Row
from rlkd_lab.training.trainer import Trainer

RUN_FAILED = "its run failed"
FORK = "fork.json"
"""In the folder of a fork alone."""
SWITCHED_OFF = "switched off"


def make_fork(trainer: Trainer, run: Context, noise: int = 0) -> Context:
    """Fork a run as it is now, before the moves that wait.

    Args:
        trainer: of the run.
        run: the context to fork.
        noise: 0 for an untouched fork, n for the n-th noise fork.
    """
    step = run.progress.step
    path = run.folder.path / "twins" / (f"step_{step:06d}" + (f"-noise{noise}" if noise else ""))
    shutil.rmtree(path, ignore_errors=True)
    path.parent.mkdir(exist_ok=True)
    config = {key: value for key, value in run.folder.config().items() if key != "format"}
    folder = RunFolder.create(path, config, run.folder.env())
    stream = f", chance {noise}" if noise else ""
    kind = "noise" if noise else "untouched"
    folder.write_json(FORK, {"step": step, "kind": kind, "stream": stream})
    for row in run.folder.rows("metrics.jsonl"):
        folder.append("metrics.jsonl", row)
    for row in run.folder.rows("events.jsonl"):
        folder.append("events.jsonl", row)
    fork = Context(trainer.config, folder, run.decisions.fork(trainer.config), stream)
    fork.progress, fork.knobs.held = run.progress, dict(run.knobs.held)
    fork.snapshot = trainer.state.copy()
    folder.wait = run.folder.wait
    trainer.save(fork)
    folder.set_status("running", step)
    return fork


def load_forks(trainer: Trainer, run: Context) -> list[Context]:
    """Return the forks of a resumed run, each at its last whole checkpoint that the run and the
    fork's own rows have reached.

    A fork that was made later is dropped: the move that made it will come again. A damaged fork has
    failed, and the run goes on without it.
    """
    found = []
    for path in sorted((run.folder.path / "twins").glob("step_*")):
        if path.is_symlink() or not path.is_dir():
            continue
        try:
            about = _about(path)
            if about["step"] >= run.progress.step:
                shutil.rmtree(path)
                continue
            fork = _load_fork(trainer, run, RunFolder.open(path), about["stream"])
        except (OSError, ValueError) as error:
            if (path / "config.json").exists():  # otherwise it is nobody's run
                RunFolder(path).set_status("failed", 0, f"{type(error).__name__}: {error}")
            _warn(run, f"the fork {path.name} cannot be resumed ({error}); the run goes on without")
        else:
            found += [fork] if fork is not None else []
    return found


def _load_fork(trainer: Trainer, run: Context, folder: RunFolder, stream: str) -> Context | None:
    """Return a fork as it was at its last whole checkpoint; ``None`` if it has ended."""
    ended, last = folder.last_status(), folder.last_step()
    if ended["state"] == "done" or (ended["state"] == "failed" and ended["why"] != RUN_FAILED):
        return None
    events = [event for event in folder.rows("events.jsonl") if event["event"] != "knob"]
    reached = [p for p in folder.checkpoints() if step_of(p) <= min(run.progress.step, last)]
    for point in reversed(reached):
        decisions = Decisions(trainer.config, events, step_of(point), record=False)
        fork = Context(trainer.config, folder, decisions, stream)
        folder.wait = run.folder.wait
        with contextlib.suppress(Damaged):
            trainer.load(fork, point)
            folder.truncate("metrics.jsonl", fork.progress.step)
            return fork
    raise ValueError(f"it has no whole checkpoint that its {last} rows reach")


def _about(path: Path) -> dict[str, Any]:
    try:
        about = json.loads((path / FORK).read_text(encoding="utf-8"))
        return {"step": int(about["step"]), "stream": str(about["stream"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{FORK}, which says where it was forked, is missing or damaged") from None


def _warn(run: Context, text: str) -> None:
    step = run.progress.step
    run.tell({"event": "warning", "step": step, "text": text, "time": time.time()})


class Forks:
    """The living forks of one run."""

    def __init__(self, trainer: Trainer, run: Context) -> None:
        self.trainer, self.run = trainer, run
        self.alive = load_forks(trainer, run)

    def before_step(self, kind: ForkKind, chances: int = 1) -> None:
        """Fork if the coming step would be the first with a moved knob.

        Args:
            kind: ``off``, ``untouched``, or ``noise``: with noise forks beside the untouched one.
            chances: number of noise forks.
        """
        step = self.run.progress.step
        if kind == "off" or self.alive or not self.run.knobs.moving(step + 1):
            return
        noises = range(1, chances + 1) if kind == "noise" else ()
        self.alive = [make_fork(self.trainer, self.run, noise) for noise in (0, *noises)]
        number = len(self.alive)
        text = f"{number} fork{'s' * (number > 1)} from step {step} on, without the change"
        self.run.tell({"event": "twin", "step": step, "text": text, "time": time.time()})

    def follow(self, stop: Callable[[], bool], stopping: Callable[[], bool]) -> Iterator[Row]:
        """Train every fork up to the run's step.

        Args:
            stop: asked between tokens.
            stopping: asked between steps.
        """
        for fork in list(self.alive):
            while fork.progress.step < self.run.progress.step and not stopping():
                before = fork.progress
                try:
                    row = self.trainer.step(fork, stop)
                    fork.folder.append("metrics.jsonl", row)
                    fork.folder.set_status("running", fork.progress.step)
                except Stopped:
                    raise
                except Exception as error:  # perhaps what the moved knob has spared the run
                    fork.progress = before  # a step whose row is not written is not whole
                    self._lose(fork, f"{type(error).__name__}: {error}")
                    break
                yield row

    def _lose(self, fork: Context, why: str) -> None:
        """A fork that fails ends; the run goes on."""
        self.alive.remove(fork)
        fork.folder.set_status("failed", fork.progress.step, why)
        which = "a noise" if fork.noise else "the untouched"
        _warn(
            self.run,
            f"{which} fork failed after its step {fork.progress.step} and has ended ({why}); the"
            " run goes on",
        )

    def save(self) -> None:
        """Write a checkpoint of each."""
        for fork in self.alive:
            self.trainer.save(fork)

    def end(self, state: Literal["idle", "done", "failed"], why: str | None = None) -> None:
        """Record how each ended. Forks that were switched off are not resumed."""
        ended: Literal["idle", "done", "failed"] = "done" if why == SWITCHED_OFF else state
        for fork in self.alive:
            fork.folder.set_status(ended, fork.progress.step, why)
        if why == SWITCHED_OFF:
            self.alive = []
