"""The documentation site builds offline without a warning, and its links lead somewhere."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import reference_pages
import yaml
from docutils import nodes
from docutils.core import publish_doctree
from glossary_links import EVERYDAY, SPELT, VERBS, link_terms

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


class Page(HTMLParser):
    """Collects the anchors of a page, and the targets that it links to or loads."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.links, self.loaded = set(), set(), set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        has = dict(attributes)
        self.anchors |= {has.get("id"), has.get("name")}
        if tag == "a" and has.get("href"):
            self.links.add(has["href"])
        elif target := has.get("src") or (tag == "link" and has.get("href")):
            self.loaded.add(target)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Folder of the built site."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", "."]
    done = subprocess.run(
        [*command, str(out), "-d", str(out / ".cache")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return out


def test_every_link_of_the_site_leads_to_a_page_and_an_anchor(site):
    pages = {path: Page(path) for path in site.rglob("*.html") if "_static" not in path.parts}
    assert len(pages) > 60
    broken = []
    for path, page in pages.items():
        for target in page.links | page.loaded:
            if re.match(r"(https?|mailto|data|javascript):|//", target):
                continue
            name, _, anchor = unquote(target).partition("#")
            file = (path.parent / name.split("?")[0]).resolve() if name else path
            found = file.exists()
            if found and anchor and file in pages:
                found = anchor in pages[file].anchors
            if not found:
                broken.append(f"{path.relative_to(site)}: {target}")
    assert broken == []


def test_no_page_of_the_site_loads_anything_from_a_network(site):
    for path in site.rglob("*.html"):
        if "_static" in path.parts:  # parts of the theme that are no pages
            continue
        remote = [t for t in Page(path).loaded if re.match(r"(https?:)?//", t)]
        assert remote == [], path


def test_the_pages_written_from_the_code_are_up_to_date():
    for name, page in reference_pages.PAGES.items():
        assert (DOCS / "reference" / name).read_text(encoding="utf-8") == page(), (
            "run python docs/reference_pages.py"
        )


def test_the_gallery_shows_every_figure():
    text = (DOCS / "gallery.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"\(\.\./figures/(\w+\.png)\)", text))
    assert shown == {path.name for path in (ROOT / "figures").glob("*.png")}


def test_every_page_has_its_place_in_the_contents():
    text = (DOCS / "_toc.yml").read_text(encoding="utf-8")
    patterns = re.findall(r"(?:root|file|glob): (\S+)", text)
    assert yaml.safe_load(text)["root"] == "docs/index"
    for path in DOCS.rglob("*.md"):
        name = path.relative_to(ROOT).with_suffix("")
        assert any(name.match(pattern) for pattern in patterns), name


def links_to_the_glossary(source, *terms):
    """Return words and anchors of the links of a page in reStructuredText, beside a glossary."""
    parts = [f"{each}\n{'-' * len(each)}\n\nWhat it means.\n" for each in terms]
    keep = {"doctitle_xform": False}
    glossary = publish_doctree("\n".join(parts), settings_overrides=keep)
    sections = {each["ids"][0].replace("-", "_"): each for each in glossary.findall(nodes.section)}
    page = publish_doctree(source, settings_overrides=keep)
    link_terms(page, sections, "glossary.html")
    return [(each.astext(), each["refuri"]) for each in page.findall(nodes.reference)]


def test_a_term_is_linked_at_its_first_use_in_prose_and_only_there():
    source = """
Students
========

Knobs
-----

*A knob*, ``knob``, a knobby knob-like reknob. Run it: this is a runner. Two
knobs, a knob, a run, a run.

====== ======
a fork a fork
====== ======

On-policy and Dr. GRPO. `Old policy <glossary.html#policy>`_, policy,
`seed <seeds.html>`_, student, seed."""
    terms = ("Knob", "Run", "Fork", "On-policy", "Policy", "GRPO", "Seed", "Student")
    assert links_to_the_glossary(source, *terms) == [
        ("knobs", "glossary.html#knob"),
        ("run", "glossary.html#run"),
        ("On-policy", "glossary.html#on-policy"),
        ("Old policy", "glossary.html#policy"),
        ("seed", "seeds.html"),
    ]


@pytest.mark.parametrize(
    "term", ["adapter", "completion", "fork", "knob", "loRA", "nF4", "rollout"]
)
def test_every_page_of_the_site_that_uses_a_term_links_it(site, term):
    word = re.compile(rf"(?<![\w-])[{term[0]}{term[0].upper()}]{term[1:]}s?(?![\w-])")
    without = []
    for path in [*site.glob("docs/**/*.html"), *site.glob("notebooks/*.html")]:
        text = path.read_text(encoding="utf-8").partition("<article")[2].partition("</article")[0]
        prose = re.sub(r"<(table|pre|code|em|h\d|dl|a)\b.*?</\1>", "", text, flags=re.S)
        said = re.sub("<[^>]*>", "", " ".join(re.findall(r"<p>(.*?)</p>", prose, re.S)))
        if word.search(said) and f"glossary.html#{term.lower()}" not in text:
            without.append(path.stem)
    assert set(without) <= {"glossary"}


def test_the_words_that_are_not_linked_are_terms_of_the_glossary():
    glossary = (DOCS / "glossary.md").read_text(encoding="utf-8")
    terms = set(re.findall(r"^## (.*)$", glossary, re.M))
    assert {*EVERYDAY, *VERBS, *SPELT} - terms == set()
