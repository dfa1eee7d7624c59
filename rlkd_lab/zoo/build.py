"""Pre-train the embedded students and teachers: ``python -m rlkd_lab.zoo.build``.

Three models of a task are trained from fixed seeds, one thread each, two side by side.
Checkpoints go to a work folder, so that a stopped build can be started again.
The two students are *chosen* among the checkpoints of one training run by :data:`WINDOWS`.
They are loaded in NF4 and sampled at T = 1 on validation prompts.
Test prompts give the table of the card.
Nothing here looks at any later training with KD, GRPO, KDRL or TRRD.
"""

from __future__ import annotations

import json
import multiprocessing
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from rlkd_lab.models.language_model import Quant
from rlkd_lab.tasks import Example, Split, Task, arithmetic, find_task, knights
from rlkd_lab.training.environment import describe_environment
from rlkd_lab.zoo.measuring import (
    QUANTS,
    Taken,
    Window,
    card_entry,
    card_header,
    card_rows,
    chosen,
    measure,
    store,
    write_cards,
)
from rlkd_lab.zoo.pretraining import pretrain
from rlkd_lab.zoo.recipe import Part, Recipe, drawn_style, parts_of, row_of
from rlkd_lab.zoo.tokenizer import character_tokenizer

ZOO = Path(__file__).parent
KNIGHTS: dict[str, Any] = {"long": 0.05, "task": "knights", "part_tokens": 1000, "context": 1024}

RECIPES = {
    # The student has seen a few checks: on-policy distillation can only reinforce what the student
    # writes at least now and then.
    "student": Recipe(
        128, 4, 2, 384, 1000, 64, 1e-3, False, direct=0.5, corrupted=0.1, checked=0.1, seed=11
    ),
    "teacher": Recipe(
        192, 4, 3, 512, 1500, 64, 1.5e-3, True, direct=0.0, corrupted=0.0, checked=1.0, seed=12
    ),
    "teacher-concise": Recipe(
        192, 4, 3, 512, 1500, 64, 1.5e-3, True, direct=0.0, corrupted=0.0, checked=0.0, seed=13
    ),
    "knights-student": Recipe(
        128, 4, 2, 384, 1500, 64, 1e-3, False, 0.5, 0.1, 0.1, seed=21, **KNIGHTS
    ),
    "knights-teacher": Recipe(
        192, 4, 3, 512, 2000, 64, 1.5e-3, True, 0.0, 0.0, 1.0, seed=22, **KNIGHTS
    ),
    "knights-teacher-concise": Recipe(
        192, 4, 3, 512, 2000, 64, 1.5e-3, True, 0.0, 0.0, 0.0, seed=23, **KNIGHTS
    ),
}
WINDOWS: dict[str, Window] = {
    "student-weak": ("student", (0.08, 0.15), (0.0, 1.0)),
    "student": ("student", (0.25, 0.60), (0.45, 0.55)),
    # a blind guess is right in 15 %
    "knights-student-weak": ("knights-student", (0.20, 0.30), (0.0, 1.0)),
    "knights-student": ("knights-student", (0.35, 0.65), (0.45, 0.55)),
}
"""Recipe, and bounds of a student's accuracy and share of direct answers.

They are measured in NF4 at T = 1 and the training difficulty.
The checkpoint nearest to the middle of the accuracies is taken.
"""
LIMIT = {"arithmetic": 200, "knights": 600}
"""Most tokens of a completion when a model is measured, by task."""
CHOOSE_ON, REPORT_ON = 1024, 2048
"""Prompts for choosing (validation) and for the card (test)."""
EVERY = 100
MARKS = ("#", "!")


def completion_for(example: Example, recipe: Recipe, rng: random.Random) -> str:
    """Return a pre-training completion in the recipe's mixture of styles."""
    style = drawn_style(recipe, rng)
    task = arithmetic if recipe.task == "arithmetic" else knights
    if style != "corrupted":
        return task.worked(example, style)
    if recipe.task == "knights":
        right = knights.assignments(example.difficulty).index(example.answer)
        return knights.worked(example, "steps", wrong_try=rng.randrange(right + 1))
    error = rng.choice([-1, 1]) * rng.randint(1, 10)
    wrong_at = rng.randrange(example.difficulty)
    lines, value = arithmetic.steps(example.prompt, wrong_at=wrong_at, error=error)
    return "".join(lines) + f"#{value}"


def batch_for(step: int, recipe: Recipe, task: Task | None = None) -> list[Part]:
    """Return ids and labels of a training step, (batch, time) for each part.

    They are a pure function of seed, step and task. The task is the recipe's by default; give one
    to pre-train on another split of it.
    """
    task, tokenizer = task or find_task(recipe.task), character_tokenizer()
    rng = random.Random(recipe.seed * 1_000_003 + step)
    long = sum(rng.random() < recipe.long for _ in range(recipe.batch))
    seed = rng.randrange(2**31)
    examples = task.examples(recipe.batch - long, seed) + task.examples(
        long, seed, difficulty=task.ood_difficulty
    )
    rows = [
        row_of(example.prompt, completion_for(example, recipe, rng), tokenizer)
        for example in examples
    ]
    return parts_of(rows, recipe.part_tokens, tokenizer.pad_token_id)


