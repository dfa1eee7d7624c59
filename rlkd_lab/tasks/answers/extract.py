r"""The final answer of a completion: what it marks as such, or the line that says it."""

from __future__ import annotations

import re

from rlkd_lab.tasks.answers.clean import plain

TAIL = 4000
"""Characters of an answer, and characters at the end that may hold an unmarked answer."""
_BOX = re.compile(r"\\f?boxed\s*\{")
_THOUGHT = "</think>"
_THINKS = "<think>"
_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_OPENED, _CLOSED = "<answer>", "</answer>"
_HEADING = re.compile(
    r"(?:\d{1,2}[.):]\s+[A-Za-z]|step\b|(?:the\s+)?(?:explanation|solution|reasoning|notes?|check|proof"
    r"|verification|conclusion|summary|justification)\W*\Z)",
    re.IGNORECASE,
)
_ASKS = re.compile(r"(?:the\s+)?(?:final\s+)?answer\W*\Z", re.IGNORECASE)
_ALL_ONE = re.compile(r"\s*(?=\S*\d)[^\s\\#<]{1,40}\s*\Z")
MOST_HEADINGS = 20
MOST_BOXES = 8
"""Boxes in a row that are the answer together."""
_TAKEN_BACK = re.compile(
    r"\b(?:actually\W+(?:no|not|it|that|this|the|let)\b|wait\s*[,.!:—-]|correction\b|scratch that"
    r"|sorry\b|i was wrong|no, )",
    re.IGNORECASE,
)
"""What takes an answer back that stands before it."""
_SAID = re.compile(
    r"\banswers?\b(?:\W{0,4}\n+"
    r"|[^.\n:=?]{0,40}?(?:\b(?:is|are|(?<!not )(?<!n't )be|equals)\b\W{0,3}?[:=]?|[:=]))"
    r"(?!\s*(?:not|as follows|given|found|obtained|clear|obvious|correct|wrong|let|we|i"
    r"|the following)\b)",
    re.IGNORECASE,
)
_ONE_OF = re.compile(r"\\boxed\s*\{([^{}]*)\}[\s$]*(?:,[\s$]*(?:or|and)?|or|and)[\s$]*\Z")
"""Before a box that is the answer together with the one before it."""
_BOXED_DIGITS = re.compile(r"\\boxed\s*(-?\d{1,40})(?![\d.,/]*[\dA-Za-z])")
"""A box without braces."""
_BARE = re.compile(r"\W{0,4}(?:yes|no|true|false|[A-J])\b\W{0,4}\Z", re.IGNORECASE)
_NOTHING = re.compile(r"[\s$\\\[\]()*_`~#.:-]*\Z")
_NO_WORDS = re.compile(r"(?:\\[A-Za-z]+|[A-Za-z]{1,2}(?![A-Za-z])|[^A-Za-z\\]|\\)*\Z")
DENIES = r"(?:\bnot|n't|\bcannot|\bnever)"
_CUTS = re.compile(
    r"[.!?;](?=\s|\Z)|,?\s+(?:because|since|which|where|so|as|therefore|altogether|in"
    r" total|for)\b|\s+(?:[(—]|–(?!\s*\d))|\n"
)
_SPANS = re.compile(r"\$([^$\n]{1,200})\$|\\\(([^\n]{1,200}?)\\\)|\\\[([^\n]{1,200}?)\\\]")
_OR = re.compile(r"\bor\W*\Z")
_JOINS = re.compile(r"\s*(?:,|,?\s*(?:and|or))\s*")
_DENIED = re.compile(rf"{DENIES}\s*\Z", re.I)
_IS = re.compile(r"\b(?:is|are|was|be|equals)\b:?|:(?=\s)")


def final_answer(text: str) -> tuple[str, bool]:
    r"""Return the final answer of a completion, and whether it was marked as one.

    Only what follows the last ``</think>`` counts. There, the last of ``\boxed{…}``, ``#### …`` and
    ``<answer>…</answer>`` is the answer. Without any, it is the rest of the last line that says
    "answer is" or "answer:", else a first line that is yes, no or a letter, else the last line. A
    box that is never closed was cut: there is no answer. Boxes that only commas, "and" or "or" part
    are one answer.

    >>> final_answer(r"First \boxed{3}, no, \boxed{\frac{1}{2}}.")
    ('\\frac{1}{2}', True)
    >>> final_answer("6 · 7 makes\n#### 42")
    ('42', True)
    >>> final_answer(r"<think>\boxed{4}? no</think> It is 42.")
    ('It is 42.', False)
    """
    start = text.rfind(_THOUGHT)
    if start >= 0:
        text = text[start + len(_THOUGHT) :]
    start = text.find(_THINKS)
    if start >= 0 and not _ALL_ONE.match(text, start + len(_THINKS)):  # a thought that was cut
        text = text[:start]
    text = _BOXED_DIGITS.sub(r"\\boxed{\1}", _TAG.sub(r"<\1answer>", text))
    found = _marked(text)
    if found is not None:
        return found, bool(found)
    whole, text = len(text) <= TAIL, text[-TAIL:]
    if said := _said_at(text):
        back = list(_TAKEN_BACK.finditer(text, said))
        if not back:
            return _said(text).strip(), False
        text = text[back[-1].start() :]
    lines = [line.strip() for line in text.splitlines() if not _NOTHING.match(line)]
    if lines and whole and _BARE.match(lines[0]):
        return lines[0], False
    return (lines[-1] if lines else ""), False


