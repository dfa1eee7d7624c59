"""A run as one HTML file, to send to somebody: nothing outside the file is loaded.

The curves are drawn by the live view's JavaScript. Without scripts, and on paper, a still picture
stands in their place. The page allows this one script, so no text of a run can bring another.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from pathlib import Path
from typing import Any

import numpy as np

from rlkd_lab.lab.live.curve_data import curve_data
from rlkd_lab.lab.live.curve_groups import GROUPS
from rlkd_lab.lab.live.curve_view import WEB, source
from rlkd_lab.lab.live.curves import draw
from rlkd_lab.lab.live.history import History
from rlkd_lab.lab.live.redraw import picture, say
from rlkd_lab.lab.live.report_parts import (
    evaluations,
    facts,
    happened,
    moves,
    settings,
    state_of,
    versions,
)
from rlkd_lab.lab.live.report_samples import samples
from rlkd_lab.objectives.settings import nearest
from rlkd_lab.runs import RunFolder


def write_report(run: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of a run and return its path.

    Args:
        run: a run folder, of a fork too; the run may still be running.
        out: an HTML file; ``RUN/report.html`` by default. An earlier one is replaced.

    Raises:
        FileNotFoundError, ValueError: no run, a torn run, or another kind of file.
    """
    folder = RunFolder.open(run)
    target = folder.path / "report.html" if out is None else Path(out)
    nearest(target.suffix, (".html", ".htm"), "kind of file")
    page = report_html(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.new")
    beside.write_text(page, encoding="utf-8", errors="replace")
    beside.replace(target)
    return target


def report_html(folder: RunFolder) -> str:
    """Return the report of a run as an HTML page."""
    history = History(folder.path)
    history.read()
    config = folder.config()
    script = source("js") + (WEB / "report.js").read_text(encoding="utf-8")
    style = source("css") + (WEB / "report.css").read_text(encoding="utf-8")
    parts = (
        ("Curves", _curves(history, config)),
        ("Moved knobs", moves(history)),
        ("Evaluations", evaluations(history)),
        ("Completions", samples(folder, config)),
        ("Warnings and events", happened(history)),
        ("Settings", settings(folder)),
        ("Versions and device", versions(folder)),
    )
    sections = "".join(f"<section><h2>{title}</h2>{part}</section>" for title, part in parts)
    name = html.escape(folder.path.resolve().name)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{name}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{allowed}; img-src data: blob:">
<link rel="icon" href="data:,"><style>{style}</style></head>
<body><header><h1>{name}</h1>{facts(folder, history)}</header>
{sections}
<script type="module">{script}</script></body></html>
"""


def _curves(history: History, config: dict[str, Any]) -> str:
    """Return every group of curves that has something to show."""
    shown = [
        group
        for group, panels in GROUPS.items()
        if group == "main" or any(name in history for names in panels for name in names)
    ]
    return "".join(_group(history, config, group) for group in shown)


def _group(history: History, config: dict[str, Any], group: str) -> str:
    method, steps = str(config.get("method")), config.get("steps")
    data = curve_data(history, method, group, steps)
    if group != "main":
        data["panels"] = [panel for panel in data["panels"] if panel["lines"] or panel["bands"]]
        columns = sorted({panel["column"] for panel in data["panels"]})
        for panel in data["panels"]:
            panel["column"] = columns.index(panel["column"])
    text = say(history, method, steps, state_of(history.path))
    still, _ = picture(draw(history, method, group, steps=steps), text)
    heading = "" if group == "main" else f"<h3>{html.escape(group)}</h3>"
    name = html.escape(f"{history.path.resolve().name}-{group}".replace(" ", "-"))
    image = f'<img class="still" alt="{html.escape(text)}" src="data:image/png;base64,'
    return (
        f'<div class="curves" data-name="{name}">{heading}<div class="live"></div>'
        f'<script type="application/json">{_json(data)}</script>{image}{still["image/png"]}"></div>'
    )


def _json(data: Any) -> str:
    """Return data that can stand in a script element, with arrays as 32-bit floats."""

    def packed(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return {"floats": base64.b64encode(value.astype("<f4").tobytes()).decode()}
        return value.item()

    return json.dumps(data, default=packed).replace("<", "\\u003c")
