"""Notebook 04 as a person uses it: run all, wait for the curves, move a knob by keyboard, press
the buttons, and the keys that could delete a cell.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from in_browser import NOTEBOOKS, Lab, until

from rlkd_lab.lab import open_run

PANEL = ".rlkd-panel:has(.rlkd-knob)"


def press_dangerous(lab: Lab) -> None:
    for key in ("b", "x", "d", "d", "a", "0", "0"):
        lab.page.keyboard.press(key)


def take_pictures(page: Any, shots: Path) -> None:
    page.wait_for_timeout(9_000)  # a redraw
    for width, height in ((1920, 1080), (1280, 900)):
        page.set_viewport_size({"width": width, "height": height})
        page.locator(PANEL).scroll_into_view_if_needed()
        page.screenshot(path=shots / f"kdrl_{width}.png")


@pytest.mark.timeout(900)
def test_kdrl_notebook_is_run_steered_and_left_whole(lab: Lab) -> None:
    page = lab.page
    before = [
        cell.source for cell in nbformat.read(NOTEBOOKS / "04_kdrl.ipynb", as_version=4).cells
    ]
    # The server's copy of the notebooks has none of the runs of this machine: it trains.
    assert not (lab.folder.parent / "runs").exists()
    lab.open("04_kdrl.ipynb")
    lab.run_all()
    path = lab.folder.parent / "runs" / "notebook_04" / "live"
    until(lambda: (path / "status.json").exists(), 180)
    run = open_run(path)
    until(lambda: run.status().step >= 2, 180)
    page.wait_for_selector(".rlkd-knob-kd_coef .noUi-handle", timeout=60_000)
    page.locator(".rlkd-knob-kd_coef .noUi-handle").scroll_into_view_if_needed()
    curves = page.locator(".jp-Cell:has(.rlkd-knob) .rlkd-curves .caption").first
    until(curves.count, 60)
    first = curves.inner_text()
    until(lambda: curves.inner_text() != first, 120)  # they live

    page.click(f"{PANEL} button:has-text('Pause')")
    press_dangerous(lab)
    until(lambda: run.status().state == "paused", 60)
    paused = run.status().step

    page.locator(".rlkd-knob-kd_coef .noUi-handle").focus()
    press_dangerous(lab)
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    page.wait_for_timeout(2_000)  # four requests arrive, the last one counts
    words = page.locator(".rlkd-knob-kd_coef")
    until(lambda: "acts on the next step" in words.inner_text(), 30)
    asked = [json.loads(line) for line in (path / "requests.jsonl").read_text().splitlines()]
    value = next(
        request["value"]
        for request in reversed(asked)
        if request["request"] == "knob" and request.get("source") == "panel"
    )
    assert value > 0

    page.click(f"{PANEL} button:has-text('Step')")
    press_dangerous(lab)
    until(
        lambda: run.status().step == paused + 1 and run.status().state == "paused", 180
    )  # with two forks
    assert run.folder.rows()[-1]["coef/kd_coef"] == pytest.approx(value)
    assert any(
        e["event"] == "knob" and e["step"] == paused + 1 and e["value"] == pytest.approx(value)
        for e in run.folder.rows("events.jsonl")
    )
    until(lambda: f"since step {paused + 1}" in words.inner_text(), 30)
    until(lambda: list((path / "twins").glob("*/fork.json")), 60)  # the move forked the run

    page.click(f"{PANEL} button:has-text('Continue')")
    until(lambda: run.status().step >= paused + 6, 180)
    if shots := os.environ.get("RLKD_SHOTS"):
        take_pictures(page, Path(shots))

    page.click(f"{PANEL} button:has-text('Stop')")
    press_dangerous(lab)
    until(lambda: run.status().state == "idle", 60)
    until(lambda: "Start continues" in page.locator(PANEL).inner_text(), 30)
    # Stop was switched off while it had the focus, which stays in the panel.
    assert page.evaluate("document.activeElement.closest('.rlkd-panel') !== null")
    press_dangerous(lab)
    page.locator(f"{PANEL} button:has-text('Start')").focus()
    press_dangerous(lab)
    stopped = run.status().step
    page.keyboard.press("Enter")  # Start, by keyboard: it goes on from there
    until(lambda: run.status().step > stopped, 120)
    page.click(f"{PANEL} button:has-text('Stop')")
    until(lambda: run.status().state == "idle", 60)
    assert [row["step"] for row in run.folder.rows()] == list(range(1, run.status().step + 1))
    assert lab.cells() == before
    shutil.rmtree(lab.folder.parent / "runs")
