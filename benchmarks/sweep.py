"""What a sweep makes of the cores, and what the study cost.

    python benchmarks/sweep.py   # twelve minutes on an idle machine; writes results/sweep.json

- Workers: a sweep of four runs (KDRL, 24 steps, evaluated) with one worker and with one a core,
  alternating; the ratio of neighbouring wall times, its median and range. Starting Python and
  loading libraries and models is in them.
- Study: from the tables in results/embedded: worker hours by part, seconds of a training step by
  method in the core (the teacher's share included), peak memory of a worker.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import pandas as pd

from rlkd_lab.models import default_device
from rlkd_lab.study.parts import by_arm
from rlkd_lab.study.pools import workers_here
from rlkd_lab.study.study import PARTS, read_study
from rlkd_lab.study.sweep import Sweep
from rlkd_lab.study.workers import run_sweep
from rlkd_lab.training.environment import describe_environment

ROOT = Path(__file__).parents[1]
PAIRS = 3


def wall(workers: int) -> float:
    """Seconds of the sweep with so many workers."""
    sweep = Sweep(
        steps=24,
        seeds=4,
        settings={"eval_every": 0, "samples_every": 0, "kl_every": 5},
        evaluate={"prompts": 64, "samples": 4},  # type: ignore[arg-type]
        arms=[{"name": "kdrl", "method": "kdrl"}],  # type: ignore[list-item]
    )
    began = time.perf_counter()
    failed = run_sweep(sweep, tempfile.mkdtemp(), workers=workers)
    assert not failed, failed
    return time.perf_counter() - began


def workers() -> dict[str, object]:
    """One worker against one a core."""
    many = workers_here()
    pairs = []
    for number in range(PAIRS):
        order = (1, many) if number % 2 == 0 else (many, 1)
        took = {count: wall(count) for count in order}
        pairs.append((took[1], took[many]))
        print(
            f"one worker {took[1]:.0f} s, {many} workers {took[many]:.0f} s:"
            f" {took[1] / took[many]:.2f}×",
            flush=True,
        )
    ratios = [one / all_ for one, all_ in pairs]
    return {
        "workers": many,
        "seconds": pairs,
        "ratio": median(ratios),
        "range": [min(ratios), max(ratios)],
    }


def cost() -> dict[str, object]:
    """Of the committed study."""
    folder = ROOT / "results" / "embedded"
    study = read_study(folder)
    hours, runs = {}, {}
    for name in study:
        tables = [
            pd.read_csv(path)
            for path in (folder / name / "runs.csv", folder / name / "tuning" / "runs.csv")
            if path.exists()
        ]
        hours[name], runs[name] = (
            sum(float(table["worker_seconds"].sum()) for table in tables) / 3600,
            sum(len(table) for table in tables),
        )
    core = study["core"].runs.assign(step=lambda table: table["train_seconds"] / table["steps"])
    means = by_arm(core, ["step", "sampled_tokens"]).set_index("arm")
    return {
        "worker_hours": hours,
        "runs": runs,
        "parts": {name: PARTS[name] for name in study},
        "seconds_of_a_step": means["step"].to_dict(),
        "tokens_sampled": means["sampled_tokens"].to_dict(),
        "worker_gib": max(float(part.runs["worker_gib"].max()) for part in study.values()),
    }


if __name__ == "__main__":
    target = ROOT / "benchmarks" / "results" / "sweep.json"
    result = json.loads(target.read_text(encoding="utf-8")) if target.exists() else {}
    result["study"] = cost()
    if "--study" not in sys.argv:
        result |= {"workers": workers(), "environment": describe_environment(default_device())}
    target.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))
