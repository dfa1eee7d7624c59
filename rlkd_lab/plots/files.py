"""Figures as files: the same bytes every time, with a JSON file that says what was drawn."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from rlkd_lab.plots.styles import in_print
from rlkd_lab.runs import RunFolder


@in_print
def save_figure(figure: Figure, path: str | Path, runs: Sequence[RunFolder], **how: Any) -> Path:
    """Write a figure as PNG, PDF or SVG, and a JSON file of the same name beside it.

    Beside a PNG stands the same figure as PDF, for print.

    Args:
        figure: the figure.
        path: its suffix chooses the format; missing folders are made.
        runs: the runs that were drawn; the JSON file has their method, seed, steps and commit.
        how: further entries of the JSON file, for example the smoothing.

    Returns:
        The path of the figure.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # without these dates the files would differ each time
    metadata: dict[str, dict[str, Any]] = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
    for suffix in {path.suffix, ".pdf" if path.suffix == ".png" else path.suffix}:
        figure.savefig(path.with_suffix(suffix), metadata=metadata.get(suffix))
    sidecar = {
        "figure": path.name,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "runs": [_facts(run) for run in runs],
        **how,
    }
    path.with_suffix(".json").write_text(json.dumps(sidecar, indent=2) + "\n", encoding="utf-8")
    return path


def _facts(run: RunFolder) -> dict[str, Any]:
    config, environment = run.config(), run.env()
    return {
        "run": run.path.name,
        "method": config["method"],
        "seed": config["seed"],
        "steps": len(run.metrics()),
        "touched": run.touched,
        "commit": environment.get("commit"),
        "device": environment.get("device"),
    }


@in_print
def png(figure: Figure) -> bytes:
    """Return the figure as PNG bytes, for ``IPython.display.Image``."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
