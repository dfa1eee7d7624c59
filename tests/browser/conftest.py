"""JupyterLab on loopback and Debian's Chromium: a notebook opened, run and typed at as a person
does.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from in_browser import CHROMIUM, NOTEBOOKS, Lab, setting, until


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, Path]]:
    """JupyterLab on a free port of loopback, with settings and kernels of its own; its root is
    a copy of the notebooks.
    """
    if CHROMIUM is None:
        pytest.skip("no chromium here: install the package chromium for the browser tests")
    pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright")
    home = tmp_path_factory.mktemp("jupyter")
    folder = home / "work" / "notebooks"
    shutil.copytree(NOTEBOOKS, folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(8)
    names = (
        "HOME",
        "JUPYTER_CONFIG_DIR",
        "JUPYTER_DATA_DIR",
        "JUPYTER_RUNTIME_DIR",
        "JUPYTERLAB_SETTINGS_DIR",
        "JUPYTERLAB_WORKSPACES_DIR",
    )
    places = {name: str(home / name) for name in names}
    for place in places.values():
        Path(place).mkdir()
    setting(
        Path(places["JUPYTERLAB_SETTINGS_DIR"]),
        "notification",
        {"fetchNews": "false", "checkForUpdates": False},
    )
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--ip=127.0.0.1",
        f"--port={port}",
        f"--IdentityProvider.token={token}",
        f"--ServerApp.root_dir={folder}",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        "--allow-root",
    ]
    with (home / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            command, env={**os.environ, **places, "RLKD_SHORT": ""}, stdout=log, stderr=log
        )
    root = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, (home / "log.txt").read_text()[-3000:]
        try:
            return (
                urllib.request.urlopen(f"{root}/api/status?token={token}", timeout=5).status == 200
            )
        except OSError:
            return False

    try:
        until(answers, 90)
        yield root, token, folder
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:  # a kernel that was restarted takes its time
            process.kill()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, without its calls home."""
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="the browser tests need playwright"
    )
    with sync_api.sync_playwright() as playwright:
        flags = [
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ]
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture
def lab(server: tuple[str, str, Path], browser: Any) -> Iterator[Lab]:
    """``lab.open(name)``, ``lab.run_all()``, ``lab.page``:

    JupyterLab with the notebooks in its folder.
    """
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield Lab(context.new_page(), *server)
    context.close()
