"""Which runs belong together: numbered ones beside each other, and settings that differ.

A new run lies beside the old one: ``runs/kdrl``, ``runs/kdrl-2``, ``runs/kdrl-3``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from rlkd_lab.objectives import METHODS
from rlkd_lab.objectives.methods import resolve_options
from rlkd_lab.plots.styles import title_of
from rlkd_lab.runs import RunFolder
from rlkd_lab.runs.compare import flat
from rlkd_lab.study.sides import FREE
from rlkd_lab.training import config_of

NUMBERED = re.compile(r"(.+)-([1-9]\d*)")


def family(path: Path) -> list[Path]:
    """Return a run and the numbered runs beside it, oldest first."""
    match = NUMBERED.fullmatch(path.name)
    first = path
    if match and (path.with_name(match[1]) / "config.json").exists():
        first = path.with_name(match[1])
    later = {}
    for file in first.parent.glob("*/config.json"):
        match = NUMBERED.fullmatch(file.parent.name)
        if match and match[1] == first.name:
            later[int(match[2])] = file.parent
    return [first, *(later[number] for number in sorted(later))]


def place_beside(path: Path) -> Path:
    """Return the folder for the next run beside a run; nothing is there yet."""
    first, number = family(path)[0], 2
    while (place := first.with_name(f"{first.name}-{number}")).exists():
        number += 1
    return place


class Settings(NamedTuple):
    """What a run was trained with."""

    values: dict[str, Any]
    """Every setting by name; one that was not given has its default."""
    own: dict[str, Any]
    """The same, with ``None`` for what a method has by default: its name says that."""
    seed: Any


def settings_of(run: RunFolder) -> Settings:
    """Return the settings of a run, without those in which runs of one kind may differ."""
    try:
        config = config_of(run)
    except ValueError:  # an older format, or a method of another process
        values, seed = _kept(flat(run.config())), run.config().get("seed")
        return Settings(values, values, seed if isinstance(seed, int | None) else repr(seed))
    plain = config.model_copy(update={"knobs": {}, "options": {}})
    chosen, usual = (
        {
            **{name: str(value) for name, value in each.schedules().items()},
            **resolve_options(METHODS[each.method], each.options),
        }
        for each in (config, plain)
    )
    rest = _kept(flat(config.model_dump(exclude={"knobs", "options"})))
    own = {name: None if value == usual[name] else value for name, value in chosen.items()}
    return Settings({**rest, **chosen}, {**rest, **own}, config.seed)


def _kept(values: dict[str, Any]) -> dict[str, Any]:
    left_out = {*FREE, "preset", "format"}
    return {name: value for name, value in values.items() if name.split(".")[0] not in left_out}


def differing(runs: Iterable[Settings]) -> list[str]:
    """Return the names of the settings in which runs differ, the method first.

    A setting that a method does not have is no difference. Nor is one that a run sets to the value
    that another run's method has by default.
    """
    seen: dict[str, tuple[set[str], set[str]]] = {}
    for run in runs:
        for name, value in run.own.items():
            own, used = seen.setdefault(name, (set(), set()))
            own.add(repr(value))
            used.add(repr(run.values[name]))
    names = (name for name, (own, used) in seen.items() if len(own) > 1 and len(used) > 1)
    return sorted(names, key=lambda name: (name != "method", name))


def in_words(run: Settings, names: Iterable[str]) -> str:
    """Return some settings of a run: ``KDRL, kd_coef 0.3``; empty where it has none of them."""
    words = [
        title_of(run.values[name]) if name == "method" else f"{name} {run.values[name]}"
        for name in names
        if name in run.values
    ]
    return ", ".join(words)
