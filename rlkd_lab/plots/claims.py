"""Figures of the study: one for each claim of the scorecard, and the map of teachers."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlkd_lab.plots.claim_panels import DRAW
from rlkd_lab.plots.files import save_figure
from rlkd_lab.plots.styles import (
    fill,
    finish,
    in_print,
    panel_figure,
)
from rlkd_lab.plots.teacher_map import map_figure
from rlkd_lab.study.claims import CLAIMS, PAPERS, Verdict, judge_claims
from rlkd_lab.study.effects import Check
from rlkd_lab.study.parts import Study
from rlkd_lab.study.scorecard import (
    EDGE,
    comparisons,
    in_words,
    number,
)
from rlkd_lab.study.teacher_map import READINGS, gains

NARROW = 0.001
"""A smaller half of an interval in accuracy is less than sampling alone makes of it."""


@in_print
def claim_figure(study: Study, verdict: Verdict) -> Figure:
    """Draw what a claim compares, and the comparisons with their intervals; on top the verdict.

    Raises:
        ValueError: the claim needs parts of the study that were not run.
    """
    claim = CLAIMS[verdict.number - 1]
    if missing := claim.missing(study):
        needed = ", ".join(missing)
        raise ValueError(f"claim {claim.number} needs parts that were not run: {needed}")
    rows, doubts = DRAW[claim.number], doubted(verdict)
    texts = [[_said(one, doubts) for one in verdict.checks[row.checks]] for row in rows]
    heights = [max(2.0, 0.135 * len(each) * (_tallest(each) + 1) + 0.5) for each in texts]
    title = fill(f"Claim {claim.number} ({PAPERS[claim.source]}): {claim.text}", 95)
    lines = title.count("\n")
    figure, panels = panel_figure(
        2 * len(rows),
        (sum(heights) + 0.18 * lines) / len(rows) + 0.1,
        2,
        width_ratios=(1.4, 1),
        height_ratios=heights,
    )
    for place, row in enumerate(rows):
        row.draw(panels[2 * place], study)
        _draw_effects(panels[2 * place + 1], verdict.checks[row.checks], texts[place], row.effect)
    outcome = f"{verdict.outcome} here".capitalize() + EDGE * verdict.edge
    if doubts:
        outcome += f"; † not to be trusted: {', '.join(dict.fromkeys(doubts.values()))}"
    elif verdict.why:
        outcome += f": {in_words(verdict.why)}"
    figure.suptitle(f"{title}\n{fill(outcome, 95)}", x=0.01, ha="left")
    seeds = " or ".join(map(str, sorted({check.effect.seeds for check in verdict.checks})))
    units = ", ".join(dict.fromkeys(row.unit for row in rows))
    least = "≥" if len(claim.needs) > 1 else "="  # parts differ in their seeds
    caption = f"n {least} {seeds} seeds (faint); bars: 95 %, right: difference"
    caption += "; line: −.02" * any(one.margin < 0 for one in verdict.checks)
    caption += "; grey: equal" * any(one.equal for one in verdict.checks)
    return finish(figure, None, f"{units}; {caption}")


def _tallest(texts: list[str]) -> int:
    """Return the lines of the longest text."""
    return max(text.count("\n") + 1 for text in texts)


def doubted(verdict: Verdict) -> dict[str, str]:
    """Return the comparisons whose interval is not to be trusted, with the reason."""
    found = {}
    for check in verdict.checks:
        half = (check.effect.high - check.effect.low) / 2
        reason = check.doubt or verdict.why
        if reason and check.face != "undecided":
            found[check.text] = in_words(re.split(r"[:;,(]", reason)[0].strip())
        elif check.text.endswith(": accuracy") and half < NARROW:
            found[check.text] = "the interval is narrower than sampling allows"
    return found


def _said(check: Check, doubts: dict[str, str]) -> str:
    """Return a comparison with its effect and its outcome, in words of the reader."""
    text = re.sub(r": [a-z ]+$", "", in_words(check.text))  # the axis says what is measured
    mean, low, high = map(number, (check.effect.mean, check.effect.low, check.effect.high))
    outcome = f"at face value {check.face} †" if check.text in doubts else check.outcome
    return f"{fill(text, 26)}\n{mean} [{low}, {high}]\n{outcome}"


def _draw_effects(axes: Axes, checks: Sequence[Check], texts: list[str], label: str) -> None:
    """Draw the interval of each comparison; a full marker where it is decided by itself."""
    for place, check in enumerate(checks):
        effect = check.effect
        look: dict[str, Any] = {"color": "#222222", "marker": "D", "capsize": 2, "linewidth": 1.2}
        look["markerfacecolor"] = "white" if check.outcome == "undecided" else "#222222"
        bounds = [[effect.mean - effect.low], [effect.high - effect.mean]]
        axes.errorbar([effect.mean], [place], xerr=bounds, **look)
        if check.equal:
            axes.axvspan(-check.margin, check.margin, color="#dddddd", zorder=0)
        axes.axvline(0 if check.equal else check.margin, color="#888888", linewidth=0.8)
    axes.set_yticks(range(len(texts)), texts)
    axes.set_ylim(len(texts) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.locator_params(axis="x", nbins=4)
    axes.set_xlabel(label)


def draw_claims(study: Study, folder: str | Path) -> list[Path]:
    """Write ``claim_01.png`` … for every claim whose parts were run, and the part map's three maps.

    Each figure has a JSON file beside it with its numbers and seeds.

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
    if "map" in study:
        for reading in READINGS:
            path = Path(folder) / ("map.png" if reading == "steps" else f"map_{reading}.png")
            numbers = json.loads(gains(study["map"], reading).to_json(orient="records"))
            drawn.append(save_figure(map_figure(study["map"], reading), path, [], gains=numbers))
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
        "note": verdict.note,
        "not_to_be_trusted": {in_words(text): why for text, why in doubted(verdict).items()},
        "comparisons": json.loads(effects.to_json(orient="records")),
        "seeds_of": seeds,
    }
