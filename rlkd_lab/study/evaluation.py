"""Evaluation: a model's completions on held-out prompts, sampled and judged.

The table is described in :mod:`rlkd_lab.study.eval_table`.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from rlkd_lab.models import LanguageModel, make_dense_copy
from rlkd_lab.models.dense_copy import DenseCopy
from rlkd_lab.rollouts import Sampling, sample
from rlkd_lab.rollouts.sampling import Completions, prompt_limit
from rlkd_lab.tasks import Example, QuestionTask, Split, Task, judge
from rlkd_lab.tasks.lengths import Limit, LongPrompts, check_drawn
from rlkd_lab.tasks.reasoning import fault_of
from rlkd_lab.tasks.rewards import check_verifier
from rlkd_lab.tasks.verifier import GuardedTask
from rlkd_lab.tasks.votes import Votes
from rlkd_lab.training import RunConfig
from rlkd_lab.training.evaluation import SEED

ROWS = 512
"""Most completions in one batch."""
GUESSES = 32
"""Fewest borrowed completions a prompt in the permutation estimate of chance."""
LOOKED_AT = 64
"""Prompts whose length is measured of a task that makes its prompts."""
TRAINED = 1024
"""Training prompts that :func:`check_splits` looks through."""
COLUMNS = [
    "prompt_id",
    "prompt",
    "answer",
    "set",
    "difficulty",
    "mode",
    "sample",
    "completion",
    "extracted",
    "correct",
    "formatted",
    "finished",
    "length",
    "chance",
    "guesses",
]


@dataclass(frozen=True)
class Settings:
    """What a model is asked. Two models are compared under the same settings."""

    prompts: int = 256
    """Prompts drawn from the task for each set; a prompt drawn twice is asked once."""
    samples: int = 8
    """Completions for each prompt, beside the greedy one."""
    split: Split = "test"
    difficulty: tuple[int, int] | None = None
    """Difficulty of the prompts in distribution; the task's training range by default."""
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 96
    """Length limit in distribution; out of distribution it is twice that, as during training."""
    greedy: bool = True
    ood: bool = True
    chat: Literal["auto", "off"] = "auto"
    system_prompt: str | None = None
    max_prompt_tokens: int | None = None
    long_prompts: LongPrompts = "drop"
    seed: int = SEED
    """Seed of prompts and sampling; training seeds do not enter."""

    def __post_init__(self) -> None:
        if self.prompts < 1 or self.samples < 1:
            raise ValueError(
                "an evaluation needs at least one prompt and one sample a prompt; got"
                f" {self.prompts} prompts, {self.samples} samples"
            )
        if self.temperature == 0:
            raise ValueError(
                "samples need a temperature above 0; the completion at 0 is the greedy one,"
                " which is taken beside them"
            )
        self.sampling(self.max_new_tokens)

    def sampling(self, limit: int) -> Sampling:
        """Return how samples are drawn, with that length limit."""
        return Sampling(self.temperature, limit, self.top_p, self.top_k)


def settings_of(config: RunConfig | None, **given: Any) -> Settings:
    """Return settings from a run's config; what is given and not ``None`` replaces them."""
    shared = (
        "difficulty",
        "max_new_tokens",
        "chat",
        "system_prompt",
        "max_prompt_tokens",
        "long_prompts",
    )
    own = {} if config is None else config.model_dump(include=set(shared))
    return Settings(**own | {name: value for name, value in given.items() if value is not None})


# --- sampling and judging -------------------------------------------------------------------------


