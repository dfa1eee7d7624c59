r"""Questions with answers, from a file or the hub, judged by the kind of the answer: GSM8K and MATH
and whatever looks like them.

How rows are read: :mod:`rlkd_lab.tasks.rows`. A row's answer is text whose final answer stands
after ``####`` or in ``\boxed{…}``, or is all of it.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from rlkd_lab.tasks.answers import final_answer, grade, why_not
from rlkd_lab.tasks.base import SPLITS, Example, Score, Split, check_split, seeded, split_of
from rlkd_lab.tasks.rows import Question, Row, read_questions

TEMPLATE = "{question}\nReason step by step, and put the final answer within \\boxed{}.\n"


class QuestionTask:
    r"""Rows of questions and answers.

    Three parts make the score:

    - ``accuracy`` is 1 where the final answer equals the reference
      (:func:`~rlkd_lab.tasks.answers.grade`);
    - ``format`` is 1 where there is a marked final answer (``\boxed{…}``, ``#### …`` or
      ``<answer>…</answer>``);
    - ``parsed`` is 1 where an answer could be read.

    A row's file name or its ``split`` column decides its split. Where no row is for validation,
    the hash of the question takes 10 % of the train rows. Where nothing names a split, the hash
    cuts 80/10/10. A split that stays empty gets one question of the largest.

    Args:
        name: of the task.
        rows: see :data:`~rlkd_lab.tasks.rows.Row`.
        template: with ``{question}``.
        columns: names of the columns ``question`` and ``answer``.
        fields: further columns that ``Example.meta`` holds. ``trace`` is the row's answer where
            there is no such column and the answer holds more than the final one.

    Raises:
        ValueError: no column of questions or answers, no answer that can be read, no row for
            training or validation.

    Warns:
        UserWarning: how many rows are left out and why, with the first of them; which questions
            stand there twice.
    """

    ood_difficulty: tuple[int, int] | None = None

    def __init__(
        self,
        name: str,
        rows: Iterable[Row],
        template: str | None = None,
        columns: Mapping[str, str] | None = None,
        fields: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.template = template or TEMPLATE
        self.settings = dict(columns or {})
        self._rows: dict[Split, list[Example]] = {split: [] for split in SPLITS}
        self._wanted: tuple[Split, ...] = ("train", "validation")
        self.left_out: dict[str, list[str]] = {}
        """Rows whose reference cannot be judged, by reason."""
        questions, sentences = read_questions(name, list(rows), columns, fields)
        usable: list[Question] = []
        has = {row.given for row in questions}
        self.names_splits = has != {None}
        """Whether a file or a column names the split of some row."""
        for row in questions:
            answer, marked = final_answer(row.answer)
            answer = answer if marked else row.answer.strip()
            if reason := why_not(answer):
                self.left_out.setdefault(reason, []).append(f"{row.where}: {answer[:60]!r}")
                continue
            usable.append(row)
            prompt = row.prompt(self.template.replace("{question}", row.question))
            meta = {**row.cells, "where": row.where}
            if "trace" in fields and "trace" not in meta and row.answer.strip() != answer:
                meta["trace"] = row.answer
            example = Example(prompt, answer, row.difficulty, row.key, meta)
            self._rows[_split(row.key, row.given, has)].append(example)
        if self.left_out:
            sentences.append(self._unjudged(len(questions)))
        sentences += self._keep_apart()
        self._fill(usable, has)
        if usable and None in has and not self._rows["test"]:
            sentences.append(
                f"{self.name} has no test row: three different questions without a split fill"
                " train, validation and test"
            )
        for sentence in sentences + [
            twice for split in SPLITS if (twice := self._asked_twice(split))
        ]:
            warnings.warn(sentence, stacklevel=2)
        if not usable:
            raise ValueError(f"{name} has no row whose answer can be judged")
        self._check_rows(len(usable))

    def _unjudged(self, rows: int) -> str:
        """Return a sentence about references that cannot be judged."""
        reasons = "; ".join(
            f"{len(places)} × {reason}, first {places[0]}"
            for reason, places in sorted(self.left_out.items())
        )
        return (
            f"{self.name}: {sum(map(len, self.left_out.values()))} of {rows} reference answers"
            f" cannot be judged and are left out: {reasons}"
        )

    def _check_rows(self, usable: int) -> None:
        for split in self._wanted:
            if not self._rows[split]:
                rows = "its 1 row" if usable == 1 else f"its {usable} rows"
                raise ValueError(
                    f"{self.name} has no {split} row among {rows} that can be asked: give"
                    " three different questions or more, or a column split that names some"
                )
        levels = [example.difficulty for example in self._rows[self._wanted[0]]]
        self.train_difficulty = (min(levels), max(levels))

    @classmethod
    def without_rows(cls, name: str) -> QuestionTask:
        """One that judges and asks nothing."""
        task = cls.__new__(cls)
        task.name, task.train_difficulty = name, (0, 0)
        return task

    def _keep_apart(self) -> list[str]:
        """Drop training rows whose question is asked in validation or test too, and validation
        rows that are asked in test, and say how many.
        """
        asked: set[str] = set()
        exact: set[str] = set()
        sentences = []
        for split in reversed(SPLITS):
            kept = [row for row in self._rows[split] if _key(row.id) not in asked]
            if len(kept) < len(self._rows[split]):
                gone = len(self._rows[split]) - len(kept)
                near = sum(
                    _key(row.id) in asked and row.id not in exact for row in self._rows[split]
                )
                sentences.append(
                    f"{self.name}: {gone} {split} rows ask a question that is held out too"
                    + (f" ({near} in other spacing or letter case)" if near else "")
                    + f"; left out of {split}"
                )
            self._rows[split] = kept
            asked |= {_key(row.id) for row in kept}
            exact |= {row.id for row in kept}
        return sentences

    def _fill(self, usable: Sequence[Question], has: set[Split | None]) -> None:
        """Give each split that the hash has left empty a question of the largest split, the first
        in the order of a hash. Only questions whose split the hash chose are moved, each with all
        of its rows.
        """
        wanted = (
            SPLITS if None in has else ("train", "validation") if "validation" not in has else ()
        )
        lender = None if None in has else "train"
        free = {_key(row.key) for row in usable if row.given == lender} - {
            _key(row.key) for row in usable if row.given != lender
        }
        for split in [split for split in wanted if not self._rows[split]]:
            lent = {
                one: sorted({row.id for row in self._rows[one] if _key(row.id) in free}, key=_hash)
                for one in SPLITS
            }
            most = max(SPLITS, key=lambda one: len(lent[one]))
            rows = self._rows[most]
            if lent[most] and len({_key(row.id) for row in rows}) > 1:
                key = _key(lent[most][0])
                self._rows[split] = [row for row in rows if _key(row.id) == key]
                self._rows[most] = [row for row in rows if _key(row.id) != key]

    def _asked_twice(self, split: Split) -> str | None:
        """Return a sentence about the questions that a split asks more than once."""
        times = Counter(_key(row.id) for row in self._rows[split])
        twice = [row for row in self._rows[split] if times[_key(row.id)] > 1]
        if not twice:
            return None
        answers: dict[str, set[str]] = {}
        for row in twice:
            answers.setdefault(_key(row.id), set()).add(row.answer)
        text = (
            f"{self.name}: {len(answers)} {split} questions are asked more than once, in"
            f" {len(twice)} rows (first {twice[0].meta['where']})"
        )
        odd = [row for row in twice if len(answers[_key(row.id)]) > 1]
        if not odd:
            return text
        many = sum(len(given) > 1 for given in answers.values())
        places = [
            f"{row.meta['where']}: {row.answer[:40]!r}"
            for row in odd
            if _key(row.id) == _key(odd[0].id)
        ]
        return (
            f"{text}; {many} of them with different answers, such as {odd[0].id[:60]!r}"
            f" ({'; '.join(places[:3])})"
        )

    def rows(self, split: Split) -> list[Example]:
        """Return all rows of a split in the file's order; ``meta["where"]`` is file and row."""
        return list(self._rows[split])

    def hold_out(self) -> None:
        """Make every row one of validation, unless splits are named: the task is not trained on."""
        self._wanted = ("validation",)
        if not self.names_splits:
            whole = [row for split in SPLITS for row in self._rows[split]]
            self._rows = {"train": [], "validation": whole, "test": []}
        self._check_rows(sum(map(len, self._rows.values())))

    def keep(self, fits: Callable[[Example], bool]) -> None:
        """Leave out the rows that do not fit.

        Raises:
            ValueError: no training or validation row is left.
        """
        self._rows = {
            split: [row for row in rows if fits(row)] for split, rows in self._rows.items()
        }
        self._check_rows(sum(map(len, self._rows.values())))

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
        rng = seeded(self.name, seed, split, low, high)
        found: list[Example] = []
        while len(found) < n:
            found += rng.sample(rows, len(rows))
        return found[:n]

    def score(self, completion: str, example: Example) -> Score:
        answer, marked = final_answer(completion)
        found = grade(example.answer, answer, marked, example.prompt)
        parts = {
            "accuracy": float(found.correct),
            "format": float(marked),
            "parsed": float(found.text is not None),
        }
        return Score(parts, found.text)


def _split(question: str, given: Split | None, has: set[Split | None]) -> Split:
    """Return the split of a row: what is given, but for the validation rows that a train file
    without a validation file lends.
    """
    hashed = split_of(question)
    if given is None:
        return hashed
    return (
        "validation"
        if given == "train" and "validation" not in has and hashed == "validation"
        else given
    )


def _key(question: str) -> str:
    """Return the same for questions that differ in spacing, or in the case of words: of the first,
    and of those of two letters or more. Single letters may be names in a formula.

    >>> _key(" what is 1+1?") == _key("What is  1+1?"), _key("What is T+t?") == _key("What is t+t?")
    (True, False)
    """
    words = unicodedata.normalize("NFC", question).split() if question.split()[1:] else []
    if not words:
        return question.strip()
    return re.sub(
        r"^[^\W\d_]+|(?<![^\W\d_])[^\W\d_]{2,}",
        lambda word: word.group().casefold(),
        " ".join(words),
    )


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()
