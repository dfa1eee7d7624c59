"""Links each term of the glossary where a page of the site first uses it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from docutils import nodes
from sphinx.application import Sphinx

GLOSSARY = "docs/glossary"
PLAIN_WORDS = {"Chance", "Interference", "Interval", "Reference"}
"""Terms that the pages also use in their plain sense."""
AFTER_ARTICLE = {
    *("Arm", "Base", "Clip", "Fork", "Gate", "Group", "Guard", "Mask", "Replay", "Run", "Schedule"),
    "Task",
}
"""Terms that are also verbs, or parts of other words: linked after an article alone."""
OTHER_NAMES = {"α (alpha)": "α", "k1, k2, k3": "k[123]", "Policy": "polic(?:y|ies)", "Run": "runs?"}
NOT_PROSE = (nodes.reference, nodes.literal, nodes.math, nodes.entry, nodes.title)


def pattern(term: str) -> str:
    """Return what a text says for a term: capital or small, one or several."""
    word = OTHER_NAMES.get(term) or re.escape(term) + "s?"
    if term[:2].istitle() or term[1:2] == "-":
        word = f"(?i:{word})"
    before = r"(?<=\b[Aa]n )|(?<=\b[Aa] )|(?<=\b[Tt]he )"
    return (f"(?:{before})" if term in AFTER_ARTICLE else "") + word
