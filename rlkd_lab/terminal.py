"""Text for a terminal: what stands in a file is shown there and steers nothing.

Run folders come from elsewhere, and completions from a model.
"""

from __future__ import annotations

import io
import sys
import unicodedata

import rich.markup

TURNS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""They change the order in which a line is read."""


def visible(text: object) -> str:
    r"""The text with control characters, of which escape sequences are made, as JSON writes them;
    line feeds stay.

    >>> visible("\x1b[31mred")
    '\\u001b[31mred'
    """
    return "".join(
        f"\\u{ord(one):04x}"
        if one != "\n" and (unicodedata.category(one) == "Cc" or one in TURNS)
        else one
        for one in str(text)
    )


def escape(text: object) -> str:
    r"""The same for rich, which reads markup in square brackets.

    >>> escape("[red]\x07")
    '\\[red]\\u0007'
    """
    return rich.markup.escape(visible(text))


def say(text: object, err: bool = False) -> None:
    """A line on stdout, or on stderr."""
    print(visible(text), file=sys.stderr if err else sys.stdout)


def as_utf8(text: str) -> str:
    """A word of the command line, which Python reads as ASCII under ``LC_ALL=C`` without its UTF-8
    mode, as the UTF-8 that it is.

    >>> as_utf8("r\\udcc3\\udcbcckwärts") == "rückwärts"
    True
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        return text


def replace_what_it_lacks() -> None:
    """From here on stdout and stderr write ``?`` for a character that the terminal's encoding
    lacks, where they would raise.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def writes(text: str) -> bool:
    """Whether stdout can write every character of the text."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True
