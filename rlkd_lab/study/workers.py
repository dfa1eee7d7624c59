"""Running a sweep: what one worker does, and which runs are left to do.

The folder of a sweep holds:

    sweep.json        the sweep file as it was understood
    runs/ARM/seed_0   run folders, with eval/step_N.parquet
    runs.csv, …       the tables of :mod:`rlkd_lab.study.results`
    sessions.jsonl    a line for each time the sweep was run: when, how long, where
    tuning/, finals/  the sweeps of the trials, where there are trials
    tuned.json        the settings that the trials chose

A sweep that is started again computes what is missing and runs nothing twice.
A run that diverged is a result: it is kept and not tried again.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import pandas as pd

from rlkd_lab.models import default_device, locate
from rlkd_lab.runs import RunFolder
from rlkd_lab.runs.lock import alone
from rlkd_lab.study.eval_table import about, read_record, write_table
from rlkd_lab.study.evaluation import Settings, check_splits, evaluate_target, settings_of
from rlkd_lab.study.parts import SESSIONS, left_out
from rlkd_lab.study.pools import in_processes, on_ray, workers_here
from rlkd_lab.study.results import OVER, collect, outcome_of, over, write_tables
from rlkd_lab.study.summary import summarise
from rlkd_lab.study.sweep import CHOSEN, Arm, Job, Sweep, settled
from rlkd_lab.study.targets import data_changed, find_target, task_of
from rlkd_lab.training import config_of, load_or_train
from rlkd_lab.training.environment import describe_environment, peak_memory_gib
from rlkd_lab.training.fingerprint import fingerprint
from rlkd_lab.training.teacher_settings import teacher_models

Engine = Literal["local", "ray"]
OnChange = Callable[[list[Job], list[Job]], None]
"""Called with the runs that are over, and all runs."""


def work(job: Job, out: Path, threads: int | None = None, node: str | None = None) -> None:
    """Train or resume a run, evaluate its checkpoints, and write that it is over.

    ``node`` is the node of the cluster.
    """
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    path, began, why = job.folder(out), time.time(), None
    try:
        state = load_or_train(job.config, path).status()["state"]
        if state != "done":
            raise RuntimeError(
                f"the run is {state}, not done: somebody stopped it; start the sweep again to"
                " go on with it"
            )
        for checkpoint in _checkpoints(job):
            _evaluate(job, path, checkpoint)
    except FloatingPointError as error:  # an outcome: what an unbounded ratio does
        why = str(error)
    outcome = {
        "diverged": why,
        "node": node,
        "seconds": time.time() - began,
        "worker_gib": peak_memory_gib(default_device()),
        "threads": torch.get_num_threads(),
    }
    RunFolder.open(path).write_json(OVER, outcome)


def _settings(job: Job) -> Settings:
    assert job.evaluate is not None
    return settings_of(job.config, **job.evaluate.asked)


def _checkpoints(job: Job) -> list[str]:
    """Return the checkpoints that are evaluated."""
    if job.evaluate is None:
        return []
    return ["last", "best"] if job.evaluate.best else ["last"]


def _evaluate(job: Job, path: Path, checkpoint: str) -> None:
    if _evaluated(job, path, checkpoint):  # the best one may be the last one
        return
    target, asked = find_target(str(path), checkpoint=checkpoint), task_of(job.config)
    settings = _settings(job)
    frame = evaluate_target(target.load(), asked, settings)
    assert target.table is not None
    write_table(target.table, frame, about({**target.describe(), "name": job.arm}, asked, settings))
    summarise(frame).to_csv(target.table.with_suffix(".csv"), index=False)


def _evaluated(job: Job, path: Path, checkpoint: str = "last") -> bool:
    """Return whether a run folder has the evaluation that its job asks for, whole."""
    table = path / "eval" / f"step_{job.config.steps:06d}.parquet"
    try:
        if checkpoint == "best":
            table = find_target(str(path), checkpoint="best").table or table
        record, numbers = read_record(table), pd.read_csv(table.with_suffix(".csv"))
    except (OSError, ValueError):
        return False
    asked = json.loads(json.dumps(asdict(_settings(job))))
    return {"set", "difficulty", "measure", "value"} <= set(numbers) and all(
        record[name] == value for name, value in asked.items() if name in record
    )


def stages(sweep: Sweep, out: str | Path) -> Iterator[tuple[Sweep, Path]]:
    """Return the sweeps to run one after the other, with their folders.

    The trials come first, where there are trials; the sweep that counts comes last.
    Its settings are chosen when it is asked for.

    Raises:
        ValueError: the trials are bad, or not over yet.
    """
    target = Path(out)
    if settled(sweep, target) is None:
        yield sweep.first_round(), target / "tuning"
        if sweep.tune is not None and sweep.tune.finalists:
            yield finals_of(sweep, target), target / "finals"
        choose(sweep, target)
    found = settled(sweep, target)
    assert found is not None
    yield found, target


def finals_of(sweep: Sweep, out: Path) -> Sweep:
    """Return the second round: of each arm the trials that were best with the first seed."""
    assert sweep.tune is not None
    means = _means(sweep.first_round(), out / "tuning")
    names: set[str] = set()
    for arm in sweep.arms:
        known = [name for name in _names(sweep, arm) if means[name] == means[name]]
        names |= set(sorted(known, key=lambda name: -means[name])[: sweep.tune.finalists])
    return sweep.finals(names)


def choose(sweep: Sweep, out: Path) -> None:
    """Write for each arm its best trial, the one with the highest mean validation accuracy.

    Of equals the first is taken. A trial has no accuracy if one of its seeds diverged or was moved
    by hand. Where there are finalists, only they can be chosen.
    """
    assert sweep.tune is not None
    first = _means(sweep.first_round(), out / "tuning")
    counted, seeds = first, dict.fromkeys(first, len(sweep.first_round().all_seeds))
    if sweep.tune.finalists:
        rest = len(sweep.tune.seeds) - 1
        second = _means(finals_of(sweep, out), out / "finals")
        counted = {name: (first[name] + rest * mean) / (1 + rest) for name, mean in second.items()}
        seeds |= dict.fromkeys(second, 1 + rest)
    found = {}
    for arm in sweep.arms:
        names = _names(sweep, arm)
        known = [name for name in names if counted.get(name, math.nan) == counted.get(name)]
        if not known:
            raise ValueError(f"every trial of arm {arm.name} diverged: give it others")
        scores = [counted.get(name, first[name]) for name in names]
        tried = [
            {
                "settings": trial,
                "accuracy": None if score != score else score,
                "seeds": seeds[name],
            }
            for name, trial, score in zip(names, sweep.trials_of(arm), scores, strict=True)
        ]
        best = names.index(max(known, key=lambda name: counted[name])) + 1
        found[arm.name] = {"best": best, "trials": tried}
    record = {
        "tuning": json.loads(sweep.tuning().model_dump_json()),
        "finalists": sweep.tune.finalists,
        "arms": found,
    }
    (out / f"{CHOSEN}.tmp").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (out / f"{CHOSEN}.tmp").rename(out / CHOSEN)


def _names(sweep: Sweep, arm: Arm) -> list[str]:
    """Return the names of an arm's trials."""
    return [f"{arm.name}.{number}" for number in range(1, len(sweep.trials_of(arm)) + 1)]


