"""The progress of a sweep in a terminal: runs, steps, rate and time left; a line a finished run where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from rlkd_lab.runs import RunFolder
from rlkd_lab.study.results import over
from rlkd_lab.study.sweep import Job


@contextmanager
def watch(out: Path, jobs: list[Job]) -> Iterator[Callable[[list[Job], list[Job]], None]]:
    """A bar over the steps of all runs; what it yields is the ``on_change`` of a sweep.

    Steps are counted in the run folders, so steps of an earlier start count as done and the rate is that of the new ones.
    """
    total = sum(job.config.steps for job in jobs)
    began, first, said = time.time(), _steps(out, jobs), {job.folder(out) for job in jobs if over(job.folder(out))}
    with tqdm(total=total, desc="sweep", unit="step", initial=first, dynamic_ncols=True, mininterval=1.0, disable=not sys.stderr.isatty()) as bar:
        bar.start_t = began

        def show(finished: list[Job], jobs: list[Job]) -> None:
            bar.set_postfix({"runs": f"{len(finished)}/{len(jobs)}"}, refresh=False)
            bar.update(_steps(out, jobs) - bar.n)
            if not sys.stderr.isatty():
                for job in finished:
                    if job.folder(out) not in said:
                        said.add(job.folder(out))
                        print(f"{len(finished)}/{len(jobs)} {job.arm}, seed {job.seed}: over after {time.time() - began:.0f} s", file=sys.stderr, flush=True)

        yield show


def _steps(out: Path, jobs: list[Job]) -> int:
    """Finished steps of all runs."""
    return sum(_step(job.folder(out)) for job in jobs)


def _step(path: Path) -> int:
    try:
        return int(RunFolder(path).status()["step"])
    except (OSError, ValueError):  # not begun, or damaged: whoever takes the run up says so
        return 0
