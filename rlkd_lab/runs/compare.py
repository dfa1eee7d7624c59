"""Several runs side by side: their last values and the settings in which they differ."""

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
SHOWN_ANYWAY = ("method", "format", "steps")


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted names."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found.update(
            flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        )
    return found


def differing(configs: Sequence[dict[str, Any]], besides: Sequence[str] = ()) -> list[str]:
    """Names of the settings in which flat configs differ, sorted, without those that are shown
    in any case.
    """
    shown = (*SHOWN_ANYWAY, *besides)
    return sorted(
        name
        for name in {name for config in configs for name in config}
        if name not in shown and len({repr(c.get(name)) for c in configs}) > 1
    )


def compare(runs: Sequence[RunFolder], window: int = 10) -> pd.DataFrame:
    """A row a run: steps, settings that differ between the runs, mean of the last ``window``
    steps of the main metrics (evaluations: the last one).
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
        }
        row |= {key: config.get(key, "default") for key in names}
        for name in COLUMNS:
            if name in frame:
                values = pd.to_numeric(frame[name], errors="coerce").dropna()
                row[name] = (
                    values.iloc[-1]
                    if name.startswith("eval/") and len(values)
                    else values.tail(window).mean()
                )
        rows.append(row)
    return pd.DataFrame(rows)
