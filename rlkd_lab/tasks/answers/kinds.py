r"""What an answer means: the table of kinds, and one comparison for each.

The reference answer decides the kind: the first kind of :data:`KINDS` that can read it. The answer
of a completion is then read as that kind. math-verify's parser is the last resort.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from rlkd_lab.tasks import mathematics
from rlkd_lab.tasks.answers import groups, moments, words
from rlkd_lab.tasks.answers.clean import clean, plain
from rlkd_lab.tasks.answers.extract import DENIES, pieces
from rlkd_lab.tasks.answers.names import EQUALS, contradict, named, point
from rlkd_lab.tasks.answers.numbers import close
from rlkd_lab.tasks.answers.quantities import (
    in_sentence,
    last_quantity,
    length,
    quantity,
    same,
    span,
)
from rlkd_lab.tasks.answers.restated import not_computed

LONGEST = 200
"""Characters of an answer; a longer one is not read."""
_OTHERWISE = re.compile(
    rf"(?:\bor|{DENIES}(?: be| equal| equal to)?|\bbetween\b.*\band|\bat (?:most|least)|\bup to"
    r"|\b(?:above|below|under|minus|negative)|\bthan(?: or equal to)?|\\(?:le|ge|ne|pm)|\+/"
    r"|\d\)?[$%]*,?\s+and|(?:%|\bpercent|\bhalf)\s+of|\A\W*step"
    r"|\b(?:question|problem|equation|exercise|example)|=\s*-?[\d./]{1,20}\$?\s*(?:,|,?\s*and)"
    r"\s*\$?[A-Za-z](?:_\w{1,9})?\s*=)\W*\Z|(?<![-=])[<>]\s*\Z",
    re.I | re.DOTALL,
)
"""What stands before a number that is no answer: not 72, at most 72, 70 and 72, question 72."""
_RULED_OUT = re.compile(
    r"(?:[,(]|\band|\bbut)?\s*\b(?:not|rather than|instead of|out of)\s+(?:the\s+|all\s+)?"
    r"[$€£]?-?\d[\d,.]*(?<![.,])%?\)?",
    re.I,
)


@dataclass(frozen=True)
class Kind:
    """How answers of one kind are read, compared and named."""

    name: str
    read: Callable[[str], Any]
    """Cleaned text → what it means, ``None`` where it is no such answer."""
    same: Callable[[Any, Any], bool]
    """(reference, found) → whether they are the same."""
    text: Callable[[Any, Any], str]
    """(found, reference or ``None``) → a text, the same for equal answers; empty: nothing was
    found.
    """
    read_beside: Callable[[str], Any] | None = None
    """How a completion's answer is read where that is wider than ``read``."""
    said: Callable[[str], Any] | None = None
    """How it is read in a sentence, where nothing marks the answer."""


@dataclass(frozen=True)
class Answer:
    """An answer that was read.

    Args:
        kind: see :data:`KINDS`.
        value: what the kind's ``read`` returned.
        name: the variable that the answer is given to, such as x in ``x = 5``.
    """

    kind: Kind
    value: Any
    name: str = ""

    def text(self, gold: Answer | None = None) -> str:
        """Name the answer; equal answers of one question have equal names."""
        text = self.kind.text(
            self.value, gold.value if gold is not None and gold.kind is self.kind else None
        )
        return (
            f"{self.name} = {text}"
            if gold is not None and contradict(gold.name, self.name)
            else text
        )


@dataclass(frozen=True)
class Formula:
    """The right side of an equation (2x of ``y = 2x``) and the whole of it; one may be ``None``."""

    side: Any
    whole: Any


@dataclass(frozen=True)
class Several:
    """Members of a set or of a tuple."""

    kind: str
    members: tuple[Answer, ...]


def read(text: str) -> Answer | None:
    r"""Read a reference answer, or any answer by itself. Never raises.

    >>> texts = ("72", "(B) 12", "7:00", r"x \le 3", "1, 2", "x^2", "blue")
    >>> [read(text).kind.name for text in texts]
    ['number', 'choice', 'time or ratio', 'interval', 'set or tuple', 'expression', 'word']
    """
    try:
        return _read(text) if len(text) <= 4 * LONGEST else None
    except Exception:
        return None


