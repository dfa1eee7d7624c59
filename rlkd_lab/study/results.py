"""What came out of a sweep, as tables: a row for each run or step, and numbers.

The module only reads run folders; :mod:`rlkd_lab.study.parts` reads the tables back.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from rlkd_lab.objectives import METHODS
from rlkd_lab.objectives.methods import resolve_options
from rlkd_lab.objectives.schedules import Constant
from rlkd_lab.runs import RunFolder
from rlkd_lab.study.eval_table import read_table
from rlkd_lab.study.parts import OUTCOMES, TABLES, on_policy_steps
from rlkd_lab.study.summary import summarise
from rlkd_lab.study.sweep import Job, Sweep
from rlkd_lab.study.versions import VERSION, version_of
from rlkd_lab.training import RunConfig, config_of

OVER = "outcome.json"
"""File in a run folder whose run and evaluation are over: divergence, and the worker's needs."""
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
        best = _best(path) if job.evaluate is not None and job.evaluate.best else {}
        rows.append(row | best | outcome | {"diverged": outcome["diverged"] is not None})
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
        VERSION: version_of(folder),
    }
    # lengths and divergences on the teacher's traces say nothing about the student's own
    own = frame[on_policy_steps(frame)]
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
    newest = _newest(run, "parquet", "csv")
    if newest is None:
        return None
    table = pd.read_csv(newest) if newest.suffix == ".csv" else summarise(read_table(newest)[0])
    return table.astype({"difficulty": str})


def _best(run: Path) -> dict[str, float]:
    """Return the step and the accuracy of the best checkpoint on validation prompts.

    The sweep evaluated it and the last one; of equals the later one is the best.
    """
    tables = {int(path.stem[5:]): path for path in (run / "eval").glob("step_*.csv")}
    metrics = RunFolder.open(run).metrics()
    if "eval/accuracy" not in metrics or not tables:  # it diverged
        return {}
    known = metrics["eval/accuracy"].reindex(list(tables)).dropna()
    step = max(tables, key=lambda at: (known.get(at, -1.0), at))
    rows = pd.read_csv(tables[step]).set_index(["set", "difficulty", "measure"])
    return {"best step": step, "best id avg": rows["value"].loc[("id", "all", "avg")]}


def _newest(run: Path, *kinds: str) -> Path | None:
    """Return the file of a run's newest evaluation; of one step the last kind counts."""
    found = {
        path.stem: path
        for kind in kinds
        for path in (run / "eval").glob(f"step_*.{kind}")
        if path.stem.removeprefix("step_").isdigit()
    }
    return found[max(found)] if found else None


def _table(rows: list[dict[str, Any]], configs: list[RunConfig]) -> pd.DataFrame:
    """Return the rows, with the settings in which they differ beside the method."""
    first = ["arm", "seed", "method", "diverged", "touched", "steps", VERSION]
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

    The columns are ``arm``, ``seed``, ``method``, ``step``, every metric, ``sampled_tokens``,
    ``train_seconds`` and the version of the program.
    Tokens and seconds are sums up to the step, and include the teacher's share.
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
        return pd.DataFrame(columns=["arm", "seed", "method", "step", VERSION])
    times = {"train_seconds": frame["train_time"].cumsum()} if "train_time" in frame else {}
    frame = frame.assign(sampled_tokens=_sampled(run.path, frame), **times).reset_index()
    return pd.concat(
        [pd.DataFrame({"arm": arm, "seed": seed, "method": method}, index=frame.index), frame],
        axis=1,
    ).assign(**{VERSION: version_of(run)})


def levels(sweep: Sweep, out: str | Path) -> pd.DataFrame:
    """Return the evaluations of all runs, a row for each number.

    The columns are those of :func:`~rlkd_lab.study.summary.summarise`, ``arm``, ``seed`` and
    the version of the program.
    """
    places = [(job, job.folder(Path(out))) for job in sweep.jobs()]
    tables = [(job, path, _evaluation(path)) for job, path in places]
    frames = [
        table.assign(arm=job.arm, seed=job.seed, **{VERSION: version_of(RunFolder.open(path))})
        for job, path, table in tables
        if table is not None
    ]
    columns = ["arm", "seed", "set", "difficulty", "measure", "value", "low", "high", VERSION]
    none = pd.DataFrame(columns=columns)
    return pd.concat(frames, ignore_index=True)[columns] if frames else none


def outcomes(sweep: Sweep, out: str | Path) -> pd.DataFrame:
    """Return a row for each prompt of every run that was evaluated.

    The columns are ``arm``, ``seed``, ``set``, ``prompt_id``, ``difficulty``, and how many of
    ``samples`` completions were ``right``.
    """
    columns = ["arm", "seed", "set", "prompt_id", "difficulty", "right", "samples"]
    frames = [pd.DataFrame(columns=columns)]
    for job, path in _jobs_over(sweep, out):
        newest = _newest(path, "parquet")
        if newest is None:
            continue
        frame = read_table(newest)[0]
        groups = frame[frame["mode"] == "sample"].groupby(["set", "prompt_id", "difficulty"])
        counts = groups["correct"].agg(right="sum", samples="size").reset_index()
        frames.append(counts.assign(arm=job.arm, seed=job.seed)[columns])
    found = pd.concat(frames[1:] or frames, ignore_index=True)
    numbers = {"seed": "int32", "difficulty": "int16", "right": "int16", "samples": "int16"}
    return found.astype({**dict.fromkeys(("arm", "set", "prompt_id"), "category"), **numbers})


def write_tables(sweep: Sweep, out: Path) -> None:
    """Write the tables into the sweep's folder."""
    collect(sweep, out).to_csv(out / TABLES[0], index=False)
    curves(sweep, out).to_parquet(out / TABLES[1], compression="zstd", index=False)
    levels(sweep, out).to_csv(out / TABLES[2], index=False)
    outcomes(sweep, out).to_parquet(out / OUTCOMES, compression="zstd", index=False)


def _sampled(path: Path, frame: pd.DataFrame) -> pd.Series:
    """Return the tokens sampled so far, by the student and by the teacher.

    All of the teacher's traces count from the first step that trains on them.
    """
    on_policy = on_policy_steps(frame)
    own = frame["num_tokens"].diff().fillna(frame["num_tokens"]).where(on_policy, 0.0).cumsum()
    traces = path / "traces.parquet"
    if not traces.exists():
        return own
    if "traces/tokens" in frame:  # of steps that train on both
        own = own - frame["traces/tokens"].fillna(0.0).cumsum()
    written = int((pq.read_schema(traces).metadata or {}).get(b"rlkd_tokens", b"0"))
    return own + written * (~on_policy | ("traces/tokens" in frame)).cummax()
