"""A prediction first, then the picture: one small widget for all pictures.

In a kernel it asks a question; the picture, its sliders and the answer appear with the reader's
choice. Without ipywidgets, and where ``RLKD_SHORT`` is set, question, picture and answer are
displayed at once. Left out: browser-side state. What is displayed beside the widgets is Markdown
and PNG, which a saved notebook keeps.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rlkd_lab.lab.plots import png

BLUE, ORANGE, GREEN, PURPLE, SKY, GREY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#777777",
)
"""Okabe–Ito; in every picture orange is the teacher or a negative advantage, blue the student
or a positive one.
"""


def blank(width: float, height: float) -> Figure:
    """An empty white figure, inches."""
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


@dataclass(frozen=True)
class Control:
    """What the reader may move: a slider from ``low`` to ``high``, a choice among ``options``
    (label → value), or a text where neither is given.
    """

    label: str
    value: Any
    low: float | None = None
    high: float | None = None
    step: float = 0.05
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Picture:
    """A question, its answer, and a pure function that draws."""

    question: str
    choices: tuple[str, ...]
    """Two to four."""
    answer: int
    """Which choice holds."""
    why: str
    """A sentence or two, shown with the verdict."""
    draw: Callable[..., Figure]
    """Takes the controls by name."""
    controls: dict[str, Control] = field(default_factory=dict)

    def figure(self, **values: Any) -> Figure:
        """The picture; a control that is not given stands where it starts."""
        return self.draw(
            **{name: control.value for name, control in self.controls.items()} | values
        )

    def asked(self) -> str:
        """The question with its choices, in Markdown."""
        return f"**Predict first.** {self.question}\n\n" + "\n".join(
            f"- {choice}" for choice in self.choices
        )

    def verdict(self, choice: int | None = None) -> str:
        """Whether the prediction held, and why, in Markdown."""
        if choice is None:
            return f"**Answer: {self.choices[self.answer]}.** {self.why}"
        if choice == self.answer:
            return f"**Your prediction held: {self.choices[choice]}.** {self.why}"
        return (
            f"**You predicted “{self.choices[choice]}”; it is: {self.choices[self.answer]}.**"
            f" {self.why}"
        )


class Prediction:
    """A picture that asks first. Display it as the last line of a cell, or call :meth:`show`.

    Widgets: ``radio`` (no choice at the start), ``button``, ``controls`` by name, and ``box``,
        which holds them all; ``None`` where ipywidgets is missing.
    ``shown`` says whether the picture is open.
    """

    def __init__(self, picture: Picture) -> None:
        self.picture = picture
        self.choice: int | None = None
        self.shown = False
        self.complaint = ""
        self.box: Any = None
        self._picture_handle: Any = None
        self._verdict_handle: Any = None
        if not os.environ.get("RLKD_SHORT"):
            self._make_widgets()

    def __repr__(self) -> str:
        words = "A question with a picture behind it: " + self.picture.question
        return (
            f"{words} {self.picture.verdict(self.choice)}".replace("**", "")
            if self.shown
            else words
        )

    def figure(self) -> Figure:
        """The picture as the controls stand now."""
        return self.picture.figure(
            **{name: widget.value for name, widget in self.controls.items()}
            if self.box is not None
            else {}
        )

    def show(self) -> None:
        """Display question, widgets, verdict and picture."""
        from IPython.display import Image, Markdown, display

        if self.box is None:
            self.shown = True
            display(Markdown(self.picture.asked()))
            display(Image(png(self.figure())), Markdown(self.picture.verdict()))
            return
        display(Markdown(f"**Predict first.** {self.picture.question}"))
        bundle = self.box._repr_mimebundle_()
        # a saved notebook shows text/plain: the choices in words, not a tree of widgets
        choices = "\n".join(f"( ) {choice}" for choice in self.picture.choices)
        display(
            {
                **bundle,
                "text/plain": f"{choices}\nRun this cell to choose, and to move the sliders.",
            },
            raw=True,
        )
        self._verdict_handle = display(Markdown(self._words()), display_id=True)
        self._picture_handle = display(self._content(), display_id=True, raw=True)

    _ipython_display_ = show

    def _make_widgets(self) -> None:
        try:
            import ipywidgets as widgets

            from rlkd_lab.lab.keys import Guard
        except ImportError:
            return
        wide = {"description_width": "initial"}
        options = [(choice, index) for index, choice in enumerate(self.picture.choices)]
        self.radio = widgets.RadioButtons(
            options=options, index=None, layout=widgets.Layout(width="max-content")
        )
        self.button = widgets.Button(
            description="Show", disabled=True, tooltip="Show the picture; choose an answer first"
        )
        self.controls = {
            name: _widget(widgets, control, wide) for name, control in self.picture.controls.items()
        }
        self._panel = widgets.VBox(
            list(self.controls.values()), layout=widgets.Layout(display="none")
        )
        self.box = widgets.VBox([self.radio, self.button, self._panel, Guard()])
        self.box.add_class("rlkd-panel")
        self.radio.observe(self._chosen, names="index")
        self.button.on_click(self._commit)
        for widget in self.controls.values():
            widget.observe(self._redraw, names="value")

    def _chosen(self, change: Any) -> None:
        self.button.disabled = self.shown or self.radio.index is None

    def _commit(self, button: Any) -> None:
        if self.shown or self.radio.index is None:
            return
        self.choice, self.shown = self.radio.index, True
        self.radio.disabled = self.button.disabled = True
        self._panel.layout.display = None
        self._redraw(None)

    def _redraw(self, change: Any) -> None:
        if not self.shown:
            return
        try:
            content = self._content()
            self.complaint = ""
        except ValueError as error:  # a text that cannot be read: say so, keep the last picture
            self.complaint, content = str(error), None
        if self._verdict_handle is not None:
            from IPython.display import Markdown

            self._verdict_handle.update(Markdown(self._words()))
            if content is not None:
                self._picture_handle.update(content, raw=True)

    def _words(self) -> str:
        if not self.shown:
            return "Choose an answer, then press Show: the picture and its sliders open."
        return self.picture.verdict(self.choice) + (
            f"\n\n*{self.complaint}*" if self.complaint else ""
        )

    def _content(self) -> dict[str, str]:
        """What stands in the picture's place: the PNG, folded away in HTML until the reader has
        chosen, so that it survives in a saved notebook.
        """
        data = base64.b64encode(png(self.figure())).decode()
        if self.shown:
            return {"image/png": data, "text/plain": repr(self)}
        # frontends prefer HTML to PNG; where there is no HTML (PDF) the picture stands open
        image = f'<img alt="the picture" src="data:image/png;base64,{data}">'
        folded = (
            "<details><summary>No kernel? Open the picture after you have"
            f" predicted.</summary>{image}</details>"
        )
        return {"text/html": folded, "image/png": data, "text/plain": repr(self)}


def _widget(widgets: Any, control: Control, style: dict[str, str]) -> Any:
    # continuous: a picture takes about 0.1 s, and ipywidgets sends the next value only when the
    # kernel is idle
    if control.options:
        return widgets.Dropdown(
            options=list(control.options.items()),
            value=control.value,
            description=control.label,
            style=style,
        )
    if control.low is None:
        return widgets.Text(
            value=control.value,
            description=control.label,
            style=style,
            continuous_update=False,
            layout=widgets.Layout(width="32em"),
        )
    kind = widgets.IntSlider if isinstance(control.value, int) else widgets.FloatSlider
    return kind(
        value=control.value,
        min=control.low,
        max=control.high,
        step=control.step,
        description=control.label,
        style=style,
    )
