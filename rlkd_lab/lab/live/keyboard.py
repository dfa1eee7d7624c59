"""Keep keys inside a panel: with the focus in it, no key reaches the notebook's command mode.

JupyterLab hears a key before any widget does, so a widget cannot stop it in time.
``d d`` on a focused slider would delete the cell.
JupyterLab ignores keys on elements with the attribute ``data-lm-suppress-shortcuts``.
Every element of a panel therefore gets that attribute when the focus enters the panel.
Arrows, Tab, Enter and Space work as on any page.

The script says so where the kernel is busy and what was asked for has to wait.

It also gives slider handles a name and a value for screen readers.
Without it, a logarithmic slider reads its exponent aloud.
"""

from __future__ import annotations

import anywidget
import traitlets

ESM = r"""
const MARK = "data-lm-suppress-shortcuts";
const BUSY = "The kernel is busy. Your request is kept until it has time.";

function speak(handle) {
  const row = handle.closest(".rlkd-knob");
  if (!row) return;
  const shown = row.querySelector(".widget-readout");
  const off = !shown || shown.style.display === "none";
  const text = off ? "off" : String(Number(shown.textContent));
  if (handle.getAttribute("aria-valuetext") !== text) handle.setAttribute("aria-valuetext", text);
  const label = row.querySelector("label");
  if (!label || handle.hasAttribute("aria-label")) return;
  handle.setAttribute("aria-label", label.textContent);
}

function render({ model, el }) {
  el.style.display = "none";
  el.setAttribute("role", "status");
  // A question goes after every request: a busy kernel answers late.
  let waiting = 0;
  const answered = () => {
    clearTimeout(waiting);
    el.style.display = "none";
  };
  const ask = (event) => {
    const panel = event.target instanceof Element && event.target.closest(".rlkd-panel");
    if (!panel || panel !== el.closest(".rlkd-panel")) return;
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      el.textContent = BUSY;
      el.style.display = "";
    }, 1000);
    model.send({ kind: "there?" });
  };
  model.on("msg:custom", answered);
  const watched = new WeakSet();
  const speakAll = (changes) => changes.forEach((change) => speak(change.target));
  const observer = new MutationObserver(speakAll);
  // A button that is switched off would drop the focus, and keys would reach the notebook.
  const keepFocus = (changes) => changes.forEach(({ target }) => {
    if (!target.disabled || target !== document.activeElement) return;
    target.closest(".rlkd-panel")?.focus({ preventScroll: true });
  });
  const buttons = new MutationObserver(keepFocus);
  const prepare = (panel) => {
    panel.tabIndex = -1; // a click beside a control focuses the panel and not the cell
    panel.style.outline = "none";
    buttons.observe(panel, { attributes: true, attributeFilter: ["disabled"], subtree: true });
    panel.setAttribute(MARK, "true");
    panel.querySelectorAll("*").forEach((node) => node.setAttribute(MARK, "true"));
    panel.querySelectorAll(".noUi-handle").forEach((handle) => {
      speak(handle);
      if (watched.has(handle)) return;
      watched.add(handle);
      observer.observe(handle, { attributes: true, attributeFilter: ["aria-valuetext"] });
    });
  };
  const inside = (event) => {
    const panel = event.target instanceof Element && event.target.closest(".rlkd-panel");
    if (!panel) return;
    prepare(panel);
    const row = event.target.closest(".rlkd-knob");
    const classes = row ? [...row.classList] : [];
    const name = classes.find((one) => one.startsWith("rlkd-knob-"));
    model.set("focused", name ? name.slice(10) : "");
    model.save_changes();
  };
  const left = (event) => {
    if (!event.target.closest(".rlkd-knob")) return;
    if (event.relatedTarget && event.relatedTarget.closest(".rlkd-knob")) return;
    model.set("focused", "");
    model.save_changes();
  };
  const pressed = (event) => {
    const panel = event.target instanceof Element && event.target.closest(".rlkd-panel");
    if (panel) prepare(panel);
  };
  document.addEventListener("click", ask);
  document.addEventListener("change", ask);
  document.addEventListener("focusin", inside, true);
  document.addEventListener("focusout", left, true);
  document.addEventListener("pointerdown", pressed, true);
  const first = setTimeout(() => {
    const panel = el.closest(".rlkd-panel");
    if (panel) prepare(panel);
  }, 500);
  return () => {
    clearTimeout(first);
    clearTimeout(waiting);
    model.off("msg:custom", answered);
    document.removeEventListener("click", ask);
    document.removeEventListener("change", ask);
    observer.disconnect();
    buttons.disconnect();
    document.removeEventListener("focusin", inside, true);
    document.removeEventListener("focusout", left, true);
    document.removeEventListener("pointerdown", pressed, true);
  };
}

export default { render };
"""

CSS = """
.rlkd-panel.jupyter-widgets-disconnected > * { display: none; }
.rlkd-panel.jupyter-widgets-disconnected::before {
  content: "This panel has lost its kernel. Run this cell again: the run folder has everything.";
  padding: 4px 10px;
  border-left: 4px solid var(--jp-warn-color1, #c77700);
}
.rlkd-panel .widget-html-content { min-width: 0; overflow-x: auto; }
.rlkd-panel small { display: inline-block; line-height: 1.35; }
"""


class KeyboardGuard(anywidget.AnyWidget):
    """An invisible widget for a box with the class ``rlkd-panel``.

    ``focused`` names the knob whose control has the focus, or is empty.
    """

    _esm = ESM
    _css = CSS
    focused = traitlets.Unicode("").tag(sync=True)

    def __init__(self) -> None:
        super().__init__()
        self.on_msg(lambda *_: self.send({"kind": "here"}))

    def __repr__(self) -> str:
        return "The keyboard guard of a panel."
