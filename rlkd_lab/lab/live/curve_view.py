"""Curves in the page: a view that moves while the kernel lives, and a still picture for later.

The view is drawn by JavaScript with uPlot, which is part of the package; nothing is loaded.
Its model holds what is shown, so a page that is loaded again shows the kernel's truth.
The still picture is a separate output that a saved notebook keeps.
While the view stands in the page, it hides the still picture of its cell.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets
from IPython.display import display

from rlkd_lab.lab.live.curve_data import curve_data
from rlkd_lab.lab.live.curves import draw
from rlkd_lab.lab.live.history import History
from rlkd_lab.lab.live.redraw import Redraw, picture, say

WEB = Path(__file__).parent / "web"
STILL_EVERY = 20.0
"""Least seconds between two still pictures of a run that goes on."""


@cache
def source(suffix: str) -> str:
    """Return the view's JavaScript (``js``) as one module, or its style sheet (``css``)."""
    names = {"js": ("uplot", "curve_view", "downloads"), "css": ("uplot", "curve_view")}[suffix]
    texts = [(WEB / f"{name}.{suffix}").read_text(encoding="utf-8") for name in names]
    return "\n".join(texts) + ("\nexport default { render };\n" if suffix == "js" else "")


def packed(data: Any) -> Any:
    """Return what is to be drawn with its arrays as bytes of 32-bit floats."""
    if isinstance(data, np.ndarray):
        return data.astype(np.float32).tobytes()
    if isinstance(data, dict):
        return {key: packed(value) for key, value in data.items()}
    return [packed(value) for value in data] if isinstance(data, list) else data


class CurveView(anywidget.AnyWidget):
    """Curves that a browser draws.

    ``data`` is ``curve_data``, packed; while it is empty, nothing is shown.
    ``name`` is that of downloaded files.
    """

    _esm = traitlets.Unicode().tag(sync=True)
    _css = traitlets.Unicode().tag(sync=True)
    data = traitlets.Dict().tag(sync=True)
    name = traitlets.Unicode().tag(sync=True)

    def __init__(self, **traits: Any) -> None:
        super().__init__(_esm=source("js"), _css=source("css"), **traits)

    def __repr__(self) -> str:
        return "Curves are live in Jupyter: run the cell again. A picture stands below."


class Curves:
    """A group of curves of a run: its live view and its still picture.

    Args:
        view: the live view.
        clock: seconds.
        group: a key of GROUPS, or empty for no curves.
    """

    history: History
    method: str
    steps: int

    def __init__(self, view: CurveView, clock: Callable[[], float], group: str = "main") -> None:
        self.view, self.clock, self.group = view, clock, group
        self._output: Any = None

    def of(self, history: History, method: str, steps: int) -> None:
        """Show this run from now on.

        Args:
            history: what was read of its folder.
            method: a key of METHODS.
            steps: length of the whole run.
        """
        self.history, self.method, self.steps = history, method, steps
        self.live, self.still = Redraw(), Redraw(STILL_EVERY)
        self._send()

    def show(self, resting: bool) -> None:
        """Display the output of the still picture; a run that goes on has words there first."""
        text = say(self.history, self.method, self.steps)
        words = {"text/html": f"<div class='rlkd-still'>{text}</div>", "text/plain": text}
        data, metadata = self._picture() if resting else (words, {})
        self._output = display(data, metadata=metadata, raw=True, display_id=True)
        self.still.next = self.clock() + Redraw.LEAST  # the first drawing loads fonts

    def update(self, what: object, rest: object, share: float) -> tuple[bool, bool]:
        """Bring view and still picture up to date where it is time; return which were.

        Args:
            what: any value that changes when there is something new.
            rest: how the run rests, such as paused or done; nothing while it goes on.
            share: how many drawing times lie between two drawings.
        """
        what = (self.group, what)
        live = self.live.run(self._send, what, self.clock, rest, share)
        return live, self.still.run(self._draw, what, self.clock, rest, share)

    def _send(self) -> None:
        data = {}
        if self.group:
            data = packed(curve_data(self.history, self.method, self.group, self.steps))
        self.view.name = f"{self.history.path.name} {self.group}".replace(" ", "-")
        self.view.data = data

    def _draw(self) -> None:
        if self._output is not None:
            data, metadata = self._picture()
            self._output.update(data, metadata=metadata, raw=True)

    def _picture(self) -> tuple[dict[str, Any], dict[str, Any]]:
        if not self.group:
            return {"text/html": "", "text/plain": ""}, {}
        figure = draw(self.history, self.method, self.group, steps=self.steps)
        return picture(figure, say(self.history, self.method, self.steps))


def watch_curves(
    group: str = "main", clock: Callable[[], float] = time.monotonic
) -> Callable[[Any, dict[str, Any]], None]:
    """Return an ``on_step`` that shows a run's curves below the cell that trains it.

    Use it where a panel cannot be: ``run(config, out, on_step=watch_curves())``.

    Args:
        group: a key of :data:`~rlkd_lab.lab.live.curve_groups.GROUPS`.
        clock: seconds.
    """
    curves: Curves | None = None

    def show(loop: Any, row: dict[str, Any]) -> None:
        nonlocal curves
        config, step = loop.config, row["step"]
        if curves is None:
            history = History(loop.folder.path)
            curves = Curves(CurveView(), clock, group)
            curves.of(history, config.method, config.steps)
            display(curves.view)
            curves.show(resting=False)
        curves.history.read()
        ended = step == config.steps
        curves.update(step, ended, Redraw.SHARE)

    return show
