"""The keyboard guard: with the focus in a panel, no key reaches the notebook's command mode.

JupyterLab listens on the document before any widget hears a key, so that stopping the event comes
too late: ``d d`` on a focused slider deletes the cell. But it leaves alone an element that carries
``data-lm-suppress-shortcuts``, and it asks the focused element first. So every element of a panel
gets the mark when the focus enters it, which is before the key. Arrows, Tab, Enter and Space keep
doing what they do in any page.

The same few lines give slider handles a name and a value that a screen reader can say: without them
a logarithmic slider reads its exponent.
"""

from __future__ import annotations

import anywidget
import traitlets

ESM = r"""
const MARK = "data-lm-suppress-shortcuts";

function speak(handle) {
  const row = handle.closest(".rlkd-knob");
  if (!row) return;
  const shown = row.querySelector(".widget-readout");
  const off = !shown || shown.style.display === "none";
  const text = off ? "off" : String(Number(shown.textContent));
  if (handle.getAttribute("aria-valuetext") !== text) handle.setAttribute("aria-valuetext", text);
  const label = row.querySelector("label");
  if (label && !handle.hasAttribute("aria-label")) handle.setAttribute("aria-label", label.textContent);
}

function render({ model, el }) {
  el.style.display = "none";
  const watched = new WeakSet();
  const observer = new MutationObserver((changes) => changes.forEach((change) => speak(change.target)));
  const prepare = (panel) => {
    panel.tabIndex = -1; // a click beside a control focuses the panel and not the cell
    panel.style.outline = "none";
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
    const name = row ? [...row.classList].find((one) => one.startsWith("rlkd-knob-")) : undefined;
    model.set("focused", name ? name.slice(10) : "");
    model.save_changes();
  };
  const left = (event) => {
    if (!event.target.closest(".rlkd-knob") || (event.relatedTarget && event.relatedTarget.closest(".rlkd-knob"))) return;
    model.set("focused", "");
    model.save_changes();
  };
  const pressed = (event) => {
    const panel = event.target instanceof Element && event.target.closest(".rlkd-panel");
    if (panel) prepare(panel);
  };
  document.addEventListener("focusin", inside, true);
  document.addEventListener("focusout", left, true);
  document.addEventListener("pointerdown", pressed, true);
  const first = setTimeout(() => { const panel = el.closest(".rlkd-panel"); if (panel) prepare(panel); }, 500);
  return () => {
    clearTimeout(first);
    observer.disconnect();
    document.removeEventListener("focusin", inside, true);
    document.removeEventListener("focusout", left, true);
    document.removeEventListener("pointerdown", pressed, true);
  };
}

export default { render };
"""


class Guard(anywidget.AnyWidget):
    """Invisible; stands in a box with the class ``rlkd-panel``.

    ``focused`` names the knob whose control has the focus, or is empty.
    """

    _esm = ESM
    focused = traitlets.Unicode("").tag(sync=True)

    def __repr__(self) -> str:
        return "The keyboard guard of a panel."
