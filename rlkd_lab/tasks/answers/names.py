r"""The names that answers are given to, as x in ``x = 5``."""

from __future__ import annotations

import re
from fractions import Fraction

from rlkd_lab.tasks import mathematics
from rlkd_lab.tasks.answers.numbers import NotANumber, Number, close, number
from rlkd_lab.tasks.answers.quantities import quantity

MOST_SIDES = 8
"""Sides of a chain of equations."""
_GREEK = r"\\(?:alpha|beta|gamma|delta|theta|lambda|mu|pi|rho|sigma|tau|phi|omega|ell)"
_SYMBOL = rf"(?:[A-Za-z]|{_GREEK})(?:_\{{?\s*(?:\\triangle\s*)?\\?\w{{1,4}}\s*\}}?)?'*"
_SUM = rf"{_SYMBOL}(?:\s*\+\s*{_SYMBOL}){{1,5}}"
_NAME = re.compile(
    rf"(?P<name>{_SYMBOL}|(?P<sum>{_SUM})"  # x, m + n
    rf"|\(\s*{_SYMBOL}(?:\s*,\s*{_SYMBOL}){{1,5}}\s*\)"  # (x, y)
    r"|[A-Za-z]'*\([^()=<>]{1,12}\)|\|?[A-Z]{2,4}\|?"  # f(2), AB, |AB|
    r"|P\([^()]{1,20}\)|\|[A-Z](?:\s*\\c[au]p\s*[A-Z]){0,3}\|"  # P(X = 2), |A \cup B|
    r"|(?:\\(?:gcd|max|min)|lcm)(?:\s*\([^()]{1,20}\))?|\\triangle\s*[A-Z]{3}|\[[A-Z]{3,6}\]"
    r"|m?\\angle\s*\w{1,3}|\\(?:overline|overrightarrow|vec)\s*\{\w{1,3}\}"
    r"|[A-Za-z][A-Za-z' ]{2,60}(?:\([a-z]\))?)"  # Total cost
    r"\s*(?:=|\\approx|:=|\\equiv|\\in(?![A-Za-z])|:(?!=))\s*(?P<rest>.+)\Z"
)
_NAMES = [
    re.compile(pattern + r"\Z")
    for pattern in (
        _SYMBOL,
        _SUM,
        r"[A-Za-z]'*\(\w{1,3}\)",
        r"(?P<points>[A-Z]{2,4})",
        r"m?\\angle[A-Z]{3}",
        r"m?\\angle[A-Z]",
        rf"\({_SYMBOL}(?:,{_SYMBOL}){{1,5}}\)",
    )
]
"""Names of one sort: two that differ are two things."""
_COORDINATES = re.compile(
    r"([A-Za-z])\s*=\s*([^,=]+?)\s*(?:,|\band\b)\s*([A-Za-z])\s*=\s*([^,=]+)\Z"
)
EQUALS = re.compile(r"(?<![<>!:])=(?![=>])")
ROUNDS = re.compile(r"\\approx(?![A-Za-z])")


def named(text: str, beside: bool) -> tuple[str, str | None]:
    """Cut ``x = 5`` into x and 5.

    The sides of ``2 + 3 = 5`` must agree, else the rest is ``None``. A reference ``m + n = 5`` is
    an equation; beside a reference 5, it names a 5. The sides of ``10/3 \\approx 3.33`` must agree
    to the last place of the decimal.
    """
    name = ""
    while (match := _NAME.match(text)) and (beside or not match.group("sum")):  # x = y = 5
        name, text = name or match.group("name").strip(), match.group("rest").strip()
    if ROUNDS.search(text):
        return name, _exact(text)
    sides = [side.strip() for side in EQUALS.split(text)]
    if len(sides) == 1:
        return name, text
    if len(sides) > MOST_SIDES:
        return name, None
    values = []
    for side in sides:
        try:
            values.append(number(re.sub("[$€£¥₹]", "", side)))
        except NotANumber:
            if (value := quantity(side)) is None:
                if len(sides) == 2 and side is sides[1] and _NAMES[0].match(side):  # 5 = x
                    return name or side, sides[0]
                return name, text  # an equation
            values.append(value.number)
    agreed = all(close(one, values[-1]) for one in values)
    return name, sides[-1] if agreed else None


def _exact(text: str) -> str | None:
    r"""Return the first side of ``10/3 \approx 3.33``; ``None``: another side is not it, rounded.

    Where the first side is no number, as in ``2\pi r \approx 6.28 r``, all stays as it is.
    """
    sides = [side.strip() for each in ROUNDS.split(text) for side in EQUALS.split(each)]
    if len(sides) > MOST_SIDES:
        return None
    first, *others = map(_number_in, sides)
    if first is None:
        return text
    agreed = all(other is not None and _rounded(first, other) for other in others)
    return sides[0] if agreed else None


def _number_in(side: str) -> Number | None:
    try:
        return number(re.sub("[$€£¥₹]", "", side))
    except NotANumber:
        value = quantity(side)
        return value.number if value is not None else mathematics.numeric(side)


def _rounded(exact: Number, other: Number) -> bool:
    """Return whether a number is another one, rounded or cut at its last place."""
    if close(exact, other):
        return True
    if not exact.step and not other.step and exact.value.denominator == 1:
        return False  # two whole numbers, or 3 and 10/3
    full, cut = (other, exact) if exact.step > other.step else (exact, other)
    unit, gap = cut.step or Fraction(1), abs(exact.value - other.value)
    return 2 * gap <= unit or (abs(cut.value) < abs(full.value) and gap < unit)


def point(text: str) -> str:
    """Return ``x = 1, y = 2`` as the point that it names, and any other text as it is.

    >>> point("x = 1, y = 2"), point("y = 1, x = 2")
    ('(1, 2)', 'y = 1, x = 2')
    """
    match = _COORDINATES.match(text.replace("$", ""))
    return f"({match[2]}, {match[4]})" if match and match[1] < match[3] else text


def contradict(gold: str, found: str) -> bool:
    """Whether two answers are given to two things, as in ``x = 5`` and ``y = 5``."""
    gold, found = (
        re.sub(r"\\(?:overline|overrightarrow|vec)|[\s{}|]", "", one) for one in (gold, found)
    )
    for sort in _NAMES if gold and found else ():
        one, other = sort.match(gold), sort.match(found)
        if one and other:
            if "points" in sort.groupindex or "+" in gold:
                return sorted(gold) != sorted(found)  # AB and BA
            return gold != found
    return False
