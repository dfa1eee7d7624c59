"""The command line: doctor, train, resume, replay, compare, methods."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

app = typer.Typer(help="Knowledge distillation and reinforcement learning on a 4-bit LoRA student.", no_args_is_help=True)
console = Console(highlight=False)

RunPath = Annotated[Path, typer.Argument(help="a run folder")]


def _method_names() -> list[str]:
    """For shell completion."""
    from rlkd_lab.objectives import METHODS

    return list(METHODS)


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Mistakes of the user end in one sentence and status 2, failures of a run in one sentence and status 1."""
    try:
        yield
    except (ValueError, OSError) as error:
        typer.echo(f"rlkd: {error}", err=True)
        raise typer.Exit(2) from None
    except FloatingPointError as error:
        typer.echo(f"rlkd: the run failed: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("rlkd: stopped; `rlkd resume` goes on from the last checkpoint", err=True)
        raise typer.Exit(130) from None


@app.command()
def train(
    method: Annotated[str, typer.Option(help="a row of `rlkd methods`", autocompletion=_method_names)],
    out: Annotated[Path, typer.Option(help="the run folder to make")],
    preset: Annotated[str, typer.Option(help="starting settings")] = "tiny",
    steps: Annotated[int, typer.Option(help="steps")] = 60,
    seed: Annotated[int, typer.Option(help="seed of everything random")] = 0,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE: a knob (number, off, linear:START:END, switch:BEFORE:AFTER), option or setting; `rlkd methods` lists them"),
    ] = None,
) -> None:
    """Train a student into a new run folder."""
    with plain_errors():
        from rlkd_lab.lab import progress
        from rlkd_lab.training import make_config, run

        settings = {}
        for item in set_ or []:
            name, equals, value = item.partition("=")
            if not equals:
                raise ValueError(f"--set {item}: write NAME=VALUE")
            settings[name] = value
        config = make_config(method, preset, settings, steps=steps, seed=seed)
        with progress(config.steps, method) as show:
            run(config, out, on_step=show)
        typer.echo(f"done: {out}")


@app.command()
def resume(run_path: RunPath) -> None:
    """Go on with a run from its last checkpoint."""
    with plain_errors():
        from rlkd_lab.lab import progress
        from rlkd_lab.runs import RunFolder
        from rlkd_lab.training import config_of
        from rlkd_lab.training import resume as resume_run

        folder = RunFolder.open(run_path)
        config = config_of(folder)
        with progress(config.steps, config.method) as show:
            if not folder.checkpoints() and folder.rows():
                typer.echo("no checkpoint yet: the run starts again from step 1", err=True)
            resume_run(run_path, on_step=show)
        typer.echo(f"done: {run_path}")


@app.command()
def replay(
    run_path: RunPath,
    out: Annotated[Path | None, typer.Option(help="folder of the second run; RUN-replay by default")] = None,
    tolerance: Annotated[float, typer.Option(help="largest difference that passes; 0 asks for equality to the last bit")] = 0.0,
) -> None:
    """Run a recorded run again, moved knobs included, and compare every row. Status 1 if they differ."""
    with plain_errors():
        from rlkd_lab.lab import progress
        from rlkd_lab.runs import RunFolder
        from rlkd_lab.training import replay as replay_run

        original = RunFolder.open(run_path)
        target = out or run_path.with_name(run_path.name + "-replay")
        with progress(len(original.rows()), "replay") as show:
            result = replay_run(run_path, target, tolerance=tolerance, on_step=show)
    if result.difference is None:
        typer.echo(f"the same: {len(original.rows())} steps, largest difference {result.largest:g}")
        return
    theirs, ours = original.env(), result.folder.env()
    changed = [key for key in ("versions", "device", "threads") if theirs.get(key) != ours.get(key)]
    typer.echo(f"different: {result.difference} (largest difference {result.largest:g})")
    if changed:
        typer.echo(f"the two runs had different {', '.join(changed)}: equality to the last bit is not to be expected; see --tolerance")
    raise typer.Exit(1)


@app.command()
def compare(
    run_paths: Annotated[list[Path], typer.Argument(help="run folders")],
    figure: Annotated[Path, typer.Option(help="where the figure goes (png, pdf or svg); a JSON sidecar is written beside it")] = Path("figures/compare.png"),
    x: Annotated[str, typer.Option(help="steps, tokens or seconds")] = "steps",
    window: Annotated[int, typer.Option(min=1, help="window of the trailing mean, in steps")] = 9,
    metrics: Annotated[str | None, typer.Option(help="comma-separated names; the main six by default")] = None,
) -> None:
    """Several runs in a table and a figure."""
    with plain_errors():
        from rlkd_lab.lab import ALL, plot_runs, save_figure
        from rlkd_lab.objectives import nearest
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
        save_figure(drawn, figure, runs, x=x, smoothing=f"trailing mean, {window} steps", metrics=list(wanted))
        table = Table(box=None, pad_edge=False)
        frame = compare_runs(runs).set_index("run").T  # a column a run: metric names are longer than run names
        table.add_column("")
        for title in frame:
            table.add_column(str(title), justify="right", overflow="fold")
        for metric, values in frame.iterrows():
            table.add_row(str(metric), *(f"{value:.3g}" if isinstance(value, float) else str(value) for value in values))
        console.print(table)
        typer.echo(f"mean of the last 10 steps at most; eval/… is the last evaluation. Figure: {figure}")


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="one method, in full", autocompletion=_method_names)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="for a script")] = False,
) -> None:
    """The table of methods: loss, knobs with default and range, source, what to watch; then every option and setting. With a NAME, that one in full."""
    with plain_errors():
        from rlkd_lab.objectives import METHODS, nearest

        wanted = list(METHODS) if name is None else [nearest(name, METHODS, "method")]
        if as_json:
            import json

            typer.echo(json.dumps({each: _described(each) for each in wanted}, indent=2, ensure_ascii=False))
        elif name is not None:
            _print_method(name)
        else:
            _print_methods()


