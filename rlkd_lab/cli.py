"""The command line: doctor, plan, presets, train, resume, replay, ask, runs, compare, eval,
export, sweep, study, zoo, methods.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from rlkd_lab.terminal import as_utf8, escape, replace_what_it_lacks, say, writes

app = typer.Typer(
    help="Knowledge distillation and reinforcement learning on a 4-bit LoRA student.",
    no_args_is_help=True,
)
console = Console(highlight=False)


def main() -> None:
    """The command ``rlkd``."""
    replace_what_it_lacks()
    app()


RunPath = Annotated[Path, typer.Argument(help="a run folder")]
Json = Annotated[bool, typer.Option("--json", help="print JSON and nothing else")]


def print_json(value: Any) -> None:
    """One JSON value on stdout."""
    from rlkd_lab.study.report import plain

    text = json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    say(text if writes(text) else json.dumps(plain(value), indent=2, allow_nan=False))


def _method_names() -> list[str]:
    """For shell completion."""
    from rlkd_lab.objectives import METHODS

    return list(METHODS)


@contextlib.contextmanager
def _ended_like_ctrl_c() -> Iterator[None]:
    """Who ends the process (a batch system, say) or closes its terminal stops it as Ctrl-C
    does: what is finished is kept.
    """

    def interrupt(number: int, frame: object) -> None:
        for one in ours:
            signal.signal(one, signal.SIG_IGN)  # another one must not cut the last checkpoint
        raise KeyboardInterrupt

    ours = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    ours = [
        one
        for one in ours
        if threading.current_thread() is threading.main_thread()
        and signal.getsignal(one) == signal.SIG_DFL
    ]
    for one in ours:
        signal.signal(one, interrupt)
    try:
        yield
    finally:
        for one in ours:
            signal.signal(one, signal.SIG_DFL)


@contextlib.contextmanager
def plain_errors(stopped: str = "`rlkd resume` goes on from the last checkpoint") -> Iterator[None]:
    """Mistakes of the user end in one sentence and status 2, failures of a run in one sentence
    and status 1; a warning is one sentence too.
    """
    try:
        with (
            _ended_like_ctrl_c(),
            warnings.catch_warnings(),
        ):  # puts the process's own way of showing them back
            warnings.showwarning = lambda message, *_, **__: say(
                f"rlkd: warning: {message}", err=True
            )
            yield
    except (ValueError, OSError) as error:
        words = [
            part
            for part in (getattr(error, "strerror", None), getattr(error, "filename", None))
            if part
        ]  # without the number of the error
        say(f"rlkd: {': '.join(map(str, words)) or error}", err=True)
        raise typer.Exit(2) from None
    except (FloatingPointError, MemoryError, RuntimeError) as error:
        import torch

        if not isinstance(error, FloatingPointError | MemoryError | torch.OutOfMemoryError):
            raise
        say(f"rlkd: the run failed: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        say(f"rlkd: stopped; {stopped}", err=True)
        raise typer.Exit(130) from None


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="the run folder to make")],
    method: Annotated[
        str | None, typer.Option(help="a row of `rlkd methods`", autocompletion=_method_names)
    ] = None,
    preset: Annotated[str | None, typer.Option(help="starting settings; tiny by default")] = None,
    steps: Annotated[int | None, typer.Option(help="steps; the preset's by default")] = None,
    seed: Annotated[int, typer.Option(help="seed of everything random")] = 0,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="NAME=VALUE: a knob (number, off, linear:START:END, switch:BEFORE:AFTER), option"
            " or setting; `rlkd methods` lists them",
        ),
    ] = None,
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
        from rlkd_lab.training import make_config, run
        from rlkd_lab.training import schedule_from as rerun_of

        settings = _settings(set_)
        if schedule_from is not None:
            if settings or any(given is not None for given in (method, preset, steps)):
                raise ValueError(
                    "--schedule-from takes method, steps and settings from that run: give"
                    " --seed and --out beside it, nothing else"
                )
            config = rerun_of(RunFolder.open(schedule_from), seed)
        elif method is None:
            raise ValueError(
                "which method? --method NAME, a row of `rlkd methods`; or --schedule-from RUN"
            )
        else:
            config = make_config(
                method,
                preset or "tiny",
                settings,
                seed=seed,
                **({} if steps is None else {"steps": steps}),
            )
        with progress(config.steps, config.method) as show:
            run(config, out, on_step=show if _first() else None)
        _say_end(out)


def _settings(items: list[str] | None) -> dict[str, str]:
    """Of --set NAME=VALUE."""
    settings = {}
    for item in items or []:
        name, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"--set {item}: write NAME=VALUE")
        settings[name] = as_utf8(value)
    return settings


def _first() -> bool:
    """Whether this process is the one that speaks, of those that `accelerate launch` started."""
    return os.environ.get("RANK", "0") == "0"


def _say_end(path: Path) -> None:
    """Done, or stopped by whoever watched the run."""
    from rlkd_lab.runs import RunFolder

    if not _first():
        return
    status = RunFolder.open(path).status()
    say(
        f"done: {path}"
        if status["state"] == "done"
        else f"stopped at step {status['step']}; `rlkd resume {path}` goes on"
    )


ChangedData = Annotated[
    bool,
    typer.Option(
        "--accept-changed-data",
        help="go on though the task's rows or prompts are not those that the run began with",
    ),
]


@app.command()
def resume(run_path: RunPath, accept_changed_data: ChangedData = False) -> None:
    """Go on with a run from its last checkpoint."""
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
                on_step=show if _first() else None,
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
    """Run a recorded run again, moved knobs included, and compare every row.

    Status 1 if they differ.
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
def compare(
    run_paths: Annotated[list[Path], typer.Argument(help="run folders")],
    figure: Annotated[
        Path,
        typer.Option(
            help="where the figure goes (png, pdf or svg); a JSON sidecar is written beside it"
        ),
    ] = Path("figures/compare.png"),
    x: Annotated[str, typer.Option(help="steps, tokens or seconds")] = "steps",
    window: Annotated[int, typer.Option(min=1, help="window of the trailing mean, in steps")] = 9,
    metrics: Annotated[
        str | None, typer.Option(help="comma-separated names; the main six by default")
    ] = None,
    as_json: Json = False,
) -> None:
    """Several runs in a table and a figure."""
    with plain_errors():
        from rlkd_lab.objectives import nearest
        from rlkd_lab.plots import ALL, plot_runs, save_figure
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
        save_figure(
            drawn,
            figure,
            runs,
            x=x,
            smoothing=f"trailing mean, {window} steps",
            metrics=list(wanted),
        )
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


