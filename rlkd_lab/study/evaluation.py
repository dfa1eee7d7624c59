"""Evaluation: a model's completions on held-out prompts, one row each, and what they add up to.

File format (version 1): one parquet file, a row a completion; schema metadata ``rlkd_eval`` =
``{"version": 1, "model": …, "task": …, settings, seed}``.

    prompt_id   str    the same for the same prompt everywhere
    prompt      str
    answer      str    reference
    set         str    "id" or "ood": in or out of distribution
    difficulty  int    of the prompt
    mode        str    "sample" or "greedy"
    sample      int    0, 1, … within a prompt and mode
    completion  str    as decoded, without special tokens
    extracted   str    the answer as it was read; null: none, or cut by the length limit
    correct     bool   a completion cut by the length limit is wrong
    formatted   bool   in the task's format
    finished    bool   ended by an end-of-sequence token, not by the length limit
    length      int    tokens, the end of sequence included
    chance      float  probability that a blind guess is right, of the prompt
    guesses     int    guesses behind ``chance``; 0: known, not estimated

Everything from :func:`per_prompt` on works on such a table alone, without a model.
"""

from __future__ import annotations

import itertools
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from rlkd_lab.models import LanguageModel, make_dense_copy
from rlkd_lab.models.dense_copy import DenseCopy
from rlkd_lab.rollouts import Sampling, sample
from rlkd_lab.rollouts.sampling import prompt_limit
from rlkd_lab.study.statistics import (
    avg_at_k,
    bootstrap,
    chance_pass_at_k,
    check_k,
    majority_at_k,
    paired_bootstrap,
    pass_at_k,
    pass_at_k_of_counts,
)
from rlkd_lab.tasks import Example, QuestionTask, Split, Task, judge
from rlkd_lab.tasks.lengths import Limit, LongPrompts, check_drawn
from rlkd_lab.tasks.reasoning import fault_of
from rlkd_lab.tasks.rewards import check_verifier
from rlkd_lab.tasks.verifier import GuardedTask
from rlkd_lab.tasks.votes import Votes
from rlkd_lab.training import RunConfig
from rlkd_lab.training.evaluation import SEED

VERSION = 1
ROWS = 512
"""Most completions sampled at a time."""
GUESSES = 32
"""Fewest borrowed completions a prompt in the permutation estimate of chance."""
LOOKED_AT = 64
"""Prompts that are measured of a task that makes them, to say how many are too long."""
TRAINED = 1024
"""Training prompts that are looked through for one of another split."""
SETS = {"id": "in distribution", "ood": "out of distribution"}


@dataclass(frozen=True)
class Settings:
    """What is asked of a model. Two models are compared under the same settings."""

    prompts: int = 256
    """Drawn from the task for each set; a prompt that is drawn twice is asked once."""
    samples: int = 8
    """Completions a prompt, beside the greedy one."""
    split: Split = "test"
    difficulty: tuple[int, int] | None = None
    """Of the prompts in distribution; the task's training range by default."""
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 96
    """Length limit in distribution; out of distribution it is twice that, as in the evaluations
    of a run.
    """
    greedy: bool = True
    ood: bool = True
    chat: Literal["auto", "off"] = "auto"
    system_prompt: str | None = None
    max_prompt_tokens: int | None = None
    long_prompts: LongPrompts = "drop"
    seed: int = SEED
    """Of prompts and sampling; training seeds do not enter."""

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
        """How samples are drawn, with that length limit."""
        return Sampling(self.temperature, limit, self.top_p, self.top_k)


def settings_of(config: RunConfig | None, **given: Any) -> Settings:
    """Settings from a run's config where it has them; what is given and not ``None`` goes first."""
    shared = (
        "difficulty",
        "max_new_tokens",
        "chat",
        "system_prompt",
        "max_prompt_tokens",
        "long_prompts",
    )
    own = {} if config is None else {name: getattr(config, name) for name in shared}
    return Settings(**own | {name: value for name, value in given.items() if value is not None})


# --- sampling and judging -------------------------------------------------------------------------


