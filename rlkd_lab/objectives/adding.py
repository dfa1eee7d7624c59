"""Methods of your own: put a row into the table of this process."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import fields
from types import CodeType

from rlkd_lab.objectives.method import Method
from rlkd_lab.objectives.methods import _table, resolve_options
from rlkd_lab.objectives.rules import RatioRule, SurrogateRule
from rlkd_lab.objectives.schedules import parse_schedule, values_of
from rlkd_lab.objectives.settings import check_coef, nearest

NEEDS = ("teacher", "groups", "traces", "divergence")
_added: set[str] = set()


def add_method(name: str, method: Method) -> str:
    """Put a method of your own into :data:`METHODS` for this process: it then works in
    ``token_loss``, ``make_config`` and a run.

    A run of it can only be resumed where it was added, under the same name.
    ``rlkd_lab.lab.check_method`` runs the exact tests on it.

    Args:
        name: letters, digits and ``_``. One that was added before is replaced.
        method: most easily ``dataclasses.replace`` of a row that is there.

    Returns:
        eight hex digits that change with the row and the code of its rules (not with functions that
        those call): put them into the name of the run's folder, and an old run is never taken for
        one of the new code.

    Raises:
        ValueError: the name belongs to the kit; a coefficient, option, schedule or need is unknown
            or out of range; a rule or coefficient is missing.
    """
    if not name.isidentifier():
        raise ValueError(
            f"{name!r} is no name for a method: use letters, digits and _, and begin with a letter"
        )
    if name in _table and name not in _added:
        raise ValueError(f"{name!r} is a method of the kit already: choose another name")
    _check_row(name, method)
    _table[name] = method
    _added.add(name)
    values = [getattr(method, each.name) for each in fields(method) if each.name != "needs"]
    row = [_text_of(value) for value in values]
    return hashlib.sha256("\n".join([*row, *sorted(method.needs)]).encode()).hexdigest()[:8]


def _check_row(name: str, method: Method) -> None:
    for need in method.needs:
        nearest(need, NEEDS, "need")
    for coef, value in method.coefs.items():
        check_coef(coef, value)
    resolve_options(method)
    if method.ratio is None and method.penalty is None:
        raise ValueError(f"{name} has neither a ratio nor a penalty: its loss would always be 0")
    if method.ratio is not None:
        _check_ratio(name, method, method.ratio)
    for coef, text in method.schedules.items():
        for end in values_of(parse_schedule(text)):
            check_coef(nearest(coef, method.coefs, f"knob of {name}"), end)


def _check_ratio(name: str, method: Method, ratio: RatioRule) -> None:
    for what, rule, kind in (
        ("ratio", ratio, RatioRule),
        ("surrogate", method.surrogate, SurrogateRule),
    ):
        if not isinstance(rule, kind):
            raise ValueError(
                f"{name}: {what} is {rule!r}; it is a {kind.__name__} of"
                " rlkd_lab.objectives.rules, such as importance_ratio or clipped"
            )
    if method.advantage is None:
        raise ValueError(
            f"{name} needs an advantage rule beside its ratio, such as reward_advantage"
        )
    reads = (*ratio.reads, *method.surrogate.reads)
    missing = [coef for coef in reads if coef not in method.coefs]
    if missing:
        raise ValueError(
            f"{name} needs a value for {', '.join(missing)} in coefs: its ratio or surrogate"
            " reads it (None is off where a knob may be off)"
        )


def is_added(name: str) -> bool:
    """Return whether :func:`add_method` put it there, so that another process does not know it."""
    return name in _added


def _text_of(value: object) -> str:
    """Return a text that changes with a value of a row, rules included."""
    if isinstance(value, RatioRule | SurrogateRule):
        return str([_code_of(value.compute), value.reads])
    return _code_of(value) if callable(value) else str(value)


def _code_of(rule: Callable[..., object]) -> str:
    """Return the bytecode of a function, its constants, defaults, and the numbers that it reads
    from around it. The same code gives the same text, wherever it stands.
    """

    def described(code: CodeType) -> list[str]:
        consts = [
            described(each) if isinstance(each, CodeType) else each for each in code.co_consts
        ]
        return [code.co_code.hex(), str(code.co_names), str(code.co_varnames), str(consts)]

    code = getattr(rule, "__code__", None)
    if code is None:
        return str(getattr(rule, "__qualname__", type(rule).__qualname__))
    around = {**rule.__globals__, **inspect.getclosurevars(rule).nonlocals}
    numbers = {
        name: around[name]
        for name in (*code.co_names, *code.co_freevars)
        if isinstance(around.get(name), int | float | str)
    }
    return str([*described(code), numbers, getattr(rule, "__defaults__", None)])
