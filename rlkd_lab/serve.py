"""A page on this machine that shows runs: one generated notebook, served by Voilà."""

from __future__ import annotations

import json
import os
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

VIEW = "from rlkd_lab.lab import runs\nruns({folder!r}, drive='process')"
"""What the page shows."""
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:;"
    " connect-src 'self' ws://127.0.0.1:* data: blob:; frame-ancestors 'self'"
)
"""The page loads nothing from other machines; Voilà's template would fetch a font."""


def serve(folder: Path, port: int, browser: bool, dark: bool = False) -> None:
    """Show the runs of a folder on loopback, behind a token, until the process is interrupted.

    Args:
        folder: of the runs.
        port: the first that is tried.
        browser: whether to open one.
        dark: whether the page has the dark theme.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: Voilà is not installed.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder: name the one that your runs lie in")
    if find_spec("voila") is None:
        raise ValueError("rlkd lab needs Voilà: pip install 'rlkd_lab[lab]'")
    from voila.app import Voila

    headers = {"headers": {"Content-Security-Policy": POLICY}}
    how = {
        "ip": "127.0.0.1",
        "port": port,
        "auto_token": True,
        "open_browser": browser,
        "tornado_settings": headers,
    }
    words = [f"--Voila.{name}={value}" for name, value in how.items()]
    words.append(f"--VoilaConfiguration.theme={'dark' if dark else 'light'}")
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "runs.ipynb"
        path.write_text(json.dumps(_notebook(folder)), encoding="utf-8")
        Voila.launch_instance([str(path), *words])


def _notebook(folder: Path) -> dict[str, Any]:
    # paths in configs are relative to where the command was given
    source = f"import os\nos.chdir({os.getcwd()!r})\n" + VIEW.format(folder=str(folder))
    cell: dict[str, Any] = {
        "cell_type": "code",
        "id": "view",
        "execution_count": None,
        "outputs": [],
    }
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {"kernelspec": kernel, "title": "rlkd lab"},
        "cells": [{**cell, "metadata": {}, "source": source}],
    }
