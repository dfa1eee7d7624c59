"""Read and compare answers to exercises; an answer that cannot be read gets a sentence."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

Verdict = tuple[bool, str]
"""Whether an answer is right, and a sentence for the reader."""


class Unreadable(ValueError):
    """Raised for an answer of the wrong type or shape; the text says what was expected."""


def number(answer: Any) -> float:
    """Return the finite number in an answer: a number, or an array with one element."""
    if isinstance(answer, bool | bytes) or answer is None:
        raise Unreadable(f"I expected a number and got {shown(answer)}")
    try:
        value = float(answer)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise Unreadable(f"I expected a number and got {shown(answer)}") from None
    if not math.isfinite(value):
        raise Unreadable(f"I expected a finite number and got {value}")
    return value


def numbers(answer: Any, length: int) -> list[float]:
    """Return ``length`` finite numbers from a list, tuple, array or tensor."""
    if isinstance(answer, str | bytes | dict) or answer is None:
        raise Unreadable(f"I expected a list of {length} numbers and got {shown(answer)}")
    try:
        values = [number(value) for value in answer]
    except TypeError:
        raise Unreadable(f"I expected a list of {length} numbers and got {shown(answer)}") from None
    if len(values) != length:
        raise Unreadable(f"I expected {length} numbers and got {len(values)}")
    return values


def word(answer: Any) -> str:
    """Return a text in lower case, with underscores for spaces and hyphens."""
    if not isinstance(answer, str) or not answer.strip():
        raise Unreadable(f"I expected a word in quotes and got {shown(answer)}")
    return re.sub(r"[\s\-]+", "_", answer.strip().lower())


def shown(answer: Any) -> str:
    """Return an answer as text of at most 60 characters, for a sentence that quotes it."""
    text = repr(answer)
    return text if len(text) <= 60 else text[:57] + "…"


def near(
    right: Callable[[], float | Sequence[float]], tolerance: float, hint: str, praise: str
) -> Callable[..., Verdict]:
    """Return a function that grades a number, or several numbers in order.

    Each must lie within ``tolerance`` of the value that ``right`` computes.
    The reader sees ``praise`` for a right answer and ``hint`` for a wrong one.
    """

    def grade(answer: Any) -> Verdict:
        truth = right()
        wanted = [truth] if isinstance(truth, int | float) else list(truth)
        given = [number(answer)] if isinstance(truth, int | float) else numbers(answer, len(wanted))
        good = all(abs(a - b) <= tolerance for a, b in zip(given, wanted, strict=True))
        return good, praise if good else hint

    return grade


def named(
    right: Callable[[], str], valid: Sequence[str], hint: str, praise: str
) -> Callable[..., Verdict]:
    """Return a function that grades one word out of ``valid``; ``right`` computes the right one."""

    def grade(answer: Any) -> Verdict:
        given = word(answer)
        if given not in valid:
            raise Unreadable(f"I expected one of {', '.join(valid)} and got {shown(answer)}")
        good = given == right()
        return good, praise if good else hint

    return grade
