"""The panel of a run: its state in words, buttons, knobs, live curves.

The panel reads the run folder and writes requests into it, and nothing else.
Controls, curves and the small table are widgets. Still pictures, a sentence and the table are
separate outputs too, so they stay in a saved notebook.
"""

from __future__ import annotations

import html
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets as widgets
from IPython.display import display

from rlkd_lab.lab.live.again import Again
from rlkd_lab.lab.live.controls import set_trait
from rlkd_lab.lab.live.curve_view import Curves
from rlkd_lab.lab.live.family import family
from rlkd_lab.lab.live.follower import Follower
from rlkd_lab.lab.live.handle import Handle, forks_asked, open_run
from rlkd_lab.lab.live.history import History
from rlkd_lab.lab.live.inspector import Inspector, inspect_tokens
from rlkd_lab.lab.live.inspector_html import alert
from rlkd_lab.lab.live.knob_widgets import KnobWidget, front_knob, knobs_of
from rlkd_lab.lab.live.panel_texts import (
    CLOSED,
    FORK_HELP,
    FORKS,
    NO_TOKENS,
    TABLE,
    banner,
    button_help,
    gone_words,
    records_words,
    state_sentence,
    values_table,
)
from rlkd_lab.lab.live.panel_widgets import PanelWidgets
from rlkd_lab.lab.live.redraw import Redraw, say
from rlkd_lab.plots.styles import title_of
from rlkd_lab.runs.tail import Tail
from rlkd_lab.training import RunConfig
from rlkd_lab.training.remote import Status

POLL_EVERY = 0.25
"""Seconds between two reads of the run folder."""
SHARE_BESIDE = 50
"""Drawing times between two drawings of a run that another process drives.

The panel then takes at most 2 % of the time, not 5 %.
"""
OVER = ("idle", "done", "failed", "lost")
_panels: list[Panel] = []
"""The open panels of this kernel, one of each run folder."""


def panel(run: Handle) -> Panel:
    """Return a panel that shows a run and steers it, for the last line of a cell.

    panel(start(config, out))
    panel(open_run(path))

    An earlier panel of the same run in this kernel is closed and says so.
    """
    return Panel(run)


def draw_now(path: Path) -> None:
    """Let the panel of a run that has ended draw what is left, before a notebook is saved."""
    for each in _panels:
        if each.place == path:
            each.update()