@app.command()
def plan(
    method: Annotated[
        str, typer.Option(help="a row of `rlkd methods`", autocompletion=_method_names)
    ] = "kdrl",
    preset: Annotated[str, typer.Option(help="starting settings, see `rlkd presets`")] = "tiny",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE, as for `rlkd train`")
    ] = None,
    memory: Annotated[
        float | None, typer.Option(min=0.1, help="GiB of a GPU; what is free here by default")
    ] = None,
    as_json: Json = False,
) -> None:
    """The memory that a run will need, part by part, before anything is loaded, and the
    micro-batch that fits.
    """
    with plain_errors("nothing was loaded"):
        from rlkd_lab.models import default_device
        from rlkd_lab.training import make_config
        from rlkd_lab.training.environment import free_memory
        from rlkd_lab.training.plan import CONTEXT, GIB, MARGIN, asked_prompts, check_pair, fitted
        from rlkd_lab.training.plan import plan as planned

        gpu = memory is not None or default_device().type == "cuda"
        there = memory * GIB if memory is not None else free_memory(default_device())
        config = make_config(method, preset, _settings(set_))
        check_pair(config)
        prompts = asked_prompts(config)
        for sentence in prompts.told:
            say(f"rlkd: warning: {sentence}", err=True)
        whole = planned(config, gpu, prompts.longest)
        fits, least = fitted(config, there, gpu, prompts.longest)
        asked = {
            name: (getattr(config, name), getattr(fits, name))
            for name in (
                "sample_at_once",
                "micro_batch",
                "logits_mib",
                "gradient_checkpointing",
                "dense_twin",
            )
        }
        if as_json:
            parts: dict[str, Any] = {
                "held": least.held,
                "sampling": least.sampling,
                "updating": least.updating,
                "peak": least.peak,
            }
            print_json(
                {
                    **parts,
                    "as_asked": whole.peak,
                    "memory": there,
                    "settings": {name: new for name, (_, new) in asked.items()},
                }
            )
            return
        table = Table(box=None, pad_edge=False)
        for heading in ("", "part", "memory"):
            table.add_column(heading, justify="right" if heading == "memory" else "left")
        for title, some in (
            ("all the time", least.held),
            ("sampling", least.sampling),
            ("updating", least.updating),
        ):
            for name, size in some.items():
                table.add_row(title if name == next(iter(some)) else "", name, _memory(size))
        console.print(table, "")
        changed = [
            f"{name}={new} instead of {'all' if name == 'sample_at_once' and not old else old}"
            for name, (old, new) in asked.items()
            if old != new
        ]
        where = (
            f"{there / GIB:.1f} GiB of {'GPU' if gpu else 'host'} memory, models in"
            f" {'16 bit' if gpu else 'float32'}"
        )
        instead = (
            f", with {', '.join(changed)}; as asked it would be {_memory(whole.peak)}"
            if changed
            else ", as asked"
        )
        say(f"{where}: {_memory(least.peak)} at the highest{instead}")
        held_back = f"{MARGIN - 1:.0%} more" + (
            f" and {CONTEXT / GIB:g} GiB for CUDA" if gpu else ""
        )
        say(f"a prediction for completions that all run to the limit; {held_back} are kept free")


