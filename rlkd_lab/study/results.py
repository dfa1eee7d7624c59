"""What came out of a sweep, as tables: a row a run, a row a step, and means over seeds. Reads files alone."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
from scipy.stats import t

from rlkd_lab.runs import RunFolder
from rlkd_lab.study.sweep import Sweep

OVER = "outcome.json"
"""In a run folder: the run and its evaluation are over; whether it diverged, and what the worker needed."""
LAST = ("reward", "kl_teacher_rev", "completions/mean_length", "entropy")
"""Curves whose end stands in the table of the runs."""


def over(path: Path) -> bool:
    """Whether nothing is left to do in a run folder of a sweep."""
    return (path / OVER).exists()


def collect(sweep: Sweep, out: str | Path, window: int = 10) -> pd.DataFrame:
    """A row a run that is over: arm, seed, method, whether it diverged or was touched, means of the last ``window`` steps of some curves, measures of the
    evaluation (``id avg``, ``ood pass@8``, …), tokens and seconds (docs/sweeps.md has every column)."""
    rows = []
    for job in sweep.jobs():
        path = job.folder(Path(out))
        if not over(path):
            continue
        folder = RunFolder.open(path)
        frame, outcome = folder.metrics(), json.loads((path / OVER).read_text())
        row: dict[str, Any] = {
            "arm": job.arm,
            "seed": job.seed,
            "method": job.config.method,
            "diverged": outcome["diverged"] is not None,
            "touched": folder.touched,
            "steps": len(frame),
        }
        row |= {name: frame[name].dropna().tail(window).mean() for name in LAST if name in frame}
        if len(frame):
            costs = _sampled(path, frame).iloc[-1]
            row |= {"tokens": frame["num_tokens"].iloc[-1], "sampled_tokens": costs}
            row |= {"seconds": frame["step_time"].sum(), "train_seconds": frame["train_time"].sum(), "worker_gib": outcome["worker_gib"]}
        tables = sorted((path / "eval").glob("step_*.csv"))
        if tables:
            table = pd.read_csv(tables[-1], dtype={"difficulty": str})
            whole = table[table["difficulty"] == "all"]
            row |= {f"{one['set']} {one['measure']}": one["value"] for one in whole.to_dict("records")}
        rows.append(row)
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=["arm", "seed", "method", "diverged", "touched", "steps"])


def curves(sweep: Sweep, out: str | Path) -> pd.DataFrame:
    """A row a step of every run that is over: ``arm``, ``seed``, ``method``, ``step``, every metric, ``sampled_tokens`` (completion tokens that student and
    teacher have sampled so far for training) and ``train_seconds`` (``train_time`` so far, the teacher's part included)."""
    frames = []
    for job in sweep.jobs():
        path = job.folder(Path(out))
        if not over(path):
            continue
        frame = RunFolder.open(path).metrics()
        frame = frame.assign(sampled_tokens=_sampled(path, frame), train_seconds=frame["train_time"].cumsum()).reset_index()
        frames.append(pd.concat([pd.DataFrame({"arm": job.arm, "seed": job.seed, "method": job.config.method}, index=frame.index), frame], axis=1))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["arm", "seed", "method", "step"])


def levels(sweep: Sweep, out: str | Path) -> pd.DataFrame:
    """The evaluations, a row a number: ``arm``, ``seed``, ``set``, ``difficulty``, ``measure``, ``value`` and its interval over prompts, ``low``, ``high``."""
    tables = [(job, table) for job in sweep.jobs() for table in sorted((job.folder(Path(out)) / "eval").glob("step_*.csv"))[-1:]]
    frames = [pd.read_csv(table, dtype={"difficulty": str}).assign(arm=job.arm, seed=job.seed) for job, table in tables]
    columns = ["arm", "seed", "set", "difficulty", "measure", "value", "low", "high"]
    return pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)


def _sampled(path: Path, frame: pd.DataFrame) -> pd.Series:
    """Tokens sampled so far: the student's own, and all of the teacher's traces from the first step that trains on them."""
    on_policy = frame["on_policy"].fillna(True).astype(bool)
    own = frame["num_tokens"].diff().fillna(frame["num_tokens"]).where(on_policy, 0.0).cumsum()
    traces = path / "traces.parquet"
    if not traces.exists():
        return own
    written = int((pq.read_schema(traces).metadata or {}).get(b"rlkd_tokens", b"0"))
    return own + written * (~on_policy).cummax()


def by_arm(runs: pd.DataFrame, measures: Sequence[str]) -> pd.DataFrame:
    """A row an arm: ``runs``, ``left_out`` (diverged, or touched by hand) and for each measure its mean over the other seeds and the half-width of its 95 %
    interval (Student's t; NaN below two seeds)."""
    rows = []
    for arm, group in runs.groupby("arm", sort=False):
        left_out = group["diverged"] | group["touched"]
        row: dict[str, Any] = {"arm": arm, "runs": len(group), "left_out": int(left_out.sum())}
        for name in measures:
            values = group.loc[~left_out, name].dropna().to_numpy(dtype=float)
            row[name] = values.mean() if len(values) else math.nan
            row[f"{name} ±"] = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        rows.append(row)
    return pd.DataFrame(rows)
