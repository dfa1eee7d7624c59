"""Two runs or more, live in one picture."""

from __future__ import annotations

import html
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets
from IPython.display import display

from rlkd_lab.lab.live.compare_data import METRICS, Compared, compare_data, pair_words, sides_of
from rlkd_lab.lab.live.controls import set_trait
from rlkd_lab.lab.live.curve_view import STILL_EVERY, CurveView, packed
from rlkd_lab.lab.live.curves import drawn
from rlkd_lab.lab.live.family import settings_of
from rlkd_lab.lab.live.follower import Follower, only_one
from rlkd_lab.lab.live.handle import Handle
from rlkd_lab.lab.live.history import History
from rlkd_lab.lab.live.keyboard import KeyboardGuard
from rlkd_lab.lab.live.redraw import Redraw, picture
from rlkd_lab.lab.live.tokens import folder_of
from rlkd_lab.runs import RunFolder

POLL_EVERY = 1.0
"""Seconds between two reads of the run folders."""


def compare(*runs: Handle | RunFolder | str | Path, metrics: Sequence[str] = METRICS) -> Comparison:
    """Show two runs or more in one picture, for the last line of a cell; it follows them.

    The legend has the settings in which they differ.
    Below stands the difference by seed to the first run's settings, where there is one.

    Args:
        runs: handles, run folders or paths.
        metrics: names of docs/metrics.md, a panel for each that was recorded.

    Raises:
        ValueError: fewer than two runs, a run twice, or a damaged run.
        FileNotFoundError: there is no such run.
    """
    return Comparison([folder_of(run) for run in runs], metrics)


class Comparison:
    """The object that :func:`compare` returns; displaying it starts a thread that updates it."""

    def __init__(self, runs: Sequence[RunFolder], metrics: Sequence[str] = METRICS) -> None:
        if len({run.path.resolve() for run in runs}) != len(runs) or len(runs) < 2:
            raise ValueError("compare two runs or more, each given once")
        self.compared = [Compared(History(run.path), settings_of(run)) for run in runs]
        self.metrics, self.words = tuple(metrics), ""
        self.view, self.said = CurveView(name="compare"), widgets.HTML()
        self.widget = widgets.VBox([KeyboardGuard(), self.view, self.said])
        self.widget.add_class("rlkd-panel")
        self.live, self.still = Redraw(), Redraw(STILL_EVERY)
        self._output: Any = None
        self.follower = Follower(self.update)
        self.update()

    def update(self) -> None:
        """Read what is new, and draw it where it is time; an error is shown in words."""
        try:
            for run in self.compared:
                run.history.read()
            what = tuple((run.history.step, len(run.history.events)) for run in self.compared)
            self.live.run(self._send, what, time.monotonic, False, Redraw.SHARE)
            if self._output is not None:
                self.still.run(self._draw, what, time.monotonic, False, Redraw.SHARE)
        except Exception as error:  # there is no cell that could raise it
            self._alert(f"{type(error).__name__}: {error}")

    def _alert(self, words: str) -> None:
        set_trait(self.said, "value", f"<div role='alert'>{html.escape(words)}</div>")

    def _send(self) -> None:
        sides = sides_of(self.compared)
        self.data = compare_data(sides, self.metrics)
        self.view.data = packed(self.data)
        self.words = " ".join(pair_words(sides))
        set_trait(self.said, "value", f"<small>{html.escape(self.words)}</small>")

    def _draw(self) -> None:
        data, metadata = picture(drawn(self.data), repr(self))
        self._output.update(data, metadata=metadata, raw=True)

    def __repr__(self) -> str:
        names = ", ".join(run.history.path.name for run in self.compared)
        return f"Compared: {names}. {self.words}"

    def _ipython_display_(self) -> None:
        bundle = self.widget._repr_mimebundle_() or {}
        display({**bundle, "text/plain": repr(self)}, raw=True)
        data, metadata = picture(drawn(self.data), repr(self))
        self._output = display(data, metadata=metadata, raw=True, display_id=True)
        self.still.drawn(self.live.seen, time.monotonic(), 0.0)
        self.inside()

    def inside(self) -> Any:
        """Return the picture as a widget of another view, and follow the runs."""
        only_one(tuple(run.history.path.resolve() for run in self.compared), self)
        self.follower.start("comparison", POLL_EVERY)
        return self.widget

    def close(self, why: str = "") -> None:
        """End the thread; the last picture stays, with ``why`` below it."""
        self.follower.stop()
        if why:
            self._alert(why)
