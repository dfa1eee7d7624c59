"""What a cell of a row holds: text, a number or a chat."""

from __future__ import annotations

import ast
import contextlib
import json
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

CHOICES = ("choices", "options")
"""Columns of the answers that a row offers."""
REPLY = ("completion", "messages", "chosen")
"""Columns of a chat whose last assistant turn is the answer, where no column of answers is."""
NOTHING = ("NaN", "nan", "None", "null", "NULL", "N/A", "n/a", "#N/A", "<NA>")
"""What programs write into a cell that holds nothing; a question may be such a word."""

Turns = tuple[tuple[str, str], ...]
"""Role and text of each."""


class LeftOut(Exception):
    """Why a row cannot be used, behind a number of rows: "without an answer"."""


class MissingColumn(ValueError):
    """No row of a file has a column that was asked for."""


class Missing:
    """A row without such a column."""


def text_of(value: Any, kind: str) -> str:
    """Return text or a number as text."""
    empty = not isinstance(value, str) and is_empty(value)
    if not empty and (not isinstance(value, str | int | float) or isinstance(value, bool)):
        raise LeftOut(f"with a {type(value).__name__} as {kind}, where text or a number is read")
    text = "" if empty else str(value)
    if not text.strip():
        raise LeftOut(f"without {'an' if kind == 'answer' else 'a'} {kind}")
    if re.search("[\ud800-\udfff]", text):
        raise LeftOut(f"with half of a character (a lone surrogate) in the {kind}")
    return text


def cell_of(value: Any, kind: str) -> str:
    """:func:`text_of` a cell that holds no chat.

    Raises:
        LeftOut: it is empty, or a chat that cannot be read, or an answer of :data:`NOTHING`.
    """
    text = text_of(value, kind)
    if kind == "answer" and text.strip() in NOTHING:
        raise LeftOut(f"with {text.strip()!r} as {kind}, which stands for a missing one")
    if isinstance(value, str) and re.match(r"""\s*\[\s*\{\s*["'](role|content)["']\s*:""", text):
        raise LeftOut(f"with a chat as {kind} that cannot be read")
    return text


def is_empty(value: Any) -> bool:
    """Whether a cell says nothing."""
    if isinstance(value, str):
        return not value.strip() or value.strip() in NOTHING
    return (
        value is None
        or isinstance(value, Missing)
        or (isinstance(value, float) and not math.isfinite(value))
    )


def is_index(answer: Any, row: Mapping[str, Any], question: str) -> bool:
    """Whether an answer is the place of one of the row's choices, a number or a letter, and not a
    choice itself.

    >>> is_index("B", {"choices": ["x", "y"]}, "Which?"), is_index("B", {}, "Which?")
    (True, False)
    >>> is_index(2, {"choices": ["a", "b", "c"]}, "Which?")
    True
    >>> is_index(2, {"choices": ["1", "2"]}, "Which?"), is_index(2, {"choices": "abc"}, "Which?")
    (False, False)
    """
    if isinstance(answer, bool) or not re.fullmatch(r"\s*(\d{1,3}(\.0)?|[A-Z])\s*", str(answer)):
        return False
    listed = next((row[name] for name in CHOICES if row.get(name) is not None), None)
    if isinstance(listed, str):
        listed = _literal(listed)
    if isinstance(listed, Mapping):  # as ARC holds them
        listed = listed.get("text")
    if not isinstance(listed, list | tuple):
        return False
    choices = [str(choice).strip() for choice in listed]
    place = str(answer).strip()
    letter = place.isalpha()
    number = ord(place) - ord("A") + 1 if letter else int(float(place))
    if number > len(choices) or (place if letter else str(number)) in choices:
        return False
    return not all(choice in question for choice in choices)  # it may number them itself


def _literal(text: str) -> Any:
    """Return a list that a field of CSV holds as JSON, as Python writes it, or as numpy does."""
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(text)
    # numpy puts a line break where Python puts a comma; inside of quotes both write \n
    for written in (text, re.sub(r"(?<=\})\s*\n\s*(?=\{)", ", ", text)):
        with (
            contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError),
            warnings.catch_warnings(action="ignore"),  # of backslashes
        ):
            return ast.literal_eval(written.strip())
    return None


def turns_of(value: Any) -> list[tuple[str, Any]] | None:
    """Return role and content of the turns of a chat; ``None`` for any other value."""
    if (
        isinstance(value, str) and re.match(r"\s*\[\s*\{", value) and "role" in value
    ):  # as CSV holds them
        value = _literal(value)
    if (
        not isinstance(value, list)
        or not value
        or not all(
            isinstance(turn, dict) and "role" in turn and "content" in turn for turn in value
        )
    ):
        return None
    return [(str(turn["role"]), _joined(turn["content"])) for turn in value]


def _joined(content: Any) -> Any:
    """Return the text of a turn that is given in parts, if all of them are text."""
    if isinstance(content, list) and all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in content
    ):
        return "".join(part["text"] for part in content)
    return content


def dialogue(turns: Sequence[tuple[str, Any]]) -> tuple[str, Any, str | None, Turns]:
    """Return the last user turn, the last assistant turn after it, the system turn, and the
    turns before that question.

    Raises:
        LeftOut: the roles are others than these, or in another order.
    """
    odd = next(
        (role for role, _ in turns if role not in ("system", "developer", "user", "assistant")),
        None,
    )
    if odd is not None:
        raise LeftOut(f"with a turn of role {odd!r}, which is not read here")
    last = max((i for i, (role, _) in enumerate(turns) if role == "user"), default=None)
    if last is None:
        raise LeftOut("without a question")
    before = [turn for turn in turns[:last] if turn[0] in ("user", "assistant")]
    if [role for role, _ in before] != ["user", "assistant"] * (len(before) // 2):
        raise LeftOut("with turns that are not the user's and the assistant's one after the other")
    if before and any(role in ("system", "developer") for role, _ in turns[1:last]):
        raise LeftOut("with a system turn behind the first turn")
    context = tuple((role, text_of(said, "turn before the question")) for role, said in before)
    system = next(
        (content for role, content in turns if role in ("system", "developer") and content), None
    )
    reply = last_of(turns[last:], "assistant")
    return text_of(turns[last][1], "question"), reply, system, context


def last_of(turns: Sequence[tuple[str, Any]], role: str) -> Any:
    return next((content for name, content in reversed(turns) if name == role), None)


def replies(row: Mapping[str, Any]) -> list[str]:
    """Return columns that may hold the reply to a question that stands in another, the usual ones
    first; a reply that a row of preferences rejects is none.
    """
    first = [name for name in REPLY if name in row]
    return first + [name for name in row if name not in first and "reject" not in name.casefold()]


def reply_of(row: Mapping[str, Any]) -> Any:
    """Return the last assistant turn of a chat in two columns, as TRL's prompt and completion are.

    Raises:
        LeftOut: columns of no usual name differ in it.
    """
    found = {
        name: text
        for name in replies(row)
        if (text := last_of(turns_of(row[name]) or (), "assistant"))
    }
    usual = next((text for name, text in found.items() if name in REPLY), None)
    if usual is None and any(text != next(iter(found.values())) for text in found.values()):
        raise LeftOut(
            f"with different replies in the columns {', '.join(found)}: name one with --set"
            " task.answer=COLUMN"
        )
    return usual or next(iter(found.values()), None)