def _memory(size: float) -> str:
    """Bytes in GiB, or MiB below a tenth of one."""
    return f"{size / 2**30:.2f} GiB" if size >= 0.1 * 2**30 else f"{size / 2**20:.1f} MiB"


@app.command()
def presets(
    name: Annotated[str | None, typer.Argument(help="one preset, in full")] = None,
    as_json: Json = False,
) -> None:
    """Starting settings: the embedded pairs and the papers' settings.

    With a NAME: every number and where it comes from.
    """
    with plain_errors():
        from rlkd_lab.objectives import nearest
        from rlkd_lab.training.presets import PRESETS

        chosen = PRESETS if name is None else {name: PRESETS[nearest(name, PRESETS, "preset")]}
        if as_json:
            print_json(
                {
                    key: {
                        "title": one.title,
                        "settings": dict(one.settings),
                        "sources": dict(one.sources),
                    }
                    for key, one in chosen.items()
                }
            )
            return
        table = Table(box=None, pad_edge=False, show_header=False)
        for key, one in chosen.items():
            if name is None:
                table.add_row(f"[bold]{key}[/]", escape(one.title))
                continue
            width = max(map(len, one.sources), default=0)
            nested = {
                **one.settings,
                **one.settings.get("knobs", {}),
                **{f"task.{k}": v for k, v in one.settings.get("task_settings", {}).items()},
            }
            console.print(escape(one.title), "")
            for (
                setting,
                source,
            ) in one.sources.items():  # no table, which would cut the ids that one copies
                say(f"{setting:<{width}}  {nested[setting]}  ({source})")
        if name is None:
            console.print(table)


@app.command()
def methods(
    name: Annotated[
        str | None, typer.Argument(help="one method, in full", autocompletion=_method_names)
    ] = None,
    as_json: Json = False,
) -> None:
    """The table of methods: loss, knobs with default and range, source, what to watch; then
    every option and setting. With a NAME, that one in full.
    """
    with plain_errors():
        from rlkd_lab.objectives import METHODS, nearest

        wanted = list(METHODS) if name is None else [nearest(name, METHODS, "method")]
        if as_json:
            print_json({each: _described(each) for each in wanted})
        elif name is not None:
            _print_method(name)
        else:
            _print_methods()