def read_beside(
    gold: Answer, text: str, marked: bool, question: str | None = None
) -> Answer | None:
    """Read a completion's answer as the kind of the reference. Never raises.

    Args:
        gold: the reference.
        text: the final answer, or a line that holds it.
        marked: whether the completion marked it, as in a box.
        question: what was asked. An answer that computes nothing is none
            (:func:`~rlkd_lab.tasks.answers.restated.not_computed`).
    """
    try:
        if len(text) > 4 * LONGEST or (question and not_computed(text, question)):
            return None
        parts = [text] if marked else pieces(text)
        for piece in reversed(parts) if gold.kind.name == "word" else parts:
            if question and not_computed(piece, question):
                continue
            found = _read_as(gold.kind, clean(piece), beside=True)
            if found is not None:
                return found
        said = (
            gold.kind.said(clean(plain(text)))
            if gold.kind.said and (not marked or gold.kind.name == "choice")
            else None
        )
        return Answer(gold.kind, said) if said is not None else None
    except Exception:
        return None


def equal(gold: Answer, found: Answer) -> bool:
    """Return whether two readings mean the same. Never raises."""
    try:
        return _equal(gold, found)
    except Exception:
        return False


@lru_cache(maxsize=8192)
def _read(text: str) -> Answer | None:
    cleaned = clean(text)
    if not cleaned or len(cleaned) > LONGEST or r"\ldots" in cleaned:
        return None
    return next((found for kind in KINDS if (found := _read_as(kind, cleaned)) is not None), None)


@lru_cache(maxsize=8192)
def _read_as(kind: Kind, cleaned: str, beside: bool = False) -> Answer | None:
    if not cleaned or len(cleaned) > LONGEST or r"\ldots" in cleaned:
        return None
    reader = kind.read_beside if beside and kind.read_beside else kind.read
    if kind.name in ("date", "time or ratio", "interval", "choice"):
        value = reader(cleaned)
        name = value.name if isinstance(value, groups.Intervals) else ""
    else:
        value, name = reader(cleaned) if kind.name == "set or tuple" else None, ""  # x = 1, y = 2
        if value is None:
            name, rest = named(cleaned, beside)
            value = reader(rest) if rest is not None else None
            if rest is None:
                return None
    if value is None and beside and kind.name == "interval":  # x = 0, y = 1; D = (0, 1)
        if (rest := point(cleaned)) == cleaned:
            rest = named(cleaned, beside)[1]
        value = reader(rest) if rest not in (None, cleaned) else None
    if kind.name == "expression":
        whole = reader(cleaned) if EQUALS.search(cleaned) else None
        value = Formula(value, whole) if value is not None or whole is not None else None
    return Answer(kind, value, name) if value is not None else None


def _equal(gold: Answer, found: Answer) -> bool:
    if gold.kind is not found.kind:
        return False
    return not contradict(gold.name, found.name) and gold.kind.same(gold.value, found.value)


def _choice_beside(text: str) -> tuple[str, str] | None:
    return words.letter(text) or ((text.upper(), "") if re.fullmatch(r"[a-j]", text) else None)


def _choice_said(text: str) -> tuple[str, str]:
    return words.letter_said(text) or "", text


def _same_choice(gold: tuple[str, str], found: tuple[str, str]) -> bool:
    if found[0]:
        return gold[0] == found[0]
    behind = read(gold[1]) if gold[1] else None
    said = read_beside(behind, found[1], marked=False) if behind else None
    return bool(behind and said and equal(behind, said))


def _several(text: str) -> Several | None:
    cut = groups.members(text)
    if cut is None:
        return None
    kind, ways = cut
    for parts in ways:
        found = [
            one
            for part in parts
            if (one := _read(part)) is not None
            and (one.kind.name != "set or tuple" or part[0] in "([\\")
        ]
        if len(found) == len(parts):
            name = found[0].name if found else ""  # x = 2, 3
            return Several(
                kind, tuple(Answer(one.kind, one.value, one.name or name) for one in found)
            )
    return None


def _several_beside(text: str) -> Several | None:
    found = _several(text)
    if found is None and (one := _read(text)) is not None and one.kind.name != "set or tuple":
        return Several("set", (one,))
    return found


