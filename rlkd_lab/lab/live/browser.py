"""The runs of a folder in a table: open one, compare several, mark them, delete them."""

from __future__ import annotations

import contextlib
import html
import json
import re
import threading
from collections.abc import Callable
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import ipywidgets as widgets
from IPython.display import display

from rlkd_lab.lab.live.compare_view import Comparison
from rlkd_lab.lab.live.controls import button, row, set_trait
from rlkd_lab.lab.live.family import Settings, differing, in_words, settings_of
from rlkd_lab.lab.live.follower import Follower, only_one
from rlkd_lab.lab.live.handle import Drive, Handle, open_run
from rlkd_lab.lab.live.keyboard import KeyboardGuard
from rlkd_lab.lab.live.panel import Panel
from rlkd_lab.lab.live.run_table import RunTable
from rlkd_lab.runs import RunFolder
from rlkd_lab.runs.delete import delete
from rlkd_lab.runs.overview import OF_A_RUN, WITH_A_PROCESS, find_runs, name_in, row_of

POLL_EVERY = 2.0
"""Seconds between two looks at the folder."""
POINTS = 30
"""Points of a sparkline."""
COLUMNS = ("method", "steps")
"""Settings that have a column of their own."""
MARKS = "marked.json"
"""The file in the folder that names the marked runs."""
ACTIONS = {
    "Open": ("external-link", "show the panel of one run below"),
    "Compare": ("line-chart", "draw two runs or more in one picture below"),
    "Mark": ("star", "mark the runs, or take their marks away"),
    "Delete": ("trash", "delete the runs, after a question"),
    "Refresh": ("refresh", f"look now; this happens every {POLL_EVERY:.0f} seconds anyway"),
}


class Known(NamedTuple):
    """What was read of a run, and when its files were written."""

    stamp: tuple[Any, ...]
    row: dict[str, Any]
    settings: Settings | None


