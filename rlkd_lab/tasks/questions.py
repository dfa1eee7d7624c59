r"""Questions with answers, from a file or the hub, judged by the kind of the answer: GSM8K and MATH
and whatever looks like them.

A row has a question (column ``question``, ``problem`` or ``prompt``) and an answer (``answer``,
``solution`` or ``final_answer``): text whose final answer stands after ``####`` or in
``\boxed{…}``, or is all of it. ``level`` or ``difficulty`` ("Level 3") is the difficulty, 0
without; ``split`` may name a split.
"""

from __future__ import annotations

import json
import logging
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rlkd_lab.tasks.answers import final_answer, grade, why_not
from rlkd_lab.tasks.base import SPLITS, Example, Score, Split, check_split, seeded, split_of

FILES = (".jsonl", ".json", ".parquet")
TEMPLATE = "{question}\nReason step by step, and put the final answer within \\boxed{}.\n"
QUESTION = ("question", "problem", "prompt")
ANSWER = ("answer", "solution", "final_answer")
DIFFICULTY = ("level", "difficulty")
_NAMES: Mapping[str, Split] = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}

Row = tuple[str, dict[str, Any], Split | None]
"""Where it stands (file and row, from 1), its columns, the split that its file gives it."""


class QuestionTask:
    r"""Rows of questions and answers.

    Parts: ``accuracy``, 1 where the final answer equals the reference
        (:func:`~rlkd_lab.tasks.answers.grade`);
    ``format``, 1 where there is a marked final answer (``\boxed{…}``, ``#### …`` or
    ``<answer>…</answer>``); ``parsed``, 1 where an answer could be read.

    Rows whose file or ``split`` column says test (validation) are test (validation) rows; where
    nothing says validation, or nothing says anything, the hash of the question decides: 10 % of the
    train rows, or 80/10/10 of all.

    Args:
        name: of the task.
        rows: see :data:`Row`.
        template: with ``{question}``.

    Raises:
        ValueError: no column of questions or answers, a row without one, no answer that can be
            read, no row for training or validation.

    Warns:
        UserWarning: how many reference answers cannot be judged and are left out, by reason, with
            the first of each.
    """

    ood_difficulty: tuple[int, int] | None = None

    def __init__(self, name: str, rows: Iterable[Row], template: str | None = None) -> None:
        self.name = name
        self.template = template or TEMPLATE
        self._rows: dict[Split, list[Example]] = {split: [] for split in SPLITS}
        self._warned = False
        self.left_out: dict[str, list[str]] = {}
        placed = [
            (*_columns(where, row), given or _given(where, row)) for where, row, given in rows
        ]
        has = {given for *_, given in placed}
        for where, question, text, difficulty, given in placed:
            answer, marked = final_answer(text)
            answer = answer if marked else text.strip()
            if reason := why_not(answer):
                self.left_out.setdefault(reason, []).append(f"{where}: {answer[:60]!r}")
                continue
            prompt = self.template.replace("{question}", question)
            self._rows[_split(question, given, has)].append(
                Example(prompt, answer, difficulty, question)
            )
        self._keep_apart()
        unjudged = sum(map(len, self.left_out.values()))
        if unjudged:
            reasons = "; ".join(
                f"{len(rows)} × {reason}, first {rows[0]}"
                for reason, rows in sorted(self.left_out.items())
            )
            warnings.warn(
                f"{name}: {unjudged} of {len(placed)} reference answers cannot be judged and"
                f" are left out: {reasons}",
                stacklevel=2,
            )
        for split in ("train", "validation"):
            if not self._rows[split]:
                raise ValueError(
                    f"{name} has no {split} row among its {len(placed) - unjudged} usable"
                    " rows: give more, or a column split that names some"
                )
        levels = [example.difficulty for example in self._rows["train"]]
        self.train_difficulty = (min(levels), max(levels))

    @classmethod
    def without_rows(cls, name: str) -> QuestionTask:
        """One that judges and asks nothing."""
        task = cls.__new__(cls)
        task.name, task.train_difficulty = name, (0, 0)
        return task

    def _keep_apart(self) -> None:
        """Drop training rows whose question is asked in validation or test too, and validation
        rows that are asked in test, and say how many.
        """
        asked: set[str] = set()
        for split in reversed(SPLITS):
            kept = [row for row in self._rows[split] if row.id not in asked]
            if len(kept) < len(self._rows[split]):
                gone = len(self._rows[split]) - len(kept)
                warnings.warn(
                    f"{self.name}: {gone} {split} rows ask a question that is held out too;"
                    f" left out of {split}",
                    stacklevel=3,
                )
            self._rows[split] = kept
            asked |= {row.id for row in kept}

    def examples(
        self, n: int, seed: int, split: Split = "train", difficulty: tuple[int, int] | None = None
    ) -> list[Example]:
        """``n`` rows, shuffled; every row once before any comes again."""
        low, high = difficulty or (0, 2**31)
        check_split(split)
        rows = [row for row in self._rows[split] if low <= row.difficulty <= high]
        if not rows:
            have = sorted({row.difficulty for row in self._rows[split]})
            raise ValueError(
                f"{self.name} has no {split} row of difficulty {low}–{high}; it has"
                f" {have or 'none at all'}"
            )
        if split != "train" and n > len(rows) and not self._warned:
            self._warned = True
            warnings.warn(
                f"{self.name} has {len(rows)} {split} rows: {n} prompts repeat them;"
                f" eval_prompts={len(rows)} asks each once",
                stacklevel=2,
            )
        rng = seeded(self.name, seed, split, low, high)
        found: list[Example] = []
        while len(found) < n:
            found += rng.sample(rows, len(rows))
        return found[:n]

    def score(self, completion: str, example: Example) -> Score:
        answer, marked = final_answer(completion)
        found = grade(example.answer, answer, marked)
        parts = {
            "accuracy": float(found.correct),
            "format": float(marked),
            "parsed": float(found.text is not None),
        }
        return Score(parts, found.text)