def pieces(line: str) -> list[str]:
    """Return the parts of an unmarked line that may be its answer, the most likely first.

    >>> pieces("72, which is the total.")
    ['72, which is the total.', '72', 'the total.']
    """
    line = re.sub(r"(?<=\d)!+\Z", "", plain(line))  # 72! is no factorial
    found = [line]
    cut = _CUTS.search(line)
    if cut and cut.start():
        found.append(line[: cut.start()])
    if spans := list(_SPANS.finditer(line)):
        first = len(spans) - 1
        while first and _JOINS.fullmatch(line, spans[first - 1].end(), spans[first].start()):
            first -= 1
        if first < len(spans) - 1:  # $x = 2$ and $x = 3$
            found.append(line[spans[first].start() : spans[-1].end()])
        elif not _OR.search(line[: spans[-1].start()]):
            found.append(next(filter(None, spans[-1].groups())))
    last = [
        match.end() for match in _IS.finditer(line) if not _DENIED.search(line[: match.start()])
    ]
    if last and line[last[-1] :].strip(" .!"):
        found.append(line[last[-1] :].strip())
    return list(dict.fromkeys(found))


def _marked(text: str) -> str | None:
    """Return the last marked answer, ``""`` where it was cut, ``None`` without one."""
    box, tag = _last_box(text), text.rfind(_OPENED)
    line = _under_hashes(text, max(box[0], tag))
    if line and (max(box[0], tag) < 0 or _NO_WORDS.match(line)):
        return line  # a heading behind a box is no answer
    if max(box[0], tag) < 0:
        return None
    if tag > box[0]:
        end = text.find(_CLOSED, tag, tag + TAIL)
        return (
            _said(text[tag + len(_OPENED) : end].strip())
            if end >= 0
            else _unclosed(text[tag + len(_OPENED) :])
        )
    end = _closing(text[box[1] : box[1] + TAIL])
    if end < 0:
        return ""
    found = _said_inside(text[box[1] : box[1] + end].strip())
    boxes, end = [found], box[0]
    while len(boxes) < MOST_BOXES and (other := _ONE_OF.search(text, max(0, end - 60), end)):
        boxes, end = [other.group(1), *boxes], other.start()
    return " or ".join(dict.fromkeys(boxes))


def _under_hashes(text: str, start: int) -> str:
    """Return the line of the last ``####`` behind ``start`` that is no heading."""
    end = len(text)
    for _ in range(MOST_HEADINGS):
        at = text.rfind("####", max(start, 0), end)
        if at < 0:
            break
        below = text[at + 4 : at + 4 + TAIL]
        line = _first_line(below)
        if _ASKS.match(line):
            line = _first_line(below.partition(line)[2])
        if line and not _HEADING.match(line):
            return re.sub(r"\A[*_]+\s+", "", _said(line)) or line
        end = at
    return ""


def _said_inside(box: str) -> str:
    r"""Return 72 of ``\text{The answer is 72}``, and any other box as it is."""
    text = re.sub(r"\A\\text\s*\{([^{}]*)\}", r"\1", box)
    said = _said(text)
    return box if said is text else said


def _said(text: str) -> str:
    """Return what follows the last "answer is" or "answer:" in its line; else the text itself."""
    end = _said_at(text)
    return (_first_line(text[end:]) if end else "") or text


def _said_at(text: str) -> int:
    """Return where what follows the last "answer is" begins; 0 without one."""
    return max((match.end() for match in _SAID.finditer(text)), default=0)


def _unclosed(text: str) -> str | None:
    """Return the line that follows a tag which is never closed; ``None`` if there are more."""
    line = _first_line(text[:TAIL])
    return line if line and len(text) < TAIL and line == text.strip() and "<" not in line else None


def _last_box(text: str) -> tuple[int, int]:
    r"""Return where the last ``\boxed{`` starts and ends; (−1, −1) without one."""
    end = len(text)
    while (at := text.rfind("boxed", 0, end)) >= 0:
        start = text.rfind("\\", max(at - 2, 0), at)
        if start >= 0 and (match := _BOX.match(text, start)):
            return match.span()
        end = at
    return -1, -1


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if not _NOTHING.match(line)), "")


def _closing(text: str) -> int:
    """Return the index of the brace that closes one opened before ``text``; −1 where none does."""
    depth = 1
    for match in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0:
            return match.start()
    return -1
