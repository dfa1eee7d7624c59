r"""Intervals, and answers with several members: sets, lists, tuples."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from rlkd_lab.tasks.answers.clean import split
from rlkd_lab.tasks.answers.numbers import Number, close
from rlkd_lab.tasks.answers.quantities import quantity

MOST_MEMBERS = 30
_NO_MEMBERS = {"no solution", "no solutions", "empty set", "the empty set"}
_INFINITY = re.compile(r"([+-]?)\s*(?:\\infty|infinity|inf|oo)\Z", re.I)
_UNION = re.compile(r"\\cup|(?<=[\])])\s*[Uu]\s*(?=[\[(])|\bor\b|\bunion\b")
_ORDER = re.compile(r"\\(?:le|ge|ne)(?![A-Za-z])|<=|>=|!=|<|>")
_NAMED_SET = re.compile(r"(?P<name>[A-Za-z]|\\[a-z]+)\s*\\in\s*")
_BUILT = re.compile(
    r"\\\{\s*(?P<name>[A-Za-z])(?:\s*\\in\s*\\mathbb\s*\{?R\}?)?\s*(?:\\mid|\||:)\s*(?P<rule>.+?)\s*\\\}\Z"
)
_BOUND = r"[A-Za-z]\s*(?:<=?|>=?|\\[lg]e(?![A-Za-z]))[^<>,=]+?"
_BETWEEN = re.compile(rf"(?P<one>{_BOUND})\s*(?:,|\band\b|,\s*and\b)\s*(?P<other>{_BOUND})\Z")
_FROM = re.compile(r"[A-Za-z]\s*(?P<sign>>=?|\\ge)\s*(?P<end>.+)\Z")
_BACK = {">": "<", ">=": r"\le", r"\ge": r"\le"}
_VARIABLE = re.compile(r"[A-Za-z]|\\(?:alpha|beta|gamma|theta|lambda|mu|phi|omega)")
_SIGN = {r"\le": "<=", r"\ge": ">=", r"\ne": "!="}
_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!="}
_COMMAS = (
    re.compile(r";|,?\s+(?:and|or)\s+|,\s+(?:and\s+|or\s+)?|\s+&\s+"),
    re.compile(r";|,?\s+(?:and|or)\s+|,\s*|\s+&\s+"),
)
_ALL = {r"\mathbb{R}", r"\mathbb R", "all real numbers", "all reals", r"(-\infty,\infty)"}
_POSITIVE = {rf"\mathbb{{R}}{sign}" for sign in ("^+", "^{+}", "_{>0}", "_{> 0}", "_+", "_{+}")}
_WITHOUT = re.compile(
    r"\\mathbb\s*(?:\{\s*R\s*\}|R)\s*(?:\\setminus|\\backslash|-|\\(?=\\))\s*\\\{(.+)\\\}\Z"
)
"""All real numbers but some."""

End = Number | float
"""A number, or one of the two infinities."""


@dataclass(frozen=True)
class Interval:
    """From ``low`` to ``high``; whether each end belongs to it."""

    low: End
    high: End
    with_low: bool
    with_high: bool

    def __str__(self) -> str:
        return (
            f"{'[' if self.with_low else '('}{self.low},"
            f" {self.high}{']' if self.with_high else ')'}"
        )


@dataclass(frozen=True)
class Intervals:
    """One interval or a union, in order, and the variable that lies in it, where one is named."""

    parts: tuple[Interval, ...]
    name: str = ""


def intervals(text: str) -> Intervals | None:
    r"""Read an interval, a union of them, or an inequality in one variable.

    >>> for text in (r"x \in [-2,7]", r"-2 \le x \le 7", "x < 1 or x > 3", r"x \ne 2"):
    ...     print(*intervals(text).parts)
    [-2, 7]
    [-2, 7]
    (-inf, 1) (3, inf)
    (-inf, 2) (2, inf)
    """
    name = ""
    if named := _NAMED_SET.match(text):
        name, text = named.group("name"), text[named.end() :]
    if built := _BUILT.match(text):
        text = built.group("rule")
    if left := _WITHOUT.match(text):
        return _without(split(left.group(1), re.compile(",")), name)
    if text.strip() in _POSITIVE:
        text = r"(0, \infty)"
    if text.strip() in _ALL:
        return Intervals((Interval(-float("inf"), float("inf"), False, False),), name)
    between = _BETWEEN.match(text)
    if between and between.group("one")[0] == between.group("other")[0]:  # x > 1 and x < 3
        low, high = sorted(
            (between.group("one"), between.group("other")),
            key=lambda side: "<" in side or r"\le" in side,
        )
        text = (
            _FROM.sub(lambda sign: f"{sign.group('end')} {_BACK[sign.group('sign')]} ", low) + high
        )
    found: list[Interval] = []
    pieces = split(text, _UNION)
    for piece in pieces[:MOST_MEMBERS]:
        inner = named.end() if (named := _NAMED_SET.match(piece)) else 0
        read = _bracketed(piece[inner:].strip()) or _inequality(piece)
        if read is None:
            return None
        parts, variable = read
        if name and variable and name != variable:
            return None
        name = name or variable or (named.group("name") if named else "")
        found += parts
    return Intervals(_joined(sorted(found, key=lambda part: _size(part.low))), name)


def _without(points: list[str], name: str) -> Intervals | None:
    """Return the real numbers without some."""
    ends = [_end(point) for point in points]
    holes = sorted((end for end in ends if isinstance(end, Number)), key=_size)
    if len(holes) < len(points) or len(holes) > MOST_MEMBERS:
        return None
    edges: list[End] = [float("-inf"), *holes, float("inf")]
    return Intervals(tuple(Interval(*pair, False, False) for pair in pairwise(edges)), name)


def _joined(parts: list[Interval]) -> tuple[Interval, ...]:
    """Join intervals of which one ends where the next begins: (0,1] and [1,2) are (0,2)."""
    joined: list[Interval] = []
    for part in parts:
        last = joined[-1] if joined else None
        if last and _same_end(last.high, part.low) and (last.with_high or part.with_low):
            joined[-1] = Interval(last.low, part.high, last.with_low, part.with_high)
        else:
            joined.append(part)
    return tuple(joined)


def same_intervals(gold: Intervals, found: Intervals) -> bool:
    """Return whether two unions have the same ends."""
    return len(gold.parts) == len(found.parts) and all(
        (one.with_low, one.with_high) == (other.with_low, other.with_high)
        and _same_end(one.low, other.low)
        and _same_end(one.high, other.high)
        for one, other in zip(gold.parts, found.parts, strict=True)
    )


def intervals_text(value: Intervals) -> str:
    """Name a union."""
    return " ∪ ".join(map(str, value.parts))


def members(text: str) -> tuple[str, list[list[str]]] | None:
    r"""Cut a set, a list or a tuple into its members.

    Returns:
        ``"set"`` or ``"tuple"``, and the members, in one or two ways: a comma between digits may
        part members or thousands. A list without brackets is a set: its order does not count.

    >>> members(r"\{1, 2\}"), members("(1, x, 2)"), members(r"\pm 3")
    (('set', [['1', '2']]), ('tuple', [['1', 'x', '2']]), ('set', [['3', '-3']]))
    """
    kind, inner = "set", text
    if text.startswith(r"\{") and text.endswith(r"\}"):
        inner = text[2:-2].strip()
        if re.search(r"\\mid|\||:", inner):
            return None  # {x | …}
        if not inner:
            return "set", [[]]
    elif text in (r"\emptyset", "\\{\\}") or text.lower() in _NO_MEMBERS:
        return "set", [[]]
    elif (text[:1] in "([" and text[-1:] in ")]") or (
        text.startswith(r"\langle") and text.endswith(r"\rangle")
    ):
        cut = len(r"\langle") if text.startswith("\\") else 1
        inner = text[cut : -len(r"\rangle") if cut > 1 else -1].strip()
        kind = "list" if text[0] == "[" else "tuple"
        if text[0] in "([" and len(split(text, _COMMAS[1])) > 1:
            kind, inner = "set", text  # (1,2), (3,4)
        elif text[0] in "([" and (not _pair(text) or text[0] + text[-1] not in ("()", "[]")):
            return None  # (x,y)=(1,2), (1,2,3]
    signs = re.findall(r"\\pm(?![A-Za-z])", inner)
    if len(signs) == 1 and kind == "set" and not split(inner, _COMMAS[1])[1:]:
        plus, minus = inner.replace(r"\pm", "+"), inner.replace(r"\pm", "-")
        return "set", [
            [
                plus.removeprefix("+").strip(),
                minus.replace("- ", "-", 1) if minus.startswith("-") else minus,
            ]
        ]
    ways = [
        parts
        for commas in _COMMAS
        if all(parts := split(inner, commas)) and 1 < len(parts) <= MOST_MEMBERS
    ]
    if not ways and inner is not text and kind == "set":
        ways = [[inner]]
    return (kind, ways[:1] if ways[0] == ways[-1] else ways) if ways else None


def _pair(text: str) -> bool:
    """Whether the bracket that ``text`` begins with is closed at its end."""
    depth = 0
    for index, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if not depth:
            return index == len(text) - 1
    return False


def _bracketed(text: str) -> tuple[list[Interval], str] | None:
    if len(text) < 5 or text[0] not in "([" or text[-1] not in ")]":
        return None
    for commas in (_COMMAS[1], _COMMAS[0]):
        ends = split(text[1:-1], commas)
        if (
            len(ends) == 2
            and (low := _end(ends[0])) is not None
            and (high := _end(ends[1])) is not None
        ):
            if not _size(low) < _size(high):
                return None
            return [Interval(low, high, text[0] == "[", text[-1] == "]")], ""
    return None


def _inequality(text: str) -> tuple[list[Interval], str] | None:
    signs = [_SIGN.get(sign.group(), sign.group()) for sign in _ORDER.finditer(text)]
    sides = [side.strip() for side in _ORDER.split(text)]
    if len(signs) == 1 and not _VARIABLE.fullmatch(sides[0]):
        signs, sides = [_FLIPPED[signs[0]]], sides[::-1]
    infinity = float("inf")
    if len(signs) == 1 and _VARIABLE.fullmatch(sides[0]) and (end := _end(sides[1])) is not None:
        sign, name = signs[0], sides[0]
        if sign == "!=":
            return [
                Interval(-infinity, end, False, False),
                Interval(end, infinity, False, False),
            ], name
        if sign[0] == "<":
            return [Interval(-infinity, end, False, sign == "<=")], name
        return [Interval(end, infinity, sign == ">=", False)], name
    if len(signs) == 2 and _VARIABLE.fullmatch(sides[1]) and signs[0][0] == signs[1][0] != "!":
        if signs[0][0] == ">":
            signs, sides = [_FLIPPED[sign] for sign in reversed(signs)], sides[::-1]
        low, high = _end(sides[0]), _end(sides[2])
        if low is not None and high is not None and _size(low) < _size(high):
            return [Interval(low, high, signs[0] == "<=", signs[1] == "<=")], sides[1]
    return None


def _end(text: str) -> End | None:
    if infinite := _INFINITY.match(text.strip()):
        return float("-inf" if infinite.group(1) == "-" else "inf")
    found = quantity(text.strip())
    return found.number if found is not None and not found.unit and not found.unit.percent else None


def _size(end: End) -> float:
    try:
        return end if isinstance(end, float) else float(end.value)
    except OverflowError:
        assert isinstance(end, Number)
        return float("inf") if end.value > 0 else float("-inf")


def _same_end(one: End, other: End) -> bool:
    if isinstance(one, float) or isinstance(other, float):
        return one == other
    return close(one, other)