def _described(name: str) -> dict[str, Any]:
    """A row of the table of methods as plain values."""
    from rlkd_lab.objectives import METHODS
    from rlkd_lab.objectives.settings import DEFAULT_OPTIONS
    from rlkd_lab.training.config import LOOP_DEFAULTS, LOOP_KNOBS

    method = METHODS[name]
    defaults: dict[str, Any] = {**method.coefs, **LOOP_DEFAULTS, **method.schedules}
    knobs = {
        knob: {
            "default": defaults[knob],
            "low": declared.low,
            "high": declared.high,
            "may_be_off": declared.optional,
            "help": declared.help,
        }
        for knob, declared in {**method.knobs, **LOOP_KNOBS}.items()
    }
    return {
        "title": method.title,
        "formula": method.formula,
        "source": method.source,
        "needs": sorted(method.needs),
        "watch": method.watch,
        "knobs": knobs,
        "options": {
            option: method.options.get(option, default)
            for option, default in DEFAULT_OPTIONS.items()
        },
    }


def _print_method(name: str) -> None:
    from rlkd_lab.objectives import CHOICES

    found = _described(name)
    console.print(f"[bold]{name}[/]  {found['title']}\n\n    {escape(found['formula'])}\n")
    console.print(
        f"source  {found['source']}\nneeds  "
        f" {', '.join(found['needs']) or 'nothing but the student'}\nwatch  "
        f" {found['watch']}\n"
    )
    knobs = Table(
        box=None, pad_edge=False, title="knobs (may move while a run goes on)", title_justify="left"
    )
    for column in ("name", "default", "range", "meaning"):
        knobs.add_column(column)
    for knob, about in found["knobs"].items():
        span = f"{about['low']:g}–{about['high']:g}{' or off' if about['may_be_off'] else ''}"
        knobs.add_row(knob, _shown(about["default"]), span, about["help"])
    console.print(knobs)
    options = Table(
        box=None, pad_edge=False, title="\noptions (fixed before the start)", title_justify="left"
    )
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
            knobs.append(
                f"{knob} {shown}"
                f" ({declared.low:g}–{declared.high:g}{' or off' if declared.optional else ''})"
            )
        needs = f"needs {', '.join(sorted(method.needs))}\n" if method.needs else ""
        watch = f"\nwatch: {method.watch}" if method.watch else ""
        table.add_row(
            f"[bold]{name}[/]",
            f"{method.title} — {method.source}\n{escape(method.formula)}\n{needs}knobs:"
            f" {' · '.join(knobs) or 'none'}{watch}",
        )
    console.print(table)
    shared = "; ".join(
        f"{name} ({knob.help}, {knob.low:g}–{knob.high:g})" for name, knob in LOOP_KNOBS.items()
    )
    console.print(f"Every method also listens to {shared}.\n")
    settings = Table(box=None, show_header=False, pad_edge=False)
    for option, choices in CHOICES.items():
        settings.add_row(option, " | ".join(choices), "option")
    for name, field in RunConfig.model_fields.items():
        if name not in ("method", "preset", "steps", "seed", "knobs", "options"):
            settings.add_row(name, str(field.default), field.description)
    console.print(
        "For --set, beside the knobs (options: the method's own default where it has one):"
    )
    console.print(settings)


