"""The token inspector as HTML without scripts: tokens, legend, tables. All text is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from rlkd_lab.lab.live.completions import Shown
from rlkd_lab.lab.live.inspector_words import (
    MARK_LOOKS,
    RANGE_OF,
    alternatives_words,
    colour_ends,
    constant_sentence,
    cut_words,
    is_list,
    missing_words,
    number,
    percent,
    range_sentence,
    reward_words,
    token_label,
    token_values,
)
from rlkd_lab.lab.live.token_colours import colours, on_axis
from rlkd_lab.lab.live.token_text import visible
from rlkd_lab.lab.live.token_view import BOUND, DEAD, GROUND, INK, PAGE, SELECTED, TOKEN
from rlkd_lab.lab.live.tokens import ARRAYS, MARKS, Kind

LISTED = 8
"""Rows of the table of the strongest tokens."""
# Every cell has a background, because a notebook's dark theme paints rows.
CELL = (
    f"background:{GROUND};color:{INK};border:1px solid #8888;padding:2px"
    " 8px;text-align:left;vertical-align:top;white-space:pre-wrap"
)
CAPTION = f"text-align:left;color:{INK};background:{GROUND};padding:2px 0;font-weight:600"
TABLE = f"border-collapse:collapse;margin:4px 0;font:13px/1.4 system-ui,sans-serif;color:{INK}"


def text(value: object) -> str:
    """Return any string escaped, isolated from the writing direction around it."""
    return f'<bdi style="unicode-bidi:isolate">{html.escape(str(value))}</bdi>'


def table(head: Sequence[str], rows: Iterable[Sequence[object]], caption: str) -> str:
    """Return a table; every value is escaped."""
    cell, title = f'<td style="{CELL}">', f'<th style="{CELL};font-weight:600">'
    above = "".join(f"{title}{html.escape(name)}</th>" for name in head)
    lines = ("".join(f"{cell}{text(value)}</td>" for value in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    top = f'<caption style="{CAPTION}">{html.escape(caption)}</caption>'
    return f'<table style="{TABLE}">{top}<tr>{above}</tr>{body}</table>'


def alert(error: object) -> str:
    """Return an error as a banner."""
    style = f"{PAGE};border-left:6px solid #D55E00"
    words = f"<b>Not shown:</b> {text(error)}. What you see is unchanged."
    return f'<div role="alert" style="{style}">{words}</div>'


# --- tokens ---------------------------------------------------------------------------------------


def cells(one: Shown, first: int, last: int, name: str, limit: float) -> list[dict[str, Any]]:
    """Return the tokens ``first`` to ``last`` of a completion as plain data for the widget.

    A cell has ``at``, ``text``, ``background``, ``colour``, ``label``, ``breaks`` (whether a
    line ends there) and the marks.
    """
    values = one.values(name)
    painted = [("#ffffff", "#000000")] * len(one.tokens)
    if values is not None:
        painted = colours(name, values, limit)
    return [
        {
            "at": i,
            "text": one.tokens[i],
            "background": painted[i][0],
            "colour": painted[i][1],
            "label": token_label(one, i, name, values),
            "breaks": "⏎" in one.tokens[i],
            **{mark: one.marked(mark, i) for mark in MARKS},
        }
        for i in range(first, last)
    ]


def tokens_html(block: dict[str, Any], selected: int | None) -> str:
    """Return a completion; ``selected`` is the outlined token."""
    heading = f'<div style="margin:8px 0 2px;font-weight:600">{text(block["title"])}'
    parts = [heading + "</div>"]
    for cell in block["cells"]:
        style = f"{TOKEN}background-color:{cell['background']};color:{cell['colour']};"
        style += DEAD if cell["dead"] else "border:1px solid #bbb;"
        style += (BOUND if cell["bound"] else "") + (SELECTED if cell["at"] == selected else "")
        title, shown = html.escape(cell["label"]), html.escape(cell["text"])
        parts.append(f'<span title="{title}" style="{style}">{shown}</span>')
        parts.append("<br>" if cell["breaks"] else "")
    if block["window"]:
        window = html.escape(block["window"])
        parts.append(f'<div style="font-size:13px">{window}</div>')
    return "".join(parts)


# --- legend ---------------------------------------------------------------------------------------


def legend_html(
    shown: Sequence[Shown],
    name: str,
    limit: float,
    kind: Kind,
    method: str,
    omitted: int,
) -> str:
    """Return the legend: colour bar, range, marks, and what is missing.

    Args:
        shown: the completions on screen.
        name: the array of the colours.
        limit: where the colours end.
        kind: ``step`` or ``probe``.
        method: of the run.
        omitted: recorded steps that are not on screen.
    """
    array = ARRAYS[name]
    values = [found for one in shown if (found := one.values(name)) is not None]
    sentence = constant_sentence(name, values)
    sentence = sentence or range_sentence(name, limit, values, RANGE_OF[kind])
    marks = "".join(_mark_line(shown, mark) for mark in MARKS)
    total = len(shown) + omitted
    count = f"<div>{len(shown)} of {total} recorded steps, evenly spaced.</div>" if omitted else ""
    missing = missing_words(shown[0].data.missing, method)
    absent = "".join(f"<div>{html.escape(words)}</div>" for words in missing)
    return (
        f'<div style="{PAGE}">'
        f"<div><b>{html.escape(array.title)}</b>: {html.escape(array.formula)}</div>"
        f"{_colour_bar(name, limit)}<div>{html.escape(sentence)}</div>{marks}{count}"
        f'<div style="font-size:13px">{absent}</div></div>'
    )


def _colour_bar(name: str, limit: float) -> str:
    scale = ARRAYS[name].scale
    places = np.linspace(0 if scale == "positive" else -1, 1, 25) * limit
    painted = colours(name, np.exp(places) if scale == "ratio" else places, limit)
    style = "flex:1;height:16px;background:"
    bar = "".join(f'<span style="{style}{colour}"></span>' for colour, _ in painted)
    ends = "".join(f"<span>{html.escape(end)}</span>" for end in colour_ends(name, limit))
    row = "display:flex;justify-content:space-between;font-size:13px"
    return (
        '<div style="width:252px;max-width:100%;margin:4px 0">'
        f'<div style="display:flex;border:1px solid">{bar}</div>'
        f'<div style="{row}">{ends}</div></div>'
    )


def _mark_line(shown: Sequence[Shown], mark: str) -> str:
    """Return the look and the meaning of a mark, and how many tokens have it."""
    arrays = [found for one in shown if (found := one.values(mark)) is not None]
    if not arrays:
        return ""
    count, total = sum(int(found.sum()) for found in arrays), sum(map(len, arrays))
    look = {"dead": DEAD, "bound": BOUND}[mark]
    style = f"{TOKEN}background-color:#fff;color:#000;border:1px solid #bbb;{look}"
    words = f"{MARK_LOOKS[mark]}: {MARKS[mark]}: {count} of {total} tokens shown."
    return f'<div><span style="{style}">abc</span> {html.escape(words)}</div>'


# --- the selected token ---------------------------------------------------------------------------


def detail_html(
    one: Shown,
    position: int,
    across: bool,
    weights: Mapping[str, float],
    left_out: bool,
) -> str:
    """Return the selected token: every array, the models' other likely tokens, the reward.

    Args:
        one: the completion.
        position: of the token, from 0.
        across: whether several steps are on screen.
        weights: of the reward's parts.
        left_out: whether the loss leaves out completions that the length limit cut.
    """
    row = one.row
    right = "" if row.get("correct") is None else ("right, " if row["correct"] else "wrong, ")
    cut = cut_words(row, left_out)
    words = f"{right}{html.escape(reward_words(row, weights))}." + (f" {cut}" if cut else "")
    head = f"<b>Prompt</b> {text(row['prompt'])} <b>answer</b> {text(row.get('answer'))}"
    if isinstance(row.get("teacher_prompt"), str):
        head += f" <b>the teacher read</b> {text(row['teacher_prompt'])}"
    values = table(("value", "here"), token_values(one, position, across), "Selected token")
    beside = "display:flex;flex-wrap:wrap;gap:20px;align-items:flex-start"
    return (
        f'<div style="{PAGE}"><div style="margin-bottom:4px">{head} · {words}</div><div'
        f' style="{beside}">{values}{_alternatives(one, position)}</div></div>'
    )


def _alternatives(one: Shown, position: int) -> str:
    """Return the likeliest tokens of student and teacher, or where they were recorded."""
    row = one.row
    student = _likeliest(one, position, "top", "logps")
    teacher = _likeliest(one, position, "teacher_top", "teacher_logps")
    caption = "Likeliest tokens here, by probability"
    likeliest = ""
    if student and teacher:
        length = max(len(student), len(teacher))
        sides = [_padded(side, length) for side in (student, teacher)]
        rows = [(*ours, *theirs) for ours, theirs in zip(*sides, strict=True)]
        likeliest = table(("student", "p", "teacher", "p"), rows, caption)
    elif student:
        likeliest = table(("student", "p"), student, caption)
    if is_list(row.get("top_logps")):
        return likeliest
    why = html.escape(alternatives_words(one.data.frame))
    return f'<div style="max-width:32em">{likeliest}<div>{why}</div></div>'


def _likeliest(one: Shown, position: int, top: str, column: str) -> list[tuple[str, str]]:
    """Return one model's likeliest tokens and the sampled one, (token, probability)."""
    row = one.row
    names: Any = row.get(f"{top}_tokens")
    logps: Any = row.get(f"{top}_logps")
    sampled: Any = row.get(column)
    if names is None:
        names = row.get(f"{top}_ids")
    pairs: list[tuple[str, str]] = []
    if is_list(names) and is_list(logps):
        tokens = visible([str(name) for name in names[position]])
        chances = [percent(float(logp)) for logp in logps[position]]
        pairs = list(zip(tokens, chances, strict=True))
    if is_list(sampled):
        pairs.append((f"sampled: {one.tokens[position]}", percent(float(sampled[position]))))
    return pairs