def _means(trials: Sweep, out: Path) -> dict[str, float]:
    """Return by trial its mean validation accuracy; NaN where a seed diverged or was moved.

    Raises:
        ValueError: a trial is not over.
    """
    missing = [job.arm for job in trials.jobs() if not over(job.folder(out))]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(trials.jobs())} trials are not over, {missing[0]} for one:"
            " start the sweep again"
        )
    runs = collect(trials, out).set_index("arm")
    reached = runs["id avg"] if "id avg" in runs else pd.Series(math.nan, index=runs.index)
    by_trial = reached.where(~left_out(runs)).groupby(level="arm")
    return {str(trial): seeds.mean(skipna=False) for trial, seeds in by_trial}


def run_sweep(
    sweep: Sweep,
    out: str | Path,
    *,
    workers: int | None = None,
    on_change: OnChange | None = None,
    engine: Engine = "local",
    address: str | None = None,
) -> list[str]:
    """Run what is missing, ``workers`` runs at a time.

    Args:
        sweep: from :func:`rlkd_lab.study.sweep.read_sweep`. :func:`stages` takes apart a sweep
            with trials.
        out: the sweep's folder.
        workers: runs at a time. On a CPU the default is one for each core, each with one thread;
            otherwise one for each GPU.
        on_change: called twice a second.
        engine: processes of this machine, or tasks of a Ray cluster. The nodes of the cluster
            share the file system of ``out``.
        address: ``host:port`` of the cluster's head. The default is a cluster on this machine,
            which is started if there is none.

    Returns:
        A sentence for every run that failed; a run that diverged has not failed.

    Raises:
        ValueError: before anything is trained: a bad sweep, a run in ``out`` with other settings,
            another process that runs the sweep, or no cluster at ``address``.
        FileNotFoundError: a model is missing.
        ModuleNotFoundError: the engine is ray, and Ray is not installed.
    """
    target, jobs = Path(out), sweep.jobs()
    _check(jobs, target, engine)
    target.mkdir(parents=True, exist_ok=True)
    with alone(target, "run"):
        (target / "sweep.json").write_text(sweep.model_dump_json(indent=2) + "\n", encoding="utf-8")
        for job in jobs:
            _reopen(job, job.folder(target))
        left = [job for job in jobs if not over(job.folder(target))]

        def tick() -> None:
            if on_change is not None:
                on_change([job for job in jobs if over(job.folder(target))], jobs)

        with _session(left, target, engine, workers or workers_here()):
            if engine == "ray":
                failed = on_ray(work, left, target, workers, address, tick)
            else:
                failed = in_processes(work, left, target, workers, tick)
        write_tables(sweep, target)
    return failed