class Panel(PanelWidgets):
    """The object that :func:`panel` returns; displaying it starts a thread that updates it.

    ``close()`` ends the thread.
    """

    def __init__(self, run: Handle, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self.clock = clock
        self.curves = Curves(self.view, clock)
        self.more_curves = Curves(self.more_view, clock, group="")
        self._values: Any = None
        self._lock = threading.RLock()
        self.follower = Follower(self.update)
        self._attach(run)

    def _attach(self, run: Handle) -> None:
        """Show this run in place of the one before, and nowhere else in this kernel."""
        self.run, self.method, self.steps = run, run.config.method, run.config.steps
        self.place = Path(run.folder.path).resolve()
        for other in [each for each in _panels if each.place == self.place and each is not self]:
            other.close(CLOSED)
        if self not in _panels:
            _panels.append(self)
        self.history = History(run.folder.path)
        beside = [path for path in family(self.place) if path != self.place]
        self.history.earlier = {path.name: History(path) for path in beside[-4:]}
        self.requests = Tail(run.folder.path / "requests.jsonl")
        self.asked_moves: dict[int, dict[str, Any]] = {}
        """Moves that were asked for, here or elsewhere, by id, until they are answered."""
        self.problem = ""
        """An error of the drawing, in words."""
        self.notice, self.noticed = "", ("", 0)
        """What the last request led to, and the state and step of that moment."""
        self.taken: deque[tuple[float, int]] = deque(maxlen=21)
        """(seconds, step) of finished steps, for the rate; forks take their share of it."""
        self.asked: tuple[str, str, int, int] | None = None
        """The button whose effect has not come yet.

        It stands with the state, the step and the number of checkpoints when it was pressed.
        """
        self.curves.of(self.history, self.method, self.steps)
        self.more_curves.of(self.history, self.method, self.steps)
        self._build()
        self.refresh()

    def _build(self) -> None:
        self.knobs = {
            name: KnobWidget(self.run, name, self._lock) for name in knobs_of(self.method)
        }
        asked = forks_asked(self.place)
        kind = str(asked[-1]) if asked and asked[-1] in FORKS.values() else "off"
        self.again = Again(self.run.config, self.place, self._begin_another, self.show_run)
        self.put(self.run.config, self.knobs, front_knob(self.method), kind, self.again.widget)
        for name, button in self.buttons.items():
            button.on_click(lambda _, name=name: self._press(name))
        self.fork.observe(self._fork_chosen, "value")
        self.more.observe(lambda _: self.follower.wake(), "value")
        self.inspector: Inspector | None = None
        self.tabs.observe(self._tab_chosen, "selected_index")

    # --- what a person does -----------------------------------------------------------------------

    def _press(self, name: str) -> None:
        with self._lock:
            paused = self.run.status().state == "paused"
            action = {
                "Start": self.run.begin,
                "Pause": self.run.unpause if paused else self.run.pause,
                "Step": self.run.step,
                "Stop": self.run.stop,
                "Checkpoint": self.run.checkpoint,
            }[name]
            now = self.run.status()
            self.asked = None
            if self._try(action, name) and name != "Start":
                self.asked = (name.lower(), now.state, now.step, self._checkpoints())
            self._show()

    def _fork_chosen(self, change: Any) -> None:
        with self._lock:
            self._try(lambda: self.run.fork(change.new), "fork")

    def _begin_another(self, config: Callable[[], RunConfig]) -> None:
        """Start another run beside this one, and show it."""
        with self._lock:
            self._try(lambda: self._attach(self.run.another(config())), "another run")

    def show_run(self, path: Path) -> None:
        with self._lock:
            drive = self.run.drive
            self._try(lambda: self._attach(open_run(path, drive)), "run")

    def _tab_chosen(self, change: Any) -> None:
        """Load the tokens once their tab opens, and later the steps recorded since."""
        if change.new == 0:
            return None
        if self.inspector is not None:
            return self.inspector.refresh()
        if not self.run.folder.sample_steps():
            self.tokens.children = (widgets.HTML(NO_TOKENS),)
            return None
        try:
            self.inspector = inspect_tokens(self.run.folder)
            self.tokens.children = (self.inspector.widget,)
        except (OSError, ValueError) as error:
            self.tokens.children = (widgets.HTML(alert(error)),)

    def _try(self, action: Callable[[], Any], name: str) -> bool:
        """Run an action, or say why it cannot be done; return whether it was done."""
        words = ""
        try:
            action()
        except (OSError, RuntimeError, ValueError) as error:
            words = f"{name}: {error}"
        self._tell(words)
        self._show()
        return not words

    def _tell(self, words: str) -> None:
        """Set the notice; it stays until another one, two more steps or another state."""
        now = self.run.status()
        self.notice, self.noticed = words, (now.state, now.step)
        self.follower.wake()

    # --- what is shown ----------------------------------------------------------------------------

    def refresh(self) -> None:
        """Read what is new and show it in words and controls; :meth:`picture` draws."""
        with self._lock:
            self.history.read()
            self._read_requests()
            focused = self.guard.focused
            for name, knob in self.knobs.items():
                self._tell_knob(knob)
                knob.over = self.run.status().state == "done"
                knob.follow(self.history, focused == name)
            self._show()

    def _read_requests(self) -> None:
        for request in self.requests.read():
            kind, value = request.get("request"), request.get("value")
            number_asked = isinstance(value, int | float | None) and not isinstance(value, bool)
            value = "schedule" if kind == "release" else value
            moves = kind == "release" or (kind == "knob" and number_asked)
            if moves and isinstance(request.get("id"), int):  # the run refuses others
                self.asked_moves[request["id"]] = {**request, "value": value}
        if self.asked_moves:
            for event in self.history.events:
                self.asked_moves.pop(event.get("id"), None)  # type: ignore[arg-type]

    def _tell_knob(self, knob: KnobWidget) -> None:
        """Tell a knob what waits for it, asked for here, in another panel or an earlier kernel."""
        waiting = [one for one in self.asked_moves.values() if one.get("knob") == knob.name]
        knob.planned = [(one["at"], one["value"]) for one in waiting if _planned(one)]
        for one in waiting:
            if not _planned(one) and (knob.pending is None or one["id"] > knob.pending[0]):
                knob.pending = (one["id"], one["value"])

    def _show(self) -> None:
        now = self.run.status()
        if now.state != self.noticed[0] or now.step > self.noticed[1] + 2:
            self.notice = ""
        if now.state != "running":
            self.taken.clear()
        elif not self.taken or self.taken[-1][1] != self.history.step:
            self.taken.append((self.clock(), self.history.step))
        self._enable(now)  # before the words: a button acts once they say so
        title, words = title_of(self.method), html.escape(self.sentence(now))
        style = "font-size:14px;line-height:1.5"
        set_trait(self.state, "value", f"<div style='{style}'><b>{title}</b> · {words}</div>")
        set_trait(self.banner, "value", self._banner(now))
        set_trait(self.fork_help, "value", f"<small>{FORK_HELP[self.fork.value]}</small>")
        set_trait(self.records, "value", self._records())

    def sentence(self, now: Status) -> str:
        """Return state, step, rate, time left, and where the run is driven."""
        moment = (now.state, now.step, self._checkpoints())
        if self.asked is not None and self.asked[1:] != moment:
            self.asked = None
        return state_sentence(now, self.asked[0] if self.asked else None, self.taken)

    def _banner(self, now: Status) -> str:
        history, path = self.history, self.run.folder.path
        return banner(now, path, self.problem, history.damaged, self.notice, history.events)

    def _checkpoints(self) -> int:
        return sum(event.get("event") == "checkpoint" for event in self.history.events)

    def _records(self) -> str:
        files = sorted((self.history.path / "samples").glob("step_*.parquet"))
        points = self.run.folder.checkpoints()
        last = int(points[-1].name[5:]) if points else None
        return records_words([int(file.stem[5:]) for file in files], last)

    def _enable(self, now: Status) -> None:
        for title, (allowed, words) in button_help(now).items():
            button = self.buttons[title]
            set_trait(button, "disabled", not allowed)
            set_trait(button, "tooltip", words)
        pause, paused = self.buttons["Pause"], now.state == "paused"
        set_trait(pause, "description", "Continue" if paused else "Pause")
        set_trait(pause, "icon", "play" if paused else "pause")
        set_trait(self.fork, "disabled", now.state == "done")
        self.again.enable(now.state in OVER)

    def values(self) -> tuple[str, str]:
        """Return the last values as a table in HTML, and a sentence."""
        last = {
            name: float(self.history[name].values[-1]) for _, name in TABLE if name in self.history
        }
        text = say(self.history, self.method, self.steps, self.run.status().state)
        return f"{values_table(last, self.run.config)}<small>{html.escape(text)}</small>", text

    # --- drawing ----------------------------------------------------------------------------------

    def picture(self) -> bool:
        """Bring curves and table up to date where it is time; return whether any view was."""
        now = self.run.status()
        if not self.history.step and now.state not in OVER:
            return False  # another empty picture would only delay the first curve
        share = Redraw.SHARE if now.where == "thread" else SHARE_BESIDE
        forks = tuple(fork.history.step for fork in self.history.forks.values())
        what = (self.history.step, len(self.history.events), now.state, forks)
        how = (what, now.state if now.state in (*OVER, "paused") else None, share)
        self.more_curves.group = self.more.value
        more, _ = self.more_curves.update(*how)
        live, still = self.curves.update(*how)
        if live or still:  # the table has the values of the curves
            data = self._tabulate()
            if still and self._values is not None:
                self._values.update(data, raw=True)
        return live or more

    def _tabulate(self) -> dict[str, str]:
        """Show the last values in the panel, and return them as data of an output."""
        table, text = self.values()
        set_trait(self.table, "value", table)
        return {"text/html": f"<div class='rlkd-still'>{table}</div>", "text/plain": text}

    def _ipython_display_(self) -> None:
        display(self.top)
        resting = self.run.status().state in (*OVER, "paused")
        try:
            self.curves.show(resting)
            self.more_curves.show(resting)
            self._values = display(self._tabulate(), raw=True, display_id=True)
        finally:
            self._watch()  # controls work where a picture fails, and the thread says why

    def inside(self) -> Any:
        """Return the panel as a widget of another view, without the outputs of a cell."""
        self._tabulate()
        self._watch()
        return self.top

    # --- the thread -------------------------------------------------------------------------------

    def _watch(self) -> None:
        gently = self.run.status().where != "thread"
        self.follower.start(f"panel of {self.history.path.name}", POLL_EVERY, gently)

    def update(self) -> None:
        """Show words and controls, then draw the pictures that are due.

        An error is shown in the banner, and the thread continues.
        """
        try:
            self.refresh()
            self.picture()
            if self.problem:
                self.problem = ""
                self._show()
        except Exception as error:  # there is no cell that could raise it
            if not self.history.path.is_dir():
                return self._gone()
            self.problem = f"{type(error).__name__}: {error}"
            words = f"<b>The panel could not draw:</b> {html.escape(self.problem)}."
            words += " The run itself is not affected."
            set_trait(self.banner, "value", f"<div role='alert'>{words}</div>")

    def _gone(self) -> None:
        self.close(gone_words(self.history.path))

    def close(self, why: str = "") -> None:
        """End the thread; the last curves stay, and the controls are dead.

        Args:
            why: stands in the banner, as HTML.
        """
        if self in _panels:
            _panels.remove(self)
        self.follower.stop()
        if not why:
            return
        set_trait(self.state, "value", "")  # it would grow old
        set_trait(self.banner, "value", why)
        self.again.enable(False)
        for control in (*self.buttons.values(), self.fork, self.more, self.again.shown):
            set_trait(control, "disabled", True)
        for knob in self.knobs.values():
            knob.over = True
            knob.show()

    def __repr__(self) -> str:
        return say(self.history, self.method, self.steps, self.run.status().state)


def _planned(request: dict[str, Any]) -> bool:
    return isinstance(request.get("at"), int) and request["request"] == "knob"
