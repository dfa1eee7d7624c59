"""Run notebooks from top to bottom and keep what a reader should find: outputs, and no widget state.

    python notebooks/execute.py                # all of them, about half an hour on two cores
    python notebooks/execute.py 04 05          # some
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
VIEW = "application/vnd.jupyter.widget-view+json"


def clean(notebook: Any) -> Any:
    """Without widget state and views, which no saved notebook can show; neighbouring lines of one stream joined."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        kept: list[Any] = []
        for output in cell.outputs:
            if output.get("name") == "stderr":
                continue  # progress and warnings of this machine
            data = output.get("data", {})
            data.pop(VIEW, None)
            if kept and output.output_type == "stream" == kept[-1].output_type:
                kept[-1].text += output.text
            elif output.output_type == "stream" or any(data.values()) or output.output_type == "error":
                kept.append(output)
        cell.outputs = kept
    return notebook


def execute(path: Path) -> None:
    """One notebook, its live runs to their end."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(HERE)}}).execute()
    nbformat.write(clean(notebook), path)
    print(path.name)


if __name__ == "__main__":
    os.environ["RLKD_WAIT"] = "1"
    os.environ.pop("RLKD_SHORT", None)
    for path in sorted(HERE.glob("[0-9]*.ipynb")):
        if len(sys.argv) == 1 or path.name[:2] in sys.argv[1:]:
            execute(path)
