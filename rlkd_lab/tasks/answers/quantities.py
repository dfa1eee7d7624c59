r"""Numbers with or without a unit, a currency or a percent sign; lengths of time."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from rlkd_lab.tasks import mathematics
from rlkd_lab.tasks.answers.numbers import NotANumber, Number, close, number
from rlkd_lab.tasks.answers.units import Unit, agree, large, unit

_ABOUT = re.compile(
    r"(?:about|approximately|approx\.?|exactly|roughly|around|a total"
    r" of|\\approx|\\sim|~)\s*(?=[-\d.$€£¥₹\\(])",
    re.I,
)
_BEFORE = re.compile(r"(?P<minus>-?)\s*(?P<unit>US\$|[$€£¥₹]|USD|EUR|GBP|Rs\.?)\s*(?=[-\d.\\(])")
_STARTS = re.compile(r"\\[A-Za-z]+|[A-Za-zµμΩ]+|\^\\circ|[%$€£¥₹¢]")
_PAIR = r"(?:(?:,\s*)?(?:and\s+)?(\d[\d,]*(?:\.\d+)?(?:\s+\d+/\d+)?)\s*([A-Za-z]+)\.?\s*)"
_PAIRS = re.compile(rf"{_PAIR}{{2,4}}\Z", re.ASCII)
_ONE = re.compile(_PAIR, re.ASCII)
_BASE = re.compile(
    r"(\d+)_(?:\{?\s*(\d{1,2})\s*\}?|\{?\s*(two|three|four|five|six|seven|eight|nine)\s*\}?)\Z",
    re.ASCII,
)
_CLOCK = re.compile(r"(\d{1,2}):(?!00)([0-5]\d)\Z", re.ASCII)
_AND_A_HALF = re.compile(r"(?<=\d)\s+and\s+(?:a|one)[ -]half\b", re.I)
_SPOKEN = (
    (re.compile(r"(?<=\d)\s*'\s*(\d{1,2})\s*(?:\"|'')\Z", re.ASCII), r" feet \1 inches"),
    (re.compile(r"\A(?:negative|minus)\s+(?=[\d.])", re.I), "-"),
    (_AND_A_HALF, " 1/2"),
)
_RESIDUE = re.compile(
    r"(\d{1,20})\s*\(?\s*\\?[bp]?mod(?:\s*\{\s*|\s*)(\d{1,20})\s*\}?\s*\)?\Z", re.ASCII
)
_RATIO = re.compile(r"(\d+)\s*:\s*(\d+)\Z", re.ASCII)


_OPERATORS = {"+", "-", "*", "/", "=", "^", "×", "·", "÷", "−"}
_COUNTS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
)
_TEN = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_TENS = re.compile(rf"({'|'.join(_TEN)})(?:[- ]({'|'.join(_COUNTS[1:10])}))?\Z", re.I)
_HALVES = {"half", "a half", "one half", "one-half"}
NONE = Unit()
_PART = re.compile(
    r"(?:ten|hundred|thousand)ths?\b|and\s+(?:a|one)[ -](?:half|third|quarter)\b"
    r"|or\s+(?:more|less|fewer)\b|at\s+(?:most|least)\b",
    re.I,
)
_PARTS = ("half", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_COUNTED = re.compile(
    rf"({'|'.join(_COUNTS[1:10])})[- ]({'|'.join(_PARTS)}|halve|quarter)s?\Z", re.I
)
"""Two thirds."""
_FACTOR = re.compile(r"(?!m\s*\^)[A-Za-z](?![A-Za-z])")
"""A variable behind a number, as in 72x."""
_RANGE = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*-\s*(\d{1,9}(?:\.\d{1,9})?)\Z", re.ASCII)


@dataclass(frozen=True)
class Quantity:
    """A number and what stands behind it."""

    number: Number
    unit: Unit = NONE
    clock: bool = False
    """Whether it is a length of time that is written as 2:30."""

    def text(self, gold: Quantity | None) -> str:
        """Name the quantity. A unit that ``gold`` has is added, one that it lacks is dropped."""
        known = gold.unit if gold and (not self.unit or not gold.unit) else self.unit
        return f"{self.number}{'%' if self.unit.percent else ''} {known}".strip()


def quantity(text: str) -> Quantity | None:
    r"""Read a cleaned text; ``None``: it is no quantity.

    >>> [quantity(text).text(None) for text in ("$1.50", "18 cm^2", "50 %", "2 hours 30 minutes")]
    ['3/2 dollar', '18 cm^2', '50%', '5/2 h']
    """
    text = _ABOUT.sub("", text, count=1) if not text[:1].isdigit() else text
    if span(text):
        return None
    for pattern, new in _SPOKEN:
        text = pattern.sub(new, text)
    currency = None
    if before := _BEFORE.match(text):
        currency, text = (
            unit(before.group("unit").replace("US$", "$").rstrip(".")),
            before.group("minus") + text[before.end() :],
        )
    found = _written(text) or _compound(text) or _with_unit(text)
    if found is None and (value := mathematics.numeric(text)) is not None:
        found = Quantity(value)
    if found is not None and currency is not None:
        return (
            Quantity(found.number, currency)
            if not found.unit or agree(currency, found.unit)
            else None
        )
    return found


def length(text: str) -> Quantity | None:
    """Read 2:30 beside a length of time: two hours and a half."""
    match = _CLOCK.match(text)
    if match is None:
        return None
    hours = int(match[1]) + Fraction(int(match[2]), 60)
    return Quantity(Number(hours), Unit((("h", 1),)), clock=True)


def span(text: str) -> str | None:
    """Read from one number to a larger one: ``5-7`` is 5 to 7, and not −2."""
    ends = _RANGE.match(text)
    if ends is None or float(ends.group(1)) >= float(ends.group(2)):
        return None
    return f"{ends.group(1)} to {ends.group(2)}"


def same(gold: Quantity, found: Quantity) -> bool:
    """Return whether two quantities are the same.

    A percentage equals its hundredth (50 % is 0.5) and, as MATH's graders have it, the bare number
    (50 % is 50): what the question asks for is not known here.
    """
    if not agree(gold.unit, found.unit) or (found.clock and not gold.unit):
        return False
    one, other = gold.number, found.number
    if (
        gold.unit.known != found.unit.known
        and (left := gold.unit.common())
        and (right := found.unit.common())
    ):
        one, other = one.times(left[1]), other.times(right[1])
    if close(one, other):
        return True
    if gold.unit.percent == found.unit.percent:
        return False
    share = Fraction(1, 100)
    return close(one.times(share), other) if gold.unit.percent else close(one, other.times(share))


def last_quantity(line: str) -> str:
    """Return the part of a sentence from its last number on, with the calculation before it.

    >>> last_quantity("So Tom has 3 + 4 = 7 red apples left")
    '3 + 4 = 7 red apples left'
    """
    words = line.split()
    last = next(
        (
            index
            for index in reversed(range(len(words)))
            if any(character.isdigit() for character in words[index])
        ),
        None,
    )
    if last is None:
        return ""
    first = last
    while first and re.fullmatch(
        r"[-+*/=^().,\d$€£%×·÷−]+|\\(?:cdot|times|div|frac)\S*", words[first - 1]
    ):
        first -= 1
    if words[first] in _OPERATORS or (first and words[first - 1].lower() in ("of", "x")):
        # the calculation begins with a variable: n + 2 = 7; 20% of 50 = 10
        first = max(
            [index + 1 for index in range(first, last) if words[index] == "="], default=last
        )
    return " ".join(words[first:])


def in_sentence(text: str) -> Quantity | None:
    """Read a number at the start of a text that may go on with other words."""
    text = _AND_A_HALF.sub(" 1/2", text)
    match = re.match(r"[^A-Za-z]*", text)
    assert match is not None
    head, tail = match.group().rstrip(" ,;:.!?-(\"'"), text[match.end() :]
    found = quantity(head) if head else None
    if found is None or found.unit:
        return found
    if _PART.match(tail) or (match.group()[-1:].isdigit() and _FACTOR.match(tail)):
        return None
    if re.search(r"[-+*/^]\s*\Z", match.group()) and not re.match(r"[A-Za-z]{2}|[aI]\b", tail):
        return None  # 72 - x
    factor, tail = large(tail)
    behind = unit(re.split(r"[,;:.!?()]", tail)[0], loose=True) or NONE
    return Quantity(
        found.number.times(Fraction(factor)),
        behind if behind.known or behind.percent else found.unit,
    )


def _written(text: str) -> Quantity | None:
    """Read a number without unit or sympy, a word such as five, a number in a base, or a ratio."""
    if text.lower() in _COUNTS:
        return Quantity(Number(Fraction(_COUNTS.index(text.lower()))))
    if counted := _TENS.match(text):
        tens = 10 * (_TEN.index(counted.group(1).lower()) + 2)
        return Quantity(
            Number(Fraction(tens + _COUNTS.index((counted.group(2) or "zero").lower())))
        )
    if text.lower() in _HALVES:
        return Quantity(Number(Fraction(1, 2)))
    if parts := _COUNTED.match(text):
        name = {"halve": "half", "quarter": "fourth"}.get(parts[2].lower(), parts[2].lower())
        return Quantity(Number(Fraction(_COUNTS.index(parts[1].lower()), _PARTS.index(name) + 2)))
    try:
        return Quantity(number(text))
    except NotANumber:
        pass
    if based := _BASE.match(text):
        base = int(based.group(2)) if based.group(2) else _COUNTS.index(based.group(3))
        if base < 2 or any(int(digit) >= base for digit in based.group(1)):
            return None
        return Quantity(Number(Fraction(int(based.group(1)))), Unit(((f"base {base}", 1),)))
    residue = _RESIDUE.match(text)
    if residue and int(residue[1]) < int(residue[2]):
        return Quantity(Number(Fraction(int(residue[1]))), Unit(((f"mod {residue[2]}", 1),)))
    ratio = _RATIO.match(text)
    if ratio and int(ratio.group(2)) and not re.match(r"\d{1,2}\s*:\s*[0-5]\d\Z", text):
        return Quantity(Number(Fraction(int(ratio.group(1)), int(ratio.group(2)))))
    return None


def _compound(text: str) -> Quantity | None:
    """Read hours and minutes, feet and inches, dollars and cents, in the first of the two."""
    if not _PAIRS.match(text):
        return None
    total, base = Fraction(0), ""
    first: Unit | None = None
    size = Fraction(0)
    for count, name in _ONE.findall(text):
        named = unit("min" if name == "m" and base == "s" else f" {name}")
        common = named.common() if named else None
        if common is None or base not in ("", common[0]):
            return None
        base, first = (common[0], named) if not size else (base, first)
        size = size or common[1]
        total += number(count).value * common[1]
    return Quantity(Number(total / size), first or NONE)


def _with_unit(text: str) -> Quantity | None:
    """Read a number and a unit, at the first place where the text can be cut into the two."""
    for start in list(_STARTS.finditer(text))[:12]:
        at = start.start()
        if (
            start.group().startswith("\\")
            or not at
            or (len(start.group()) == 1 and start.group().isalpha() and text[at - 1] != " ")
        ):
            continue
        head, (factor, tail) = text[:at].strip(), large(text[at:])
        behind = NONE if tail.strip() in ("", "st", "nd", "rd", "th") else unit(tail)
        if behind is None or (
            "degree" in behind.words and mathematics.TRIGONOMETRY.search(head)
        ):  # the degrees are those of the angle
            continue
        try:
            value: Number | None = number(head)
        except NotANumber:
            value = mathematics.numeric(head) if "\\" in head or behind.known else None
        if value is not None:
            return Quantity(value.times(Fraction(factor)), behind)
    return None
