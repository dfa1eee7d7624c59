"""Every notebook runs from top to bottom, in its shortened form, and is committed as a reader
should find it.
"""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HERE = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(HERE.glob("*.ipynb"))
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str) -> list:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def outputs(path: Path) -> list:
    return [output for cell in cells(path, "code") for output in cell.outputs]


def test_the_stages_are_all_there() -> None:
    assert [path.stem[:2] for path in NOTEBOOKS] == [f"{number:02d}" for number in range(10)]


@pytest.mark.parametrize("numbers", [("00", "01", "02", "03", "04"), ("05", "06", "07", "08", "09")])
def test_notebooks_run(numbers: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """One kernel runs several, because importing takes longer than many a page.

    Where there is a browser, tests/browser runs notebook 04 as a whole, with steps as they are.
    """
    monkeypatch.setenv("RLKD_SHORT", "1")
    monkeypatch.setenv("PYTHONPATH", str(HERE.parent))
    first = "from tests.notebooks.in_short import shorten\nshorten()\n%reset -f"
    numbers = tuple(number for number in numbers if CHROMIUM is None or number != "04")
    manager = KernelManager()
    manager.start_kernel(cwd=str(HERE))
    try:
        for path in (path for path in NOTEBOOKS if path.stem[:2] in numbers):
            notebook = nbformat.read(path, as_version=4)
            notebook.cells.insert(0, nbformat.v4.new_code_cell(first))
            first = "%reset -f"
            NotebookClient(notebook, km=manager, timeout=600).execute()
    finally:
        manager.shutdown_kernel(now=True)


@each
def test_outputs_are_those_of_a_whole_run_and_hold_no_widget_state(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert "widgets" not in notebook.metadata  # malformed widget state breaks previews
    counts = [cell.execution_count for cell in cells(path, "code")]
    assert counts == list(range(1, len(counts) + 1)), "run the notebook once, from top to bottom"
    found = outputs(path)
    assert not [output for output in found if output.output_type == "error"]
    for output in found:
        data = output.get("data", {})
        # would read "model not found"
        assert "application/vnd.jupyter.widget-view+json" not in data
        text = str(output.get("text", "")) + str(data.get("text/plain", ""))
        assert not re.search(r"\b[VH]Box\(|Output\(|object at 0x", text), text[:200]
        assert "/tmp/" not in text
    assert any("image/png" in output.get("data", {}) for output in found)


@each
def test_a_page_is_prose_calls_and_pictures(path: Path) -> None:
    code = [cell.source for cell in cells(path, "code")]
    words = sum(len(cell.source.split()) for cell in cells(path, "markdown"))
    assert len(code) <= 14
    assert 350 <= words <= 1100
    for source in code:
        lines = "\n".join("" if line.startswith("%") else line for line in source.splitlines())
        if source.startswith("%%"):
            continue  # a file that the cell writes
        for node in ast.walk(ast.parse(lines)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno < 8, f"{node.name} belongs into the package"


@each
def test_the_order_of_a_page(path: Path) -> None:
    text = "\n".join(cell.source for cell in cells(path, "markdown"))
    assert text.index("| needs |") < text.index("**Predict") < text.index("## Recap")
    assert text.index("| needs |") < text.index("**What you should see") < text.index("## Recap")
    assert re.search("^## .*[Ee]xercise", text, re.MULTILINE)
    assert "| time |" in text
    assert "| VRAM |" in text
    assert "| writes |" in text
    assert sum(len(re.findall(r"\bcheck(?:_method)?\(", source)) for source in (cell.source for cell in cells(path, "code"))) >= 2


@each
def test_committed_outputs_show_exercises_that_wait_for_the_reader(path: Path) -> None:
    """The blanks of the exercises say that an answer is missing."""
    told = "\n".join(str(output.get("text", "")) for output in outputs(path))
    assert "Your answer here" in told
    assert "ot yet" not in told


@each
def test_code_is_narrow_and_short(path: Path) -> None:
    for cell in cells(path, "code"):
        lines = cell.source.splitlines()
        assert not [line for line in lines if len(line) > 88]
        assert len(lines) <= 15


@each
def test_the_function_of_the_page_is_shown(path: Path) -> None:
    sources = [cell.source for cell in cells(path, "code")]
    assert any(source.startswith("show_source(") for source in sources)


@each
def test_sentences_have_at_most_25_words(path: Path) -> None:
    for cell in cells(path, "markdown"):
        lines = [line for line in cell.source.splitlines() if not line.startswith(("|", "#"))]
        text = re.sub(r"\]\([^)]*\)", "]", "\n".join(lines))
        for sentence in re.split(r"(?<=[.?!:])[\s*]+|\n\n|\n(?=[-0-9])", text):
            assert len(sentence.split()) <= 25, sentence
