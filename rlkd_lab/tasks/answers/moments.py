"""Times of day, ratios (both are written with a colon) and dates."""

from __future__ import annotations

import datetime
import math
import re
from dataclasses import dataclass
from fractions import Fraction

from rlkd_lab.tasks.answers.numbers import NotANumber, number

_HALF = r"(?P<half>[ap])\.?\s?m\.?"
_CLOCK = re.compile(
    rf"(?P<h>\d{{1,2}})\s*:\s*(?P<m>[0-5]\d)(?:\s*:\s*(?P<s>[0-5]\d))?\s*(?:{_HALF})?(?:\s*o'clock)?\Z",
    re.I | re.ASCII,
)
_HOUR = re.compile(rf"(?P<h>\d{{1,2}})\s*(?:{_HALF}|o'clock)\Z", re.I | re.ASCII)
_IN_TEXT = re.compile(
    r"\d{1,9}(?:\s?:\s?\d{1,9}){1,5}(?:\s?[ap]\.?m\b)?|\b\d{1,2}\s?[ap]\.?m\b|\b(?:noon|midnight)\b",
    re.I | re.ASCII,
)
_WORDS = {
    "noon": (12, "p"),
    "midday": (12, "p"),
    "midnight": (12, "a"),
    "12 noon": (12, "p"),
    "12 midnight": (12, "a"),
}
_LENGTH = re.compile(
    r"(\d{1,2})\s*(?:hours?|hrs?|h)\W*(?:and\s+)?([0-5]?\d)\s*(?:minutes?|mins?|m)\Z",
    re.I | re.ASCII,
)
_RATIO = re.compile(r"\d+(?:\.\d+)?(?:(?:\s*:\s*|\s+to\s+)\d+(?:\.\d+)?){1,5}\Z", re.ASCII)
_MONTHS = (
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
)
_MONTH = r"(?P<month>" + "|".join(f"{name[:3]}(?:{name[3:]})?" for name in _MONTHS) + r"|sept)\.?"
_DAY = r"(?P<day>\d{1,2})(?:\s*(?:st|nd|rd|th))?"
_YEAR = r"(?P<year>\d{4})"
_DATES = [
    re.compile(pattern + r"\Z", re.I | re.ASCII)
    for pattern in (
        rf"{_YEAR}\s?[-/.]\s?(?P<number>\d{{1,2}})\s?[-/.]\s?(?P<day>\d{{1,2}})",
        rf"(?P<number>\d{{1,2}})[/.-](?P<day>\d{{1,2}})[/.-]{_YEAR}",
        rf"{_MONTH}\s+(?:the\s+)?{_DAY}(?:\s*,?\s+{_YEAR})?",
        rf"(?:the\s+)?{_DAY}\s+(?:of\s+)?{_MONTH}(?:\s*,?\s+{_YEAR})?",
        rf"{_MONTH}\s*,?\s+{_YEAR}",
    )
]
_WEEKDAY = re.compile(r"(?:on\s+)?(?:(?:mon|tues|wednes|thurs|fri|satur|sun)day\s*,?\s+)?", re.I)


@dataclass(frozen=True)
class Colon:
    """A time of day, a ratio, or what may be either (``3:15``).

    Args:
        clock: hour as written, minute, second, and "a" or "p" where AM or PM stands there.
        ratio: the parts, divided by their sum.
        length: whether it is written as a length of time, ``2 hours 30 minutes``.
    """

    clock: tuple[int, int, int, str] | None
    ratio: tuple[Fraction, ...] | None
    length: bool = False


def colon(text: str) -> Colon | None:
    """Read a time of day or a ratio.

    >>> colon("7:00 p.m.").clock, colon("1 : 2 : 3").clock, colon("25:61").clock
    ((7, 0, 0, 'p'), None, None)
    """
    clock, ratio = _clock(text), None
    if _RATIO.match(text):
        parts = [Fraction(part) for part in re.split(r":|to", text.replace(" ", ""))]
        ratio = tuple(part / sum(parts) for part in parts) if all(parts) else None
    return Colon(clock, ratio) if clock or ratio else None


def colon_or_fraction(text: str) -> Colon | None:
    """Read a completion beside a time or a ratio: ``1/2`` is the ratio ``1:2``, 2 hours 30 minutes
    is 2:30.
    """
    if length := _LENGTH.match(text):
        return Colon((int(length[1]), int(length[2]), 0, ""), None, True)
    found = colon(text)
    if found is None:
        try:
            value = number(text).value
        except NotANumber:
            return None
        found = Colon(None, (value / (value + 1), 1 / (value + 1))) if value > 0 else None
    return found


