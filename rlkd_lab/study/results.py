"""What came out of a sweep, as tables: a row a run, a row a step, and means over seeds.

Reads files alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from rlkd_lab.objectives import METHODS
from rlkd_lab.objectives.methods import resolve_options
from rlkd_lab.objectives.schedules import Constant
from rlkd_lab.runs import RunFolder
from rlkd_lab.study.evaluation import read_table, summarise
from rlkd_lab.study.statistics import half_width
from rlkd_lab.study.sweep import Sweep
from rlkd_lab.training import RunConfig, config_of

OVER = "outcome.json"
"""In a run folder: the run and its evaluation are over; whether it diverged, and what the
worker needed.
"""
LAST = ("reward", "kl_teacher_rev", "completions/mean_length", "entropy")
"""Curves whose end stands in the table of the runs, over steps on the student's own completions."""


def over(path: Path) -> bool:
    """Whether nothing is left to do in a run folder of a sweep."""
    return (path / OVER).exists()


def outcome_of(path: Path) -> dict[str, Any]:
    """What became of a run that is over: ``diverged`` (why, or None), and ``worker_seconds`` and
    ``worker_gib`` that it needed.

    Raises:
        ValueError: that is damaged.
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
    """A row a run that is over: :func:`table_of` with the arm's name, whether it diverged, and
    the memory of its worker.
    """
    rows, configs = [], []
    for job in sweep.jobs():
        path = job.folder(Path(out))
        if over(path):
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


def table_of(
    runs: Sequence[RunFolder], labels: Sequence[str] | None = None, window: int = 10
) -> pd.DataFrame:
    """A row a run, whatever it came from: ``arm`` (the label, or the method), ``seed``, ``method``,
    a column for every setting in which the runs differ (``kd_coef``, ``teacher``, …; a schedule as
    text), ``touched``, ``steps``, means of the last ``window`` steps of some curves, the newest
    evaluation by `rlkd eval` (``id avg``, ``ood pass@8``, …), tokens and seconds. docs/sweeps.md
    has every column.

    Args:
        runs: run folders.
        labels: what each is called; runs that differ in their seed alone have the same.
        window: in steps.

    Raises:
        ValueError: no run, or not one label a run.
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
    own = frame[
        _on_policy(frame)
    ]  # on traces of the teacher, lengths and divergences say nothing about the student's own
    row |= {name: own[name].dropna().tail(window).mean() for name in LAST if name in own}
    if len(frame):
        row |= {
            "tokens": frame["num_tokens"].iloc[-1],
            "sampled_tokens": _sampled(folder.path, frame).iloc[-1],
            "seconds": frame["step_time"].sum(),
        }
        row |= {"train_seconds": frame["train_time"].sum()} if "train_time" in frame else {}
    table = _evaluation(folder.path)
    if table is not None:
        whole = table[table["difficulty"] == "all"]
        row |= {f"{one['set']} {one['measure']}": one["value"] for one in whole.to_dict("records")}
    return row


def _evaluation(run: Path) -> pd.DataFrame | None:
    """What the newest evaluation of a run adds up to: a sweep's own summary, or that of the
    table which `rlkd eval` wrote.
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
    """The rows, with the settings in which they differ after the method."""
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
    """Every setting by its bare name; a knob that moves as the text of its schedule."""
    fields = config.model_dump(
        exclude={
            "method",
            "seed",
            "knobs",
            "options",
            "moves",
            "task_settings",
            "reward",
            "difficulty",
        }
    )
    texts = {**METHODS[config.method].schedules, **config.knobs}
    knobs = {
        name: plan.value if isinstance(plan, Constant) else str(texts[name])
        for name, plan in config.schedules().items()
    }
    return fields | resolve_options(METHODS[config.method], config.options) | knobs


def curves(sweep: Sweep, out: str | Path) -> pd.DataFrame:
    """A row a step of every run that is over: ``arm``, ``seed``, ``method``, ``step``, every
    metric, ``sampled_tokens`` (completion tokens that student and teacher have sampled so far for
    training) and ``train_seconds`` (``train_time`` so far, the teacher's part included).
    """
    frames = []
    for job in sweep.jobs():
        path = job.folder(Path(out))
        if not over(path):
            continue
        frames.append(curves_of(RunFolder.open(path), job.arm, job.seed, job.config.method))
    return (
        pd.concat(frames, ignore_index=True)
        if frames
        else pd.DataFrame(columns=["arm", "seed", "method", "step"])
    )


def curves_of(run: RunFolder, arm: str, seed: int, method: str) -> pd.DataFrame:
    """The part of :func:`curves` that is one run's."""
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
    """The evaluations, a row a number:

    ``arm``, ``seed``, ``set``, ``difficulty``, ``measure``, ``value`` and its interval over
    prompts, ``low``, ``high``.
    """
    tables = [(job, _evaluation(job.folder(Path(out)))) for job in sweep.jobs()]
    frames = [
        table.assign(arm=job.arm, seed=job.seed) for job, table in tables if table is not None
    ]
    columns = ["arm", "seed", "set", "difficulty", "measure", "value", "low", "high"]
    return (
        pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)
    )


