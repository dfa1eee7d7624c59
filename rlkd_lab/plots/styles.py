"""The look of figures: a colour and a line style for each method, names of axes, white figures.

The colours are those of Okabe and Ito, which colour-blind readers can tell apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from rlkd_lab.objectives import METHODS

Style = tuple[str, str]
"""Colour and line style."""

STYLES: dict[str, Style] = {
    "grpo": ("#0072B2", "-"),
    "dr_grpo": ("#0072B2", "--"),
    "dapo": ("#0072B2", ":"),
    "gspo": ("#0072B2", "-."),
    "cispo": ("#56B4E9", "-"),
    "opd": ("#D55E00", "-"),
    "sft": ("#D55E00", "--"),
    "kd_forward": ("#D55E00", ":"),
    "gkd": ("#D55E00", "-."),
    "rft": ("#F0E442", "--"),
    "kdrl": ("#009E73", "-"),
    "kdrl_advantage": ("#009E73", "--"),
    "kdrl_annealed": ("#009E73", ":"),
    "kdrl_masked": ("#009E73", "-."),
    "trrd": ("#CC79A7", "-"),
    "opd_then_rl": ("#E69F00", "-"),
    "srpo": ("#E69F00", "--"),
    "hdpo": ("#E69F00", ":"),
    "rlsd": ("#E69F00", "-."),
}
"""Colour and line style of each method, in every figure."""

AXIS_LABELS: dict[str, str] = {
    "reward": "reward",
    "kl_teacher_rev": "KL(student‖teacher), nats per token",
    "completions/mean_length": "response length, tokens",
    "entropy": "entropy, nats per token",
    "clip_ratio/high": "share of tokens clipped above",
    "clip_ratio/low": "share of tokens clipped below",
    "eval/accuracy": "accuracy, held-out prompts",
    "eval/accuracy_ood": "accuracy, out of distribution",
    "eval/mean_length": "length, held-out prompts, tokens",
    "trrd/dead_frac": "share of tokens that are dead",
    "kl_ref": "KL(student‖reference), nats per token",
    "grad_norm": "gradient norm",
}
"""Labels of the y-axes, by metric."""


def literal(text: object, legend: bool = False) -> str:
    r"""Return a user's text as matplotlib shows it unchanged. It would read ``$…$`` as a formula.

    Args:
        text: a name of a run, an arm, a method, a column or a knob, or a value of one.
        legend: for a legend, which leaves out names that begin with ``_``. They begin with a space
            here.

    >>> literal("5$ to 7$"), literal("_own", legend=True)
    ('5\\$ to 7\\$', ' _own')
    """
    return (" " if legend and str(text).startswith("_") else "") + str(text).replace("$", r"\$")


def style_of(method: str) -> Style:
    """Return the style of a method, or a grey solid line for a method without a style."""
    return STYLES.get(method, ("#555555", "-"))


def line(style: Style, **how: Any) -> dict[str, Any]:
    """Return the arguments of ``axes.plot`` for a line of this style."""
    return {"color": style[0], "linestyle": style[1], **how}


def title_of(method: str) -> str:
    """Return the title of a method, or its name where the table does not have it."""
    return METHODS[method].title if method in METHODS else method


def styles_of(methods: Mapping[str, str]) -> dict[str, Style]:
    """Return a style for each label, given the method of each label.

    The first label of a method has the method's style.
    Further labels of the same colour have darker shades and other line styles.
    """
    taken: dict[str, int] = {}
    styles = {}
    for label, method in methods.items():
        colour, style = style_of(method)
        number = min(taken.get(colour, 0), 3)
        others = [each for each in ("-", "--", ":", "-.") if each != style]
        red, green, blue = (part * (1 - 0.27 * number) for part in to_rgb(colour))
        shade = colour if number == 0 else to_hex((red, green, blue))
        styles[label] = (shade, [style, *others][number])
        taken[colour] = taken.get(colour, 0) + 1
    return styles


def white_figure(width: float, height: float, **how: Any) -> Figure:
    """Return an empty figure with an opaque white background; sizes in inches."""
    figure = Figure(figsize=(width, height), facecolor="white", **how)
    FigureCanvasAgg(figure)
    return figure


def say_empty(axes: Axes, words: str = "not recorded") -> None:
    """Write words into the middle of a panel that has nothing to show."""
    axes.text(0.5, 0.5, words, ha="center", va="center", transform=axes.transAxes, color="#777777")


def legend_entries(panels: list[Axes]) -> dict[str, Any]:
    """Return the legend entries of several panels, label → artist; each label once."""
    entries: dict[str, Any] = {}
    for axes in panels:
        for artist, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, artist)
    return entries
