"""When curves are drawn again, as data for a notebook's output."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from typing import Any

from IPython.display import display
from matplotlib.figure import Figure

from rlkd_lab.lab.live.curves import draw, number
from rlkd_lab.lab.live.history import History
from rlkd_lab.plots.files import png
from rlkd_lab.plots.styles import title_of

SAID = {
    "reward": "reward",
    "KL to the teacher": "kl_teacher_rev",
    "length": "completions/mean_length",
    "accuracy": "eval/accuracy",
}
"""Metrics that a run's sentence names."""


class Redraw:
    """Decides when to draw again.

    It is time when something is new and a second and twenty drawing times have passed,
    or when the run has ended.

    >>> redraw = Redraw()
    >>> redraw.due("step 1", now=0.0)
    True
    >>> redraw.drawn("step 1", now=0.0, took=0.2)
    >>> redraw.due("step 2", now=3.9), redraw.due("step 1", now=4.0)
    (False, False)
    >>> redraw.due("step 2", now=4.0), redraw.due("step 2", now=0.3, ended=True)
    (True, True)
    """

    LEAST = 1.0
    SHARE = 20

    def __init__(self) -> None:
        self.seen: object = None
        self.next = float("-inf")
        self.final = False

    def due(self, what: object, now: float, ended: bool = False) -> bool:
        """Return whether to draw now; the end of a run is drawn once, at once.

        Args:
            what: any value that changes when there is something new.
            now: seconds.
            ended: whether the run has ended.
        """
        if what == self.seen:
            return False
        return now >= self.next or (ended and not self.final)

    def drawn(
        self,
        what: object,
        now: float,
        took: float,
        ended: bool = False,
        share: float = SHARE,
    ) -> None:
        """Note a drawing that ended at ``now`` and took ``took`` seconds.

        The next drawing waits ``share`` times as long.
        """
        self.seen, self.final = what, ended
        self.next = now + max(self.LEAST, share * took)


def say(history: History, method: str, steps: int | None = None, state: str | None = None) -> str:
    """Return the run in a sentence, for places without pictures and widgets.

    >>> say(History("nowhere"), "grpo")
    'GRPO: no step yet.'
    """
    title = title_of(method)
    how = f", {state}" if state else ""
    if not history.step:
        return f"{title}: no step yet{how}."
    values = [
        f"{label} {number(float(history[name].values[-1]))}"
        for label, name in SAID.items()
        if name in history
    ]
    moved = ", ".join(sorted({move["knob"] for move in history.moves}))
    touched = f"; moved by hand: {moved}" if moved else ""
    step = f"step {history.step}" + (f" of {steps}" if steps else "")
    return f"{title}: {step}{how}. {', '.join(values)}{touched}."


def picture(figure: Figure, text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a figure as data and metadata for ``display(…, raw=True)``.

    The sentence stands in where no picture can be shown.
    """
    data = {"image/png": base64.b64encode(png(figure)).decode(), "text/plain": text}
    return data, {"image/png": {"alt": text}}


def watch_curves(
    group: str = "main", clock: Callable[[], float] = time.monotonic
) -> Callable[[Any, dict[str, Any]], None]:
    """Return an ``on_step`` that draws a run's curves below the cell that trains it.

    Use it where a panel cannot be: ``run(config, out, on_step=watch_curves())``.

    Args:
        group: a key of :data:`~rlkd_lab.lab.live.curve_groups.GROUPS`.
        clock: seconds.
    """
    redraw = Redraw()
    history: History | None = None
    handle: Any = None

    def show(loop: Any, row: dict[str, Any]) -> None:
        nonlocal history, handle
        config, step = loop.config, row["step"]
        ended = step == config.steps
        if not redraw.due(step, clock(), ended):
            return
        began = clock()
        history = history or History(loop.folder.path)
        history.read()
        figure = draw(history, config.method, group, steps=config.steps)
        data, metadata = picture(figure, say(history, config.method, config.steps))
        if handle is None:
            handle = display(data, metadata=metadata, raw=True, display_id=True)
        else:
            handle.update(data, metadata=metadata, raw=True)
        redraw.drawn(step, clock(), clock() - began, ended)

    return show
