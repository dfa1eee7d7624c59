"""The widgets of a run's knobs: slider, box, switch, undo, and back to the schedule.

They are made from the knobs' declarations. A widget asks for a value and shows the value that
was applied, as the run folder says. It follows a run that another notebook steers too.
"""

from __future__ import annotations

import html
import math
import re
import threading
from typing import Any

import ipywidgets as widgets

from rlkd_lab.lab.live.controls import button, row, set_trait
from rlkd_lab.lab.live.curve_data import number
from rlkd_lab.lab.live.handle import Handle
from rlkd_lab.lab.live.history import History
from rlkd_lab.objectives import METHODS
from rlkd_lab.objectives.schedules import Constant, Schedule, values_of
from rlkd_lab.objectives.settings import Knob
from rlkd_lab.training.loop_knobs import LOOP_KNOBS

Value = float | None
FRONT = (
    "trace_weight",
    "trace_gamma",
    "trrd_alpha",
    "gap_weight",
    "kd_coef",
    "clip_high",
    "ratio_cap",
)
"""Knobs that stand in front, the first that a method has."""


def knobs_of(method: str) -> dict[str, Knob]:
    """Return every knob of a method that can be moved, the loop's included."""
    return {**METHODS[method].knobs, **LOOP_KNOBS}


def front_knob(method: str) -> str:
    """Return the knob that stands in front; the others fold away.

    >>> [front_knob(method) for method in ("grpo", "kdrl", "opd", "trrd", "rlsd", "sft")]
    ['clip_high', 'kd_coef', 'kd_coef', 'trrd_alpha', 'gap_weight', 'temperature']
    """
    if "traces" in METHODS[method].needs and "groups" not in METHODS[method].needs:
        return "temperature"
    return next((name for name in FRONT if name in METHODS[method].knobs), "temperature")


def slider_range(knob: Knob, schedule: Schedule) -> tuple[float, float, float]:
    """Return low, high and step of a slider around the schedule's values.

    All three lie within the knob's range; those of a logarithmic knob are exponents of 10.

    >>> slider_range(Knob(0.0, 10.0, ""), Constant(0.2))
    (0.0, 1.0, 0.01)
    >>> slider_range(Knob(0.0, 10.0, "", log=True), Constant(0.1))
    (-4.0, 1.0, 0.05)
    """
    largest = max((value for value in values_of(schedule) if value), default=0.0)
    if knob.log:
        usual = max(10.0, largest) if knob.high > 1 else 100 * largest or 1.0
        top = math.log10(min(knob.high, usual))
        bottom = min(-4.0, math.log10(largest) - 2) if largest else -4.0
        least = round(math.log10(knob.low), 6) if knob.low else -math.inf
        return max(float(math.floor(bottom)), least), round(top, 6), 0.05
    top = min(knob.high, 5 * largest or max(1.0, 5 * knob.low))
    hundredth = (top - knob.low) / 100
    round_steps = [n * 10.0**power for power in range(-7, 2) for n in (1, 2, 5)]
    step = min(round_steps, key=lambda step: abs(math.log(step / hundredth)))
    low = math.ceil(knob.low / step - 1e-9) * step
    return float(f"{low:.12g}"), float(f"{max(top, knob.low + step):.12g}"), step


def typed(text: str) -> Value:
    """Return the value that a person typed; a comma is read as the decimal point.

    >>> [typed(text) for text in ("0.3", "0,3", " 1e-4", "off")]
    [0.3, 0.3, 0.0001, None]

    Raises:
        ValueError: the text is no finite number.
    """
    words = text.strip()
    if words.lower() == "off":
        return None
    thousands = re.fullmatch(r"[1-9]\d*,\d{3}", words)  # 1,500 may be 1.5 or 1500
    try:
        value = float(words if thousands else words.replace(",", ".", 1))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is no number: write it as 0.3")
    return value


def exact(value: Value) -> str:
    """Return a value as the box shows it, with all its digits."""
    return "off" if value is None else f"{value:.12g}"


