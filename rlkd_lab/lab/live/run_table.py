"""A table of runs that a browser draws, with boxes to select them."""

from __future__ import annotations

from typing import Any

import anywidget
import traitlets

from rlkd_lab.lab.live.curve_view import WEB


class RunTable(anywidget.AnyWidget):
    """Runs as rows; names and reasons are shown as text, never as markup."""

    rows: traitlets.List[Any] = traitlets.List().tag(sync=True)
    selected: traitlets.List[str] = traitlets.List().tag(sync=True)
    """Names of the selected runs."""

    _esm = (WEB / "run_table.js").read_text(encoding="utf-8")
    _css = (WEB / "run_table.css").read_text(encoding="utf-8")

    def __repr__(self) -> str:
        return f"A table of {len(self.rows)} runs."
