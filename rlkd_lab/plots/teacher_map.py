"""The map of the study: where a teacher adds accuracy, and where it costs some."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlkd_lab.plots.points import dot_style
from rlkd_lab.plots.styles import STYLES, finish, in_print, line, panel_figure, title_of
from rlkd_lab.study.parts import Part
from rlkd_lab.study.teacher_map import TEACHERS, Reading, gains

SAID: dict[Reading, str] = {
    "steps": "after 60 steps, on test prompts",
    "tokens": "at equal tokens, validation prompts",
    "seconds": "at equal seconds, validation prompts",
}


@in_print
def map_figure(part: Part, reading: Reading = "steps") -> Figure:
    """Draw accuracy gained over GRPO against the student's start, a panel for each teacher.

    A line is a method; its bars are 95 % intervals over seeds (Welch). Above zero the teacher
    helped. The panel without a teacher has the placebo.
    """
    table = gains(part, reading)
    teachers = [name for name in TEACHERS if (table["teacher"] == name).any()]
    figure, panels = panel_figure(len(teachers), height=2.1)
    limits = 100 * min(table["gain"].min(), 0) - 4, 100 * max(table["gain"].max(), 0) + 4
    for place, (axes, teacher) in enumerate(zip(panels, teachers, strict=True)):
        rows = table[table["teacher"] == teacher]
        for method in dict.fromkeys(rows["method"]):
            _draw_method(axes, rows[rows["method"] == method], method)
        axes.axhline(0, color="#888888", linewidth=0.8)
        axes.set_ylim(*limits)
        axes.set_title("no teacher: a placebo" if not teacher else f"teacher: {TEACHERS[teacher]}")
        axes.set_xlabel("student's start, % right")
        axes.set_ylabel("points above GRPO" if place % 3 == 0 else "")
    seeds = " or ".join(map(str, sorted(set(table["seeds"]) - {0})))
    fell = int((table["collapsed"] > 0).sum())
    unread = int(table["gain"].isna().sum())
    caption = f"{SAID[reading]}; n = {seeds} seeds; bars: 95 % (Welch)"
    caption += f"; ×: collapsed ({fell} of {len(table)})" * bool(fell)
    caption += f"; {unread} not read" * bool(unread)
    return finish(figure, "What a teacher adds to reward", caption)


def _draw_method(axes: Axes, rows: pd.DataFrame, method: str) -> None:
    """Draw the gains of one method over the starts."""
    rows = rows.sort_values("start")
    colour, marker = dot_style(method)
    x, gain = 100 * rows["start"], 100 * rows["gain"]
    bars = [gain - 100 * rows["low"], 100 * rows["high"] - gain]
    axes.plot(x, gain, **line(STYLES[method], label=title_of(method), linewidth=1))
    axes.errorbar(x, gain, yerr=bars, color=colour, marker=marker, linestyle="", capsize=2)
    fell = rows["collapsed"] > 0
    axes.plot(x[fell], gain[fell], "x", color="#222222", markersize=7, zorder=4)
