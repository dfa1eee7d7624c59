"""Rows of questions and answers: read from files or the hub, with their columns found.

A row has a question (column ``question``, ``problem`` or ``prompt``, or the last user turn of
``messages``, with the turns before it as context). It has an answer (``answer``, ``solution`` or
``final_answer``, or the last assistant turn of ``messages``). ``level`` or ``difficulty``
("Level 3") is the difficulty, 0 without; ``split`` may name a split. A row that lacks one of them
is left out and counted by its reason.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import logging
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkd_lab.tasks.base import SPLITS, Chat, Split
from rlkd_lab.tasks.cells import (
    LeftOut,
    Missing,
    MissingColumn,
    Turns,
    cell_of,
    dialogue,
    is_empty,
    is_index,
    last_of,
    replies,
    reply_of,
    text_of,
    turns_of,
)
from rlkd_lab.tasks.fields import cells_of

FILES = (".jsonl", ".json", ".parquet", ".csv")
QUESTION = ("question", "problem", "prompt", "messages")
ANSWER = ("answer", "solution", "final_answer")
DIFFICULTY = ("level", "difficulty")
HARDEST = 999_999
DELIMITERS = ",;\t"
"""Of CSV files: the one that divides the header into the most columns."""
COMMA = re.compile(r"[-+]?(\d+,(\d{1,2}|\d{4,})|0,\d+)").fullmatch
"""A number that may have a decimal comma; ``1,234`` is read as thousands."""
NAMES: Mapping[str, Split] = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}

Texts = tuple[str, str, str | None, Turns]
Row = tuple[str, dict[str, Any], Split | None]
"""Where it stands (file and row, from 1), its columns, the split that its file gives it."""


@dataclass(frozen=True)
class Question:
    """What a usable row says; ``given`` is the split that its file or column names."""

    where: str
    question: str
    answer: str
    difficulty: int
    given: Split | None
    cells: Mapping[str, str]
    """Further columns that were asked for."""
    context: Turns = ()
    """Role and text of the turns before the question."""

    @property
    def key(self) -> str:
        """The question, with the turns before it."""
        return str(self.prompt(self.question))

    def prompt(self, last: str) -> str:
        """Return ``last`` as the user's last turn behind the context, if there is one."""
        return Chat((*self.context, ("user", last))) if self.context else last


# --- files ----------------------------------------------------------------------------------------


