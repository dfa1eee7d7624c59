"""Commands that show what is there: runs, compare, zoo, doctor."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated, Literal

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


@app.command()
def compare(
    run_paths: Annotated[list[Path], typer.Argument(help="run folders")],
    figure: Annotated[
        Path,
        typer.Option(
            help="where the figure goes: png (a pdf stands beside it), pdf or svg; and a JSON file"
        ),
    ] = Path("figures/compare.png"),
    x: Annotated[str, typer.Option(help="steps, tokens or seconds")] = "steps",
    window: Annotated[int, typer.Option(min=1, help="window of the trailing mean, in steps")] = 9,
    metrics: Annotated[
        str | None, typer.Option(help="comma-separated names; the main six by default")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare several runs in a table and a figure."""
    with plain_errors():
        from rlkd_lab.objectives.settings import nearest
        from rlkd_lab.plots import plot_runs, save_figure
        from rlkd_lab.plots.runs import ALL
        from rlkd_lab.runs import RunFolder
        from rlkd_lab.runs import compare as compare_runs

        runs = [RunFolder.open(path) for path in run_paths]
        nearest(x, ("steps", "tokens", "seconds"), "x-axis")
        nearest(figure.suffix, (".png", ".pdf", ".svg"), "figure format")
        wanted = tuple(metrics.split(",")) if metrics else ALL
        empty = [str(run.path) for run in runs if run.metrics().empty]
        if empty:
            raise ValueError(f"no finished step in {', '.join(empty)}")
        known = {column for run in runs for column in run.metrics().columns}
        for name in wanted:
            if metrics:
                nearest(name, tuple(sorted(known)), "metric")
        drawn = plot_runs(runs, wanted, x=x, window=window)  # type: ignore[arg-type]
        mean = f"trailing mean, {window} steps"
        save_figure(drawn, figure, runs, x=x, smoothing=mean, metrics=list(wanted))
        rows = compare_runs(runs)
        if as_json:
            print_json(rows.to_dict("records"))
            return
        table = Table(box=None, pad_edge=False)
        frame = rows.set_index("run").T  # a column a run: metric names are longer than run names
        table.add_column("")
        for title in frame:
            table.add_column(escape(title), justify="right", overflow="fold")
        for metric, values in frame.iterrows():
            table.add_row(
                escape(metric),
                *(
                    f"{value:.3g}" if isinstance(value, float) else escape(value)
                    for value in values
                ),
            )
        console.print(table)
        say(f"mean of the last 10 steps at most; eval/… is the last evaluation. Figure: {figure}")


@app.command("runs")
def list_runs(
    folder: Annotated[Path, typer.Argument(help="searched with everything below it")] = Path(
        "runs"
    ),
    as_json: Json = False,
) -> None:
    """List the runs in a folder: state, settings that differ, reward, accuracy."""
    with plain_errors():
        from rlkd_lab.runs import overview
        from rlkd_lab.training.environment import alive

        rows = overview(folder, alive).to_dict("records")
        if as_json:
            print_json(rows)
            return
        if not rows:
            console.print(f"no runs in {escape(folder)}")
            return
        table = Table(box=None, pad_edge=False)
        for heading in ("run", "method", "state", "step", "seed", "touched", "reward", "accuracy"):
            table.add_column(
                heading,
                overflow="fold",
                justify="right" if heading in ("step", "seed", "reward", "accuracy") else "left",
            )
        for row in rows:
            if row["state"] == "torn":
                table.add_row(escape(row["run"]), "–", "torn", *["–"] * 5)
                continue
            last = [
                "–" if row[name] is None else f"{row[name]:.3g}" for name in ("reward", "accuracy")
            ]
            step, touched = f"{row['step']}/{row['steps']}", "yes" if row["touched"] else ""
            table.add_row(
                *map(
                    escape,
                    (row["run"], row["method"], row["state"], step, row["seed"], touched, *last),
                )
            )
        console.print(table)
        # below the table: beside it they would wrap in the middle of words
        for row in rows:
            differs = [
                f"{name.removeprefix('knobs.').removeprefix('options.')}={value}"
                for name, value in row["settings"].items()
            ]
            said = [", ".join(differs)] if differs else []
            said += (
                [row["problem"]]
                if row["problem"] and row["state"] in ("torn", "failed", "paused")
                else []
            )
            if said:
                console.print(escape(f"{row['run']}: {'; '.join(said)}"))
        if any(row["state"] == "lost" for row in rows):
            console.print(
                "lost: it says that it is running, and its process is not on this machine;"
                " `rlkd resume` goes on from the last checkpoint"
            )


@app.command()
def zoo(
    name: Annotated[str | None, typer.Argument(help="one model, with its recipe")] = None,
    as_json: Json = False,
) -> None:
    """List the embedded models with their size and accuracy."""
    with plain_errors():
        from rlkd_lab.objectives.settings import nearest
        from rlkd_lab.study.cards import accuracies, cards, levels

        found = cards()
        chosen = {name: found[nearest(name, found, "embedded model")]} if name else found
        if as_json:
            print_json(chosen[name] if name else chosen)
            return
        table = Table(box=None, pad_edge=False)
        for heading in (
            "model",
            "size",
            "weights",
            "difficulty",
            "accuracy",
            "direct",
            "checks",
            "length",
        ):
            table.add_column(
                heading, justify="left" if heading in ("model", "weights") else "right"
            )
        for title, card in chosen.items():
            for i, row in enumerate(accuracies(card).to_dict("records")):
                first = (title, f"{card['parameters'] / 1e6:.2f} M") if i == 0 else ("", "")
                shares = [f"{100 * row[key]:.1f}%" for key in ("accuracy", "direct", "checked")]
                table.add_row(
                    *first,
                    row["precision"],
                    levels(card, row["set"]),
                    *shares,
                    f"{row['length']:.1f}",
                )
        console.print(table, "")
        if name:
            card = chosen[name]
            console.print(
                "recipe: " + ", ".join(f"{key} {value}" for key, value in card["recipe"].items())
            )
            console.print(
                f"taken from {card['taken_from']}; training loss {card['loss']:g};"
                f" {card['seconds'] / 60:.0f} minutes on one thread"
            )
        else:
            console.print(
                "one completion a prompt at T = 1; direct: without steps; `rlkd zoo NAME`"
                " shows a recipe, `rlkd eval NAME` measures again"
            )


@app.command()
def doctor(
    deep: Annotated[
        bool,
        typer.Option(
            "--deep",
            help="load models and check what they compute: gradients, sampler, adapter off,"
            " padding",
        ),
    ] = False,
    student: Annotated[
        str | None,
        typer.Option(help="with --deep: a model of your own; the embedded pair by default"),
    ] = None,
    quant: Annotated[Literal["nf4", "none"], typer.Option(help="of that model")] = "nf4",
    as_json: Json = False,
) -> None:
    """Say what this machine can do."""
    with plain_errors("nothing was written"):
        from rlkd_lab.doctor import examine, examine_deep

        if student is not None and not deep:
            raise ValueError("--student is for --deep: without it no model is loaded")
        found = []
        for good, sentence in itertools.chain(
            examine(), examine_deep(student, quant) if deep else ()
        ):
            found.append({"ok": good, "text": sentence})
            if not as_json:
                say(f"{'ok  ' if good else 'FAIL'}  {sentence}")
        if as_json:
            print_json(found)
        if not all(line["ok"] for line in found):
            raise typer.Exit(1)
