"""Knobs while a run goes on: requests come from anywhere, the loop takes one snapshot at the top of
each step.

A request made during step t holds from step t + 1 on, replaces the knob's schedule, and is recorded
as an event. Replay and resume feed the recorded moves back in (``script``), so that the same steps
see the same values; a resumed run still has them in its events and does not record them again.
Moves that are part of the config (``--schedule-from``) hold in the same way and are no events:
nobody touches such a run.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from rlkd_lab.objectives.schedules import Schedule
from rlkd_lab.objectives.settings import nearest
from rlkd_lab.training.config import RunConfig
from rlkd_lab.training.decisions import Decisions
from rlkd_lab.training.loop_knobs import check_knob
from rlkd_lab.training.teacher_settings import check_temperature

Values = dict[str, float | None]


class Knobs:
    """The live knobs of one run or fork; ``request`` may be called from any thread.

    Args:
        config: schedules and planned moves.
        decisions: recorded moves to follow; by default there are none.

    Raises:
        ValueError: a recorded move that no request could have made.
    """

    def __init__(self, config: RunConfig, decisions: Decisions | None = None) -> None:
        self.config = config
        self.decisions = decisions or Decisions(config)
        self.schedules: Mapping[str, Schedule] = config.schedules()
        self.held: Values = {}
        """Values that were set by hand and not released."""
        for move in self.decisions.moves:  # a record from elsewhere is no better than a request
            if move.get("release"):
                nearest(str(move["knob"]), self.schedules, f"knob of {config.method}")
            else:
                check_knob(config.method, str(move["knob"]), move.get("value"))
        self._lock = threading.Lock()
        self._requests: list[dict[str, Any]] = []

    def request(self, name: str, value: float | None, source: str = "program", **note: Any) -> None:
        """Ask for a value from the next step on; ``None`` switches an optional knob off. ``note``
        goes into the event.

        Raises:
            ValueError: an unknown knob or a value out of range; nothing is changed.
        """
        checked = check_knob(self.config.method, name, value)
        check_temperature(self.config, name, checked)
        with self._lock:
            self._requests.append({"knob": name, "value": checked, "source": source, **note})

    def release(self, name: str, source: str = "program", **note: Any) -> None:
        """Give a knob back to its schedule from the next step on."""
        nearest(name, self.schedules, f"knob of {self.config.method}")
        with self._lock:
            self._requests.append({"knob": name, "release": True, "source": source, **note})

    def drop(self) -> list[dict[str, Any]]:
        """Return the moves that wait for a next step, when there is none."""
        with self._lock:
            moves, self._requests = self._requests, []
        return moves

    def snapshot(self, step: int) -> tuple[Values, list[dict[str, Any]]]:
        """Return the values of step ``step``, and an event for every knob that was moved."""
        with self._lock:
            moves, self._requests = self._requests, []
        recorded = self.decisions.moves_at(step)
        self.held = self._after(step, recorded + moves)
        values = self._scheduled(step) | self.held
        written = (recorded if self.decisions.record else []) + moves
        return values, [{"event": "knob", "step": step, **move} for move in written]

    def moving(self, step: int) -> bool:
        """Whether a move that is waiting makes the values of step ``step`` other than they
        would be without it.
        """
        with self._lock:
            waiting = list(self._requests)
        if not self.decisions.record:  # a resumed run: its own moves, made again
            waiting = self.decisions.moves_at(step) + waiting
        scheduled = self._scheduled(step)
        return scheduled | self._after(step, waiting) != scheduled | self._after(step, [])

    def _after(self, step: int, moves: list[dict[str, Any]]) -> Values:
        held = dict(self.held)
        own = [
            {"knob": move.knob, "value": move.value, "release": move.release}
            for move in self.config.moves
            if move.step == step
        ]
        for move in own + moves:
            if move.get("release"):
                held.pop(move["knob"], None)
            else:
                held[move["knob"]] = move["value"]
        return held

    def _scheduled(self, step: int) -> Values:
        return {
            name: schedule.at(step, self.config.steps) for name, schedule in self.schedules.items()
        }
