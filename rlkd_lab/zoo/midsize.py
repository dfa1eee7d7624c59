"""Pre-train a mid-size pair on one GPU, without a hub: ``python -m rlkd_lab.zoo.midsize``.

The student has about 10 M parameters and the teacher about 37 M.
The prompts are training prompts of reasoning-gym's Knights & Knaves (in words) and of Countdown
with three numbers, as in the presets ``midsize-knights`` and ``midsize-countdown``.
The completions are ours (:mod:`rlkd_lab.zoo.worked`).

The rules are those of the embedded models (:mod:`rlkd_lab.zoo.build`).
The teacher is the end of its run.
The students, one for each task, are *chosen* among the checkpoints of one run by :data:`WINDOWS`.
They are loaded in NF4 and sampled at T = 1 on validation prompts.
Test prompts give the tables of the card.
Nothing here looks at any later training with KD, GRPO, KDRL or TRRD.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from rlkd_lab.models import default_device
from rlkd_lab.models.language_model import Quant
from rlkd_lab.models.loading import compute_dtype
from rlkd_lab.tasks import Split
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
from rlkd_lab.zoo.midsize_batches import LONG, TASKS, Batches, learn_tokenizer, task_of
from rlkd_lab.zoo.pretraining import pretrain
from rlkd_lab.zoo.recipe import Recipe
from rlkd_lab.zoo.worked import CHECK, DIRECT

SHARED: dict[str, Any] = {
    "task": ", ".join(TASKS),
    "long": 0.05,
    "part_tokens": 16_384,
    "context": 2048,
}
RECIPES = {
    "student": Recipe(
        320,
        8,
        5,
        960,
        3000,
        128,
        1e-3,
        False,
        direct=0.5,
        corrupted=0.1,
        checked=0.1,
        seed=31,
        **SHARED,
    ),
    "teacher": Recipe(
        512,
        12,
        8,
        1536,
        4000,
        128,
        6e-4,
        True,
        direct=0.0,
        corrupted=0.0,
        checked=1.0,
        seed=32,
        key_heads=2,
        **SHARED,
    ),
}
WINDOWS: dict[str, Window] = {
    "student-knights": ("knights", (0.25, 0.60), (0.40, 0.60)),
    "student-countdown": ("countdown", (0.15, 0.60), (0.40, 0.60)),
}
"""Task, and bounds of a student's accuracy and share of direct answers, in NF4 at T = 1.

