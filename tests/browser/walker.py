"""A person who does anything in any order: drags, types, presses, reloads, restarts, interrupts.

After a walk the panel and the run folder must say the same.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from in_browser import Lab, until, write_notebook

from rlkd_lab.lab.live.curve_data import APART, move_labels, number
from rlkd_lab.lab.live.handle import Handle
from rlkd_lab.lab.live.history import History
from rlkd_lab.lab.live.knob_widgets import KnobWidget, knobs_of
from rlkd_lab.lab.live.panel_texts import TABLE, state_words
from tests.short import SHORT

sync_api = pytest.importorskip("playwright.sync_api", reason="a walk needs playwright")
TINY: dict[str, Any] = {
    "steps": 60,
    "prompts_per_step": 2,
    "group_size": 2,
    "max_new_tokens": 8,
    "eval_every": 0,
    "samples_every": 0,
    "checkpoint_every": 20,
    **SHORT,
}
TYPED = ("0.3", "0,02", "0", "1e-3", "off", "99999", "-1", "nonsense", "", "0.05")
LONG = 50
"""Actions of a walk that restarts the kernel too: that takes as long as thirty others."""
BUTTONS = (
    *("Start", "Pause", "Continue", "Step", "Stop", "Checkpoint", "Run again", "New seed"),
    *("Undo", "To its schedule"),
)
LIVE = """() => [...document.querySelectorAll('.rlkd-panel')].map((panel, at) => [panel, at])
  .filter(([panel]) => panel.offsetParent !== null && panel.querySelector('.rlkd-knob')
    && !panel.classList.contains('jupyter-widgets-disconnected')
    && !panel.textContent.includes('This panel is closed')).map(([, at]) => at)"""
SAID = """(panel) => {
  const words = (one) => (one ? one.textContent.trim() : '');
  const menu = [...panel.querySelectorAll('.widget-dropdown')]
    .find((one) => words(one.querySelector('label')) === 'run').querySelector('select');
  const knobs = [...panel.querySelectorAll('.rlkd-knob')].map((one) =>
    [[...one.classList].find((name) => name.startsWith('rlkd-knob-')).slice(10),
     words(one.querySelector('b'))]);
  return {
    run: menu.options[menu.selectedIndex].text,
    words: words(panel.querySelector('.widget-html')),
    caption: words(panel.querySelector('.rlkd-curves .caption')),
    readout: words(panel.querySelector('.rlkd-curves .readout')),
    table: [...panel.querySelectorAll('tr:has(th) + tr td')].map(words),
    knobs: Object.fromEntries(knobs),
  };
}"""


class Walker:
    """A walk through one notebook.

    Args:
        lab: the browser.
        place: of the run; runs beside it follow.
        seed: of the walk.
        drive: ``start`` or ``launch``.
    """

    def __init__(self, lab: Lab, place: Path, seed: int, drive: str) -> None:
        self.lab, self.page, self.place = lab, lab.page, place
        self.random, self.done = random.Random(seed), [f"seed {seed}, {drive}"]
        self.complaints: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.sources = [
            f"from rlkd_lab.lab import {drive}, panel\n"
            "from rlkd_lab.training import make_config\n"
            f"run = {drive}(make_config('kdrl', **{TINY!r}), {str(place)!r})\npanel(run)",
            "panel(run)",
        ]
        write_notebook(lab.folder / f"walk-{seed}.ipynb", *self.sources)
        lab.open(f"walk-{seed}.ipynb")
        self.run_cell(0)
        until(self.find, 120)

    # --- what is there ----------------------------------------------------------------------------

    def live(self) -> list[int]:
        """The places of the panels that can be used."""
        return self.page.evaluate(LIVE)

    def find(self) -> list[int]:
        """The same; JupyterLab draws no cell that is far from the window."""
        for place in (0, 10**6):
            if live := self.live():
                return live
            outer = "document.querySelector('.jp-WindowedPanel-outer')"
            self.page.evaluate(f"{outer}?.scrollTo(0, {place})")
            self.page.wait_for_timeout(2_000)
        return self.live()

    @property
    def panel(self) -> Any:
        return self.page.locator(".rlkd-panel").nth(until(self.find, 60)[-1])

    def said(self) -> dict[str, Any]:
        """What the panel says."""
        return self.panel.evaluate(SAID)

    def shown(self) -> Path:
        """The run that the panel shows."""
        return self.place.with_name(self.said()["run"])

    # --- what a person does -----------------------------------------------------------------------

    def walk(self, actions: int) -> None:
        """Do so many things."""
        kinds: list[tuple[int, Callable[[], str]]] = [
            (6, self.drag),
            (6, self.type),
            (9, self.press),
            (3, self.key),
            (1, self.choose),
            (2, self.wait),
            (2, self.interrupt),
            (1, self.second),
            (1, self.reload),
            (1 if actions >= LONG else 0, self.restart),
        ]
        weights, acts = zip(*kinds, strict=True)
        for _ in range(actions):
            until(self.find, 60)
            (act,) = self.random.choices(acts, weights)
            self.done.append(f"{act.__name__} …")
            try:
                self.done[-1] = f"{act.__name__} {act()}"
            except sync_api.TimeoutError:  # a control that died under the hand
                assert act in (self.press, self.type, self.key), self.done

    def drag(self) -> str:
        handle = self.panel.locator(".rlkd-knob .noUi-handle").first
        if not handle.is_visible() or not (box := handle.bounding_box()):
            return "nothing"
        handle.scroll_into_view_if_needed()
        box = handle.bounding_box() or box
        self.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        self.page.mouse.down()
        by = self.random.randint(-60, 60)
        self.page.mouse.move(box["x"] + by, box["y"] + 3, steps=3)
        self.page.mouse.up()
        return f"by {by}"

    def type(self) -> str:
        box = self.panel.locator(".rlkd-knob input[type=text]").first
        if not box.is_enabled():
            return "nothing"
        words = self.random.choice(TYPED)
        box.fill(words, timeout=2_000)
        box.press("Enter" if self.random.random() < 0.7 else "Tab", timeout=2_000)
        return repr(words)

    def press(self) -> str:
        name = self.random.choice(BUTTONS)
        button = self.panel.locator(f"button:text-is('{name}')").first
        if not button.count() or not button.is_enabled():
            return f"{name}: it is dead"
        button.click(timeout=2_000)
        return name

    def key(self) -> str:
        handle = self.panel.locator(".rlkd-knob .noUi-handle").first
        key = self.random.choice(("ArrowRight", "ArrowLeft", "d", "Home", "x"))
        handle.press(key, timeout=2_000)
        return key

    def choose(self) -> str:
        menu = self.panel.locator(".widget-dropdown:has-text('more curves') select").first
        group = self.random.choice(("none", "entropy", "accuracy"))
        menu.select_option(label=group)
        return group

    def wait(self) -> str:
        seconds = self.random.random() * 2
        self.page.wait_for_timeout(1000 * seconds)
        return f"{seconds:.1f} s"

    def menu(self, name: str, command: str) -> None:
        self.page.click(f".lm-MenuBar-itemLabel:text-is('{name}')")
        self.page.click(f"li[data-command='{command}']")

    def interrupt(self) -> str:
        self.menu("Kernel", "kernelmenu:interrupt")
        return ""

    def run_cell(self, number: int) -> None:
        self.page.locator(".jp-NotebookPanel .jp-CodeCell .jp-InputArea .cm-content").nth(
            number
        ).click()
        self.page.keyboard.press("Control+Enter")
        self.page.keyboard.press("Escape")

    def second(self) -> str:
        self.run_cell(1)
        self.page.wait_for_timeout(500)
        prompts = self.page.locator(".jp-NotebookPanel .jp-InputPrompt")
        until(lambda: "*" not in "".join(prompts.all_inner_texts()), 60)  # its output is there
        until(lambda: len(self.find()) == 1, 60)
        return ""

    def reload(self) -> str:
        self.lab.saved()
        self.page.reload()
        self.page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=90_000)
        until(self.find, 90)
        return ""

    def restart(self) -> str:
        self.menu("Kernel", "kernelmenu:restart")
        self.page.click(".jp-Dialog button:has-text('Restart')")
        until(lambda: not self.live(), 60)
        self.page.wait_for_selector("text=Python 3 (ipykernel) | Idle", timeout=90_000)
        self.run_cell(0)
        until(self.find, 120)
        return ""

    # --- whether panel and folder agree -----------------------------------------------------------

    def rest(self) -> None:
        """Let every run come to rest, and wait until the page has heard all."""
        family = [self.place, *self.place.parent.glob(f"{self.place.name}-*")]
        for path in family:
            run = Handle(path)
            if run.status().state in ("running", "stopping"):
                run.folder.ask("pause")
            until(lambda run=run: run.status().state not in ("running", "stopping"), 60)

    def check(self) -> None:
        """Assert that panel and folder agree, and that the notebook is whole."""
        self.rest()
        found: list[str] = []

        def agree() -> bool:
            found[:] = self.disagreements()
            return not found

        try:
            until(agree, 30)
        except AssertionError:
            raise AssertionError("\n".join([*found, *self.done])) from None
        labels = self.labels()
        assert labels[0] == labels[1], "\n".join(map(str, [*labels, *self.done]))
        assert self.complaints == [], self.done
        assert self.lab.cells() == self.sources, self.done

    def disagreements(self) -> list[str]:
        """What the panel says otherwise than the folder."""
        live = self.find()
        if len(live) != 1:
            return [f"{len(live)} panels are alive"]
        said, place = self.said(), self.shown()
        run, history = Handle(place), History(place)
        history.read()
        status, rows = run.status(), run.folder.rows()
        step, last = len(rows), rows[-1] if rows else {}
        moves = history.moves
        found = [
            f"step {move['step']} has {move['knob']} {coefficient(row, move['knob'])}, not {move}"
            for move in {(one["step"], one["knob"]): one for one in moves}.values()
            if not move.get("release") and move["step"] <= step
            for row in [rows[move["step"] - 1]]
            if coefficient(row, move["knob"]) != move["value"]
        ]
        wanted = {
            "words": (state_words(status, None), f"step {step} of {status.steps}"),
            "caption": (f"step {step} of {status.steps}" if step else "no step yet",),
            "readout": (f"step {step}: ", alone(last["reward"])) if step else (),
        }
        for where, parts in wanted.items():
            found += [
                f"{where}: {part!r} not in {said[where]!r}"
                for part in parts
                if part not in said[where]
            ]
        measured = [[row[name] for row in rows if row.get(name) is not None] for _, name in TABLE]
        values = [number(each[-1]) for each in measured if each]  # some are not measured every step
        found += [f"table: {said['table']} not {values}"] * (said["table"] != values)
        return found + self.knobs(run, history, said["knobs"])

    def knobs(self, run: Handle, history: History, said: dict[str, str]) -> list[str]:
        found = []
        waiting = unanswered(run, history)
        for name in knobs_of(run.config.method):
            fresh = KnobWidget(run, name)
            fresh.follow(history)
            words, now = said.get(name, "nothing"), fresh.sentence()
            asked = re.match(r"asked for .+: acts on the next step \(now (.+?)\)", words)
            if asked and (asked[1] != number(fresh.applied) or name not in waiting):
                found.append(f"{name}: {words!r}, not {now!r}; waiting are {waiting}")
            if not asked and (not words.startswith(now) or name in waiting):
                found.append(f"{name}: {words!r}, not {now!r}; waiting are {waiting}")
        return found

    def labels(self) -> tuple[list[str], list[str]]:
        """The words of moves in the drawing, and those that the folder has."""
        history = History(self.shown())
        history.read()
        steps = [history.step]
        beside = self.place.parent.glob(f"{self.place.name}*/metrics.jsonl")
        steps += [len(other.read_bytes().splitlines()) for other in beside]
        wanted = move_labels(history.moves, max(10, *steps) * APART[0])[-8:]
        with self.page.expect_download() as got:
            self.panel.locator(".rlkd-curves button:text-is('SVG')").first.click()
        svg = Path(got.value.path()).read_text(encoding="utf-8")
        drawn = re.findall(r"rotate\(-90[^>]*>([^<]*)<", svg)
        return drawn[: len(wanted)], [words for _, words in wanted]

    def leave(self) -> None:
        """End every process of the walk."""
        self.rest()
        for path in [self.place, *self.place.parent.glob(f"{self.place.name}-*")]:
            run = Handle(path)
            if run.status().state == "paused":
                run.stop()
                until(lambda run=run: run.status().state != "stopping", 60)
        self.menu("Kernel", "kernelmenu:shutdown")


def coefficient(row: dict[str, Any], knob: str) -> Any:
    return row.get(knob if knob == "learning_rate" else f"coef/{knob}")


def alone(value: float) -> str:
    """A value as the page writes it: three digits, and a true minus sign."""
    return f"this step alone {float(f'{value:.3g}'):g}".replace("-", "−")


def unanswered(run: Handle, history: History) -> set[str]:
    """Knobs with a request that has no answer yet."""
    answered = {event.get("id") for event in history.events}
    lines = (run.path / "requests.jsonl").read_text(encoding="utf-8").splitlines()
    asked = [json.loads(line) for line in lines]
    return {one["knob"] for one in asked if "knob" in one and one["id"] not in answered}
