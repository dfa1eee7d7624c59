"""Writes docs/reference/commands.md and settings.md from the command line and the config.

python docs/reference_pages.py
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer
from method_pages import table

from rlkd_lab.commands import app
from rlkd_lab.commands.settings import FIRST, GROUPS
from rlkd_lab.objectives.settings import CHOICES, KNOBS
from rlkd_lab.training.config import RunConfig
from rlkd_lab.training.loop_knobs import LOOP_DEFAULTS, LOOP_KNOBS

FOLDER = Path(__file__).parent / "reference"
NOTE = "<!-- Written by docs/reference_pages.py; a test holds it up to date. -->\n"


def cell(text: object) -> str:
    """Return a text as one cell of a Markdown table, without the terminal's colours."""
    plain = re.sub(r"\[/?(bold|dim)?\]", "", str(text))
    return " ".join(plain.replace("|", "\\|").replace("<", "&lt;").split())


def command_page(name: str, command: Any) -> str:
    """Return a command's section: help, usage, arguments and options."""
    rows = []
    for each in command.params:
        if each.name == "help":
            continue
        default = (
            "" if each.default in (None, False, (), []) or callable(each.default) else each.default
        )
        is_option = each.param_type_name == "option"
        shown = each.opts[0] if is_option else (each.metavar or each.name.upper())
        need = "required" if each.required else cell(default)
        rows.append([f"`{shown}`", need, cell(each.help or "")])
    text = f"## rlkd {name}\n\n{cell(command.help)}\n"
    return text + ("\n" + table(("", "default", "what it does"), *rows) + "\n" if rows else "")


def commands() -> str:
    """Return the page of the command line."""
    group: Any = typer.main.get_command(app)
    parts = [command_page(name, command) for name, command in group.commands.items()]
    intro = (
        "# Command line\n\nEvery command with its arguments. `rlkd COMMAND --help` says the same.\n"
    )
    return "\n".join([NOTE, intro, *parts])


def setting_row(name: str) -> list[str]:
    """Return name, default and meaning of a setting, an option or a knob of the loop."""
    if name in CHOICES:
        return [f"`{name}`", "the method's", cell(" | ".join(map(str, CHOICES[name])))]
    if name in LOOP_KNOBS:
        knob = LOOP_KNOBS[name]
        span = f"{knob.help}; a knob, {knob.low:g}–{knob.high:g}"
        return [f"`{name}`", f"{LOOP_DEFAULTS[name]:g}", cell(span)]
    field = RunConfig.model_fields[name]
    default = "" if field.default in (None, {}) else field.default
    return [f"`{name}`", cell(default), cell(field.description)]


def settings() -> str:
    """Return the page of the settings, options and knobs."""
    parts = [
        NOTE,
        "# Settings\n\nGive any of them as `--set NAME=VALUE`. The first ten matter first.\n",
    ]
    for title, names in {"first": list(FIRST), **GROUPS}.items():
        parts.append(f"## {title.capitalize()}\n")
        rows = [setting_row(name) for name in names]
        parts.append(table(("name", "default", "meaning"), *rows) + "\n")
    parts.append(
        "## Knobs of the methods\n\nA knob may move while a run trains. It takes a number, `off` or"
        " a [schedule](../start.md#settings). Each [method](../methods.md) has some of them.\n"
    )
    knobs = [
        [
            f"`{name}`",
            f"{knob.low:g}–{knob.high:g}{' or off' if knob.optional else ''}",
            cell(knob.help),
        ]
        for name, knob in KNOBS.items()
    ]
    parts.append(table(("name", "range", "meaning"), *knobs) + "\n")
    return "\n".join(parts)


PAGES = {"commands.md": commands, "settings.md": settings}

if __name__ == "__main__":
    for file, page in PAGES.items():
        (FOLDER / file).write_text(page(), encoding="utf-8")