def train(name: str, work: Path, add: int = 0, task: Task | None = None) -> None:
    """Train one recipe; save a 16-bit checkpoint every :data:`EVERY` steps.

    ``add`` is added to its seed. ``task`` is as :func:`batch_for` has it.
    """
    recipe = replace(RECIPES[name], seed=RECIPES[name].seed + add)
    torch.set_num_threads(1)

    def batches(start: int) -> Iterator[list[Part]]:
        return (batch_for(step, recipe, task) for step in range(start, recipe.steps))

    run = pretrain(recipe, character_tokenizer(), batches, work / name, EVERY)
    for step, loss, seconds in run:
        if step % EVERY == 0:
            at = f"step {step}/{recipe.steps}"
            print(f"{name}: {at}  loss {loss:.3f}  {seconds:.0f} s", flush=True)


def measured_at(
    folder: Path, task_name: str, quant: Quant, n: int, split: Split, ood: bool
) -> dict[str, float]:
    """Measure a checkpoint at T = 1: shares in [0, 1], lengths in tokens."""
    task = find_task(task_name)
    return measure(
        folder,
        task,
        quant,
        n,
        split,
        limit=LIMIT[task_name],
        marks=MARKS,
        difficulty=task.ood_difficulty if ood else None,
    )


def choose(work: Path, sources: list[str]) -> Taken:
    """Choose the checkpoint of each embedded model that comes from ``sources``."""
    taken = {name: (name, RECIPES[name].steps) for name in sources if "teacher" in name}
    for source in (name for name in sources if "student" in name):
        recipe, measured = RECIPES[source], {}
        for step in range(EVERY, recipe.steps + 1, EVERY):
            place = work / source / f"step_{step}"
            measured[step] = measured_at(
                place, recipe.task, "nf4", CHOOSE_ON, "validation", ood=False
            )
            print(f"{source} at {step}: {measured[step]}", flush=True)
        for name, (taken_from, accuracy, direct) in WINDOWS.items():
            if taken_from == source:
                taken[name] = (source, chosen(measured, name, accuracy, direct))
    return taken


def write_card(taken: Taken, work: Path) -> None:
    """Measure the models on test prompts, and write CARD.md and card.json.

    Models that were not made anew keep their entries.
    """
    card: dict[str, Any] = {"prompts": REPORT_ON, "models": {}}
    if (ZOO / "card.json").exists():
        card = json.loads((ZOO / "card.json").read_text(encoding="utf-8"))
    environment = describe_environment(torch.device("cpu"))
    for name, (source, step) in taken.items():
        recipe = RECIPES[source]
        table = {
            f"{quant}{' ood' if ood else ''}": measured_at(
                ZOO / name, recipe.task, quant, REPORT_ON, "test", ood
            )
            for quant in QUANTS
            for ood in (False, True)
        }
        entry = card_entry(recipe, source, step, work)
        card["models"][name] = entry | {"table": table, "environment": environment}
        print(name, table, flush=True)
    write_cards(ZOO, card, card_lines(card["models"]))


def card_lines(models: dict[str, Any]) -> list[str]:
    """Return the lines of CARD.md."""
    lines = [
        "# The embedded models",
        "",
        "Qwen3 architecture, character tokenizer, pre-trained from scratch by `python -m"
        " rlkd_lab.zoo.build` on multi-step arithmetic (`arithmetic`) and on",
        "Knights and Knaves in a compact notation (`knights`). Some of the pre-training"
        " problems are larger (10 %: 6–8 operations; 5 %: 5 people), as",
        "post-training prompts never are: these are out of the post-training distribution."
        " The two students of a task are checkpoints of one run, chosen by",
        "accuracy and share of direct answers alone (see `build.py`).",
        f"Tables: {REPORT_ON} test prompts, one completion each, T = 1; the standard error of"
        " a share is at most 1.1 points. A blind guess is right in 1 %",
        "(arithmetic), 15 % (2–4 people), 3 % (5 people).",
    ]
    for task, inside_name, outside_name in (
        ("arithmetic", "2–5 operations", "6–8 operations"),
        ("knights", "2–4 people", "5 people"),
    ):
        lines += [
            "",
            f"## {task}",
            "",
            *card_header("wall time, one thread of a busy machine", inside_name, outside_name),
        ]
        for name, entry in models.items():
            if entry["recipe"].get("task", "arithmetic") == task:
                lines += card_rows(name, entry, entry["table"], name)
    return [*lines, "", "Recipes, seeds and the numbers with all digits are in `card.json`.", ""]


def main(
    task: Annotated[
        list[str], typer.Option(help="whose models to make: arithmetic, knights")
    ] = list(LIMIT),  # noqa: B006 - typer copies it
    work: Annotated[Path, typer.Option(help="work folder; a stopped build goes on from it")] = Path(
        "build/zoo"
    ),
) -> None:
    """Rebuild the embedded models: train, choose, store, measure.

    About 50 minutes a task on two cores.
    """
    sources = sorted(
        (name for name, recipe in RECIPES.items() if recipe.task in task),
        key=lambda name: "teacher" not in name,
    )
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.starmap(train, [(name, work) for name in sources], chunksize=1)
    taken = choose(work, sources)
    store(taken, work, ZOO)
    write_card(taken, work)


if __name__ == "__main__":
    typer.run(main)
