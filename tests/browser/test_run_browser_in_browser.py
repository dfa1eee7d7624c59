"""The table of runs in JupyterLab: by keyboard alone, and with runs of another process."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from in_browser import CHROMIUM, Lab, until, write_notebook

from rlkd_lab.runs import RunFolder

FAKE = Path(__file__).parents[1] / "lab" / "live"
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here"),
]
MAKE = """
import sys
sys.path.insert(0, {fake!r})
from fake import FakeHandle
from recorded import rollout
for name in {names!r}:
    run = FakeHandle({folder!r} + "/" + name, settings={{"kd_coef": "0." + name[-1]}})
    run.advance(8)
    rollout().to_parquet(run.folder.path / "samples" / "step_000008.parquet")
    run.folder.set_status("done", 8)
"""


def elsewhere(folder: Path, *names: str) -> None:
    """Another process makes runs."""
    code = MAKE.format(fake=str(FAKE), folder=str(folder), names=names)
    subprocess.run([sys.executable, "-c", code], check=True)


def test_by_keyboard_runs_are_opened_compared_marked_and_deleted(lab: Lab, tmp_path: Path):
    page, folder = lab.page, tmp_path / "runs"
    elsewhere(folder, "a1", "a2")
    source = f"from rlkd_lab.lab import runs\nruns({str(folder)!r})"
    write_notebook(lab.folder / "runs.ipynb", source, "b = 2")
    lab.open("runs.ipynb")
    lab.run_all()

    def box(name):
        return page.locator(f".rlkd-runs [data-key='run {name}']").first

    def press(name):
        page.locator(f".rlkd-panel button:has-text('{name}')").first.press("Enter")

    def names():
        return page.locator(".rlkd-runs tbody th").all_inner_texts()

    until(lambda: names() == ["a1", "a2"], 90)
    elsewhere(folder, "b3")
    until(lambda: names() == ["a1", "a2", "b3"], 20)

    box("b3").press("Space")
    box("b3").press("d")
    box("b3").press("d")  # the notebook's own key for "delete this cell"
    until(page.locator(".rlkd-panel button:has-text('Mark')").first.is_enabled, 20)
    press("Mark")
    until(lambda: names() == ["★ b3", "a1", "a2"], 20)
    assert box("b3").is_checked()
    press("Open")
    tokens = page.locator(".rlkd-panel .lm-TabBar-tab:has-text('tokens')").first
    tokens.click()
    page.wait_for_selector(".rlkd-tokens button", timeout=20_000)
    page.locator(".rlkd-panel .lm-TabBar-tab:has-text('curves')").first.click()
    page.wait_for_selector(".rlkd-curves .uplot", timeout=20_000)

    page.locator(".rlkd-runs [data-key='sort reward']").first.press("Enter")
    page.wait_for_selector(".rlkd-runs th[aria-sort='descending']")
    box("a1").press("Space")
    until(page.locator(".rlkd-panel button:has-text('Compare')").first.is_enabled, 20)
    press("Compare")
    until(lambda: "difference in reward" in page.locator(".rlkd-curves").first.inner_text(), 20)
    labels = page.locator(".rlkd-curves .keys button").all_inner_texts()
    assert {"kd_coef 0.1", "kd_coef 0.3"} < set(labels)

    box("b3").press("Space")
    press("Delete")
    page.wait_for_selector("text=Delete 1 for good?", timeout=20_000)
    assert (folder / "a1").exists()
    press("Delete for good")
    until(lambda: names() == ["★ b3", "a2"], 20)
    assert not (folder / "a1").exists()
    assert RunFolder.open(folder / "b3").rows()

    lab.saved()
    page.reload()
    until(lambda: names() == ["★ b3", "a2"], 90)
    shutil.rmtree(folder / "a2")
    until(lambda: names() == ["★ b3"], 20)
    assert lab.cells() == [source, "b = 2"]
