r"""Numbers as they are written: exact integers and fractions, decimals with their last place.

The parser knows digits, ``+ - * / ^ !``, brackets, ``\frac`` and mixed numbers. It never evaluates
text as code. It refuses numbers of more than about 6,000 digits.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

RELATIVE = Fraction(1, 10**5)
"""A decimal that is compared with another number must agree with it in five significant digits."""
NOISE = Fraction(1, 10**12)
"""Relative error that a computation in 64-bit floats may leave in a decimal."""
BITS = 20_000
"""Size of a numerator or denominator beyond which a number is not computed."""
_EXACT = Fraction(1, 10**30)
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?: \d{3})+(?![\d/])|\d+)"
    r"(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3}(?![\d.]))?)"
    r"|(?P<sign>\*\*|\\(?:cdot|times|div|frac)(?![A-Za-z])|[-+*/^!(){}]))",
    re.ASCII,
)
_POWER = {"**": "^", r"\cdot": "*", r"\times": "*", r"\div": "/"}


_REPEATING = re.compile(r"(\d{0,30})\.(\d{0,30})\\(?:overline|bar)\s*\{(\d{1,30})\}", re.ASCII)


class NotANumber(Exception):
    """The text is no number that this parser knows."""


@dataclass(frozen=True)
class Number:
    """A number and how exactly it was written.

    Args:
        value: exact for integers and fractions; the written digits for decimals.
        step: one unit of a decimal's last place; 0 for anything exact.
        rough: whether ``value`` approximates an irrational number to 40 digits.
    """

    value: Fraction
    step: Fraction = Fraction(0)
    rough: bool = False

    def times(self, factor: Fraction) -> Number:
        """Return the number times an exact factor."""
        return Number(self.value * factor, abs(self.step * factor), self.rough)

    def __str__(self) -> str:
        return f"{float(self.value):.12g}" if self.rough else str(self.value)


def close(one: Number, other: Number) -> bool:
    r"""Return whether two numbers are the same.

    Exact numbers must be equal. A decimal is a number that was rounded or cut at its last place: it
    equals every number of which that may be so, if they differ by a relative 1e-5 at most. No
    difference is allowed in absolute terms, so no small number equals 0.

    >>> third = Number(Fraction(1, 3))
    >>> [close(third, number(text)) for text in ("0.333", "0.33333", "0.333333333")]
    [False, True, True]
    """
    gap, size = abs(one.value - other.value), max(abs(one.value), abs(other.value))
    if not gap:
        return True
    rounded, full = (one, other) if one.step > other.step else (other, one)
    if rounded.step:
        cut = abs(rounded.value) < abs(full.value) and gap < rounded.step
        return gap <= size * RELATIVE and (cut or 2 * gap <= rounded.step or gap <= size * NOISE)
    return (one.rough or other.rough) and gap <= size * _EXACT


def number(text: str) -> Number:
    r"""Return the number that ``text`` writes.

    Raises:
        NotANumber: it writes none, or a fraction with denominator 0, or one that is too large.

    >>> texts = (r"\frac{1}{2^{3}}", "1 1/2", r"-2\frac13", "1,234.50")
    >>> [str(number(text).value) for text in texts]
    ['1/8', '3/2', '-7/3', '2469/2']
    """
    parser = _Parser(text)
    try:
        found = parser.sum()
    except (ZeroDivisionError, RecursionError, IndexError) as error:
        raise NotANumber(text[:60]) from error
    if parser.at < len(parser.tokens):
        raise NotANumber(text[:60])
    return found


class _Parser:
    def __init__(self, text: str) -> None:
        self.tokens: list[str] = []
        self.at = self.depth = 0
        at, text = 0, _REPEATING.sub(_repeated, text.rstrip())
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None or not match.group().strip():
                raise NotANumber(text[:60])
            sign = match.group("sign")
            self.tokens.append(match.group("number") or _POWER.get(sign, sign))
            at = match.end()
        if not self.tokens:
            raise NotANumber("")

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, *wanted: str) -> str:
        token = self.peek()
        if wanted and token not in wanted:
            raise NotANumber(token)
        self.at += 1
        return token

    def sum(self) -> Number:
        found = self.product()
        while self.peek() in ("+", "-"):
            minus, other = self.take() == "-", self.product()
            found = _checked(found.value - other.value if minus else found.value + other.value)
        return found

    def product(self) -> Number:
        found = self.signed()
        while True:
            sign = self.peek()
            if sign in ("*", "/"):
                self.take()
                other = self.signed()
            elif sign in ("(", r"\frac"):  # 2(3), (1/2)(4)
                other = self.power()
            else:
                return found
            factor = 1 / other.value if sign == "/" else other.value
            decimal = found.step and not other.step  # 2.5 \times 10^{-3} is a decimal too
            found = found.times(factor) if decimal else Number(found.value * factor)
            _checked(found.value)

    def signed(self) -> Number:
        if self.peek() in ("+", "-"):
            minus, found = self.take() == "-", self.signed_once()
            return Number(-found.value if minus else found.value, found.step)
        return self.power()

    def signed_once(self) -> Number:
        if self.peek() in ("+", "-"):
            raise NotANumber("two signs")
        return self.power()

    def power(self) -> Number:
        base = self.atom()
        if self.peek() == "!":
            self.take()
            if base.value.denominator != 1 or not 0 <= base.value <= 300:
                raise NotANumber("factorial")
            base = Number(Fraction(math.factorial(int(base.value))))
        if self.peek() != "^":
            return base
        self.take()
        exponent = self.signed() if self.peek() in ("+", "-") else self.atom()
        large = max(base.value.numerator.bit_length(), base.value.denominator.bit_length())
        if (
            self.peek() in ("^", "!")
            or exponent.value.denominator != 1
            or abs(exponent.value) * large > BITS
        ):
            raise NotANumber("power")
        return Number(base.value ** int(exponent.value))

    def atom(self) -> Number:
        token = self.take()
        if token in ("(", "{"):
            self.depth += 1
            if self.depth > 20:
                raise NotANumber("too deep")
            point = token == "(" and "," in self.peek()
            found = self.sum()
            if point and self.tokens[self.at - 2] == "(":  # (3,125) is a point
                raise NotANumber("a point")
            self.take(")" if token == "(" else "}")
            self.depth -= 1
            return found
        if token == r"\frac":
            return _checked(self.part().value / self.part().value)
        if not token or not (token[0].isdigit() or token[0] == "."):
            raise NotANumber(token)
        found = _literal(token)
        rest = self.mixed() if token.replace(",", "").replace(" ", "").isdigit() else None
        return found if rest is None else Number(found.value + rest)

    def part(self) -> Number:
        r"""Read a part of ``\frac``: a brace, or one digit of what follows (``\frac12``)."""
        token = self.peek()
        if token.isdigit() and len(token) > 1:
            self.tokens[self.at] = token[1:]
            return Number(Fraction(int(token[0])))
        if token != "{" and not token.isdigit():
            raise NotANumber(token)
        return self.atom()

    def mixed(self) -> Fraction | None:
        r"""Read the fraction of a mixed number:

        ``1 1/2``, ``1\frac12``. It must be less than one.
        """
        token = self.peek()
        if token == r"\frac":
            rest = self.atom().value
        elif token.isdigit():
            above, _, below = self.take(), self.take("/"), self.take()
            if not below.isdigit():
                raise NotANumber(below)
            rest = Fraction(int(above), int(below))
        else:
            return None
        if not 0 <= rest < 1:
            raise NotANumber("mixed number")
        return rest


def _repeated(match: re.Match[str]) -> str:
    r"""``0.1\overline{6}`` as a fraction: ``(1/10 + 6/90)``."""
    whole, places, period = match.groups()
    below = 10 ** len(places)
    return f"(({whole or 0}{places})/{below}+{period}/{below * (10 ** len(period) - 1)})"


def _literal(token: str) -> Number:
    digits, _, power = token.replace(",", "").replace(" ", "").lower().partition("e")
    whole, point, places = digits.partition(".")
    scale = Fraction(10) ** int(power or 0)
    value = Fraction(int((whole or "0") + places), 10 ** len(places)) * scale
    return _checked(value, scale / 10 ** len(places) if point and places else Fraction(0))


def _checked(value: Fraction, step: Fraction = Fraction(0)) -> Number:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > BITS:
        raise NotANumber("too large")
    return Number(value, step)
