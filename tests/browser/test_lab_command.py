"""``rlkd lab``: a page with the runs of a folder, for this machine and with its token alone."""

import os
import re
import signal
import subprocess
import sys
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from in_browser import CHROMIUM, until
from typer.testing import CliRunner

from rlkd_lab import serve
from rlkd_lab.commands import app
from rlkd_lab.runs import RunFolder

sys.path.append(str(Path(__file__).parents[1] / "lab" / "live"))
from fake import FakeHandle


def test_a_missing_package_or_folder_is_said_in_words(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    for folder, words in ((tmp_path, "pip install 'rlkd_lab[lab]'"), (tmp_path / "a", "no folder")):
        refused = CliRunner().invoke(app, ["lab", str(folder), "--no-browser"])
        assert refused.exit_code == 2
        assert words in refused.stderr


@pytest.mark.skipif(find_spec("voila") is None, reason="Voilà is not installed")
def test_the_page_is_dark_where_that_is_asked_for(tmp_path: Path, monkeypatch: Any) -> None:
    given: list[str] = []
    monkeypatch.setattr("voila.app.Voila.launch_instance", given.extend)
    for option, theme in (("--dark", "dark"), ("--no-dark", "light")):
        CliRunner().invoke(app, ["lab", str(tmp_path), "--no-browser", option])
        assert given.pop() == f"--VoilaConfiguration.theme={theme}"


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
@pytest.mark.skipif(find_spec("voila") is None, reason="Voilà is not installed")
def test_the_page_shows_a_chosen_run_and_hears_its_buttons(browser: Any, tmp_path: Path) -> None:
    for name, steps in (("first", 12), ("second", 7)):
        run = FakeHandle(tmp_path / "runs" / name, steps=60)
        run.advance(steps)
        run.folder.set_status("idle", steps)
    (tmp_path / "runs" / "second" / "torn").mkdir()
    (tmp_path / "runs" / "third").mkdir()
    (tmp_path / "runs" / "third" / "status.json").write_text("{")
    command = [sys.executable, "-m", "rlkd_lab", "lab", "runs", "--no-browser", "--port", "18866"]
    place = str(Path(__file__).parents[2])
    with (tmp_path / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": place}
        )
    try:
        pattern = r"http://127\.0\.0\.1:\d+/\?token=\w+"
        found = until(lambda: re.search(pattern, (tmp_path / "log.txt").read_text()), 120)
        root = found[0].partition("?")[0]
        answer = urllib.request.urlopen(root, timeout=60)
        assert answer.url.startswith(f"{root}login")  # without its token
        assert b"step 7 of 60" not in answer.read()
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        page, loaded = context.new_page(), []
        page.on("requestfinished", lambda request: loaded.append(request.url))
        page.goto(found[0], timeout=120_000)
        box = page.locator(".rlkd-runs [data-key='run first']").first
        box.wait_for(timeout=120_000)
        assert "third" in page.locator(".rlkd-runs").first.inner_text()
        box.check()
        opens = page.locator("button:has-text('Open')").first
        until(opens.is_enabled, 30)
        opens.click()
        page.wait_for_selector(".rlkd-curves .uplot", timeout=60_000)
        until(lambda: "step 12 of 60" in page.locator("body").inner_text(), 30)
        box = page.locator(".rlkd-knob-kd_coef input[type=text]")
        until(lambda: box.count() == 1, 30)
        box.fill("0,3")
        box.press("Enter")
        folder = RunFolder.open(tmp_path / "runs" / "first")
        asked = folder.path / "requests.jsonl"
        until(lambda: asked.exists() and '"value": 0.3' in asked.read_text(), 30)
        page.screenshot(path=tmp_path / "lab.png")
        assert [url for url in loaded if not url.startswith((root, "data:", "blob:"))] == []
        context.close()
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
