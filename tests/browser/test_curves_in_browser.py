"""Live curves in JupyterLab: they move, survive a reload of the page, and can be taken along."""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from in_browser import CHROMIUM, Lab, until, write_notebook

from rlkd_lab.runs import RunFolder

FAKE = Path(__file__).parents[1] / "lab" / "live"
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here"),
]


def sources(place: Path) -> list[str]:
    """A run of 3,000 steps that takes five steps a second; its knob moves at step 5."""
    return [
        "import sys, threading, time\n"
        f"sys.path.insert(0, {str(FAKE)!r})\n"
        "from fake import FakeHandle\n"
        "from rlkd_lab.lab import panel\n"
        f"run = FakeHandle({str(place)!r}, steps=3000, state='running')\n"
        "def go():\n"
        "    while run.state == 'running':\n"
        "        run.advance(); time.sleep(0.2)\n"
        "        if run.at == 4: run.request('kd_coef', 0.3)\n"
        "        if run.at == 6: [run.forked(k, 4, 8, s) for k, s in"
        " (('untouched', 1), ('noise', 2))]\n"
        "threading.Thread(target=go, daemon=True).start()",
        "panel(run)",
    ]


def step_shown(page: Any) -> int:
    found = re.search(r"step (\d+)", page.locator(".rlkd-curves .caption").first.inner_text())
    return int(found[1]) if found else 0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("curves") / "mine"


@pytest.fixture(scope="module")
def lab(server: tuple[str, str, Path], browser: Any, place: Path) -> Iterator[Lab]:
    """JupyterLab with the curves of that run, which the tests use in turn; it keeps what the
    page asked for.
    """
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    lab = Lab(page, *server)
    page.on("request", lambda request: lab.asked.append(request.url))
    write_notebook(lab.folder / "curves.ipynb", *sources(place))
    lab.open("curves.ipynb")
    lab.run_all()
    page.wait_for_selector(".rlkd-curves .uplot", timeout=60_000)
    yield lab
    page.context.close()


def test_curves_live_through_a_reload_and_can_be_hidden_and_downloaded(lab: Lab, place: Path):
    page = lab.page
    until(lambda: step_shown(page) >= 8, 60)
    still = page.locator(".jp-OutputArea-output img")
    until(still.count, 60)
    assert not still.first.is_visible()  # the live view stands for it
    lab.saved()

    page.reload()
    page.wait_for_selector(".rlkd-curves .uplot", timeout=90_000)
    folder = RunFolder.open(place)
    until(lambda: abs(step_shown(page) - folder.rows()[-1]["step"]) <= 10, 20)
    before = step_shown(page)
    until(lambda: step_shown(page) >= before + 10, 30)
    table = page.locator(".rlkd-panel td").first
    until(lambda: abs(step_shown(page) - folder.rows()[-1]["step"]) <= 10 and table.count(), 20)
    assert not still.first.is_visible()

    page.click(".rlkd-panel button:has-text('Pause')")
    until(lambda: step_shown(page) == folder.rows()[-1]["step"], 20)
    other = page.locator(".rlkd-curves .keys button:has-text('other samples')").first
    other.press("Enter")
    assert other.get_attribute("aria-pressed") == "false"
    with page.expect_download() as got:
        page.locator(".rlkd-curves button:text-is('CSV')").first.click()
    assert got.value.suggested_filename == "mine-main.csv"
    rows = list(csv.DictReader(io.StringIO(Path(got.value.path()).read_text(encoding="utf-8"))))
    assert "untouched fork" in {row["line"] for row in rows}
    assert "untouched, other samples" not in {row["line"] for row in rows}
    raw = [row for row in rows if row["metric"] == "reward" and "each step" in row["line"]]
    assert [float(row["value"]) for row in raw] == pytest.approx(
        [row["reward"] for row in folder.rows()], rel=1e-6
    )
    assert not [url for url in lab.asked if not url.startswith((lab.root, "data:", "blob:"))]


def test_a_drag_zooms_keys_read_values_and_files_are_pictures(
    lab: Lab, place: Path, tmp_path: Path
):
    page = lab.page
    until(lambda: step_shown(page) >= 12, 60)
    if RunFolder.open(place).status()["state"] == "running":
        page.click(".rlkd-panel button:has-text('Pause')")
    plot = page.locator(".rlkd-curves .u-over").first
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    assert box is not None
    across, middle = box["x"], box["y"] + box["height"] / 2
    page.mouse.move(across + 0.3 * box["width"], middle)
    page.mouse.down()
    page.mouse.move(across + 0.7 * box["width"], middle, steps=5)
    page.mouse.up()
    everything = page.locator(".rlkd-curves button:has-text('Show all steps')").first
    until(everything.is_visible, 10)
    page.mouse.move(0, 0)
    drawn = page.locator(".rlkd-curves .plot").first
    drawn.press("Home")
    readout = page.locator(".rlkd-curves .readout").first
    first = readout.inner_text()
    drawn.press("ArrowRight")
    words = r"step (\d+): KDRL [\d.]+"
    steps = [int(re.match(words, each)[1]) for each in (first, readout.inner_text())]
    assert steps[0] > 2
    assert steps[1] == steps[0] + 1
    page.mouse.dblclick(across + 0.5 * box["width"], middle)
    until(lambda: not everything.is_visible(), 10)
    for kind, head in (("SVG", b"<svg"), ("PNG", b"\x89PNG")):
        with page.expect_download() as got:
            page.locator(f".rlkd-curves button:text-is('{kind}')").first.click()
        content = Path(got.value.path()).read_bytes()
        assert content.startswith(head)
        (tmp_path / f"curves.{kind.lower()}").write_bytes(content)
    assert lab.cells() == sources(place)
