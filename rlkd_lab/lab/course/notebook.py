"""The folders and the length of the course's notebooks."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pandas as pd

from rlkd_lab.runs import RunFolder
from rlkd_lab.study.results import Study
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
