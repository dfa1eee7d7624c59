"""The table of an evaluation as a file (version 1): one parquet file, a row for each completion.

Schema metadata ``rlkd_eval`` = ``{"version": 1, "model": …, "task": …, settings, seed}``.

    prompt_id   str    the same for the same prompt everywhere
    prompt      str
    answer      str    reference
    set         str    "id" or "ood": in or out of distribution
    difficulty  int    of the prompt
    mode        str    "sample" or "greedy"
    sample      int    0, 1, … within a prompt and mode
    completion  str    as decoded, without special tokens
    extracted   str    the answer as it was read; null: none, or cut by the length limit
    correct     bool   a completion cut by the length limit is wrong
    formatted   bool   in the task's format
    finished    bool   ended by an end-of-sequence token, not by the length limit
    length      int    tokens, the end of sequence included
    chance      float  probability that a blind guess is right, of the prompt
    guesses     int    guesses behind ``chance``; 0: known, not estimated
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from rlkd_lab.study.evaluation import Settings
from rlkd_lab.tasks import Task

VERSION = 1


def about(model: dict[str, Any], task: Task, settings: Settings) -> dict[str, Any]:
    """Return the record that goes into a table's metadata."""
    of_task = {
        "task_settings": getattr(task, "settings", {}),
        "prompt_template": getattr(task, "template", None),
    }
    return {"version": VERSION, "model": model, "task": task.name, **of_task, **asdict(settings)}


def check_out(path: Path) -> None:
    """Raise an OSError or ValueError where no table can be written."""
    if path.suffix != ".parquet":
        raise ValueError(
            f"{path}: completions are written as parquet; name a file that ends in .parquet"
        )
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise NotADirectoryError(f"{path} cannot be made: {above} is a file")
    if not os.access(above, os.W_OK):
        raise PermissionError(f"no permission to write {path}: choose another --out")


def write_table(path: Path, frame: pd.DataFrame, record: dict[str, Any]) -> None:
    """Write a table beside and rename it, so that a reader never sees half of one."""
    table = pa.Table.from_pandas(frame, preserve_index=False)
    table = table.replace_schema_metadata({"rlkd_eval": json.dumps(record)})
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    pq.write_table(table, beside)
    beside.replace(path)


def read_table(path: str | Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return a table and its record.

    Raises:
        FileNotFoundError: there is no file.
        ValueError: the file is no table of an evaluation, or has a newer format.
    """
    table = _readable(pq.read_table, path)
    return table.to_pandas(), _record(table.schema, path)


def read_record(path: str | Path) -> dict[str, Any]:
    """Return a table's record alone. Raises what :func:`read_table` does."""
    return _record(_readable(pq.read_schema, path), path)


def _readable(read: Callable[[str | Path], Any], path: str | Path) -> Any:
    try:
        return read(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _record(schema: pa.Schema, path: str | Path) -> dict[str, Any]:
    record = json.loads((schema.metadata or {}).get(b"rlkd_eval", b"{}"))
    if "version" not in record:
        raise ValueError(f"{path} is no table of `rlkd eval`")
    if record["version"] > VERSION:
        raise ValueError(
            f"{path} has format {record['version']}, this version of rlkd_lab reads up to"
            f" {VERSION}: update rlkd_lab"
        )
    return record
