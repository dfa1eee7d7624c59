"""The version of the program that made a row of results.

A program whose draws differ makes other rows of one config and seed.
So arms of two versions are not compared: a difference may be the program's.
"""

from __future__ import annotations

import pandas as pd

from rlkd_lab.runs import RunFolder

VERSION = "results_version"
"""Column of every table of results, and field of a run's env.json: see
:data:`rlkd_lab.training.fingerprint.RESULTS`."""
UNKNOWN = "unknown: before 3"
"""The version of a run or a table that carries none; 3 is the first that is written."""


def version_of(run: RunFolder) -> str:
    """Return the version of the program that began a run."""
    return str(run.env().get(VERSION, UNKNOWN))


def with_version(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose every row has a version, in words where none was written."""
    if VERSION not in table:
        return table.assign(**{VERSION: UNKNOWN})
    texts = table[VERSION].map(lambda one: one if isinstance(one, str) else f"{one:g}")
    return table.assign(**{VERSION: texts.where(table[VERSION].notna(), UNKNOWN)})
