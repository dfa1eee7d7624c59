"""Running a sweep: one run after the other in each of several worker processes, on this machine or
through Ray on a cluster, resumable.

The folder of a sweep holds ``sweep.json`` (the file as it was understood), ``runs/ARM/seed_0`` (run
folders, with ``eval/step_N.parquet``), the tables of :mod:`rlkd_lab.study.results`,
``sessions.jsonl`` (a line each time it was run: when, how long, where), and with trials ``tuning/``
(their sweep) and ``tuned.json``. Started again it takes up what is missing and runs nothing twice.
A run that diverged is a result: it is kept and not tried again.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from rlkd_lab.models import default_device, locate
from rlkd_lab.runs import RunFolder, alone
from rlkd_lab.study.evaluation import (
    about,
    check_splits,
    evaluate_target,
    read_record,
    settings_of,
    summarise,
    write_table,
)
from rlkd_lab.study.results import OVER, SESSIONS, collect, left_out, outcome_of, over, write_tables
from rlkd_lab.study.sweep import CHOSEN, Job, Sweep, settled
from rlkd_lab.study.targets import find_target, task_of
from rlkd_lab.training import config_of, load_or_train
from rlkd_lab.training.environment import describe_environment, peak_memory_gib
from rlkd_lab.training.fingerprint import fingerprint

Engine = Literal["local", "ray"]
OnChange = Callable[[list[Job], list[Job]], None]
"""Called with (over, all)."""


def work(job: Job, out: Path, threads: int | None = None, node: str | None = None) -> None:
    """Train or take up a run, evaluate its last checkpoint, and say that it is over, and on
    which node of a cluster.
    """
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    path, began = job.folder(out), time.time()
    why = None
    try:
        state = load_or_train(job.config, path).status()["state"]
        if state != "done":
            raise RuntimeError(
                f"the run is {state}, not done: somebody stopped it; start the sweep again to"
                " go on with it"
            )
        if job.evaluate is not None:
            _evaluate(job, path)
    except FloatingPointError as error:  # an outcome: what an unbounded ratio does
        why = str(error)
    folder = RunFolder.open(path)
    needed = {
        "seconds": time.time() - began,
        "worker_gib": peak_memory_gib(default_device()),
        "threads": torch.get_num_threads(),
    }
    folder.write_json(OVER, {"diverged": why, "node": node, **needed})


def _evaluate(job: Job, path: Path) -> None:
    assert job.evaluate is not None
    target = find_target(str(path))
    asked = task_of(job.config)
    settings = settings_of(job.config, **job.evaluate.model_dump())
    frame = evaluate_target(target.load(), asked, settings)
    assert target.table is not None
    write_table(target.table, frame, about({**target.describe(), "name": job.arm}, asked, settings))
    summarise(frame).to_csv(target.table.with_suffix(".csv"), index=False)


def _evaluated(job: Job, path: Path) -> bool:
    """Whether the evaluation that a job asks for is in its run folder, whole and with these
    settings.
    """
    if job.evaluate is None:
        return True
    table = path / "eval" / f"step_{job.config.steps:06d}.parquet"
    try:
        record, numbers = read_record(table), pd.read_csv(table.with_suffix(".csv"))
    except (OSError, ValueError):
        return False
    asked = json.loads(json.dumps(asdict(settings_of(job.config, **job.evaluate.model_dump()))))
    return {"set", "difficulty", "measure", "value"} <= set(numbers) and all(
        record[name] == value for name, value in asked.items() if name in record
    )


def stages(sweep: Sweep, out: str | Path) -> Iterator[tuple[Sweep, Path]]:
    """The sweeps to run one after the other, with their folders: the trials, where there are some,
    and then the one that counts. The settings are chosen when the second one is asked for.

    Raises:
        ValueError: bad trials, or some that are not over yet.
    """
    target = Path(out)
    if settled(sweep, target) is None:
        yield sweep.tuning(), target / "tuning"
        choose(sweep, target)
    found = settled(sweep, target)
    assert found is not None
    yield found, target


def choose(sweep: Sweep, out: Path) -> None:
    """Write for each arm its best trial: the highest mean accuracy on validation prompts; of
    equals the first, and one that diverged is last.
    """
    trials = sweep.tuning()
    missing = [job.arm for job in trials.jobs() if not over(job.folder(out / "tuning"))]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(trials.arms)} trials are not over, {missing[0]} for one:"
            " start the sweep again"
        )
    runs = collect(trials, out / "tuning").set_index("arm")
    found = {}
    for arm in sweep.arms:
        rows = runs.loc[[f"{arm.name}.{number}" for number in range(1, len(arm.trials) + 1)]]
        # what somebody moved or what broke down has no score
        scores = (
            rows["id avg"].where(~left_out(rows)).reset_index(drop=True)
            if "id avg" in rows
            else None
        )
        if scores is None or scores.isna().all():
            raise ValueError(f"every trial of arm {arm.name} diverged: give it others")
        found[arm.name] = {
            "best": scores.tolist().index(scores.max()) + 1,
            "trials": [
                {"settings": trial, "accuracy": None if score != score else score}
                for trial, score in zip(arm.trials, scores, strict=True)
            ],
        }
    record = {"tuning": json.loads(trials.model_dump_json()), "arms": found}
    (out / f"{CHOSEN}.tmp").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (out / f"{CHOSEN}.tmp").rename(out / CHOSEN)


def run_sweep(
    sweep: Sweep,
    out: str | Path,
    *,
    workers: int | None = None,
    on_change: OnChange | None = None,
    engine: Engine = "local",
    address: str | None = None,
) -> list[str]:
    """Run what is missing, ``workers`` at a time.

    Args:
        sweep: from :func:`rlkd_lab.study.sweep.read_sweep`; one with trials goes through
            :func:`stages`.
        out: the sweep's folder.
        workers: runs at a time; by default one a core on a CPU, each with one thread, and one a
            GPU.
        on_change: called twice a second.
        engine: processes of this machine, or tasks of a Ray cluster whose nodes share the file
            system that ``out`` is on.
        address: of the cluster's head, ``host:port``; by default the one that runs on this machine,
            or a new one of this machine alone.

    Returns:
        a sentence for every run that failed; those that diverged are no failures.

    Raises:
        ValueError: a bad sweep, a run in ``out`` with other settings, another process that runs it,
            or no cluster at ``address``; before anything is trained.
        FileNotFoundError: a model that is not there.
        ModuleNotFoundError: the engine is ray, and Ray is not installed.
    """
    target, jobs = Path(out), sweep.jobs()
    for job in jobs:
        path = job.folder(target)
        if (path / "config.json").exists() and fingerprint(
            config_of(RunFolder.open(path))
        ) != fingerprint(job.config):
            raise ValueError(
                f"{path} holds a run with other settings than this sweep's: choose another"
                " --out, or delete that run"
            )
    if engine == "local":
        for name in sorted(
            {
                name
                for job in jobs
                if not over(job.folder(target))
                for name in (job.config.student, job.config.teacher)
                if name
            }
        ):
            locate(name, weights=False)
    for config, asked in {
        job.questions: (job.config, job.evaluate) for job in jobs if job.evaluate is not None
    }.values():
        check_splits(task_of(config), settings_of(config, **asked.model_dump()))
    target.mkdir(parents=True, exist_ok=True)
    with alone(target, "run"):
        (target / "sweep.json").write_text(sweep.model_dump_json(indent=2) + "\n", encoding="utf-8")
        for job in jobs:
            path = job.folder(target)
            if (
                over(path)
                and outcome_of(path)["diverged"] is None
                and (
                    RunFolder.open(path).last_step() < job.config.steps or not _evaluated(job, path)
                )
            ):
                # it has lost rows since, or other questions are asked: the rest is computed
                (path / OVER).unlink()
        left = [job for job in jobs if not over(job.folder(target))]
        began = time.time()

        def tick() -> None:
            if on_change is not None:
                on_change(_over(jobs, target), jobs)

        try:
            failed = (
                _on_ray(left, target, workers, address, tick)
                if engine == "ray"
                else _in_processes(left, target, workers, tick)
            )
        finally:
            ended = len([job for job in left if over(job.folder(target))])
            if left:
                took = {
                    "began": began,
                    "seconds": time.time() - began,
                    "engine": engine,
                    "workers": workers or workers_here(),
                    "runs": ended,
                }
                session = took | describe_environment(default_device())
                with (target / SESSIONS).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(session) + "\n")
        write_tables(sweep, target)
    return failed


def _over(jobs: list[Job], out: Path) -> list[Job]:
    return [job for job in jobs if over(job.folder(out))]


def workers_here() -> int:
    """Runs at a time on this machine: one a core on a CPU, each with one thread, and one on a
    GPU.
    """
    return os.cpu_count() or 1 if default_device().type == "cpu" else 1


def _in_processes(
    jobs: list[Job], out: Path, workers: int | None, tick: Callable[[], object]
) -> list[str]:
    """Every job in one of some processes.

    Each has a pool of its own: one that is killed, for memory say, takes only its own run with it.
    """
    count, threads = (
        min(workers or workers_here(), len(jobs)),
        1 if default_device().type == "cpu" else None,
    )
    pools = [_pool() for _ in range(count)]
    left, failed = list(jobs), []
    running: dict[Future[None], tuple[Job, int]] = {}
    try:
        while left or running:
            for slot in set(range(count)) - {slot for _, slot in running.values()}:
                if left:
                    job = left.pop(0)
                    running[pools[slot].submit(work, job, out, threads)] = (job, slot)
            done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in done:
                (job, slot), error = running.pop(future), future.exception()
                if isinstance(error, BrokenProcessPool):
                    pools[slot].shutdown(wait=False)
                    pools[slot] = _pool()
                    failed.append(
                        f"{job.folder(out)}: its worker was killed, perhaps for memory: try"
                        " fewer workers"
                    )
                elif error is not None:
                    failed.append(f"{job.folder(out)}: {type(error).__name__}: {error}")
            tick()
    except BaseException:
        for pool in pools:
            for process in list((pool._processes or {}).values()):
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
        raise
    for pool in pools:
        pool.shutdown()
    return failed


def _on_ray(
    jobs: list[Job], out: Path, workers: int | None, address: str | None, tick: Callable[[], object]
) -> list[str]:
    """Every job as a task of a Ray cluster: one a core where no node has a GPU, else one a GPU."""
    try:
        ray: Any = importlib.import_module("ray")
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "the engine ray needs Ray: pip install 'rlkd_lab[ray]', on every node of the cluster"
        ) from None
    if address not in (None, "auto", "local"):  # Ray itself would try for minutes
        host, _, port = str(address).rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, ValueError) as error:
            raise ValueError(f"no Ray cluster at {address}: {error}") from None
    ray.init(
        address=address,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        ignore_reinit_error=True,
    )
    try:
        gpus = ray.cluster_resources().get("GPU", 0.0)

        def on_node(job: Job) -> None:
            work(job, out.absolute(), None if gpus else 1, ray.get_runtime_context().get_node_id())

        task = ray.remote(max_retries=0, num_cpus=1, num_gpus=1 if gpus else 0)(on_node)
        limit = workers or int(gpus or ray.cluster_resources()["CPU"])
        left, failed = list(jobs), []
        running: dict[Any, Job] = {}
        while left or running:
            while left and len(running) < limit:
                job = left.pop(0)
                running[task.remote(job)] = job
            done, _ = ray.wait(list(running), timeout=0.5)
            for reference in done:
                job = running.pop(reference)
                try:
                    ray.get(reference)
                except (
                    Exception
                ) as error:  # whatever the run raised, in Ray's wrapping, or the loss of a node
                    cause = getattr(error, "cause", None) or error
                    failed.append(
                        f"{job.folder(out)}: {type(cause).__name__}:"
                        f" {str(cause).strip().splitlines()[-1]}"
                    )
                else:
                    if not over(job.folder(out)):
                        failed.append(
                            f"{job.folder(out)}: done on another node, and not here: --out"
                            " must lie on a file system that all nodes share"
                        )
            tick()
        return failed
    finally:
        ray.shutdown()


def _pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn"), initializer=_end_with_parent
    )


def _end_with_parent() -> None:
    """A sweep that is killed takes its workers with it: one that went on alone would train a
    run that the next start takes up.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait_for_it() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait_for_it, daemon=True).start()
