"""Evaluation on held-out prompts: one completion each, at T = 1, on the same prompts and random stream every time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from rlkd_lab.models import LanguageModel
from rlkd_lab.rollouts import Engine, Sampling, sample
from rlkd_lab.tasks import Example, Split, Task

SEED = 20_000
"""Of evaluation prompts and sampling; training seeds do not enter."""


@dataclass(frozen=True)
class Evaluation:
    """Shares in [0, 1] over the prompts; ``length`` in tokens."""

    accuracy: float
    reward: float
    length: float
    truncated: float
    rows: list[dict[str, Any]]


def evaluate(
    lm: LanguageModel,
    task: Task,
    n: int,
    *,
    split: Split = "validation",
    difficulty: tuple[int, int] | None = None,
    max_new_tokens: int = 96,
    engine: Engine = "fast",
    twin: torch.nn.Module | None = None,
    seed: int = SEED,
    batch: int = 128,
    stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Accuracy and reward of one completion for each of ``n`` prompts. A completion cut by the length limit counts as wrong."""
    examples = task.examples(n, seed, split, difficulty)
    generator = torch.Generator(device=lm.device).manual_seed(seed)
    rows: list[dict[str, Any]] = []
    for start in range(0, n, batch):
        part = examples[start : start + batch]
        drawn = sample(lm, [e.prompt for e in part], 1, Sampling(1.0, max_new_tokens), generator, stop, engine, twin)
        rewards = judge(task, drawn.texts, part, drawn.finished.tolist())
        lengths = drawn.sequences.completion_mask.sum(1).tolist()
        for example, text, (reward, parts), length, finished in zip(part, drawn.texts, rewards, lengths, drawn.finished.tolist(), strict=True):
            rows.append({"prompt": example.prompt, "difficulty": example.difficulty, "completion": text, "reward": reward,
                         "correct": parts["accuracy"], "length": length, "finished": finished})  # fmt: skip

    def mean(key: str) -> float:
        return sum(float(row[key]) for row in rows) / n

    return Evaluation(mean("correct"), mean("reward"), mean("length"), 1 - mean("finished"), rows)


def judge(task: Task, texts: list[str], examples: list[Example], finished: list[bool]) -> list[tuple[float, dict[str, float]]]:
    """Reward and parts of each completion. One that the length limit cut has not given its answer: all its parts are 0."""
    judged: list[tuple[float, dict[str, float]]] = []
    for text, example, whole in zip(texts, examples, finished, strict=True):
        score = task.score(text, example)
        judged.append((score.reward, score.parts) if whole else (0.0, dict.fromkeys(score.parts, 0.0)))
    return judged
