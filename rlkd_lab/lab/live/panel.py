"""The panel of a run: what it is doing in words, buttons, knobs, live curves. All it reads is the
run folder; all it writes are requests.

Controls are widgets; curves are pictures in outputs of their own, so that they are still there in a
saved notebook, beside a sentence and a small table.
"""

from __future__ import annotations

import contextlib
import html
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
from IPython.display import display

from rlkd_lab.lab.controls import Control, chosen, knobs_of, shown
from rlkd_lab.lab.curves import GROUPS, Redraw, draw, number, picture, say
from rlkd_lab.lab.history import History
from rlkd_lab.lab.keys import Guard
from rlkd_lab.objectives import METHODS
from rlkd_lab.runs import Tail

if TYPE_CHECKING:
    from rlkd_lab.lab.driving import Handle, Status

LOOK_EVERY = 0.25
"""Seconds between two looks at the run folder."""
SHARE_BESIDE = 50
"""Drawing times between two drawings where the run is not in this kernel: there the panel may
cost it 2 %, not 5.
"""
SAID = ("warning", "guard", "verifier")
"""Events of which the last two stand below the state."""
LIVE = ("running", "paused", "stopping")
OVER = ("idle", "done", "failed", "lost")
WHERE = {
    "thread": "in a thread of this kernel",
    "process": "in a process of its own",
    "elsewhere": "driven from elsewhere",
    "nowhere": "",
}
TWINS = {"off": "off", "untouched": "untouched", "untouched and chance": "noise"}
TWIN_HELP = {
    "off": "No twin: what a moved knob does cannot be told from what would have happened anyway.",
    "untouched": "The first moved knob forks the run: the same weights, prompts and samples"
    " without the move, dotted. Their difference is the knob's.",
    "noise": "Beside the untouched twin another one with other samples, grey: how far these two"
    " drift apart is what chance alone does.",
}
TABLE = (
    ("reward", "reward"),
    ("KL to the teacher", "kl_teacher_rev"),
    ("response length", "completions/mean_length"),
    ("entropy", "entropy"),
    ("accuracy, held out", "eval/accuracy"),
)

_panels: dict[Path, Panel] = {}
"""The panel of each run folder in this kernel: running its cell again replaces it."""


class Top(widgets.VBox):
    """A box that is a sentence where widgets cannot be shown."""

    def __repr__(self) -> str:
        return (
            "The panel of this run is live in Jupyter: run the cell again. Curves and values"
            " stand below."
        )


