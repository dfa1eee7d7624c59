"""Commands that show runs in a browser: report.

They alone import the lab, once they are called.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlkd_lab.commands.common import RunPath, app, plain_errors
from rlkd_lab.terminal import say


@app.command()
def report(
    run_path: RunPath,
    out: Annotated[
        Path | None, typer.Option(help="the HTML file; RUN/report.html by default")
    ] = None,
) -> None:
    """Write a run as one HTML file to send: curves, moves, completions, evaluations, settings."""
    with plain_errors("nothing was written"):
        from rlkd_lab.lab.live.report import write_report

        path = write_report(run_path, out)
        say(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB)")
