"""The rows and events of a run, read as they come, in memory that stays flat.

Only what was appended since the last look is read. Of each metric about a thousand points are kept:
the last rows exactly, older ones as means of neighbours. Evaluations are never averaged: where
there are too many, every second is left out.
"""

from __future__ import annotations

import json
from array import array
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

POINTS = 1000
"""Points kept of a metric, at most."""
EXACT = 200
"""Last points that are kept as they are."""
CHUNK = 1 << 20
SAME = 256
"""Bytes before the place reached that must still be the same, or the file was cut and written
anew.
"""


class Series:
    """One metric: (step, value) pairs in the order of the steps, and of how many rows each is
    the mean.
    """

    def __init__(self, exact: bool = False) -> None:
        self.exact = exact
        self.stride = 1
        self._steps, self._values, self._weights = array("d"), array("d"), array("d")

    def __len__(self) -> int:
        return len(self._steps)

    def append(self, step: float, value: float) -> None:
        self._steps.append(step)
        self._values.append(value)
        self._weights.append(1.0)
        if len(self) > POINTS:
            self._thin()

    @property
    def steps(self) -> np.ndarray:
        return np.array(self._steps)

    @property
    def values(self) -> np.ndarray:
        return np.array(self._values)

    def _thin(self) -> None:
        steps, values, weights = (
            np.array(part) for part in (self._steps, self._values, self._weights)
        )
        if self.exact:  # the newest stays, whatever the number
            keep = np.arange(len(steps))[::-2][::-1]
            steps, values, weights = steps[keep], values[keep], weights[keep]
        else:
            old = len(steps) - EXACT
            # The same grid of steps for every metric and for a twin, so that what is averaged can
            # still be compared.
            while (
                len(starts := np.unique((steps[:old] - 1) // self.stride, return_index=True)[1])
                > POINTS // 2
            ):
                self.stride *= 2
            weight = np.add.reduceat(weights[:old], starts)
            thinned = [
                np.add.reduceat((part * weights)[:old], starts) / weight for part in (steps, values)
            ]
            steps, values = (
                np.concatenate([thinned[0], steps[old:]]),
                np.concatenate([thinned[1], values[old:]]),
            )
            weights = np.concatenate([weight, weights[old:]])
        self._steps, self._values, self._weights = (
            array("d", steps),
            array("d", values),
            array("d", weights),
        )

    def trailing_mean(self, window: int) -> np.ndarray:
        """Mean over the last ``window`` steps at each point, (N,); over the point's own rows
        where it is the mean of more.
        """
        steps, weights = self.steps, np.array(self._weights)
        if not len(steps):
            return steps
        sums = np.concatenate([[0.0], np.cumsum(self.values * weights)])
        counts = np.concatenate([[0.0], np.cumsum(weights)])
        first = np.minimum(
            np.searchsorted(steps, steps - window, side="right"), np.arange(len(steps))
        )
        ends = np.arange(1, len(steps) + 1)
        return (sums[ends] - sums[first]) / (counts[ends] - counts[first])


class Lines:
    """The whole lines that were appended to a file since the last look.

    A torn last line waits until it is whole.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0
        self.before = b""
        self.damaged = 0

    def changed(self) -> bool:
        """Whether the file was cut, or written anew, before the place reached: then all that
        was read is void.
        """
        try:
            if self.path.stat().st_size < self.offset:
                return True
            with self.path.open("rb") as file:
                file.seek(self.offset - len(self.before))
                return file.read(len(self.before)) != self.before
        except FileNotFoundError:
            return self.offset > 0

    def restart(self) -> None:
        self.offset, self.before, self.damaged = 0, b"", 0

    def rows(self) -> Iterator[dict[str, Any]]:
        """New rows; a line that is whole and no row is counted in ``damaged`` and left out."""
        rest = b""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        with file:
            file.seek(self.offset)
            while chunk := file.read(CHUNK):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self.offset += len(line) + 1
                    self.before = (self.before + line + b"\n")[-SAME:]
                    try:
                        row = json.loads(line)
                        if not isinstance(row["step"], int | float):
                            raise TypeError
                    except (ValueError, KeyError, TypeError):
                        self.damaged += bool(line)
                        continue
                    yield row


class History:
    """A run folder, followed.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\\n{"step": 2, "rew')
    >>> history = History(folder)
    >>> history.read(), history.step, history["reward"].values
    (True, 1, array([0.5]))
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._metrics, self._events = (
            Lines(self.path / "metrics.jsonl"),
            Lines(self.path / "events.jsonl"),
        )
        self._clear_metrics()
        self._clear_events()
        self.twins: dict[str, Twin] = {}

    def _clear_metrics(self) -> None:
        self._metrics.restart()
        self.series: dict[str, Series] = {}
        self.last: dict[str, Any] = {}
        self.step = 0

    def _clear_events(self) -> None:
        self._events.restart()
        self.events: deque[dict[str, Any]] = deque(maxlen=2000)

    def read(self) -> bool:
        """Read what is new, here and in the twins; whether there was anything."""
        new = False
        for tail, clear in (
            (self._metrics, self._clear_metrics),
            (self._events, self._clear_events),
        ):
            if tail.changed():
                clear()
                new = True
        for row in self._metrics.rows():
            self._add(row)
            new = True
        for event in self._events.rows():
            self.events.append(event)
            new = True
        return self._read_twins() or new

    def _add(self, row: dict[str, Any]) -> None:
        step = int(row["step"])
        for name, value in row.items():
            if name == "step" or value is None or not isinstance(value, int | float):
                continue
            if name not in self.series:
                self.series[name] = Series(exact=name.startswith("eval/"))
            self.series[name].append(step, float(value))
        self.last, self.step = row, step

    def _read_twins(self) -> bool:
        new = False
        for name in [
            name for name, twin in self.twins.items() if not (twin.path / "fork.json").exists()
        ]:
            del self.twins[name]  # a resumed run drops the twins that were forked later
            new = True
        for fork in sorted(self.path.glob("twins/*/fork.json")):
            name = fork.parent.name
            if name not in self.twins:
                try:
                    told = json.loads(fork.read_text(encoding="utf-8"))
                    self.twins[name] = Twin(fork.parent, str(told["kind"]), int(told["step"]))
                except (OSError, ValueError, KeyError, TypeError):
                    continue  # being written
            new = self.twins[name].history.read() or new
        return new

    def fork(self) -> tuple[Twin | None, list[Twin]]:
        """The latest untouched twin that has taken a step, and the noise twins of the same fork."""
        begun = [twin for twin in self.twins.values() if twin.history.step > twin.step]
        untouched = max(
            (twin for twin in begun if twin.kind == "untouched"),
            key=lambda twin: twin.step,
            default=None,
        )
        return untouched, [
            twin
            for twin in begun
            if twin.kind == "noise" and untouched is not None and twin.step == untouched.step
        ]

    def __contains__(self, name: str) -> bool:
        return name in self.series

    def __getitem__(self, name: str) -> Series:
        """A metric; an empty series where it was not recorded."""
        return self.series.get(name) or Series()

    @property
    def damaged(self) -> int:
        """Lines of the two files that could not be read."""
        return self._metrics.damaged + self._events.damaged

    @property
    def moves(self) -> list[dict[str, Any]]:
        """Knobs that were moved or given back, oldest first:

        ``step``, ``knob``, and ``value`` or ``release``.
        """
        return [event for event in self.events if event.get("event") == "knob"]


class Twin:
    """The same run without the moves, from the fork on.

    ``kind``: ``untouched`` (the same random streams) or ``noise`` (others: what chance alone does).
    """

    def __init__(self, path: Path, kind: str, step: int) -> None:
        self.path, self.kind, self.step = path, kind, step
        self.history = History(path)

    def joined(self, parent: History, name: str) -> Series:
        """The parent's metric up to the fork, then the twin's: a trailing mean over it differs
        from the parent's only by what came after the fork.
        """
        joined = Series(exact=name.startswith("eval/"))
        for series, own in ((parent[name], False), (self.history[name], True)):
            for step, value in zip(series.steps, series.values, strict=True):
                if (step > self.step) == own:
                    joined.append(step, value)
        return joined
