"""Fields of an example that a teacher's prompt may hold, as in ``{prompt} It is {answer}.``

Every example has ``prompt`` and ``answer``, and most tasks have ``trace``, a worked solution.
``sibling`` is another right completion of the same group. ``completion`` is the one that is scored,
and ``feedback`` is what the verifier says of it. Rows of a file have their columns, and examples of
your own class what stands in ``meta`` as text or a number.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from typing import Any

from rlkd_lab.tasks.base import Example

SIBLING, COMPLETION, FEEDBACK = OF_COMPLETION = ("sibling", "completion", "feedback")
"""Fields that are known once the completions of a group are judged."""
OURS = ("prompt", "answer", "trace", *OF_COMPLETION)
"""Fields that are no columns of a file."""
_FIELD = re.compile(r"\{\{|\}\}|\{([^\W\d]\w*)\}")
"""A field, or a brace that stands for itself because it is written twice."""


def fields_in(template: str | None) -> tuple[str, ...]:
    """Return the names of the fields in a template, in their order.

    >>> fields_in("{prompt} {{x}} \\\\boxed{} {answer}{prompt}")
    ('prompt', 'answer')
    """
    found = (match[1] for match in _FIELD.finditer(template or ""))
    return tuple(dict.fromkeys(name for name in found if name))


def columns_in(template: str | None) -> tuple[str, ...]:
    """Return the fields of a template that a file must have as columns, and ``trace``."""
    return tuple(name for name in fields_in(template) if name not in OURS or name == "trace")


def filled(template: str, values: Mapping[str, str]) -> str:
    """Put values into a template; braces that are written twice become one.

    >>> filled("{prompt} {{x}}", {"prompt": "1+1?"})
    '1+1? {x}'
    """
    return _FIELD.sub(lambda match: values[match[1]] if match[1] else match[0][0], template)


def value_of(task: Any, example: Example, name: str) -> str:
    """Return a field of an example as text.

    Raises:
        ValueError: the example does not have it.
    """
    if name in ("prompt", "answer"):
        return str(getattr(example, name))
    if name == "trace" and hasattr(task, "trace"):
        return str(task.trace(example))
    value = example.meta.get(name)
    if _is_text(value):
        return str(value)
    has = [*OURS[:2], *(("trace",) if hasattr(task, "trace") else ()), *OF_COMPLETION]
    has += [one for one, value in example.meta.items() if _is_text(value) and one != "where"]
    where = example.meta.get("where", task.name)
    close = difflib.get_close_matches(name, has, n=1)
    hint = "name the column that holds it, or take" if "where" in example.meta else "its fields are"
    hint = (f"did you mean {{{close[0]}}}? " if close else "") + hint
    raise ValueError(
        f"the teacher needs {{{name}}}, which {where} does not have: {hint}"
        f" {', '.join(dict.fromkeys(has))}"
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str | int | float) and bool(str(value).strip())


def cells_of(where: str, row: Mapping[Any, Any], columns: Collection[str]) -> dict[str, str]:
    """Return columns of a row as text; a row needs no column ``trace``.

    Raises:
        ValueError: the row has no such column, or nothing in it.
    """
    found = {}
    for name in columns:
        if name in row and _is_text(row[name]):
            found[name] = str(row[name])
        elif name in row:
            raise ValueError(
                f"{where} has no text in {name!r}, which the teacher needs: fill it, or"
                " leave the row out"
            )
        elif name != "trace":
            valid = list(dict.fromkeys([*OURS, *map(str, row)]))
            close = difflib.get_close_matches(name, valid, n=1, cutoff=0.4)
            hint = f"did you mean {{{close[0]}}}? " if close else ""
            raise ValueError(
                f"the teacher needs {{{name}}}, which {where} does not have: {hint}its"
                f" fields are {', '.join(valid)}"
            )
    return found
