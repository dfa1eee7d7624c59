"""A panel on a made-up run, in a real browser: keys stay in it, and move what they should."""

from pathlib import Path

import pytest
from in_browser import Lab, until, write_notebook

FAKE = Path(__file__).parents[1] / "lab" / "live"
SOURCES = [
    "a = 1",
    "import sys\n"
    f"sys.path.insert(0, {str(FAKE)!r})\n"
    "from fake import FakeHandle\n"
    "from rlkd_lab.lab import panel\n"
    "import tempfile\n"
    "run = FakeHandle(tempfile.mkdtemp() + '/kdrl', steps=60)\n"
    "run.fork('noise')\n"
    "run.advance(20); run.request('kd_coef', 0.3); run.advance(22); run.forked('untouched',"
    " 20, 22); run.forked('noise', 20, 22, seed=3)\n"
    "run.state = 'running'",
    "panel(run)",
    "c = 3",
]


@pytest.fixture(scope="module")
def lab(server, browser):
    """JupyterLab with one panel, which all these tests use: opening it takes ten seconds."""
    page = browser.new_context(viewport={"width": 1280, "height": 1000}).new_page()
    lab = Lab(page, *server)
    write_notebook(lab.folder / "panel.ipynb", *SOURCES)
    lab.open("panel.ipynb")
    lab.run_all()
    page.wait_for_selector(".rlkd-panel .noUi-handle", timeout=60_000)
    page.wait_for_selector(".rlkd-curves .uplot", timeout=60_000)
    yield lab
    page.context.close()


FOCUS = {
    "slider": ".rlkd-panel .noUi-handle >> nth=0",
    "number": ".rlkd-panel .rlkd-knob input[type=text] >> nth=0",
    "checkbox": ".rlkd-panel .rlkd-knob input[type=checkbox] >> nth=0",
    "button": ".rlkd-panel button:has-text('Pause')",
    "dropdown": ".rlkd-panel select >> nth=0",
    "accordion": ".rlkd-panel .lm-Accordion-title, .rlkd-panel .jupyter-widget-Collapse-header >>"
    " nth=0",
}


def test_dangerous_keys_stay_in_the_panel(lab):
    page = lab.page
    where = {}
    for kind, selector in FOCUS.items():
        page.locator(selector).first.focus()
        where[kind] = page.evaluate("document.activeElement.outerHTML.slice(0, 80)")
        for key in ("b", "x", "d", "d", "a", "Shift+m", "0", "0"):
            page.keyboard.press(key)
        page.keyboard.press("Escape")
        page.keyboard.press("b")
    page.wait_for_timeout(500)
    assert lab.cells() == SOURCES, where


def test_a_slider_moves_by_keyboard_and_says_what_it_is(lab):
    page = lab.page
    handle = page.locator(".rlkd-knob-kd_coef .noUi-handle")
    handle.focus()
    before = float(handle.get_attribute("aria-valuetext"))
    assert (handle.get_attribute("aria-label"), before) == ("kd_coef", 0.3)
    page.keyboard.press("ArrowRight")
    said = until(
        lambda: "asked for" in (text := page.locator(".rlkd-knob-kd_coef").inner_text()) and text
    )
    value = float(handle.get_attribute("aria-valuetext"))
    assert value == 0.355  # the next place of the slider, 10^-0.45
    assert "asked for 0.355: acts on the next step" in said
    assert "now 0.3" in said


def choose_theme(page, theme):
    """Choose a theme from the menu as a person does."""
    page.click(".lm-MenuBar-itemLabel:text-is('Settings')")
    page.hover("li[data-type='submenu']:has-text('Theme')")
    page.click(f"li[data-command='apputils:change-theme']:has-text('{theme}')")
    until(lambda: page.get_attribute("body", "data-jp-theme-name") == theme)


@pytest.mark.parametrize("theme", ["JupyterLab Dark", "JupyterLab Light"])
@pytest.mark.parametrize("width", [1280, 1920])
def test_the_panel_fits_the_window_in_both_themes(lab, theme, width, tmp_path):
    page = lab.page
    page.set_viewport_size({"width": width, "height": 1000})
    choose_theme(page, theme)
    menu = ".rlkd-panel .widget-dropdown:has-text('more curves') select"
    page.select_option(menu, label="length in parts")
    until(lambda: page.locator(".rlkd-curves:visible").count() == 2)
    assert not page.locator(".jp-OutputArea-output img:visible").count()  # the live ones stand
    page.locator(".rlkd-panel").scroll_into_view_if_needed()
    page.screenshot(path=tmp_path / "panel.png")
    panel = page.locator(".rlkd-panel").first
    assert panel.evaluate("(node) => node.scrollWidth <= node.clientWidth + 1")
    assert (tmp_path / "panel.png").stat().st_size > 20_000