def evaluate_target(
    lm: LanguageModel,
    task: Task,
    settings: Settings,
    *,
    progress: bool = False,
    readers: Sequence[tuple[LanguageModel, int | None]] = (),
) -> pd.DataFrame:
    """Sample and judge: the table described at the top of this module.

    Args:
        lm: a model from :meth:`~rlkd_lab.study.targets.Target.load`.
        task: prompts and verifier.
        settings: how many, how drawn.
        progress: a bar on stderr.
        readers: further models that are asked the same prompts, with their contexts
            (:func:`~rlkd_lab.training.plan.reader_of`): a prompt must fit all of them.

    Raises:
        ValueError: a prompt that does not fit the context, a split without prompts, before anything
            is sampled; a verifier that fails on everything.

    Warns:
        UserWarning: how many prompts are too long and are not asked; how many completions could not
            be judged and count as wrong; a task that is known to be wrong, and why.
    """
    lm.use_chat(settings.chat, settings.system_prompt)
    task = GuardedTask.of(task)
    for sentence in [*keep_to_models(task, settings, [(lm, None), *readers]), *lm.prompts.notes()]:
        warnings.warn(sentence, stacklevel=2)
    task.begin(0, task.given_up)
    if (fault := fault_of(task.name)) is not None:
        warnings.warn(fault, stacklevel=2)
    sets = _prompt_sets(task, settings)
    dense = make_dense_copy(lm)
    frames = []
    total = sum(len(examples) for examples, _ in sets.values()) * (
        settings.samples + settings.greedy
    )
    with tqdm(
        total=total, desc="completions", disable=not progress, dynamic_ncols=True, mininterval=1.0
    ) as bar:
        for name, (examples, limit) in sets.items():
            drawn = settings.sampling(limit)
            greediest = Sampling(
                max_new_tokens=limit, top_k=1
            )  # all the mass on the most likely token, whatever the temperature
            rows: list[dict[str, Any]] = []
            votes = Votes(task)
            for mode, sampling, samples in (
                ("sample", drawn, settings.samples),
                ("greedy", greediest, int(settings.greedy)),
            ):
                generator = torch.Generator(device=lm.device).manual_seed(settings.seed)
                for part, first, size in _pieces(examples, samples):
                    rows += [
                        {"set": name, "mode": mode, **row}
                        for row in _complete(
                            lm, task, part, first, size, sampling, generator, dense, votes
                        )
                    ]
                    bar.update(len(part) * size)
            frame = pd.DataFrame(rows)
            chances = chance_of(
                task, examples, frame, max(GUESSES, settings.samples), settings.seed
            )
            frames.append(frame.join(chances, on="prompt_id"))
    if (event := task.told()) is not None:
        warnings.warn(event["text"], stacklevel=2)
    columns = [
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
    ]
    return pd.concat(frames, ignore_index=True)[[*columns, "chance", "guesses"]]


def keep_to_models(
    task: GuardedTask, settings: Settings, readers: Sequence[tuple[LanguageModel, int | None]]
) -> list[str]:
    """Keep a task to the prompts that fit every model, and say what is left out. A context is given
    where only the tokenizer is loaded.

    Raises:
        ValueError: nothing fits, or ``long_prompts`` is ``refuse`` and something does not.
    """

    def limits(completion: int) -> list[Limit]:
        return [
            prompt_limit(lm, completion, settings.max_prompt_tokens, context=context)
            for lm, context in readers
        ]

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
    """Refuse a task one of whose prompts is in two splits, as far as a thousand training prompts
    and the settings' validation and test prompts show it.

    Raises:
        ValueError: in one sentence, with such a prompt.
    """
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
    """Examples and length limit by set."""
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


