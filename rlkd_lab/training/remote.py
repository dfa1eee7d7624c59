"""A run that another thread or process may drive: its state, and requests to it.

The object keeps no state of the run. It reads the run folder and appends to
``requests.jsonl``, so any process can watch and steer any run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlkd_lab.objectives.settings import nearest
from rlkd_lab.runs import RunFolder
from rlkd_lab.training import config_of
from rlkd_lab.training.environment import alive
from rlkd_lab.training.loop_knobs import check_knob
from rlkd_lab.training.requests import MOST_CHANCES, ForkKind

Where = Literal["thread", "process", "elsewhere", "nowhere"]
FORK_KINDS: tuple[ForkKind, ...] = ("off", "untouched", "noise")
STATES = {
    "idle": "idle: Start continues from the last checkpoint, or begins",
    "running": "running",
    "paused": "paused between two steps",
    "stopping": "stopping: the completion that is being written is given up",
    "done": "done",
    "failed": "failed",
    "lost": "lost: the process that drove it is gone; Start continues from the last checkpoint",
}
LIVE = ("running", "paused", "stopping")


@dataclass(frozen=True)
class Status:
    """What a run is doing.

    ``where`` it runs: a thread of this kernel, a process that this kernel started,
    elsewhere, or nowhere.
    """

    state: Literal["idle", "running", "paused", "stopping", "done", "failed", "lost"]
    step: int
    steps: int
    why: str | None
    where: Where


class RemoteRun:
    """A run folder with what can be asked of its run.

    Args:
        path: the run folder.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: the run folder is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.folder = RunFolder.open(path)
        self.path = self.folder.path.resolve()
        self.config = config_of(self.folder)
        self._stop_asked = False

    def __repr__(self) -> str:
        now = self.status()
        why = f" ({now.why})" if now.why else ""
        doing = f"{STATES[now.state]}, step {now.step} of {now.steps}"
        return f"Run {self.path.name}: {self.config.method}, {doing}{why}"

    def status(self) -> Status:
        """Return state, step, reason, and where the run is driven.

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
        except ValueError as error:  # a crash damaged status.json; the next start writes it anew
            step, steps = self.folder.last_step(), self.config.steps
            return Status("lost", step, steps, str(error), "nowhere")
        state, where = written["state"], "nowhere"
        if state in ("running", "paused"):
            where = self._where(written)
            if where == "nowhere":
                state = "lost"
            elif self._stop_asked:
                state = "stopping"
        else:
            self._stop_asked = False
        step, steps, why = written["step"], self.config.steps, written.get("why")
        return Status(state, step, steps, why, where)  # type: ignore[arg-type]

    def _where(self, written: dict[str, Any]) -> Where:
        return "elsewhere" if alive(written) else "nowhere"

    # --- knobs ------------------------------------------------------------------------------------

    def request(
        self,
        knob: str,
        value: float | None,
        at: int | None = None,
        source: str = "panel",
    ) -> int:
        """Ask for a knob's value, from the next step on or from step ``at`` on.

        An idle run takes it when it is started.

        Args:
            knob: name of a knob of the method.
            value: within the knob's range; ``None`` is off.
            at: a step of the run.
            source: who asks, for events.jsonl.

        Returns:
            The id with which events.jsonl answers.

        Raises:
            ValueError: unknown knob, value out of range, or no such step.
            RuntimeError: the run is done.
        """
        checked = check_knob(self.config.method, knob, value)
        if at is not None:
            whole = isinstance(at, int) and not isinstance(at, bool)
            if not whole or not 1 <= at <= self.config.steps:
                steps = f"1–{self.config.steps}"
                raise ValueError(
                    f"at={at!r} is no step of this run: it has steps {steps}. Nothing was changed"
                )
        self._check_not_over()
        when = {} if at is None else {"at": at}
        return self.folder.ask("knob", knob=knob, value=checked, source=source, **when)

    def release(self, knob: str, source: str = "panel") -> int:
        """Give a knob back to its schedule; return the id of the request."""
        nearest(knob, self.config.schedules(), f"knob of {self.config.method}")
        self._check_not_over()
        return self.folder.ask("release", knob=knob, source=source)

    def fork(self, kind: ForkKind, chances: int = 1) -> None:
        """Choose what the first moved knob forks.

        Args:
            kind: ``off`` forks nothing.
                ``untouched`` forks the run without the move.
                ``noise`` adds forks without the move that draw other samples.
            chances: number of noise forks, 1–16; they show what chance alone does.
        """
        nearest(kind, FORK_KINDS, "fork")
        whole = isinstance(chances, int) and not isinstance(chances, bool)
        if not whole or not 1 <= chances <= MOST_CHANCES:
            raise ValueError(
                f"chances={chances!r}: a whole number of noise forks, 1–{MOST_CHANCES}"
            )
        self._check_not_over()
        self.folder.ask("twin", kind=kind, chances=chances)

    def _check_not_over(self) -> None:
        if self.status().state == "done":
            raise RuntimeError(
                "the run is done: nothing was changed. Start another one, or press Run again, to"
                " move its knobs"
            )

    # --- buttons ----------------------------------------------------------------------------------

    def pause(self) -> None:
        """Ask the run to wait after the current step."""
        self._check_live("pause")
        self.folder.ask("pause")

    def unpause(self) -> None:
        """Ask a paused run to continue."""
        self._check_live("unpause")
        self.folder.ask("go_on")

    def step(self) -> None:
        """Ask for one step, then a pause."""
        if self.status().state in ("idle", "failed", "lost"):
            raise RuntimeError(
                "the run is not running: start it, pause it, then let it take a step"
            )
        self._check_live("step")
        self.folder.ask("step")

    def stop(self) -> None:
        """Ask the run to stop within a token; finished steps are kept."""
        self._check_live("stop")
        self._stop_asked = True
        self.folder.ask("stop")

    def checkpoint(self) -> None:
        """Ask for a checkpoint after the current step."""
        self._check_live("write a checkpoint")
        self.folder.ask("checkpoint")

    def _check_live(self, what: str) -> None:
        state = self.status().state
        if state not in LIVE:
            raise RuntimeError(f"cannot {what}: the run is {STATES[state]}")