def evaluate_target(
    lm: LanguageModel,
    task: Task,
    settings: Settings,
    *,
    progress: bool = False,
    readers: Sequence[LanguageModel] = (),
) -> pd.DataFrame:
    """Sample completions and judge them; :mod:`rlkd_lab.study.eval_table` has the columns.

    Args:
        lm: a model from :meth:`~rlkd_lab.study.targets.Target.load`.
        task: prompts and verifier.
        settings: how many completions, and how they are drawn.
        progress: show a bar on stderr.
        readers: further models that are asked the same prompts, with or without weights
            (:func:`~rlkd_lab.training.before_loading.reader_of`). A prompt must fit all of them.

    Raises:
        ValueError: a prompt does not fit the context or a split has no prompts, before anything
            is sampled; or the verifier fails on everything.

    Warns:
        UserWarning: how many prompts are left out for their length; how many completions could
            not be judged and count as wrong; a task that is known to be wrong, and why.
    """
    lm.use_chat(settings.chat, settings.system_prompt)
    task = GuardedTask.of(task)
    for sentence in [*keep_to_models(task, settings, [lm, *readers]), *lm.prompts.notes()]:
        warnings.warn(sentence, stacklevel=2)
    task.begin(0, task.given_up)
    if (fault := fault_of(task.name)) is not None:
        warnings.warn(fault, stacklevel=2)
    sets = _prompt_sets(task, settings)
    dense = make_dense_copy(lm)
    prompts = sum(len(examples) for examples, _ in sets.values())
    with tqdm(
        total=prompts * (settings.samples + settings.greedy),
        desc="completions",
        disable=not progress,
        dynamic_ncols=True,
        mininterval=1.0,
    ) as bar:
        frames, at_once = [], 0
        for name, (examples, limit) in sets.items():
            frame, at_once = _ask(lm, dense, task, settings, examples, limit, bar, at_once)
            frames.append(frame.assign(set=name))
    if (event := task.told()) is not None:
        warnings.warn(event["text"], stacklevel=2)
    return pd.concat(frames, ignore_index=True)[COLUMNS]


def _ask(
    lm: LanguageModel,
    dense: DenseCopy | None,
    task: Task,
    settings: Settings,
    examples: Sequence[Example],
    limit: int,
    bar: tqdm,
    at_once: int,
) -> tuple[pd.DataFrame, int]:
    """Return the rows of one set with the chance of each prompt, and what fits into memory.

    ``at_once`` completions fitted before; 0 is all.
    """
    # top_k=1 puts all the mass on the most likely token, whatever the temperature
    greedy = Sampling(max_new_tokens=limit, top_k=1)
    rows: list[dict[str, Any]] = []
    votes = Votes(task)
    for mode, sampling, samples in (
        ("sample", settings.sampling(limit), settings.samples),
        ("greedy", greedy, int(settings.greedy)),
    ):
        generator = torch.Generator(device=lm.device).manual_seed(settings.seed)
        for part, first, size in _pieces(examples, samples):
            prompts = [example.prompt for example in part]
            drawn = sample(lm, prompts, size, sampling, generator, dense=dense, at_once=at_once)
            at_once = drawn.at_once
            repeated = [example for example in part for _ in range(size)]
            for number, row in enumerate(_judged(task, votes, drawn, repeated, size, limit)):
                rows.append({"mode": mode, "sample": first + number % size, **row})
            bar.update(len(repeated))
    frame = pd.DataFrame(rows)
    guesses = max(GUESSES, settings.samples)
    chances = chance_of(task, examples, frame, guesses, settings.seed)
    return frame.join(chances, on="prompt_id"), at_once


