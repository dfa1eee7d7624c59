"""Write the generated parts of the methods' pages: `python docs/method_pages.py`.

A part stands between `<!-- generated: NAME -->` and `<!-- end -->`. Other text is kept. A new row
of the table gets a page to fill in.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import family
from method_code import code
from method_figures import figure

from rlkd_lab.objectives import METHODS
from rlkd_lab.objectives.opd_rules import reward_gated_penalty
from rlkd_lab.objectives.rules import teacher_penalty
from rlkd_lab.objectives.settings import CHOICES, OPTION_HELP

DOCS = Path(__file__).parent
PAGES = DOCS / "methods"
HEADINGS = {
    "What it is": "",
    "Formula": "symbols",
    "The code": "code",
    "What the gradient does to one token": "figure",
    "Knobs and ranges": "knobs",
    "Metrics to watch": "watch",
    "Details of the implementation": "",
    "What we measured": "",
    "When to use it": "",
    "Reference": "reference",
}
"""The headings of a page in their order, each with its generated part."""


CAPTION = """*A word's score is its logit; its push is minus the gradient of the loss in that score.
Rows: what the verifier says of the completion. Columns: the word that was written; in the third it
has become 1.25 times as likely since it was sampled.*"""
ACT_WITH = {
    "": ("aggregation",),
    "groups": ("scale_rewards", "group_rows", "zero_spread"),
    "teacher": ("kd_mask", "kd_normalizer"),
    "penalty": ("estimator", "kd_ratio"),
    "divergence": ("divergence",),
    "traces": ("keep_traces",),
    "ratio": ("level", "ref_estimator"),
    "gate": ("level",),
}
"""The options that act, by what a method has."""


def table(*rows: Sequence[str]) -> str:
    """Return a table, the first row as its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def known_symbols() -> dict[str, str]:
    """Return the symbols of `docs/methods.md` with their meanings, in its order."""
    page = (DOCS / "methods.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| \$(.+?)\$ \| (.*) \|$", page, re.M)
    return {name: re.sub(r"\]\((?!http)", "](../", text) for name, text in found}


def symbols_in(page: str) -> set[str]:
    """Return the symbols, commands and letters of a page's formulas."""
    names = [re.escape(name) for name in sorted(known_symbols(), key=len, reverse=True)]
    formula = page.partition("## Formula\n")[2].partition("<!--")[0]
    written = " ".join(re.findall(r"\$+(.+?)\$+", formula, re.S))
    return set(re.findall("|".join([*names, r"\\[A-Za-z]+", "[A-Za-z]"]), written))


def symbols(key: str, page: str) -> str:
    """Return what each symbol of the page's formulas means, and the formula as the table has it."""
    known, used = known_symbols(), symbols_in(page)
    rows = [(f"${name}$", meaning) for name, meaning in known.items() if name in used]
    said = f"`rlkd methods {key}` prints it as `{METHODS[key].formula}`."
    return table(("symbol", "what it is"), *rows) + "\n\n" + said


def knobs(key: str) -> str:
    """Return a table of the method's knobs and one of the options that act on it."""
    row = METHODS[key]
    first = [("name", "default", "range", "what it does")]
    for name, knob in row.knobs.items():
        number = "off" if row.coefs[name] is None else f"{row.coefs[name]:g}"
        span = f"{knob.low:g}–{knob.high:g}" + " or off" * knob.optional
        first.append((f"`{name}`", f"`{row.schedules.get(name, number)}`", span, knob.help))
    has = {"", *row.needs, "ratio" * bool(row.ratio)}
    has |= {"penalty" * (row.penalty is teacher_penalty)}
    has |= {"gate" * (row.penalty is reward_gated_penalty)}
    acts = {name for each in has for name in ACT_WITH.get(each, ())}
    second = [("name", "default", "values", "what it does")]
    for name in CHOICES:
        if name in acts:
            default = row.options.get(name, CHOICES[name][0])
            values = ", ".join(f"`{value}`" for value in CHOICES[name])
            second.append((f"`{name}`", f"`{default}`", values, OPTION_HELP[name]))
    if {"groups", "traces"} <= row.needs:  # refused: the traces decide on the prompts
        acts.discard("zero_spread")
    options = "Options, fixed before the start:\n\n" + table(*second)
    return (table(*first) + "\n\n" if first[1:] else "It has no knobs.\n\n") + options


def generated(key: str, page: str) -> dict[str, str]:
    """Return all generated parts of a page."""
    row = METHODS[key]
    link = r"[arXiv \1](https://arxiv.org/abs/\1)"
    return {
        "symbols": symbols(key, page),
        "code": code(key),
        "figure": f"![Pushes of {row.title} on four words](figures/{key}.svg)\n\n{CAPTION}",
        "knobs": knobs(key),
        "watch": f"The table says: {row.watch}." if row.watch else "",
        "reference": "Source of the formula: "
        + re.sub(r"(?:arXiv )?(\d{4}\.\d{5})", link, row.source)
        + ".",
    }


def rewritten(key: str, page: str = "") -> str:
    """Return a page with its generated parts up to date; a new page where there is none."""
    for heading, name in () if page else HEADINGS.items():
        part = f"<!-- generated: {name} -->\n<!-- end -->\n\n" if name else ""
        page += f"## {heading}\n\nTODO\n\n{part}"
    page = re.sub(r"^\n*(# .*\n+)?", f"# {METHODS[key].title}\n\n", page)
    for name, text in generated(key, page).items():
        start, mark, rest = page.partition(f"<!-- generated: {name} -->\n")
        if mark:
            page = f"{start}{mark}\n{text}\n\n<!-- end -->{rest.partition('<!-- end -->')[2]}"
    return page.rstrip() + "\n"


def family_page(page: str) -> str:
    """Return the page of the family with its table up to date."""
    start, mark, rest = page.partition("<!-- generated: family -->\n")
    return f"{start}{mark}\n{family.table()}\n\n<!-- end -->{rest.partition('<!-- end -->')[2]}"


if __name__ == "__main__":
    for key in METHODS:
        path = PAGES / f"{key}.md"
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        path.write_text(rewritten(key, old), encoding="utf-8")
        (PAGES / "figures" / f"{key}.svg").write_text(figure(key), encoding="utf-8")
    path = DOCS / "family.md"
    path.write_text(family_page(path.read_text(encoding="utf-8")), encoding="utf-8")
    (DOCS / "family.svg").write_text(family.drawing(), encoding="utf-8")
