"""The widget that shows tokens as buttons, and the styles of tokens."""

from __future__ import annotations

from typing import Any

import anywidget
import traitlets

GROUND = "var(--jp-layout-color0,var(--vscode-editor-background,#fff))"
INK = "var(--jp-content-font-color1,var(--vscode-foreground,#111))"
"""Colours of the page's theme; where there is none, a white sheet."""
PAGE = f"background:{GROUND};color:{INK};padding:8px 10px;font:14px/1.5 system-ui,sans-serif"
TOKEN = (
    "display:inline-block;min-width:8px;box-sizing:border-box;text-align:center;"
    "padding:0 5px;margin:3px 2px;border-radius:3px;background-clip:padding-box;"
    "white-space:pre-wrap;overflow-wrap:anywhere;"
    "font:14px/20px ui-monospace,Menlo,Consolas,monospace;"
    "unicode-bidi:isolate;direction:ltr;"
)
DEAD = f"border:2px dashed {INK};text-decoration:line-through 2px;"
BOUND = f"border-bottom:4px double {INK};"
SELECTED = f"outline:3px solid {INK};outline-offset:1px;"

ESM = """
function render({ model, el }) {
  const root = document.createElement("div");
  root.className = "rlkd-tokens";
  root.tabIndex = -1;
  root.setAttribute("role", "group");
  root.setAttribute("aria-label", "Tokens; the arrow keys move the selection");
  root.setAttribute("data-lm-suppress-shortcuts", "true");
  el.append(root);
  let buttons = [];
  const isSelected = (button) => {
    const [block, at] = model.get("selected");
    return button.block === block && button.at === at;
  };
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
    // A removed button would leave the focus to the notebook, and the next key with it.
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
    // Return the nearest token of the line above or below, in any completion.
    const here = button.getBoundingClientRect();
    const middle = (here.left + here.right) / 2;
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

CSS = f"""
.rlkd-tokens {{ {PAGE}; max-height: 26em; overflow-y: auto; }}
.rlkd-tokens .rlkd-title {{ margin: 8px 0 2px; font-weight: 600; overflow-wrap: anywhere; }}
.rlkd-tokens button {{ {TOKEN} border: 1px solid #bbb; cursor: pointer; }}
.rlkd-tokens button.rlkd-dead {{ {DEAD} }}
.rlkd-tokens button.rlkd-bound {{ {BOUND} }}
.rlkd-tokens button.rlkd-selected {{ {SELECTED} }}
.rlkd-tokens button:focus-visible {{ outline: 4px solid #0072B2; outline-offset: 1px; }}
"""


class TokenView(anywidget.AnyWidget):
    """Tokens as buttons: a click or an arrow key selects one.

    The widget shows token texts as text, never as markup.
    """

    blocks: traitlets.List[Any] = traitlets.List().tag(sync=True)
    """The completions: title, window, length, and cells as ``inspector_html.cells`` makes them."""
    selected: traitlets.List[int] = traitlets.List([0, 0]).tag(sync=True)
    """Number of the completion and of its token, from 0."""

    _esm = ESM
    _css = CSS

    def __repr__(self) -> str:
        many = "s" if len(self.blocks) != 1 else ""
        words = f"Tokens of {len(self.blocks)} completion{many}"
        return f"{words}; the inspector that shows them says the rest."
