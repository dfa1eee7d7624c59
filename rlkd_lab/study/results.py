"""What came out of a sweep, as tables: a row for each run or step, and means over seeds.

The module only reads files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from rlkd_lab.objectives import METHODS
from rlkd_lab.objectives.methods import resolve_options
from rlkd_lab.objectives.schedules import Constant
from rlkd_lab.runs import RunFolder
from rlkd_lab.study.eval_table import read_table
from rlkd_lab.study.statistics import half_width
from rlkd_lab.study.summary import summarise
from rlkd_lab.study.sweep import Job, Sweep
from rlkd_lab.training import RunConfig, config_of

OVER = "outcome.json"
"""File in a run folder whose run and evaluation are over: divergence, and the worker's needs."""
SESSIONS = "sessions.jsonl"
"""File in a sweep's folder: a line for each time the sweep was run."""
TABLES = ("runs.csv", "curves.parquet", "levels.csv")
"""Files in a sweep's folder: :func:`collect`, :func:`curves` and :func:`levels`."""
NO_COLUMN = {"method", "seed", "knobs", "options", "moves", "task_settings", "reward", "difficulty"}
"""Settings of which the table has no column, or has one for each of their parts."""
LAST = ("reward", "kl_teacher_rev", "completions/mean_length", "entropy")
"""Curves whose last steps stand in the table of the runs."""


def over(path: Path) -> bool:
    """Return whether a run of a sweep and its evaluation are over."""
    return (path / OVER).exists()


