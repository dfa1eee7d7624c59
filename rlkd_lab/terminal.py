"""Text for a terminal: what stands in a file is shown there and steers nothing.

Run folders come from elsewhere, and completions from a model.
"""

from __future__ import annotations

import unicodedata

import rich.markup
import typer

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
    typer.echo(visible(text), err=err)
