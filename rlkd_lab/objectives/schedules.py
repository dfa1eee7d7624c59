"""Schedules: how a coefficient moves over a run.

Positions are shares of the run's length, so a schedule scales with it.
"""

from __future__ import annotations

import math
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
        return _between(self.start, self.end, _done(step, total, self.share))

    def __str__(self) -> str:
        return f"linear:{self.start}:{self.end}:{self.share}"


@dataclass(frozen=True)
class Cosine:
    """As :class:`Linear`, along half a cosine: slow at both ends. Written ``cosine:0.001:0``.

    >>> [round(Cosine(1.0, 0.0).at(step, 5), 2) for step in (1, 2, 3, 4, 5)]
    [1.0, 0.85, 0.5, 0.15, 0.0]
    """

    start: float
    end: float
    share: float = 1.0

    def at(self, step: int, total: int) -> float:
        done = _done(step, total, self.share)
        return _between(self.start, self.end, (1 - math.cos(math.pi * done)) / 2)

    def __str__(self) -> str:
        return f"cosine:{self.start}:{self.end}:{self.share}"


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


@dataclass(frozen=True)
class Warmup:
    """Rises linearly for the first ``share`` of the run to where ``then`` starts, which has the
    rest of the run. Written ``warmup:0.1:cosine:0.001:0``.

    >>> [Warmup(0.5, Constant(1.0)).at(step, 8) for step in (1, 2, 4, 8)]
    [0.25, 0.5, 1.0, 1.0]
    """

    share: float
    then: Constant | Linear | Cosine | Switch

    def at(self, step: int, total: int) -> float | None:
        rising = math.ceil(self.share * total)
        top = self.then.at(1, total - rising)
        if step <= rising and top is not None:
            return top * (step / rising)
        return self.then.at(step - rising, total - rising)

    def __str__(self) -> str:
        return f"warmup:{self.share}:{self.then}"


Schedule = Constant | Linear | Cosine | Switch | Warmup
GRAMMAR = (
    "a number, 'off', 'linear:START:END[:SHARE]', 'cosine:START:END[:SHARE]',"
    " 'switch:BEFORE:AFTER[:SHARE]', or 'warmup:SHARE:' and one of these"
)


def _done(step: int, total: int, share: float) -> float:
    """Return how much of the first ``share`` of a run is done at a step, from 0 to 1."""
    return min(1.0, (step - 1) / max(share * total - 1, 1.0))


def _between(start: float, end: float, done: float) -> float:
    value = (1 - done) * start + done * end
    # rounding must not carry it out of a knob's range
    return min(max(value, min(start, end)), max(start, end))


def parse_schedule(text: str | float | None) -> Schedule:
    """Read a schedule as :data:`GRAMMAR` has it; steps count from 1.

    >>> parse_schedule("linear:0.2:0.002")
    Linear(start=0.2, end=0.002, share=1.0)

    Raises:
        ValueError: the text is no schedule, or its share of the run lies outside (0, 1].
    """
    if text is None or text == "off":
        return Constant(None)
    try:
        schedule = _read(str(text))
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{text!r} is no schedule: write {GRAMMAR}") from None
    parts = (schedule, schedule.then) if isinstance(schedule, Warmup) else (schedule,)
    if not all(0 < getattr(part, "share", 1.0) <= 1 for part in parts):
        raise ValueError(f"the share of the run in {text!r} must lie in (0, 1]")
    return schedule


def _read(text: str) -> Schedule:
    kind, _, rest = text.partition(":")
    if not rest:
        return Constant(float(kind))
    if kind == "warmup":
        share, _, then = rest.partition(":")
        if then.startswith("warmup"):
            raise ValueError("one warm-up is enough")
        return Warmup(float(share), _read(then))  # type: ignore[arg-type]
    values = [float(part) for part in rest.split(":")]
    return {"linear": Linear, "cosine": Cosine, "switch": Switch}[kind](*values)  # type: ignore[return-value]


def values_of(schedule: Schedule) -> tuple[float | None, ...]:
    """Return the extreme values a schedule takes, for checking it against a knob's range."""
    match schedule:
        case Constant(value):
            return (value,)
        case Warmup(_, then):
            return (0.0, *values_of(then))
        case Switch(before, after):
            return (before, after)
    return (schedule.start, schedule.end)
