"""What the mid-size pair is trained on: its tasks, its tokenizer, its batches."""

from __future__ import annotations

import functools
import multiprocessing
import os
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rlkd_lab.tasks import Example, Task, find_task
from rlkd_lab.training import make_config
from rlkd_lab.zoo.recipe import Part, Recipe, drawn_style, parts_of, row_of
from rlkd_lab.zoo.tokenizer import byte_pair_tokenizer
from rlkd_lab.zoo.worked import worked

TASKS = {"knights": "midsize-knights", "countdown": "midsize-countdown"}
"""Tasks and their presets."""
COUNTDOWN = 1 / 3
"""Share of Countdown among the prompts that are not long."""
LONG = (5, 5)
"""People of the long prompts; the traces of six people would not fit the context."""
TEXT_SEED = 30


@functools.cache
def task_of(name: str) -> tuple[Task, int]:
    """Return a task as its preset has it, and the preset's length limit."""
    config = make_config("grpo", TASKS[name])
    task = find_task(config.task, config.task_settings, config.prompt_template)
    return task, config.max_new_tokens


def examples_of(recipe: Recipe, n: int, rng: random.Random) -> list[Example]:
    """Return training prompts in the recipe's mixture."""
    long = sum(rng.random() < recipe.long for _ in range(n))
    others = sum(rng.random() < COUNTDOWN for _ in range(n - long))
    seed = rng.randrange(2**31)
    knights, countdown = task_of("knights")[0], task_of("countdown")[0]
    return (
        knights.examples(n - long - others, seed)
        + knights.examples(long, seed, difficulty=LONG)
        + countdown.examples(others, seed)
    )


def learn_tokenizer(recipe: Recipe, texts: int, folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of both models, from a folder that keeps it.

    It is learned from a recipe's training prompts with checked traces.
    """
    if not (folder / "tokenizer.json").exists():
        rng = random.Random(TEXT_SEED)
        examples = examples_of(recipe, texts, rng)
        learned = (example.prompt + worked(example, "checked", rng) for example in examples)
        byte_pair_tokenizer(learned).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def batch_for(step: int, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> list[Part]:
    """Return ids and labels of a training step, (batch, time) for each part.

    They are a pure function of seed and step.
    """
    rng = random.Random(recipe.seed * 1_000_003 + step)
    examples = examples_of(recipe, recipe.batch, rng)
    rows = [
        row_of(example.prompt, worked(example, drawn_style(recipe, rng), rng), tokenizer)
        for example in examples
    ]
    return parts_of(rows, recipe.part_tokens, tokenizer.pad_token_id)


class Batches(Dataset[list[Part]]):
    """The batches by step, for processes that make them ahead of time.

    Drawing Countdown puzzles is slow.
    """

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> None:
        self.recipe, self.tokenizer = recipe, tokenizer

    def __getitem__(self, step: int) -> list[Part]:
        return batch_for(step, self.recipe, self.tokenizer)

    def from_step(self, start: int, workers: int) -> Iterable[list[Part]]:
        """Return the batches from a step on, in order; 0 workers: this process makes them."""
        return DataLoader(
            self,
            batch_size=None,
            sampler=range(start, self.recipe.steps),
            num_workers=workers,
            multiprocessing_context=_context() if workers else None,
        )


def _context() -> Any:
    """Return how processes are started: as forks of one that has imported this, where there are
    forks.
    """
    context: Any = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
    if os.name == "posix":
        context.set_forkserver_preload([__name__])
    return context
