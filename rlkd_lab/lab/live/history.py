"""Read the rows and events of a run as they come, in memory that stays flat.

Only lines that were appended since the last read are read.
About a thousand points of each metric are kept: the last rows exactly, older rows as means
of neighbours. Evaluations are never averaged; every second one is dropped where there are
too many.
"""

from __future__ import annotations

import json
from array import array
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rlkd_lab.runs.tail import Tail

POINTS = 1000
"""Largest number of points kept of a metric."""
EXACT = 200
"""Number of last points that are never averaged."""


class Series:
    """One metric: (step, value) pairs in the order of the steps.

    Each pair has a weight, the number of rows that it is the mean of.
    ``stride`` is the width in steps of averaged points.

    Args:
        exact: thin by dropping points, without averages; for evaluations.
    """

    def __init__(self, exact: bool = False) -> None:
        self.exact = exact
        self.stride = 1
        self._steps, self._values, self._weights = array("d"), array("d"), array("d")

    def __len__(self) -> int:
        return len(self._steps)

    def append(self, step: float, value: float) -> None:
        """Add a point, and thin the older ones where there are too many."""
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
        parts = [np.array(part) for part in (self._steps, self._values, self._weights)]
        thinned = self._halved(*parts) if self.exact else self._averaged(*parts)
        self._steps, self._values, self._weights = (array("d", part) for part in thinned)

    @staticmethod
    def _halved(*parts: np.ndarray) -> list[np.ndarray]:
        """Drop every second point; the newest stays."""
        return [part[::-2][::-1] for part in parts]

    def _averaged(
        self, steps: np.ndarray, values: np.ndarray, weights: np.ndarray
    ) -> list[np.ndarray]:
        """Average neighbours among all points but the last :data:`EXACT`.

        Every metric and every fork has the same grid of steps, so averages can be compared.
        """
        old = len(steps) - EXACT
        while len(starts := self._cells(steps[:old])) > POINTS // 2:
            self.stride *= 2
        weight = np.add.reduceat(weights[:old], starts)
        sums = [np.add.reduceat((part * weights)[:old], starts) for part in (steps, values)]
        return [
            np.concatenate([sums[0] / weight, steps[old:]]),
            np.concatenate([sums[1] / weight, values[old:]]),
            np.concatenate([weight, weights[old:]]),
        ]

    def _cells(self, steps: np.ndarray) -> np.ndarray:
        """Return where each cell of the grid begins."""
        return np.unique((steps - 1) // self.stride, return_index=True)[1]

    def trailing_mean(self, window: int) -> np.ndarray:
        """Return the mean over the last ``window`` steps at each point, (N,).

        A point that is the mean of more rows stays as it is, and so do evaluations.
        """
        if self.exact:
            return self.values
        steps, weights = self.steps, np.array(self._weights)
        if not len(steps):
            return steps
        sums = np.concatenate([[0.0], np.cumsum(self.values * weights)])
        counts = np.concatenate([[0.0], np.cumsum(weights)])
        before = np.searchsorted(steps, steps - window, side="right")
        first = np.minimum(before, np.arange(len(steps)))
        ends = np.arange(1, len(steps) + 1)
        return (sums[ends] - sums[first]) / (counts[ends] - counts[first])


class History:
    """What was read of a growing run folder: metrics, events, and forks.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\\n{"step": 2, "rew')
    >>> history = History(folder)
    >>> history.read(), history.step, history["reward"].values
    (True, 1, array([0.5]))
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._metrics = Tail(self.path / "metrics.jsonl")
        self._events = Tail(self.path / "events.jsonl")
        self._clear_metrics()
        self._clear_events()
        self.forks: dict[str, Fork] = {}
        self.earlier: dict[str, History] = {}
        """Runs that are drawn faint behind this one, by name."""

    def _clear_metrics(self) -> None:
        self._metrics.restart()
        self.series: dict[str, Series] = {}
        self.last: dict[str, Any] = {}
        self.step = 0

    def _clear_events(self) -> None:
        self._events.restart()
        self.events: deque[dict[str, Any]] = deque(maxlen=2000)

    def read(self) -> bool:
        """Read new rows and events, here and in the forks; return whether there were any."""
        new = False
        if self._metrics.changed():
            self._clear_metrics()
            new = True
        if self._events.changed():
            self._clear_events()
            new = True
        for row in _numbered(self._metrics):
            self._add(row)
            new = True
        for event in _numbered(self._events):
            self.events.append(event)
            new = True
        for other in self.earlier.values():
            new = other.read() or new
        return self._read_forks() or new

    def _add(self, row: dict[str, Any]) -> None:
        step = int(row["step"])
        for name, value in row.items():
            if name == "step" or value is None or not isinstance(value, int | float):
                continue
            if name not in self.series:
                self.series[name] = Series(exact=name.startswith("eval/"))
            self.series[name].append(step, float(value))
        self.last, self.step = row, step

    def _read_forks(self) -> bool:
        new = False
        for name, fork in list(self.forks.items()):
            if not (fork.path / "fork.json").exists():
                del self.forks[name]  # a resumed run drops forks that began later
                new = True
        for file in sorted(self.path.glob("twins/*/fork.json")):
            name = file.parent.name
            if name not in self.forks:
                try:
                    facts = json.loads(file.read_text(encoding="utf-8"))
                    fork = Fork(file.parent, str(facts["kind"]), int(facts["step"]))
                except (OSError, ValueError, KeyError, TypeError):
                    continue  # being written
                self.forks[name] = fork
            new = self.forks[name].history.read() or new
        return new

    def latest_forks(self) -> tuple[Fork | None, list[Fork]]:
        """Return the latest untouched fork that has taken a step, and its noise forks."""
        begun = [fork for fork in self.forks.values() if fork.history.step > fork.step]
        untouched = [fork for fork in begun if fork.kind == "untouched"]
        if not untouched:
            return None, []
        latest = max(untouched, key=lambda fork: fork.step)
        noise = [fork for fork in begun if fork.kind == "noise" and fork.step == latest.step]
        return latest, noise

    def __contains__(self, name: str) -> bool:
        return name in self.series

    def __getitem__(self, name: str) -> Series:
        """Return a metric; an empty series where it was not recorded."""
        return self.series.get(name) or Series()

    @property
    def damaged(self) -> int:
        """Number of lines that could not be read."""
        return self._metrics.damaged + self._events.damaged

    @property
    def moves(self) -> list[dict[str, Any]]:
        """Events of knobs that were moved or given back, oldest first.

        An event has ``step``, ``knob``, and ``value`` or ``release``.
        """
        return [event for event in self.events if event.get("event") == "knob"]


def _numbered(lines: Tail) -> Iterator[dict[str, Any]]:
    """Yield new rows with a step; one without it is damaged."""
    for row in lines.rows():
        if isinstance(row.get("step"), int | float):
            yield row
        else:
            lines.damaged += 1


class Fork:
    """The same run without the moved knobs, from step ``step`` on.

    ``kind`` is ``untouched`` (the same random streams) or ``noise`` (other samples).
    """

    def __init__(self, path: Path, kind: str, step: int) -> None:
        self.path, self.kind, self.step = path, kind, step
        self.history = History(path)

    def measured(self, name: str) -> bool:
        """Return whether the metric was measured after the fork; a KL is not at every step."""
        steps = self.history[name].steps
        return bool(len(steps)) and bool(steps[-1] > self.step)

    def joined(self, parent: History, name: str) -> Series:
        """Return the parent's metric up to the fork, then the fork's.

        A trailing mean over it differs from the parent's only by what came after the fork.
        """
        joined = Series(exact=name.startswith("eval/"))
        before, after = parent[name], self.history[name]
        first, last = before.steps <= self.step, after.steps > self.step
        for part in ("_steps", "_values", "_weights"):
            pair = [np.array(getattr(series, part)) for series in (before, after)]
            setattr(joined, part, array("d", np.concatenate([pair[0][first], pair[1][last]])))
        joined.stride = max(before.stride, after.stride)
        if len(joined) > POINTS:
            joined._thin()
        return joined