class KnobWidget:
    """The widgets of one knob; ``widget`` holds them all.

    Args:
        run: the handle of the run.
        name: of the knob.
        lock: is held in every callback and update, since both may come from any thread.
    """

    def __init__(
        self,
        run: Handle,
        name: str,
        lock: threading.RLock | None = None,
    ) -> None:
        self.run, self.name = run, name
        self.lock = lock or threading.RLock()
        self.knob = knobs_of(run.config.method)[name]
        self.schedule = run.config.schedules()[name]
        self.applied: Value = self.schedule.at(1, run.config.steps)
        self.number = 0.0
        """The last value shown that was not off."""
        self.pending: tuple[int, Value | str] | None = None
        """Id and value of the last request, until it is answered."""
        self.acted: list[Value | str] = []
        """Values that acted, oldest first; ``schedule`` where the knob was given back."""
        self.undone: dict[int, list[Value | str]] = {}
        """What ``acted`` becomes when a request of Undo acts, by the id of the request."""
        self.moves: list[dict[str, Any]] = []
        self.planned: list[tuple[int, Value]] = []
        """(step, value) of moves that were asked for in advance."""
        self.counted = 0
        """Number of moves seen so far."""
        self.problem = ""
        """Why the last request was refused, or empty."""
        self.over = False
        """Whether the run is done or the panel is closed: nothing can be moved any more."""
        self._shows: dict[Any, Any] = {}
        """The value that the program put into a widget: it is not a request."""
        self._build()
        self.show(force=True)

    def _build(self) -> None:
        low, _, _ = slider_range(self.knob, self.schedule)
        knob, layout = self.knob, widgets.Layout
        self.zero: Value | str = "none"
        """The value of the switch: ``None``, 0, or ``none`` where there is no switch."""
        if knob.optional:
            self.zero = None
        elif knob.log and knob.low == 0:
            self.zero = 0.0
        self.slider = self._slider(self.applied or (10**low if knob.log else low))
        legal = f"any value in {knob.low:g}–{knob.high:g}; Enter asks for it"
        # A number field of a browser drops the comma of 0,3 and asks for 3.
        self.box = widgets.Text(
            value=exact(self.applied),
            continuous_update=False,
            description="exactly",
            tooltip=f"{self.name}: {legal}",
            style={"description_width": "48px"},
            layout=layout(width="140px"),
        )
        words = "off (0)" if self.zero == 0.0 else "off"
        self.off = widgets.Checkbox(
            value=False,
            description=words,
            indent=False,
            tooltip=f"{self.name}: {words}",
            layout=layout(width="70px", display="none" if self.zero == "none" else None),
        )
        self.undo = button("Undo", tooltip=f"{self.name}: back to the value before")
        words = f"{self.name}: give it back to {self.schedule}"
        self.back = button("To its schedule", tooltip=words)
        self.words = widgets.HTML()
        controls = row(self.slider, self.box, self.off, self.undo, self.back)
        self.widget = widgets.VBox([controls, self.words], layout=layout(margin="0 0 6px 0"))
        self.widget._dom_classes = ("rlkd-knob", f"rlkd-knob-{self.name}")
        self._shows = {self.slider: self.slider.value, self.box: self.box.value, self.off: False}
        self.slider.observe(self._moved, "value")
        self.box.observe(self._typed, "value")
        self.off.observe(self._switched, "value")
        self.undo.on_click(lambda _: self._undo())
        self.back.on_click(lambda _: self._give_back())

    def _slider(self, start: float) -> Any:
        low, high, step = slider_range(self.knob, self.schedule)
        common: dict[str, Any] = {
            "value": start,
            "min": low,
            "max": high,
            "step": step,
            "continuous_update": False,
            "readout_format": ".3g",
            "tooltip": self.knob.help,
            "description": self.name,
            "style": {"description_width": "110px"},
            "layout": widgets.Layout(width="360px"),
        }
        if self.knob.log:
            return widgets.FloatLogSlider(base=10, **common)
        return widgets.FloatSlider(**common)

    # --- asking -----------------------------------------------------------------------------------

    def _moved(self, change: Any) -> None:
        with self.lock:
            if change.new != self._shows[self.slider]:
                self._shows[self.slider] = change.new
                self._ask(float(f"{change.new:.3g}"))

    def _typed(self, change: Any) -> None:
        with self.lock:
            if change.new == self._shows[self.box]:
                return
            self._shows[self.box] = change.new
            try:
                value = typed(change.new)
            except ValueError as error:
                self._refused(str(error))
            else:
                off = value is None and self.zero != "none"
                self._ask(self.zero if off else value)

    def _switched(self, change: Any) -> None:
        with self.lock:
            if change.new != self._shows[self.off]:
                self._shows[self.off] = change.new
                self._ask(self.zero if change.new else self.number)

    def _ask(self, value: Value | str, becomes: list[Value | str] | None = None) -> None:
        """Ask for a value or for ``schedule``.

        Args:
            value: what is asked for.
            becomes: what ``acted`` becomes when an undo acts.
        """
        try:
            request = (
                self.run.release(self.name)
                if isinstance(value, str)
                else self.run.request(self.name, value)
            )
        except (OSError, ValueError, RuntimeError) as error:
            self._refused(str(error))
            return
        self.problem = ""
        if becomes is not None:
            self.undone[request] = becomes
        self.pending = (request, value)
        self.show(force=True)

    def _refused(self, why: str) -> None:
        """Say why, and go back to the applied value."""
        why = why.rstrip(".").removesuffix("; nothing was changed")
        told = "nothing was changed" in why.lower()
        self.problem = why if told else f"{why}. Nothing was changed"
        self.show(force=True)

    def _give_back(self) -> None:
        with self.lock:
            self._ask("schedule")

    def _undo(self) -> None:
        """Ask for the value that acted before; a request that has not acted is taken back."""
        with self.lock:
            stack = self.acted[:-1]
            if self.pending:
                stack = self.undone.get(self.pending[0], [*self.acted, "pending"])[:-1]
            if self.pending or self.acted:
                self._ask(stack[-1] if stack else "schedule", stack)

    # --- showing ----------------------------------------------------------------------------------

    def follow(self, history: History, focused: bool = False) -> None:
        """Show what the run folder says.

        Args:
            history: of the run.
            focused: whether somebody is typing into the widgets.
                They then keep their text while only the schedule moves the knob.
        """
        events = [event for event in history.events if event.get("knob") == self.name]
        arrived = self._read_answer(events)
        # Within a step only the last move acts.
        moves = [*{event["step"]: event for event in events if event["event"] == "knob"}.values()]
        for move in moves[self.counted :]:
            self._count(move)
            arrived = True
        self.counted, self.moves = len(moves), moves
        column = self.name if self.name == "learning_rate" else f"coef/{self.name}"
        if column in history.last:
            before, self.applied = self.applied, history.last[column]
            arrived = arrived or (before != self.applied and not self.on_schedule())
        self.show(force=arrived or not focused)

    def _count(self, move: dict[str, Any]) -> None:
        """Add a move that acted, here or elsewhere, to what Undo goes back through."""
        value = "schedule" if move.get("release") else move["value"]
        if move.get("id") in self.undone:
            self.acted = self.undone[move["id"]]
        elif value != (self.acted[-1] if self.acted else "schedule"):
            self.acted.append(value)

    def _read_answer(self, events: list[dict[str, Any]]) -> bool:
        """Read the answer to the last request; return whether there is one."""
        if self.pending is None:
            return False
        answers = [event for event in events if event.get("id") == self.pending[0]]
        if not answers:
            return False
        self.pending = None
        if answers[-1]["event"] == "refused":
            self._refused(str(answers[-1].get("why", "refused")))
        return True

    def since(self) -> int:
        """Return the step from which the last moved value has acted."""
        *_, last = self.moves
        first = last["step"]
        for move in reversed(self.moves):
            if (move.get("release"), move.get("value")) != (last.get("release"), last.get("value")):
                break
            first = move["step"]
        return int(first)

    def on_schedule(self) -> bool:
        """Return whether the knob follows its schedule."""
        return not self.moves or bool(self.moves[-1].get("release"))

    def sentence(self) -> str:
        """Return the applied value and since when, or what was asked for."""
        value = number(self.applied)
        if self.pending:
            wanted = self.pending[1]
            words = "its schedule" if isinstance(wanted, str) else number(wanted)
            return f"asked for {words}: acts on the next step (now {value})"
        if self.on_schedule():
            now = f"from its schedule {self.schedule}, now {value}"
            if isinstance(self.schedule, Constant):
                now = f"{value}, its value from the start"
            if self.moves:
                now += f", given back at step {self.since()}"
        else:
            now = f"{value} since step {self.since()}"
        planned = sorted(self.planned, key=lambda plan: plan[0])
        plans = " and ".join(f"{number(each)} from step {step} on" for step, each in planned)
        return f"{now}; planned: {plans} (moving it now replaces that)" if plans else now

    def show(self, force: bool = False) -> None:
        """Put words, and with ``force`` the value, into the widgets.

        The value is the applied one, or until it acts the one that was asked for.
        """
        if force:
            last = self.pending[1] if self.pending else self.applied
            self._put(self.applied if isinstance(last, str) else last)
        colour = "var(--jp-error-color1, #b00020)" if self.problem else "inherit"
        problem = f"<span style='color:{colour}'>{html.escape(self.problem)}</span>"
        words = f"<b>{self.sentence()}. {problem}</b>"
        style, knob_help = "padding-left:114px;line-height:1.35", html.escape(self.knob.help)
        text = f"<div style='{style}'>{words}<br><small>{knob_help}</small></div>"
        self._set(self.words, text)
        set_trait(self.undo, "disabled", self.over or not (self.acted or self.pending))
        set_trait(self.back, "disabled", self.over or (self.on_schedule() and self.pending is None))
        for control in (self.slider, self.box, self.off):
            set_trait(control, "disabled", self.over)

    def _put(self, value: Value) -> None:
        off = self.zero != "none" and (value is None or (self.zero == 0.0 and value == 0))
        self._set(self.off, off)
        self.slider.readout = not off
        self._set(self.box, exact(value))
        if off or value is None:
            return
        self.number = value
        at = math.log10(value) if self.knob.log and value > 0 else value
        if not self.slider.min <= at <= self.slider.max:  # typed: the slider widens
            slack = 1e-9 * self.knob.log
            self.slider.min = min(self.slider.min, at - slack)
            self.slider.max = max(self.slider.max, at + slack)
        # The slider's own request, rounded, is not sent back: it may have moved since.
        if f"{self.slider.value:.3g}" != f"{value:.3g}":
            self._set(self.slider, float(value))

    def _set(self, widget: Any, value: Any) -> None:
        if widget.value != value:
            self._shows[widget] = value
            widget.value = value
