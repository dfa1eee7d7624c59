"""A widget that asks for a prediction before it shows a picture.

In a kernel it asks a question; the picture, its sliders and the answer follow the choice.
Without ipywidgets, or with ``RLKD_SHORT`` set, it displays all of them at once.
It displays Markdown and PNG beside the widgets, because a saved notebook keeps those.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from rlkd_lab.plots.files import png

BLUE, ORANGE, GREEN, PURPLE, SKY, GREY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#777777",
)
"""Colours of Okabe and Ito.

Orange is the teacher or a negative advantage, blue the student or a positive one.
"""


@dataclass(frozen=True)
class PictureControl:
    """A value of a picture that the reader can change.

    It is a slider from ``low`` to ``high``, a choice among ``options`` (label → value),
    or a text field where neither is given.
    """

    label: str
    value: Any
    low: float | None = None
    high: float | None = None
    step: float = 0.05
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Picture:
    """A question, its answer, and a pure function that draws the picture."""

    question: str
    choices: tuple[str, ...]
    """Two to four."""
    answer: int
    """Index of the right choice."""
    why: str
    """One or two sentences, shown with the verdict."""
    draw: Callable[..., Figure]
    """Takes the values of the controls by name."""
    controls: dict[str, PictureControl] = field(default_factory=dict)
    explorable: str = ""
    """Where it is given, the browser draws; ``draw`` is for readers without a kernel."""
    data: dict[str, Any] = field(default_factory=dict)
    """What the explorable picture shows besides its sliders."""

    def figure(self, **values: Any) -> Figure:
        """Draw the picture; a control that is not given has its first value."""
        first = {name: control.value for name, control in self.controls.items()}
        return self.draw(**first | values)

    def asked(self) -> str:
        """Return the question with its choices, in Markdown."""
        choices = "\n".join(f"- {choice}" for choice in self.choices)
        return f"**Predict first.** {self.question}\n\n{choices}"

    def verdict(self, choice: int | None = None) -> str:
        """Return whether the prediction held, and why, in Markdown."""
        right = self.choices[self.answer]
        if choice is None:
            return f"**Answer: {right}.** {self.why}"
        if choice == self.answer:
            return f"**Your prediction held: {right}.** {self.why}"
        return f"**You predicted “{self.choices[choice]}”; it is: {right}.** {self.why}"


class Prediction:
    """A picture that asks first, for the last line of a cell; :meth:`show` displays it too.

    ``box`` holds the widgets ``radio``, ``button`` and ``controls`` (by name).
    It is ``None`` where there are no widgets. ``shown`` says whether the picture is open.
    """

    def __init__(self, picture: Picture) -> None:
        self.picture = picture
        self.choice: int | None = None
        self.shown = False
        self.complaint = ""
        self.box: Any = None
        self.view: Any = None
        self._picture_handle: Any = None
        self._verdict_handle: Any = None
        if not os.environ.get("RLKD_SHORT"):
            self._make_widgets()

    def __repr__(self) -> str:
        words = "A question with a picture behind it: " + self.picture.question
        if self.shown:
            words += " " + self.picture.verdict(self.choice)
        return words.replace("**", "")

    def figure(self) -> Figure:
        """Draw the picture with the values that the controls have now."""
        if self.box is None:
            return self.picture.figure()
        values = dict(self.view.values) if self.view else {}
        values |= {name: each.value for name, each in self.controls.items()}
        return self.picture.figure(**values)

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
        # A saved notebook shows text/plain, so it has the choices in words.
        choices = "\n".join(f"( ) {choice}" for choice in self.picture.choices)
        words = f"{choices}\nRun this cell to choose, and to move the sliders."
        display({**bundle, "text/plain": words}, raw=True)
        self._verdict_handle = display(Markdown(self._words()), display_id=True)
        self._picture_handle = display(self._content(), display_id=True, raw=True)

    _ipython_display_ = show

    def _make_widgets(self) -> None:
        try:
            import ipywidgets as widgets

            from rlkd_lab.lab.course.explorables import explorable
            from rlkd_lab.lab.live.keyboard import KeyboardGuard
        except ImportError:
            return
        wide = {"description_width": "initial"}
        options = [(choice, index) for index, choice in enumerate(self.picture.choices)]
        layout = widgets.Layout(width="max-content")
        self.radio = widgets.RadioButtons(options=options, index=None, layout=layout)
        tooltip = "Show the picture; choose an answer first"
        self.button = widgets.Button(description="Show", disabled=True, tooltip=tooltip)
        self.controls = {
            name: _widget(widgets, control, wide) for name, control in self.picture.controls.items()
        }
        hidden = widgets.Layout(display="none")
        shown = list(self.controls.values())
        if self.picture.explorable:
            self.view = explorable(self.picture.explorable, **self.picture.data)
            shown.append(self.view)
        self._panel = widgets.VBox(shown, layout=hidden)
        self.box = widgets.VBox([self.radio, self.button, self._panel, KeyboardGuard()])
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
        except ValueError as error:  # the text cannot be read: say so, keep the last picture
            self.complaint, content = str(error), None
        if self._verdict_handle is not None:
            from IPython.display import Markdown

            self._verdict_handle.update(Markdown(self._words()))
            if content is not None and self.view is None:  # the still picture stays folded
                self._picture_handle.update(content, raw=True)

    def _words(self) -> str:
        if not self.shown:
            return "Choose an answer, then press Show: the picture and its sliders open."
        complaint = f"\n\n*{self.complaint}*" if self.complaint else ""
        return self.picture.verdict(self.choice) + complaint

    def _content(self) -> dict[str, str]:
        """Return the PNG, folded away in HTML until the reader has chosen.

        The folded picture is there for readers of a saved notebook, who have no kernel.
        """
        data = base64.b64encode(png(self.figure())).decode()
        if self.shown:
            return {"image/png": data, "text/plain": repr(self)}
        # Front ends prefer HTML to PNG; a format without HTML (PDF) shows the open picture.
        image = f'<img alt="the picture" src="data:image/png;base64,{data}">'
        summary = "<summary>A still picture, for a page without a kernel. Predict first.</summary>"
        folded = f"<details>{summary}{image}</details>"
        return {"text/html": folded, "image/png": data, "text/plain": repr(self)}


def _widget(widgets: Any, control: PictureControl, style: dict[str, str]) -> Any:
    """Return the widget of a control.

    Sliders send while they move: ipywidgets waits with the next value until a picture,
    which takes about 0.1 s, is drawn.
    """
    common = {"value": control.value, "description": control.label, "style": style}
    if control.options:
        return widgets.Dropdown(options=list(control.options.items()), **common)
    if control.low is None:
        layout = widgets.Layout(width="32em")
        return widgets.Text(continuous_update=False, layout=layout, **common)
    kind = widgets.IntSlider if isinstance(control.value, int) else widgets.FloatSlider
    return kind(min=control.low, max=control.high, step=control.step, **common)
