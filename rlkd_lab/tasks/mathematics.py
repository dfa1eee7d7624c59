r"""Formulas: what no kind of answer could read goes to math-verify's LaTeX parser, within bounds.

math-verify bounds its time by signals, which no thread but the main one has, and a limit in seconds
would make a reward depend on the machine. So it runs without them here. Instead :func:`harmless`
bounds what it is shown: an answer that is longer, deeper or larger than a final answer needs to be
is not read. Sums, products, integrals and limits are left out, because sympy would compute them. A
run judges in a subprocess with a time limit that hardly any answer comes near
(:mod:`rlkd_lab.tasks.verifier`).

Where this differs from math-verify's own ``parse`` and ``verify``:

- Only a whole answer is parsed. math-verify also picks out a number, or the last equation.
- Its parser for plain text is not used: that one is Python's ``eval``.
- Values are compared by their size, so 2^-30 is not 0. math-verify rounds to six decimals.
- What has no value (1/0) equals nothing. math-verify has 1/0 = 7/0.
- Formulas are evaluated at points. math-verify simplifies them, which can take hours.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

LONGEST = 200
"""Characters of an answer that sympy is shown."""
DIGITS = 50
"""Digits to which formulas are evaluated."""
_TIGHT, _LOOSE = 1e-30, 1e-5
"""Relative differences of equal values, between exact formulas and where one holds a decimal."""
_GROWS = re.compile(r"\^|\*\*|(?:exp|exponentialE|sinh|cosh|tanh|[Gg]amma)(?![A-Za-z])")
_OPENING = re.compile(r"\s*(?:\\left\s*)?(?:\\[A-Za-z]+\s*)?([({\[])")
_TOKEN = re.compile(r"\s*(?:[+-]?\w+|\\\w+|.)?", re.DOTALL)
_NEVER = re.compile(
    r"\\(?:sum|prod|int|iint|oint|lim|det|gcd|lcm|operatorname)(?![A-Za-z])|[)}\]!]\s*!|\d{4,}\s*!|\\end\{[a-z]*matrix\}\s*\^"
    r"|\\d?t?binom\D*\d{4,}|\d{50,}|\\(?:input|def|newcommand)(?![A-Za-z])"
)
_NO_FORMULA = re.compile(
    r"(?<!_)\d\s+\d|\d'|\d\s*:\s*\d|%|(?<![\\A-Za-z])[A-Za-z]{3,}\s+(?:[A-Za-z]{2,}|\d)|[?$]|[\"#@&_]\s*\Z|\A[\s.,;:?!]*\Z"
)
"""Two numbers in a row, a time, a percentage, several words."""
TRIGONOMETRY = re.compile(r"\\?(?<![A-Za-z])(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_SQUARED = re.compile(r"(\\(?:sin|cos|tan|cot|sec|csc)\^)(\d)(?=\s*\d)")
_DEGREES = re.compile(
    r"(\\(?:sin|cos|tan|cot|sec|csc)(?:\^(?:\d|\{\d\}))?)\s*[({]?\s*(-?\d{1,9}(?:\.\d{1,9})?)\s*"
    r"(?:\^\\circ|degrees?(?![A-Za-z]))\s*[)}]?"
)
_PRIMES = re.compile(r"(?<=[A-Za-z])'{1,3}(?!\w)")


def harmless(answer: str) -> bool:
    """Return whether sympy may be shown an answer: short, shallow, without numbers that take long.

    >>> texts = ("2^{10}", "9^{9^9}", "9**9**9", "((9^{99})^{99})^{99}", "(" * 30, "1000000!")
    >>> [harmless(text) for text in texts]
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
    """Return an exponent or a function's argument, and where it ends: brackets, or a word."""
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
def formula(answer: str) -> Any:
    """Return the sympy object of a cleaned answer; ``None``: it cannot be read. Never raises."""
    answer = _SQUARED.sub(r"\1{\2}", answer)
    if not harmless(answer) or (_NO_FORMULA.search(answer) and "matrix" not in answer):
        return None
    try:
        import sympy

        value = _parse(_latex(answer))
        if not isinstance(value, sympy.Basic | sympy.MatrixBase) or value in (
            sympy.true,
            sympy.false,
        ):
            return None
        if value.has(sympy.zoo, sympy.nan):
            return None
        if isinstance(value, sympy.core.relational.Relational) and not all(
            isinstance(side, sympy.Expr | sympy.MatrixBase) for side in value.args
        ):
            return None  # (x, y) = (1, 2)
        return value.xreplace(
            {one: sympy.Symbol(one.name) for one in value.free_symbols}
        )  # some are made real, some not
    except Exception:
        return None


