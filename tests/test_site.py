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


@pytest.mark.slow
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


@pytest.mark.slow
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
