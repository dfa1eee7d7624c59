"""The widgets of the panel, without what they do."""

from __future__ import annotations

import ipywidgets as widgets

from rlkd_lab.lab.live.controls import button, field, row
from rlkd_lab.lab.live.curve_groups import GROUPS
from rlkd_lab.lab.live.curve_view import CurveView
from rlkd_lab.lab.live.keyboard import KeyboardGuard
from rlkd_lab.lab.live.knob_widgets import KnobWidget
from rlkd_lab.lab.live.panel_texts import FORKS, options_html
from rlkd_lab.training import RunConfig

ICONS = {
    "Start": "play",
    "Pause": "pause",
    "Step": "step-forward",
    "Stop": "stop",
    "Checkpoint": "save",
}


class Top(widgets.VBox):
    """A box that is a sentence where widgets cannot be shown."""

    def __repr__(self) -> str:
        live = "The panel of this run is live in Jupyter: run the cell again."
        return live + " Curves and values stand below."


class PanelWidgets:
    """The widgets of a panel; ``top`` holds them all."""

    def __init__(self) -> None:
        self.top, self.guard = Top(), KeyboardGuard()
        self.view, self.more_view, self.table = CurveView(), CurveView(), widgets.HTML()
        self.top.add_class("rlkd-panel")

    def put(
        self,
        config: RunConfig,
        knobs: dict[str, KnobWidget],
        front: str,
        fork: str,
        again: widgets.Widget,
    ) -> None:
        """Put the widgets of a run into ``top``, in place of those of the run before.

        Args:
            config: of the run, for the table of options.
            knobs: the knob widgets by name.
            front: the knob that stands in front; the others fold away.
            fork: the kind of fork that was asked for last.
            again: the controls that start another run.
        """
        self.state, self.banner = widgets.HTML(), widgets.HTML()
        self.fork_help, self.records = widgets.HTML(), widgets.HTML()
        self.buttons = {name: button(name, icon) for name, icon in ICONS.items()}
        menu, tooltip = widgets.Dropdown, "What a moved knob forks"
        self.fork = field(menu, "fork", options=list(FORKS.items()), value=fork, tooltip=tooltip)
        groups = [("none", ""), *((name, name) for name in GROUPS if name != "main")]
        tooltip = "More curves below the main ones"
        self.more = field(menu, "more curves", options=groups, value="", tooltip=tooltip)
        curves = (row(self.more, self.records), self.view, self.more_view, self.table)
        self.tokens = widgets.VBox()
        pages = (widgets.VBox(curves), self.tokens)
        self.tabs = widgets.Tab(pages, titles=("curves", "tokens"), selected_index=0)
        self.top.children = (
            self.guard,
            self.state,
            self.banner,
            row(*self.buttons.values()),
            knobs[front].widget,
            _folded(config, [knob for name, knob in knobs.items() if name != front]),
            again,
            row(self.fork, self.fork_help),
            self.tabs,
        )


def _folded(config: RunConfig, knobs: list[KnobWidget]) -> widgets.Accordion:
    """Return the knobs that fold away, and the options of the run."""
    others = widgets.VBox([knob.widget for knob in knobs])
    options = widgets.HTML(options_html(config))
    titles = (f"{len(knobs)} more knobs", "options")
    return widgets.Accordion([others, options], titles=titles, selected_index=None)