def outcome_of(path: Path) -> dict[str, Any]:
    """Return ``diverged`` (why, or None), ``worker_seconds`` and ``worker_gib`` of a run.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        outcome = json.loads((path / OVER).read_text(encoding="utf-8"))
        return {
            "diverged": outcome["diverged"],
            "worker_seconds": outcome.get("seconds"),
            "worker_gib": outcome["worker_gib"],
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(
            f"{path / OVER} is damaged: delete it, and the sweep evaluates that run again"
        ) from None


def collect(sweep: Sweep, out: str | Path, window: int = 10) -> pd.DataFrame:
    """Return a row for each run that is over.

    It is a row of :func:`table_of` with the arm's name, divergence, and the worker's needs.
    """
    rows, configs = [], []
    for job, path in _jobs_over(sweep, out):
        outcome = outcome_of(path)
        row = {"arm": job.arm, **_row(RunFolder.open(path), job.config, window)}
        if outcome["diverged"] is None and row["steps"] < job.config.steps:
            raise ValueError(
                f"{path} has lost rows, {row['steps']} of {job.config.steps} are there:"
                " start the sweep again, and it computes the others"
            )
        rows.append(row | outcome | {"diverged": outcome["diverged"] is not None})
        configs.append(job.config)
    return _table(rows, configs)


def _jobs_over(sweep: Sweep, out: str | Path) -> list[tuple[Job, Path]]:
    """Return the runs of a sweep that are over, with their folders."""
    places = [(job, job.folder(Path(out))) for job in sweep.jobs()]
    return [(job, path) for job, path in places if over(path)]


def table_of(
    runs: Sequence[RunFolder], labels: Sequence[str] | None = None, window: int = 10
) -> pd.DataFrame:
    """Return a row for each run, of a sweep or not; docs/sweeps.md has every column.

    Among them are ``arm`` (the label, or the method), ``seed``, every setting in which the
    runs differ, the means of some curves over their last ``window`` steps, and the newest
    evaluation by `rlkd eval` (``id avg``, ``ood pass@8``, …).

    Args:
        runs: run folders.
        labels: names of the runs; runs that differ only in their seed have the same.
        window: number of steps.

    Raises:
        ValueError: there is no run, or not one label for each run.
    """
    if not runs or (labels is not None and len(labels) != len(runs)):
        raise ValueError(
            f"a table needs runs, and one label for each: {len(runs)} runs"
            + ("" if labels is None else f", {len(labels)} labels")
        )
    configs = [config_of(run) for run in runs]
    names = [config.method for config in configs] if labels is None else labels
    rows = [
        {"arm": name, **_row(run, config, window), "diverged": False}
        for name, run, config in zip(names, runs, configs, strict=True)
    ]
    return _table(rows, configs)


def _row(folder: RunFolder, config: RunConfig, window: int) -> dict[str, Any]:
    frame = folder.metrics()
    row: dict[str, Any] = {
        "seed": config.seed,
        "method": config.method,
        "touched": folder.touched,
        "steps": len(frame),
    }
    # lengths and divergences on the teacher's traces say nothing about the student's own
    own = frame[_on_policy(frame)]
    row |= {name: own[name].dropna().tail(window).mean() for name in LAST if name in own}
    if len(frame):
        row |= {
            "tokens": frame["num_tokens"].iloc[-1],
            "sampled_tokens": _sampled(folder.path, frame).iloc[-1],
            "seconds": frame["step_time"].sum(),
        }
        if "train_time" in frame:
            row["train_seconds"] = frame["train_time"].sum()
    table = _evaluation(folder.path)
    if table is not None:
        whole = table[table["difficulty"] == "all"]
        row |= {f"{one['set']} {one['measure']}": one["value"] for one in whole.to_dict("records")}
    return row


def _evaluation(run: Path) -> pd.DataFrame | None:
    """Return what the newest evaluation of a run adds up to.

    A sweep left a summary; `rlkd eval` left the table of completions.
    """
    found = {
        path.stem: path
        for suffix in ("parquet", "csv")
        for path in (run / "eval").glob(f"step_*.{suffix}")
        if path.stem.removeprefix("step_").isdigit()
    }
    if not found:
        return None
    newest = found[max(found)]
    table = pd.read_csv(newest) if newest.suffix == ".csv" else summarise(read_table(newest)[0])
    return table.astype({"difficulty": str})


def _table(rows: list[dict[str, Any]], configs: list[RunConfig]) -> pd.DataFrame:
    """Return the rows, with the settings in which they differ beside the method."""
    first = ["arm", "seed", "method", "diverged", "touched", "steps"]
    if not rows:
        return pd.DataFrame(columns=first)
    frame = pd.DataFrame(rows)
    settings = pd.DataFrame([_settings(config) for config in configs], dtype=object)
    vary = [name for name in settings if settings[name].astype(str).nunique() > 1]
    return pd.concat(
        [frame[first], settings[vary].infer_objects(), frame.drop(columns=first)], axis=1
    )


def _settings(config: RunConfig) -> dict[str, Any]:
    """Return every setting by its bare name; a knob that moves as the text of its schedule."""
    fields = config.model_dump(exclude=NO_COLUMN)
    texts = {**METHODS[config.method].schedules, **config.knobs}
    knobs = {
        name: plan.value if isinstance(plan, Constant) else str(texts[name])
        for name, plan in config.schedules().items()
    }
    return fields | resolve_options(METHODS[config.method], config.options) | knobs


def curves(sweep: Sweep, out: str | Path) -> pd.DataFrame:
    """Return a row for each step of every run that is over.

    The columns are ``arm``, ``seed``, ``method``, ``step``, every metric, ``sampled_tokens``
    and ``train_seconds``.
    The last two are sums up to the step, and both include the teacher's share.
    """
    frames = [
        curves_of(RunFolder.open(path), job.arm, job.seed, job.config.method)
        for job, path in _jobs_over(sweep, out)
    ]
    none = pd.DataFrame(columns=["arm", "seed", "method", "step"])
    return pd.concat(frames, ignore_index=True) if frames else none


def curves_of(run: RunFolder, arm: str, seed: int, method: str) -> pd.DataFrame:
    """Return the rows of :func:`curves` for one run."""
    frame = run.metrics()
    if frame.empty:  # diverged in its first step
        return pd.DataFrame(columns=["arm", "seed", "method", "step"])
    times = {"train_seconds": frame["train_time"].cumsum()} if "train_time" in frame else {}
    frame = frame.assign(sampled_tokens=_sampled(run.path, frame), **times).reset_index()
    return pd.concat(
        [pd.DataFrame({"arm": arm, "seed": seed, "method": method}, index=frame.index), frame],
        axis=1,
    )


def levels(sweep: Sweep, out: str | Path) -> pd.DataFrame:
    """Return the evaluations of all runs, a row for each number.

    The columns are those of :func:`~rlkd_lab.study.summary.summarise`, ``arm`` and ``seed``.
    """
    tables = [(job, _evaluation(job.folder(Path(out)))) for job in sweep.jobs()]
    frames = [
        table.assign(arm=job.arm, seed=job.seed) for job, table in tables if table is not None
    ]
    columns = ["arm", "seed", "set", "difficulty", "measure", "value", "low", "high"]
    none = pd.DataFrame(columns=columns)
    return pd.concat(frames, ignore_index=True)[columns] if frames else none


@dataclass(frozen=True)
class Part:
    """A sweep's tables, without the runs that diverged or whose knobs were moved by hand.

    :func:`collect`, :func:`curves` and :func:`levels` make them.
    """

    runs: pd.DataFrame
    curves: pd.DataFrame
    levels: pd.DataFrame
    left_out: tuple[str, ...] = ()
    """The runs left out, in words."""

    def of(self, arm: str, measure: str) -> pd.Series:
        """Return a column of the runs by seed."""
        rows = self.runs[self.runs["arm"] == arm].set_index("seed")
        return rows[measure].astype(float) if measure in rows else pd.Series(dtype=float)

    def level(self, arm: str, difficulty: str, measure: str = "avg", of: str = "id") -> pd.Series:
        """Return a measure at one difficulty by seed."""
        table = self.levels
        rows = table[
            (table["arm"] == arm)
            & (table["set"] == of)
            & (table["difficulty"].astype(str) == difficulty)
            & (table["measure"] == measure)
        ]
        return rows.set_index("seed")["value"].astype(float)

    def curve(self, arm: str, metric: str) -> dict[int, pd.Series]:
        """Return a metric by step, for each seed, where it was measured."""
        rows = self.curves[self.curves["arm"] == arm]
        if metric not in rows:
            return {}
        return {
            int(str(seed)): found
            for seed, one in rows.groupby("seed")
            if len(found := one.set_index("step")[metric].dropna().astype(float))
        }

    def curve_means(self, arm: str, metric: str) -> pd.Series:
        """Return the mean of a metric over the steps, by seed."""
        means = {seed: curve.mean() for seed, curve in self.curve(arm, metric).items()}
        return pd.Series(means, dtype=float)


Study = Mapping[str, Part]
"""Parts by name: core, estimators, …"""


def write_tables(sweep: Sweep, out: Path) -> None:
    """Write the three tables into the sweep's folder."""
    collect(sweep, out).to_csv(out / TABLES[0], index=False)
    curves(sweep, out).to_parquet(out / TABLES[1], compression="zstd", index=False)
    levels(sweep, out).to_csv(out / TABLES[2], index=False)


