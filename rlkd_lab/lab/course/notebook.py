"""What every notebook starts with: where its runs go, how long they are, and the runs that are
shipped with it.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pandas as pd

from rlkd_lab.runs import RunFolder
from rlkd_lab.study.claims import Study
from rlkd_lab.study.study import read_study


class Stage:
    """``Stage("04")``: the stage that notebook 04 plays on.

    The test suite runs notebooks with ``RLKD_SHORT=1``: a few steps into a folder that is thrown
    away. The curves then mean nothing.
    """

    def __init__(self, number: str) -> None:
        self.short = bool(os.environ.get("RLKD_SHORT"))
        self.runs = (
            Path(tempfile.mkdtemp()) if self.short else Path("../runs") / f"notebook_{number}"
        )
        pd.set_option("display.max_colwidth", 110)

    def n(self, steps: int, short: int = 3) -> int:
        """``steps``, or ``short`` where the notebook is only tested."""
        return short if self.short else steps

    def study(self, name: str = "embedded") -> Study:
        """The tables of a study that is shipped, by part (``results/NAME``, made by ``rlkd
        study --keep``).
        """
        return read_study(Path("../results") / name)

    def recorded(self, name: str) -> list[RunFolder]:
        """The shipped runs of that name, one a seed (made by ``notebooks/record.py``).

        Raises:
            FileNotFoundError: none; with the names that there are.
        """
        found = sorted(Path("recorded").glob(f"{name}-[0-9]*"))
        found = [path for path in found if path.name.rpartition("-")[0] == name]
        if not found:
            names = sorted({path.name.rpartition("-")[0] for path in Path("recorded").glob("*-*")})
            raise FileNotFoundError(
                f"no recorded run {name!r}; there are"
                f" {', '.join(names) or 'none: open the notebook in its own folder'}"
            )
        return [RunFolder.open(path) for path in found]