@app.command("eval")
def evaluate(
    targets: Annotated[
        list[str],
        typer.Argument(
            help="a run folder, an adapter folder, or a model: embedded name, folder or hub id;"
            " several runs of one method, also as 'runs/a-*'"
        ),
    ],
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="the other side, asked the same prompts; repeat it or quote a pattern for"
            " several runs; differences are TARGETS − AGAINST"
        ),
    ] = None,
    samples: Annotated[int, typer.Option(help="completions a prompt")] = 8,
    prompts: Annotated[int, typer.Option(help="prompts of each set")] = 256,
    k: Annotated[
        str | None,
        typer.Option(
            "--k", help="comma-separated k of pass@k and majority@k; powers of two by default"
        ),
    ] = None,
    split: Annotated[
        str,
        typer.Option(help="train, validation or test: choose settings on validation, report test"),
    ] = "test",
    task: Annotated[
        str | None, typer.Option(help="the run's by default, otherwise arithmetic")
    ] = None,
    difficulty: Annotated[
        str | None,
        typer.Option(help="in distribution, such as 2-5; the run's or the task's by default"),
    ] = None,
    temperature: Annotated[
        float, typer.Option(help="of the samples; the greedy completion has none")
    ] = 1.0,
    top_p: Annotated[float, typer.Option(help="1 is off")] = 1.0,
    top_k: Annotated[int, typer.Option(help="0 is off")] = 0,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            help="length limit, twice that out of distribution; the run's by default, otherwise 96"
        ),
    ] = None,
    quant: Annotated[
        str | None, typer.Option(help="nf4 or none; the run's by default, otherwise nf4")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="the model that an adapter folder belongs to")
    ] = None,
    checkpoint: Annotated[
        int | None, typer.Option(help="step of a run folder's checkpoint; the last by default")
    ] = None,
    greedy: Annotated[bool, typer.Option(help="one greedy completion a prompt too")] = True,
    ood: Annotated[
        bool, typer.Option(help="out of distribution too, where the task has such prompts")
    ] = True,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="NAME=VALUE as for `rlkd train`: chat, system_prompt, prompt_template,"
            " max_prompt_tokens, long_prompts, task.NAME",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="parquet file for every completion; RUN/eval/step_N.parquet for a run, otherwise"
            " none"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Evaluate a run, an adapter or a model on held-out prompts: avg@k, pass@k with its chance
    line, majority@k, greedy, lengths.
    """
    with plain_errors("nothing was written"):
        from rlkd_lab.objectives import nearest
        from rlkd_lab.study import (
            about,
            asked_as,
            check_ks,
            check_sides,
            data_note,
            evaluate_target,
            expanded,
            find_target,
            settings_of,
            summarise,
            task_of,
            write_table,
        )
        from rlkd_lab.study.report import Compared
        from rlkd_lab.training.plan import reader_of

        ks = None if k is None else _numbers(k, "--k")
        if quant is not None:
            nearest(quant, ("nf4", "none"), "quant")
        nearest(split, ("train", "validation", "test"), "split")
        check_ks(ks, samples)
        ours = [
            find_target(name, checkpoint=checkpoint, base=base, quant=quant)  # type: ignore[arg-type]
            for name in expanded(targets)
        ]
        theirs = [find_target(name, quant=quant) for name in expanded(against or ())]  # type: ignore[arg-type]
        check_sides(ours, theirs)
        pair = [*ours, *theirs]
        config = next((target.config for target in pair if target.config), None)
        given = _settings(set_)
        asks, told = asked_as(config, given.pop("task", task), given)
        asked = task_of(asks)
        known = next((target.run for target in pair if target.run), None)
        for sentence in told + ([note] if (note := data_note(known, asks, asked)) else []):
            say(f"rlkd: warning: {sentence}", err=True)
        settings = settings_of(
            asks,
            prompts=prompts,
            samples=samples,
            split=split,
            difficulty=None if difficulty is None else _range(difficulty),
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            max_new_tokens=max_new_tokens,
            greedy=greedy,
            ood=ood,
        )
        written = _tables(ours, theirs, out)
        readers = (
            [reader_of(one.base, settings.chat, settings.system_prompt) for one in pair]
            if len(pair) > 1
            else []
        )
        frames = [
            evaluate_target(one.load(), asked, settings, progress=not as_json, readers=readers)
            for one in pair
        ]
        records = [about(one.describe(), asked, settings) for one in (*ours, *theirs)]
        for path, frame, record in zip(written, frames, records, strict=True):
            if path is not None:
                write_table(path, frame, record)
        summaries = [summarise(frame, ks) for frame in frames]
        shown = Compared(ours, theirs, frames, summaries, ks)
        kept = [str(path) for path in written if path is not None]
        if as_json:
            print_json({**shown.as_json(records), "out": kept})
            return
        console.print(
            f"[bold]{escape(shown.labels[0])}[/] ({ours[0].quant}), {escape(asked.name)},"
            f" split {split}, T = {temperature:g}; shares in %, lengths in tokens\n"
        )
        for table in shown.tables(samples):
            console.print(table, "")
        for line in shown.notes(asked.name):
            say(line)
        say(
            f"every completion: {', '.join(kept)}"
            if kept
            else "completions were not kept: name a file with --out"
        )


def _tables(ours: list[Any], theirs: list[Any], out: Path | None) -> list[Path | None]:
    """Where the completions of each target go, ``None`` for nowhere: the run's own table, or
    ``--out`` for a single target.
    """
    from rlkd_lab.study import check_out

    if out is not None and (len(ours) > 1 or len(theirs) > 1):
        raise ValueError(
            "--out is for a single target: with several runs each one's completions go to RUN/eval"
        )
    found = [target.table for target in (*ours, *theirs)]
    if len(ours) == 1 and len(theirs) <= 1:
        first = out or found[0]
        found = [
            first,
            *(
                [None if first is None else first.with_name(f"{first.stem}-against.parquet")]
                * len(theirs)
            ),
        ]
    for path in found:
        if path is not None:
            check_out(path)
    return found


def _numbers(text: str, option: str) -> list[int]:
    """1,4,8."""
    try:
        return sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise ValueError(f"{option} {text}: write numbers and commas, such as 1,4,8") from None


def _range(text: str) -> tuple[int, int]:
    """2-5, or one number."""
    low, _, high = text.partition("-")
    try:
        return int(low), int(high or low)
    except ValueError:
        raise ValueError(f"--difficulty {text}: write a range such as 2-5") from None


@app.command()
def export(
    run_path: RunPath,
    out: Annotated[Path, typer.Option(help="the folder to make")],
    checkpoint: Annotated[int | None, typer.Option(help="step; the last by default")] = None,
    merge: Annotated[
        bool,
        typer.Option(
            "--merge",
            help="one dense model instead of an adapter; needs 4 bytes of memory for each weight",
        ),
    ] = False,
    into: Annotated[
        str | None,
        typer.Option(
            help="with --merge, the base weights: nf4 (as it was trained) or full; as in the run"
            " by default"
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="with --merge: bfloat16, float16 or float32; bfloat16 by default"),
    ] = None,
) -> None:
    """Hand over a run's student: its adapter in PEFT's format or, with --merge, a model in
    transformers' format; with tokenizer and model card.
    """
    with plain_errors("nothing was written"):
        from rlkd_lab.study.export import export_run
        from rlkd_lab.study.model_card import merge_note

        found = export_run(
            run_path, out, checkpoint=checkpoint, merged=merge, into=into, dtype=dtype
        )
        if found is not None:
            say("\n".join(merge_note(found)))
        say(f"written: {out}")


@app.command()
def sweep(
    file: Annotated[
        Path, typer.Argument(help="a sweep file (TOML): arms, settings, grids, seeds, evaluation")
    ],
    out: Annotated[
        Path, typer.Option(help="the sweep's folder; started again, it takes up what is missing")
    ],
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="runs at a time; one a core on a CPU, one on a GPU by default"),
    ] = None,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(
            help="processes of this machine, or a Ray cluster (pip install 'rlkd_lab\\[ray]')"
        ),
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            help="of the cluster's head, host:port; OUT on a file system that all nodes share"
        ),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="only list the runs")] = False,
    as_json: Json = False,
) -> None:
    """Many runs: arms × seeds, trained and evaluated in parallel, resumable.

    A table by arm and OUT/runs.csv.
    """
    with plain_errors(f"`rlkd sweep {file} --out {out}` goes on"):
        from rlkd_lab.study.results import by_arm, collect, over
        from rlkd_lab.study.sweep import read_sweep, settled
        from rlkd_lab.study.watch import run_watched

        wanted = read_sweep(file)
        if plan:
            count = settled(wanted, out)
            known = ([(wanted.tuning(), out / "tuning")] if wanted.tune else []) + (
                [(count, out)] if count else []
            )
            for stage, folder in known:
                for job in stage.jobs():
                    say(f"{'over' if over(job.folder(folder)) else 'to do':6} {job.folder(folder)}")
            if count is None:
                say(
                    f"then, with the settings chosen, {len(wanted.arms)} arms ×"
                    f" {len(wanted.all_seeds)} seeds"
                )
            return
        stage, folder, failed = run_watched(
            wanted, out, workers=workers, engine=engine, address=address
        )
        runs = collect(stage, folder)
        measures = [name for name in MEASURES if name in runs]
        arms = by_arm(runs, measures)
        if as_json:
            print_json(
                {
                    "arms": arms.to_dict("records"),
                    "failed": failed,
                    "table": str(folder / "runs.csv"),
                }
            )
        else:
            table = Table(box=None, pad_edge=False)
            table.add_column("arm", overflow="fold")
            for heading in ("seeds", *(MEASURES[name] for name in measures)):
                table.add_column(heading, justify="right")
            for row in arms.to_dict("records"):
                seeds = f"{row['runs']}" + (
                    f" ({row['left_out']} left out)" if row["left_out"] else ""
                )
                table.add_row(
                    escape(str(row["arm"])),
                    seeds,
                    *(_with_half_width(row[name], row[f"{name} ±"]) for name in measures),
                )
            console.print(table, "")
            say(
                "mean over seeds ± half of its 95 % interval (Student's t); every run:"
                f" {folder / 'runs.csv'}"
            )
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
            "--core", help="eight methods, one pair, five seeds: under two hours on two CPU cores"
        ),
    ] = False,
    part: Annotated[
        list[str] | None, typer.Option(help="a part to run, and again for another; all by default")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="models and task of the parts that are not about an embedded pair"),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="runs at a time; one a core on a CPU, one on a GPU by default"),
    ] = None,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(
            help="processes of this machine, or a Ray cluster (pip install 'rlkd_lab\\[ray]')"
        ),
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            help="of the cluster's head, host:port; OUT on a file system that all nodes share"
        ),
    ] = None,
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
    """The claims of the papers, tested: runs the sweeps that they need and writes
    OUT/scorecard.md.
    """
    with plain_errors("the same command goes on"):
        from rlkd_lab.study.claims import CLAIMS, judge_claims
        from rlkd_lab.study.study import (
            EDGE,
            PARTS,
            comparisons,
            copy_tables,
            parts_of,
            read_study,
            sweep_of,
            write_scorecard,
        )
        from rlkd_lab.study.watch import run_watched

        if judge and (core or part or preset or workers or address):
            raise ValueError("--judge runs nothing: give it --out alone, with --keep or --figures")
        failed: list[str] = []
        for name in [] if judge else parts_of(core, part or [], preset):
            title = f"{name} ({PARTS[name]})"
            failed += run_watched(
                sweep_of(name, preset),
                out / name,
                title,
                workers=workers,
                engine=engine,
                address=address,
            )[2]
        for sentence in failed:
            say(f"rlkd: failed: {sentence}", err=True)
        path = write_scorecard(out)
        if keep is not None:
            copy_tables(out, keep)
            write_scorecard(keep)
        found = read_study(out)
        if figures is not None:
            from rlkd_lab.plots import draw_claims

            draw_claims(found, figures)
        verdicts = judge_claims(found)
        if as_json:
            print_json(
                {
                    "comparisons": comparisons(verdicts).to_dict("records"),
                    "failed": failed,
                    "scorecard": str(path),
                }
            )
        else:
            table = Table(box=None, pad_edge=False)
            for heading in ("", "paper", "claim", "here"):
                table.add_column(heading, overflow="fold")
            for claim, verdict in zip(CLAIMS, verdicts, strict=True):
                table.add_row(
                    str(claim.number),
                    claim.source,
                    escape(claim.text),
                    verdict.outcome + EDGE * verdict.edge,
                )
            console.print(table, "")
            say(f"effects, intervals, seeds, settings and cost: {path}")
        if failed:
            raise typer.Exit(1)


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
    """Ask something of a run that goes on, wherever it was started."""
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


@app.command("runs")
def list_runs(
    folder: Annotated[Path, typer.Argument(help="searched with everything below it")] = Path(
        "runs"
    ),
    as_json: Json = False,
) -> None:
    """The runs in a folder: state, settings that differ, last reward and accuracy."""
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
    """The embedded models: size, accuracy in full precision and NF4."""
    with plain_errors():
        from rlkd_lab.objectives import nearest
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
    """Say in plain words what this machine can do."""
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


if __name__ == "__main__":
    main()
