"""Pre-train the embedded students and teachers: ``python -m rlkd_lab.zoo.build``.

Three models are trained from fixed seeds, one thread each, two side by side; checkpoints go to a
work folder so that a stopped build goes on. The two students are then *chosen* among the
checkpoints of one training run by :data:`WINDOWS`, as loaded in NF4 and sampled at T = 1 on
validation prompts; the card's table is made on test prompts. Nothing here looks at any later
training with KD, GRPO, KDRL or TRRD.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from rlkd_lab.models.language_model import Quant
from rlkd_lab.tasks import Example, Split, arithmetic, find_task, knights
from rlkd_lab.training.environment import describe_environment
from rlkd_lab.zoo.pretraining import (
    QUANTS,
    Part,
    Recipe,
    card_header,
    card_rows,
    chosen,
    drawn_style,
    measure,
    parts_of,
    pretrain,
    row_of,
)
from rlkd_lab.zoo.tokenizer import VOCAB_SIZE, character_tokenizer

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
WINDOWS = {
    "student-weak": ("student", (0.08, 0.15), (0.0, 1.0)),
    "student": ("student", (0.25, 0.60), (0.45, 0.55)),
    "knights-student-weak": (
        "knights-student",
        (0.20, 0.30),
        (0.0, 1.0),
    ),  # a blind guess is right in 15 %
    "knights-student": ("knights-student", (0.35, 0.65), (0.45, 0.55)),
}
"""Recipe, and accuracy and share of direct answers (NF4, T = 1, the training difficulty) that a
student must have. Taken is the checkpoint nearest to the middle of the accuracies.
"""
LIMIT = {"arithmetic": 200, "knights": 600}
"""Tokens that a completion may have when a model is measured."""
CHOOSE_ON, REPORT_ON = 1024, 2048
"""Prompts for choosing (validation) and for the card (test)."""
EVERY = 100
MARKS = ("#", "!")


def completion_for(example: Example, recipe: Recipe, rng: random.Random) -> str:
    """One pre-training completion in the recipe's mixture of styles."""
    style = drawn_style(recipe, rng)
    if style != "corrupted":
        return (
            arithmetic.worked(example, style)
            if recipe.task == "arithmetic"
            else knights.worked(example, style)
        )
    if recipe.task == "knights":
        return knights.worked(
            example,
            "steps",
            wrong_try=rng.randrange(
                knights.assignments(example.difficulty).index(example.answer) + 1
            ),
        )
    error = rng.choice([-1, 1]) * rng.randint(1, 10)
    lines, value = arithmetic.steps(
        example.prompt, wrong_at=rng.randrange(example.difficulty), error=error
    )
    return "".join(lines) + f"#{value}"


def batch_for(step: int, recipe: Recipe) -> list[Part]:
    """Token ids and labels of a training step, (batch, time) for each part; a pure function of
    seed and step, so a build can resume.
    """
    task, tokenizer = find_task(recipe.task), character_tokenizer()
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


def train(name: str, work: Path) -> None:
    """Train one recipe, keeping a 16-bit checkpoint every :data:`EVERY` steps."""
    recipe = RECIPES[name]
    torch.set_num_threads(1)

    def batches(start: int) -> Iterator[list[Part]]:
        return (batch_for(step, recipe) for step in range(start, recipe.steps))

    for step, loss, seconds in pretrain(
        recipe, character_tokenizer(), VOCAB_SIZE, batches, work / name, EVERY
    ):
        if step % EVERY == 0:
            print(
                f"{name}: step {step}/{recipe.steps}  loss {loss:.3f}  {seconds:.0f} s", flush=True
            )


def measured_at(
    folder: Path, task_name: str, quant: Quant, n: int, split: Split, ood: bool
) -> dict[str, float]:
    """What a checkpoint does at T = 1: shares in [0, 1], lengths in tokens."""
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


def choose(work: Path, sources: list[str]) -> dict[str, tuple[str, int]]:
    """For each embedded name that comes from ``sources`` the recipe and step it is taken from."""
    taken = {name: (name, RECIPES[name].steps) for name in sources if "teacher" in name}
    for source in (name for name in sources if "student" in name):
        recipe, measured = RECIPES[source], {}
        for step in range(EVERY, recipe.steps + 1, EVERY):
            measured[step] = measured_at(
                work / source / f"step_{step}",
                recipe.task,
                "nf4",
                CHOOSE_ON,
                "validation",
                ood=False,
            )
            print(f"{source} at {step}: {measured[step]}", flush=True)
        for name, (taken_from, accuracy, direct) in WINDOWS.items():
            if taken_from == source:
                taken[name] = (source, chosen(measured, name, accuracy, direct))
    return taken


def write_card(taken: dict[str, tuple[str, int]], work: Path) -> None:
    """CARD.md and card.json: recipe, seeds, time, and the evaluation table in full precision
    and in NF4; models that were not made anew keep theirs.
    """
    card: dict[str, Any] = (
        json.loads((ZOO / "card.json").read_text(encoding="utf-8"))
        if (ZOO / "card.json").exists()
        else {"prompts": REPORT_ON, "models": {}}
    )
    environment = describe_environment(torch.device("cpu"))
    for name, (source, step) in taken.items():
        made, recipe = (
            json.loads(
                (work / source / f"step_{step}" / "trained.json").read_text(encoding="utf-8")
            ),
            RECIPES[source],
        )
        table = {
            f"{quant}{' ood' if ood else ''}": measured_at(
                ZOO / name, recipe.task, quant, REPORT_ON, "test", ood
            )
            for quant in QUANTS
            for ood in (False, True)
        }
        card["models"][name] = {
            "recipe": asdict(recipe),
            "taken_from": f"{source}, step {step}",
            **made,
            "table": table,
            "environment": environment,
        }
        print(name, table, flush=True)
    (ZOO / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
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
        for name, entry in card["models"].items():
            if entry["recipe"].get("task", "arithmetic") == task:
                lines += card_rows(name, entry, entry["table"], name)
    lines += ["", "Recipes, seeds and the numbers with all digits are in `card.json`.", ""]
    (ZOO / "CARD.md").write_text("\n".join(lines), encoding="utf-8")


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
    for name, (source, step) in taken.items():
        shutil.rmtree(ZOO / name, ignore_errors=True)
        shutil.copytree(
            work / source / f"step_{step}",
            ZOO / name,
            ignore=shutil.ignore_patterns("trained.json"),
        )
    write_card(taken, work)


if __name__ == "__main__":
    typer.run(main)