def read_files(path: Path) -> list[Row]:
    """Rows of a file, or of the files train.*, validation.* and test.* of a folder.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: a file that cannot be read, with the row.
    """
    if path.is_dir():
        files = {
            name: file
            for name in _NAMES
            for suffix in FILES
            if (file := path / f"{name}{suffix}").is_file()
        }
        if not {"train", "test"} <= set(files):
            raise FileNotFoundError(
                f"the folder {path} needs a train file and a test file"
                f" ({', '.join(f'train{suffix}' for suffix in FILES)})"
            )
        return [
            (where, row, _NAMES[name])
            for name, file in files.items()
            for where, row, _ in read_files(file)
        ]
    if not path.is_file():
        raise FileNotFoundError(
            f"no file or folder {path}; a task of questions is a .jsonl, .json or .parquet"
            " file, or a folder with train.* and test.*"
        )
    if path.suffix not in FILES:
        raise ValueError(f"{path} is of no kind that is read here: {', '.join(FILES)}")
    try:
        return [
            (f"{path.name}, row {number}", row, None) for number, row in enumerate(_read(path), 1)
        ]
    except (ValueError, OSError) as error:  # pyarrow's errors are these too
        raise ValueError(f"{path} cannot be read: {error}") from error


def _read(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        yield from pq.read_table(path).to_pylist()
        return
    with path.open(encoding="utf-8-sig") as file:
        rows = json.load(file) if path.suffix == ".json" else None
        if rows is not None and not isinstance(rows, list):
            raise ValueError("a .json file holds a list of rows")
        for number, row in enumerate(rows if rows is not None else _lines(file), 1):
            if not isinstance(row, dict):
                raise ValueError(f"row {number} is no object with columns: {str(row)[:40]!r}")
            yield row


def _lines(file: Iterable[str]) -> Iterator[Any]:
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number} is no JSON: {error.msg}") from None


def read_hub(source: str) -> list[Row]:
    """Rows of a dataset of the hub, ``OWNER/NAME`` or ``OWNER/NAME:CONFIG``, with its own splits.
    Needs the extra ``datasets``.

    Raises:
        ValueError: the package is not there.
        FileNotFoundError: the hub did not give it.
    """
    try:
        import datasets
    except ImportError:
        raise ValueError(
            "a task of the hub needs the package datasets: pip install 'rlkd_lab[datasets]'"
        ) from None
    name, _, config = source.partition(":")
    for noisy in ("huggingface_hub", "datasets"):
        logging.getLogger(noisy).setLevel(
            logging.ERROR
        )  # five lines a retry; what matters is said below
    try:
        found = datasets.load_dataset(name, config or None)
    except Exception as error:  # of its own, of the hub's client, of the network's
        raise FileNotFoundError(
            f"the hub did not give the dataset {source!r} ({type(error).__name__}:"
            f" {str(error).splitlines()[0][:120] if str(error) else ''}). Check the name"
            " (hub:OWNER/NAME:CONFIG), or download it on a machine with a network, save it as"
            " train.parquet and test.parquet, and give that folder"
        ) from error
    kept = {split: _NAMES[split] for split in found if split in _NAMES} or dict.fromkeys(
        found, None
    )
    return [
        (f"{source} {split}, row {number}", dict(row), given)
        for split, given in kept.items()
        for number, row in enumerate(found[split], 1)
    ]


def _columns(where: str, row: Mapping[str, Any]) -> tuple[str, str, str, int]:
    """Where, question, answer, difficulty."""
    found = {}
    for kind, names in (("question", QUESTION), ("answer", ANSWER)):
        column = next((name for name in names if name in row), None)
        if column is None:
            raise ValueError(
                f"{where} has no column of {kind}s ({', '.join(names)}): its columns are"
                f" {', '.join(map(str, row)) or 'none'}"
            )
        value = row[column]
        if not isinstance(value, str | int | float | None) or isinstance(value, bool):
            raise ValueError(
                f"{where}: column {column!r} holds a {type(value).__name__}; write text or a number"
            )
        empty = value is None or (isinstance(value, float) and not math.isfinite(value))
        found[kind] = "" if empty else str(value)
        if not found[kind].strip():
            raise ValueError(f"{where} has no {kind}: column {column!r} is empty")
    level = next((row[name] for name in DIFFICULTY if row.get(name) is not None), 0)
    digits = re.search(r"\d{1,6}", str(level))
    return where, found["question"], found["answer"], int(digits.group()) if digits else 0


def _given(where: str, row: Mapping[str, Any]) -> Split | None:
    name = row.get("split")
    if name is None:
        return None
    if name not in _NAMES:
        raise ValueError(f"{where}: unknown split {name!r}; use {', '.join(SPLITS)}")
    return _NAMES[name]


def _split(question: str, given: Split | None, has: set[Split | None]) -> Split:
    """The split of a row: what is given, but for the validation rows that a train file without
    a validation file lends.
    """
    hashed = split_of(question)
    if given is None:
        return hashed
    return (
        "validation"
        if given == "train" and "validation" not in has and hashed == "validation"
        else given
    )
