"""Each method has a page, and what is generated in it is up to date."""

import re

import family
import pytest
import torch
from method_figures import STUDENT, TEACHER, figure, pushes
from method_pages import (
    DOCS,
    HEADINGS,
    PAGES,
    family_page,
    known_symbols,
    rewritten,
    symbols_in,
)

from rlkd_lab.objectives import METHODS

MATHS = {
    *(
        "\\min",
        "\\max",
        "\\log",
        "\\le",
        "\\tanh",
        "\\exp",
        "\\sum",
        "\\frac",
        "\\left",
        "\\right",
        "\\quad",
        "\\Vert",
        "\\vert",
    ),
    "\\text",
}
every = pytest.mark.parametrize("key", METHODS)


def page_of(key):
    return (PAGES / f"{key}.md").read_text(encoding="utf-8")


def by_hand(text):
    """The prose: no generated part, code, formula, table or picture; a link is its words."""
    for pattern in (r"<!-- generated.*?<!-- end -->", r"\$\$.*?\$\$", r"^[|#!].*?$"):
        text = re.sub(pattern, "\n\n", text, flags=re.S | re.M)
    text = re.sub(r"\]\([^)]*\)", "]", text).replace("Dr. ", "Dr ")
    return re.sub(r"`[^`]*`|\$[^$]*\$", "X", text)


def test_every_method_has_a_page_and_every_page_a_method():
    assert {path.stem for path in PAGES.glob("*.md")} == set(METHODS)
    assert {path.stem for path in (PAGES / "figures").iterdir()} == set(METHODS)


@every
def test_the_headings_stand_in_one_order_and_each_has_text(key):
    title, *parts = re.split(r"^#+ (.*)$", page_of(key), flags=re.M)[1:]
    assert title == METHODS[key].title
    assert parts[1::2] == list(HEADINGS)
    assert all(text.strip() for text in parts[2::2])


@every
def test_what_is_generated_is_up_to_date(key):
    """`python docs/method_pages.py` writes it."""
    assert rewritten(key, page_of(key)) == page_of(key)
    drawn = (PAGES / "figures" / f"{key}.svg").read_text(encoding="utf-8")
    assert drawn == figure(key)
    assert len(drawn) <= 20_000


@every
def test_what_is_written_by_hand_is_finished(key):
    page = page_of(key)
    assert "TODO" not in page
    what = by_hand(page.partition("## What it is")[2].partition("##")[0])
    assert len(re.findall(r"[.!?](?=\s|$)", what)) == 2


@every
def test_every_symbol_of_a_formula_is_explained(key):
    assert symbols_in(page_of(key)) - MATHS - set(known_symbols()) == set()


def test_the_map_of_the_family_is_up_to_date_and_has_every_method_once():
    """`python docs/method_pages.py` writes it."""
    page = (DOCS / "family.md").read_text(encoding="utf-8")
    assert family_page(page) == page
    drawn = (DOCS / "family.svg").read_text(encoding="utf-8")
    assert drawn == family.drawing()
    for key, row in METHODS.items():
        assert drawn.count(f">{row.title}</text>") == 1
        assert bool(family.changed(key)) == (key not in ("sft", "grpo", "opd"))


def test_the_map_says_what_the_papers_say_they_changed():
    changed = {key: set(family.changed(key)) for key in METHODS}
    assert changed["kdrl"] == changed["sdar"] == {"penalty"}
    assert changed["trrd"] == changed["cispo"] == {"ratio"}
    assert changed["dapo"] == changed["gspo"] == {"numbers"}
    assert changed["aopd"] == {"penalty", "advantage"}
    assert changed["opdvr"] == {"advantage", "ratio"}
    assert changed["gkd"] == {"samples", "penalty"}


def test_a_new_row_gets_a_page_and_text_by_hand_is_kept():
    new = rewritten("trrd")
    assert new.count("TODO") == len(HEADINGS)
    assert "`trrd_alpha`" in new
    mine = new.replace("TODO", "My text.", 1)
    assert rewritten("trrd", mine) == mine


def test_pushes_are_those_that_the_pages_name():
    pi, theirs = torch.tensor(STUDENT).double(), torch.tensor(TEACHER).double()
    word = torch.eye(4, dtype=torch.float64)
    credit = 0.5 / (0.5**0.5 + 1e-4)
    right_so, wrong_so, right_hm = credit * (word[0] - pi), credit * (pi - word[0]), word[1] - pi
    found = {key: pushes(key) for key in METHODS}
    torch.testing.assert_close(found["grpo"][0, 0], right_so)
    torch.testing.assert_close(found["grpo"][1, 2], 1.25 * wrong_so)
    torch.testing.assert_close(found["cispo"][0, 2], 1.25 * right_so)
    torch.testing.assert_close(found["kd_forward"], (theirs - pi).expand(3, 3, 4))
    torch.testing.assert_close(found["opd"][0, 0], (theirs[0] / pi[0]).log() * (word[0] - pi))
    torch.testing.assert_close(found["sft"][2, 1], right_hm)
    torch.testing.assert_close(found["trrd"][0, 0], 0.5**0.5 * right_so)
    shaped = 0.1 * pi[0] / (pi[0] + 0.1) ** 2  # of a trace with Â = ½
    torch.testing.assert_close(found["luffy"][2, 0], 0.5 * shaped * (word[0] - pi))
    torch.testing.assert_close(found["luffy"][0, 0], 0.5 * (word[0] - pi))
    unsure = pi[0] * (1 - pi[0])  # three completions beside one trace
    torch.testing.assert_close(found["chord"][2, 2], 3 * 0.1 * unsure * (word[0] - pi))
    alone = 0.9 * (2 / 3) / (3**-0.5 + 1e-4)
    torch.testing.assert_close(found["chord"][0, 0], alone * (word[0] - pi))
    assert found["trrd"][0, 1].eq(0).all()
    mixed = 0.5 * (pi + theirs)
    gap = (pi / mixed).log()
    torch.testing.assert_close(found["gkd"][0, 0], 0.5 * pi * ((pi * gap).sum() - gap))
    torch.testing.assert_close(found["kdrl"][:, :2], found["kdrl_advantage"][:, :2])
    torch.testing.assert_close(found["srpo"][0], found["grpo"][0])
    torch.testing.assert_close(found["srpo"][1:], found["opd"][1:])
    torch.testing.assert_close(found["hdpo"][:2], found["grpo"][:2])
    torch.testing.assert_close(found["kdrl_masked"][0], found["grpo"][0])
    torch.testing.assert_close(found["opd_then_rl"], found["opd"])
