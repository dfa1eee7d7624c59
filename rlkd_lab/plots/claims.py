"""Figures of the study: one for each claim of the scorecard, one of the teachers."""

from __future__ import annotations

import itertools
import json
import textwrap
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlkd_lab.plots.claim_panels import DRAW
from rlkd_lab.plots.files import save_figure
from rlkd_lab.plots.points import dot_style, draw_spread, name_ticks, panel_figure
from rlkd_lab.study.claims import CLAIMS, Verdict, judge_claims
from rlkd_lab.study.results import Study
from rlkd_lab.study.scorecard import EDGE, WITH_TEACHER, by_teacher, comparisons, number

LETTERS = 10
"""Letters of a title in an inch."""


def claim_figure(study: Study, verdict: Verdict) -> Figure:
    """Draw the figure of a claim, its verdict above and the effects with intervals below.

    Raises:
        ValueError: the claim needs parts of the study that were not run.
    """
    claim = CLAIMS[verdict.number - 1]
    if missing := claim.missing(study):
        needed = ", ".join(missing)
        raise ValueError(f"claim {claim.number} needs parts that were not run: {needed}")
    figure = DRAW[claim.number](study)
    width = figure.get_figwidth()
    outcome = verdict.outcome + " here" + EDGE * verdict.edge
    title = f"Claim {claim.number} ({claim.source}): {claim.text} — {outcome}"
    figure.suptitle("\n".join(textwrap.wrap(title, int(LETTERS * width))), fontsize=10)
    lines = _effects(verdict, int(1.3 * LETTERS * width))
    figure.set_figheight(figure.get_figheight() + 0.16 * max(len(lines) - 3, 0))
    seeds = " or ".join(map(str, sorted({check.effect.seeds for check in verdict.checks})))
    if seeds:
        lines.append(
            "dots or faint lines: seeds; bars: an arm's 95 % interval; brackets: that of the"
            f" difference by seed, over {seeds} seeds"
        )
    figure.supxlabel("\n".join(lines), fontsize=8, color="#444444")
    return figure


def _effects(verdict: Verdict, width: int) -> list[str]:
    """Return a line for each comparison of a claim, and why decided ones decide nothing."""
    lines = []
    for check in verdict.checks:
        mean, low, high = map(number, (check.effect.mean, check.effect.low, check.effect.high))
        lines.append(f"{check.text}: {mean} [{low}, {high}], {check.outcome}")
    decided = any(check.outcome != "undecided" for check in verdict.checks)
    if verdict.outcome == "undecided" and decided:
        lines += textwrap.wrap(verdict.note, width)
    return lines


def teachers_figure(study: Study) -> Figure:
    """Draw every method minus GRPO on the same student, in accuracy and in length.

    The teacher that checks its work is round; the teacher that does not is square.

    Raises:
        ValueError: fewer than two pairs of student and teacher were run.
    """
    table = by_teacher(study)
    if table.empty:
        raise ValueError(
            "the figure compares pairs of student and teacher, and one at most was run"
        )
    students, teachers = (list(dict.fromkeys(table[name])) for name in ("student", "teacher"))
    columns = len(students)
    figure, panels = panel_figure(2 * columns, width=4.8, columns=columns)
    labels = {
        "accuracy": "accuracy − GRPO's, test prompts",
        "length": "length − GRPO's, tokens",
    }
    for index, (measure, student) in enumerate(itertools.product(labels, students)):
        axes = panels[index]
        _draw_teachers(axes, table[table["student"] == student], teachers, measure)
        axes.set_ylabel(labels[measure])
        axes.set_title(student if index < columns else "", fontsize=10)
    for marker, teacher in zip("os", teachers, strict=False):
        panels[0].plot([], [], marker, color="#555555", label=teacher)
    panels[0].legend(frameon=False, fontsize=8)
    figure.suptitle("Each method minus GRPO, which learns from reward alone", fontsize=11)
    seeds = table.groupby(["student", "teacher", "arm"])["seed"].nunique().min()
    caption = f"mean and 95 % interval over {seeds} seeds, paired"
    figure.supxlabel(f"faint dots: seeds; markers and bars: {caption}", fontsize=8, color="#555555")
    return figure


def _draw_teachers(axes: Axes, table: pd.DataFrame, teachers: list[str], measure: str) -> None:
    """Draw each method of one student, its teachers side by side."""
    axes.axhline(0, color="#888888", linewidth=0.8)
    for place, arm in enumerate(WITH_TEACHER):
        for side, teacher in enumerate(teachers):
            rows = table[(table["teacher"] == teacher) & (table["arm"] == arm)]
            x = place + 0.36 * side - 0.18
            draw_spread(axes, x, rows[measure], dot_style(arm)[0], "os"[side])
    name_ticks(axes, WITH_TEACHER)
    axes.grid(axis="y", alpha=0.25)


def draw_claims(study: Study, folder: str | Path) -> list[Path]:
    """Write ``claim_01.png`` … for every claim whose parts were run, and ``teachers.png``.

    Each figure has a JSON file beside it with verdict, comparisons and seeds.
    ``teachers.png`` needs two pairs of student and teacher.

    Returns:
        The paths of the figures.
    """
    drawn = []
    for verdict in judge_claims(study):
        claim = CLAIMS[verdict.number - 1]
        if claim.missing(study) or not verdict.checks:  # not run, or no run that counts
            continue
        path = Path(folder) / f"claim_{claim.number:02d}.png"
        drawn.append(save_figure(claim_figure(study, verdict), path, [], **_facts(study, verdict)))
    table = by_teacher(study)
    if not table.empty:
        groups = table.groupby(["student", "teacher", "arm"], sort=False)
        means = groups[["accuracy", "ood", "length"]].mean().reset_index()
        facts = {
            "means": json.loads(means.to_json(orient="records")),
            "seeds": sorted(set(table["seed"].tolist())),
        }
        path = Path(folder) / "teachers.png"
        drawn.append(save_figure(teachers_figure(study), path, [], **facts))
    return drawn


def _facts(study: Study, verdict: Verdict) -> dict[str, Any]:
    """Return what the JSON file of a claim's figure says."""
    claim = CLAIMS[verdict.number - 1]
    of_the_claim = ["claim", "source", "text", "verdict", "on_the_edge", "note"]
    effects = comparisons([verdict]).drop(columns=of_the_claim)
    seeds = {
        name: {
            str(arm): sorted(rows["seed"].tolist()) for arm, rows in study[name].runs.groupby("arm")
        }
        for name in claim.needs
    }
    return {
        "claim": claim.text,
        "verdict": verdict.outcome,
        "on_the_edge": verdict.edge,
        "comparisons": json.loads(effects.to_json(orient="records")),
        "seeds_of": seeds,
    }
