"""The report of a run in a browser: curves on a phone, a picture on paper and without scripts."""

import sys
from pathlib import Path
from typing import Any

import pytest
from in_browser import CHROMIUM

from rlkd_lab.lab.live.report import write_report

sys.path.append(str(Path(__file__).parents[1] / "lab" / "live"))
from fake import FakeHandle

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")


@pytest.mark.parametrize(("scheme", "scripts"), [("light", True), ("dark", True), ("light", False)])
def test_curves_are_there_on_a_screen_on_paper_and_without_scripts(
    browser: Any, tmp_path: Path, scheme: str, scripts: bool
) -> None:
    run = FakeHandle(tmp_path / "mine", steps=30)
    run.advance(12)
    run.request("kd_coef", 0.3)
    run.advance(18)
    asked: list[str] = []
    complaints: list[str] = []
    context = browser.new_context(
        viewport={"width": 360, "height": 800}, color_scheme=scheme, java_script_enabled=scripts
    )
    page = context.new_page()
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(write_report(run.path, tmp_path / "mine.html").as_uri())
    plot, still = page.locator(".uplot canvas").first, page.locator("img.still").first
    if scripts:
        assert plot.is_visible()
        assert page.locator(".readout").first.inner_text().startswith("step 30: KDRL 0.")
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        dark = page.evaluate(
            "getComputedStyle(document.querySelector('.rlkd-curves')).backgroundColor"
        )
        assert (dark == "rgb(255, 255, 255)") == (scheme == "light")
        with page.expect_download() as got:
            page.locator(".rlkd-curves button:text-is('CSV')").first.click()
        assert got.value.suggested_filename == "mine-main.csv"
        assert len(Path(got.value.path()).read_text(encoding="utf-8").splitlines()) > 150
    assert still.is_visible() != scripts
    page.emulate_media(media="print")
    assert still.is_visible()
    assert not scripts or not plot.is_visible()
    assert [url for url in asked if not url.startswith(("data:", "blob:", "file:"))] == []
    assert len([url for url in asked if url.startswith("file:")]) == 1
    assert complaints == []
    context.close()
