"""The folders and the length of the course's notebooks, and the code that they show."""

from __future__ import annotations

import ast
import inspect
import os
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from IPython.display import Code

import rlkd_lab
from rlkd_lab.runs import RunFolder
from rlkd_lab.study.parts import Study
from rlkd_lab.study.study import read_study


class Notebook:
    """Where notebook ``Notebook("04")`` writes its runs, and what it loads.

    The test suite runs notebooks with ``RLKD_SHORT=1``.
    They then train a few steps into a temporary folder, and their curves mean nothing.
    """

    def __init__(self, number: str) -> None:
        self.short = bool(os.environ.get("RLKD_SHORT"))
        folder = Path("../runs") / f"notebook_{number}"
        self.runs = Path(tempfile.mkdtemp()) if self.short else folder
        pd.set_option("display.max_colwidth", 110)

    def n(self, steps: int, short: int = 3) -> int:
        """Return ``steps``, or ``short`` where the notebook is only tested."""
        return short if self.short else steps

    def study(self, name: str = "embedded") -> Study:
        """Return the tables of a shipped study, by part (``results/NAME``)."""
        return read_study(Path("../results") / name)

    def recorded(self, name: str) -> list[RunFolder]:
        """Return the shipped runs of a name, one for each seed.

        ``notebooks/record.py`` makes them.

        Raises:
            FileNotFoundError: there is no such run; the message lists the names.
        """
        runs = {path: path.name.rpartition("-")[0] for path in Path("recorded").glob("*-[0-9]*")}
        paths = sorted(path for path, each in runs.items() if each == name)
        if not paths:
            names = ", ".join(sorted(set(runs.values())))
            there = names or "none: open the notebook in its own folder"
            raise FileNotFoundError(f"no recorded run {name!r}; there are {there}")
        return [RunFolder.open(path) for path in paths]


def show_source(function: Callable[..., Any]) -> Code:
    """Show the code of a function of the package, under the path of its file.

    The docstring is left out; ``help(function)`` shows it.
    """
    source = textwrap.dedent(inspect.getsource(function))
    definition = ast.parse(source).body[0]
    assert isinstance(definition, ast.FunctionDef)
    lines = source.splitlines()
    if ast.get_docstring(definition) is not None:
        text = definition.body[0]
        del lines[text.lineno - 1 : text.end_lineno]
    root = Path(rlkd_lab.__file__).parents[1]
    path = Path(inspect.getfile(function)).relative_to(root).as_posix()
    return Code("\n".join([f"# {path}", *lines]), language="python")
