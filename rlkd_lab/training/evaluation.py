"""Evaluation on held-out prompts, of the run's task or of another: at T = 1, on the same prompts
and random stream every time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from rlkd_lab.models import LanguageModel
from rlkd_lab.models.dense_copy import DenseCopy
from rlkd_lab.rollouts import Engine, Sampling, sample
from rlkd_lab.tasks import QuestionTask, Split, Task, judge
from rlkd_lab.tasks.cells import MissingColumn
from rlkd_lab.tasks.registry import EMBEDDED, holds_rows
from rlkd_lab.tasks.verifier import GuardedTask, guarded
from rlkd_lab.training.config import RunConfig

BATCH = 128
"""Completions in a batch."""
SEED = 20_000
"""Of evaluation prompts and sampling; training seeds do not enter."""


@dataclass(frozen=True)
class Evaluation:
    """Shares in [0, 1] over the prompts; ``length`` in tokens."""

    accuracy: float
    length: float
    truncated: float
    rows: list[dict[str, Any]]
    at_once: int = 0
    """Completions sampled at a time, as asked for or as few as memory took."""


def evaluated_on(config: RunConfig) -> str:
    """Return the task whose validation prompts evaluations ask.

    Early stopping and the best checkpoint go by their accuracy.
    """
    return config.eval_task or config.task


def evaluation_task(config: RunConfig, own: GuardedTask) -> GuardedTask:
    """Return the task that evaluations ask: another one, or the run's own.

    Rows take the prompt template of the run's task, and its columns where the file has them. All
    rows are asked, unless they name splits.

    Raises:
        ValueError, OSError: in one sentence.
    """
    name = config.eval_task
    if name is None or not config.eval_every:
        return own
    template = None if name in EMBEDDED else config.prompt_template
    columns = config.task_settings if isinstance(own.task, QuestionTask) else {}
    ask = partial(guarded, template=template, seconds=config.verifier_seconds)
    try:
        task = ask(name, columns if holds_rows(name) else {})
    except MissingColumn:
        task = ask(name, {})  # the usual names
    if isinstance(task.task, QuestionTask):
        task.task.hold_out()
    return task


def evaluate(
    lm: LanguageModel,
    task: Task,
    n: int,
    *,
    split: Split = "validation",
    difficulty: tuple[int, int] | None = None,
    max_new_tokens: int = 96,
    engine: Engine | str = "fast",
    dense: DenseCopy | None = None,
    seed: int = SEED,
    batch: int = BATCH,
    stop: Callable[[], bool] = lambda: False,
    at_once: int = 0,
    samples: int = 1,
) -> Evaluation:
    """Return the accuracy of ``samples`` completions for each of ``n`` prompts.

    ``at_once`` of them are sampled at a time; 0 is a whole batch. A completion cut by the length
    limit counts as wrong.
    """
    examples = task.examples(n, seed, split, difficulty)
    generator = torch.Generator(device=lm.device).manual_seed(seed)
    rows: list[dict[str, Any]] = []
    size = max(batch // samples, 1)
    for start in range(0, n, size):
        part = examples[start : start + size]
        drawn = sample(
            lm,
            [e.prompt for e in part],
            samples,
            Sampling(1.0, max_new_tokens),
            generator,
            stop,
            engine,
            dense,
            at_once,
        )
        at_once = drawn.at_once
        part = [example for example in part for _ in range(samples)]
        lengths, finished = drawn.sequences.completion_mask.sum(1).tolist(), drawn.finished.tolist()
        verdicts = judge(task, {}, drawn.texts, part, finished, lengths, max_new_tokens)
        for example, text, verdict, length, whole in zip(
            part, drawn.texts, verdicts, lengths, finished, strict=True
        ):
            rows.append(
                {
                    "prompt": example.prompt,
                    "difficulty": example.difficulty,
                    "completion": text,
                    "correct": verdict.correct,
                    "length": length,
                    "finished": whole,
                }
            )

    def mean(key: str) -> float:
        return sum(float(row[key]) for row in rows) / len(rows)

    return Evaluation(mean("correct"), mean("length"), 1 - mean("finished"), rows, at_once)
