"""The main methods on the mid-size pair: two sweeps, their tables and figures. ``make midsize``
builds the pair first.

    python benchmarks/midsize.py                 # started again, it takes up what is missing
    python benchmarks/midsize.py --workers 4     # runs at a time on one GPU
    python benchmarks/midsize.py --only countdown

The sweeps are midsize-knights.toml and midsize-countdown.toml. Not measured yet: no GPU has run
them.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from rlkd_lab.plots import plot_arms, plot_groups, save_figure
from rlkd_lab.runs import RunFolder
from rlkd_lab.study.parts import read_part
from rlkd_lab.study.results import over
from rlkd_lab.study.study import KEPT
from rlkd_lab.study.sweep import Sweep, read_sweep
from rlkd_lab.study.watch import run_watched

ROOT = Path(__file__).parents[1]
METRICS = (
    "reward",
    "kl_teacher_rev",
    "completions/mean_length",
    "entropy",
    "eval/accuracy",
    "eval/accuracy_ood",
)


def run(name: str, sweep: Sweep, base: Path, workers: int | None = None) -> list[str]:
    """Run a sweep, copy its tables, draw its curves and its evaluation on test prompts; a
    sentence for every run that failed.
    """
    out, results, figures = (
        base / folder for folder in (f"runs/midsize/{name}", f"results/midsize/{name}", "figures")
    )
    stage, folder, failed = run_watched(sweep, out, name, workers=workers)
    if folder != out:
        return failed
    for inner in (Path(), Path("tuning")):
        for file in (out / inner / each for each in KEPT):
            if file.exists():
                (results / inner).mkdir(parents=True, exist_ok=True)
                shutil.copy(file, results / inner)
    groups: dict[str, list[RunFolder]] = {}
    for job in stage.jobs():
        if over(job.folder(out)):
            groups.setdefault(job.arm, []).append(RunFolder.open(job.folder(out)))
    every = [one for runs in groups.values() for one in runs]
    metrics = [metric for metric in METRICS if any(metric in one.metrics() for one in every)]
    save_figure(
        plot_groups(groups, metrics, title=name),
        figures / f"midsize_{name}_curves.png",
        every,
        smoothing="trailing mean, 9 steps",
    )
    save_figure(
        plot_arms(read_part(out).runs, title=name),
        figures / f"midsize_{name}.png",
        every,
        smoothing="none",
    )
    return failed


def main() -> int:
    """Both sweeps, or one; 1 where a run failed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, help="runs at a time; one a GPU by default")
    parser.add_argument("--only", choices=("knights", "countdown"))
    given = parser.parse_args()
    failed: list[str] = []
    for name in [given.only] if given.only else ["knights", "countdown"]:
        failed += run(
            name, read_sweep(ROOT / "benchmarks" / f"midsize-{name}.toml"), ROOT, given.workers
        )
    for sentence in failed:
        print(f"failed: {sentence}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
