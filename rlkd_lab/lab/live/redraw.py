"""When curves are drawn again, as data for a notebook's output."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from matplotlib.figure import Figure

from rlkd_lab.lab.live.curve_data import number
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
    or when the run has come to rest: it ended, or it is paused.

    Args:
        least: least seconds between two drawings.

    >>> redraw = Redraw()
    >>> redraw.due("step 1", now=0.0)
    True
    >>> redraw.drawn("step 1", now=0.0, took=0.2)
    >>> redraw.due("step 2", now=3.9), redraw.due("step 1", now=4.0)
    (False, False)
    >>> redraw.due("step 2", now=4.0), redraw.due("step 2", now=0.3, rest="done")
    (True, True)
    """

    LEAST = 1.0
    SHARE = 20

    def __init__(self, least: float = LEAST) -> None:
        self.least = least
        self.seen: object = None
        self.next = float("-inf")
        self.rested: object = None

    def due(self, what: object, now: float, rest: object = None) -> bool:
        """Return whether to draw now; a run that comes to rest is drawn once, at once.

        Args:
            what: any value that changes when there is something new.
            now: seconds.
            rest: how the run rests, such as paused or done; nothing while it goes on.
        """
        if what == self.seen:
            return False
        return now >= self.next or bool(rest and rest != self.rested)

    def drawn(
        self,
        what: object,
        now: float,
        took: float,
        rest: object = None,
        share: float = SHARE,
    ) -> None:
        """Note a drawing that ended at ``now`` and took ``took`` seconds.

        The next drawing waits ``share`` times as long, unless the run rests and loses nothing.
        """
        self.seen, self.rested = what, rest
        self.next = now + (self.least if rest else max(self.least, share * took))

    def run(
        self,
        draw: Callable[[], None],
        what: object,
        clock: Callable[[], float],
        rest: object,
        share: float,
    ) -> bool:
        """Draw if it is time, and return whether it was; see :meth:`due` and :meth:`drawn`."""
        began = clock()
        if not self.due(what, began, rest):
            return False
        draw()
        now = clock()
        self.drawn(what, now, now - began, rest, share)
        return True


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
