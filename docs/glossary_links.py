"""Links each term of the glossary where a page of the site first uses it.

Headings, code, formulas, tables and italics do not count. A term that a page links by hand before,
or has as its title, is left as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

GLOSSARY = "docs/glossary"
EVERYDAY = {"Chance", "Interference", "Interval", "Reference"}
"""Terms that pages also use as everyday words. They are linked by hand."""
VERBS = {"Base", "Clip", "Group", "Guard", "Mask", "Replay", "Run", "Schedule", "Task"}
"""Terms that are also other words. They are linked behind one of `BEFORE` alone."""
BEFORE = r"\b(?:[Aa]n?|[Tt]he|[Ee]ach|[Ee]very|[Oo]ne|[Tt]wo|[Mm]any|[Yy]our|of) "
SPELT = {
    "α (alpha)": "α",
    "k1, k2, k3": "k[123]",
    "avg@n": r"avg@\w+",
    "pass@k": r"pass@\w+",
    "Student": "[Ss]tudents?(?!’s t\\b)",
    "Policy": "[Pp]olic(?:y|ies)",
}
NOT_PROSE = (nodes.reference, nodes.literal, nodes.math, nodes.entry, nodes.title)
NOT_PROSE += (nodes.emphasis, addnodes.literal_strong)
Terms = dict[str, nodes.section]


def expression(terms: Terms) -> re.Pattern[str]:
    """Return what finds any of the terms, the longest first; each has a group of its name."""
    found = []
    for name, section in terms.items():
        term = section[0].astext()
        word = SPELT.get(term, f"[{term[0]}{term[0].lower()}]{re.escape(term[1:])}s?")
        before = BEFORE if term in VERBS else ""
        found.append(
            (len(term), rf"{before}(?<![\w@-])(?<!Dr\.)(?<!Dr\. )(?P<{name}>{word})(?![\w@-])")
        )
    return re.compile("|".join(each for _, each in sorted(found, reverse=True)))


def in_prose(node: nodes.Node) -> bool:
    """Return whether a text stands in a paragraph, outside of links, code and tables."""
    above = []
    while node := node.parent:
        above.append(node)
    return any(isinstance(each, nodes.paragraph) for each in above) and not any(
        isinstance(each, NOT_PROSE) for each in above
    )


def linked(text: str, find: re.Pattern[str], wanted: Terms, glossary: str) -> Iterator[nodes.Node]:
    """Yield the pieces of a text, with links, and take what is linked out of `wanted`."""
    done = 0
    for match in find.finditer(text):
        name = match.lastgroup or ""
        if section := wanted.pop(name, None):
            yield nodes.Text(text[done : match.start(name)])
            to = f"{glossary}#{section['ids'][0]}"
            meaning = section[1].astext().replace("\n", " ")
            yield nodes.reference("", match[name], internal=True, refuri=to, reftitle=meaning)
            done = match.end(name)
    yield nodes.Text(text[done:])


def link_terms(page: nodes.document, terms: Terms, glossary: str) -> None:
    """Link the first use of each term in a page to the page `glossary`."""
    find, wanted = expression(terms), dict(terms)
    for node in list(page.findall()):
        if isinstance(node, nodes.reference | nodes.title):
            if node.get("refuri", "").startswith(f"{glossary}#"):
                anchor = node["refuri"].partition("#")[2]
                wanted = {k: each for k, each in wanted.items() if anchor not in each["ids"]}
            elif isinstance(node, nodes.reference) or node.parent.parent is page:
                match = find.fullmatch(node.astext())
                wanted.pop(match.lastgroup if match else "", None)
        elif isinstance(node, nodes.Text) and in_prose(node):
            node.parent.replace(node, list(linked(node.astext(), find, wanted, glossary)))


def on_resolved(app: Sphinx, page: nodes.document, name: str) -> None:
    """Link the terms of a page of docs/ or notebooks/, whose own links are resolved."""
    if name.startswith(("docs/", "notebooks/")) and name != GLOSSARY:
        sections = app.env.get_doctree(GLOSSARY).findall(nodes.section)
        terms = {each["ids"][0].replace("-", "_"): each for each in list(sections)[1:]}
        wanted = {k: each for k, each in terms.items() if each[0].astext() not in EVERYDAY}
        link_terms(page, wanted, app.builder.get_relative_uri(name, GLOSSARY))


def setup(app: Sphinx) -> None:
    """Have every page's terms linked."""
    app.connect("doctree-resolved", on_resolved)
