"""Commands that show runs in a browser: report, lab.

`report` imports the lab, once it is called.
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


@app.command()
def lab(
    folder: Annotated[Path, typer.Argument(help="the folder that your runs lie in")] = Path("runs"),
    port: Annotated[int, typer.Option(help="of this machine; if it is taken, one above it")] = 8866,
    browser: Annotated[bool, typer.Option(help="open a browser")] = True,
    dark: Annotated[bool, typer.Option(help="light words on a dark page")] = False,
) -> None:
    """Show and steer runs in a browser, without a notebook. Ctrl-C ends it; runs go on."""
    with plain_errors("runs go on"):
        from rlkd_lab.serve import serve

        serve(folder, port, browser, dark)
