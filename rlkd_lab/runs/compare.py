"""Runs compared: several in a table, two row by row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from rlkd_lab.runs.folder import RunFolder

COLUMNS = (
    "reward",
    "eval/accuracy",
    "eval/accuracy_ood",
    "kl_teacher_rev",
    "completions/mean_length",
    "entropy",
    "step_time",
)
TIMING = ("step_time", "train_time", "time/", "memory/", "speed/")
"""Beginnings of the names of metrics that differ between two runs of the same computation."""
SHOWN_ANYWAY = ("method", "format", "steps")


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings under dotted names."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found.update(
            flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        )
    return found


def differing(configs: Sequence[dict[str, Any]], besides: Sequence[str] = ()) -> list[str]:
    """Return the sorted names of the settings in which flat configs differ.

    Settings that the table shows anyway are left out.
    """
    shown = (*SHOWN_ANYWAY, *besides)
    return sorted(
        name
        for name in {name for config in configs for name in config}
        if name not in shown and len({repr(c.get(name)) for c in configs}) > 1
    )


def compare(runs: Sequence[RunFolder], window: int = 10) -> pd.DataFrame:
    """Return a row for each run: steps, settings that differ, and the main metrics.

    A metric is the mean of the last ``window`` steps; an evaluation is the last one.
    """
    configs = [flat(run.config()) for run in runs]
    names = differing(configs)
    rows = []
    for run, config in zip(runs, configs, strict=True):
        frame = run.metrics()
        row: dict[str, Any] = {
            "run": run.path.name,
            "method": config["method"],
            "steps": len(frame),
            "touched": run.touched,
            **{key: config.get(key, "default") for key in names},
        }
        for name in COLUMNS:
            if name in frame:
                values = pd.to_numeric(frame[name], errors="coerce").dropna()
                row[name] = values.tail(1 if name.startswith("eval/") else window).mean()
        rows.append(row)
    return pd.DataFrame(rows)


def first_difference(
    ours: list[dict[str, Any]], theirs: list[dict[str, Any]], tolerance: float = 0.0
) -> tuple[str | None, float]:
    """Compare metrics rows, leaving out :data:`TIMING`.

    Returns:
        What differs first, in words, or ``None``; and the largest absolute difference.
    """
    largest, found = 0.0, None
    if len(ours) != len(theirs):
        found = f"{len(ours)} rows against {len(theirs)}"
    for a, b in zip(ours, theirs, strict=False):
        for key in sorted(key for key in set(a) | set(b) if not key.startswith(TIMING)):
            x, y = a.get(key), b.get(key)
            gap = 0.0 if x == y else float("inf")
            if isinstance(x, int | float) and isinstance(y, int | float):
                gap = abs(x - y)
            largest = max(largest, gap)
            if gap > tolerance and found is None:
                found = f"step {a['step']}: {key} is {x} against {y}"
    return found, largest