def numeric(answer: str) -> Any:
    """Return the real ``Number`` (:mod:`~rlkd_lab.tasks.answers.numbers`) of a formula, if it
    has one.
    """
    from rlkd_lab.tasks.answers.numbers import BITS, Number

    if not re.search(r"\d|\\|\be\b|\bpi\b", answer):
        return None  # words; this saves the import of sympy
    value = formula(answer)
    try:
        import sympy

        if (
            not isinstance(value, sympy.Expr)
            or value.free_symbols
            or value.has(sympy.oo, -sympy.oo)
        ):
            return None
        value = value.doit()
        if value.is_Rational:
            found = Fraction(int(value.p), int(value.q))
            return (
                Number(found)
                if max(found.numerator.bit_length(), found.denominator.bit_length()) <= BITS
                else None
            )
        size = _value(value, {})
        if size is None or abs(size.imag) > 0:
            return None
        sign, digits, power, _ = size.real._mpf_
        found = Fraction(-int(digits) if sign else int(digits)) * Fraction(2) ** int(power)
        return (
            Number(found, abs(found) / 10**9)
            if value.has(sympy.Float)
            else Number(found, rough=True)
        )
    except Exception:
        return None


def agree(gold: Any, found: Any) -> bool:
    """Return whether two formulas are the same, at points or member by member. Never raises."""
    try:
        return _agree(gold, found)
    except Exception:
        return False


def _agree(gold: Any, found: Any) -> bool:
    import sympy

    if gold == found:
        return True
    if isinstance(gold, sympy.Expr) and isinstance(found, sympy.Expr):
        return _same_values(gold, found)
    if isinstance(gold, sympy.core.relational.Relational) and isinstance(
        found, sympy.core.relational.Relational
    ):
        return _same_relations(gold, found)
    if isinstance(gold, sympy.MatrixBase) and isinstance(found, sympy.MatrixBase):
        return gold.shape == found.shape and all(map(_agree, gold, found))
    if (
        type(gold) is not type(found)
        or len(gold.args) != len(found.args)
        or not gold.args
        or len(gold.args) > 20
    ):
        return False
    if isinstance(gold, sympy.FiniteSet | sympy.Union | sympy.And | sympy.Or):
        return all(any(_agree(one, other) for other in found.args) for one in gold.args)
    return all(map(_agree, gold.args, found.args))


def _same_values(gold: Any, found: Any) -> bool:
    """Return whether two expressions agree wherever both are real, at three points or more."""
    import sympy

    if gold.free_symbols != found.free_symbols:
        return False
    symbols = sorted(gold.free_symbols, key=str)
    near = _LOOSE if gold.has(sympy.Float) or found.has(sympy.Float) else _TIGHT
    agreed = 0
    for point in _POINTS if symbols else _POINTS[:1]:
        at = _at(symbols, point)
        one, other = _value(gold, at), _value(found, at)
        if one is None or other is None or (symbols and point < 0 and (one.imag or other.imag)):
            continue
        if abs(one - other) > near * max(abs(one), abs(other)):
            return False
        agreed += 1
    return agreed >= (3 if symbols else 1)


