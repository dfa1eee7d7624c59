"""Every run below a folder in one table; a torn run says what is wrong with it."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from rlkd_lab.runs.compare import differing, flat
from rlkd_lab.runs.folder import RunFolder

HOW_OFTEN = ("eval_every", "eval_prompts", "eval_samples", "checkpoint_every", "samples_every")
"""Settings that say how often something is written; runs that differ in them are alike."""
OF_A_RUN = ("metrics.jsonl", "events.jsonl", "status.json")
"""Files of a run; a folder with any of them is a run, whole or torn."""
WITH_A_PROCESS = ("running", "paused", "stopping")


def find_runs(folder: str | Path) -> list[Path]:
    """Return the folders of runs at or below ``folder``, sorted, without hidden ones.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder} is no folder: name the one that your runs lie in")
    found = []
    for place, below, files in os.walk(folder):
        below[:] = [name for name in below if not name.startswith(".")]
        if any(name in files for name in OF_A_RUN):
            found.append(Path(place))
            below.clear()
    return sorted(found)


def overview(folder: str | Path, alive: Callable[[dict[str, Any]], bool]) -> pd.DataFrame:
    """Return a row for each run.

    Args:
        folder: it is searched with everything below it.
        alive: takes a status and says whether its process is still there. A running run without
            a process is "lost": it was killed, or it runs on another machine.

    Returns:
        The columns ``run`` (path below ``folder``), ``method``, ``state``, ``step``, ``steps``,
        ``seed``, ``touched``, ``settings`` (those in which the runs differ, by dotted name),
        ``reward`` and ``accuracy`` (the last ones), ``problem`` (of a torn or failed run).

    Raises:
        FileNotFoundError: there is no such folder.
    """
    rows, configs = [], []
    for path in find_runs(folder):
        row, config = row_of(path, alive)
        rows.append({"run": name_in(folder, path), **row})
        configs.append(flat(config))
    names = differing([config for config in configs if config], besides=("seed", *HOW_OFTEN))
    for row, config in zip(rows, configs, strict=True):
        row["settings"] = {name: config[name] for name in names if name in config}
    columns = [
        "run",
        "method",
        "state",
        "step",
        "steps",
        "seed",
        "touched",
        "settings",
        "reward",
        "accuracy",
        "problem",
    ]
    return pd.DataFrame(rows, columns=columns, dtype=object)


def name_in(folder: str | Path, path: Path) -> str:
    """Return the name of a run: its path below the folder, or the folder's own name."""
    if path == Path(folder):
        return path.resolve().name if path.name == "" else path.name
    return str(path.relative_to(folder))


def state_now(status: dict[str, Any], alive: Callable[[dict[str, Any]], bool]) -> str:
    """Return the state of a run; a process that is gone makes it ``lost``."""
    state = str(status["state"])
    return "lost" if state in WITH_A_PROCESS and not alive(status) else state


def row_of(
    path: Path, alive: Callable[[dict[str, Any]], bool], points: int | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the columns of a run but its name, and its config; both say little of a torn one.

    Args:
        path: the run folder.
        alive: as in :func:`overview`.
        points: about how many rows are read, evenly spaced, in place of all.
            The row then has their ``rewards`` too.
    """
    try:
        run = RunFolder.open(path)
        config, status = run.config(), run.status()
        rows = run.rows() if points is None else _some_rows(path, points)
        row = {
            "method": config["method"],
            "state": state_now(status, alive),
            "step": rows[-1]["step"] if rows else 0,
            "steps": config["steps"],
            "seed": config["seed"],
            "touched": run.touched,
            "reward": _last(rows, "reward"),
            "accuracy": _last(rows, "eval/accuracy"),
            "problem": status.get("why"),
        }
        if points is not None:
            known = (each["reward"] for each in rows if each.get("reward") is not None)
            row["rewards"] = [float(reward) for reward in known]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return {"state": "torn", "problem": str(error)}, {}
    return row, config


def _last(rows: list[dict[str, Any]], name: str) -> float | None:
    value = next((row[name] for row in reversed(rows) if row.get(name) is not None), None)
    return None if value is None else float(value)


def _some_rows(path: Path, points: int) -> list[dict[str, Any]]:
    """Return the last whole row, about ``points`` before it, and the last with an accuracy.

    Raises:
        ValueError: one of them is no row of its step.
    """
    lines = (path / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
    wanted = {*range(len(lines) - 1, -1, -max(1, len(lines) // points))}
    known = (at for at in range(len(lines) - 1, -1, -1) if b'"eval/accuracy": ' in lines[at])
    wanted |= {*itertools.islice(known, 1)}
    rows = []
    for at in sorted(wanted):
        row = json.loads(lines[at])
        if row["step"] != at + 1:
            raise ValueError(f"{path}/metrics.jsonl is damaged at line {at + 1}")
        rows.append(row)
    return rows
