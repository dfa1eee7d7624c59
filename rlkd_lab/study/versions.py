"""The version of the program that made a row of results.

A program whose draws differ makes other rows of one config and seed.
So arms of two versions are not compared: a difference may be the program's.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from rlkd_lab.runs import RunFolder

VERSION = "results_version"
"""Column of every table of results, and field of a run's env.json: see
:data:`rlkd_lab.training.fingerprint.RESULTS`."""
FIRST = 3
"""The first version that tables carry."""
UNKNOWN = f"unknown: before {FIRST}"
"""The version of a table without the column."""
PROGRAMS = "programs.json"
"""File in a study's folder: which program made the parts whose tables carry no version."""


def version_of(run: RunFolder) -> str:
    """Return the version of the program that began a run."""
    return str(run.env().get(VERSION, UNKNOWN))


def programs_of(study: Path) -> dict[str, str]:
    """Return by part the program that made its tables, where a file says so.

    Raises:
        ValueError: the file is damaged.
    """
    path = study / PROGRAMS
    if not path.exists():
        return {}
    try:
        programs = json.loads(path.read_text(encoding="utf-8"))["parts"]
        return {str(part): str(program) for part, program in programs.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} is damaged: put it back from a copy") from None


def with_version(table: pd.DataFrame, program: str = "") -> pd.DataFrame:
    """Return a table whose every row has a version, in words where none was written."""
    words = f"{UNKNOWN}, {program}" if program else UNKNOWN
    if VERSION not in table:
        return table.assign(**{VERSION: words})
    texts = table[VERSION].map(lambda one: one if isinstance(one, str) else f"{one:g}")
    return table.assign(**{VERSION: texts.where(table[VERSION].notna(), words)})
