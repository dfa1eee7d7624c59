"""JupyterLab on loopback and Debian's Chromium: a notebook opened, run and typed at as a person does."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


class Lab:
    """A notebook in a browser."""

    def __init__(self, page: Any, root: str, token: str, folder: Path) -> None:
        self.page, self.root, self.token, self.folder = page, root, token, folder
        self.name = ""

    def open(self, name: str) -> None:
        """Open a notebook and wait for its kernel."""
        self.name = name
        self.page.goto(f"{self.root}/lab/tree/{name}?token={self.token}&reset")
        self.page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=90_000)
        self.page.wait_for_selector("text=Python 3 (ipykernel) | Idle", timeout=90_000)

    def run_all(self) -> None:
        """Run › Run All Cells, from the menu, until the kernel has heard it."""
        for _ in range(10):
            self.page.click(".lm-MenuBar-itemLabel:text-is('Run')")
            self.page.click("li[data-command='runmenu:run-all']")
            self.page.wait_for_timeout(1500)
            if self.page.evaluate("[...document.querySelectorAll('.jp-NotebookPanel .jp-InputPrompt')].some((prompt) => /\\d|\\*/.test(prompt.textContent))"):
                return
        raise AssertionError("the kernel did not start to run the cells")

    def cells(self) -> list[str]:
        """The sources of all cells as the file will have them."""
        self.page.keyboard.press("Escape")
        return ["".join(cell["source"]) for cell in self.saved()["cells"]]

    def saved(self) -> Any:
        """The notebook after saving it from the menu."""
        before = (self.folder / self.name).stat().st_mtime_ns
        self.page.click(".lm-MenuBar-itemLabel:text-is('File')")
        self.page.click("li[data-command='docmanager:save']")
        end = time.monotonic() + 5  # a notebook without changes is not written again
        until(lambda: (self.folder / self.name).stat().st_mtime_ns != before or time.monotonic() > end, 20)
        return json.loads((self.folder / self.name).read_text())


def until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Wait for something to be true, and return it."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


def setting(folder: Path, name: str, value: dict[str, Any]) -> None:
    """One setting of JupyterLab."""
    place = folder / "@jupyterlab" / "apputils-extension"
    place.mkdir(parents=True, exist_ok=True)
    (place / f"{name}.jupyterlab-settings").write_text(json.dumps(value))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, Path]]:
    """JupyterLab on a free port of loopback, with settings and kernels of its own; its root is a copy of the notebooks."""
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
    names = ("HOME", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")
    places = {name: str(home / name) for name in names}
    for place in places.values():
        Path(place).mkdir()
    setting(Path(places["JUPYTERLAB_SETTINGS_DIR"]), "notification", {"fetchNews": "false", "checkForUpdates": False})
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", f"--IdentityProvider.token={token}",
        f"--ServerApp.root_dir={folder}",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--allow-root",
    ]  # fmt: skip
    with (home / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, env={**os.environ, **places, "RLKD_SHORT": ""}, stdout=log, stderr=log)
    root = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, (home / "log.txt").read_text()[-3000:]
        try:
            return urllib.request.urlopen(f"{root}/api/status?token={token}", timeout=5).status == 200
        except OSError:
            return False

    try:
        until(answers, 90)
        yield root, token, folder
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, without its calls home."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright")
    with sync_api.sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture
def lab(server: tuple[str, str, Path], browser: Any) -> Iterator[Lab]:
    """``lab.open(name)``, ``lab.run_all()``, ``lab.page``: JupyterLab with the notebooks in its folder."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield Lab(context.new_page(), *server)
    context.close()


def write_notebook(path: Path, *sources: str) -> None:
    """A notebook of code cells."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    notebook.metadata["kernelspec"] = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    nbformat.write(notebook, path)