def read_files(path: Path) -> list[Row]:
    """Return rows of a file, or of the files train.*, validation.* and test.* of a folder.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: a file that cannot be read, with the row; a folder with two files of one split.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        kinds = f"a {', '.join(FILES[:-1])} or {FILES[-1]} file"
        raise FileNotFoundError(
            f"no file or folder {path}; a task of questions is {kinds}, or a folder with"
            " train.* and test.*"
        )
    if path.suffix not in FILES:
        raise ValueError(f"{path} is of no kind that is read here: {', '.join(FILES)}")
    try:
        return [
            (f"{path.name}, row {number}", row, None) for number, row in enumerate(_read(path), 1)
        ]
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} cannot be read: it is not UTF-8 ({error.reason} at byte {error.start});"
            " save it as UTF-8"
        ) from error
    except (ValueError, OSError, csv.Error) as error:  # pyarrow's errors are these too
        raise ValueError(f"{path} cannot be read: {error}") from error


def _read_folder(path: Path) -> list[Row]:
    files: dict[Split, Path] = {}
    for name, split in NAMES.items():
        for file in (path / f"{name}{suffix}" for suffix in FILES):
            if not file.is_file():
                continue
            if split in files:
                raise ValueError(
                    f"the folder {path} has two files of {split} rows, {files[split].name}"
                    f" and {file.name}: keep one"
                )
            files[split] = file
    if not {"train", "test"} <= set(files):
        raise FileNotFoundError(
            f"the folder {path} needs a train file and a test file"
            f" ({', '.join(f'train{suffix}' for suffix in FILES)})"
        )
    return [
        (where, row, split) for split, file in files.items() for where, row, _ in read_files(file)
    ]


def _read(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        yield from pq.read_table(path).to_pylist()
        return
    if path.suffix == ".csv":
        yield from _csv_rows(path.read_bytes().decode("utf-8-sig"))
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


def _csv_rows(text: str) -> Iterator[dict[str, str]]:
    """Return rows of a CSV file whose first line names the columns.

    >>> list(_csv_rows('question;answer\\n"1;\\n1?";2\\n'))
    [{'question': '1;\\n1?', 'answer': '2'}]
    """
    csv.field_size_limit(
        min(sys.maxsize, 2**31 - 1)
    )  # of the whole process; a long question is no error

    def records(delimiter: str) -> Iterator[list[str]]:
        # strict: otherwise a quote that is not closed takes the rest of the file for one field
        return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)

    def width(delimiter: str) -> int:
        try:
            return len(next(records(delimiter), []))
        except csv.Error:
            return 0

    lines = records(max(DELIMITERS, key=width))
    header = [name.strip() for name in next(lines, [])]
    double = next((name for name in header if header.count(name) > 1), None)
    if double is not None:
        raise ValueError(f"its first line, which names the columns, has {double!r} twice")
    number = 0
    for fields in lines:
        if not any(field.strip() for field in fields):
            continue
        number += 1
        if len(fields) > len(header):
            raise ValueError(
                f"row {number} has {len(fields)} fields and the first line names"
                f" {len(header)}: put quotes around fields that hold a delimiter"
            )
        yield dict(zip(header, fields, strict=False))


def read_hub(source: str) -> list[Row]:
    """Return rows of a dataset of the hub, ``OWNER/NAME`` or ``OWNER/NAME:CONFIG``, with its own
    splits. Needs the extra ``datasets``.

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
    for noisy in ("huggingface_hub", "datasets"):  # five lines a retry; see below
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        found = datasets.load_dataset(name, config or None)
    except Exception as error:  # of its own, of the hub's client, of the network's
        raise FileNotFoundError(
            f"the hub did not give the dataset {source!r} ({type(error).__name__}:"
            f" {str(error).splitlines()[0][:120] if str(error) else ''}). Check the name"
            " (hub:OWNER/NAME:CONFIG), or download it on a machine with a network, save it as"
            " train.parquet and test.parquet, and give that folder"
        ) from error
    kept = {split: NAMES[split] for split in found if split in NAMES} or dict.fromkeys(found, None)
    return [
        (f"{source} {split}, row {number}", dict(row), given)
        for split, given in kept.items()
        for number, row in enumerate(found[split], 1)
    ]


# --- columns --------------------------------------------------------------------------------------


def read_questions(
    name: str,
    rows: Sequence[Row],
    columns: Mapping[str, str] | None = None,
    fields: Sequence[str] = (),
) -> tuple[list[Question], list[str]]:
    """Return the usable rows, and sentences that say which were left out and why.

    Args:
        name: of the task, for the sentences.
        rows: see :data:`Row`.
        columns: names for ``question`` and ``answer``; by default :data:`QUESTION` and
            :data:`ANSWER`.
        fields: further columns, all of which a usable row must have.

    Raises:
        ValueError: a file that has no such column, or no usable row; an unknown split.
    """
    columns = columns or {}
    found: list[Question] = []
    reasons: dict[str, list[str]] = {}
    systems: list[str] = []
    for file, part in _by_file(rows).items():
        _check_columns(file, part, columns)
        usable = 0
        for where, row, given in part:
            try:
                question, answer, system, context = _texts(row, columns)
            except LeftOut as error:
                reasons.setdefault(str(error), []).append(where)
                continue
            usable += 1
            systems += [where] if system else []
            split, cells = given or _given(where, row), cells_of(where, row, fields)
            found.append(Question(where, question, answer, _difficulty(row), split, cells, context))
        if not usable:
            raise ValueError(f"{file} has no usable row: {_counted(reasons)}")
    sentences = []
    if reasons:
        gone = sum(map(len, reasons.values()))
        sentences.append(f"{name}: left out {gone:,} of {len(rows):,} rows: {_counted(reasons)}")
    if commas := [row for row in found if ".csv, row" in row.where and COMMA(row.answer.strip())]:
        sentences.append(
            f"{name}: {len(commas):,} answers of a CSV file, such as {commas[0].answer.strip()!r}"
            f" (first {commas[0].where}), are read as lists; write a point where the comma begins"
            " decimal places"
        )
    if systems:
        many = f"{len(systems):,} rows have" if len(systems) > 1 else "1 row has"
        sentences.append(
            f"{name}: {many} a system turn (first {systems[0]}), which is not asked; a run has one"
            " system turn for all, --set system_prompt=TEXT"
        )
    return found, sentences


