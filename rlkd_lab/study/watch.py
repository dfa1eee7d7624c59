"""The progress of a sweep: a bar in a terminal, otherwise a line for each finished run."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rlkd_lab.runs import RunFolder
from rlkd_lab.study.results import over
from rlkd_lab.study.sweep import Job, Sweep
from rlkd_lab.study.workers import run_sweep, stages


@contextmanager
def watch(out: Path, jobs: list[Job]) -> Iterator[Callable[[list[Job], list[Job]], None]]:
    """Show a bar over the steps of all runs; yield the ``on_change`` of a sweep.

    Steps are counted in the run folders, so the rate is that of the new steps.
    """
    total = sum(job.config.steps for job in jobs)
    began, first = time.time(), _steps(out, jobs)
    said = {job.folder(out) for job in jobs if over(job.folder(out))}
    with tqdm(
        total=total,
        desc="sweep",
        unit="step",
        initial=first,
        dynamic_ncols=True,
        mininterval=1.0,
        disable=not sys.stderr.isatty(),
    ) as bar:
        bar.start_t = began

        def show(finished: list[Job], jobs: list[Job]) -> None:
            bar.set_postfix({"runs": f"{len(finished)}/{len(jobs)}"}, refresh=False)
            bar.update(_steps(out, jobs) - bar.n)
            if not sys.stderr.isatty():
                for job in finished:
                    if job.folder(out) not in said:
                        said.add(job.folder(out))
                        print(
                            f"{len(finished)}/{len(jobs)} {job.arm}, seed {job.seed}: over"
                            f" after {time.time() - began:.0f} s",
                            file=sys.stderr,
                            flush=True,
                        )

        yield show


def run_watched(
    sweep: Sweep, out: Path, title: str = "", **how: Any
) -> tuple[Sweep, Path, list[str]]:
    """Run all stages of a sweep and show their progress; stop after a stage with failures.

    Args:
        sweep: the sweep of a file.
        out: its folder.
        title: printed before each stage, with its number of trials or runs.
        how: workers, engine and address, for :func:`rlkd_lab.study.workers.run_sweep`.

    Returns:
        The last stage that was run, its folder, and a sentence for each of its failures.
    """
    for stage, folder in stages(sweep, out):
        jobs = stage.jobs()
        if title:
            print(
                f"{title}: {len(jobs)} {'runs' if folder == out else 'trials'}",
                file=sys.stderr,
                flush=True,
            )
        with watch(folder, jobs) as show:
            failed = run_sweep(stage, folder, on_change=show, **how)
        if failed:
            break
    return stage, folder, failed


def _steps(out: Path, jobs: list[Job]) -> int:
    """Count the finished steps of all runs."""
    return sum(_step(job.folder(out)) for job in jobs)


def _step(path: Path) -> int:
    try:
        return int(RunFolder(path).status()["step"])
    except (OSError, ValueError):  # not begun, or damaged: resuming the run will say so
        return 0