def _padded(side: list[tuple[str, str]], length: int) -> list[tuple[str, str]]:
    """Return a side with ``length`` rows; the sampled token stays in the last row."""
    return [*side[:-1], *[("", "")] * (length - len(side)), side[-1]]


# --- the strongest tokens -------------------------------------------------------------------------


def strongest_html(frame: pd.DataFrame, name: str, across: bool) -> str:
    """Return the tokens with the largest values, as a table.

    Args:
        frame: a row for each token.
        name: the array of the colours.
        across: whether several steps are on screen.
    """
    if name in frame:
        values = on_axis(name, frame[name].to_numpy(dtype=np.float64))
        largest = pd.Series(np.abs(values), frame.index).nlargest(LISTED).index
        frame = frame.loc[largest]
    skipped = {"prompt", "sample"} | (set() if across else {"step"})
    columns = [str(column) for column in frame if column not in skipped]
    titles = {**{key: array.title for key, array in ARRAYS.items()}, "bound": "bounded"}
    rows = [list(map(_cell, row)) for row in frame[columns].itertuples(index=False)]
    caption = f"The {len(rows)} tokens with the strongest colours, by {ARRAYS[name].title}"
    return table([titles.get(column, column) for column in columns], rows, caption)


def _cell(value: Any) -> object:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else ""
    return number(value) if isinstance(value, float) else value
