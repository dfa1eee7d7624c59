"""The runs that the notebooks load instead of training: each is trained if it is not there, and kept without its checkpoints.

    python notebooks/record.py            # hours on two cores; can be stopped and started again
    python notebooks/record.py kdrl-k3    # some of them, by the beginning of their names
    python notebooks/record.py figure     # figures/four_methods.png from what is there
    python notebooks/record.py smollm2    # the runs, tables and figure of runs/smollm2/study (benchmarks/smollm2.toml)
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pandas as pd

from rlkd_lab.lab.course.common_bugs import add_common_bugs
from rlkd_lab.objectives import METHODS
from rlkd_lab.plots import plot_groups, save_figure
from rlkd_lab.progress import progress
from rlkd_lab.runs import RunFolder
from rlkd_lab.study import read_table, summarise
from rlkd_lab.training import load_or_train, make_config

HERE = Path(__file__).parent
KEPT, WORK = HERE / "recorded", HERE.parent / "runs" / "recorded"
STEPS = 60

MAIN = {name: (name, {}) for name in ("opd", "grpo", "kdrl", "trrd")}
MAIN["grpo"] = ("grpo", {"aggregation": "token"})  # as the three others average by default
OTHERS = {
    "opd-concise": ("opd", {"teacher": "teacher-concise"}),
    "kdrl-k3": ("kdrl", {"estimator": "k3"}),
    "kdrl-exact": ("kdrl", {"estimator": "exact"}),
    "kdrl_annealed": ("kdrl_annealed", {}),
    "kdrl_masked": ("kdrl_masked", {}),
    "trrd-0.25": ("trrd", {"trrd_alpha": "0.25"}),
    "trrd-0.75": ("trrd", {"trrd_alpha": "0.75"}),
    "kdrl-k1": ("kdrl_k1", {}),
    "kdrl-flipped": ("kdrl_flipped", {}),
    "trrd-unbounded": ("trrd", {"trrd_gap_bound": "off", "ratio_cap": "off"}),
    "sft": ("sft", {}),
    "kd_forward": ("kd_forward", {}),
    "gkd": ("gkd", {}),
}
SMOLLM2 = HERE.parent / "runs" / "smollm2" / "study"
TWO_SEEDS = {
    "opd-self": ("opd", {"teacher": "self", "teacher_prompt": "{prompt}{steps}!"}),
    "opsa-slow": ("opsa", {"learning_rate": "1e-4"}),
}
RUNS = [(name, seed) for name in MAIN for seed in range(5)] + [(name, seed) for seed in range(3) for name in OTHERS]
RUNS += [(name, seed) for seed in range(2) for name in TWO_SEEDS]
"""The four methods of the comparison with five seeds, the arms of notebook 09 with two, the rest with three; nothing was tuned."""


def record(name: str, seed: int) -> None:
    """Train one run if need be, and keep what a notebook reads of it."""
    kept, work = KEPT / f"{name}-{seed}", WORK / f"{name}-{seed}"
    if kept.exists():
        return
    method, settings = (MAIN | OTHERS | TWO_SEEDS)[name]
    config = make_config(method, settings=settings, steps=STEPS, seed=seed, interference_every=5 if name in (*MAIN, "kdrl_annealed") else 0)
    with progress(STEPS, kept.name) as show:
        try:
            folder = load_or_train(config, work, on_step=show)
        except FloatingPointError as error:  # an outcome, not a mishap: what an unbounded ratio does
            print(f"{kept.name} failed: {error}")
            folder = RunFolder.open(work)
    keep(folder, kept, samples=seed == 0 and name in MAIN)


def keep(folder: RunFolder, kept: Path, samples: bool) -> None:
    """Copy a run without checkpoints; of its samples the probes and the first and last step, or none."""
    new = kept.with_suffix(".new")
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(folder.path, new, ignore=shutil.ignore_patterns("checkpoints", "samples", "eval", "traces.parquet", "lock"))
    (new / "checkpoints").mkdir()
    (new / "samples").mkdir()
    for kind in ("step", "probe") if samples else ():
        recorded = folder.sample_steps(kind)
        for step in {recorded[0], recorded[-1]} if kind == "step" else recorded:
            shutil.copy(folder.path / "samples" / f"{kind}_{step:06d}.parquet", new / "samples")
    shutil.rmtree(kept, ignore_errors=True)
    new.rename(kept)


def record_smollm2() -> None:
    """Keep the runs of a real model, their tables and their figure."""
    tables, groups = HERE.parent / "results" / "smollm2", dict[str, list[RunFolder]]()
    tables.mkdir(exist_ok=True)
    for table in ("runs.csv", "curves.parquet", "levels.csv", "outcomes.parquet", "sessions.jsonl", "sweep.json"):
        shutil.copy(SMOLLM2 / table, tables)
    for name in MAIN:
        for path in sorted((SMOLLM2 / "runs" / name).glob("seed_*")):
            kept = KEPT / f"smollm2-{name}-{path.name.removeprefix('seed_')}"
            keep(RunFolder.open(path), kept, samples=path.name == "seed_0")
            groups.setdefault(METHODS[name].title, []).append(RunFolder.open(kept))
    write_accuracy(tables / "accuracy.csv")
    figure = plot_groups(groups, ("reward", "kl_teacher_rev", "completions/mean_length", "entropy"))
    save_figure(figure, HERE.parent / "figures" / "smollm2.png", [run for each in groups.values() for run in each], smoothing="trailing mean, 9 steps")


def write_accuracy(out: Path) -> None:
    """Write what the test prompts say of the model before, of its teacher and of each run."""
    found = {"before training": SMOLLM2.parent / "before.parquet", "teacher": SMOLLM2.parent / "teacher.parquet"}
    found |= {f"{METHODS[name].title}, seed {path.parts[-3][5:]}": path for name in MAIN for path in sorted(SMOLLM2.glob(f"runs/{name}/seed_*/eval/*.parquet"))}
    rows = {}
    for label, path in found.items():
        numbers = summarise(read_table(path)[0]).query("difficulty == 'all'").set_index("measure")
        right = (numbers.loc["avg", ["value", "low", "high"]].astype(float) * 100).round(1)
        rows[label] = [*right, round(100 * numbers.loc["greedy", "value"], 1), round(numbers.loc["length", "value"], 1)]
    columns = ["right, %", "95 % from", "to", "greedy, %", "tokens"]
    pd.DataFrame.from_dict(rows, "index", columns=columns).to_csv(out)


def draw() -> None:
    """The README's figure."""
    runs = {METHODS[name].title: [RunFolder.open(KEPT / f"{name}-{seed}") for seed in range(5)] for name in MAIN}
    metrics = ("reward", "kl_teacher_rev", "completions/mean_length", "entropy", "eval/accuracy", "eval/accuracy_ood")
    figure = plot_groups(runs, metrics)
    save_figure(figure, HERE.parent / "figures" / "four_methods.png", [r for each in runs.values() for r in each], smoothing="trailing mean, 9 steps")


if __name__ == "__main__":
    add_common_bugs()
    if sys.argv[1:] == ["figure"]:
        draw()
        sys.exit()
    if sys.argv[1:] == ["smollm2"]:
        record_smollm2()
        sys.exit()
    for name, seed in RUNS:
        if len(sys.argv) == 1 or any(f"{name}-{seed}".startswith(wanted) for wanted in sys.argv[1:]):
            record(name, seed)