def read_part(folder: str | Path) -> Part:
    """Read the tables of a sweep's folder, or of a copy of them.

    Raises:
        FileNotFoundError: a table is missing, because the sweep has never ended.
        ValueError: a table is damaged, or has a run twice.
    """
    path = Path(folder)
    missing = [name for name in TABLES if not (path / name).exists()]
    if missing:
        raise FileNotFoundError(
            f"{path} has no {missing[0]}: run the sweep first (what is over already is not"
            " run again)"
        )
    runs = _read(path / TABLES[0], "arm", "seed", "method", "diverged", "touched")
    steps = _read(path / TABLES[1], "arm", "seed", "method", "step")
    numbers = _read(path / TABLES[2], "arm", "seed", "set", "difficulty", "measure", "value")
    twice = runs[runs.duplicated(["arm", "seed"])]
    if len(twice):
        raise ValueError(
            f"{path / TABLES[0]} has {twice['arm'].iloc[0]}, seed {twice['seed'].iloc[0]}"
            " twice: a run counts once"
        )
    bad = left_out(runs)
    why = [
        f"{row.arm}, seed {row.seed}: {'diverged' if row.diverged else 'moved by hand'}"
        for row in runs[bad].itertuples()
    ]
    keep = pd.MultiIndex.from_frame(runs.loc[~bad, ["arm", "seed"]])

    def kept(frame: pd.DataFrame) -> pd.DataFrame:
        pairs = pd.MultiIndex.from_frame(frame[["arm", "seed"]])
        return frame[pairs.isin(keep)].reset_index(drop=True)

    return Part(kept(runs), kept(steps), kept(numbers), (*why, *_not_there(path, runs)))


