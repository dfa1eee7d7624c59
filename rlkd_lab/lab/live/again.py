"""Another run beside a run: the same one again, a new seed, another method or other settings.

The new run lies beside the old one: ``runs/kdrl``, ``runs/kdrl-2``, ``runs/kdrl-3``.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import ipywidgets as widgets

from rlkd_lab.objectives import METHODS
from rlkd_lab.training import RunConfig, make_config
from rlkd_lab.training.loop_knobs import LOOP_KNOBS
from rlkd_lab.training.presets import PRESETS

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


def another_config(
    config: RunConfig, method: str, preset: str, seed: int, words: str = ""
) -> RunConfig:
    """Make the config of another run; what was chosen for the first one holds for it too.

    Args:
        config: of the first run.
        method: a key of METHODS. Knobs that it has too keep their values.
        preset: a key of PRESETS.
        seed: of the run.
        words: settings as ``--set`` takes them, with spaces between: ``steps=60 kd_coef=0.3``.

    Raises:
        ValueError: in one sentence.
    """
    plain = make_config(config.method, config.preset)
    apart = ("method", "preset", "seed", "knobs", "options", "moves")
    own = {
        name: getattr(config, name)
        for name in RunConfig.model_fields
        if name not in apart and getattr(config, name) != getattr(plain, name)
    }
    listens = {**METHODS[method].coefs, **LOOP_KNOBS}
    own["knobs"] = {
        name: value
        for name, value in config.knobs.items()
        if name in listens and value != plain.knobs.get(name)
    }
    if method == config.method:
        own["options"] = {**config.options}
    settings = {}
    for word in shlex.split(words):
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"{word!r}: write settings as NAME=VALUE, with spaces between")
        if name in ("steps", "seed"):
            own[name] = value
        else:
            settings[name] = value
    return make_config(method, preset, settings, **{"seed": seed, **own})


class Again:
    """The controls that start another run, and the menu of the runs beside each other.

    Args:
        config: of the run that is shown.
        path: its folder.
        begin: is called with a function that returns the config of the run to start.
        show: is called with the folder of the run to show.
    """

    def __init__(
        self,
        config: RunConfig,
        path: Path,
        begin: Callable[[Callable[[], RunConfig]], None],
        show: Callable[[Path], None],
    ) -> None:
        self.config = config
        self.again = _button(
            "Run again", "repeat", "once the run is over: the same settings and seed"
        )
        self.new_seed = _button("New seed", "random", "once the run is over: the next seed")
        runs = family(path)
        wide = widgets.Layout(width="340px")
        named = {"style": {"description_width": "92px"}, "layout": wide}
        self.shown = widgets.Dropdown(
            options=[(each.name, each) for each in runs],
            value=path,
            description="run",
            tooltip="The run that is shown; the others are faint",
            **named,
        )
        if len(runs) == 1:
            self.shown.layout.display = "none"
        self.method = widgets.Dropdown(
            options=list(METHODS), value=config.method, description="method", **named
        )
        self.preset = widgets.Dropdown(
            options=list(PRESETS), value=config.preset, description="preset", **named
        )
        self.seed = widgets.BoundedIntText(
            value=config.seed, min=0, max=2**31 - 1, description="seed", **named
        )
        self.words = widgets.Text(
            description="settings", placeholder="steps=60 kd_coef=0.3", **named
        )
        self.start = _button("Train it", "play", "in a new folder beside this run")
        menu = widgets.VBox([self.method, self.preset, self.seed, self.words, self.start])
        row = widgets.Layout(flex_flow="row wrap", align_items="center")
        self.widget = widgets.VBox(
            [
                widgets.HBox([self.again, self.new_seed, self.shown], layout=row),
                widgets.Accordion([menu], titles=("another run",), selected_index=None),
            ]
        )
        fresh = {"seed": 1 + max(_seed(each) for each in runs)}
        self.again.on_click(lambda _: begin(lambda: config))
        self.new_seed.on_click(lambda _: begin(lambda: config.model_copy(update=fresh)))
        self.start.on_click(lambda _: begin(self.chosen))
        self.shown.observe(lambda change: show(change.new), "value")

    def chosen(self) -> RunConfig:
        """Return the config that the menus and the settings describe.

        Raises:
            ValueError: a setting is not one.
        """
        method, preset = self.method.value, self.preset.value
        return another_config(self.config, method, preset, self.seed.value, self.words.value)

    def enable(self, allowed: bool) -> None:
        """Let the buttons be pressed, or not while the run is running."""
        for button in (self.again, self.new_seed, self.start):
            if button.disabled == allowed:
                button.disabled = not allowed


def _button(name: str, icon: str, tooltip: str) -> widgets.Button:
    layout = widgets.Layout(width="auto", min_width="92px")
    return widgets.Button(description=name, icon=icon, tooltip=tooltip, layout=layout)


def _seed(path: Path) -> int:
    try:
        return int(json.loads((path / "config.json").read_text(encoding="utf-8"))["seed"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