The checkpoint nearest to the middle of the accuracies is taken.
"""


@dataclass(frozen=True)
class Plan:
    """What a build makes and measures."""

    recipes: dict[str, Recipe]
    windows: dict[str, Window]
    every: int = 250
    choose_on: int = 512
    report_on: int = 1024
    texts: int = 4000
    """Prompts with a trace from which the tokenizer is learned."""
    longest: int | None = None
    """Most tokens of a completion when a model is measured.

    ``None`` takes the presets' limits, and twice that for long prompts.
    """


FULL = Plan(RECIPES, WINDOWS)
ANY = (0.0, 1.0)
REHEARSAL = Plan(
    {
        name: replace(
            recipe, hidden=64, layers=2, heads=1, key_heads=1, feed_forward=128, steps=20, batch=6
        )
        for name, recipe in RECIPES.items()
    },
    {name: (task, ANY, ANY) for name, (task, _, _) in WINDOWS.items()},
    every=10,
    choose_on=8,
    report_on=8,
    texts=100,
    longest=24,
)
"""The same in small, to see on a CPU that everything runs; the models know nothing."""


def train(
    name: str,
    plan: Plan,
    work: Path,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    workers: int,
) -> None:
    """Train one recipe, or resume it."""
    recipe = plan.recipes[name]
    batches = Batches(recipe, tokenizer)
    run = pretrain(
        recipe,
        tokenizer,
        lambda start: batches.from_step(start, workers),
        work / name,
        plan.every,
        device,
    )
    with tqdm(total=recipe.steps, desc=name, unit="step", mininterval=1.0) as bar:
        for number, (step, loss, _) in enumerate(run):
            if number == 0:  # after a stop, the steps of this session give the time left
                bar.n = bar.initial = step - 1
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update()


def measured_at(
    plan: Plan,
    folder: Path,
    task_name: str,
    quant: Quant,
    split: Split,
    device: torch.device,
    long: bool,
) -> dict[str, float]:
    """Measure a checkpoint at T = 1 on one of the tasks."""
    task, limit = task_of(task_name)
    return measure(
        folder,
        task,
        quant,
        plan.choose_on if split == "validation" else plan.report_on,
        split,
        limit=plan.longest or limit * (2 if long else 1),
        marks=(DIRECT, CHECK),
        difficulty=LONG if long else None,
        batch=1024 if device.type == "cuda" else 256,
        device=device,
    )


def choose(plan: Plan, work: Path, device: torch.device) -> Taken:
    """Choose the checkpoint of each model; ``measured.json`` keeps what was measured for it."""
    kept = work / "measured.json"
    measured: dict[str, dict[str, dict[str, float]]] = {task: {} for task in TASKS}
    if kept.exists():
        measured = json.loads(kept.read_text(encoding="utf-8"))
    steps = range(plan.every, plan.recipes["student"].steps + 1, plan.every)
    for step in steps:
        for task, found in measured.items():
            if str(step) not in found:
                place = work / "student" / f"step_{step}"
                found[str(step)] = measured_at(
                    plan, place, task, "nf4", "validation", device, long=False
                )
                kept.write_text(json.dumps(measured, indent=2), encoding="utf-8")
                print(f"student at {step}, {task}: {found[str(step)]}", flush=True)
    taken = {"teacher": ("teacher", plan.recipes["teacher"].steps)}
    for name, (task, accuracy, direct) in plan.windows.items():
        of_task = {step: measured[task][str(step)] for step in steps}
        taken[name] = ("student", chosen(of_task, name, accuracy, direct))
    return taken


def write_card(plan: Plan, taken: Taken, out: Path, work: Path, device: torch.device) -> None:
    """Measure the models on test prompts, and write CARD.md and card.json."""
    models: dict[str, Any] = {}
    for name, (source, step) in taken.items():
        tasks = [task for task in TASKS if name in ("teacher", f"student-{task}")]
        tables = {task: _table(plan, out / name, task, device) for task in tasks}
        models[name] = {**card_entry(plan.recipes[source], source, step, work), "tables": tables}
        for task, table in tables.items():
            print(name, task, table, flush=True)
    card = {
        "prompts": plan.report_on,
        "rehearsal": plan is not FULL,
        "environment": describe_environment(device),
        "models": models,
    }
    write_cards(out, card, card_lines(plan, models, out, device))


def _table(plan: Plan, folder: Path, task: str, device: torch.device) -> dict[str, Any]:
    """Measure a model on one task, in full precision and in NF4."""
    return {
        f"{quant}{' ood' if long else ''}": measured_at(
            plan, folder, task, quant, "test", device, long
        )
        for quant in QUANTS
        for long in ((False, True) if task == "knights" else (False,))
    }


def card_lines(plan: Plan, models: dict[str, Any], out: Path, device: torch.device) -> list[str]:
    """Return the lines of CARD.md."""
    warning = [
        "**A rehearsal: narrow models after a few steps, chosen by nothing. No number"
        " here means anything.**",
        "",
    ]
    lines = [
        "# The mid-size models",
        "",
        *([] if plan is FULL else warning),
        "Qwen3 architecture, byte pairs, pre-trained from scratch by `python -m"
        " rlkd_lab.zoo.midsize` on training prompts of reasoning-gym's knights_knaves",
        "and of countdown with three numbers, with worked traces. The students are"
        " checkpoints of one run, chosen by accuracy and share of direct answers.",
        f"Tables: {plan.report_on} test prompts, one completion each, T = 1; the standard"
        f" error of a share is at most {50 / plan.report_on**0.5:.1f} points.",
        "full: 16-bit weights computed in"
        f" {str(compute_dtype(device)).removeprefix('torch.')}. 5 people: seen in"
        " pre-training (5 %), never in post-training.",
    ]
    for task in TASKS:
        head = card_header("wall time", "test", "5 people" if task == "knights" else "–")
        lines += ["", f"## {task}", "", *head]
        for name, entry in models.items():
            if task in entry["tables"]:
                lines += card_rows(name, entry, entry["tables"][task], str(out / name))
    where = "Recipes, seeds, device, versions and the numbers with all digits are in `card.json`."
    return [*lines, "", where, ""]


def build(plan: Plan, out: Path, work: Path, device: torch.device, workers: int) -> None:
    """Learn the tokenizer, train, choose, store, measure."""
    tokenizer = learn_tokenizer(RECIPES["teacher"], plan.texts, work / "tokenizer")
    for name in plan.recipes:
        train(name, plan, work, tokenizer, device, workers)
    taken = choose(plan, work, device)
    store(taken, work, out)
    write_card(plan, taken, out, work, device)


def main(
    out: Annotated[
        Path | None,
        typer.Option(
            help="where the models go; models/midsize, where the presets look, or"
            " build/rehearsal/models"
        ),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            help="checkpoints, from which a stopped build goes on; build/midsize or"
            " build/rehearsal/work"
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cuda, cpu; a GPU if there is one")] = None,
    workers: Annotated[
        int, typer.Option(min=0, help="processes that make batches ahead of time; 0 is none")
    ] = min(16, os.cpu_count() or 1),
    rehearsal: Annotated[
        bool,
        typer.Option(
            "--rehearsal",
            help="narrow models, a few steps, about a minute on a CPU: to see that everything runs",
        ),
    ] = False,
) -> None:
    """Make the mid-size pair. For one large GPU."""
    plan, places = FULL, ("models/midsize", "build/midsize")
    if rehearsal:
        plan, places = REHEARSAL, ("build/rehearsal/models", "build/rehearsal/work")
    out, work = out or Path(places[0]), work or Path(places[1])
    build(plan, out, work, torch.device(device) if device else default_device(), workers)
    print(f"done: {out}, {out / 'CARD.md'}")


if __name__ == "__main__":
    typer.run(main)