@dataclass(frozen=True)
class Part:
    """A sweep's tables, as :func:`collect`, :func:`curves` and :func:`levels` make them,
    without the runs that diverged or that somebody touched.
    """

    runs: pd.DataFrame
    curves: pd.DataFrame
    levels: pd.DataFrame
    left_out: tuple[str, ...] = ()
    """Those runs, in words."""

    def of(self, arm: str, measure: str) -> pd.Series:
        """A column of the runs by seed."""
        rows = self.runs[self.runs["arm"] == arm].set_index("seed")
        return rows[measure].astype(float) if measure in rows else pd.Series(dtype=float)

    def level(self, arm: str, difficulty: str, measure: str = "avg", of: str = "id") -> pd.Series:
        """A measure at one difficulty by seed."""
        table = self.levels
        rows = table[
            (table["arm"] == arm)
            & (table["set"] == of)
            & (table["difficulty"].astype(str) == difficulty)
            & (table["measure"] == measure)
        ]
        return rows.set_index("seed")["value"].astype(float)

    def curve(self, arm: str, metric: str) -> dict[int, pd.Series]:
        """A metric by step, for each seed, where it was measured."""
        rows = self.curves[self.curves["arm"] == arm]
        if metric not in rows:
            return {}
        return {
            int(str(seed)): found
            for seed, one in rows.groupby("seed")
            if len(found := one.set_index("step")[metric].dropna().astype(float))
        }


SESSIONS = "sessions.jsonl"
"""In a sweep's folder: a line each time it was run."""
TABLES = ("runs.csv", "curves.parquet", "levels.csv")


def write_tables(sweep: Sweep, out: Path) -> None:
    """Put the three tables into the sweep's folder."""
    collect(sweep, out).to_csv(out / TABLES[0], index=False)
    curves(sweep, out).to_parquet(out / TABLES[1], compression="zstd", index=False)
    levels(sweep, out).to_csv(out / TABLES[2], index=False)


def read_part(folder: str | Path) -> Part:
    """The tables of a sweep's folder, or of a copy of them.

    Raises:
        FileNotFoundError: a table is missing: the sweep has not come to its end once.
        ValueError: one is damaged, or has a run twice.
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
        return frame[pd.MultiIndex.from_frame(frame[["arm", "seed"]]).isin(keep)].reset_index(
            drop=True
        )

    return Part(kept(runs), kept(steps), kept(numbers), (*why, *_not_there(path, runs)))


def _read(path: Path, *columns: str) -> pd.DataFrame:
    """A table that has these columns."""
    try:
        table = (
            pd.read_parquet(path)
            if path.suffix == ".parquet"
            else pd.read_csv(path, dtype={"difficulty": str})
        )
    except (ValueError, OSError) as error:  # of pandas, pyarrow and decoders alike
        raise ValueError(
            f"{path} is damaged: {str(error).splitlines()[0]}; start the sweep again, and it"
            " is written anew"
        ) from None
    missing = [name for name in columns if name not in table]
    if missing:
        raise ValueError(
            f"{path} is damaged: it has no column {missing[0]!r}; start the sweep again, and"
            " it is written anew"
        )
    return table


def _not_there(path: Path, runs: pd.DataFrame) -> list[str]:
    """Runs of the sweep that its table does not have, in words: those that failed, or a table
    that was cut.
    """
    try:
        sweep = Sweep(**json.loads((path / "sweep.json").read_text(encoding="utf-8")))
        asked = {(job.arm, job.seed) for job in sweep.jobs()}
    except (
        OSError,
        ValueError,
        TypeError,
    ):  # a copy without it, or one with settings that this version does not know
        return []
    there = set(zip(runs["arm"], runs["seed"], strict=True))
    return [f"{arm}, seed {seed}: not run" for arm, seed in sorted(asked - there)]


def _on_policy(frame: pd.DataFrame) -> pd.Series:
    """Which steps trained on the student's own completions."""
    return (
        frame["on_policy"].fillna(True).astype(bool)
        if "on_policy" in frame
        else pd.Series(True, index=frame.index)
    )


def _sampled(path: Path, frame: pd.DataFrame) -> pd.Series:
    """Tokens sampled so far: the student's own, and all of the teacher's traces from the first
    step that trains on them.
    """
    on_policy = _on_policy(frame)
    own = frame["num_tokens"].diff().fillna(frame["num_tokens"]).where(on_policy, 0.0).cumsum()
    traces = path / "traces.parquet"
    if not traces.exists():
        return own
    written = int((pq.read_schema(traces).metadata or {}).get(b"rlkd_tokens", b"0"))
    return own + written * (~on_policy).cummax()


def left_out(runs: pd.DataFrame) -> pd.Series:
    """Which runs stand for no seed: those that diverged or that somebody moved by hand."""
    return runs["diverged"].astype(bool) | runs["touched"].astype(bool)


def by_arm(runs: pd.DataFrame, measures: Sequence[str]) -> pd.DataFrame:
    """A row an arm: ``runs``, ``left_out`` (diverged, or touched by hand) and for each measure its
    mean over the other seeds and the half-width of its 95 % interval (Student's t; NaN below two
    seeds).
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
