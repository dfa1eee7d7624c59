r"""Mathematical answers read and compared by math-verify.

math-verify bounds its time by signals, which no thread but the main one has, and a limit in seconds
would make a reward depend on the machine. So it runs without them here, and what it is shown is
bounded instead (:func:`harmless`): an answer that is longer, deeper or larger than any final answer
needs to be is not read. Left out: sums, products, integrals and limits, which sympy would set about
computing. What sympy does with the rest is bounded by no proof: in a run all of this happens in a
process of its own, within a time limit that hardly any answer comes near
(:mod:`rlkd_lab.tasks.verifier`).
"""

from __future__ import annotations

import logging
import math
import re
from decimal import Decimal
from functools import lru_cache
from typing import Any

TAIL = 4000
"""Characters at the end of a completion in which its final answer is looked for."""
LONGEST = 200
"""Characters of an answer."""
_CLOSED_TAG = "</answer>"
_TEXT = re.compile(r"(?:\\text(?:bf|rm|it)?|\\mathrm|\\mathbf)\{([^{}\\]*)\}")
_WORDS = re.compile(r"[^\W\d_]{3,}(?:[\s'-]+[^\W\d_]+)*\.?")
_UNIT = re.compile(
    r"(-?[$€£]?\s?-?\d[\d,]*(?:\.\d+)?)\s+[A-Za-z]{3,}(?:[\s-]+[A-Za-z]+)*\.?", re.ASCII
)
_PERCENT = re.compile(r"\s*\\?%\s*\Z")
_SCIENTIFIC = re.compile(r"-?\d{1,15}(?:\.\d{1,15})?[eE][+-]?\d{1,2}", re.ASCII)
_GROWS = re.compile(r"\^|\*\*|(?:exp|exponentialE|sinh|cosh|tanh|[Gg]amma)(?![A-Za-z])")
_OPENING = re.compile(r"\s*(?:\\left\s*)?(?:\\[A-Za-z]+\s*)?([({\[])")
_TOKEN = re.compile(r"\s*(?:[+-]?\w+|\\\w+|.)?", re.DOTALL)
_NEVER = re.compile(
    r"\\(?:sum|prod|int|iint|oint|lim|det|gcd|lcm|operatorname)\b|[)}\]!]\s*!|\d{4,}\s*!|\\end\{[a-z]*matrix\}\s*\^"
    r"|\\d?t?binom\D*\d{4,}|\d{50,}|\\(?:input|def|newcommand)\b"
)


def final_answer(text: str) -> tuple[str, bool]:
    r"""The final answer of a completion, and whether it was marked as one.

    The last of ``\boxed{…}``, ``#### …`` and ``<answer>…</answer>`` counts; without any, the last
    line that is not empty.

    >>> final_answer(r"First \boxed{3}, no, \boxed{\frac{1}{2}}.")
    ('\\frac{1}{2}', True)
    >>> final_answer("6 · 7 makes\n#### 42")
    ('42', True)
    >>> final_answer("It is 42.")
    ('It is 42.', False)
    """
    text = text[-TAIL:]
    starts = {mark: text.rfind(mark) for mark in ("\\boxed{", "####", "<answer>")}
    mark = max(starts, key=lambda one: starts[one])
    if starts[mark] >= 0:
        rest = text[starts[mark] + len(mark) :]
        if mark == "####":
            line = rest.strip().partition("\n")[0].strip()
            return line, bool(line)
        end = rest.find(_CLOSED_TAG) if mark == "<answer>" else _closing(rest)
        if end >= 0:
            return rest[:end].strip(), bool(rest[:end].strip())
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[-1][-LONGEST:] if lines else ""), False


def _closing(text: str) -> int:
    """Index of the brace that closes one opened before ``text``; −1 where none does."""
    depth = 1
    for match in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0:
            return match.start()
    return -1


def harmless(answer: str) -> bool:
    """Whether math-verify may be shown an answer: short, shallow, and with no number in it that
    takes long to compute.

    >>> [harmless(text) for text in ("2^{10}", "9^{9^9}", "9**9**9", "((9^{99})^{99})^{99}", "(" * 30, "1000000!")]
    [True, False, False, False, False, False]
    """
    if len(answer) > LONGEST or _NEVER.search(answer) or answer.count("|") > 8:
        return False
    depth = deepest = 0
    for character in answer:
        depth += (character in "({[") - (character in ")}]")
        deepest = max(deepest, depth)
    if deepest > 8:
        return False
    size, largest = 1, 1
    for match in _GROWS.finditer(answer):
        argument, end = _argument(answer, match.end())
        if "!" in argument or _GROWS.search(argument) or re.match(r"\s*(?:\^|\*\*)", answer[end:]):
            return False
        numbers = [int(digits) for digits in re.findall(r"\d{1,5}", argument)]
        if (
            len(numbers) > 1
            or match.group() not in ("^", "**")
            or answer[: match.start()].rstrip().endswith((")", "}", "]"))
        ):
            size *= math.prod(max(number, 1) for number in numbers)
        else:
            largest = max([largest, *numbers])
        if size * largest > 1000:
            return False
    return True


