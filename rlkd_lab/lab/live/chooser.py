"""A menu of the runs in a folder, and the panel of the chosen one."""

from __future__ import annotations

import html
from pathlib import Path

import ipywidgets as widgets
from IPython.display import HTML, display

from rlkd_lab.lab.live.handle import Handle, open_run
from rlkd_lab.lab.live.panel import Panel
from rlkd_lab.runs.overview import find_runs


def choose_run(folder: str | Path = "runs") -> Panel | None:
    """Display a menu of runs, newest first; return the chosen one's panel for the cell's last line.

    A run that is started here is driven by a process that outlives the kernel.
    Runs that cannot be opened are left out, and a sentence says so.
    """
    place = Path(folder)
    found: dict[str, Handle] = {}
    torn: list[str] = []
    for path in sorted(find_runs(place) if place.is_dir() else [], key=_written, reverse=True):
        name = str(path.relative_to(place)) if path != place else path.resolve().name
        try:
            found[name] = open_run(path, "process")
        except (OSError, ValueError) as error:
            torn.append(f"{name}: {error}")
    for words in torn:
        display(HTML(f"<small>Left out: {html.escape(words)}</small>"))
    if not found:
        words = f"There is no run in {place.resolve()}. Train one there, then load this page again."
        display(HTML(html.escape(words)))
        return None
    menu = widgets.Dropdown(
        options=list(found.items()), description="run", layout=widgets.Layout(width="440px")
    )
    shown = Panel(menu.value)
    menu.observe(lambda change: shown.show_run(change.new.path), "value")
    display(menu)
    return shown


def _written(path: Path) -> float:
    file = path / "status.json"
    return file.stat().st_mtime if file.exists() else 0.0
