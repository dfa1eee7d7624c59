"""The controls of a run's knobs, made from their declarations: a slider, a box for any legal value,
what is applied since when, undo, back to the schedule.

A control asks; it shows what was applied. What the loop wrote into the run folder is the only
truth, so a control of a run that another notebook steers follows it.
"""

from __future__ import annotations

import html
import math
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from rlkd_lab.lab.curves import number
from rlkd_lab.lab.history import History
from rlkd_lab.objectives import METHODS, Constant, Knob, Schedule, resolve_options
from rlkd_lab.objectives.schedules import values_of
from rlkd_lab.training import RunConfig
from rlkd_lab.training.config import LOOP_KNOBS

if TYPE_CHECKING:
    from rlkd_lab.lab.driving import Handle

Value = float | None
CHARACTERISTIC = ("trrd_alpha", "gap_weight", "kd_coef", "clip_high", "ratio_cap")


def knobs_of(method: str) -> dict[str, Knob]:
    """Every live knob of a method, the loop's included."""
    return {**METHODS[method].knobs, **LOOP_KNOBS}


def shown(method: str) -> str:
    """The knob that stands in front; the others fold away.

    >>> [shown(method) for method in ("grpo", "kdrl", "opd", "trrd", "rlsd", "sft")]
    ['clip_high', 'kd_coef', 'kd_coef', 'trrd_alpha', 'gap_weight', 'temperature']
    """
    if "traces" in METHODS[method].needs:
        return "temperature"
    return next((name for name in CHARACTERISTIC if name in METHODS[method].knobs), "temperature")


def slider_range(knob: Knob, schedule: Schedule) -> tuple[float, float, float]:
    """(low, high, step) of a slider: what is usual about the schedule's values, within what is
    legal. Of a logarithmic knob they are exponents of 10.

    >>> slider_range(Knob(0.0, 10.0, ""), Constant(0.2))
    (0.0, 1.0, 0.01)
    >>> slider_range(Knob(0.0, 10.0, "", log=True), Constant(0.1))
    (-4.0, 1.0, 0.05)
    """
    largest = max((value for value in values_of(schedule) if value), default=0.0)
    if knob.log:
        top = math.log10(
            min(knob.high, max(10.0, largest))
            if knob.high > 1
            else min(knob.high, 100 * largest or 1.0)
        )
        return (
            float(math.floor(min(-4.0, math.log10(largest) - 2 if largest else -4.0))),
            round(top, 6),
            0.05,
        )
    top = min(knob.high, 5 * largest or max(1.0, 5 * knob.low))
    exact = (top - knob.low) / 100
    step = min(
        (n * 10.0**power for power in range(-7, 2) for n in (1, 2, 5)),
        key=lambda step: abs(math.log(step / exact)),
    )
    return (
        float(f"{math.ceil(knob.low / step - 1e-9) * step:.12g}"),
        float(f"{max(top, knob.low + step):.12g}"),
        step,
    )


