"""The look of figures: print sizes, a colour and a dash for each method, names of axes.

Colours are those of Okabe and Ito, with dark and light shades.
Two methods with one dash differ in lightness, so a grey print tells them apart.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from rlkd_lab.objectives import METHODS

FULL, HALF = 7.0, 3.4
"""Widths of a printed page and of a column, in inches."""

PRINT: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, so every system has it
    "font.size": 8,  # of titles: 9.6
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,
    "svg.hashsalt": "rlkd_lab",  # without it the bytes would differ each time
}
DOTS_RIGHT = "dots on the right"
"""Marks a line whose seeds stand right of it: names at line ends keep clear of them."""
in_print = matplotlib.rc_context(PRINT)
"""Decorates a function that draws or writes a figure: the print style holds within it."""

Dash = str | tuple[float, tuple[float, ...]]
Style = tuple[str, Dash]
"""Colour and line style."""
DOTTED = (0.0, (7.0, 1.5, 1.0, 1.5, 1.0, 1.5))
"""A dash and two dots."""

STYLES: dict[str, Style] = {
    "grpo": ("#0072B2", "-"),
    "dr_grpo": ("#004E7A", "--"),
    "dapo": ("#56B4E9", ":"),
    "gspo": ("#00324F", "-."),
    "cispo": ("#C3DB63", "-"),
    "opd": ("#D55E00", ":"),
    "sft": ("#4D2A0C", "-"),
    "rft": ("#96663D", "--"),
    "kd_forward": ("#8C8C2E", "-"),
    "gkd": ("#1A1A1A", "--"),
    "kdrl": ("#009E73", "--"),
    "kdrl_advantage": ("#005A41", "-"),
    "kdrl_annealed": ("#004D37", ":"),
    "kdrl_masked": ("#007E5C", "-."),
    "opdvr": ("#FA8D3E", "--"),
    "grpd": ("#EB9F8E", "-."),
    "exopd": ("#F8C271", ":"),
    "vopd": ("#552204", "--"),
    "opsa": ("#292929", ":"),
    "iwopd": ("#3B1500", DOTTED),
    "poweropd": ("#5C2A00", DOTTED),
    "reopold": ("#7F3D12", DOTTED),
    "safopd": ("#007657", DOTTED),
    "sdar": ("#2C9274", DOTTED),
    "rgopd": ("#DB8B4F", DOTTED),
    "eopd": ("#F4AA7A", DOTTED),
    "aopd": ("#FAD2B8", DOTTED),
    "trrd": ("#CC79A7", "-."),
    "luffy": ("#2F0033", "-"),
    "chord": ("#E0C6F2", "-."),
    "opd_then_rl": ("#E69F00", "-"),
    "srpo": ("#DCCB3A", "--"),
    "hdpo": ("#A53472", ":"),
    "rlsd": ("#4B3AA8", "-."),
}
"""Colour and dash of each method, in every figure; variants are shades of one colour."""

AXIS_LABELS: dict[str, str] = {
    "reward": "reward",
    "accuracy": "accuracy in training",
    "kl_teacher_rev": "KL(student‖teacher), nats per token",
    "kl_ref": "KL(student‖reference), nats per token",
    "completions/mean_length": "response length, tokens",
    "entropy": "entropy, nats per token",
    "clip_ratio/high": "share of tokens clipped above",
    "clip_ratio/low": "share of tokens clipped below",
    "eval/accuracy": "accuracy, held-out prompts",
    "eval/accuracy_ood": "accuracy, out of distribution",
    "eval/mean_length": "length, held-out prompts, tokens",
    "trrd/dead_frac": "dead under TRRD, share of tokens",
    "teacher/entropy": "teacher's entropy, nats per token",
    "teacher/disagree": "teacher against verifier, share of tokens",
    "teacher/gap_right": "gap on right texts, nats per token",
    "teacher/gap_wrong": "gap on wrong texts, nats per token",
    "grad_norm": "gradient norm",
    "step_time": "seconds of a step",
    "train_time": "seconds of a step, without evaluations",
    "id avg": "accuracy, test prompts",
    "ood avg": "accuracy, out of distribution",
    "id length": "length, test prompts, tokens",
    "ood length": "length, out of distribution, tokens",
    "sampled_tokens": "tokens sampled, teacher's traces included",
    "train_seconds": "seconds of training, the teacher's included",
    "seconds": "seconds, evaluations included",
    "kd_coef": "weight of the teacher, β",
    "trrd_alpha": "anchor exponent, α",
    "learning_rate": "learning rate",
}
"""Labels of axes, by metric, column or knob."""


def label_of(column: str) -> str:
    """Return the label of a metric, column or knob; the name of one that we do not know."""
    return literal(AXIS_LABELS.get(column, column))


def fill(text: str, letters: int = 24) -> str:
    """Return the text in lines of about ``letters`` letters; no word is broken."""
    return textwrap.fill(text, letters, break_long_words=False, break_on_hyphens=False)


def wrap(label: str) -> str:
    """Return the label of a y-axis; a long one goes on below its first comma."""
    return label.replace(", ", ",\n", 1) if len(label) > 20 else label


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


def title_of_arm(arm: object) -> str:
    """Return the name of an arm with the title of its method.

    >>> title_of_arm("kdrl,kd_coef=0.1"), title_of_arm("my own")
    ('KDRL, kd_coef=0.1', 'my own')
    """
    method, *settings = str(arm).split(",")
    return ", ".join([METHODS[method].title, *settings]) if method in METHODS else str(arm)


def styles_of(methods: Mapping[str, str]) -> dict[str, Style]:
    """Return a style for each label, given the method of each label.

    The first label of a method has the method's style.
    Further labels of the same colour have darker shades and other line styles.
    """
    taken: Counter[str] = Counter()
    styles = {}
    for label, method in methods.items():
        colour, style = style_of(method)
        number = min(taken[colour], 3)
        others = [each for each in ("-", "--", ":", "-.") if each != style]
        red, green, blue = (part * (1 - 0.27 * number) for part in to_rgb(colour))
        shade = to_hex((red, green, blue))
        styles[label] = (shade if number else colour, [style, *others][number])
        taken[colour] += 1
    return styles


def white_figure(width: float, height: float, **how: Any) -> Figure:
    """Return an empty figure with an opaque white background; sizes in inches."""
    figure = Figure(figsize=(width, height), facecolor="white", **how)
    FigureCanvasAgg(figure)
    return figure


def panel_figure(
    panels: int, height: float = 2.0, columns: int = 3, **grid: Any
) -> tuple[Figure, list[Axes]]:
    """Return a figure with ``panels`` panels, at most ``columns`` in a row; inches per panel.

    It fills the page; a panel that stands alone fills half of it, unless ``columns`` is 1.
    """
    width = HALF if panels == 1 < columns else FULL
    columns = 2 if panels == 4 and columns > 2 else min(columns, panels)
    lines = -(-panels // columns)
    figure = white_figure(width, height * lines + 0.4, layout="constrained")
    axes = list(figure.subplots(lines, columns, squeeze=False, **grid).flat)
    for spare in axes[panels:]:
        spare.remove()
    return figure, axes[:panels]


def finish(figure: Figure, title: str | None, caption: str) -> Figure:
    """Add the title above and the caption below; write the names of lines at their ends.

    Where ends of lines are not apart, a legend has the names.
    """
    width, height = figure.get_size_inches()
    if title:
        figure.suptitle(fill(literal(title), int(14.5 * width)), x=0.01, ha="left")
    words = fill(literal(caption), int(16 * width))
    figure.supxlabel(words, y=0.03 / height, fontsize=8, color="#444444")
    # the layout would put caption and legend on top of each other
    bottom = (0.06 + 0.13 * len(words.splitlines())) / height
    entries = legend_entries(figure.axes)
    columns = int(72 * width / (4.8 * max(map(len, entries), default=0) + 45)) or 1
    top = bottom + 0.18 * -(-len(entries) // columns) / height
    figure.set_layout_engine("constrained", rect=(0, top, 1, 1 - top))
    if not entries:
        return figure
    figure.draw_without_rendering()  # before, the ends have no places
    if all([_name_ends(axes) for axes in figure.axes]):  # noqa: C419, every panel is named
        figure.set_layout_engine("constrained", rect=(0, bottom, 1, 1 - bottom))
        return figure
    place: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, bottom)}
    place |= {"ncols": min(columns, len(entries)), "handlelength": 3, "borderaxespad": 0}
    figure.legend(entries.values(), entries.keys(), **place)
    return figure


def _name_ends(axes: Axes, gap: float = 10.0) -> bool:
    """Name two or more lines at their ends; return whether no line is without its name.

    Names stand ``gap`` points apart, and no further than that from their line.
    """
    lines = [one for one in axes.lines if not str(one.get_label()).startswith("_")]
    points = [np.asarray(one.get_xydata()) for one in lines]
    if not all(map(len, points)) or len(lines) < len(legend_entries([axes])):
        return False  # some names have no line: a legend needs them
    scale = 72 / axes.figure.dpi
    pairs = zip(lines, points, strict=True)
    ends = [scale * one.get_transform().transform(at[-1]) for one, at in pairs]
    places: dict[int, float] = {}
    for each in sorted(range(len(ends)), key=lambda each: ends[each][1]):
        places[each] = max(float(ends[each][1]), max(places.values(), default=-gap) + gap)
    moved = max((place - ends[each][1] for each, place in places.items()), default=0.0)
    away = 18 if any(one.get_gid() == DOTS_RIGHT for one in lines) else 5
    right, left = (most((x for x, _ in ends), default=0.0) for most in (max, min))
    if len(lines) == 1 or moved > gap or right - left > 4 * gap:
        return False
    for each, place in places.items():
        one, (x, y) = lines[each], ends[each]
        axes.annotate(
            str(one.get_label()),
            points[each][-1],
            xytext=(away + right - x, place - moved / 2 - y),
            xycoords=one.get_transform(),
            textcoords="offset points",
            color=one.get_color(),
            va="center",
            annotation_clip=False,
        )
    return True


def name_ticks(axes: Axes, texts: Sequence[str]) -> None:
    """Write names along the x-axis: in two lines where one is too long, else turned."""
    letters = int(axes.bbox.width / axes.figure.dpi * 72 / max(len(texts), 1) / 5.2)
    short = [textwrap.fill(text, max(letters, 1), break_long_words=False) for text in texts]
    fits = all(len(part) <= letters for text in short for part in text.split("\n"))
    how: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
    names = map(literal, short if fits else texts)
    axes.set_xticks(range(len(texts)), list(names), **({} if fits else how))
    axes.set_xlim(-0.6, len(texts) - 0.4)
    axes.grid(axis="x", visible=False)


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
