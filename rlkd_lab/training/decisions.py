"""Choices that a resumed or replayed run must follow, since nothing in its config decides them.

The memory of the machine decides how many completions fit at a time. Time limits decide which calls
of a verifier were given up. People move knobs and declare guards anew. Each choice is an event;
a run that has the events makes the same choices in the same steps, and so computes the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlkd_lab.models import distributed
from rlkd_lab.tasks.verifier import GivenUp
from rlkd_lab.training.config import RunConfig

Event = dict[str, Any]


class Decisions:
    """The choices of one run or fork: recorded ones are followed, new ones become events.

    Args:
        config: the sizes to start from.
        events: recorded events; those up to ``step`` have acted already.
        step: the last step whose choices hold from the start.
        record: whether a choice that is followed is written again. A replay writes its own events;
            a resumed run has them already.
    """

    def __init__(
        self,
        config: RunConfig,
        events: Sequence[Event] = (),
        step: int = 0,
        record: bool = True,
    ) -> None:
        self.record = record
        self.moves = [event for event in events if event["event"] == "knob"]
        self.declarations = [event for event in events if event["event"] == "guards"]
        self._halvings: dict[tuple[int, str], int] = {}
        self._fewer: dict[int, int] = {}
        self._judged: dict[int, set[str]] = {}
        """Calls of the verifier that the events say were given up, by step."""
        self.given_up: GivenUp = {}
        for event in events:
            self._read(event)
        halved = [size for (at, _), size in self._halvings.items() if at <= step]
        fewer = [size for at, size in self._fewer.items() if at <= step]
        self.micro_batch = min(halved, default=config.micro_batch)
        self.sample_at_once = min(fewer, default=config.sample_at_once)
        self.evaluate_at_once = 0
        """What memory left of it in an evaluation; 0 where there was none. No event: it has other
        lengths, and decides nothing of the training.
        """
        self._new: list[Event] = []

    def _read(self, event: Event) -> None:
        kind, step = event["event"], event["step"]
        if kind == "micro_batch" and event.get("process", 0) == distributed.rank():
            self._halvings[step, event["pass"]] = event["size"]
        elif kind == "sample_at_once":
            self._fewer[step] = event["size"]
        elif kind == "verifier":
            gave_up = event.get("gave_up", {})
            self._judged[step] = set(gave_up)
            fresh = {key: (step, why) for key, why in gave_up.items()}
            self.given_up = fresh | self.given_up  # the first time counts

    def fork(self, config: RunConfig) -> Decisions:
        """Return the same sizes and given-up calls, with nothing else to follow."""
        fork = Decisions(config)
        fork.micro_batch, fork.sample_at_once = self.micro_batch, self.sample_at_once
        fork.given_up = dict(self.given_up)
        return fork

    def moves_at(self, step: int) -> list[Event]:
        """Return the recorded knob moves of a step, as they were asked for."""
        skipped = ("step", "event", "time")
        return [
            {key: value for key, value in move.items() if key not in skipped}
            for move in self.moves
            if move["step"] == step
        ]

    def before_sampling(self, step: int) -> None:
        """Apply the number of completions at a time that was recorded for this step."""
        if step in self._fewer:
            self.sample_fewer(step, self._fewer[step], self.record)

    def before_pass(self, step: int, name: str) -> None:
        """Apply the micro-batch that was recorded for this pass of this step."""
        size = self._halvings.get((step, name), self.micro_batch)
        if size < self.micro_batch:
            self.halve(step, name, size, self.record)

    def halve(self, step: int, name: str, size: int | None = None, record: bool = True) -> None:
        """Set the micro-batch to ``size`` (by default half of it) from the pass ``name`` on."""
        self.micro_batch = self.micro_batch // 2 if size is None else size
        self._new = [event for event in self._new if event.get("pass") != name]
        if record:
            where = {"pass": name, "process": distributed.rank()}
            self._note("micro_batch", step, self.micro_batch, where)

    def sample_fewer(self, step: int, size: int, record: bool = True) -> None:
        """Sample ``size`` completions at a time from here on."""
        self.sample_at_once = size
        if record:
            self._note("sample_at_once", step, size, {})

    def _note(self, kind: str, step: int, size: int, where: dict[str, Any]) -> None:
        text = f"out of memory: the run goes on with {kind} {size}"
        self._new.append({"event": kind, "step": step, "size": size, **where, "text": text})

    def failures(self, event: Event | None) -> Event | None:
        """Return the event of a step's failed verifier calls, or ``None`` if it is on record."""
        if event is None or self.record or event["step"] not in self._judged:
            return event
        return event if set(event.get("gave_up", ())) - self._judged[event["step"]] else None

    def new_events(self) -> list[Event]:
        """Return the new events of all processes and forget them."""
        events = [event for events in distributed.from_all(self._new) for event in events]
        self._new = []
        return events
