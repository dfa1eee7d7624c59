"""The token inspector: completions of a run, coloured by what the models and the method make of
each token.

Two forms of the same: widgets, driven by click and by keyboard, and HTML without scripts, which
survives in a saved notebook. Both read the run folder alone.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import anywidget
import ipywidgets
import matplotlib
import numpy as np
import pandas as pd
import traitlets
from IPython.display import HTML, display

from rlkd_lab.lab.driving import Handle
from rlkd_lab.lab.tokens import (
    ARRAYS,
    MARKS,
    Kind,
    TokenArrays,
    Values,
    folder_of,
    token_arrays,
    visible,
)
from rlkd_lab.objectives import nearest
from rlkd_lab.runs import RunFolder

WINDOW = 400
"""Tokens of a completion on screen at once."""
ACROSS = 12
"""Completions of one prompt on screen at once."""
PERCENTILE = 95
LISTED = 8
"""Rows of the table under the static form."""
RANGE_OF: dict[Kind, str] = {"step": "of this step's rollout", "probe": "of the probes shown"}
_PAGE = "background:#fff;color:#111;padding:8px 10px;font:14px/1.5 system-ui,sans-serif"
_TOKEN = (
    "display:inline-block;min-width:8px;box-sizing:border-box;text-align:center;padding:0"
    " 5px;margin:3px 2px;border-radius:3px;"
    "background-clip:padding-box;white-space:pre-wrap;overflow-wrap:anywhere;font:14px/20px"
    " ui-monospace,Menlo,Consolas,monospace;"
    "unicode-bidi:isolate;direction:ltr;"
)
_CELL = (
    "background:#fff;color:#111;border:1px solid #ccc;padding:2px"
    " 8px;text-align:left;vertical-align:top;white-space:pre-wrap"
)
_DEAD = "border:2px dashed #000;text-decoration:line-through 2px;"
_BOUND = "border-bottom:4px double #000;"
_SELECTED = "outline:3px solid #000;outline-offset:1px;"
_SAID = {"dead": "struck through, in a dashed box", "bound": "underlined twice"}


@dataclass(frozen=True)
class _Shown:
    """One completion on screen."""

    step: int
    prompt: int
    sample: int
    of: tuple[int, int]
    """Prompts of the step, samples of the prompt."""
    index: int
    """Its row in the record."""
    data: TokenArrays
    tokens: list[str]

    @property
    def row(self) -> pd.Series:
        return self.data.frame.iloc[self.index]

    def values(self, name: str) -> Values | None:
        return self.data.arrays[name][self.index] if name in self.data.arrays else None

    def marked(self, name: str, position: int) -> bool:
        values = self.values(name)
        return values is not None and bool(values[position])


# --- colours --------------------------------------------------------------------------------------


def _position(name: str, values: Values) -> Values:
    """Values on the axis of the colours: logarithms for a ratio, the values themselves
    otherwise.
    """
    if ARRAYS[name].scale != "ratio":
        return values
    with np.errstate(divide="ignore"):
        return np.log(values)


def colours(name: str, values: Values, limit: float) -> list[tuple[str, str]]:
    """Background and text colour of each value, as #rrggbb. The text is black or white, whichever
    has more contrast: at least 4.5 : 1.

    Args:
        name: of the array: red to blue over white at 0 (of a ratio: at 1), or white to blue.
        values: (T,).
        limit: where the colours end, on the axis of :func:`colour_limit`; a NaN is grey.
    """
    x = np.clip(_position(name, np.asarray(values, dtype=np.float64)) / limit, -1, 1)
    positive = ARRAYS[name].scale == "positive"
    painted = matplotlib.colormaps["Blues" if positive else "RdBu"](
        np.nan_to_num(np.clip(x, 0, 1) if positive else (x + 1) / 2)
    )[:, :3]
    painted[np.isnan(x)] = 0.8
    if not positive:
        painted[x == 0] = 1.0
    linear = np.where(painted <= 0.04045, painted / 12.92, ((painted + 0.055) / 1.055) ** 2.4)
    luminance = linear @ np.array([0.2126, 0.7152, 0.0722])
    text = np.where((luminance + 0.05) ** 2 > 1.05 * 0.05, "#000000", "#ffffff")
    return [
        ("#" + "".join(f"{round(255 * part):02x}" for part in rgb), str(fg))
        for rgb, fg in zip(painted, text, strict=True)
    ]


def colour_limit(name: str, arrays: Iterable[Values]) -> float:
    """Where the colours end: a high percentile of \\|value\\| (of \\|log value\\| for a ratio),
    so that one token cannot make all others pale.
    """
    joined = np.concatenate([np.zeros(0), *(_position(name, values) for values in arrays)])
    sizes = np.abs(joined[np.isfinite(joined)])
    sizes = sizes[sizes > 0]
    if not len(sizes):
        return 1.0
    return float(np.percentile(sizes, PERCENTILE))


def _number(value: float) -> str:
    """Three digits, with a true minus sign."""
    value = value + 0.0  # no −0
    return f"{value:.3g}".replace("-", "−") if np.isfinite(value) else str(value).replace("-", "−")


def _percent(logp: float) -> str:
    """A log-probability as a share in %."""
    share = 100 * float(np.exp(logp))
    return f"{share:.2f} %" if share >= 0.01 else "< 0.01 %"


def _ends(name: str, limit: float) -> tuple[str, str, str]:
    """Values at the left end, the middle and the right end of the colours."""
    scale = ARRAYS[name].scale
    if scale == "ratio":
        return _number(np.exp(-limit)), "1", _number(np.exp(limit))
    return (
        ("0", _number(limit / 2), _number(limit))
        if scale == "positive"
        else (_number(-limit), "0", _number(limit))
    )


def range_sentence(name: str, limit: float, shown: Iterable[Values], where: str) -> str:
    """Where the colours end, and how many of the tokens shown lie beyond: a clipped scale hides
    how far they do.
    """
    beyond = int(sum((np.abs(_position(name, values)) > limit).sum() for values in shown))
    low, _, high = _ends(name, limit)
    ends = {"signed": f"at ±{high}", "positive": f"at {high}", "ratio": f"at {low} and {high}"}[
        ARRAYS[name].scale
    ]
    count = {0: "no token shown lies beyond", 1: "1 token shown lies beyond"}.get(
        beyond, f"{beyond} tokens shown lie beyond"
    )
    return f"Colours end {ends} (the {PERCENTILE}th percentile {where}, zeros aside); {count}."


# --- HTML, all of it escaped ----------------------------------------------------------------------


def _text(value: object) -> str:
    """Any string, escaped, and kept apart from the writing direction around it."""
    return f'<bdi style="unicode-bidi:isolate">{html.escape(str(value))}</bdi>'


def _table(head: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> str:
    # every cell has its own background: a notebook's dark theme paints rows
    above = "".join(
        f'<th style="{_CELL};font-weight:600">{html.escape(name)}</th>' for name in head
    )
    body = "".join(
        "<tr>" + "".join(f'<td style="{_CELL}">{_text(value)}</td>' for value in row) + "</tr>"
        for row in rows
    )
    title = (
        '<caption style="text-align:left;color:#111;background:#fff;padding:2px'
        f' 0;font-weight:600">{html.escape(caption)}</caption>'
        if caption
        else ""
    )
    return (
        '<table style="border-collapse:collapse;margin:4px 0;font:13px/1.4'
        f' system-ui,sans-serif;color:#111">{title}<tr>{above}</tr>{body}</table>'
    )


def _token_style(cell: dict[str, Any]) -> str:
    border = _DEAD if cell["dead"] else "border:1px solid #bbb;"
    return f"{_TOKEN}background-color:{cell['background']};color:{cell['colour']};{border}{_BOUND if cell['bound'] else ''}"


def _tokens_html(block: dict[str, Any], selected: int | None) -> str:
    parts = [
        f'<div style="margin:8px 0 2px;font-weight:600;color:#111">{_text(block["title"])}</div>'
    ]
    for cell in block["cells"]:
        chosen = _SELECTED if cell["at"] == selected else ""
        parts.append(
            f'<span title="{html.escape(cell["label"])}"'
            f' style="{_token_style(cell)}{chosen}">{html.escape(cell["text"])}</span>'
        )
        parts.append("<br>" if cell["breaks"] else "")
    return "".join(parts) + (
        f'<div style="color:#111;font-size:13px">{html.escape(block["window"])}</div>'
        if block["window"]
        else ""
    )


# --- the view of the tokens -----------------------------------------------------------------------


class TokenView(anywidget.AnyWidget):
    """Tokens as buttons: a click or the arrow keys select one.

    What it shows is text, never markup.
    """

    blocks: traitlets.List[Any] = traitlets.List().tag(sync=True)
    """A completion each: title, window, length, and cells as :meth:`Inspector._block` makes
    them.
    """
    selected: traitlets.List[int] = traitlets.List([0, 0]).tag(sync=True)
    """Completion and token."""

    _esm = """
    function render({ model, el }) {
      const root = document.createElement("div");
      root.className = "rlkd-tokens";
      root.tabIndex = -1;
      root.setAttribute("role", "group");
      root.setAttribute("aria-label", "Tokens; the arrow keys move the selection");
      root.setAttribute("data-lm-suppress-shortcuts", "true");
      el.append(root);
      let buttons = [];
      const isSelected = (button) => button.block === model.get("selected")[0] && button.at === model.get("selected")[1];
      function mark(focus) {
        for (const button of buttons) {
          const chosen = isSelected(button);
          button.classList.toggle("rlkd-selected", chosen);
          button.setAttribute("aria-pressed", chosen);
          button.tabIndex = chosen ? 0 : -1;
          if (chosen && focus) button.focus({ preventScroll: false });
        }
      }
      function draw() {
        const focused = root.contains(document.activeElement);
        // A removed button would leave the focus, and the next key, to the notebook.
        if (focused) root.focus();
        root.replaceChildren();
        buttons = [];
        model.get("blocks").forEach((block, number) => {
          const title = document.createElement("div");
          title.className = "rlkd-title";
          title.dir = "ltr";
          title.textContent = block.title;
          root.append(title);
          for (const cell of block.cells) {
            const button = document.createElement("button");
            button.type = "button";
            button.textContent = cell.text;
            button.title = cell.label;
            button.block = number;
            button.at = cell.at;
            button.setAttribute("aria-label", cell.label);
            button.setAttribute("data-lm-suppress-shortcuts", "true");
            button.className = (cell.dead ? "rlkd-dead " : "") + (cell.bound ? "rlkd-bound" : "");
            button.style.backgroundColor = cell.background;
            button.style.color = cell.colour;
            root.append(button);
            buttons.push(button);
            if (cell.breaks) root.append(document.createElement("br"));
          }
          if (block.window) {
            const line = document.createElement("div");
            line.textContent = block.window;
            root.append(line);
          }
        });
        mark(focused);
      }
      function choose(block, at) {
        const length = model.get("blocks")[block].length;
        model.set("selected", [block, Math.max(0, Math.min(length - 1, at))]);
        model.save_changes();
        mark(true);
      }
      function onLine(button, step) {
        // the token nearest in the line above or below, whichever completion that belongs to
        const here = button.getBoundingClientRect(), middle = (here.left + here.right) / 2;
        let best = null, cost = Infinity;
        for (const other of buttons) {
          const box = other.getBoundingClientRect();
          const down = (box.top - here.top) * step;
          if (down < here.height / 2) continue;
          const distance = 1000 * down + Math.abs((box.left + box.right) / 2 - middle);
          if (distance < cost) [best, cost] = [other, distance];
        }
        return best;
      }
      root.addEventListener("click", (event) => {
        const button = event.target.closest("button");
        if (button) choose(button.block, button.at);
      });
      root.addEventListener("keydown", (event) => {
        if (event.key === "Tab" || event.ctrlKey || event.metaKey || event.altKey) return;
        event.stopPropagation();
        const button = buttons.find(isSelected);
        const [block, at] = model.get("selected");
        const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: Infinity };
        if (event.key in moves) choose(block, moves[event.key]);
        else if (button && (event.key === "ArrowUp" || event.key === "ArrowDown")) {
          const other = onLine(button, event.key === "ArrowUp" ? -1 : 1);
          if (other) choose(other.block, other.at);
        } else return;
        event.preventDefault();
      });
      model.on("change:blocks", draw);
      model.on("change:selected", () => mark(root.contains(document.activeElement)));
      draw();
      model.send({ ready: true });
      return () => { model.off("change:blocks", draw); };
    }
    export default { render };
    """
    _css = f"""
    .rlkd-tokens {{ {_PAGE}; max-height: 26em; overflow-y: auto; }}
    .rlkd-tokens .rlkd-title {{ margin: 8px 0 2px; font-weight: 600; overflow-wrap: anywhere; }}
    .rlkd-tokens button {{ {_TOKEN} border: 1px solid #bbb; cursor: pointer; }}
    .rlkd-tokens button.rlkd-dead {{ {_DEAD} }}
    .rlkd-tokens button.rlkd-bound {{ {_BOUND} }}
    .rlkd-tokens button.rlkd-selected {{ {_SELECTED} }}
    .rlkd-tokens button:focus-visible {{ outline: 4px solid #0072B2; outline-offset: 1px; }}
    """

    def __repr__(self) -> str:
        return (
            f"Tokens of {len(self.blocks)} completion{'s' if len(self.blocks) != 1 else ''};"
            " the inspector that shows them says the rest."
        )


# --- the inspector --------------------------------------------------------------------------------


class Inspector:
    """What :func:`inspect_tokens` gives.

    ``widget`` is the box with the controls, ``html()`` the form without them, ``table()`` all
    values.
    """

    def __init__(
        self,
        run: RunFolder | Handle | str,
        step: int | None,
        prompt: int,
        sample: int,
        array: str,
        token: int,
        across: bool,
    ) -> None:
        self.folder = folder_of(run)
        config = self.folder.config()
        self.method, self.weights = str(config.get("method")), dict(config.get("reward", {}))
        self.leaves_out_truncated = bool(config.get("mask_truncated"))
        self._read: dict[tuple[Kind, int], TokenArrays] = {}
        self._first: dict[int, int] = {}
        self._static: Any = None
        self._folded = False
        self._busy = self._across = False
        self.shown: list[_Shown] = []
        self.limit = 1.0
        self._build()
        self._wanted = {"array": array}
        self._load(across, step, prompt - 1, sample - 1)
        self._select(self._block_of(step), token - 1)
        for control in (self.mode, self.step, self.prompt, self.sample, self.array):
            control.observe(self._chosen, "value")
        self.position.observe(self._typed, "value")
        self.view.observe(self._clicked, "selected")
        self.view.on_msg(self._on_message)
        self.previous.on_click(lambda _: self._move(-1))
        self.next.on_click(lambda _: self._move(1))
        self.next_marked.on_click(lambda _: self._next_marked())
        self.look_again.on_click(lambda _: self.refresh())

    # --- what is shown

    @property
    def across(self) -> bool:
        """Whether one prompt is shown at several steps."""
        return self._across

    @property
    def selected(self) -> tuple[int, int]:
        """Number of the completion on screen and of its token, from 0."""
        block, at = self.view.selected
        return block, at

    def _arrays(self, step: int | None, kind: Kind) -> TokenArrays:
        key = (kind, -1 if step is None else step)
        if (
            key not in self._read or "advantage" in self._read[key].missing
        ):  # a row may have come since
            data = token_arrays(self.folder, step, kind=kind)
            if len(self._read) > 2 * ACROSS:
                self._read.clear()
            self._read[key] = self._read[(kind, data.step)] = data
        return self._read[key]

    def _load(self, across: bool, step: int | None, prompt: int, sample: int) -> None:
        """Read the completions to show and set the controls to them, without calling anything
        back.
        """
        kind: Kind = "probe" if across else "step"
        recorded = self.folder.sample_steps(kind)
        steps = [step]
        if across and recorded:
            places = (
                np.linspace(0, len(recorded) - 1, min(ACROSS, len(recorded))).round().astype(int)
            )
            steps = [recorded[i] for i in places]
        sets = [self._arrays(one, kind) for one in steps]
        shown = []
        for data in sets:
            groups = list(range(len(data.frame))) if across else data.frame["group"].tolist()
            order = list(dict.fromkeys(groups))
            prompt_here = min(max(prompt, 0), len(order) - 1)
            members = [i for i, group in enumerate(groups) if group == order[prompt_here]]
            sample_here = min(max(sample, 0), len(members) - 1)
            index = members[sample_here]
            tokens = visible([str(token) for token in data.frame["tokens"].iloc[index]])
            shown.append(
                _Shown(
                    data.step,
                    prompt_here,
                    sample_here,
                    (len(order), len(members)),
                    index,
                    data,
                    tokens,
                )
            )
        one, data = shown[0], sets[0]
        self.shown, self._sets, self._across = shown, sets, across
        self._omitted = len(recorded) - len(sets) if across else 0
        self._first = {}
        groups = list(range(len(data.frame))) if across else data.frame["group"].tolist()
        prompts = [
            str(data.frame["prompt"].iloc[groups.index(group)]) for group in dict.fromkeys(groups)
        ]
        members = [i for i, group in enumerate(groups) if group == groups[one.index]]
        names = [name for name in ARRAYS if name in data.arrays]
        self._busy = True
        try:
            self.mode.value = across
            options: list[tuple[Any, list[tuple[str, Any]], Any]] = [
                (
                    self.step,
                    [(str(i), i) for i in (steps if across else recorded)],
                    step if across and step in steps else data.step,
                ),
                (
                    self.prompt,
                    [(f"{i + 1}: {_short(text)}", i) for i, text in enumerate(prompts)],
                    one.prompt,
                ),
                (
                    self.sample,
                    [
                        (f"{i + 1}: {self._said(data.frame.iloc[row])}", i)
                        for i, row in enumerate(members)
                    ],
                    one.sample,
                ),
                (
                    self.array,
                    [(ARRAYS[name].title, name) for name in names],
                    self._wanted["array"] if self._wanted["array"] in names else names[0],
                ),
            ]
            for control, listed, value in options:
                if control.options != tuple(listed):
                    control.options = listed
                control.value = value
            self.sample.disabled = across
        finally:
            self._busy = False
        self.banner.value = ""

    def _said(self, row: pd.Series) -> str:
        right = "" if row.get("correct") is None else ("right" if row["correct"] else "wrong")
        reward = "" if row.get("reward") is None else f"reward {_number(row['reward'])}"
        return ", ".join(part for part in (right, reward, f"{len(row['ids'])} tokens") if part)

    def _block_of(self, step: int | None) -> int:
        return next(
            (i for i, one in enumerate(self.shown) if one.step == step), len(self.shown) - 1
        )

    def _block(self, number: int) -> dict[str, Any]:
        """One completion as plain data: its title and the cells of the tokens in its window."""
        one, name = self.shown[number], self.array.value
        width = WINDOW if len(self.shown) == 1 else max(100, 3 * WINDOW // len(self.shown))
        total = len(one.tokens)
        first = self._first.get(number, 0)
        last = min(first + width, total)
        values = one.values(name)
        painted = (
            [("#ffffff", "#000000")] * total
            if values is None
            else colours(name, values, self.limit)
        )
        cells = []
        for i in range(first, last):
            marks = {mark: one.marked(mark, i) for mark in MARKS}
            value = "" if values is None else f", {ARRAYS[name].title} {_number(values[i])}"
            label = f"token {i + 1} of {total}: {one.tokens[i]}{value}" + "".join(
                f", {MARKS[mark].partition(':')[0]}" for mark in marks if marks[mark]
            )
            background, colour = painted[i]
            cells.append(
                {
                    "at": i,
                    "text": one.tokens[i],
                    "background": background,
                    "colour": colour,
                    "label": label,
                    "breaks": "⏎" in one.tokens[i],
                    **marks,
                }
            )
        where = (
            f"step {one.step}: "
            if self.across
            else f"step {one.step}, prompt {one.prompt + 1}, sample {one.sample + 1}: "
        )
        window = (
            ""
            if total <= width
            else f"tokens {first + 1}–{last} of {total}: selecting a token outside moves this"
            " window"
        )
        return {
            "title": where + self._said(one.row),
            "cells": cells,
            "window": window,
            "length": total,
        }

    def _window(self, number: int, at: int) -> bool:
        """Move the window of a completion if the token is not in it."""
        width = WINDOW if len(self.shown) == 1 else max(100, 3 * WINDOW // len(self.shown))
        total, first = len(self.shown[number].tokens), self._first.get(number, 0)
        if first <= at < first + width:
            return False
        self._first[number] = max(0, min(at - width // 2, total - width))
        return True

    # --- words

    def __repr__(self) -> str:
        one = self.shown[self.selected[0]]
        what = (
            f"prompt {one.prompt + 1} at steps {', '.join(str(s.step) for s in self.shown)}"
            if self.across
            else f"step {one.step}, prompt {one.prompt + 1}"
        )
        sample = "" if self.across else f", sample {one.sample + 1}"
        return (
            f"Token inspector of {self.folder.path.name}: {what}{sample}, {len(one.tokens)}"
            f" tokens coloured by {ARRAYS[self.array.value].title}."
        )

    def _legend(self) -> str:
        name = self.array.value
        array = ARRAYS[name]
        low, middle, high = _ends(name, self.limit)
        places = np.linspace(0 if array.scale == "positive" else -1, 1, 25) * self.limit
        bar = "".join(
            f'<span style="display:inline-block;width:10px;height:16px;background:{colour}"></span>'
            for colour, _ in colours(
                name, np.exp(places) if array.scale == "ratio" else places, self.limit
            )
        )
        numbers = "".join(f"<span>{html.escape(number)}</span>" for number in (low, middle, high))
        values = [values for one in self.shown if (values := one.values(name)) is not None]
        kind: Kind = "probe" if self.across else "step"
        sentences = [range_sentence(name, self.limit, values, RANGE_OF[kind])]
        if all((np.abs(_position(name, one)) == 0).all() for one in values):
            sentences = [
                "It is 1 at every token shown."
                if array.scale == "ratio"
                else "It is 0 at every token shown."
            ]
        marks = []
        for mark, style in (("dead", _DEAD), ("bound", _BOUND)):
            listed = [found for one in self.shown if (found := one.values(mark)) is not None]
            if listed:
                count, total = (
                    sum(int(found.sum()) for found in listed),
                    sum(len(found) for found in listed),
                )
                swatch = (
                    f'<span style="{_TOKEN}background-color:#fff;color:#000;border:1px solid'
                    f' #bbb;{style}">abc</span>'
                )
                marks.append(
                    f"<div>{swatch} {html.escape(_SAID[mark])}: {html.escape(MARKS[mark])}:"
                    f" {count} of {total} tokens shown.</div>"
                )
        lacking = {
            name: why
            for name, why in self._sets[0].missing.items()
            if self.method == "trrd" or name not in ("trrd_ratio", "bound")
        }
        reasons: dict[str, list[str]] = {}
        for key, why in lacking.items():
            reasons.setdefault(why, []).append(
                ARRAYS[key].title
                if key in ARRAYS
                else {"dead": "dead tokens", "bound": "bounded tokens"}[key]
            )
        absent = "".join(
            f"<div>Not here: {html.escape(', '.join(names))}: {html.escape(why)}.</div>"
            for why, names in reasons.items()
        )
        omitted = (
            f"<div>{len(self.shown)} of {len(self.shown) + self._omitted} recorded steps,"
            " evenly spaced.</div>"
            if self._omitted
            else ""
        )
        return (
            f'<div style="{_PAGE}"><div><b>{html.escape(array.title)}</b>:'
            f" {html.escape(array.formula)}</div>"
            '<div style="display:inline-block;margin:4px 0"><div'
            f' style="display:flex;border:1px solid #111;width:max-content">{bar}</div>'
            "<div"
            f' style="display:flex;justify-content:space-between;font-size:13px">{numbers}</div></div>'
            f"<div>{html.escape(' '.join(sentences))}</div>{''.join(marks)}{omitted}"
            f'<div style="font-size:13px;color:#444">{absent}</div></div>'
        )

    def _reward(self, row: pd.Series) -> str:
        if row.get("reward") is None:
            return "no reward was recorded"
        parts = row.get("parts")
        parts = json.loads(parts) if isinstance(parts, str) else parts
        parts = {name: value for name, value in (parts or {}).items() if value is not None}
        said = f"reward {_number(row['reward'])}"
        if not parts:
            return said + " (its parts were not recorded)"
        weighed = [
            f"{_number(self.weights[name])} × {name} {_number(value)}"
            for name, value in parts.items()
            if self.weights.get(name)
        ]
        others = [
            f"{name} {_number(value)}"
            for name, value in parts.items()
            if not self.weights.get(name)
        ]
        return (
            said
            + (" = " + " + ".join(weighed) if weighed else "")
            + (f" (without weight: {', '.join(others)})" if others else "")
        )

    def _detail(self) -> str:
        """The selected token in numbers: every array, both models' alternatives, the
        completion's reward.
        """
        block, at = self.selected
        one = self.shown[block]
        row = one.row
        values: list[tuple[str, str]] = [
            ("token", one.tokens[at]),
            ("position", f"{at + 1} of {len(one.tokens)}"),
        ]
        if self.across:
            values.append(("step", str(one.step)))
        values += [
            (ARRAYS[name].title, _number(arrays[one.index][at]))
            for name, arrays in one.data.arrays.items()
            if name in ARRAYS
        ]
        for mark in MARKS:
            if one.values(mark) is not None:
                values.append(
                    (mark if mark == "dead" else "bounded", "yes" if one.marked(mark, at) else "no")
                )
        finished = row.get("finished")
        cut = (
            " Cut by the length limit"
            + (", so left out of the loss." if self.leaves_out_truncated else ".")
            if finished is not None and not finished
            else ""
        )
        right = "" if row.get("correct") is None else ("right, " if row["correct"] else "wrong, ")
        head = (
            f'<div style="margin-bottom:4px"><b>Prompt</b> {_text(row["prompt"])}'
            f" <b>answer</b> {_text(row.get('answer'))} · "
            f"{right}{html.escape(self._reward(row))}.{html.escape(cut)}</div>"
        )
        tables = _table(("value", "here"), values, "Selected token")
        beside = "display:flex;flex-wrap:wrap;gap:20px;align-items:flex-start"
        return (
            f'<div style="{_PAGE}">{head}<div'
            f' style="{beside}">{tables}{self._alternatives(one, at)}</div></div>'
        )

    def _alternatives(self, one: _Shown, at: int) -> str:
        caption = "Likeliest tokens here, by probability"
        row, frame = one.row, one.data.frame
        sides: list[list[tuple[str, str]]] = []
        for prefix, column in (("", "logps"), ("teacher_", "teacher_logps")):
            names, logps = row.get(f"{prefix}top_tokens"), row.get(f"{prefix}top_logps")
            if names is None:
                names = row.get(f"{prefix}top_ids")
            listed: list[tuple[str, str]] = []
            if isinstance(names, Sequence | np.ndarray) and isinstance(
                logps, Sequence | np.ndarray
            ):
                shown = visible([str(name) for name in names[at]])
                listed = [
                    (name, _percent(float(logp)))
                    for name, logp in zip(shown, logps[at], strict=True)
                ]
            sampled = row.get(column)
            if isinstance(sampled, Sequence | np.ndarray):
                listed.append((f"sampled: {one.tokens[at]}", _percent(float(sampled[at]))))
            sides.append(listed)
        length = max(len(side) for side in sides)
        filled = [
            [*side[:-1], *[("", "")] * (length - len(side)), *side[-1:]] for side in sides
        ]  # the sampled token stands in the last row
        table = (
            _table(
                ("student", "p", "teacher", "p"),
                [(*ours, *theirs) for ours, theirs in zip(*filled, strict=True)],
                caption,
            )
            if all(sides)
            else (_table(("student", "p"), filled[0], caption) if sides[0] else "")
        )
        if isinstance(row.get("top_logps"), Sequence | np.ndarray):
            return table
        groups = frame["group"].tolist()
        order = list(dict.fromkeys(groups))
        have = [
            f"prompt {order.index(groups[i]) + 1}, sample {i - groups.index(groups[i]) + 1}"
            for i in range(len(frame))
            if "top_logps" in frame
            and isinstance(frame["top_logps"].iloc[i], Sequence | np.ndarray)
        ]
        where = (
            f"this step has them for {'; '.join(have)}" if have else "this step has them for none"
        )
        why = (
            f"The models' other likely tokens were not recorded for this completion: {where}."
            " With “same prompt across steps” every completion has them."
        )
        return f'<div style="max-width:32em">{table}<div>{html.escape(why)}</div></div>'

    # --- drawing

    def _draw(self) -> None:
        """Everything anew, after another choice of completions or colours."""
        name = self.array.value
        self.limit = colour_limit(
            name, [values for data in self._sets for values in data.arrays.get(name, [])]
        )
        self.legend.value = self._legend()
        self.view.blocks = [self._block(i) for i in range(len(self.shown))]

    def _select(self, block: int, at: int, drawn: bool = False) -> None:
        """Go to a token; windows and details follow."""
        block = max(0, min(block, len(self.shown) - 1))
        total = len(self.shown[block].tokens)
        at = max(0, min(at, total - 1))
        self._busy = True
        try:
            moved = self._window(block, at)
            with self.view.hold_sync():
                self.view.selected = [block, at]
                if not drawn:
                    self._draw()
                elif moved:
                    self.view.blocks = [
                        self._block(i) if i == block else old
                        for i, old in enumerate(self.view.blocks)
                    ]
            self.position.max = total
            self.position.value = at + 1
            self.position.description = f"token (of {total})"
            if self.across:
                self.step.value = self.shown[block].step
        finally:
            self._busy = False
        self.detail.value = self._detail()

    def refresh(self) -> None:
        """Look for steps recorded since."""
        block, at = self.selected
        self._try(lambda: self._reload(self.across, self.shown[block].step, at))

    def _reload(self, across: bool, step: int | None, at: int) -> None:
        self._load(across, step, self.prompt.value or 0, self.sample.value or 0)
        self._select(self._block_of(step), at)

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except (FileNotFoundError, ValueError) as error:
            self.banner.value = (
                f'<div role="alert" style="{_PAGE};border-left:6px solid'
                f' #D55E00"><b>Not shown:</b> {_text(error)}. What you see is'
                " unchanged.</div>"
            )
            self._busy = True
            try:
                one = self.shown[self.selected[0]]
                self.mode.value, self.step.value, self.prompt.value, self.sample.value = (
                    self.across,
                    one.step,
                    one.prompt,
                    one.sample,
                )
            finally:
                self._busy = False

    # --- callbacks

    def _chosen(self, change: dict[str, Any]) -> None:
        if self._busy:
            return
        if change["owner"] is self.array:
            self._wanted["array"] = self.array.value
            self._select(*self.selected)
        elif change["owner"] is self.mode:
            self._try(lambda: self._reload(self.mode.value, None, 0))
        elif change["owner"] is self.step and self.across:
            self._select(self._block_of(self.step.value), self.selected[1], drawn=True)
        else:
            self._try(lambda: self._reload(self.across, self.step.value, 0))

    def _typed(self, change: dict[str, Any]) -> None:
        if not self._busy:
            self._select(self.selected[0], int(change["new"]) - 1, drawn=True)

    def _clicked(self, change: dict[str, Any]) -> None:
        if not self._busy:
            block, at = change["new"]
            self._select(block, at, drawn=True)

    def _move(self, by: int) -> None:
        block, at = self.selected
        self._select(block, at + by, drawn=True)

    def _next_marked(self) -> None:
        block, at = self.selected
        one = self.shown[block]
        marked = [i for i in range(len(one.tokens)) if any(one.marked(mark, i) for mark in MARKS)]
        if marked:
            self._select(block, next((i for i in marked if i > at), marked[0]), drawn=True)

    def _on_message(self, _: Any, content: Any, __: Any) -> None:
        # A front end draws the widget: the copy for readers without one folds away.
        if (
            isinstance(content, dict)
            and content.get("ready")
            and self._static is not None
            and not self._folded
        ):
            self._folded = True
            self._static.update(HTML(self.html(folded=True)))

    # --- what a notebook shows

    def _build(self) -> None:
        wide = ipywidgets.Layout(width="auto", min_width="10em", max_width="24em")
        self.mode = ipywidgets.Dropdown(
            options=[("one rollout", False), ("same prompt across steps", True)],
            description="show",
            layout=wide,
        )
        self.step = ipywidgets.Dropdown(description="step", layout=ipywidgets.Layout(width="11em"))
        self.prompt = ipywidgets.Dropdown(description="prompt", layout=wide)
        self.sample = ipywidgets.Dropdown(description="sample", layout=wide)
        self.array = ipywidgets.Dropdown(description="colour by", layout=wide)
        self.position = ipywidgets.BoundedIntText(
            min=1,
            max=10**6,
            description="token",
            continuous_update=False,
            layout=ipywidgets.Layout(width="14em"),
            style={"description_width": "8em"},
        )
        narrow = ipywidgets.Layout(width="auto")
        self.previous = ipywidgets.Button(
            description="◀ previous", tooltip="previous token", layout=narrow
        )
        self.next = ipywidgets.Button(description="next ▶", tooltip="next token", layout=narrow)
        self.next_marked = ipywidgets.Button(
            description="next marked ▶",
            tooltip="next dead or bounded token of this completion",
            layout=narrow,
        )
        self.look_again = ipywidgets.Button(
            description="look for new steps", tooltip="read the run folder again", layout=narrow
        )
        joined = ipywidgets.Layout(margin="0", width="100%")  # one white sheet, in a dark theme too
        self.banner, self.legend, self.detail = (ipywidgets.HTML(layout=joined) for _ in range(3))
        self.view = TokenView(layout=joined)
        flow = ipywidgets.Layout(flex_flow="row wrap", align_items="center")
        self.widget = ipywidgets.VBox(
            [
                ipywidgets.HBox(
                    [self.mode, self.step, self.prompt, self.sample, self.look_again], layout=flow
                ),
                self.banner,
                ipywidgets.HBox(
                    [self.array, self.previous, self.position, self.next, self.next_marked],
                    layout=flow,
                ),
                self.legend,
                self.view,
                self.detail,
            ]
        )

    def html(self, *, folded: bool = False) -> str:
        """What is on screen as HTML without scripts: tokens, legend, the selected token, and
        the tokens where the chosen value is largest.
        """
        block, at = self.selected
        tokens = "".join(
            _tokens_html(self._block(i), at if i == block else None) for i in range(len(self.shown))
        )
        name = self.array.value
        frame = self.table()
        if name in frame:
            size = pd.Series(
                np.abs(_position(name, frame[name].to_numpy(dtype=np.float64))), frame.index
            )
            frame = frame.loc[size.nlargest(LISTED).index]
        named = {**{key: array.title for key, array in ARRAYS.items()}, "bound": "bounded"}
        columns = [
            c for c in frame if c not in ("prompt", "sample") and (c != "step" or self.across)
        ]
        rows = [
            [
                ("yes" if v else "")
                if isinstance(v, bool | np.bool_)
                else _number(v)
                if isinstance(v, float)
                else v
                for v in row
            ]
            for row in frame[columns].itertuples(index=False)
        ]
        table = _table(
            [named.get(str(c), str(c)) for c in columns],
            rows,
            f"The {len(rows)} tokens with the strongest colours, by {ARRAYS[name].title}",
        )
        summary = f"{self!r} The same without widgets, as it was when the cell ran."
        return (
            f'<details{"" if folded else " open"} style="{_PAGE};border:1px solid'
            f' #ccc"><summary style="cursor:pointer">{_text(summary)}</summary>'
            f'{self._legend()}<div style="{_PAGE}">{tokens}</div>{self._detail()}<div'
            f' style="{_PAGE};overflow-x:auto">{table}</div></details>'
        )

    def table(self) -> pd.DataFrame:
        """All values of the completions on screen, a row a token: step, prompt, sample and
        position (from 1), token, arrays and marks.
        """
        parts = []
        for one in self.shown:
            columns: dict[str, Any] = {
                "step": one.step,
                "prompt": one.prompt + 1,
                "sample": one.sample + 1,
            }
            columns |= {"position": range(1, len(one.tokens) + 1), "token": one.tokens}
            parts.append(
                pd.DataFrame(
                    columns | {name: arrays[one.index] for name, arrays in one.data.arrays.items()}
                )
            )
        return pd.concat(parts, ignore_index=True)

    def show(self) -> None:
        """Display the widgets, and below them the form that needs none."""
        bundle = self.widget._repr_mimebundle_() or {}
        display({**bundle, "text/plain": repr(self)}, raw=True)
        self._folded = False
        self._static = display(HTML(self.html()), display_id=True)

    _ipython_display_ = show


def _short(text: str, length: int = 40) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"


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
    """Look at the tokens of a run; the object displays itself at the end of a cell, and ``show()``
    does so elsewhere.

    What the arguments choose is what a reader without a kernel sees; the controls choose anything
    else.

    Args:
        run: a run folder, a handle, or a path; it may still be running.
        step: a recorded step; the last by default.
        prompt: from 1, within the step.
        sample: from 1, within the prompt.
        array: what the tokens are coloured by, a name of :data:`~rlkd_lab.lab.tokens.ARRAYS`; where
            that was not recorded, the first that was.
        token: the selected one, from 1.
        across: the same prompt at all recorded steps, at most :data:`ACROSS`, instead of one
            rollout.

    Raises:
        FileNotFoundError: nothing was recorded, or not at this step.
        ValueError: a damaged file, or an unknown array.
    """
    nearest(array, ARRAYS, "array")
    return Inspector(run, step, prompt, sample, array, token, across)