def _by_file(rows: Sequence[Row]) -> dict[str, list[Row]]:
    files: dict[str, list[Row]] = {}
    for row in rows:
        files.setdefault(row[0].rpartition(", row ")[0] or row[0], []).append(row)
    return files


def _counted(reasons: Mapping[str, Sequence[str]]) -> str:
    counts = (f"{len(places):,} {why} (first {places[0]})" for why, places in reasons.items())
    return "; ".join(counts)


def _check_columns(file: str, rows: Sequence[Row], columns: Mapping[str, str]) -> None:
    """Refuse a file none of whose rows has the columns that are asked for."""
    there = list(dict.fromkeys(str(name) for _, row, _ in rows for name in row))
    has = f"its columns are {', '.join(there) or 'none'}"
    for kind, usual in (("question", QUESTION), ("answer", ANSWER)):
        wanted = columns.get(kind)
        if wanted is not None and wanted not in there:
            close = difflib.get_close_matches(wanted, there, n=1, cutoff=0.4)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise MissingColumn(
                f"{file} has no column {wanted!r}, which task.{kind} names:"
                f" {hint}{has[0].upper()}{has[1:]}"
            )
        if (
            wanted is None
            and not set(usual) & set(there)
            and not (
                kind == "answer"
                and any(turns_of(row[name]) for _, row, _ in rows for name in replies(row))
            )
        ):
            raise MissingColumn(
                f"{file} has no column of {kind}s ({', '.join(usual)}): {has}; name one with"
                f" --set task.{kind}=COLUMN"
            )


def _texts(row: Mapping[str, Any], columns: Mapping[str, str]) -> Texts:
    """Return question, answer and system turn of a row, and the turns before the question.

    Raises:
        LeftOut: it lacks one, or holds what is not read here.
    """
    asked = _value(row, columns, "question", QUESTION)
    turns = turns_of(asked)
    question, reply, system, context = (
        dialogue(turns) if turns else (cell_of(asked, "question"), None, None, ())
    )
    answered = _value(row, columns, "answer", ANSWER)
    if turns := turns_of(answered):
        return question, text_of(last_of(turns, "assistant"), "answer"), system, context
    if is_empty(answered) and "answer" not in columns and (said := reply or reply_of(row)):
        return question, text_of(said, "answer"), system, context
    if context and reply and turns_of(asked):
        raise LeftOut("with an answer beside a chat that ends with the assistant's turn")
    answer = cell_of(answered, "answer")
    if is_index(answered, row, question):
        raise LeftOut("with the place of a choice as answer, where the choice itself is read")
    return question, answer, system, context


def _value(
    row: Mapping[str, Any], columns: Mapping[str, str], kind: str, usual: Sequence[str]
) -> Any:
    names = (columns[kind],) if kind in columns else usual
    there = [row[name] for name in names if name in row]
    return next((value for value in there if not is_empty(value)), there[0] if there else Missing())


def _difficulty(row: Mapping[str, Any]) -> int:
    """Return a number as it is, not below 0 and at most :data:`HARDEST`; of a text, its first
    number.

    >>> [_difficulty({"level": level}) for level in ("Level 3", 2.5, "-2", "1e9", None)]
    [3, 2, 0, 999999, 0]
    """
    level = str(next((row[name] for name in DIFFICULTY if row.get(name) is not None), 0))
    if not (digits := re.search(r"\d{1,6}", level)):
        return 0
    try:
        number = float(level)
    except ValueError:
        number = float(digits.group())
    return int(max(0, min(number, HARDEST)))


def _given(where: str, row: Mapping[str, Any]) -> Split | None:
    name = row.get("split")
    if is_empty(name):  # as an empty field of CSV
        return None
    known = str(name).strip().casefold()
    if known not in NAMES:
        close = difflib.get_close_matches(known, NAMES, n=1)
        hint = f"did you mean {close[0]!r}? Use" if close else "use"
        raise ValueError(f"{where}: unknown split {name!r}; {hint} {', '.join(SPLITS)}")
    return NAMES[known]
