"""Sweeps: arms × seeds, trained and evaluated by several workers, and resumable.

A sweep is a TOML file:

    preset = "tiny"                 # as `rlkd train --preset`
    steps = 60
    seeds = 5                       # 0 … 4, or a list
    settings = {interference_every = 5}    # of every arm: what `rlkd train --set` takes

    [evaluate]                      # each run's last checkpoint, on test prompts; left out: not evaluated
    prompts = 256
    samples = 8

    [[arms]]
    name = "kdrl"
    method = "kdrl"
    settings = {teacher = "teacher-concise"}
    grid = {kd_coef = [0.05, 0.1, 0.2]}    # an arm for every combination: kdrl,kd_coef=0.05 …

Its folder holds ``sweep.json`` (the file as it was understood), ``runs/ARM/seed_0`` (run folders, with ``eval/step_N.parquet``), and ``runs.csv``. Started
again it takes up what is missing and runs nothing twice. A run that diverged is a result: it is kept and not tried again.
"""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import os
import re
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from scipy.stats import t

from rlkd_lab.models import default_device
from rlkd_lab.runs import RunFolder
from rlkd_lab.study.evaluation import about, evaluate_target, settings_of, summarise, write_table
from rlkd_lab.study.targets import find_target, task_of
from rlkd_lab.training import RunConfig, config_of, load_or_train, make_config
from rlkd_lab.training.config import in_words, validated
from rlkd_lab.training.environment import alive, peak_memory_gib
from rlkd_lab.training.loop import fingerprint

Setting = str | int | float | bool | None
OVER = "outcome.json"
"""In a run folder: the run and its evaluation are over; whether it diverged, and what the worker needed."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Evaluation(_Strict):
    """How each run's student is evaluated, see :class:`rlkd_lab.study.Settings`."""

    prompts: Annotated[int, Field(ge=1)] = 256
    samples: Annotated[int, Field(ge=1)] = 8
    split: Literal["test", "validation"] = "test"
    temperature: Annotated[float, Field(gt=0)] = 1.0
    greedy: bool = False
    ood: bool = True


class Arm(_Strict):
    """One line of the comparison, or with a grid several."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$")]
    method: str
    settings: dict[str, Setting] = {}
    grid: dict[str, list[Setting]] = {}


class Sweep(_Strict):
    """What stands in a sweep file."""

    preset: str = "tiny"
    steps: Annotated[int, Field(ge=1)] = 60
    seeds: int | list[int] = 5
    settings: dict[str, Setting] = {}
    evaluate: Evaluation | None = None
    arms: Annotated[list[Arm], Field(min_length=1)]

    def jobs(self) -> list[Job]:
        """Every run of the sweep, seed by seed, so that a sweep that is stopped early has some seeds of every arm.

        Raises:
            ValueError: an unknown knob, setting or method, a value out of range, two arms of one name or with the same settings, no seed or a doubled one.
        """
        seeds = list(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds={self.seeds}: a sweep needs seeds, each once")
        arms: dict[str, RunConfig] = {}
        same: dict[str, str] = {}
        for arm in self.arms:
            for name, settings in _combinations(arm):
                if name in arms:
                    raise ValueError(f"two arms are called {name}: their runs would lie in one folder")
                try:
                    texts = {key: _text(value) for key, value in (self.settings | settings).items()}
                    arms[name] = make_config(arm.method, self.preset, texts, steps=self.steps)
                except ValueError as error:
                    raise ValueError(f"arm {name}: {error}") from None
                other = same.setdefault(fingerprint(arms[name]), name)
                if other != name:
                    raise ValueError(f"arms {other} and {name} have the same settings: they would be one run, counted twice")
        try:
            return [Job(name, seed, validated({**config.model_dump(), "seed": seed}), self.evaluate) for seed in seeds for name, config in arms.items()]
        except ValueError as error:
            raise ValueError(f"seeds: {error}") from None


@dataclass(frozen=True)
class Job:
    """One run with its evaluation."""

    arm: str
    seed: int
    config: RunConfig
    evaluate: Evaluation | None

    def folder(self, out: Path) -> Path:
        """Where it lies in the sweep's folder."""
        return out / "runs" / re.sub(r"[^\w .,=+-]", "_", self.arm) / f"seed_{self.seed}"


def read_sweep(path: str | Path) -> Sweep:
    """A sweep file.

    Raises:
        FileNotFoundError; ValueError: no TOML, or a field that a sweep does not have, in one sentence.
    """
    try:
        return Sweep(**tomllib.loads(Path(path).read_text()))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is no TOML file: {error}") from None
    except ValidationError as error:
        raise ValueError(f"{path}: {in_words(error)}") from None


def _combinations(arm: Arm) -> Iterator[tuple[str, dict[str, Setting]]]:
    for values in itertools.product(*arm.grid.values()):
        chosen = dict(zip(arm.grid, values, strict=True))
        yield ",".join([arm.name, *(f"{key}={_text(value)}" for key, value in chosen.items())]), arm.settings | chosen


def _text(value: Setting) -> str:
    return "off" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


