"""A notebook in a browser: opened, run, saved."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


class Lab:
    """A notebook in a browser."""

    def __init__(self, page: Any, root: str, token: str, folder: Path) -> None:
        self.page, self.root, self.token, self.folder = page, root, token, folder
        self.name = ""
        self.asked: list[str] = []

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
            end = time.monotonic() + 1.5
            while time.monotonic() < end:
                if self.page.evaluate(
                    "[...document.querySelectorAll('.jp-NotebookPanel"
                    " .jp-InputPrompt')].some((prompt) => /\\d|\\*/.test(prompt.textContent))"
                ):
                    return
                self.page.wait_for_timeout(50)
        raise AssertionError("the kernel did not start to run the cells")

    def cells(self) -> list[str]:
        """The sources of all cells as the file will have them."""
        self.page.keyboard.press("Escape")
        return ["".join(cell["source"]) for cell in self.saved()["cells"]]

    def saved(self) -> Any:
        """The notebook after saving it from the menu."""
        path = self.folder / self.name
        before, changed = path.stat().st_mtime_ns, self.page.locator(".lm-TabBar-tab.jp-mod-dirty")
        self.page.click(".lm-MenuBar-itemLabel:text-is('File')")
        self.page.click("li[data-command='docmanager:save']")
        # a notebook without changes may not be written again
        until(lambda: path.stat().st_mtime_ns != before or not changed.count(), 20)

        def whole() -> Any:  # the server empties the file before it writes
            try:
                return json.loads(path.read_text())
            except json.JSONDecodeError:
                return None

        return until(whole, 20)


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


def write_notebook(path: Path, *sources: str) -> None:
    """A notebook of code cells."""
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in sources]
    )
    notebook.metadata["kernelspec"] = {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    }
    nbformat.write(notebook, path)