def _read(path: Path, *columns: str) -> pd.DataFrame:
    """Read a table that must have these columns."""
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
        else:
            table = pd.read_csv(path, dtype={"difficulty": str})
        if missing := [name for name in columns if name not in table]:
            raise ValueError(f"it has no column {missing[0]!r}")
    except (ValueError, OSError) as error:  # of pandas, pyarrow and decoders alike
        raise ValueError(
            f"{path} is damaged: {str(error).splitlines()[0]}; start the sweep again, and it"
            " is written anew"
        ) from None
    return table


def _not_there(path: Path, runs: pd.DataFrame) -> list[str]:
    """Return in words the runs of the sweep that its table does not have."""
    try:
        sweep = Sweep(**json.loads((path / "sweep.json").read_text(encoding="utf-8")))
        asked = {(job.arm, job.seed) for job in sweep.jobs()}
    except (OSError, ValueError, TypeError):  # no sweep.json, or one that this version cannot read
        return []
    there = set(zip(runs["arm"], runs["seed"], strict=True))
    return [f"{arm}, seed {seed}: not run" for arm, seed in sorted(asked - there)]


def _on_policy(frame: pd.DataFrame) -> pd.Series:
    """Return which steps trained on the student's own completions."""
    if "on_policy" not in frame:
        return pd.Series(True, index=frame.index)
    return frame["on_policy"].fillna(True).astype(bool)


def _sampled(path: Path, frame: pd.DataFrame) -> pd.Series:
    """Return the tokens sampled so far, by the student and by the teacher.

    All of the teacher's traces count from the first step that trains on them.
    """
    on_policy = _on_policy(frame)
    own = frame["num_tokens"].diff().fillna(frame["num_tokens"]).where(on_policy, 0.0).cumsum()
    traces = path / "traces.parquet"
    if not traces.exists():
        return own
    written = int((pq.read_schema(traces).metadata or {}).get(b"rlkd_tokens", b"0"))
    return own + written * (~on_policy).cummax()


def left_out(runs: pd.DataFrame) -> pd.Series:
    """Return which runs do not count: they diverged, or a knob was moved by hand."""
    return runs["diverged"].astype(bool) | runs["touched"].astype(bool)


def by_arm(runs: pd.DataFrame, measures: Sequence[str]) -> pd.DataFrame:
    """Return a row for each arm: ``runs``, ``left_out``, and each measure with its interval.

    A measure is the mean over the runs that count.
    ``MEASURE ±`` is the half-width of its 95 % interval (Student's t; NaN below two seeds).
    """
    rows = []
    for arm, group in runs.groupby("arm", sort=False):
        bad = left_out(group)
        row: dict[str, Any] = {"arm": arm, "runs": len(group), "left_out": int(bad.sum())}
        for name in measures:
            values = group.loc[~bad, name].dropna().to_numpy(dtype=float)
            row[name] = values.mean() if len(values) else math.nan
            row[f"{name} ±"] = half_width(values)
        rows.append(row)
    return pd.DataFrame(rows)