# --- one run ----------------------------------------------------------------------------------------------------------


def work(job: Job, out: Path, threads: int | None = None) -> None:
    """Train or take up a run, evaluate its last checkpoint, and say that it is over."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    path, began = job.folder(out), time.time()
    why = None
    try:
        state = load_or_train(job.config, path).status()["state"]
        if state != "done":
            raise RuntimeError(f"the run is {state}, not done: somebody stopped it; start the sweep again to go on with it")
        if job.evaluate is not None:
            _evaluate(job, path)
    except FloatingPointError as error:  # an outcome: what an unbounded ratio does
        why = str(error)
    folder = RunFolder.open(path)
    needed = {"seconds": time.time() - began, "worker_gib": peak_memory_gib(default_device()), "threads": torch.get_num_threads()}
    folder.write_json(OVER, {"diverged": why, **needed})


def _evaluate(job: Job, path: Path) -> None:
    assert job.evaluate is not None
    target = find_target(str(path))
    asked = task_of(job.config)
    settings = settings_of(job.config, **job.evaluate.model_dump())
    frame = evaluate_target(target.load(), asked, settings)
    write_table(path / "eval" / f"step_{target.step:06d}.parquet", frame, about({**target.describe(), "name": job.arm}, asked, settings))
    summarise(frame).to_csv(path / "eval" / f"step_{target.step:06d}.csv", index=False)


def over(path: Path) -> bool:
    """Whether nothing is left to do in a run folder of a sweep."""
    return (path / OVER).exists()


# --- all of them ------------------------------------------------------------------------------------------------------


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """One process a sweep."""
    lock = out / "lock.json"
    if lock.exists():
        held = json.loads(lock.read_text())
        if held["pid"] != os.getpid() and alive(held["pid"], held["since"]):
            raise ValueError(f"process {held['pid']} is running this sweep: two of them would run everything twice")
    lock.write_text(json.dumps({"pid": os.getpid(), "since": time.time()}))
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def run_sweep(
    sweep: Sweep,
    out: str | Path,
    *,
    workers: int | None = None,
    on_change: Callable[[list[Job], list[Job]], None] | None = None,
) -> list[str]:
    """Run what is missing, ``workers`` at a time.

    Args:
        sweep: from :func:`read_sweep`.
        out: the sweep's folder.
        workers: processes; one a core on a CPU, each with one thread, and one on a GPU by default.
        on_change: called with (over, all) twice a second.

    Returns:
        a sentence for every run that failed; those that diverged are no failures.

    Raises:
        ValueError: a bad sweep, a run in ``out`` with other settings, or another process that runs it; before anything is trained.
    """
    target, jobs = Path(out), sweep.jobs()
    for job in jobs:
        path = job.folder(target)
        if (path / "config.json").exists() and fingerprint(config_of(RunFolder.open(path))) != fingerprint(job.config):
            raise ValueError(f"{path} holds a run with other settings than this sweep's: choose another --out, or delete that run")
    target.mkdir(parents=True, exist_ok=True)
    cpu = default_device().type == "cpu"
    count = workers or (os.cpu_count() or 1 if cpu else 1)
    failed = []
    with _alone(target):
        (target / "sweep.json").write_text(sweep.model_dump_json(indent=2) + "\n")
        left = [job for job in jobs if not over(job.folder(target))]
        with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as pool:
            waiting: dict[Future[None], Job] = {pool.submit(work, job, target, 1 if cpu else None): job for job in left}
            try:
                while waiting:
                    done, _ = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                    for future in done:
                        job, error = waiting.pop(future), future.exception()
                        if error is not None:
                            failed.append(f"{job.folder(target)}: {type(error).__name__}: {error}")
                    if on_change is not None:
                        on_change([job for job in jobs if over(job.folder(target))], jobs)
            except BaseException:
                for process in list(pool._processes.values()):
                    process.terminate()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        collect(sweep, target).to_csv(target / "runs.csv", index=False)
    return failed


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


def collect(sweep: Sweep, out: str | Path, window: int = 10) -> pd.DataFrame:
    """A row a run that is over: arm, seed, method, settings of the grid, whether it diverged, means of the last ``window`` steps of the curves' metrics,
    measures of the evaluation (``id avg``, ``ood pass@8``, …), tokens and seconds."""
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
        row |= {name: frame[name].dropna().tail(window).mean() for name in ("reward", "kl_teacher_rev", "completions/mean_length", "entropy") if name in frame}
        row |= {"tokens": frame["num_tokens"].iloc[-1], "seconds": frame["step_time"].sum(), "worker_gib": outcome["worker_gib"]} if len(frame) else {}
        tables = sorted((path / "eval").glob("step_*.csv"))
        if tables:
            table = pd.read_csv(tables[-1], dtype={"difficulty": str})
            whole = table[table["difficulty"] == "all"]
            row |= {f"{one['set']} {one['measure']}": one["value"] for one in whole.to_dict("records")}
        rows.append(row)
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=["arm", "seed", "method", "diverged", "touched", "steps"])
