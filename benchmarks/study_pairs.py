"""Make a pair of student and checking teacher for the study that is not shipped.

    python benchmarks/study_pairs.py --out runs/logic_pair --task knights --held-out renamed
    python benchmarks/study_pairs.py --out runs/pair_2 --add 100
    python benchmarks/study_pairs.py --out runs/logic_2 --task knights --held-out renamed \
        --add 100 --teacher runs/logic_pair/teacher

The recipes are those of the embedded models. The student is the checkpoint that the embedded
student's bounds choose. ``OUT/student`` and ``OUT/teacher`` are the models. ``OUT/pair.json`` has
seeds, accuracies and steps. A stopped script goes on where it was. On two idle cores a pair of
``arithmetic`` takes about 40 minutes, one of ``knights`` about 50.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
from pathlib import Path
from typing import Annotated, Literal

import typer

from rlkd_lab.tasks import Task, find_task
from rlkd_lab.tasks.knights import HeldOut
from rlkd_lab.zoo.build import CHOOSE_ON, EVERY, LIMIT, MARKS, RECIPES, WINDOWS, train
from rlkd_lab.zoo.measuring import chosen, measure

NAMES = {
    "arithmetic": {"student": "student", "teacher": "teacher"},
    "knights": {"student": "knights-student", "teacher": "knights-teacher"},
}


def task_of(name: str, held_out: HeldOut) -> Task:
    """Return a task with its split; arithmetic has one split only."""
    return find_task(name, {"held_out": held_out} if name == "knights" else None)


def make(name: str, task_name: str, held_out: HeldOut, add: int, work: Path) -> None:
    """Train a model of the zoo with another seed, and measure the checkpoints that may be taken."""
    task = task_of(task_name, held_out)
    train(name, work, add, task)
    file = work / name / "measured.json"
    if file.exists():
        return
    steps = RECIPES[name].steps
    first = EVERY if "student" in name else steps
    found = {
        step: measure(
            work / name / f"step_{step}",
            task,
            "nf4",
            CHOOSE_ON,
            "validation",
            limit=LIMIT[task_name],
            marks=MARKS,
        )
        for step in range(first, steps + 1, EVERY)
    }
    file.write_text(json.dumps(found, indent=1), encoding="utf-8")


def main(
    out: Annotated[Path, typer.Option(help="folder of the pair")],
    task: Annotated[Literal["arithmetic", "knights"], typer.Option(help="its task")] = "arithmetic",
    held_out: Annotated[HeldOut, typer.Option(help="split of knights: text or renamed")] = "text",
    add: Annotated[int, typer.Option(help="added to the seeds of the embedded models")] = 0,
    teacher: Annotated[Path | None, typer.Option(help="take this teacher, train none")] = None,
) -> None:
    """Train a teacher and a student, and take the student's checkpoint within its bounds."""
    names, work = NAMES[task], out / "work"
    work.mkdir(parents=True, exist_ok=True)
    record: dict[str, object] = {"task": task, "held_out": held_out}
    if teacher:
        shutil.copytree(teacher, out / "teacher", dirs_exist_ok=True)
        made = json.loads((teacher.parent / "pair.json").read_text(encoding="utf-8"))
        record["teacher"] = made["teacher"]
    roles = ["teacher", "student"] if teacher is None else ["student"]
    jobs = [(names[role], task, held_out, add, work) for role in roles]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.starmap(make, jobs, chunksize=1)
    for role in roles:
        name = names[role]
        rows = json.loads((work / name / "measured.json").read_text(encoding="utf-8"))
        measured = {int(step): row for step, row in rows.items()}
        bounds = WINDOWS[name][1:] if role == "student" else ((0.0, 1.0), (0.0, 1.0))
        step = chosen(measured, name, *bounds)
        shutil.copytree(work / name / f"step_{step}", out / role, dirs_exist_ok=True)
        seed = RECIPES[name].seed + add
        record[role] = {"recipe": name, "seed": seed, "step": step, **measured[step]}
        print(f"{role}: step {step}, {measured[step]['accuracy']:.1%}", flush=True)
    (out / "pair.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