def _same_relations(gold: Any, found: Any) -> bool:
    """Return whether two equations are multiples of each other; inequalities by a positive
    number.
    """
    import sympy

    def sides(one: Any) -> tuple[str, Any]:
        sign, left, right = one.rel_op, one.lhs, one.rhs
        return {">": "<", ">=": "<="}.get(sign, sign), right - left if sign in (
            ">",
            ">=",
        ) else left - right

    (one_sign, one), (other_sign, other) = sides(gold), sides(found)
    if one_sign != other_sign or one.free_symbols != other.free_symbols:
        return False
    near = _LOOSE if one.has(sympy.Float) or other.has(sympy.Float) else _TIGHT
    ratios: list[Any] = []
    for point in _POINTS:
        at = _at(sorted(one.free_symbols, key=str), point)
        left, right = _value(one, at), _value(other, at)
        if left and right and not (left.imag or right.imag):
            ratios.append(left.real / right.real)
    same = len(ratios) >= 3 and all(
        abs(ratio - ratios[0]) <= near * abs(ratios[0]) for ratio in ratios
    )
    return bool(same and (one_sign in ("==", "!=") or ratios[0] > 0))


_POINTS = (0.7134, 1.3791, 2.6183, -1.1373, -0.4211)


def _at(symbols: list[Any], point: float) -> dict[Any, Any]:
    import sympy

    return {
        symbol: sympy.Rational(
            round(10_000 * (point + 0.317 * index * (1 if point > 0 else -1))), 10_000
        )
        for index, symbol in enumerate(symbols)
    }


def _value(expression: Any, at: dict[Any, Any]) -> Any:
    """Return the value at a point, to :data:`DIGITS` digits, as mpmath has it; ``None``: it has
    none.

    A sum that is far smaller than its terms is 0: ``sin²x + cos²x − 1`` leaves rounding noise.
    """
    import mpmath

    value = expression.evalf(DIGITS, subs=at)
    if not value.is_number or value.has(*_nothing()):
        return None
    with mpmath.workdps(DIGITS):
        real, imaginary = value.as_real_imag()
        size = mpmath.mpc(real._to_mpmath(200), imaginary._to_mpmath(200))
        terms = (
            [
                abs(mpmath.mpmathify(term))
                for one in expression.args
                if (term := one.evalf(15, subs=at)).is_number
            ]
            if expression.is_Add
            else []
        )
        noise = sum(terms) * mpmath.mpf(10) ** (5 - DIGITS)
        return mpmath.mpc(
            0 if abs(size.real) <= noise else size.real,
            0 if abs(size.imag) <= max(noise, abs(size) * mpmath.mpf(10) ** -40) else size.imag,
        )


def _nothing() -> tuple[Any, ...]:
    import sympy

    return sympy.zoo, sympy.nan, sympy.oo, -sympy.oo


def _latex(answer: str) -> str:
    """Return LaTeX for a formula that may lack backslashes, such as ``sqrt(2)`` or ``pi/2``."""
    tight = re.sub(r"\s*([{}])\s*", r"\1", answer).replace("**", "^")
    named = re.sub(
        r"(?<![\\A-Za-z])(sqrt|pi|sin|cos|tan|log|ln|exp|theta|alpha|beta)(?![A-Za-z])",
        r"\\\1 ",
        tight,
    )
    named = _DEGREES.sub(r"\1(\\frac{\2\\pi}{180})", named)
    if TRIGONOMETRY.search(named) and r"\circ" in named:
        raise ValueError("degrees within a calculation")
    named = _PRIMES.sub(lambda match: f"_{{{'p' * len(match.group())}}}", named)
    return re.sub(r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", named)


def _parse(latex: str) -> Any:
    """Return what math-verify's parser makes of LaTeX. The import is slow, so it stands here."""
    from latex2sympy2_extended.latex2sympy2 import (
        ConversionConfig,
        NormalizationConfig,
        latex2sympy,
        normalize_latex,
    )

    config = NormalizationConfig(
        basic_latex=True, malformed_operators=True, nits=True, boxed="none"
    )
    return latex2sympy(
        normalize_latex(latex, config),
        is_real=True,
        convert_degrees=False,
        normalization_config=None,
        conversion_config=ConversionConfig(lowercase_symbols=False),
    )