def _pieces(
    examples: Sequence[Example], samples: int
) -> Iterator[tuple[Sequence[Example], int, int]]:
    """(examples, index of the first sample, samples each), with at most :data:`ROWS`
    completions in a piece.
    """
    for first in range(0, samples, ROWS):
        size = min(ROWS, samples - first)
        for start in range(0, len(examples), ROWS // size):
            yield examples[start : start + ROWS // size], first, size


def _complete(
    lm: LanguageModel,
    task: Task,
    examples: Sequence[Example],
    first: int,
    size: int,
    sampling: Sampling,
    generator: torch.Generator,
    dense: DenseCopy | None,
    votes: Votes,
) -> Iterator[dict[str, Any]]:
    drawn = sample(
        lm, [example.prompt for example in examples], size, sampling, generator, dense=dense
    )
    repeated = [example for example in examples for _ in range(size)]
    lengths, finished = drawn.sequences.completion_mask.sum(1).tolist(), drawn.finished.tolist()
    verdicts = judge(
        task, {}, drawn.texts, repeated, finished, lengths, sampling.max_new_tokens, size
    )
    check_verifier(task, verdicts, finished)
    for row, (example, text, verdict, whole, length) in enumerate(
        zip(repeated, drawn.texts, verdicts, finished, lengths, strict=True)
    ):
        formatted = (
            verdict.parts["format"] > 0 if "format" in verdict.parts else verdict.answer is not None
        )
        yield {
            "prompt_id": example.id,
            "prompt": example.prompt,
            "answer": example.answer,
            "difficulty": example.difficulty,
            "sample": first + row % size,
            "completion": text,
            "extracted": votes.name(example, text, verdict) if whole else verdict.answer,
            "correct": verdict.correct,
            "formatted": formatted,
            "finished": whole,
            "length": length,
        }


def chance_of(
    task: Task,
    examples: Sequence[Example],
    frame: pd.DataFrame,
    guesses: int = GUESSES,
    seed: int = 0,
) -> pd.DataFrame:
    """Probability that a guess which ignores the question is right, by prompt: columns ``chance``
    and ``guesses``, indexed by prompt id.

    A task may say it (``task.chance(example)``; then ``guesses`` is 0). Otherwise it is estimated,
    for any verifier: the model's completions to *other* prompts are judged against this one. What
    scores as well on its own prompt as on a stranger's has not read the question.

    Args:
        task: the verifier.
        examples: of one set.
        frame: sampled completions to them.
        guesses: completions borrowed for each prompt, without replacement; fewer where there are
            fewer.
        seed: of the choice.
    """
    ids = pd.Index([example.id for example in examples], name="prompt_id")
    known = getattr(task, "chance", None)
    if known is not None:
        return pd.DataFrame(
            {"chance": [float(known(example)) for example in examples], "guesses": 0}, index=ids
        )
    rng = np.random.default_rng(seed)
    pool = frame[frame["mode"] == "sample"]
    owners, texts, finished = (
        pool["prompt_id"].to_numpy(),
        pool["completion"].to_numpy(),
        pool["finished"].to_numpy(),
    )
    found = []
    for example in examples:
        others = np.flatnonzero(owners != example.id)
        borrowed = rng.choice(others, min(guesses, len(others)), replace=False)
        right = [bool(finished[i]) and task.score(texts[i], example).correct for i in borrowed]
        found.append(
            {"chance": float(np.mean(right)) if right else float("nan"), "guesses": len(right)}
        )
    return pd.DataFrame(found, index=ids)


# --- what it adds up to ---------------------------------------------------------------------------


def powers_of_two(samples: int) -> list[int]:
    """1, 2, 4, … up to the number of samples: the k that are reported by default.

    >>> powers_of_two(12)
    [1, 2, 4, 8]
    """
    return [2**i for i in range(samples.bit_length())]


def per_prompt(frame: pd.DataFrame, ks: Sequence[int]) -> pd.DataFrame:
    """One row a prompt of one set, one column a measure: ``avg``, ``greedy`` (where there is one),
    ``pass@k`` for each k, ``majority@k`` for each k above 2, ``truncated``, ``badly_formatted``
    (ended by itself, and not in the format: the two shares do not overlap), ``length``.

    Raises:
        ValueError: a k larger than the number of samples, or prompts with unequal numbers of
            samples.
    """
    sampled = frame[frame["mode"] == "sample"].sort_values(["prompt_id", "sample"], kind="stable")
    counts = sampled.groupby("prompt_id").size()
    if counts.empty or counts.nunique() > 1:
        raise ValueError("the table is torn: its prompts have unequal numbers of samples, or none")
    samples = int(counts.iloc[0])

    def matrix(values: pd.Series) -> Any:
        return values.to_numpy().reshape(len(counts), samples)

    correct, formatted, finished = (
        matrix(sampled[name]) for name in ("correct", "formatted", "finished")
    )
    answers = matrix(
        sampled["extracted"].astype(object).where(sampled["extracted"].notna(), None)
    ).tolist()
    measures = {"avg": avg_at_k(correct)}
    greedy = frame[frame["mode"] == "greedy"].set_index("prompt_id")["correct"]
    if len(greedy):
        measures["greedy"] = greedy.reindex(counts.index).to_numpy(dtype=float)
    for k in ks:
        measures[f"pass@{k}"] = pass_at_k(correct, k)
    for k in [k for k in ks if k > 2]:  # of one or two answers it is the average
        measures[f"majority@{k}"] = majority_at_k(answers, correct, k)
    measures["truncated"] = 1.0 - finished.mean(1)
    measures["badly_formatted"] = (finished & ~formatted).mean(1)
    measures["length"] = matrix(sampled["length"]).mean(1)
    return pd.DataFrame(measures, index=counts.index)


def chance_at_k(chances: pd.DataFrame, k: int) -> float:
    """pass@k of guesses, from ``chance`` and ``guesses`` by prompt. Where chance was estimated,
    pass@k is estimated from the same guesses without bias: to put a noisy probability into 1 − (1 −
    p)^k would make the line too low. NaN: fewer guesses than k.
    """
    guesses = int(chances["guesses"].min())
    if int(chances["guesses"].max()) == 0:
        return chance_pass_at_k(chances["chance"], k)
    if guesses < k:
        return float("nan")
    return float(pass_at_k_of_counts((chances["chance"] * guesses).round(), guesses, k).mean())


def summarise(frame: pd.DataFrame, ks: Sequence[int] | None = None) -> pd.DataFrame:
    """What a table adds up to: a row a number, with columns ``set``, ``difficulty`` ("all" or one
    level), ``measure``, ``value``, ``low``, ``high``.

    Measures are those of :func:`per_prompt` with a 95 % bootstrap interval over prompts, and
    without one ``chance@k``, ``length_correct`` and ``length_wrong`` (tokens, over completions;
    NaN: there is none), ``prompts`` and ``samples``.

    Raises:
        ValueError: a k larger than the number of samples.
    """
    samples = samples_of(frame)
    ks = powers_of_two(samples) if ks is None else ks
    rows = []
    for name, part in frame.groupby("set", sort=False):
        table, prompts = (
            per_prompt(part, ks),
            part.drop_duplicates("prompt_id").set_index("prompt_id"),
        )
        for level in ("all", *sorted(prompts["difficulty"].unique().tolist())):
            chosen = (
                prompts.index if level == "all" else prompts.index[prompts["difficulty"] == level]
            )
            sampled = part[part["prompt_id"].isin(chosen) & (part["mode"] == "sample")]
            found: dict[str, tuple[float, ...]] = {"prompts": (len(chosen),), "samples": (samples,)}
            for measure, values in table.loc[chosen].items():
                interval = bootstrap(values)
                found[str(measure)] = (interval.mean, interval.low, interval.high)
            for k in ks:
                found[f"chance@{k}"] = (chance_at_k(prompts.loc[chosen], k),)
            for suffix, right in (("correct", True), ("wrong", False)):
                found[f"length_{suffix}"] = (
                    float(sampled.loc[sampled["correct"] == right, "length"].mean()),
                )
            for measure_name, numbers in found.items():
                value, low, high = (
                    numbers if len(numbers) == 3 else (*numbers, float("nan"), float("nan"))
                )
                rows.append(
                    {
                        "set": name,
                        "difficulty": level,
                        "measure": measure_name,
                        "value": value,
                        "low": low,
                        "high": high,
                    }
                )
    return pd.DataFrame(rows)


def compare_frames(
    a: pd.DataFrame, b: pd.DataFrame, ks: Sequence[int] | None = None
) -> pd.DataFrame:
    """Two models on the same prompts: a row a set and measure, with both means, ``difference`` (a −
    b), its 95 % interval ``low``–``high``, and ``p``.

    Interval and ``p`` are over prompts and samples. They are about these two checkpoints and not
    about methods: two seeds of one method have p < .05 in about half of all pairs.
    :func:`~rlkd_lab.study.sides.compare_runs` compares methods.

    Raises:
        ValueError: the prompts or sets differ, or a k is larger than the number of samples of
            either.
    """
    ks = powers_of_two(min(samples_of(a), samples_of(b))) if ks is None else ks
    if sorted(a["set"].unique()) != sorted(b["set"].unique()):
        raise ValueError(
            f"the sets differ: {', '.join(a['set'].unique())} against"
            f" {', '.join(b['set'].unique())}"
        )
    rows = []
    for name in a["set"].unique():
        ours, theirs = (per_prompt(frame[frame["set"] == name], ks) for frame in (a, b))
        for measure in [measure for measure in ours if measure in theirs]:
            found = paired_bootstrap(ours[measure], theirs[measure])
            rows.append(
                {
                    "set": name,
                    "measure": measure,
                    "a": ours[measure].mean(),
                    "b": theirs[measure].mean(),
                    "difference": found.mean,
                    "low": found.low,
                    "high": found.high,
                    "p": found.p,
                }
            )
    return pd.DataFrame(rows)


def samples_of(frame: pd.DataFrame) -> int:
    """Samples a prompt in a table."""
    return int(frame.loc[frame["mode"] == "sample", "sample"].max()) + 1


def check_ks(ks: Sequence[int] | None, samples: int) -> None:
    """Raise ValueError for a k that this number of samples cannot give: before hours of
    sampling, not after.
    """
    for k in ks or ():
        check_k(k, samples)


# --- files ----------------------------------------------------------------------------------------


def about(model: dict[str, Any], task: Task, settings: Settings) -> dict[str, Any]:
    """The record that goes into a table's metadata."""
    of_task = {
        "task_settings": getattr(task, "settings", {}),
        "prompt_template": getattr(task, "template", None),
    }
    return {"version": VERSION, "model": model, "task": task.name, **of_task, **asdict(settings)}


def check_out(path: Path) -> None:
    """Raise an OSError or ValueError, before anything is sampled, for a place where no table
    can be written.
    """
    if path.suffix != ".parquet":
        raise ValueError(
            f"{path}: completions are written as parquet; name a file that ends in .parquet"
        )
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise NotADirectoryError(f"{path} cannot be made: {above} is a file")
    if not os.access(above, os.W_OK):
        raise PermissionError(f"no permission to write {path}: choose another --out")


def write_table(path: Path, frame: pd.DataFrame, record: dict[str, Any]) -> None:
    """Write a table beside and rename it: a reader sees the old file or the new one, never half."""
    table = pa.Table.from_pandas(frame, preserve_index=False)
    table = table.replace_schema_metadata({"rlkd_eval": json.dumps(record)})
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    pq.write_table(table, beside)
    beside.replace(path)


def read_table(path: str | Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """A table and its record.

    Raises:
        FileNotFoundError: no file there.
        ValueError: no table of an evaluation, or one of a newer format.
    """
    table = _readable(pq.read_table, path)
    return table.to_pandas(), _record(table.schema, path)


def read_record(path: str | Path) -> dict[str, Any]:
    """A table's record alone: model, task and settings. Raises what :func:`read_table` does."""
    return _record(_readable(pq.read_schema, path), path)


def _readable(read: Callable[[str | Path], Any], path: str | Path) -> Any:
    try:
        return read(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _record(schema: pa.Schema, path: str | Path) -> dict[str, Any]:
    record = json.loads((schema.metadata or {}).get(b"rlkd_eval", b"{}"))
    if "version" not in record:
        raise ValueError(f"{path} is no table of `rlkd eval`")
    if record["version"] > VERSION:
        raise ValueError(
            f"{path} has format {record['version']}, this version of rlkd_lab reads up to"
            f" {VERSION}: update rlkd_lab"
        )
    return record
