"""Schedules: how a coefficient moves over a run.

Positions are shares of the run's length, so a schedule scales with it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Constant:
    """The same value throughout. Written ``0.1``."""

    value: float | None

    def at(self, step: int, total: int) -> float | None:
        return self.value

    def __str__(self) -> str:
        return "off" if self.value is None else f"{self.value}"


@dataclass(frozen=True)
class Linear:
    """From ``start`` at step 1 to ``end`` at the last step of the first ``share`` of the run, then
    ``end``. Written ``linear:0.2:0.002``.

    KDRL's annealing, max(β_init − δ·t, β_min).

    >>> [round(Linear(1.0, 0.0, 0.5).at(step, 8), 2) for step in (1, 2, 4, 8)]
    [1.0, 0.67, 0.0, 0.0]
    """

    start: float
    end: float
    share: float = 1.0

    def at(self, step: int, total: int) -> float:
        done = min(1.0, (step - 1) / max(self.share * total - 1, 1.0))
        value = (1 - done) * self.start + done * self.end
        # rounding must not carry it out of a knob's range
        return min(max(value, min(self.start, self.end)), max(self.start, self.end))

    def __str__(self) -> str:
        return f"linear:{self.start}:{self.end}:{self.share}"


@dataclass(frozen=True)
class Switch:
    """``before`` for the first ``share`` of the run, then ``after``. Written ``switch:1:0:0.5``.

    >>> [Switch(1.0, 0.0, 0.5).at(step, 4) for step in (1, 2, 3, 4)]
    [1.0, 1.0, 0.0, 0.0]
    """

    before: float
    after: float
    share: float = 0.5

    def at(self, step: int, total: int) -> float:
        return self.before if step <= self.share * total else self.after

    def __str__(self) -> str:
        return f"switch:{self.before}:{self.after}:{self.share}"


Schedule = Constant | Linear | Switch


def parse_schedule(text: str | float | None) -> Schedule:
    """Read a number, ``off``, ``linear:START:END[:SHARE]`` or ``switch:BEFORE:AFTER[:SHARE]``;
    steps count from 1.

    >>> parse_schedule("linear:0.2:0.002")
    Linear(start=0.2, end=0.002, share=1.0)
    """
    if text is None or text == "off":
        return Constant(None)
    kind, _, rest = str(text).partition(":")
    moving: Linear | Switch
    try:
        if not rest:
            return Constant(float(kind))
        values = [float(part) for part in rest.split(":")]
        moving = Linear(*values) if kind == "linear" else {"switch": Switch}[kind](*values)
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{text!r} is no schedule: write a number, 'off', 'linear:START:END[:SHARE]' or"
            " 'switch:BEFORE:AFTER[:SHARE]'"
        ) from None
    if not 0 < moving.share <= 1:
        raise ValueError(f"the share of the run in {text!r} must lie in (0, 1]")
    return moving


def values_of(schedule: Schedule) -> tuple[float | None, ...]:
    """Return the extreme values a schedule takes, for checking it against a knob's range."""
    if isinstance(schedule, Constant):
        return (schedule.value,)
    return (
        (schedule.start, schedule.end)
        if isinstance(schedule, Linear)
        else (schedule.before, schedule.after)
    )
