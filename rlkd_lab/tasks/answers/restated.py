r"""Answers that equal the reference and compute nothing, as ``7 + 10`` for ``What is 10 + 7?``.

A student that is rewarded for them stops computing.
"""

from __future__ import annotations

import re
from collections import Counter

from rlkd_lab.tasks.answers.clean import clean
from rlkd_lab.tasks.answers.names import EQUALS, ROUNDS

_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_JOINED = r"(?:[-+*]|\\(?:times|cdot|div)(?![a-z])|plus|minus|times|divided by)"
_SUM = re.compile(
    rf"\d[\d.,)}}\s]*{_JOINED}(?!\s*10\s*\^)[-+({{\s]*[\d.]+(?:[)}}\s]*{_JOINED}[-+({{\s]*[\d.]+)*"
)
"""A sum or a product of numbers; 3 × 10^5 is a number."""
_OTHERS = re.compile(r"\d[)}\s]*(?:!|(?:\*\*|[/^])[\s({]*-?\d)|\\(?:frac|sqrt|log|ln|binom)")
"""Powers, fractions, roots: often the shortest way to write a number."""
_SUBSCRIPT = re.compile(r"_\s*(?:\w+|\{\w*\})")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")


def computes(text: str) -> bool:
    r"""Return whether a text holds a sum, product, power, fraction or root of numbers.

    >>> [computes(text) for text in ("3 + 4", r"\sqrt{9}", "-5", "1,024", "a 5-foot board")]
    [True, True, False, False, False]
    """
    text = clean(text)
    return bool(_SUM.search(text) or _OTHERS.search(text))


def not_computed(answer: str, question: str) -> bool:
    """Return whether an answer stops at a sum or a product, or repeats a term of the question.

    >>> texts = ("7 + 10", "10 + 7 = 17", "10 + 7 is 17", "17", "2^4")
    >>> [not_computed(text, "What is 10 plus 7?") for text in texts]
    [True, False, False, False, False]
    """
    known = Counter(_NUMBER.findall(clean(question)))
    text = _SUBSCRIPT.sub("", clean(answer))
    sides = [
        side for each in ROUNDS.split(text) for side in EQUALS.split(each) if _NUMBER.search(side)
    ]
    return bool(sides) and all(_stops(side, known) for side in sides)


def _stops(side: str, known: Counter[str]) -> bool:
    if _SUM.search(side):
        rest = _SUM.sub(" ", side)
        return not (_WORD.search(rest) and _NUMBER.search(rest))
    return bool(_OTHERS.search(side)) and Counter(_NUMBER.findall(side)) <= known
