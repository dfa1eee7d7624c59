"""A panel that starts another run, in a browser: in a busy kernel, and after a restart."""

import time
from pathlib import Path

import pytest
from in_browser import CHROMIUM, Lab, until, write_notebook

from rlkd_lab.runs import RunFolder
from tests.short import SHORT

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here"),
]
TINY = {
    "steps": 5,
    "prompts_per_step": 2,
    "group_size": 2,
    "max_new_tokens": 16,
    "eval_every": 0,
    "samples_every": 0,
    "fork": "off",
    **SHORT,
}


def sources(place: Path) -> list[str]:
    fields = {name: value for name, value in TINY.items() if name != "fork"}
    return [
        "from rlkd_lab.lab import panel, start\n"
        "from rlkd_lab.training import make_config\n"
        f"run = start(make_config('kdrl', **{fields!r}), {str(place)!r}, fork='off')",
        "panel(run)",
        f"import pathlib, time\nwhile not pathlib.Path({str(place)!r} + '.go').exists():\n"
        "    time.sleep(0.1)",
    ]


def state(place: Path) -> str:
    return str(RunFolder.open(place).status()["state"]) if place.exists() else "not there"


def test_run_again_has_its_first_point_at_once_also_in_a_busy_kernel(lab: Lab, tmp_path: Path):
    page, place = lab.page, tmp_path / "mine"
    write_notebook(lab.folder / "again.ipynb", *sources(place))
    lab.open("again.ipynb")
    lab.run_all()
    again = page.locator(".rlkd-panel button:has-text('Run again')").first
    until(lambda: state(place) == "done", 120)
    # the last cell waits for a file: the kernel is busy
    until(again.is_enabled, 30)
    again.click()
    page.wait_for_selector("text=The kernel is busy.", timeout=10_000)
    place.with_suffix(".go").touch()
    second = tmp_path / "mine-2"
    until(lambda: state(second) == "done", 60)
    assert page.locator("text=The kernel is busy.").count() == 0 or not (
        page.locator("text=The kernel is busy.").first.is_visible()
    )
    caption = page.locator(".rlkd-curves .caption").first
    first, other = RunFolder.open(place).rows(), RunFolder.open(second).rows()
    assert [row["reward"] for row in first] == [row["reward"] for row in other]
    until(lambda: again.is_enabled() and "step 5 of 5" in caption.inner_text(), 30)
    began = time.monotonic()
    again.click()
    third = tmp_path / "mine-3"
    until(lambda: third.exists() and RunFolder.open(third).rows(), 30)
    print(f"the first row after {time.monotonic() - began:.1f} s")
    until(lambda: state(third) == "done" and "step 5 of 5" in caption.inner_text(), 60)

    page.click(".lm-MenuBar-itemLabel:text-is('Kernel')")
    page.click("li[data-command='kernelmenu:restart']")
    page.click(".jp-Dialog button:has-text('Restart')")
    panel = page.locator(".rlkd-panel").first
    until(lambda: "disconnected" in (panel.get_attribute("class") or ""), 60)
    assert not again.is_visible()
    assert page.locator(".jp-OutputArea-output img").first.is_visible()  # the still picture stands