def _same_several(gold: Several, found: Several) -> bool:
    one, other = gold.members, found.members
    ordered = _in_order(gold) and not any(right.name for right in other)
    ordered |= _in_order(found) and not any(left.name for left in one) and gold.kind == "tuple"
    if gold.kind != found.kind and (not ordered or "list" in (gold.kind, found.kind)):
        return False
    names = sorted(left.name for left in one)
    if len(set(names)) == len(names) > 1 and names == sorted(right.name for right in other):
        one, other = (tuple(sorted(side, key=_name)) for side in (one, other))
        return all(map(equal, one, other))
    if gold.kind != "set" or ordered:
        return len(one) == len(other) and all(map(equal, one, other))
    rest = list(other)  # 1, 1, 2 is not 1, 2
    for left in one:
        match = next((index for index, right in enumerate(rest) if equal(left, right)), None)
        if match is None:
            return False
        del rest[match]
    return not rest


def _name(answer: Answer) -> str:
    return answer.name


def _in_order(found: Several) -> bool:
    """Whether the members have names in alphabetical order, as in ``x = 1, y = 2``."""
    letters = [one.name[:1] for one in found.members]
    return len(letters) > 1 and all(letters) and letters == sorted(set(letters))


def _several_text(found: Several, gold: Several | None) -> str:
    names = len({one.name for one in found.members}) > 1
    texts = [f"{one.name}={one.text()}" if names else one.text() for one in found.members]
    return (
        "(" + ", ".join(texts) + ")"
        if found.kind == "tuple"
        else "[" + ", ".join(texts) + "]"
        if found.kind == "list"
        else "{" + ", ".join(sorted(set(texts))) + "}"
    )


def _same_formula(gold: Formula, found: Formula) -> bool:
    sides = (
        gold.side is not None
        and found.side is not None
        and mathematics.agree(gold.side, found.side)
    )
    return sides or (
        gold.whole is not None
        and found.whole is not None
        and mathematics.agree(gold.whole, found.whole)
    )


def _word(text: str) -> str | None:
    return words.word(text) or span(text)


def _word_beside(text: str) -> str | None:
    if text in (r"\emptyset", r"\{\}"):
        return "no solution"
    return _word(text) or span(re.sub(r"(?<=\d)\s+to\s+(?=\d)", "-", text))


KINDS = (
    Kind(
        "choice",
        words.letter,
        _same_choice,
        lambda found, gold: found[0],
        _choice_beside,
        _choice_said,
    ),
    Kind(
        "yes or no",
        words.yes,
        lambda gold, found: gold == found,
        lambda found, gold: found,
        words.yes_said,
        words.yes_said,
    ),
    Kind(
        "date",
        moments.date,
        moments.same_date,
        lambda found, gold: moments.date_text(found),
        None,
        moments.date_said,
    ),
    Kind(
        "time or ratio",
        moments.colon,
        moments.same_colon,
        lambda found, gold: moments.colon_text(found),
        moments.colon_or_fraction,
        moments.colon_said,
    ),
    Kind(
        "number",
        quantity,
        same,
        lambda found, gold: found.text(gold),
        lambda text: quantity(text) or length(text),
        lambda text: _number_said(text),
    ),
    Kind("word", _word, lambda gold, found: gold == found, lambda found, gold: found, _word_beside),
    Kind(
        "interval",
        groups.intervals,
        groups.same_intervals,
        lambda found, gold: groups.intervals_text(found),
    ),
    Kind("set or tuple", _several, _same_several, _several_text, _several_beside),
    Kind(
        "expression",
        mathematics.formula,
        _same_formula,
        lambda found, gold: str(found.whole if found.side is None else found.side),
    ),
)
"""In the order in which a reference answer is tried."""


def _number_said(text: str) -> Any:
    text = _RULED_OUT.sub("", text)
    last = last_quantity(text)
    rest = named(last, True)[1] if "=" in last else last
    if rest is None or _OTHERWISE.search(text[: text.rfind(last)]):
        return None
    if "=" in rest:
        *sides, rest = (side.strip() for side in EQUALS.split(rest))
        found = in_sentence(rest)
        before = quantity(sides[-1]) if sides else None
        return (
            found
            if found is not None and (before is None or close(before.number, found.number))
            else None
        )
    return in_sentence(rest)