def _described(name: str) -> dict[str, Any]:
    """A row of the table of methods as plain values."""
    from rlkd_lab.objectives import METHODS
    from rlkd_lab.objectives.methods import DEFAULT_OPTIONS
    from rlkd_lab.training.config import LOOP_DEFAULTS, LOOP_KNOBS

    method = METHODS[name]
    defaults: dict[str, Any] = {**method.coefs, **LOOP_DEFAULTS, **method.schedules}
    knobs = {
        knob: {"default": defaults[knob], "low": declared.low, "high": declared.high, "may_be_off": declared.optional, "help": declared.help}
        for knob, declared in {**method.knobs, **LOOP_KNOBS}.items()
    }
    return {
        "title": method.title, "formula": method.formula, "source": method.source, "needs": sorted(method.needs), "watch": method.watch, "knobs": knobs,
        "options": {option: method.options.get(option, default) for option, default in DEFAULT_OPTIONS.items()},
    }  # fmt: skip


def _print_method(name: str) -> None:
    from rlkd_lab.objectives import CHOICES

    found = _described(name)
    console.print(f"[bold]{name}[/]  {found['title']}\n\n    {escape(found['formula'])}\n")
    console.print(f"source  {found['source']}\nneeds   {', '.join(found['needs']) or 'nothing but the student'}\nwatch   {found['watch']}\n")
    knobs = Table(box=None, pad_edge=False, title="knobs (may move while a run goes on)", title_justify="left")
    for column in ("name", "default", "range", "meaning"):
        knobs.add_column(column)
    for knob, about in found["knobs"].items():
        span = f"{about['low']:g}–{about['high']:g}{' or off' if about['may_be_off'] else ''}"
        knobs.add_row(knob, _shown(about["default"]), span, about["help"])
    console.print(knobs)
    options = Table(box=None, pad_edge=False, title="\noptions (fixed before the start)", title_justify="left")
    for column in ("name", "default", "values"):
        options.add_column(column)
    for option, default in found["options"].items():
        options.add_row(option, str(default), " | ".join(CHOICES[option]))
    console.print(options)


def _shown(default: float | str | None) -> str:
    return "off" if default is None else default if isinstance(default, str) else f"{default:g}"


def _print_methods() -> None:
    from rlkd_lab.objectives import CHOICES, METHODS
    from rlkd_lab.training.config import LOOP_KNOBS, RunConfig

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 1, 0))
    for name, method in METHODS.items():
        knobs = []
        for knob, declared in method.knobs.items():
            shown = _shown(method.schedules.get(knob, method.coefs[knob]))
            knobs.append(f"{knob} {shown} ({declared.low:g}–{declared.high:g}{' or off' if declared.optional else ''})")
        needs = f"needs {', '.join(sorted(method.needs))}\n" if method.needs else ""
        watch = f"\nwatch: {method.watch}" if method.watch else ""
        table.add_row(f"[bold]{name}[/]", f"{method.title} — {method.source}\n{escape(method.formula)}\n{needs}knobs: {' · '.join(knobs) or 'none'}{watch}")
    console.print(table)
    shared = "; ".join(f"{name} ({knob.help}, {knob.low:g}–{knob.high:g})" for name, knob in LOOP_KNOBS.items())
    console.print(f"Every method also listens to {shared}.\n")
    settings = Table(box=None, show_header=False, pad_edge=False)
    for option, choices in CHOICES.items():
        settings.add_row(option, " | ".join(choices), "option")
    for name, field in RunConfig.model_fields.items():
        if name not in ("method", "preset", "steps", "seed", "knobs", "options"):
            settings.add_row(name, str(field.default), field.description)
    console.print("For --set, beside the knobs (options: the method's own default where it has one):")
    console.print(settings)


@app.command()
def doctor() -> None:
    """Say in plain words what this machine can do."""
    from rlkd_lab.doctor import examine

    healthy = True
    for good, sentence in examine():
        healthy = healthy and good
        typer.echo(f"{'ok  ' if good else 'FAIL'}  {sentence}")
    if not healthy:
        sys.exit(1)


if __name__ == "__main__":
    app()
