"""The parts of a run's report that are words and tables. Every text of a run is escaped."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rlkd_lab.lab.live.curve_data import number
from rlkd_lab.lab.live.curve_groups import TITLES
from rlkd_lab.lab.live.history import History
from rlkd_lab.lab.live.inspector_html import text
from rlkd_lab.lab.live.panel_texts import SHOWN_EVENTS
from rlkd_lab.objectives import METHODS
from rlkd_lab.plots.styles import title_of
from rlkd_lab.runs import RunFolder
from rlkd_lab.runs.overview import state_now
from rlkd_lab.study import read_table
from rlkd_lab.study.report import lines
from rlkd_lab.study.summary import SETS, summarise
from rlkd_lab.training import config_of, make_config
from rlkd_lab.training.config_file import effective
from rlkd_lab.training.environment import alive

LISTED = 12
"""Largest number of evaluations in a table."""
EVENTS = 200
"""Largest number of events in a list; the last ones stand there."""
STATES = {
    "idle": "stopped between two steps",
    "running": "running when this was written",
    "paused": "paused when this was written",
    "done": "done",
    "failed": "failed",
    "lost": "lost: the process that drove it is gone",
}


# --- pieces ---------------------------------------------------------------------------------------


def paragraph(words: object) -> str:
    """Return a paragraph of any text."""
    return f"<p>{text(words)}</p>"


def grid(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table of any texts."""
    above = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in head)
    body = (f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{above}</tr>{"".join(body)}</table></div>'


def folded(words: str, content: str) -> str:
    """Return content behind a line of words."""
    return f"<details><summary>{html.escape(words)}</summary>{content}</details>"


def when(seconds: object) -> str:
    """Return a time of a file as date and time of day, or nothing."""
    if not isinstance(seconds, int | float):
        return ""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def plain(value: object) -> str:
    """Return a setting as people write it."""
    if isinstance(value, str):
        return value
    return "off" if value is None else json.dumps(value, ensure_ascii=False, default=str)


# --- what the run is ------------------------------------------------------------------------------


def state_of(path: Path) -> str:
    """Return the state of a run; a process that is gone makes it ``lost``."""
    return state_now(RunFolder(path).last_status(), alive)


def facts(folder: RunFolder, history: History) -> str:
    """Return method, state, step, seed, device and date in words."""
    config, status, state = folder.config(), folder.last_status(), state_of(folder.path)
    method = str(config.get("method"))
    rows = [
        ("method", title_of(method)),
        ("state", STATES[state] + (f": {status['why']}" if status.get("why") else "")),
        ("step", f"{history.step} of {config.get('steps', '?')}"),
        ("seed", config.get("seed", "?")),
        ("device", folder.env().get("device", "not recorded")),
        ("last written", when(status.get("updated"))),
    ]
    if (folder.path / "fork.json").exists():
        about = json.loads((folder.path / "fork.json").read_text(encoding="utf-8"))
        parent = folder.path.resolve().parents[1].name
        kind = f"{about.get('kind')} fork of {parent} after step {about.get('step')}"
        rows.insert(0, ("fork", kind))
    if history.moves:
        knobs = ", ".join(sorted({str(move["knob"]) for move in history.moves}))
        rows.append(("moved by hand", knobs))
    if history.damaged:
        rows.append(("damaged", f"{history.damaged} lines could not be read and are left out"))
    pairs = "".join(f"<dt>{name}</dt><dd>{text(value)}</dd>" for name, value in rows)
    formula = f"<p><code>{text(METHODS[method].formula)}</code></p>" if method in METHODS else ""
    return f"<dl>{pairs}</dl>{formula}"


# --- what happened --------------------------------------------------------------------------------


def moves(history: History) -> str:
    """Return the moves of knobs as a table."""
    rows = [
        (
            move["step"],
            move["knob"],
            "to its schedule" if move.get("release") else number(move.get("value")),
            move.get("source", ""),
            when(move.get("time")),
        )
        for move in history.moves
    ]
    if not rows:
        return paragraph("No knob was moved by hand.")
    return grid(("acts from step", "knob", "value", "asked by", "time"), rows)


def evaluations(history: History) -> str:
    """Return the accuracies during training, and what ``rlkd eval`` found, as tables."""
    names = sorted(name for name in history.series if name.startswith("eval/"))
    found = []
    if names:
        values = {
            name: dict(zip(history[name].steps, history[name].values, strict=True))
            for name in names
        }
        steps = sorted({step for each in values.values() for step in each})
        chosen = steps[:: -(-len(steps) // LISTED)]
        chosen += steps[-1:] if chosen[-1] != steps[-1] else []
        rows = [(int(s), *(_share(values[name].get(s)) for name in names)) for s in chosen]
        found.append(grid(("step", *(TITLES.get(name, name) for name in names)), rows))
    files = sorted((history.path / "eval").glob("*.parquet"))
    found += [_table_of(file) for file in files]
    return "".join(found) or paragraph("Nothing was evaluated.")


def _share(value: float | None) -> str:
    return "" if value is None else number(value)


def _table_of(file: Path) -> str:
    """Return what a table of ``rlkd eval`` adds up to."""
    head = ("measure", "%, or tokens", "95 % interval", "chance")
    tables = []
    try:
        summary = summarise(read_table(file)[0])
        for name in dict.fromkeys(summary["set"]):
            title = html.escape(f"rlkd eval, {file.stem}: {SETS.get(name, name)}")
            table = grid(head, [row[1:] for row in lines(summary, name)])
            tables.append(f"<h3>{title}</h3>{table}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        return paragraph(f"{file.name} is left out: {error}")
    return "".join(tables)


def happened(history: History) -> str:
    """Return warnings, and behind a fold all other events but the moves."""
    events = [event for event in history.events if event.get("event") != "knob"]
    loud = [event for event in events if event.get("event") in (*SHOWN_EVENTS, "refused")]
    if not events:
        return paragraph("No warning and no event.")
    warned = _events(loud) if loud else paragraph("No warning.")
    return warned + folded(f"every event ({len(events)})", _events(events))


def _events(events: Sequence[dict[str, Any]]) -> str:
    left_out = len(events) - EVENTS
    words = paragraph(f"{left_out} earlier ones are left out.") if left_out > 0 else ""
    rows = [(event["step"], event.get("event", ""), _said(event)) for event in events[-EVENTS:]]
    return words + grid(("step", "event", "what it says"), rows)


def _said(event: dict[str, Any]) -> str:
    """Return the words of an event, or its values."""
    if isinstance(event.get("text"), str):
        return event["text"]
    skipped = ("step", "event", "time", "id")
    return ", ".join(f"{name} {plain(event[name])}" for name in event if name not in skipped)


# --- what it was made with ------------------------------------------------------------------------


def settings(folder: RunFolder) -> str:
    """Return the settings that differ from the method's defaults, and behind a fold all."""
    try:
        config = config_of(folder)
    except ValueError as error:
        rows = [(name, plain(value)) for name, value in folder.config().items()]
        return paragraph(error) + folded("all settings", grid(("setting", "value"), rows))
    given = {name: value for name, (value, _) in effective(config, {}).items()}
    default = make_config(config.method)
    usual = {name: value for name, (value, _) in effective(default, {}).items()}
    rows = [(name, plain(value)) for name, value in given.items() if value != usual.get(name)]
    differing = [
        (*row, plain(usual[row[0]]) if row[0] in usual else "not set")
        for row in rows
        if row[0] != "method"
    ]
    every = grid(("setting", "value"), [(name, plain(value)) for name, value in given.items()])
    words = paragraph(f"These differ from what {config.method} has by default.")
    shown = words + grid(("setting", "here", "by default"), differing)
    if not differing:
        shown = paragraph(f"All are what {config.method} has by default.")
    return shown + folded(f"all {len(given)} settings", every)


def versions(folder: RunFolder) -> str:
    """Return versions, device, commit and digests."""
    found = folder.env()
    rows = []
    for name, value in found.items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        rows += [(f"{name} {key}".strip(), plain(one)) for key, one in inner]
    return grid(("", ""), rows) if rows else paragraph("Nothing was recorded.")