def _argument(answer: str, start: int) -> tuple[str, int]:
    """What is raised to, or what a function is of, and where it ends: a bracket, all those
    after a command (``\\frac{1}{2}``), or a word.
    """
    opening = _OPENING.match(answer, start)
    if opening is None:
        token = _TOKEN.match(answer, start)
        assert token is not None
        return token.group(), token.end()
    end, depth = opening.start(1), 0
    while end < len(answer) and (depth or answer[end] in "({["):
        depth += (answer[end] in "({[") - (answer[end] in ")}]")
        end += 1
    return answer[start:end], end


@lru_cache(maxsize=4096)
def read(answer: str, marked: bool = True) -> tuple[Any, ...]:
    """What an answer means: sympy expressions, or one text for an answer in words; empty where
    it cannot be read. Never raises.
    """
    words = _TEXT.sub(r"\1", answer).strip().strip("$")
    if marked and len(words) <= LONGEST and _WORDS.fullmatch(words) and "\\" not in words:
        return (" ".join(words.lower().rstrip(".").split()),)
    quantity = _UNIT.fullmatch(words) if len(words) <= LONGEST else None
    answer = quantity.group(1) if quantity else answer
    answer = _PERCENT.sub("", answer)  # "50\\%" and "50" are the same answer in MATH
    scientific = _SCIENTIFIC.fullmatch(answer.strip())
    if scientific:
        answer = f"{Decimal(scientific.group()):f}"
    if not harmless(answer):
        return ()
    try:
        parse, _ = _math_verify()
        return tuple(
            parse(
                rf"\boxed{{{answer}}}" if marked else answer,
                fallback_mode="no_fallback",
                parsing_timeout=None,
            )
        )
    except Exception:
        return ()


def same(gold: tuple[Any, ...], found: tuple[Any, ...]) -> bool:
    """Whether two readings mean the same. Never raises.

    Numbers are equal exactly, or to six decimals where one is no fraction; formulas where they
    agree at three points; lists member by member. Intervals, relations and matrices are for
    math-verify's ``verify``, where they are small. It would simplify formulas, which can take
    hours.
    """
    try:
        return any(_equal(one, other) for one in gold for other in found)
    except Exception:
        return False


def _equal(gold: Any, found: Any) -> bool:
    if isinstance(gold, str) or isinstance(found, str):
        return isinstance(gold, str) and gold == found
    import sympy

    if _relational(gold) != _relational(found):
        gold, found = _right_side(gold), _right_side(found)
    if gold == found:
        return True
    if isinstance(gold, sympy.Expr) and isinstance(found, sympy.Expr):
        return _agree(gold, found)
    if isinstance(gold, sympy.FiniteSet) and isinstance(found, sympy.FiniteSet):
        left = list(found.args)
        if len(left) != len(gold.args) or len(left) > 20:
            return False
        return all(any(_equal(one, other) for other in left) for one in gold.args) and all(
            any(_equal(one, other) for one in gold.args) for other in left
        )
    if getattr(gold, "free_symbols", None) != getattr(found, "free_symbols", None):
        return False
    powers = [power.exp for power in found.atoms(sympy.Pow) if power.exp.is_Integer]
    if _operations(found) > 2 * _operations(gold) + 10 or any(
        abs(int(power)) > 10 for power in powers
    ):
        return False
    return bool(_math_verify()[1](gold, found, timeout_seconds=None))


def _agree(gold: Any, found: Any) -> bool:
    if gold.is_Rational and found.is_Rational:
        return False  # they would have been equal
    symbols = sorted(gold.free_symbols, key=str)
    if gold.free_symbols != found.free_symbols:
        return False
    for point in (0.7134, 1.3791, 2.6183) if symbols else (1.0,):
        values = {symbol: point + 0.317 * index for index, symbol in enumerate(symbols)}
        difference = gold.evalf(20, subs=values) - found.evalf(20, subs=values)
        if not (difference.is_number and abs(complex(difference)) < 5e-7):
            return False
    return True


def _relational(value: Any) -> bool:
    return bool(getattr(value, "is_Relational", False))  # matrices have no such attribute


def _right_side(value: Any) -> Any:
    """5 for x = 5; anything else as it is."""
    return (
        value.rhs
        if _relational(value) and value.func.__name__ == "Equality" and value.lhs.is_Symbol
        else value
    )


def normal(answer: str, reading: tuple[Any, ...]) -> str:
    """A text for an answer that is the same for most answers that are equal:

    ``0.5``, ``1/2`` and ``\\frac{1}{2}`` are ``1/2``.
    """
    try:
        value = reading[0]
        if isinstance(value, str):
            return value
        import sympy

        value = _right_side(value)
        value = value.doit() if value.is_number else value
        return str(sympy.Rational(str(value)) if value.is_Float else value)
    except Exception:
        return " ".join(answer.lower().split())


def _operations(value: Any) -> int:
    import sympy

    return int(sympy.count_ops(value))


_VERIFY: list[Any] = []


def _math_verify() -> Any:
    """Its ``parse`` and ``verify``: sympy's half a second to import is for those who need it."""
    if not _VERIFY:
        from math_verify import parse, verify

        logging.getLogger("math_verify").setLevel(
            logging.ERROR
        )  # it warns that there is no time limit, which is so by intent
        _VERIFY.extend((parse, verify))
    return _VERIFY