def colon_said(text: str) -> Colon | None:
    """Read the last time or ratio of a sentence."""
    found = _IN_TEXT.findall(text)
    return colon(found[-1].strip(" .")) if found else None


def same_colon(gold: Colon, found: Colon) -> bool:
    """Return whether two times, or two ratios, are the same.

    AM or PM that one side alone has is ignored: 7:00 is 7:00 PM, but not 19:00.
    """
    if gold.clock and not found.clock:
        hour, minute, second, noon = gold.clock
        if second or noon or minute < 10 or not minute % 15 or math.gcd(hour, minute) > 1:
            return False  # 12:30 is no ratio, 16:25 may be one
    if found.length:
        return gold.clock == found.clock
    if gold.clock and found.clock:
        one, other = gold.clock, found.clock
        if bool(one[3]) == bool(other[3]):
            return _seconds(one) == _seconds(other)
        half, bare = (one, other) if one[3] else (other, one)
        return bare[:3] == half[:3] or _seconds(bare) == _seconds(half)
    return gold.ratio is not None and gold.ratio == found.ratio


def colon_text(value: Colon) -> str:
    """Name a time or a ratio."""
    if value.clock:
        hour, minute, second, half = value.clock
        return (
            f"{hour}:{minute:02}"
            + (f":{second:02}" if second else "")
            + (f" {half}m" if half else "")
        )
    assert value.ratio is not None
    return ":".join(str(part / value.ratio[0]) for part in value.ratio)


def date(text: str) -> tuple[int | None, int, int | None] | None:
    """Read a date as (year, month, day), each ``None`` where it is not written.

    ``05/03/2020`` is May 3, as in the US, wherever that is a date.

    >>> date("2020-05-03"), date("May 3rd, 2020"), date("3 May"), date("31/12/2020")
    ((2020, 5, 3), (2020, 5, 3), (None, 5, 3), (2020, 12, 31))
    """
    weekday = _WEEKDAY.match(text)
    for pattern in _DATES:
        match = pattern.match(text, weekday.end() if weekday else 0)
        if match is None:
            continue
        parts = match.groupdict()
        day = int(parts["day"]) if parts.get("day") else None
        if parts.get("month"):
            month = next(
                index
                for index, name in enumerate(_MONTHS, 1)
                if name.startswith(parts["month"].lower()[:3])
            )
        else:
            month = int(parts["number"])
            if month > 12 and day is not None and pattern is not _DATES[0]:
                month, day = day, month
        year = int(parts["year"]) if parts.get("year") else None
        try:
            datetime.date(year or 2000, month, day or 1)
        except ValueError:
            continue
        return year, month, day
    return None


def date_said(text: str) -> tuple[int | None, int, int | None] | None:
    """Read the last date of a sentence."""
    words = text.split()
    for last in range(len(words), 0, -1):
        for first in range(max(0, last - 5), last):
            if found := date(" ".join(words[first:last]).strip(".,;!")):
                return found
    return None


def same_date(gold: tuple[int | None, ...], found: tuple[int | None, ...]) -> bool:
    """Return whether two dates are the same. A year that one side alone has is ignored."""
    return gold[1:] == found[1:] and (
        gold[0] == found[0] or (None in (gold[0], found[0]) and gold[2] is not None)
    )


def date_text(value: tuple[int | None, ...]) -> str:
    """Name a date."""
    return "-".join("?" if part is None else f"{part:02}" for part in value)


def _clock(text: str) -> tuple[int, int, int, str] | None:
    if text.lower() in _WORDS:
        hour, half = _WORDS[text.lower()]
        return hour, 0, 0, half
    match = _CLOCK.match(text) or _HOUR.match(text)
    if match is None:
        return None
    parts = match.groupdict()
    hour, half = int(parts["h"]), (parts["half"] or "").lower()
    if hour > 24 or (half and not 1 <= hour <= 12):
        return None
    return hour, int(parts.get("m") or 0), int(parts.get("s") or 0), half


def _seconds(clock: tuple[int, int, int, str]) -> int:
    hour, minute, second, half = clock
    if half:
        hour = hour % 12 + (12 if half == "p" else 0)
    return (hour * 60 + minute) * 60 + second
