"""The explorables in a browser: on the site, alone, and in a notebook."""

import re
from pathlib import Path
from typing import Any

import pytest
from in_browser import CHROMIUM, Lab, until, write_notebook

from rlkd_lab.lab.course.explorables import NAMES, html

PAGE = Path(__file__).parents[2] / "docs" / "explorables.md"
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")


@pytest.fixture
def page(browser: Any) -> Any:
    """A page of a phone's width; what it complains about fails the test."""
    context = browser.new_context(viewport={"width": 360, "height": 800})
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    context.close()
    assert complaints == []


def try_out(page: Any, name: str) -> None:
    """The picture fits the page, and every slider changes what is drawn."""
    place = f"[id='{name}'] .rlkd-explorable"
    page.wait_for_selector(f"{place} svg[role=img]")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    sliders = page.locator(f"{place} input[type=range]")
    assert sliders.count() >= 2
    drawing = page.locator(f"{place} .drawing")
    for slider in sliders.all():
        before = drawing.inner_html()
        slider.press("ArrowRight")
        if drawing.inner_html() == before:  # it stands at its right end
            slider.press("ArrowLeft")
        assert drawing.inner_html() != before, slider.get_attribute("aria-label")


def test_the_page_of_the_site_shows_every_explorable() -> None:
    shown = re.findall(r"^```\{explorable\} (\w+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert tuple(shown) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_one_explorable_needs_no_other_file(page: Any, name: str) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.set_content(f"<!doctype html>{html(name)}")
    try_out(page, f"explorable-{name}")
    assert asked == []


def test_in_a_notebook_the_picture_opens_after_the_choice_and_keeps_its_keys(lab: Lab) -> None:
    sources = ["from rlkd_lab.lab import play\ngame = play('two_humps')\ngame", "b = 2"]
    write_notebook(lab.folder / "explorable.ipynb", *sources)
    lab.open("explorable.ipynb")
    lab.run_all()
    page = lab.page
    page.wait_for_selector(".rlkd-panel input[type=radio]", timeout=60_000)
    assert not page.locator(".rlkd-explorable").is_visible()
    page.locator(".rlkd-panel input[type=radio]").nth(1).check()
    page.click(".rlkd-panel button:has-text('Show')")
    page.wait_for_selector(".rlkd-explorable svg[role=img]", timeout=60_000)
    sentence = page.locator(".rlkd-explorable p")
    page.locator(".rlkd-explorable input").first.focus()
    for key in ("ArrowRight", "b", "x", "d", "d"):
        page.keyboard.press(key)
    until(lambda: "q\u00a0=\u00a00.31" in sentence.inner_text(), 20)
    assert lab.cells() == sources