class Panel:
    """What :func:`panel` returns; displaying it shows controls, curves and values.

    ``close()`` ends its thread.
    """

    def __init__(self, run: Handle, clock: Callable[[], float] = time.monotonic) -> None:
        self.run, self.clock = run, clock
        self.method, self.steps = run.config.method, run.config.steps
        self.history = History(run.folder.path)
        self.requests = Tail(run.folder.path / "requests.jsonl")
        self.plans: dict[int, dict[str, Any]] = {}
        """Moves that were asked for from a later step on, by id, until they are answered."""
        self.redraw, self.redraw_more = Redraw(), Redraw()
        self.problem = ""
        self.notice, self.noticed = "", ("", 0)
        """What the last request came to, and the state and step in which that was said."""
        self.taken: deque[tuple[float, int]] = deque(maxlen=21)
        """(time, step) as steps were seen to end: the rate, twins included."""
        self.asked: tuple[str, str, int, int] | None = None
        """The button whose effect has not come yet, with the state, the step and the number of
        checkpoints asked for when it was pressed.
        """
        self._curves: Any = None
        self._more: Any = None
        self._values: Any = None
        self._table = ""
        self._lock = threading.RLock()
        self._wake, self._closed = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._build()
        self.refresh()

    # --- widgets ----------------------------------------------------------------------------------

    def _build(self) -> None:
        self.state = widgets.HTML()
        self.banner = widgets.HTML()
        self.buttons = {
            name: widgets.Button(
                description=name, icon=icon, layout=widgets.Layout(width="auto", min_width="92px")
            )
            for name, icon in (
                ("Start", "play"),
                ("Pause", "pause"),
                ("Step", "step-forward"),
                ("Stop", "stop"),
                ("Checkpoint", "save"),
            )
        }
        for name, button in self.buttons.items():
            button.on_click(lambda _, name=name: self._press(name))
        self.twin = widgets.Dropdown(
            options=list(TWINS.items()),
            value=self._twin_kind(),
            description="twin",
            tooltip="What a moved knob forks",
            style={"description_width": "92px"},
            layout=widgets.Layout(width="340px"),
        )
        self.twin_help = widgets.HTML()
        self.twin.observe(self._twin_chosen, "value")
        front = shown(self.method)
        self.controls = {
            name: Control(self.run, name, self._tell, self._lock) for name in knobs_of(self.method)
        }
        others = widgets.VBox(
            [control.widget for name, control in self.controls.items() if name != front]
        )
        self.folded = widgets.Accordion(
            [others, widgets.HTML(chosen(self.run.config))],
            titles=(f"{len(self.controls) - 1} more knobs", "options"),
            selected_index=None,
        )
        self.more = widgets.Dropdown(
            options=[("none", ""), *((name, name) for name in GROUPS if name != "main")],
            value="",
            description="more curves",
            tooltip="A second picture below the main curves",
            style={"description_width": "92px"},
            layout=widgets.Layout(width="340px"),
        )
        self.more.observe(lambda _: self._wake.set(), "value")
        self.inspector = widgets.HTML()
        self.guard = Guard()
        row = widgets.Layout(flex_flow="row wrap", align_items="center")
        self.top = Top(
            [
                self.state,
                self.banner,
                widgets.HBox(list(self.buttons.values()), layout=row),
                self.controls[front].widget,
                self.folded,
                widgets.HBox([self.twin, self.twin_help], layout=row),
                widgets.HBox([self.more, self.inspector], layout=row),
                self.guard,
            ]
        )
        self.top.add_class("rlkd-panel")

    def _twin_kind(self) -> str:
        """What was asked for last, as it stands in the run folder."""
        kinds = [
            request.get("kind")
            for request in _requests(self.history.path)
            if request.get("request") == "twin"
        ]
        return str(kinds[-1]) if kinds and kinds[-1] in TWINS.values() else "off"

    # --- what a person does -----------------------------------------------------------------------

    def _press(self, name: str) -> None:
        with self._lock:
            state = self.run.status().state
            action = {
                "Start": self.run.begin,
                "Pause": self.run.go_on if state == "paused" else self.run.pause,
                "Step": self.run.step,
                "Stop": self.run.stop,
                "Checkpoint": self.run.checkpoint,
            }[name]
            now = self.run.status()
            self.asked = (
                (name.lower(), now.state, now.step, self._checkpoints())
                if self._try(action, name) and name != "Start"
                else None
            )
            self._show()

    def _twin_chosen(self, change: Any) -> None:
        with self._lock:
            self._try(lambda: self.run.twin(change.new), "twin")

    def _try(self, action: Callable[[], Any], name: str) -> bool:
        """Do it, or say why it cannot be done."""
        words = ""
        try:
            action()
        except (OSError, RuntimeError, ValueError) as error:
            words = f"{name}: {error}"
        self._tell(words)
        self._show()
        return not words

    def _tell(self, words: str) -> None:
        """Something to say until something else is asked for, or the run is two steps on or in
        another state.
        """
        now = self.run.status()
        self.notice, self.noticed = words, (now.state, now.step)
        self._wake.set()

    # --- what is shown ----------------------------------------------------------------------------

    def refresh(self) -> None:
        """Read what is new and show it in words and controls; pictures are for :meth:`picture`."""
        with self._lock:
            self.history.read()
            self._read_plans()
            focused = self.guard.focused
            for name, control in self.controls.items():
                control.planned = [
                    (plan["at"], plan.get("value"))
                    for plan in self.plans.values()
                    if plan.get("knob") == name
                ]
                control.follow(self.history, focused == name)
            self._show()

    def _read_plans(self) -> None:
        for request in self.requests.read():
            if (
                request.get("request") == "knob"
                and isinstance(request.get("id"), int)
                and isinstance(request.get("at"), int)
            ):
                self.plans[request["id"]] = request
        if self.plans:
            for event in self.history.events:
                self.plans.pop(event.get("id"), None)  # type: ignore[arg-type]

    def _show(self) -> None:
        now = self.run.status()
        if now.state != self.noticed[0] or now.step > self.noticed[1] + 2:
            self.notice = ""
        if now.state == "running":
            if not self.taken or self.taken[-1][1] != self.history.step:
                self.taken.append((self.clock(), self.history.step))
        else:
            self.taken.clear()
        _set(
            self.state,
            f"<div style='font-size:14px;line-height:1.5'><b>{METHODS[self.method].title}</b>"
            f" · {html.escape(self.sentence(now))}</div>",
        )
        _set(self.banner, self._banner(now))
        _set(self.twin_help, f"<small>{TWIN_HELP[self.twin.value]}</small>")
        _set(self.inspector, self._inspector())
        self._enable(now)

    def sentence(self, now: Status) -> str:
        """State, step, rate, time left, and where it runs."""
        words = {
            "idle": "stopped; Start goes on" if now.step else "idle; Start begins",
            "running": "running" + (f" ({now.why})" if now.why else ""),
            "paused": "paused between two steps",
            "stopping": "stopping; the step that is being computed is given up",
            "done": "done",
            "failed": "failed",
            "lost": "lost",
        }[now.state]
        if self.asked is not None and self.asked[1:] != (now.state, now.step, self._checkpoints()):
            self.asked = None
        if self.asked is not None:
            words = f"{words}, {self.asked[0]} was asked for"
        parts = [words, f"step {now.step} of {now.steps}"]
        if len(self.taken) > 2:
            (began, first), (ended, last) = self.taken[0], self.taken[-1]
            if last > first and ended > began:
                each = (ended - began) / (last - first)
                parts += [
                    f"{each:.1f} s a step" if each >= 0.95 else f"{1 / each:.1f} steps a second",
                    f"{_duration(each * (now.steps - now.step))} left",
                ]
        if now.state in LIVE and WHERE[now.where]:
            parts.append(WHERE[now.where])
        return " · ".join(parts)

    def _banner(self, now: Status) -> str:
        place = html.escape(str(self.run.folder.path))
        found = []
        if now.state == "failed":
            remedy = (
                "Finished steps are kept. Start goes on from the last checkpoint; if it"
                " fails again, change what the reason names and start a new run."
            )
            found.append(
                (
                    "error",
                    f"<b>The run failed:</b> {html.escape(now.why or 'no reason given')}. {remedy}",
                )
            )
        elif now.state == "paused" and now.why:
            found.append(("error", f"<b>The run waits:</b> {html.escape(now.why)}."))
        elif now.state == "lost":
            remedy = (
                "Start (or <code>rlkd resume</code>) goes on from the last checkpoint; the"
                " steps after it are computed again."
            )
            found.append(
                (
                    "error",
                    "<b>The run is lost:</b> the process that drove it is gone. What it"
                    f" wrote is kept in {place}. {remedy}",
                )
            )
        if self.problem:
            found.append(
                (
                    "error",
                    f"<b>The panel could not draw:</b> {html.escape(self.problem)}. The run"
                    " itself is not affected; run the cell again.",
                )
            )
        if self.history.damaged:
            found.append(("warn", f"{self.history.damaged} damaged lines in {place} are left out."))
        if self.notice:
            found.append(("warn", html.escape(self.notice)))
        found += [
            ("warn", html.escape(str(event.get("text", ""))))
            for event in self.history.events
            if event.get("event") in SAID
        ][-2:]
        style = (
            "border-left:4px solid var(--jp-{0}-color1, {1});padding:4px 10px;margin:2px"
            " 0;line-height:1.4"
        )
        colours = {"error": "#b00020", "warn": "#c77700"}
        return "".join(
            f"<div role='alert' style='{style.format(kind, colours[kind])}'>{text}</div>"
            for kind, text in found
        )

    def _checkpoints(self) -> int:
        return sum(event.get("event") == "checkpoint" for event in self.history.events)

    def _inspector(self) -> str:
        steps = [
            int(path.stem[5:])
            for path in sorted((self.history.path / "samples").glob("step_*.parquet"))
        ]
        points = self.run.folder.checkpoints()
        words = [f"checkpoint at step {int(points[-1].name[5:])}"] if points else []
        if steps:
            words.insert(
                0,
                f"completions recorded at {len(steps)} steps, last {steps[-1]}:"
                " <code>inspect_tokens(run)</code>",
            )
        return f"<small>{' · '.join(words)}</small>"

    def _enable(self, now: Status) -> None:
        live, name = now.state in ("running", "paused"), now.state
        where = f"the run is {name}"
        may = {
            "Start": (
                name in ("idle", "failed", "lost"),
                "start, or go on from the last checkpoint",
            ),
            "Pause": (live, "go on" if name == "paused" else "wait after the step that is running"),
            "Step": (live, "one step, then pause"),
            "Stop": (live, "stop now; finished steps are kept"),
            "Checkpoint": (live, "write a checkpoint after the step that is running"),
        }
        for title, (allowed, words) in may.items():
            button = self.buttons[title]
            _trait(button, "disabled", not allowed)
            _trait(button, "tooltip", words if allowed else f"{title}: {where}")
        _trait(self.buttons["Pause"], "description", "Go on" if name == "paused" else "Pause")
        _trait(self.buttons["Pause"], "icon", "play" if name == "paused" else "pause")
        _trait(self.twin, "disabled", name == "done")

    def values(self) -> tuple[dict[str, str], dict[str, Any]]:
        """The last values as a table and a sentence, as data and metadata of an output."""
        state = self.run.status().state
        cells = [(label, self.history[name]) for label, name in TABLE if name in self.history]
        head = "".join(f"<th>{label}</th>" for label, _ in cells)
        body = "".join(f"<td>{number(float(series.values[-1]))}</td>" for _, series in cells)
        text = say(self.history, self.method, self.steps, state)
        return {
            "text/html": f"<table><tr>{head}</tr><tr>{body}</tr></table><small>{html.escape(text)}</small>",
            "text/plain": text,
        }, {}

    # --- drawing ----------------------------------------------------------------------------------

    def picture(self) -> bool:
        """Draw what is due into the outputs; whether anything was."""
        if self._curves is None:
            return False
        now = self.run.status()
        if not self.history.step and now.state not in OVER:
            return False  # an empty picture more would only put the first curve off
        state, share = now.state, Redraw.SHARE if now.where == "thread" else SHARE_BESIDE
        ended = state in OVER
        what = (
            self.history.step,
            len(self.history.events),
            state,
            tuple(twin.history.step for twin in self.history.twins.values()),
        )
        drawn = False
        for redraw, group, handle in (
            (self.redraw, "main", self._curves),
            (self.redraw_more, self.more.value, self._more),
        ):
            began = self.clock()
            if not redraw.due((group, *what), began, ended):
                continue
            data, metadata = self._figure(group)
            handle.update(data, metadata=metadata, raw=True)
            redraw.drawn((group, *what), self.clock(), self.clock() - began, ended, share)
            drawn = True
            if group == "main":  # the values below are those of the curves
                data, metadata = self.values()
                self._values.update(data, metadata=metadata, raw=True)
        return drawn

    def _figure(self, group: str) -> tuple[dict[str, Any], dict[str, Any]]:
        if not group:
            return {"text/html": "", "text/plain": ""}, {}
        return picture(
            draw(self.history, self.method, group, steps=self.steps),
            say(self.history, self.method, self.steps),
        )

    def _ipython_display_(self) -> None:
        display(self.top)
        data, metadata = self._figure("main")
        self._curves = display(data, metadata=metadata, raw=True, display_id=True)
        self.redraw.next = (
            self.clock() + Redraw.LEAST
        )  # how long the first one took, fonts and all, says nothing of the next
        data, metadata = self._figure(self.more.value)
        self._more = display(data, metadata=metadata, raw=True, display_id=True)
        data, metadata = self.values()
        self._values = display(data, metadata=metadata, raw=True, display_id=True)
        self._watch()

    def _watch(self) -> None:
        self._closed.clear()
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(
                target=self._follow, name=f"panel of {self.history.path.name}", daemon=True
            )
            self._thread.start()

    def _follow(self) -> None:
        if (
            hasattr(os, "setpriority") and self.run.status().where != "thread"
        ):  # beside a run of another process: let that one go first
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        while not self._closed.is_set():
            self.look()
            self._wake.wait(LOOK_EVERY)
            self._wake.clear()

    def look(self) -> None:
        """What the panel's thread does at each look: words and controls, then the pictures that
        are due. An error is shown, and ends nothing.
        """
        try:
            self.refresh()
            self.picture()
            if self.problem:
                self.problem = ""
                self._show()
        except (
            Exception
        ) as error:  # whatever it is, the person must see it: there is no cell to raise it in
            if not self.history.path.is_dir():
                return self._gone()
            self.problem = f"{type(error).__name__}: {error}"
            _set(
                self.banner,
                "<div role='alert'><b>The panel could not draw:</b>"
                f" {html.escape(self.problem)}. The run itself is not affected.</div>",
            )

    def _gone(self) -> None:
        _set(
            self.banner,
            "<div role='alert'><b>The run folder is gone</b>, deleted or moved:"
            f" {html.escape(str(self.history.path))}.</div>",
        )
        for control in (*self.buttons.values(), self.twin):
            _trait(control, "disabled", True)
        self._closed.set()

    def close(self) -> None:
        """End the thread; the last pictures stay."""
        self._closed.set()
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(5)

    def __repr__(self) -> str:
        return say(self.history, self.method, self.steps, self.run.status().state)


def panel(run: Handle) -> Panel:
    """Watch and steer a run: ``panel(start(config, out))``, ``panel(launch(config, out))`` or
    ``panel(open_run(path))``, as the last line of a cell.

    The earlier panel of the same run in this kernel is closed: its pictures stay, its curves no
    longer move.
    """
    place = Path(run.folder.path).resolve()
    if place in _panels:
        _panels[place].close()
    _panels[place] = Panel(run)
    return _panels[place]


def draw_now(path: Path) -> None:
    """Let the panel of a run that has ended in this kernel draw what is left to draw, before a
    notebook is saved.
    """
    if path in _panels:
        _panels[path].look()


def _requests(path: Path) -> list[dict[str, Any]]:
    return Tail(path / "requests.jsonl").read()


def _duration(seconds: float) -> str:
    """
    >>> [_duration(seconds) for seconds in (4, 90, 7300)]
    ['about 4 s', 'about 2 min', 'about 2.0 h']
    """
    if seconds < 60:
        return f"about {max(seconds, 1):.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def _set(widget: Any, value: str) -> None:
    _trait(widget, "value", value)


def _trait(widget: Any, name: str, value: Any) -> None:
    if getattr(widget, name) != value:
        setattr(widget, name, value)
