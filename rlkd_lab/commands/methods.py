"""Commands about choices before a run: methods, presets, plan."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from rlkd_lab.commands.common import (
    Json,
    app,
    console,
    method_names,
    plain_errors,
    print_json,
    settings_from,
)
from rlkd_lab.commands.settings import print_settings
from rlkd_lab.commands.train import ConfigFile, Method, Preset, Settings
from rlkd_lab.terminal import escape, say


@app.command()
def plan(
    method: Method = None,
    config_file: ConfigFile = None,
    preset: Preset = None,
    set_: Settings = None,
    memory: Annotated[
        float | None, typer.Option(min=0.1, help="GiB of a GPU; what is free here by default")
    ] = None,
    as_json: Json = False,
) -> None:
    """Predict the memory of a run, part by part, before anything is loaded.

    Also prints the micro-batch that fits. The method is kdrl by default.
    """
    with plain_errors("nothing was loaded"):
        from rlkd_lab.models import default_device
        from rlkd_lab.training.before_loading import asked_prompts, check_pair
        from rlkd_lab.training.config_file import asked_config
        from rlkd_lab.training.environment import free_memory
        from rlkd_lab.training.fitting import fitted
        from rlkd_lab.training.plan import GIB
        from rlkd_lab.training.plan import plan as planned

        gpu = memory is not None or default_device().type == "cuda"
        there = memory * GIB if memory is not None else free_memory(default_device())
        chosen = {"method": method or (None if config_file else "kdrl"), "preset": preset}
        config, _ = asked_config(config_file, settings_from(set_), **chosen)
        check_pair(config)
        prompts = asked_prompts(config)
        for sentence in prompts.told:
            say(f"rlkd: warning: {sentence}", err=True)
        whole = planned(config, gpu, prompts.longest)
        fits, least = fitted(config, there, gpu, prompts.longest)
        asked = {name: (getattr(config, name), getattr(fits, name)) for name in MAY_CHANGE}
        if not as_json:
            _print_plan(whole, least, asked, there, gpu)
            return
        print_json(
            {
                "held": least.held,
                "sampling": least.sampling,
                "updating": least.updating,
                "peak": least.peak,
                "as_asked": whole.peak,
                "memory": there,
                "settings": {name: new for name, (_, new) in asked.items()},
            }
        )


MAY_CHANGE = ("sample_at_once", "micro_batch", "logits_mib", "gradient_checkpointing", "dense_copy")
"""Settings that a plan may change so that a run fits."""


def _print_plan(
    whole: Any, least: Any, asked: dict[str, tuple[Any, Any]], there: float, gpu: bool
) -> None:
    """Print a plan part by part, and what it changed."""
    from rlkd_lab.training.plan import CONTEXT, GIB, MARGIN

    table = Table(box=None, pad_edge=False)
    for heading in ("", "part", "memory"):
        table.add_column(heading, justify="right" if heading == "memory" else "left")
    stages = {"all the time": least.held, "sampling": least.sampling, "updating": least.updating}
    for title, parts in stages.items():
        for name, size in parts.items():
            table.add_row(title if name == next(iter(parts)) else "", name, _memory(size))
    console.print(table, "")
    changed = ", ".join(
        f"{name}={new} instead of {'all' if name == 'sample_at_once' and not old else old}"
        for name, (old, new) in asked.items()
        if old != new
    )
    say(
        f"{there / GIB:.1f} GiB of {'GPU' if gpu else 'host'} memory, models in"
        f" {'16 bit' if gpu else 'float32'}: {_memory(least.peak)} at the highest, "
        + (f"with {changed}; as asked it would be {_memory(whole.peak)}" if changed else "as asked")
    )
    held_back = f"{MARGIN - 1:.0%} more" + (f" and {CONTEXT / GIB:g} GiB for CUDA" if gpu else "")
    say(f"a prediction for completions that all run to the limit; {held_back} are kept free")


def _memory(size: float) -> str:
    """Bytes in GiB, or MiB below a tenth of one."""
    return f"{size / 2**30:.2f} GiB" if size >= 0.1 * 2**30 else f"{size / 2**20:.1f} MiB"


@app.command()
def presets(
    name: Annotated[str | None, typer.Argument(help="one preset, in full")] = None,
    as_json: Json = False,
) -> None:
    """List starting settings: the embedded pairs and the papers' settings.

    With a NAME: every number and where it comes from.
    """
    with plain_errors():
        from rlkd_lab.objectives.settings import nearest
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
        str | None, typer.Argument(help="one method, in full", autocompletion=method_names)
    ] = None,
    as_json: Json = False,
) -> None:
    """List the methods with their losses and knobs, then all options and settings.

    With a NAME: that one in full, with its source and what to watch.
    """
    with plain_errors():
        from rlkd_lab.objectives import METHODS
        from rlkd_lab.objectives.settings import nearest

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
    from rlkd_lab.training.loop_knobs import LOOP_DEFAULTS, LOOP_KNOBS

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
    from rlkd_lab.objectives.settings import CHOICES

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
    from rlkd_lab.objectives import METHODS

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
    console.print(
        "Every method also listens to learning_rate and temperature. `rlkd methods NAME` shows one"
        " method in full.\n"
    )
    print_settings()
