"""Commands about one run in training: train, teacher-cache, config, resume, replay, ask."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlkd_lab.commands.common import (
    Json,
    RunPath,
    app,
    is_first,
    method_names,
    plain_errors,
    print_json,
    settings_from,
)
from rlkd_lab.commands.settings import first_settings
from rlkd_lab.terminal import say

Method = Annotated[
    str | None, typer.Option(help="a row of `rlkd methods`", autocompletion=method_names)
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="a YAML or TOML file with settings, or a run's config.json; other options win",
    ),
]
Preset = Annotated[str | None, typer.Option(help="starting settings; tiny by default")]
Steps = Annotated[int | None, typer.Option(help="steps; the preset's by default")]
Seed = Annotated[int | None, typer.Option(help="seed of everything random; 0 by default")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="NAME=VALUE: a knob (number, off, linear:START:END, cosine:START:END), option"
        " or setting; `rlkd methods` lists them",
    ),
]


@app.command(epilog=first_settings())
def train(
    out: Annotated[Path, typer.Option(help="the run folder to make")],
    method: Method = None,
    config_file: ConfigFile = None,
    preset: Preset = None,
    steps: Steps = None,
    seed: Seed = None,
    set_: Settings = None,
    schedule_from: Annotated[
        Path | None,
        typer.Option(
            help="a run whose knobs were moved by hand: its settings and moves, with another --seed"
        ),
    ] = None,
) -> None:
    """Train a student into a new run folder."""
    with plain_errors():
        from rlkd_lab.progress import progress
        from rlkd_lab.runs import RunFolder
        from rlkd_lab.training import run
        from rlkd_lab.training import schedule_from as rerun_of
        from rlkd_lab.training.config_file import asked_config

        named = {"method": method, "preset": preset, "steps": steps}
        if schedule_from is not None:
            if set_ or config_file or any(given is not None for given in named.values()):
                raise ValueError(
                    "--schedule-from takes method, steps and settings from that run: give"
                    " --seed and --out beside it, nothing else"
                )
            config = rerun_of(RunFolder.open(schedule_from), seed or 0)
        else:
            config, _ = asked_config(config_file, settings_from(set_), **named, seed=seed)
        with progress(config.steps, config.method) as show:
            run(config, out, on_step=show if is_first() else None)
        _say_end(out)


@app.command("teacher-cache")
def teacher_cache(
    out: Annotated[Path, typer.Option(help="the file to make")],
    method: Method = None,
    config_file: ConfigFile = None,
    preset: Preset = None,
    seed: Seed = None,
    set_: Settings = None,
    topk: Annotated[
        int, typer.Option(help="likeliest tokens stored at each place, beside all others as one")
    ] = 32,
) -> None:
    """Store a teacher's texts and likeliest tokens, to train on without the teacher.

    Takes the settings of `rlkd train`. A run reads the file with --set teacher_cache=FILE.
    """
    with plain_errors("nothing was written"):
        from rlkd_lab.progress import progress_of
        from rlkd_lab.training.config_file import asked_config
        from rlkd_lab.training.teacher_cache import make_cache

        named = {"method": method, "preset": preset, "seed": seed}
        config, _ = asked_config(config_file, settings_from(set_), **named)
        with progress_of() as show:
            stored = make_cache(config, out, topk, show)
        tokens = sum(len(top.ids) for top in stored.top)
        say(
            f"written: {out}, {len(stored.top):,} traces of {tokens:,} tokens,"
            f" {stored.about['topk']} likeliest tokens each, {out.stat().st_size / 2**20:.1f} MiB;"
            f" `rlkd train` with the same settings and --set teacher_cache={out} trains on it"
        )


@app.command("config")
def show_config(
    method: Method = None,
    config_file: ConfigFile = None,
    preset: Preset = None,
    steps: Steps = None,
    seed: Seed = None,
    set_: Settings = None,
    write: Annotated[Path | None, typer.Option(help="a new YAML file to start from")] = None,
    as_json: Json = False,
) -> None:
    """Show every setting of a run, and whether a default, preset, file or option gives it.

    Takes what `rlkd train` takes.
    """
    with plain_errors("nothing was written"):
        from rlkd_lab.training.config_file import as_yaml, asked_config, effective

        named = {"method": method, "preset": preset, "steps": steps, "seed": seed}
        rows = effective(*asked_config(config_file, settings_from(set_), **named))
        if write is not None:
            if write.suffix.lower() not in (".yaml", ".yml"):
                raise ValueError(f"--write {write}: the file is YAML, so end its name in .yaml")
            with write.open("x", encoding="utf-8") as file:
                file.write(as_yaml(rows))
        if as_json:
            print_json({name: {"value": row[0], "source": row[1]} for name, row in rows.items()})
        elif write is not None:
            say(f"written: {write}; `rlkd train --config {write} --out RUN` trains with it")
        else:
            for name, (value, source) in rows.items():
                say(f"{name:<22}  {'off' if value is None else value}  ({source})")


def _say_end(path: Path) -> None:
    """Done, or stopped by whoever watched the run."""
    from rlkd_lab.runs import RunFolder

    if not is_first():
        return
    status = RunFolder.open(path).status()
    ended = f"; it ended {status['why']}" if status.get("why") else ""
    say(
        f"done: {path}{ended}"
        if status["state"] == "done"
        else f"stopped at step {status['step']}; `rlkd resume {path}` goes on"
    )


ChangedData = Annotated[
    bool,
    typer.Option(
        "--accept-changed-data",
        help="go on though the task's rows or prompts, or the files of models and adapters, are"
        " not those that the run began with",
    ),
]


@app.command()
def resume(run_path: RunPath, accept_changed_data: ChangedData = False) -> None:
    """Resume a run from its last checkpoint."""
    with plain_errors():
        from rlkd_lab.progress import progress
        from rlkd_lab.runs import RunFolder
        from rlkd_lab.training import config_of
        from rlkd_lab.training import resume as resume_run

        folder = RunFolder.open(run_path)
        config = config_of(folder)
        with progress(config.steps, config.method) as show:
            resume_run(
                run_path,
                on_step=show if is_first() else None,
                accept_changed_data=accept_changed_data,
            )
        _say_end(run_path)


@app.command()
def replay(
    run_path: RunPath,
    out: Annotated[
        Path | None, typer.Option(help="folder of the second run; RUN-replay by default")
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(help="largest difference that passes; 0 asks for equality to the last bit"),
    ] = 0.0,
    accept_changed_data: ChangedData = False,
) -> None:
    """Replay a recorded run, moved knobs included, and compare every row.

    The exit status is 1 if they differ.
    """
    with plain_errors():
        from rlkd_lab.progress import progress
        from rlkd_lab.runs import RunFolder
        from rlkd_lab.training import replay as replay_run

        original = RunFolder.open(run_path)
        target = out or run_path.with_name(run_path.name + "-replay")
        with progress(len(original.rows()), "replay") as show:
            result = replay_run(
                run_path,
                target,
                tolerance=tolerance,
                on_step=show,
                accept_changed_data=accept_changed_data,
            )
    if result.steps < len(original.rows()):
        say(f"compared up to step {result.steps}, after which the run was trained on changed data")
    if result.difference is None:
        say(f"the same: {result.steps} steps, largest difference {result.largest:g}")
        return
    theirs, ours = original.env(), result.folder.env()
    changed = [key for key in ("versions", "device", "threads") if theirs.get(key) != ours.get(key)]
    say(f"different: {result.difference} (largest difference {result.largest:g})")
    if changed:
        say(
            f"the two runs had different {', '.join(changed)}: equality to the last bit is"
            " not to be expected; see --tolerance"
        )
    raise typer.Exit(1)


@app.command()
def ask(
    run_path: RunPath,
    what: Annotated[
        str,
        typer.Argument(
            help="pause, unpause, step, stop, checkpoint, or a knob: NAME=VALUE, NAME=off,"
            " NAME=schedule to give it back"
        ),
    ],
    at: Annotated[
        int | None,
        typer.Option(help="of a knob: the step from which it is wanted; the next one by default"),
    ] = None,
) -> None:
    """Ask something of a run that is being trained, from any terminal."""
    with plain_errors():
        from rlkd_lab.training.remote import RemoteRun

        handle = RemoteRun(run_path)
        buttons = {
            name: getattr(handle, name)
            for name in ("pause", "unpause", "step", "stop", "checkpoint")
        }
        what = "unpause" if what in ("go_on", "resume") else what  # its earlier names
        knob, equals, value = what.partition("=")
        if at is not None and (not equals or value == "schedule"):
            raise ValueError("--at is for a knob's value: NAME=VALUE")
        try:
            if not equals:
                if what not in buttons:
                    raise ValueError(
                        f"{what!r} is none of {', '.join(buttons)}, and no knob's NAME=VALUE"
                    )
                buttons[what]()
            elif value == "schedule":
                handle.release(knob, source="command line")
            else:
                handle.request(knob, _value(value), at, source="command line")
        except RuntimeError as error:  # it is done, or nothing runs
            raise ValueError(str(error)) from None
        late = (
            f"; step {at} is over, so it acts in the next one"
            if at is not None and at <= handle.status().step
            else ""
        )
        say(f"asked{late}; the answer stands in {run_path / 'events.jsonl'}")


def _value(text: str) -> float | None:
    try:
        return None if text == "off" else float(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is no value of a knob: a number, off, or schedule to give it back"
        ) from None
