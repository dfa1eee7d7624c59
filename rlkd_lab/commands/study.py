"""Commands about many runs: sweep, study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from rlkd_lab.commands.common import (
    Json,
    app,
    console,
    plain_errors,
    print_json,
)
from rlkd_lab.terminal import escape, say

Workers = Annotated[
    int | None,
    typer.Option(min=1, help="runs at a time; one a core on a CPU, one on a GPU by default"),
]
Engine = Annotated[
    Literal["local", "ray"],
    typer.Option(
        help="processes of this machine, or a Ray cluster (pip install 'rlkd_lab\\[ray]')"
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        help="of the cluster's head, host:port; OUT on a file system that all nodes share"
    ),
]


@app.command()
def sweep(
    file: Annotated[
        Path, typer.Argument(help="a sweep file (TOML): arms, settings, grids, seeds, evaluation")
    ],
    out: Annotated[
        Path, typer.Option(help="the sweep's folder; started again, it takes up what is missing")
    ],
    workers: Workers = None,
    engine: Engine = "local",
    address: Address = None,
    plan: Annotated[bool, typer.Option("--plan", help="only list the runs")] = False,
    as_json: Json = False,
) -> None:
    """Train and evaluate many runs, arms × seeds, in parallel.

    A sweep that was stopped is resumed. Prints a table by arm and writes OUT/runs.csv.
    """
    with plain_errors(f"`rlkd sweep {file} --out {out}` goes on"):
        from rlkd_lab.study.sweep import read_sweep
        from rlkd_lab.study.watch import run_watched

        wanted = read_sweep(file)
        if plan:
            _list_jobs(wanted, out)
            return
        stage, folder, failed = run_watched(
            wanted, out, workers=workers, engine=engine, address=address
        )
        _print_sweep(stage, folder, failed, as_json)
        _end(failed)


def _list_jobs(wanted: Any, out: Path) -> None:
    """Print every run of a sweep, and whether it is over."""
    from rlkd_lab.study.results import over
    from rlkd_lab.study.sweep import settled

    count = settled(wanted, out)
    stages = [(wanted.first_round(), out / "tuning")] if wanted.tune else []
    for stage, folder in [*stages, *([(count, out)] if count else [])]:
        for job in stage.jobs():
            say(f"{'over' if over(job.folder(folder)) else 'to do':6} {job.folder(folder)}")
    if count is None and wanted.tune and wanted.tune.finalists:
        rest = len(wanted.tune.seeds) - 1
        say(f"then the best {wanted.tune.finalists} trials of each arm × {rest} seeds")
    if count is None:
        arms, seeds = len(wanted.arms), len(wanted.all_seeds)
        say(f"then, with the settings chosen, {arms} arms × {seeds} seeds")


def _print_sweep(stage: Any, folder: Path, failed: list[str], as_json: bool) -> None:
    """Print the table of a sweep by arm."""
    from rlkd_lab.study.parts import by_arm
    from rlkd_lab.study.results import collect

    runs = collect(stage, folder)
    measures = [name for name in MEASURES if name in runs]
    arms = by_arm(runs, measures).to_dict("records")
    if as_json:
        print_json({"arms": arms, "failed": failed, "table": str(folder / "runs.csv")})
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("arm", overflow="fold")
    for heading in ("seeds", *(MEASURES[name] for name in measures)):
        table.add_column(heading, justify="right")
    for row in arms:
        left_out = f" ({row['left_out']} left out)" if row["left_out"] else ""
        table.add_row(
            escape(str(row["arm"])),
            f"{row['runs']}{left_out}",
            *(_with_half_width(row[name], row[f"{name} ±"]) for name in measures),
        )
    console.print(table, "")
    say(
        "mean over seeds ± half of its 95 % interval (Student's t); every run:"
        f" {folder / 'runs.csv'}"
    )


def _end(failed: list[str]) -> None:
    """Print the runs that failed, and exit with status 1 if there are any."""
    for sentence in failed:
        say(f"rlkd: failed: {sentence}", err=True)
    if failed:
        raise typer.Exit(1)


@app.command()
def study(
    out: Annotated[
        Path, typer.Option(help="the study's folder; started again, it takes up what is missing")
    ] = Path("runs/study"),
    core: Annotated[
        bool,
        typer.Option(
            "--core", help="eight methods, one pair, 20 seeds: about two hours on two CPU cores"
        ),
    ] = False,
    part: Annotated[
        list[str] | None, typer.Option(help="a part to run, and again for another; all by default")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="models and task of the parts that are not about an embedded pair"),
    ] = None,
    workers: Workers = None,
    engine: Engine = "local",
    address: Address = None,
    judge: Annotated[
        bool, typer.Option("--judge", help="run nothing: judge the tables in OUT")
    ] = False,
    keep: Annotated[
        Path | None,
        typer.Option(help="also copy tables and scorecard there, without the run folders"),
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(help="draw a figure for each claim into this folder")
    ] = None,
    as_json: Json = False,
) -> None:
    """Test the claims of the papers.

    Runs the sweeps that they need and writes OUT/scorecard.md.
    """
    with plain_errors("the same command goes on"):
        from rlkd_lab.study.claims import judge_claims
        from rlkd_lab.study.scorecard import write_scorecard
        from rlkd_lab.study.study import copy_tables, read_study

        if judge and (core or part or preset or workers or address):
            raise ValueError("--judge runs nothing: give it --out alone, with --keep or --figures")
        failed = (
            [] if judge else _run_parts(out, core, part or [], preset, workers, engine, address)
        )
        path = write_scorecard(out)
        if keep is not None:
            copy_tables(out, keep)
            write_scorecard(keep)
        found = read_study(out)
        if figures is not None:
            from rlkd_lab.plots.claims import draw_claims

            draw_claims(found, figures)
        _print_verdicts(judge_claims(found), failed, path, as_json)
        _end(failed)


def _run_parts(
    out: Path,
    core: bool,
    parts: list[str],
    preset: str | None,
    workers: int | None,
    engine: Literal["local", "ray"],
    address: str | None,
) -> list[str]:
    """Run the sweeps of a study; return a sentence for each run that failed."""
    from rlkd_lab.study.signs import write_signs
    from rlkd_lab.study.study import COMPARED, PARTS, parts_of, sweep_of
    from rlkd_lab.study.watch import run_watched

    failed = []
    for name in parts_of(core, parts, preset):
        stage, folder, lost = run_watched(
            sweep_of(name, preset),
            out / name,
            f"{name} ({PARTS[name]})",
            workers=workers,
            engine=engine,
            address=address,
        )
        if name in COMPARED and folder == out / name:
            write_signs(stage, folder)
        failed += lost
    return failed


def _print_verdicts(verdicts: list[Any], failed: list[str], path: Path, as_json: bool) -> None:
    """Print a line for each claim."""
    from rlkd_lab.study.claims import CLAIMS
    from rlkd_lab.study.scorecard import EDGE, comparisons

    if as_json:
        found = comparisons(verdicts).to_dict("records")
        print_json({"comparisons": found, "failed": failed, "scorecard": str(path)})
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("", "paper", "claim", "here"):
        table.add_column(heading, overflow="fold")
    for claim, verdict in zip(CLAIMS, verdicts, strict=True):
        outcome = verdict.outcome + EDGE * verdict.edge
        table.add_row(str(claim.number), claim.source, escape(claim.text), outcome)
    console.print(table, "")
    say(f"effects, intervals, seeds, settings and cost: {path}")


MEASURES = {
    "reward": "reward",
    "id avg": "accuracy",
    "ood avg": "accuracy, ood",
    "completions/mean_length": "length",
}
"""Of the table of a sweep, as far as they are there: what fits a terminal of 80 columns."""


def _with_half_width(value: float, half: float) -> str:
    """``.612 ± .031``; digits by the size of the value."""
    digits = 1 if abs(value) >= 10 else 3
    return (
        "–"
        if value != value
        else f"{value:.{digits}f}" + ("" if half != half else f" ± {half:.{digits}f}")
    )
