r"""Find answers in completions, read them by their kind, and compare them.

- ``extract`` finds the final answer of a completion.
- ``clean`` removes what only changes how an answer looks.
- ``kinds`` holds the table of kinds, and reads an answer as one of them.
- ``names`` cuts the name off an answer, as x of ``x = 5``.
- ``restated`` finds answers that compute nothing, as 10 + 7.
- ``numbers``, ``units``, ``quantities``, ``moments``, ``words``, ``groups`` each hold some kinds.
- :mod:`rlkd_lab.tasks.mathematics` reads formulas, the kind of all the rest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from rlkd_lab.tasks import mathematics
from rlkd_lab.tasks.answers.clean import clean
from rlkd_lab.tasks.answers.extract import final_answer, pieces
from rlkd_lab.tasks.answers.kinds import LONGEST, Answer, equal, read, read_beside
from rlkd_lab.tasks.answers.restated import computes, not_computed

__all__ = ["LONGEST", "Answer", "Grade", "equal", "final_answer", "grade", "read", "why_not"]


@dataclass(frozen=True)
class Grade:
    """What an answer is beside a reference.

    Args:
        correct: whether they mean the same.
        text: the answer's name. Answers of one question that are equal have the same name;
            every correct one has the reference's. ``None``: no answer could be read.
    """

    correct: bool
    text: str | None


@lru_cache(maxsize=2048)
def grade(gold: str, answer: str, marked: bool = True, question: str | None = None) -> Grade:
    r"""Compare an answer with a reference. Never raises.

    Args:
        gold: reference answer.
        answer: final answer of a completion, as :func:`final_answer` gives it.
        marked: whether the completion marked it; else ``answer`` is a line that holds it.
        question: what was asked. Where the reference is a plain number, an answer that computes
            nothing is wrong, such as 10 + 7
            (:func:`~rlkd_lab.tasks.answers.restated.not_computed`).

    >>> grade("1/2", "0.5")
    Grade(correct=True, text='1/2')
    >>> grade("5 dollars", "5 euros").correct, grade("72", "It is 72.", marked=False).correct
    (False, True)
    """
    if not answer:
        return Grade(False, None)
    reference = read(gold)
    asked = question if reference and reference.kind.name == "number" else None
    if asked and computes(gold):
        asked = None
    found = read_beside(reference, answer, marked, asked) if reference else None
    if reference and found and equal(reference, found):
        return Grade(True, reference.text(reference))
    small = gold.strip()
    if (
        reference
        and found
        and len(small) == 1
        and small.islower()
        and found.text() == small.upper()
    ):
        return Grade(True, reference.text(reference))  # "H" where the letter h is asked for
    if asked and found is None and not_computed(answer, asked):
        return Grade(False, None)
    name = found.text(reference) if found else ""
    if not name:
        other = read(answer) if marked else next(filter(None, map(read, pieces(answer))), None)
        name = other.text() if other else ""
    if reference and name == reference.text(reference):
        name = f"not {name}"  # names have 12 digits of what is irrational
    return Grade(False, name or None)


_OVER_ZERO = re.compile(r"/\s*\{?\s*0\s*\}?(?![\d.])|\\frac\s*\{[^{}]*\}\s*\{\s*0\s*\}")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_REASONS = (
    ("no text at all", lambda text: not text),
    (f"longer than {LONGEST} characters", lambda text: len(text) > LONGEST),
    ("an open list with an ellipsis", lambda text: r"\ldots" in text),
    ("a value that does not exist, such as 1/0", lambda text: bool(_OVER_ZERO.search(text))),
    (
        "a sum, an integral, a limit or a number too large to compute",
        lambda text: not mathematics.harmless(text),
    ),
    ("a sentence", lambda text: len(_WORD.findall(text)) > 3),
)


def why_not(gold: str) -> str | None:
    r"""Return why a reference cannot be judged; ``None``: it can.

    >>> why_not("72"), why_not(r"1, 2, \ldots, n"), why_not("???")
    (None, 'an open list with an ellipsis', 'no known form')
    """
    if read(gold) is not None:
        return None
    if len(gold) > 4 * LONGEST:
        return _REASONS[1][0]
    text = clean(gold)
    return next((reason for reason, holds in _REASONS if holds(text)), "no known form")
