"""Buttons, menus and rows as all views of the lab have them."""

from __future__ import annotations

from typing import Any

import ipywidgets as widgets


def button(name: str, icon: str = "", tooltip: str = "") -> widgets.Button:
    """Return a button as wide as its words."""
    layout = widgets.Layout(width="auto", min_width="92px" if icon else "auto")
    return widgets.Button(description=name, icon=icon, tooltip=tooltip, layout=layout)


def field(kind: type[widgets.Widget], name: str, **how: Any) -> Any:
    """Return a menu or a box with its name; names of one form stand below each other."""
    layout = widgets.Layout(width="340px", max_width="calc(100% - 4px)")
    return kind(description=name, style={"description_width": "92px"}, layout=layout, **how)


def row(*children: widgets.Widget) -> widgets.HBox:
    """Return widgets beside each other, which go on in a next line on a narrow page."""
    flow = widgets.Layout(flex_flow="row wrap", align_items="center")
    return widgets.HBox(list(children), layout=flow)


def set_trait(widget: Any, name: str, value: Any) -> None:
    """Set a trait if it differs, so that nothing is sent to the browser for nothing."""
    if getattr(widget, name) != value:
        setattr(widget, name, value)