def _check(jobs: list[Job], out: Path, engine: Engine) -> None:
    """Refuse other runs in the folder, models that are missing, and splits that overlap."""
    for job in jobs:
        path = job.folder(out)
        if (path / "config.json").exists() and fingerprint(
            config_of(RunFolder.open(path))
        ) != fingerprint(job.config):
            raise ValueError(
                f"{path} holds a run with other settings than this sweep's: choose another"
                " --out, or delete that run"
            )
    if engine == "local":
        configs = [job.config for job in jobs if not over(job.folder(out))]
        names = {name for one in configs for name in (one.student, *teacher_models(one))}
        for name in sorted(names):
            locate(name, weights=False)
    for job in {job.questions: job for job in jobs if job.evaluate is not None}.values():
        check_splits(task_of(job.config), _settings(job))
    _refuse_changed_data([job for job in jobs if over(job.folder(out))], out)


def _refuse_changed_data(done: list[Job], out: Path) -> None:
    """Refuse a sweep whose other runs would be trained on other rows than those that are over."""
    tasks = {job.questions: task_of(job.config) for job in {j.questions: j for j in done}.values()}
    for job in done:
        path = job.folder(out)
        if changed := data_changed(path, job.config, tasks[job.questions]):
            raise ValueError(
                f"{path} was trained on other data of {job.config.task} than there is now:"
                f" {changed}. Put it back, choose another --out, or delete that run"
            )


def _reopen(job: Job, path: Path) -> None:
    """Mark a run as not over if it has lost rows, or if the sweep asks other questions now."""
    if over(path) and outcome_of(path)["diverged"] is None:
        lost = RunFolder.open(path).last_step() < job.config.steps
        kept = RunFolder.open(path).checkpoints()  # somebody may have removed them since
        asked = [one for one in _checkpoints(job) if one == "last" or kept]
        if lost or not all(_evaluated(job, path, one) for one in asked):
            (path / OVER).unlink()


@contextmanager
def _session(left: list[Job], out: Path, engine: Engine, workers: int) -> Iterator[None]:
    """Append a line to the sweep's sessions, however the session ends."""
    began = time.time()
    try:
        yield
    finally:
        if left:
            session = {
                "began": began,
                "seconds": time.time() - began,
                "engine": engine,
                "workers": workers,
                "runs": len([job for job in left if over(job.folder(out))]),
                **describe_environment(default_device()),
            }
            with (out / SESSIONS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(session) + "\n")
