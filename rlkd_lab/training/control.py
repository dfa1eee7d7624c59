"""What others ask of a loop while it runs: knobs, pause, step, stop, checkpoint, twin.

Whoever watches a run appends to its requests.jsonl, from the same process or another; the loop
reads at the top of each step, between generated tokens and while it is paused, and answers in
events.jsonl. A moved knob acts on the next step.
"""

from __future__ import annotations

import errno
import time
import warnings
from typing import Any, Literal

from rlkd_lab.models import processes
from rlkd_lab.rollouts import Stopped
from rlkd_lab.runs import Tail
from rlkd_lab.runs.folder import FULL
from rlkd_lab.training.loop import Loop

TwinKind = Literal["off", "untouched", "noise"]
LISTEN_EVERY = 0.1
"""Seconds between two looks at the file while tokens are generated."""
WAIT = 0.03
RETRY = 1.0
"""Seconds between two tries to write on a disk that refuses."""
CURABLE = (*FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)
"""What may pass: no space, no permission, a network disk that is away."""


class Control:
    """The requests of one run, for one loop."""

    def __init__(self, loop: Loop) -> None:
        self.loop, self.folder = loop, loop.folder
        self.knobs, self.step = (
            loop.knobs,
            loop.step,
        )  # the run's: while a twin is trained the loop has the twin's
        self.begun = loop.step
        """The last step whose knobs were taken: what acts in it is a fact."""
        self.seen: set[int] = set()
        self.paused = False
        self.why: str | None = None
        """Why it is paused, if nobody asked for it."""
        self.steps_allowed = 0
        self.checkpoint_asked = False
        self.twin: TwinKind = "off"
        self.twins_off = False
        """Twins were switched off since the last step, and perhaps on again."""
        self.chances = 1
        """Noise twins of a fork."""
        self.later: list[dict[str, Any]] = []
        self.listened = 0.0
        self.trouble: tuple[str, float] | None = None
        """Since when the disk refuses, and how."""
        self.unread: list[dict[str, Any]] = []
        self.given_up = False
        self.requests = Tail(self.folder.path / "requests.jsonl")
        answered = {
            event["id"]
            for event in self.folder.rows("events.jsonl")
            if isinstance(event.get("id"), int)
        }
        waiting = self.requests.read()
        begun = max(
            (number for number, request in enumerate(waiting) if request.get("request") == "begin"),
            default=len(waiting),
        )
        for number, request in enumerate(waiting):
            # a knob moved while nothing ran waits for the next step; a button pressed then is gone
            kind, name = request.get("request"), request.get("id")
            if not (isinstance(name, int) and name in answered) and (
                number > begun or kind in ("knob", "release", "twin")
            ):
                after = request.get("after")
                if (
                    kind in ("knob", "release")
                    and request.get("at") is None
                    and isinstance(after, int)
                    and after > self.step
                ):
                    request = {
                        **request,
                        "at": after + 1,
                        "by_hand": True,
                    }  # it was meant for a step that is still to be computed again
                self._take(request)
        self.twins_off = self.twin == "off"
        loop.listen = self.listen
        self.folder.wait = self.disk

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
            self.folder.say_over("paused", self.loop.step, why)
            warnings.warn(f"paused: {why}", stacklevel=2)
        self.unread += self.requests.read()
        if self.loop.stopping or any(request.get("request") == "stop" for request in self.unread):
            self.loop.stopping = self.given_up = True
            raise Stopped
        time.sleep(RETRY)

    def before_step(self) -> None:
        """Read, hand over the knobs wanted at this step, and wait while the run is paused."""
        self.step = self.loop.step
        self.read()
        if self.paused and not self.steps_allowed and not self.loop.stopping:
            self._event("paused", **({} if self.why is None else {"why": self.why}))
            self.folder.set_status("paused", self.loop.step, self.why)
            while self.paused and not self.steps_allowed and not self.loop.stopping:
                self._checkpoint()
                time.sleep(WAIT)
                self.read()
            self.why = None
            self._event(
                "stopped" if self.loop.stopping else "one step" if self.paused else "went on"
            )
            self.folder.set_status("running", self.loop.step)
        self.steps_allowed = max(self.steps_allowed - 1, 0)
        waiting, self.later = self.later, []
        for request in waiting:
            if request["at"] <= self.step + 1:
                if self._knob(request) and request.get("by_hand") is True:
                    self._replace(request["knob"])
            else:
                self.later.append(request)
        self.begun = self.step + 1

    def after_step(self) -> None:
        """Write a checkpoint if one was asked for, and pause if a guard did."""
        self.step = self.loop.step
        if self.trouble is not None:
            (why, since), self.trouble = self.trouble, None
            self._event(
                "disk", text=f"for {time.time() - since:.0f} s {why.rpartition(', and')[0]}"
            )
        if self.loop.guards.pause is not None:
            self.paused, self.steps_allowed = True, 0
            self.why, self.loop.guards.pause = self.loop.guards.pause, None
            warnings.warn(f"paused: {self.why}", stacklevel=2)
        self.read()
        self._checkpoint()

    def end(self) -> None:
        """The last step is done: what still waits is refused."""
        self.read()
        for request in (*self.later, *self.knobs.drop()):
            self._refuse(request, "the run is done")

    def _checkpoint(self) -> None:
        if self.checkpoint_asked and self.loop.step:
            self.checkpoint_asked = False
            self._event("checkpoint", text=f"written: {self.loop.save_checkpoint().name}")

    def _replace(self, knob: str) -> None:
        """Whoever moves a knob now does not mean it to be moved by what was planned before, nor
        by recorded moves in steps that are computed again.
        """
        for planned in [waiting for waiting in self.later if waiting.get("knob") == knob]:
            self.later.remove(planned)
            self._event(
                "replaced",
                knob=knob,
                id=planned["id"],
                why=f"planned for step {planned['at']}; the knob was moved by hand before",
            )
        if any(move["knob"] == knob and move["step"] > self.begun for move in self.knobs.script):
            self.knobs.script = [
                move
                for move in self.knobs.script
                if move["knob"] != knob or move["step"] <= self.begun
            ]
            self.folder.rewrite(
                "events.jsonl",
                lambda row: (
                    row["event"] != "knob" or row["knob"] != knob or row["step"] <= self.begun
                ),
            )

    def _take(self, request: dict[str, Any]) -> None:
        """Whatever stands in the file, the run goes on."""
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
        if kind in ("pause", "go_on", "step", "stop", "checkpoint"):
            self._event("asked", request=kind, id=request.get("id"))
        if kind in ("knob", "release"):
            at = request.get("at")
            if at is not None and (
                isinstance(at, bool) or not isinstance(at, int | float) or at != int(at) or at < 1
            ):
                raise ValueError(f"at={at!r} is no step")
            if at is not None and at > self.step + 1:
                self.later.append(request)
            elif self._knob(request) and at is None:
                self._replace(request["knob"])
        elif kind == "pause":
            self.paused, self.steps_allowed = True, 0
        elif kind == "go_on":
            self.paused, self.steps_allowed = False, 0
        elif kind == "step":
            self.paused = True
            self.steps_allowed += 1
        elif kind == "stop":
            self.loop.stopping = True
        elif kind == "checkpoint":
            self.checkpoint_asked = True
        elif kind == "twin" and processes.count() > 1:
            self._refuse(request, "a twin needs a run of one process")
        elif kind == "twin" and request.get("kind") in ("off", "untouched", "noise"):
            self.chances = min(max(int(request.get("chances", 1)), 1), 16)
            self.twin = request["kind"]
            self.twins_off = self.twins_off or self.twin == "off"
        elif kind != "begin":
            self._refuse(request, f"unknown request {kind!r}")

    def _knob(self, request: dict[str, Any]) -> bool:
        """Whether the request was taken."""
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
        asked = {key: request[key] for key in ("knob", "value", "id") if key in request}
        asked = {
            key: value
            if isinstance(value, str | int | float | None)
            else f"a {type(value).__name__}"
            for key, value in asked.items()
        }
        self._event("refused", why=f"{why}; nothing was changed", **asked)

    def _event(self, event: str, **what: Any) -> None:
        self.folder.append(
            "events.jsonl", {"event": event, "step": self.step, **what, "time": time.time()}
        )
