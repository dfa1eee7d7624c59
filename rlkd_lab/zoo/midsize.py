"""Pre-train a mid-size pair on one GPU, without a hub: ``python -m rlkd_lab.zoo.midsize``.

A student of about 10 M parameters and a teacher of about 37 M, on the training prompts of
reasoning-gym's Knights & Knaves (in words) and of Countdown with three numbers, as the presets
``midsize-knights`` and ``midsize-countdown`` have them; completions are ours
(:mod:`rlkd_lab.zoo.worked`). The rules are those of the embedded models
(:mod:`rlkd_lab.zoo.build`): the teacher is the end of its run; the students, one for each task, are
*chosen* among the checkpoints of one run by :data:`WINDOWS`, as loaded in NF4 and sampled at T = 1
on validation prompts; the card's tables are made on test prompts. Nothing here looks at any later
training with KD, GRPO, KDRL or TRRD. A batch is a pure function of seed and step, and a stopped
build goes on.
"""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rlkd_lab.models import default_device
from rlkd_lab.models.language_model import Quant
from rlkd_lab.models.loading import compute_dtype
from rlkd_lab.tasks import Example, Split, Task, find_task
from rlkd_lab.training import make_config
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
from rlkd_lab.zoo.tokenizer import byte_pair_tokenizer
from rlkd_lab.zoo.worked import CHECK, DIRECT, worked

TASKS = {"knights": "midsize-knights", "countdown": "midsize-countdown"}
"""Tasks and their presets."""
COUNTDOWN = 1 / 3
"""Share of Countdown among the prompts that are not long."""
LONG = (5, 5)
"""People of the long prompts: the traces of six would not fit the context."""
TEXTS, TEXT_SEED = 4000, 30
"""Prompts with a trace that the tokenizer is learned from."""
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
WINDOWS: dict[str, tuple[str, tuple[float, float], tuple[float, float]]] = {
    "student-knights": ("knights", (0.25, 0.60), (0.40, 0.60)),
    "student-countdown": ("countdown", (0.15, 0.60), (0.40, 0.60)),
}
"""Task, and accuracy and share of direct answers (NF4, T = 1) that a student must have.

Taken is the checkpoint nearest to the middle of the accuracies.
"""


@dataclass(frozen=True)
class Plan:
    """What a build makes and measures."""

    recipes: dict[str, Recipe]
    windows: dict[str, tuple[str, tuple[float, float], tuple[float, float]]]
    every: int = 250
    choose_on: int = 512
    report_on: int = 1024
    texts: int = TEXTS
    longest: int | None = None
    """Tokens of a completion when a model is measured;

    None takes the presets' limits, twice that for long prompts.
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
"""The same in small, to see on a CPU that everything runs: models that know nothing, chosen by
nothing.
"""


@functools.cache
def task_of(name: str) -> tuple[Task, int]:
    """A task as its preset has it, and the preset's length limit."""
    config = make_config("grpo", TASKS[name])
    return find_task(
        config.task, config.task_settings, config.prompt_template
    ), config.max_new_tokens


def examples_of(recipe: Recipe, n: int, rng: random.Random) -> list[Example]:
    """Training prompts in the recipe's mixture."""
    long = sum(rng.random() < recipe.long for _ in range(n))
    others = sum(rng.random() < COUNTDOWN for _ in range(n - long))
    seed = rng.randrange(2**31)
    knights, countdown = task_of("knights")[0], task_of("countdown")[0]
    return (
        knights.examples(n - long - others, seed)
        + knights.examples(long, seed, difficulty=LONG)
        + countdown.examples(others, seed)
    )


