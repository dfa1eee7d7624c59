"""Requests: what people ask of a run while it is trained. Knobs, pause, step, stop, checkpoint,
fork.

A panel or a terminal appends to requests.jsonl, from the same process or another. The run reads it
at the top of each step, between tokens and while it is paused, and answers in events.jsonl. A moved
knob acts on the next step.
"""

from __future__ import annotations

import errno
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from rlkd_lab.models import distributed
from rlkd_lab.rollouts import Stopped
from rlkd_lab.runs.folder import FULL
from rlkd_lab.runs.tail import Tail
from rlkd_lab.training.context import Context

ForkKind = Literal["off", "untouched", "noise"]
LISTEN_EVERY = 0.1
"""Seconds between two looks at the file while tokens are generated."""
WAIT = 0.03
RETRY = 1.0
"""Seconds between two tries to write on a disk that refuses."""
CURABLE = (*FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)
"""Errors that may pass: no space, no permission, a network disk that is away."""
BUTTONS = ("pause", "go_on", "unpause", "step", "stop", "checkpoint")
MOST_CHANCES = 16


class RequestHandler:
    """Reads and answers the requests of one run.

    Args:
        context: of the run.
        save: writes a checkpoint and returns its folder.
    """

    def __init__(self, context: Context, save: Callable[[], Path]) -> None:
        self.context, self.save = context, save
        self.folder, self.knobs = context.folder, context.knobs
        self.stopping = False
        self.fixed = self.step
        """Last step whose knob values are fixed."""
        self.seen: set[int] = set()
        self.paused = False
        self.why: str | None = None
        """Why it is paused, if nobody asked for it."""
        self.steps_allowed = 0
        self.checkpoint_asked = False
        self.fork: ForkKind = "off"
        self.forks_off = False
        """Forks were switched off since the last step, and perhaps on again."""
        self.chances = 1
        """Noise forks beside an untouched one."""
        self.later: list[dict[str, Any]] = []
        self.listened = 0.0
        self.trouble: tuple[str, float] | None = None
        """How the disk refuses, and since when."""
        self.unread: list[dict[str, Any]] = []
        self.given_up = False
        """The disk is not waited for any more."""
        self.requests = Tail(self.folder.path / "requests.jsonl")
        self._take_up()
        self.folder.wait = self.disk

    def _take_up(self) -> None:
        """Take the requests that were made while nothing ran.

        A moved knob waits for the next step. A button that was pressed before ``begin`` is
        forgotten.
        """
        events = self.folder.rows("events.jsonl")
        answered = {event["id"] for event in events if isinstance(event.get("id"), int)}
        waiting = self.requests.read()
        begins = [n for n, request in enumerate(waiting) if request.get("request") == "begin"]
        begun = max(begins, default=len(waiting))
        for number, request in enumerate(waiting):
            kind, name = request.get("request"), request.get("id")
            if isinstance(name, int) and name in answered:
                continue
            if number <= begun and kind not in ("knob", "release", "twin"):
                continue
            after = request.get("after")
            moves = kind in ("knob", "release") and request.get("at") is None
            if moves and isinstance(after, int) and after > self.step:
                # it was meant for a step that is still to be computed again
                request = {**request, "at": after + 1, "by_hand": True}
            self._take(request)
        self.forks_off = self.fork == "off"

    def listen(self) -> None:
        """Read what is new, at most every :data:`LISTEN_EVERY` seconds."""
        now = time.monotonic()
        if now - self.listened >= LISTEN_EVERY:
            self.listened = now
            self.read()

    def read(self) -> None:
        """Take every new request."""
        waiting, self.unread = self.unread, []
        for request in (*waiting, *self.requests.read()):
            self._take(request)

    def disk(self, error: OSError) -> None:
        """The disk refuses what the run writes. Says so and returns after a while, for another try:
        all of the run stays in memory.

        Raises:
            FileNotFoundError: the run folder is gone; OSError: an error that does not pass;
                Stopped: the run was stopped meanwhile.
        """
        path = self.folder.path
        if not path.is_dir():
            raise FileNotFoundError(
                f"the run folder {path} was moved or deleted while the run was going on:"
                " nothing of it can be recorded any more"
            ) from error
        if error.errno not in CURABLE or self.given_up:
            raise error
        if self.trouble is None:
            refused = (
                "the disk is full: free some space"
                if error.errno in FULL
                else f"{error.strerror}: make it writable"
            )
            why = f"nothing can be written to {path}, {refused}, and the run goes on by itself"
            self.trouble = (why, time.time())
            self.folder.say_over("paused", self.step, why)
            warnings.warn(f"paused: {why}", stacklevel=2)
        self.unread += self.requests.read()
        if self.stopping or any(request.get("request") == "stop" for request in self.unread):
            self.stopping = self.given_up = True
            raise Stopped
        time.sleep(RETRY)

    @property
    def step(self) -> int:
        """Last whole step of the run."""
        return self.context.progress.step

    def before_step(self) -> None:
        """Read, hand over the knobs wanted at this step, and wait while the run is paused."""
        self.read()
        if self._waits:
            self._wait()
        self.steps_allowed = max(self.steps_allowed - 1, 0)
        waiting, self.later = self.later, []
        for request in waiting:
            if request["at"] > self.step + 1:
                self.later.append(request)
            elif self._knob(request) and request.get("by_hand") is True:
                self._replace(request["knob"])
        self.fixed = self.step + 1

    @property
    def _waits(self) -> bool:
        return self.paused and not self.steps_allowed and not self.stopping

    def _wait(self) -> None:
        """Stay paused until somebody asks for something else."""
        self._event("paused", **({} if self.why is None else {"why": self.why}))
        self.folder.set_status("paused", self.step, self.why)
        while self._waits:
            self._checkpoint()
            time.sleep(WAIT)
            self.read()
        self.why = None
        self._event("stopped" if self.stopping else "one step" if self.paused else "went on")
        self.folder.set_status("running", self.step)

    def after_step(self) -> None:
        """Write a checkpoint if one was asked for, and pause if a guard says so."""
        guards = self.context.guards
        if self.trouble is not None:
            (why, since), self.trouble = self.trouble, None
            text = f"for {time.time() - since:.0f} s {why.rpartition(', and')[0]}"
            self._event("disk", text=text)
        if guards.pause is not None:
            self.paused, self.steps_allowed = True, 0
            self.why, guards.pause = guards.pause, None
            warnings.warn(f"paused: {self.why}", stacklevel=2)
        self.read()
        self._checkpoint()

    def end(self) -> None:
        """Refuse what still waits after the last step."""
        self.read()
        for request in (*self.later, *self.knobs.drop()):
            self._refuse(request, "the run is done")

    def _checkpoint(self) -> None:
        if self.checkpoint_asked and self.step:
            self.checkpoint_asked = False
            self._event("checkpoint", text=f"written: {self.save().name}")

    def _replace(self, knob: str) -> None:
        """Drop planned moves of a knob that is moved by hand now, and recorded moves of it in
        steps that are computed again.
        """
        for planned in [waiting for waiting in self.later if waiting.get("knob") == knob]:
            self.later.remove(planned)
            why = f"planned for step {planned['at']}; the knob was moved by hand before"
            self._event("replaced", knob=knob, id=planned["id"], why=why)

        def keep(event: dict[str, Any]) -> bool:
            moves = event["event"] == "knob" and event["knob"] == knob
            return not moves or event["step"] <= self.fixed

        decisions = self.context.decisions
        if not all(keep(move) for move in decisions.moves):
            decisions.moves = [move for move in decisions.moves if keep(move)]
            self.folder.rewrite("events.jsonl", keep)

    def _take(self, request: dict[str, Any]) -> None:
        """Obey a request or refuse it. Anything may stand in the file; the run goes on."""
        if not isinstance(request.get("id"), int):
            request = {**request, "id": None}
        elif request["id"] in self.seen:
            return  # the file was written anew
        else:
            self.seen.add(request["id"])
        try:
            self._obey(request)
        except Exception as error:  # anybody may write there
            self._refuse(request, str(error) or type(error).__name__)

    def _obey(self, request: dict[str, Any]) -> None:
        kind = request.get("request")
        if kind in ("knob", "release"):
            self._move(request)
        elif kind in BUTTONS:
            self._event("asked", request=kind, id=request.get("id"))
            self._press(str(kind))
        elif kind == "twin":
            self._set_forks(request)
        elif kind != "begin":
            self._refuse(request, f"unknown request {kind!r}")

    def _press(self, button: str) -> None:
        if button == "stop":
            self.stopping = True
        elif button == "checkpoint":
            self.checkpoint_asked = True
        else:
            self.paused = button in ("pause", "step")
            self.steps_allowed = self.steps_allowed + 1 if button == "step" else 0

    def _set_forks(self, request: dict[str, Any]) -> None:
        if distributed.count() > 1:
            self._refuse(request, "a fork needs a run of one process")
        elif request.get("kind") in ("off", "untouched", "noise"):
            self.chances = min(max(int(request.get("chances", 1)), 1), MOST_CHANCES)
            self.fork = request["kind"]
            self.forks_off = self.forks_off or self.fork == "off"
        else:
            self._refuse(request, f"unknown request {request.get('request')!r}")

    def _move(self, request: dict[str, Any]) -> None:
        """Move or release a knob, now or in the step that is named."""
        at = request.get("at")
        if at is not None and not _is_step(at):
            raise ValueError(f"at={at!r} is no step")
        if at is not None and at > self.step + 1:
            self.later.append(request)
        elif self._knob(request) and at is None:
            self._replace(request["knob"])

    def _knob(self, request: dict[str, Any]) -> bool:
        """Return whether the knob takes the value."""
        source, knobs = str(request.get("source", "panel")), self.knobs
        try:
            if not isinstance(request.get("knob"), str):
                raise ValueError(f"{request.get('knob')!r} is no knob")
            if request["request"] == "release":
                knobs.release(request["knob"], source, id=request.get("id"))
                return True
            value = request["value"]
            if isinstance(value, bool) or not isinstance(value, int | float | None):
                raise ValueError(f"{value!r} is no value of a knob: a number, or null for off")
            knobs.request(request["knob"], value, source, id=request.get("id"))
        except (KeyError, TypeError, ValueError) as error:
            self._refuse(request, str(error))
            return False
        return True

    def _refuse(self, request: dict[str, Any], why: str) -> None:
        plain = str | int | float | None
        asked = {
            key: request[key]
            if isinstance(request[key], plain)
            else f"a {type(request[key]).__name__}"
            for key in ("knob", "value", "id")
            if key in request
        }
        self._event("refused", why=f"{why}; nothing was changed", **asked)

    def _event(self, event: str, **what: Any) -> None:
        self.context.tell({"event": event, "step": self.step, **what, "time": time.time()})


def _is_step(at: Any) -> bool:
    if isinstance(at, bool) or not isinstance(at, int | float):
        return False
    return at == int(at) and at >= 1
