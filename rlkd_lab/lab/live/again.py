"""Another run beside a run: the same one again, a new seed, another method or other settings."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import ipywidgets as widgets

from rlkd_lab.lab.live.controls import button, field, row, set_trait
from rlkd_lab.lab.live.family import family
from rlkd_lab.objectives import METHODS
from rlkd_lab.training import RunConfig, make_config
from rlkd_lab.training.loop_knobs import LOOP_KNOBS
from rlkd_lab.training.make_config import split_settings
from rlkd_lab.training.presets import PRESETS


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
    settings = split_settings(shlex.split(words))
    own |= {name: settings.pop(name) for name in ("steps", "seed") if name in settings}
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
        over = "once the run is over: "
        self.again = button("Run again", "repeat", over + "the same settings and seed")
        self.new_seed = button("New seed", "random", over + "the next seed")
        runs = family(path)
        self.shown = field(
            widgets.Dropdown,
            "run",
            options=[(each.name, each) for each in runs],
            value=path,
            tooltip="The run that is shown; the others are faint",
        )
        if len(runs) == 1:
            self.shown.layout.display = "none"
        menu = widgets.Dropdown
        self.method = field(menu, "method", options=list(METHODS), value=config.method)
        self.preset = field(menu, "preset", options=list(PRESETS), value=config.preset)
        self.seed = field(widgets.BoundedIntText, "seed", value=config.seed, min=0, max=2**31 - 1)
        self.words = field(widgets.Text, "settings", placeholder="steps=60 kd_coef=0.3")
        self.start = button("Train it", "play", "in a new folder beside this run")
        form = widgets.VBox([self.method, self.preset, self.seed, self.words, self.start])
        folded = widgets.Accordion([form], titles=("another run",), selected_index=None)
        self.widget = widgets.VBox([row(self.again, self.new_seed, self.shown), folded])
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
        for each in (self.again, self.new_seed, self.start):
            set_trait(each, "disabled", not allowed)


def _seed(path: Path) -> int:
    try:
        return int(json.loads((path / "config.json").read_text(encoding="utf-8"))["seed"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
