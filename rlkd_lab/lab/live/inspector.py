"""The token inspector: completions of a run, coloured by values of their tokens.

It has two forms. Widgets answer to clicks and keys; HTML without scripts stays in a saved
notebook. Both read the run folder alone. This module holds the state and the callbacks;
``inspector_words`` and ``inspector_html`` hold what is said and drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import HTML, display

from rlkd_lab.lab.live import inspector_html
from rlkd_lab.lab.live.completions import Shown, choose, groups_of
from rlkd_lab.lab.live.handle import Handle
from rlkd_lab.lab.live.inspector_widgets import InspectorWidgets
from rlkd_lab.lab.live.inspector_words import completion_words, shorten
from rlkd_lab.lab.live.token_colours import colour_limit
from rlkd_lab.lab.live.token_view import PAGE
from rlkd_lab.lab.live.tokens import (
    ARRAYS,
    MARKS,
    Kind,
    TokenArrays,
    folder_of,
    token_arrays,
)
from rlkd_lab.objectives.settings import nearest
from rlkd_lab.runs import RunFolder

WINDOW = 400
"""Tokens of a completion on screen at once."""
ACROSS = 12
"""Completions of one prompt on screen at once."""


def inspect_tokens(
    run: RunFolder | Handle | str,
    step: int | None = None,
    *,
    prompt: int = 1,
    sample: int = 1,
    array: str = "log_ratio",
    token: int = 1,
    across: bool = False,
) -> Inspector:
    """Show the tokens of a run's recorded completions.

    The object displays itself at the end of a cell; ``show()`` displays it elsewhere.
    A reader without a kernel sees what the arguments choose.

    Args:
        run: a run folder, a handle, or a path; the run may still be running.
        step: a recorded step; the last by default.
        prompt: number of the prompt in its step, from 1.
        sample: number of the completion of its prompt, from 1.
        array: a name of :data:`~rlkd_lab.lab.live.tokens.ARRAYS`, which colours the tokens.
            The first recorded array replaces an array that was not recorded.
        token: number of the selected token, from 1.
        across: show the same prompt at up to :data:`ACROSS` recorded steps.

    Raises:
        FileNotFoundError: nothing was recorded, or not at this step.
        ValueError: a damaged file, or an unknown array.
    """
    nearest(array, ARRAYS, "array")
    inspector = Inspector(run, array)
    inspector.load(across, step, prompt - 1, sample - 1)
    inspector.select(inspector.block_of(step), token - 1)
    inspector.listen()
    return inspector


class Inspector(InspectorWidgets):
    """The object that :func:`inspect_tokens` returns.

    ``widget`` is the box with the controls, ``html()`` the form without them, and
    ``table()`` has all values.
    """

    def __init__(self, run: RunFolder | Handle | str, array: str) -> None:
        super().__init__()
        self.folder = folder_of(run)
        config = self.folder.config()
        self.method, self.weights = str(config.get("method")), dict(config.get("reward", {}))
        self.leaves_out_truncated = bool(config.get("mask_truncated"))
        self.shown: list[Shown] = []
        self.across = False
        """Whether one prompt is shown at several steps."""
        self.limit = 1.0
        self._array_asked = array
        self._cache: dict[tuple[Kind, int], TokenArrays] = {}
        self._sets: list[TokenArrays] = []
        self._first: dict[int, int] = {}
        """First token on screen, by number of the completion."""
        self._omitted = 0
        self._static: Any = None
        self._folded = False
        self._setting = False
        """Whether the program itself is setting controls: callbacks then do nothing."""

    def listen(self) -> None:
        """Connect the controls to their callbacks."""
        for control in (self.mode, self.step, self.prompt, self.sample, self.array):
            control.observe(self._chosen, "value")
        self.position.observe(self._typed, "value")
        self.view.observe(self._clicked, "selected")
        self.view.on_msg(self._on_message)
        self.previous.on_click(lambda _: self._move(-1))
        self.next.on_click(lambda _: self._move(1))
        self.next_marked.on_click(lambda _: self._next_marked())
        self.look_again.on_click(lambda _: self.refresh())

    # --- state ------------------------------------------------------------------------------------

    @property
    def selected(self) -> tuple[int, int]:
        """Number of the completion on screen and of its token, from 0."""
        block, at = self.view.selected
        return block, at

    def block_of(self, step: int | None) -> int:
        """Return the number of the completion of a step, or of the last one on screen."""
        blocks = (i for i, one in enumerate(self.shown) if one.step == step)
        return next(blocks, len(self.shown) - 1)

    def load(self, across: bool, step: int | None, prompt: int, sample: int) -> None:
        """Read the completions to show and set the controls to them.

        Args:
            across: show one prompt at several steps.
            step: a recorded step; ``None`` is the last.
            prompt: number from 0, cut to the range of the step.
            sample: number from 0, cut to the range of the prompt.
        """
        kind: Kind = "probe" if across else "step"
        recorded = self.folder.sample_steps(kind)
        steps = [step]
        if across and recorded:
            places = np.linspace(0, len(recorded) - 1, min(ACROSS, len(recorded)))
            steps = [recorded[i] for i in places.round().astype(int)]
        sets = [self._arrays(one, kind) for one in steps]
        self.shown = [choose(data, across, prompt, sample) for data in sets]
        self._sets, self.across, self._first = sets, across, {}
        self._omitted = len(recorded) - len(sets) if across else 0
        chosen = step if across and step is not None and step in steps else sets[0].step
        shown = {one.step for one in self.shown}  # a run may have recorded one more meanwhile
        self._set_controls(sorted(shown if across else shown.union(recorded)), chosen)
        self.banner.value = ""

    def _arrays(self, step: int | None, kind: Kind) -> TokenArrays:
        key = (kind, -1 if step is None else step)
        # A running step has no row yet, so its advantages may come later.
        if key not in self._cache or "advantage" in self._cache[key].missing:
            data = token_arrays(self.folder, step, kind=kind)
            if len(self._cache) > 2 * ACROSS:
                self._cache.clear()
            self._cache[key] = self._cache[(kind, data.step)] = data
        return self._cache[key]

    def _set_controls(self, steps: list[int], step: int) -> None:
        one, frame = self.shown[0], self._sets[0].frame
        groups = groups_of(frame, self.across)
        prompts = [
            str(frame["prompt"].iloc[groups.index(group)]) for group in dict.fromkeys(groups)
        ]
        members = [i for i, group in enumerate(groups) if group == groups[one.index]]
        samples = [completion_words(frame.iloc[row]) for row in members]
        names = [name for name in ARRAYS if name in self._sets[0].arrays]
        array = self._array_asked if self._array_asked in names else names[0]
        shorts = [shorten(prompt) for prompt in prompts]
        controls: list[tuple[Any, list[tuple[str, Any]], Any]] = [
            (self.step, [(str(i), i) for i in steps], step),
            (self.prompt, [(f"{i + 1}: {words}", i) for i, words in enumerate(shorts)], one.prompt),
            (
                self.sample,
                [(f"{i + 1}: {words}", i) for i, words in enumerate(samples)],
                one.sample,
            ),
            (self.array, [(ARRAYS[name].title, name) for name in names], array),
        ]
        self._setting = True
        try:
            self.mode.value = self.across
            for control, options, value in controls:
                if control.options != tuple(options):
                    control.options = options
                control.value = value
            self.sample.disabled = self.across
        finally:
            self._setting = False

    def select(self, block: int, at: int, drawn: bool = False) -> None:
        """Select a token; windows and details follow.

        Args:
            block: number of the completion.
            at: number of the token, from 0; both are cut to what there is.
            drawn: whether colours and completions are on screen already.
        """
        block = max(0, min(block, len(self.shown) - 1))
        total = len(self.shown[block].tokens)
        at = max(0, min(at, total - 1))
        self._setting = True
        try:
            moved = self._move_window(block, at)
            with self.view.hold_sync():
                self.view.selected = [block, at]
                if not drawn:
                    self._draw()
                elif moved:
                    blocks = list(self.view.blocks)
                    blocks[block] = self._block(block)
                    self.view.blocks = blocks
            self.position.max = total
            self.position.value = at + 1
            self.position.description = f"token (of {total})"
            if self.across:
                self.step.value = self.shown[block].step
        finally:
            self._setting = False
        self.detail.value = self._detail()

    def _width(self) -> int:
        """Return how many tokens of a completion are on screen."""
        return WINDOW if len(self.shown) == 1 else max(100, 3 * WINDOW // len(self.shown))

    def _move_window(self, number: int, at: int) -> bool:
        """Move the window of a completion if the token is outside; return whether it moved."""
        width, first = self._width(), self._first.get(number, 0)
        if first <= at < first + width:
            return False
        total = len(self.shown[number].tokens)
        self._first[number] = max(0, min(at - width // 2, total - width))
        return True

    # --- what is shown ----------------------------------------------------------------------------

    def _draw(self) -> None:
        """Draw everything, after another choice of completions or colours."""
        name = self.array.value
        values = [each for data in self._sets for each in data.arrays.get(name, [])]
        self.limit = colour_limit(name, values)
        self.legend.value = self._legend()
        self.view.blocks = [self._block(i) for i in range(len(self.shown))]

    def _block(self, number: int) -> dict[str, Any]:
        """Return one completion as plain data: title, and the tokens in its window."""
        one, total = self.shown[number], len(self.shown[number].tokens)
        first = self._first.get(number, 0)
        last = min(first + self._width(), total)
        where = f"step {one.step}"
        if not self.across:
            where += f", prompt {one.prompt + 1}, sample {one.sample + 1}"
        window = ""
        if last - first < total:
            outside = "selecting a token outside moves this window"
            window = f"tokens {first + 1}–{last} of {total}: {outside}"
        return {
            "title": f"{where}: {completion_words(one.row)}",
            "cells": inspector_html.cells(one, first, last, self.array.value, self.limit),
            "window": window,
            "length": total,
        }

    def _legend(self) -> str:
        kind: Kind = "probe" if self.across else "step"
        return inspector_html.legend_html(
            self.shown, self.array.value, self.limit, kind, self.method, self._omitted
        )

    def _detail(self) -> str:
        block, at = self.selected
        return inspector_html.detail_html(
            self.shown[block], at, self.across, self.weights, self.leaves_out_truncated
        )

    def __repr__(self) -> str:
        one = self.shown[self.selected[0]]
        if self.across:
            steps = ", ".join(str(each.step) for each in self.shown)
            what = f"prompt {one.prompt + 1} at steps {steps}"
        else:
            what = f"step {one.step}, prompt {one.prompt + 1}, sample {one.sample + 1}"
        coloured = f"{len(one.tokens)} tokens coloured by {ARRAYS[self.array.value].title}"
        return f"Token inspector of {self.folder.path.name}: {what}, {coloured}."

    def html(self, *, folded: bool = False) -> str:
        """Return what is on screen as HTML without scripts.

        It has the tokens, the legend, the selected token and the strongest tokens.
        """
        block, at = self.selected
        tokens = "".join(
            inspector_html.tokens_html(self._block(i), at if i == block else None)
            for i in range(len(self.shown))
        )
        strongest = inspector_html.strongest_html(self.table(), self.array.value, self.across)
        words = f"{self!r} The same without widgets, as it was when the cell ran."
        summary = f'<summary style="cursor:pointer">{inspector_html.text(words)}</summary>'
        state = "" if folded else " open"
        return (
            f'<details{state} style="{PAGE};border:1px solid #8888">{summary}'
            f'{self._legend()}<div style="{PAGE}">{tokens}</div>{self._detail()}'
            f'<div style="{PAGE};overflow-x:auto">{strongest}</div></details>'
        )

    def table(self) -> pd.DataFrame:
        """Return all values of the completions on screen, a row for each token.

        Columns: step, prompt, sample, position (from 1), token, arrays and marks.
        """
        parts = []
        for one in self.shown:
            where = {"step": one.step, "prompt": one.prompt + 1, "sample": one.sample + 1}
            places = {"position": range(1, len(one.tokens) + 1), "token": one.tokens}
            values = {name: arrays[one.index] for name, arrays in one.data.arrays.items()}
            parts.append(pd.DataFrame({**where, **places, **values}))
        return pd.concat(parts, ignore_index=True)

    def show(self) -> None:
        """Display the widgets, and below them the form that needs none."""
        bundle = self.widget._repr_mimebundle_() or {}
        display({**bundle, "text/plain": repr(self)}, raw=True)
        self._folded = False
        self._static = display(HTML(self.html()), display_id=True)

    _ipython_display_ = show

    # --- callbacks --------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Read steps that were recorded since."""
        block, at = self.selected
        self._try(lambda: self._reload(self.across, self.shown[block].step, at))

    def _reload(self, across: bool, step: int | None, at: int) -> None:
        self.load(across, step, self.prompt.value or 0, self.sample.value or 0)
        self.select(self.block_of(step), at)

    def _try(self, action: Callable[[], None]) -> None:
        """Run an action; on an error show it and set the controls back."""
        try:
            action()
        except (FileNotFoundError, ValueError) as error:
            self.banner.value = inspector_html.alert(error)
            one = self.shown[self.selected[0]]
            self._setting = True
            try:
                self.mode.value, self.step.value = self.across, one.step
                self.prompt.value, self.sample.value = one.prompt, one.sample
            finally:
                self._setting = False

    def _chosen(self, change: dict[str, Any]) -> None:
        if self._setting:
            return
        if change["owner"] is self.array:
            self._array_asked = self.array.value
            self.select(*self.selected)
        elif change["owner"] is self.mode:
            self._try(lambda: self._reload(self.mode.value, None, 0))
        elif change["owner"] is self.step and self.across:
            self.select(self.block_of(self.step.value), self.selected[1], drawn=True)
        else:
            self._try(lambda: self._reload(self.across, self.step.value, 0))

    def _typed(self, change: dict[str, Any]) -> None:
        if not self._setting:
            self.select(self.selected[0], int(change["new"]) - 1, drawn=True)

    def _clicked(self, change: dict[str, Any]) -> None:
        if not self._setting:
            block, at = change["new"]
            self.select(block, at, drawn=True)

    def _move(self, by: int) -> None:
        block, at = self.selected
        self.select(block, at + by, drawn=True)

    def _next_marked(self) -> None:
        block, at = self.selected
        one = self.shown[block]
        places = range(len(one.tokens))
        marked = [i for i in places if any(one.marked(mark, i) for mark in MARKS)]
        if marked:
            following = next((i for i in marked if i > at), marked[0])
            self.select(block, following, drawn=True)

    def _on_message(self, _: Any, content: Any, __: Any) -> None:
        """Fold the form without widgets away once a front end has drawn the widgets."""
        ready = isinstance(content, dict) and content.get("ready")
        if ready and self._static is not None and not self._folded:
            self._folded = True
            self._static.update(HTML(self.html(folded=True)))