def learn_tokenizer(texts: int, folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of both models, kept in a folder; learned from training prompts with
    checked traces.
    """
    if not (folder / "tokenizer.json").exists():
        rng = random.Random(TEXT_SEED)
        found = examples_of(RECIPES["teacher"], texts, rng)
        byte_pair_tokenizer(
            example.prompt + worked(example, "checked", rng) for example in found
        ).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def batch_for(step: int, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> list[Part]:
    """Token ids and labels of a training step, (batch, time) for each part; a pure function of
    seed and step.
    """
    rng = random.Random(recipe.seed * 1_000_003 + step)
    examples = examples_of(recipe, recipe.batch, rng)
    rows = [
        row_of(example.prompt, worked(example, drawn_style(recipe, rng), rng), tokenizer)
        for example in examples
    ]
    return parts_of(rows, recipe.part_tokens, tokenizer.pad_token_id)


class Batches(Dataset[list[Part]]):
    """:func:`batch_for` by step, for the processes that make batches ahead of time: drawing
    Countdown puzzles is slow.
    """

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> None:
        self.recipe, self.tokenizer = recipe, tokenizer

    def __getitem__(self, step: int) -> list[Part]:
        return batch_for(step, self.recipe, self.tokenizer)

    def from_step(self, start: int, workers: int) -> Iterable[list[Part]]:
        """The batches from a step on, in order, whatever the number of workers; none is this
        process alone.
        """
        context = "spawn" if workers else None
        return DataLoader(
            self,
            batch_size=None,
            sampler=range(start, self.recipe.steps),
            num_workers=workers,
            multiprocessing_context=context,
        )


def train(
    name: str,
    plan: Plan,
    work: Path,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    workers: int,
) -> None:
    """Train one recipe, or go on with it."""
    recipe, vocabulary = plan.recipes[name], -(-len(tokenizer) // 64) * 64
    batches = Batches(recipe, tokenizer)
    run = pretrain(
        recipe,
        tokenizer,
        vocabulary,
        lambda start: batches.from_step(start, workers),
        work / name,
        plan.every,
        device,
    )
    with tqdm(total=recipe.steps, desc=name, unit="step", mininterval=1.0) as bar:
        for number, (step, loss, _) in enumerate(run):
            if number == 0:
                bar.n = bar.initial = (
                    step - 1
                )  # after a stop, the time left is by the steps of this session
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update()


def measured_at(
    folder: Path,
    task_name: str,
    quant: Quant,
    n: int,
    split: Split,
    device: torch.device,
    longest: int | None,
    long: bool,
) -> dict[str, float]:
    """What a checkpoint does at T = 1 on one of the tasks."""
    task, limit = task_of(task_name)
    difficulty = LONG if long else None
    limit, batch = longest or limit * (2 if long else 1), 1024 if device.type == "cuda" else 256
    return measure(
        folder,
        task,
        quant,
        n,
        split,
        limit=limit,
        marks=(DIRECT, CHECK),
        difficulty=difficulty,
        batch=batch,
        device=device,
    )


def choose(plan: Plan, work: Path, device: torch.device) -> dict[str, tuple[str, int]]:
    """For each name the recipe and step it is taken from; what was measured on validation
    prompts is kept in ``measured.json``.
    """
    kept = work / "measured.json"
    measured: dict[str, dict[str, dict[str, float]]] = (
        json.loads(kept.read_text(encoding="utf-8"))
        if kept.exists()
        else {task: {} for task in TASKS}
    )
    steps = range(plan.every, plan.recipes["student"].steps + 1, plan.every)
    for step in steps:
        for task, found in measured.items():
            if str(step) not in found:
                found[str(step)] = measured_at(
                    work / "student" / f"step_{step}",
                    task,
                    "nf4",
                    plan.choose_on,
                    "validation",
                    device,
                    plan.longest,
                    long=False,
                )
                kept.write_text(json.dumps(measured, indent=2), encoding="utf-8")
                print(f"student at {step}, {task}: {found[str(step)]}", flush=True)
    taken = {"teacher": ("teacher", plan.recipes["teacher"].steps)}
    for name, (task, accuracy, direct) in plan.windows.items():
        taken[name] = (
            "student",
            chosen({step: measured[task][str(step)] for step in steps}, name, accuracy, direct),
        )
    return taken


def write_card(
    plan: Plan, taken: dict[str, tuple[str, int]], out: Path, work: Path, device: torch.device
) -> None:
    """CARD.md and card.json: recipe, seeds, time, and tables in full precision and in NF4."""
    card: dict[str, Any] = {
        "prompts": plan.report_on,
        "rehearsal": plan is not FULL,
        "environment": describe_environment(device),
        "models": {},
    }
    sections: dict[str, list[str]] = {
        task: [
            "",
            f"## {task}",
            "",
            *card_header("wall time", "test", "5 people" if task == "knights" else "–"),
        ]
        for task in TASKS
    }
    for name, (source, step) in taken.items():
        made = json.loads(
            (work / source / f"step_{step}" / "trained.json").read_text(encoding="utf-8")
        )
        entry = {
            "recipe": asdict(plan.recipes[source]),
            "taken_from": f"{source}, step {step}",
            **made,
            "tables": {},
        }
        for task, lines in sections.items():
            if name not in ("teacher", f"student-{task}"):
                continue
            table = {
                f"{quant}{' ood' if long else ''}": measured_at(
                    out / name, task, quant, plan.report_on, "test", device, plan.longest, long
                )
                for quant in QUANTS
                for long in ((False, True) if task == "knights" else (False,))
            }
            entry["tables"][task] = table
            lines += card_rows(name, entry, table, str(out / name))
            print(name, task, table, flush=True)
        card["models"][name] = entry
    (out / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    head = [
        "# The mid-size models",
        "",
        *(
            [
                "**A rehearsal: narrow models after a few steps, chosen by nothing. No number"
                " here means anything.**",
                "",
            ]
            if card["rehearsal"]
            else []
        ),
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
    body = [line for lines in sections.values() for line in lines]
    (out / "CARD.md").write_text(
        "\n".join(
            [
                *head,
                *body,
                "",
                "Recipes, seeds, device, versions and the numbers with all digits are in"
                " `card.json`.",
                "",
            ]
        ),
        encoding="utf-8",
    )


def build(plan: Plan, out: Path, work: Path, device: torch.device, workers: int) -> None:
    """Learn the tokenizer, train, choose, store, measure."""
    tokenizer = learn_tokenizer(plan.texts, work / "tokenizer")
    for name in plan.recipes:
        train(name, plan, work, tokenizer, device, workers)
    taken = choose(plan, work, device)
    for name, (source, step) in taken.items():
        shutil.rmtree(out / name, ignore_errors=True)
        shutil.copytree(
            work / source / f"step_{step}",
            out / name,
            ignore=shutil.ignore_patterns("trained.json"),
        )
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
    base = Path("build/rehearsal")
    out, work = (
        out or (base / "models" if rehearsal else Path("models/midsize")),
        work or (base / "work" if rehearsal else Path("build/midsize")),
    )
    build(
        REHEARSAL if rehearsal else FULL,
        out,
        work,
        torch.device(device) if device else default_device(),
        workers,
    )
    print(f"done: {out}, {out / 'CARD.md'}")


if __name__ == "__main__":
    typer.run(main)
