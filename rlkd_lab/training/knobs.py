"""Knobs while a run goes on: requests come from anywhere, the loop takes one snapshot at the top of each step.

A request made during step t holds from step t + 1 on, replaces the knob's schedule, and is recorded as an event. Replay and resume feed the recorded moves
back in (``script``), so that the same steps see the same values; a resumed run still has them in its events and does not record them again.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from rlkd_lab.objectives import Schedule, nearest
from rlkd_lab.training.config import RunConfig, check_knob


class Knobs:
    """The live knobs of one run; ``request`` may be called from any thread."""

    def __init__(self, config: RunConfig, script: list[dict[str, Any]] | None = None, record_script: bool = True) -> None:
        self.config = config
        self.record_script = record_script
        self.schedules: Mapping[str, Schedule] = config.schedules()
        self.held: dict[str, float | None] = {}
        self.script = script or []
        self._lock = threading.Lock()
        self._requests: list[dict[str, Any]] = []

    def request(self, name: str, value: float | None, source: str = "program") -> None:
        """Ask for a value from the next step on; ``None`` switches an optional knob off.

        Raises:
            ValueError: an unknown knob or a value out of range; nothing is changed.
        """
        checked = check_knob(self.config.method, name, value)
        with self._lock:
            self._requests.append({"knob": name, "value": checked, "source": source})

    def release(self, name: str, source: str = "program") -> None:
        """Give a knob back to its schedule from the next step on."""
        nearest(name, self.schedules, f"knob of {self.config.method}")
        with self._lock:
            self._requests.append({"knob": name, "release": True, "source": source})

    def snapshot(self, step: int) -> tuple[dict[str, float | None], list[dict[str, Any]]]:
        """The values of step ``step``, and an event for every knob that was moved."""
        with self._lock:
            moves, self._requests = self._requests, []
        scripted = [{k: v for k, v in move.items() if k not in ("step", "event", "time")} for move in self.script if move["step"] == step]
        for move in scripted + moves:
            if move.get("release"):
                self.held.pop(move["knob"], None)
            else:
                self.held[move["knob"]] = move["value"]
        values = {name: schedule.at(step, self.config.steps) for name, schedule in self.schedules.items()} | self.held
        return values, [{"event": "knob", "step": step, **move} for move in (scripted if self.record_script else []) + moves]