class Control:
    """One knob.

    ``tell`` gets the words of a refusal; ``lock`` is held while the control is asked or shown
    something, from whatever thread.
    """

    def __init__(
        self,
        run: Handle,
        name: str,
        tell: Callable[[str], None],
        lock: threading.RLock | None = None,
    ) -> None:
        self.run, self.name, self.tell = run, name, tell
        self.lock = lock or threading.RLock()
        self.knob = knobs_of(run.config.method)[name]
        self.schedule = run.config.schedules()[name]
        self.applied: Value = self.schedule.at(1, run.config.steps)
        self.pending: tuple[int, str] | None = None
        """Id of the last request that was not answered yet, and its words."""
        self.asked: list[Value | str] = []
        """What was asked for, oldest first; ``schedule`` where it was given back."""
        self.moves: list[dict[str, Any]] = []
        self.planned: list[tuple[int, Value]] = []
        """(step, value) of moves that were asked for in advance."""
        self.counted, self.mine = 0, set[int]()
        self.problem = ""
        self._shows: dict[Any, Any] = {}
        """What the program itself put into a widget: not a request."""
        self._build()
        self.show(force=True)

    def _build(self) -> None:
        low, high, step = slider_range(self.knob, self.schedule)
        self.zero: Value | str = (
            None if self.knob.optional else 0.0 if self.knob.log and self.knob.low == 0 else "none"
        )
        common: dict[str, Any] = {
            "min": low,
            "max": high,
            "step": step,
            "continuous_update": False,
            "readout_format": ".3g",
            "tooltip": self.knob.help,
        }
        look = {
            "description": self.name,
            "style": {"description_width": "110px"},
            "layout": widgets.Layout(width="360px"),
        }
        start = self.applied or (10**low if self.knob.log else low)
        if self.knob.log:
            self.slider: Any = widgets.FloatLogSlider(value=start, base=10, **common, **look)
        else:
            self.slider = widgets.FloatSlider(value=start, **common, **look)
        self.box = widgets.FloatText(
            value=self.applied or 0.0,
            description="exactly",
            tooltip=f"{self.name}: any value in"
            f" {self.knob.low:g}–{self.knob.high:g};"
            " Enter asks for it",
            style={"description_width": "48px"},
            layout=widgets.Layout(width="140px"),
        )
        words = "off (0)" if self.zero == 0.0 else "off"
        self.off = widgets.Checkbox(
            value=False,
            description=words,
            indent=False,
            tooltip=f"{self.name}: {words}",
            layout=widgets.Layout(width="70px"),
        )
        self.off.layout.display = "none" if self.zero == "none" else None
        small = widgets.Layout(width="auto")
        self.undo = widgets.Button(
            description="Undo", tooltip=f"{self.name}: back to the value before", layout=small
        )
        self.back = widgets.Button(
            description="To its schedule",
            tooltip=f"{self.name}: give it back to {self.schedule}",
            layout=small,
        )
        self.words = widgets.HTML()
        self._shows = {self.slider: self.slider.value, self.box: self.box.value, self.off: False}
        self.slider.observe(lambda change: self._moved(self.slider, change.new), "value")
        self.box.observe(lambda change: self._moved(self.box, change.new), "value")
        self.off.observe(self._switched, "value")
        self.undo.on_click(lambda _: self._undo())
        self.back.on_click(lambda _: self._give_back())
        row = widgets.HBox(
            [self.slider, self.box, self.off, self.undo, self.back],
            layout=widgets.Layout(flex_flow="row wrap", align_items="center"),
        )
        self.widget = widgets.VBox([row, self.words], layout=widgets.Layout(margin="0 0 6px 0"))
        self.widget._dom_classes = ("rlkd-knob", f"rlkd-knob-{self.name}")

    # --- asking -----------------------------------------------------------------------------------

    def _moved(self, widget: Any, value: float) -> None:
        with self.lock:
            if value != self._shows[widget]:
                self._shows[widget] = value
                self._ask(float(f"{value:.3g}") if widget is self.slider else value)

    def _switched(self, change: Any) -> None:
        with self.lock:
            if change.new == self._shows[self.off]:
                return
            self._shows[self.off] = change.new
            if change.new:
                self._ask(self.zero)
            else:  # back on: where it was, or where the slider stands
                before = [
                    value for value in self.asked if isinstance(value, float) and value != self.zero
                ]
                self._ask(before[-1] if before else float(f"{self.slider.value:.3g}"))

    def _ask(self, value: Value | str, undoing: bool = False) -> None:
        """Ask for a value, or for the schedule; a refusal is told and the widgets go back to
        what is applied.
        """
        try:
            number_of = (
                self.run.release(self.name)
                if value == "schedule"
                else self.run.request(self.name, value)
            )  # type: ignore[arg-type]
        except (OSError, ValueError, RuntimeError) as error:
            text = str(error).rstrip(".")
            self.problem = text if "nothing was changed" in text else f"{text}. Nothing was changed"
            self.tell(self.problem)
        else:
            self.problem = ""
            self.tell("")
            self.mine.add(number_of)
            if not undoing:
                self.asked.append(value)
            self.pending = (number_of, "its schedule" if value == "schedule" else number(value))  # type: ignore[arg-type]
        self.show(force=True)

    def _give_back(self) -> None:
        with self.lock:
            self._ask("schedule")

    def _undo(self) -> None:
        with self.lock:
            if not self.asked:
                return
            undone = self.asked.pop()
            self._ask(self.asked[-1] if self.asked else "schedule", undoing=True)
            if self.problem:
                self.asked.append(undone)

    # --- showing ----------------------------------------------------------------------------------

    def follow(self, history: History, focused: bool = False) -> None:
        """Show what the run folder says.

        A control that has the focus keeps what is being typed while only its schedule moves.
        """
        events = [event for event in history.events if event.get("knob") == self.name]
        answered = [
            event
            for event in events
            if self.pending is not None and event.get("id") == self.pending[0]
        ]
        arrived = bool(answered)
        if answered and answered[-1]["event"] == "refused":
            self.problem = (
                f"{str(answered[-1].get('why', 'refused')).rstrip('.')}. Nothing was changed"
            ).replace("; nothing was changed. Nothing", ". Nothing")
            if self.asked:
                self.asked.pop()
            self.tell(f"{self.name}: {self.problem}")
        if answered:
            self.pending = None
        moves = [event for event in events if event["event"] == "knob"]
        for move in moves[self.counted :]:  # moved by somebody else, or before this panel was there
            if move.get("id") not in self.mine:
                self.asked.append("schedule" if move.get("release") else move["value"])
                arrived = True
        self.counted = len(moves)
        column = self.name if self.name == "learning_rate" else f"coef/{self.name}"
        if column in history.last:
            before, self.applied = self.applied, history.last[column]
            arrived = arrived or (before != self.applied and not self.follows(moves))
        self.moves = moves
        self.show(force=arrived or not focused)

    def follows(self, moves: list[dict[str, Any]]) -> bool:
        """Whether the knob follows its schedule."""
        return not moves or bool(moves[-1].get("release"))

    def sentence(self) -> str:
        """The applied value and since when, or what was asked for."""
        value = number(self.applied)
        if self.follows(self.moves):
            constant = isinstance(self.schedule, Constant)
            given = f", given back at step {self.moves[-1]['step']}" if self.moves else ""
            now = (
                f"{value}, its value from the start{given}"
                if constant
                else f"from its schedule {self.schedule}, now {value}{given}"
            )
        else:
            now = f"{value} since step {self.moves[-1]['step']}"
        if self.pending:
            return f"asked for {self.pending[1]}: acts on the next step (now {value})"
        plans = " and ".join(
            f"{number(value)} from step {step} on"
            for step, value in sorted(self.planned, key=lambda plan: plan[0])
        )
        return f"{now}; planned: {plans} (moving it now replaces that)" if plans else now

    def show(self, force: bool = False) -> None:
        """Put the applied value (or, until it acts, the one asked for) into the widgets."""
        if force:
            self._put(
                self.asked[-1]
                if self.pending and self.asked and not isinstance(self.asked[-1], str)
                else self.applied
            )
        colour = "var(--jp-error-color1, #b00020)" if self.problem else "inherit"
        said = f"{self.sentence()}. <span style='color:{colour}'>{html.escape(self.problem)}</span>"
        self._set(
            self.words,
            "<div"
            f" style='padding-left:114px;line-height:1.35'><b>{said}</b><br><small>{html.escape(self.knob.help)}</small></div>",
        )
        self._disable(self.undo, not self.asked)
        self._disable(self.back, self.follows(self.moves) and self.pending is None)

    def _put(self, value: Value) -> None:
        off = self.zero != "none" and (value is None or (self.zero == 0.0 and value == 0))
        self._set(self.off, off)
        self.slider.readout = not off
        self._set(self.box, 0.0 if value is None else float(value))
        if off or value is None:
            return
        at = math.log10(value) if self.knob.log and value > 0 else value
        if not self.slider.min <= at <= self.slider.max:  # typed: the slider widens to show it
            self.slider.min, self.slider.max = (
                min(self.slider.min, at - 1e-9 * self.knob.log),
                max(self.slider.max, at + 1e-9 * self.knob.log),
            )
        # What the slider itself asked for, rounded, is not sent back: it may have been moved on
        # since.
        if f"{self.slider.value:.3g}" != f"{value:.3g}":
            self._set(self.slider, float(value))

    def _set(self, widget: Any, value: Any) -> None:
        if widget.value != value:
            self._shows[widget] = value
            widget.value = value

    @staticmethod
    def _disable(button: widgets.Button, disabled: bool) -> None:
        if button.disabled != disabled:
            button.disabled = disabled


def chosen(config: RunConfig) -> str:
    """The options of a run as HTML: read, not moved."""
    method = METHODS[config.method]
    options = resolve_options(method, config.options)
    ours = {*method.options, *config.options} | (
        {"estimator", "kd_mask", "divergence"} if "teacher" in method.needs else set()
    )
    listed = "".join(
        "<tr><td"
        f" style='padding-right:16px'>{name}</td><td>{html.escape(str(options[name]))}</td></tr>"
        for name in options
        if name in ours
    )
    return (
        "<small>Chosen before the start; they cannot be moved while a run goes"
        f" on.</small><table>{listed or '<tr><td>none</td></tr>'}</table>"
    )