def runs(folder: str | Path = "runs", drive: Drive = "thread") -> RunBrowser:
    """Return a table of the runs in a folder, for the last line of a cell.

    It follows runs that are made, changed or deleted by anybody.
    Marks are names in the folder's file ``marked.json``.

    Args:
        folder: of the runs, and of folders with runs.
        drive: what trains a run that is started from here: a thread of this kernel, or a process
            that outlives it.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    find_runs(folder)
    return RunBrowser(folder, drive)


class RunBrowser:
    """The object that :func:`runs` returns; displaying it starts a thread that updates it."""

    def __init__(self, folder: str | Path, drive: Drive = "thread") -> None:
        self.folder, self.drive = Path(folder).resolve(), drive
        self.table, self.said, self.shown = RunTable(), widgets.HTML(), widgets.VBox()
        self.buttons = {name: button(name, *how) for name, how in ACTIONS.items()}
        self.question, self.sure = widgets.HTML(), button("Delete for good", "trash")
        self.keep = button("Keep", "undo")
        self.asking = row(self.question, self.sure, self.keep)
        parts = (KeyboardGuard(), row(*self.buttons.values()), self.asking, self.said, self.table)
        head = widgets.VBox(parts, layout=widgets.Layout(margin="0 0 10px 0"))
        head.add_class("rlkd-panel")
        self.widget = widgets.VBox([head, self.shown])
        self.view: Any = None
        """What is shown below: a panel or a comparison."""
        self.problem = ""
        """An error of the last look at the folder, in words."""
        self._known: dict[Path, Known] = {}
        self._marked: list[str] | None = None
        self._lock = threading.RLock()
        self.follower = Follower(self.update)
        for name, each in self.buttons.items():
            each.on_click(partial(self._press, name))
        self.sure.on_click(lambda _: self._try(self._delete))
        self.keep.on_click(lambda _: self._chosen())
        self.table.observe(lambda _: self._chosen(), "selected")
        self._chosen()
        self.update()

    # --- what is shown ----------------------------------------------------------------------------

    def update(self) -> None:
        """Read what has changed, and show it; an error is shown in words."""
        try:
            with self._lock:
                self._read()
                problem = self._marks()[1]
        except Exception as error:  # there is no cell that could raise it
            problem = f"{type(error).__name__}: {error}"
        if problem != self.problem:
            self.problem = problem
            self._say(problem)

    def _read(self) -> None:
        known = {path: self._look(path) for path in find_runs(self.folder)}
        marked, _ = self._marks()
        if (known, marked) == (self._known, self._marked):
            return
        self._known, self._marked = known, marked
        names = differing(each.settings for each in known.values() if each.settings)
        seeds = len({each.settings.seed for each in known.values() if each.settings}) > 1
        rows = [self._row(path, each, names, seeds) for path, each in known.items()]
        self.paths = {name_in(self.folder, path): path for path in known}
        with self.table.hold_sync():
            set_trait(self.table, "rows", sorted(rows, key=_place))
            chosen = [name for name in self.table.selected if name in self.paths]
            set_trait(self.table, "selected", chosen)

    def _look(self, path: Path) -> Known:
        """Return what is known of a run; its files are read if they have changed."""
        stamp = tuple(_stamp(path / name) for name in ("config.json", *OF_A_RUN))
        known = self._known.get(path)
        if known and known.stamp == stamp and known.row["state"] not in WITH_A_PROCESS:
            return known
        facts, config = row_of(path, partial(_driven, path), POINTS)
        settings = None
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # torn, or just deleted
            settings = settings_of(RunFolder(path)) if config else None
        return Known(stamp, facts, settings)

    def _row(self, path: Path, known: Known, names: list[str], seeds: bool) -> dict[str, Any]:
        facts, words = known.row, ""
        state = {"torn": "broken", "idle": "stopped"}.get(facts["state"], facts["state"])
        if known.settings is not None:
            seed = [f"seed {known.settings.seed}"] if seeds else []
            settings = in_words(known.settings, [name for name in names if name not in COLUMNS])
            words = ", ".join([*([settings] if settings else []), *seed])
        name = name_in(self.folder, path)
        return {
            "name": name,
            "marked": name in (self._marked or []),
            "method": facts.get("method", ""),
            "state": "not started" if state == "stopped" and not facts["step"] else state,
            "step": facts.get("step", 0),
            "steps": facts.get("steps", 0),
            "accuracy": _finite(facts.get("accuracy")),
            "reward": _finite(facts.get("reward")),
            "settings": words + (" · moved by hand" if facts.get("touched") else ""),
            "problem": facts["problem"] or "",
            "rewards": [round(one, 3) for one in facts.get("rewards", []) if isfinite(one)],
        }

    def _say(self, words: str) -> None:
        set_trait(self.said, "value", f"<div role='alert'>{html.escape(words)}</div>")

    def _chosen(self) -> None:
        """Let the buttons be pressed that fit the selection, and forget a question."""
        count = len(self.table.selected)
        fits = {"Open": count == 1, "Compare": count > 1, "Refresh": True}
        for name, each in self.buttons.items():
            set_trait(each, "disabled", not fits.get(name, count > 0))
        set_trait(self.asking.layout, "display", "none")

    def __repr__(self) -> str:
        lines = [f"Runs in {self.folder.name}: live in Jupyter, run the cell again."]
        for each in self.table.rows:
            values = [f"{each[key]:.3g}" for key in ("accuracy", "reward") if each[key] is not None]
            words = [each["method"], each["state"], f"{each['step']}/{each['steps']}", *values]
            said = " ".join(filter(None, (*words, each["settings"], each["problem"])))
            lines.append(f"{'*' if each['marked'] else ' '} {each['name']}: {said}")
        return "\n".join(lines)

    def _ipython_display_(self) -> None:
        only_one(self.folder, self)
        bundle = self.widget._repr_mimebundle_() or {}
        display({**bundle, "text/plain": repr(self)}, raw=True)
        self.follower.start(f"runs in {self.folder.name}", POLL_EVERY)

    def close(self, why: str = "") -> None:
        """End the thread, and that of the view below.

        Args:
            why: is said in place of the buttons' effects.
        """
        self.follower.stop()
        if self.view is not None:
            self.view.close()
        for each in self.buttons.values():
            set_trait(each, "disabled", True)
        self._say(why)

    # --- what a person does -----------------------------------------------------------------------

    def _press(self, name: str, _: Any = None) -> None:
        actions: dict[str, Callable[[], None]] = {
            "Open": self._open,
            "Compare": self._compare,
            "Mark": self._mark,
            "Delete": self._ask,
            "Refresh": self.update,
        }
        self._try(actions[name])

    def _try(self, action: Callable[[], None]) -> None:
        self._say(self.problem)
        try:
            with self._lock:
                action()
        except (OSError, RuntimeError, ValueError) as error:
            self._say(str(error))

    def _selected(self) -> list[Path]:
        return [self.paths[name] for name in self.table.selected]

    def _open(self) -> None:
        self._show(Panel(open_run(self._selected()[0], self.drive)))

    def _compare(self) -> None:
        self._show(Comparison([RunFolder.open(path) for path in self._selected()]))

    def _show(self, view: Any) -> None:
        """Show a panel or a comparison below, in place of the one before."""
        if self.view is not None:
            self.view.close()
        self.view = view
        self.shown.children = (view.inside(),)

    def _marks(self) -> tuple[list[str], str]:
        """Return the marked names, and why the file of marks cannot be read, or nothing."""
        try:
            found = json.loads((self.folder / MARKS).read_text(encoding="utf-8"))
            if isinstance(found, list) and all(isinstance(name, str) for name in found):
                return found, ""
            why = "it is no list of names"
        except FileNotFoundError:
            return [], ""
        except (OSError, ValueError) as error:
            why = str(error)
        return [], f"{MARKS} is damaged ({why}): mend or delete it. Until then nothing is marked"

    def _mark(self) -> None:
        names, problem = self._marks()
        if problem:
            raise ValueError(problem)
        marked, chosen = {*names}, {*self.table.selected}
        marked = marked - chosen if chosen <= marked else marked | chosen
        beside = self.folder / f"{MARKS}.tmp"
        beside.write_text(json.dumps(sorted(marked), indent=0) + "\n", encoding="utf-8")
        beside.replace(self.folder / MARKS)
        self._read()

    def _ask(self) -> None:
        names = ", ".join(self.table.selected)
        words = f"Delete {len(self.table.selected)} for good? {names:.300}"
        self.question.value = f"<b role='alert'>{html.escape(words)}</b>&nbsp;"
        set_trait(self.asking.layout, "display", None)

    def _delete(self) -> None:
        kept = []
        for path in self._selected():
            try:
                delete(path, partial(_driven, path))
            except (OSError, ValueError) as error:
                kept.append(str(error))
        self._chosen()
        self._read()
        self._say(" · ".join(kept))


def _driven(path: Path, status: dict[str, Any]) -> bool:
    """Return whether a thread or a process drives a run."""
    return Handle(path).driven(status)


def _place(row: dict[str, Any]) -> tuple[bool, list[Any]]:
    """Return what the rows are sorted by: marked ones first, and ``run-2`` before ``run-10``."""
    parts = re.split(r"(\d+)", row["name"])
    return not row["marked"], [int(part) if i % 2 else part for i, part in enumerate(parts)]


def _finite(value: float | None) -> float | None:
    """Return a value that JSON has, or ``None``."""
    return value if value is not None and isfinite(value) else None


def _stamp(file: Path) -> tuple[int, int]:
    try:
        found = file.stat()
    except OSError:
        return (0, 0)
    return (found.st_mtime_ns, found.st_size)
