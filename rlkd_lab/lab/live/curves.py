"""The still picture of live curves: what :mod:`~rlkd_lab.lab.live.curve_data` says, drawn."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import SymmetricalLogLocator

from rlkd_lab.lab.live.curve_data import GREY, curve_data
from rlkd_lab.lab.live.history import History
from rlkd_lab.plots.styles import legend_entries, literal, say_empty, white_figure


def draw(history: History, method: str, group: str = "main", *, steps: int | None = None) -> Figure:
    """Draw a group of curves; the arguments are those of ``curve_data``."""
    return drawn(curve_data(history, method, group, steps))


def drawn(data: dict[str, Any]) -> Figure:
    """Draw what ``curve_data`` or ``compare_data`` says."""
    columns = 1 + max(panel["column"] for panel in data["panels"])
    upper = [panel for panel in data["panels"] if not panel["strip"]]
    named = [one for panel in upper for one in panel["lines"]]
    named += [one for panel in data["panels"] for one in panel["bands"]]
    more_rows = (len({one["label"] for one in named}) - 1) // _names_a_row(columns)
    extra = 0.19 * max(more_rows, 0)
    figure, grid = _layout(columns, any(panel["strip"] for panel in data["panels"]), extra)
    for panel in data["panels"]:
        axes = figure.add_subplot(grid[int(panel["strip"]), panel["column"]])
        _draw_panel(axes, panel)
        _finish(axes, panel, data)
    _caption(figure, data["caption"], columns, extra)
    return figure


def _names_a_row(columns: int) -> int:
    """Return how many names of lines stand beside each other below the panels."""
    return 5 if columns > 1 else 3


def _layout(columns: int, differences: bool, extra: float) -> tuple[Figure, Any]:
    """Return a figure and its grid, with a second row for differences.

    Space is given in inches by hand, because a layout engine draws everything twice.
    ``extra`` are inches for more names below.
    """
    tall = (4.7 if differences else 3.2) + extra
    figure = white_figure(3.5 * columns if columns > 1 else 7.0, tall)
    height = figure.get_figheight()
    grid = figure.add_gridspec(
        2 if differences else 1,
        columns,
        height_ratios=(2.3, 1) if differences else (1,),
        left=0.55 / figure.get_figwidth(),
        right=0.985,
        top=1 - 0.36 / height,
        bottom=(0.92 + extra) / height,
        wspace=0.2,
        hspace=0.42,
    )
    return figure, grid


def _caption(figure: Figure, caption: list[str], columns: int, extra: float) -> None:
    """Write step, smoothing and legend below the panels."""
    width, height = figure.get_figwidth(), figure.get_figheight()
    place: dict[str, Any] = {"fontsize": 8.5, "va": "top", "color": "#333333"}
    figure.text(0.55 / width, (0.56 + extra) / height, caption[0], **place)
    figure.text(0.985, (0.56 + extra) / height, caption[1], ha="right", **place)
    entries = legend_entries(figure.axes)
    if entries:
        figure.legend(
            entries.values(),
            entries.keys(),
            loc="lower left",
            bbox_to_anchor=(0.5 / width, 0),
            ncols=_names_a_row(columns),
            frameon=False,
            fontsize=8.5,
        )


def _draw_panel(axes: Axes, panel: dict[str, Any]) -> None:
    axes.set_title(panel["title"], fontsize=9.5, loc="left")
    if panel["strip"]:
        axes.axhline(0, color=GREY, linewidth=0.8)
    for band in panel["bands"]:
        look: dict[str, Any] = {"facecolor": band["colour"], "alpha": band["alpha"]}
        look |= {"hatch": band["hatch"], "edgecolor": "white", "linewidth": 0.4}
        if panel["strip"]:
            look["linewidth"] = 0
        axes.fill_between(band["x"], band["low"], band["high"], label=band["label"], **look)
    for line in panel["lines"]:
        # the legend names lines of the upper row; strips have their titles
        named = not line["raw"] and not panel["strip"]
        axes.plot(
            line["x"],
            line["y"],
            color=line["colour"],
            alpha=line["alpha"],
            linestyle=(0, line["dash"]) if line["dash"] else "-",
            linewidth=line["width"],
            marker="o" if line["dots"] else "",
            markersize=line["dots"],
            label=literal(line["label"], legend=True) if named else None,
        )
    if panel["low"] is not None:
        axes.set_ylim(panel["low"], panel["high"])
    if panel["symlog"]:
        axes.set_yscale("symlog", linthresh=0.1)
        locator = SymmetricalLogLocator(base=10, linthresh=0.1, subs=[1, 2, 5])
        axes.yaxis.set_major_locator(locator)
        axes.yaxis.set_major_formatter("{x:g}")


def _finish(axes: Axes, panel: dict[str, Any], data: dict[str, Any]) -> None:
    """Set grid and x-range, and draw the note and moved knobs with their words."""
    axes.set_xlim(0.5, data["right"])
    axes.grid(alpha=0.25)
    axes.tick_params(labelsize=8.5)
    axes.xaxis.get_major_locator().set_params(integer=True, nbins=6)  # type: ignore[call-arg]
    for spine in ("top", "right"):
        axes.spines[spine].set_visible(False)
    for step in data["moves"]:
        axes.axvline(step, color="#333333", linewidth=0.8, alpha=0.7)
    if panel["strip"]:
        look: dict[str, Any] = {"transform": axes.transAxes, "fontsize": 7.5, "va": "top"}
        axes.text(0.015, 0.97, panel["note"], color="#333333", **look)
        low, high = axes.get_ylim()  # the note stands above the line
        axes.set_ylim(low, high + 0.25 * (high - low) * bool(panel["note"]))
        return
    if panel["note"]:
        say_empty(axes, panel["note"])
    for label in data["labels"]:
        inside = label["step"] < 0.95 * data["right"]
        axes.annotate(
            label["words"],
            (label["step"], 0.985),
            xycoords=("data", "axes fraction"),
            xytext=(2 if inside else -2, 0),
            textcoords="offset points",
            rotation=90,
            ha="left" if inside else "right",
            va="top",
            fontsize=7.5,
            color="#333333",
            annotation_clip=True,
            clip_on=True,
            bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.5},
        )
