"""What a run makes smaller where memory has run out and which completions its verifier gave up, and
the events that say so.

Sums come out the same to rounding, and the same tokens are drawn to rounding. A run that is resumed
or replayed follows the events, so that it rounds alike and rewards alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlkd_lab.models import processes
from rlkd_lab.tasks.verifier import GivenUp
from rlkd_lab.training.config import RunConfig


class Room:
    """Sizes of a run, halved as often as the memory was too small for them."""

    def __init__(self, micro_batch: int, sample_at_once: int) -> None:
        self.micro_batch, self.sample_at_once = micro_batch, sample_at_once
        self.events: list[dict[str, Any]] = []
        """Of this step."""
        self.given_up: GivenUp = {}
        self._judged: dict[int, set[str]] = {}
        """What the events of the verifier say was given up, by step."""
        self._halvings: dict[tuple[int, str], int] = {}
        self._fewer: dict[int, int] = {}

    @classmethod
    def of(cls, config: RunConfig, events: Sequence[dict[str, Any]] = (), step: int = 0) -> Room:
        """After ``step`` of a run with such events, of which those of later steps will be
        followed.
        """
        room = cls(config.micro_batch, config.sample_at_once)
        mine = [
            event
            for event in events
            if event["event"] == "micro_batch" and event.get("process", 0) == processes.rank()
        ]
        room._halvings = {(event["step"], event["pass"]): event["size"] for event in mine}
        room._fewer = {
            event["step"]: event["size"] for event in events if event["event"] == "sample_at_once"
        }
        for event in (event for event in events if event["event"] == "verifier"):
            room._judged[event["step"]] = set(event.get("gave_up", ()))
            room.given_up = {
                key: (event["step"], why) for key, why in event.get("gave_up", {}).items()
            } | room.given_up  # the first time counts
        room.micro_batch = min(
            [size for (at, _), size in room._halvings.items() if at <= step],
            default=room.micro_batch,
        )
        room.sample_at_once = min(
            [size for at, size in room._fewer.items() if at <= step], default=room.sample_at_once
        )
        return room

    def copy(self) -> Room:
        """The same sizes and what was given up, with nothing else to follow."""
        room = Room(self.micro_batch, self.sample_at_once)
        room.given_up = dict(self.given_up)
        return room

    def before_sampling(self, step: int, record: bool) -> None:
        """Follow the events."""
        if step in self._fewer:
            self.sample_fewer(step, self._fewer[step], record)

    def before_passes(self, step: int, name: str, record: bool) -> None:
        """Follow the events."""
        if self._halvings.get((step, name), self.micro_batch) < self.micro_batch:
            self.halve(step, name, self._halvings[step, name], record)

    def halve(self, step: int, name: str, size: int | None = None, record: bool = True) -> None:
        """Half of the micro-batch, or ``size``, from the passes ``name`` on."""
        self.micro_batch = self.micro_batch // 2 if size is None else size
        self.events = [event for event in self.events if event.get("pass") != name]
        if record:
            text = f"out of memory: the run goes on with micro_batch {self.micro_batch}"
            self.events.append(
                {
                    "event": "micro_batch",
                    "step": step,
                    "pass": name,
                    "size": self.micro_batch,
                    "process": processes.rank(),
                    "text": text,
                }
            )

    def sample_fewer(self, step: int, size: int, record: bool = True) -> None:
        """So many completions at a time."""
        self.sample_at_once = size
        if record:
            text = f"out of memory: the run goes on with sample_at_once {size}"
            self.events.append(
                {"event": "sample_at_once", "step": step, "size": size, "text": text}
            )

    def unjudged(self, event: dict[str, Any] | None, record: bool) -> dict[str, Any] | None:
        """The event of a step's verifier, unless it is in the record."""
        recorded = None if event is None or record else self._judged.get(event["step"])
        return (
            event
            if event is None or recorded is None or set(event.get("gave_up", ())) - recorded
            else None
        )

    def told(self) -> list[dict[str, Any]]:
        """The events of all processes, once."""
        events, self.events = (
            [event for events in processes.from_all(self.events) for event in events],
            [],
        )
        return events