def _pieces(
    examples: Sequence[Example], samples: int
) -> Iterator[tuple[Sequence[Example], int, int]]:
    """Return (examples, index of the first sample, samples each) of each piece.

    A piece has at most :data:`ROWS` completions.
    """
    for first in range(0, samples, ROWS):
        size = min(ROWS, samples - first)
        for start in range(0, len(examples), ROWS // size):
            yield examples[start : start + ROWS // size], first, size


def _judged(
    task: Task, votes: Votes, drawn: Completions, examples: Sequence[Example], size: int, limit: int
) -> Iterator[dict[str, Any]]:
    """Judge completions, ``size`` for each prompt, and return their rows."""
    lengths, finished = drawn.sequences.completion_mask.sum(1).tolist(), drawn.finished.tolist()
    verdicts = judge(task, {}, drawn.texts, examples, finished, lengths, limit, size)
    check_verifier(task, verdicts, finished)
    for example, text, verdict, whole, length in zip(
        examples, drawn.texts, verdicts, finished, lengths, strict=True
    ):
        formatted = verdict.answer is not None
        if "format" in verdict.parts:
            formatted = verdict.parts["format"] > 0
        yield {
            "prompt_id": example.id,
            "prompt": example.prompt,
            "answer": example.answer,
            "difficulty": example.difficulty,
            "completion": text,
            "extracted": votes.name(example, text, verdict) if whole else verdict.answer,
            "correct": verdict.correct,
            "formatted": formatted,
            "finished": whole,
            "length": length,
        }


def keep_to_models(
    task: GuardedTask, settings: Settings, readers: Sequence[LanguageModel]
) -> list[str]:
    """Keep a task to the prompts that fit every model, and say what is left out.

    Raises:
        ValueError: no prompt fits, or ``long_prompts`` is ``refuse`` and a prompt does not fit.
    """

    def limits(completion: int) -> list[Limit]:
        return [prompt_limit(lm, completion, settings.max_prompt_tokens) for lm in readers]

    own, ood = limits(settings.max_new_tokens), task.ood_difficulty if settings.ood else None
    harder = [] if ood is None else limits(2 * settings.max_new_tokens)
    if harder and settings.difficulty == ood:
        own = harder

    def drawn(difficulty: tuple[int, int] | None) -> list[Example]:
        return task.examples(LOOKED_AT, settings.seed, settings.split, difficulty)

    rows = isinstance(task.task, QuestionTask)
    found = [
        task.keep_to(own, settings.long_prompts, [] if rows else drawn(settings.difficulty), harder)
    ]
    if harder:
        found.append(
            check_drawn(
                f"{task.name}, out of distribution", drawn(ood), harder, settings.long_prompts
            )
        )
    return [each.told for each in found if each.told]


def check_splits(task: Task, settings: Settings) -> None:
    """Refuse a task that has one prompt in two splits.

    A thousand training prompts and the settings' validation and test prompts are compared.
    A file or a dataset keeps its splits apart by itself.

    Raises:
        ValueError: two splits share a prompt; the message names one.
    """
    if isinstance(getattr(task, "task", task), QuestionTask):
        return
    counts: dict[Split, int] = {
        "train": TRAINED,
        "validation": settings.prompts,
        "test": settings.prompts,
    }
    found = {
        split: {
            one.prompt for one in task.examples(count, settings.seed, split, settings.difficulty)
        }
        for split, count in counts.items()
    }
    for one, other in itertools.combinations(found, 2):
        shared = found[one] & found[other]
        if shared:
            raise ValueError(
                f"the task {task.name} has overlapping splits: {len(shared)} prompts are in"
                f" {one} and in {other}, such as {min(shared)!r};"
                " what is trained on cannot be what is measured on"
                " (rlkd_lab.tasks.base.split_of divides prompts by a hash)"
            )


def _prompt_sets(task: Task, settings: Settings) -> dict[str, tuple[list[Example], int]]:
    """Return the examples and the length limit of each set."""
    asked = {"id": (settings.difficulty, settings.max_new_tokens)}
    if settings.ood and task.ood_difficulty is not None:
        asked["ood"] = (task.ood_difficulty, 2 * settings.max_new_tokens)
    found = {}
    for name, (difficulty, limit) in asked.items():
        drawn = task.examples(settings.prompts, settings.seed, settings.split, difficulty)
        examples = list({example.id: example for example in drawn}.values())
        if not examples:
            raise ValueError(f"the task {task.name} has no prompts in the split {settings.split}")
        found[name] = (examples, limit)
    return found


def chance_of(
    task: Task,
    examples: Sequence[Example],
    frame: pd.DataFrame,
    guesses: int = GUESSES,
    seed: int = 0,
) -> pd.DataFrame:
    """Return by prompt the probability that a guess which ignores the question is right.

    The columns are ``chance`` and ``guesses``; the index is the prompt id.
    A task may state its chance (``task.chance(example)``); ``guesses`` is then 0.
    Otherwise the model's completions to *other* prompts are judged against this prompt.

    Args:
        task: the verifier.
        examples: the prompts of one set.
        frame: sampled completions to them.
        guesses: completions borrowed for each prompt, without replacement, as far as there are.
        seed: chooses them.
    """
    ids = pd.Index([example.id for example in examples], name="prompt_id")
    known = getattr(task, "chance", None)
    if known is not None:
        chances = [float(known(example)) for example in examples]
        return pd.DataFrame({"chance": chances, "guesses": 0}, index=ids)
    rng = np.random.default_rng(seed)
    pool = frame[frame["mode"] == "sample"]
    owners, texts, finished = (
        pool[name].to_numpy() for name in ("prompt_id", "completion", "finished")
    )
    found = []
    for example in examples:
        others = np.flatnonzero(owners != example.id)
        borrowed = rng.choice(others, min(guesses, len(others)), replace=False)
        right = [bool(finished[i]) and task.score(texts[i], example).correct for i in borrowed]
        found.append((float(np.mean(right)) if right else float("nan"), len(right)))
    return pd.DataFrame(found, index=ids, columns=["chance", "guesses"])
