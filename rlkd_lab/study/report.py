"""Evaluations in a terminal and as JSON."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from rich.table import Table

from rlkd_lab.study.evaluation import SETS
from rlkd_lab.terminal import escape

TOKENS = ("length", "length_correct", "length_wrong")
COUNTS = ("prompts", "samples")
TITLES = {
    "length": "mean length",
    "length_correct": "  correct ones",
    "length_wrong": "  wrong ones",
    "badly_formatted": "badly formatted",
}


def title(measure: str, samples: int) -> str:
    """What a measure is called in a table."""
    return f"avg@{samples}" if measure == "avg" else TITLES.get(measure, measure)


def number(value: float, measure: str) -> str:
    """A share in percent, tokens, both with one decimal; a count without."""
    if math.isnan(value):
        return "–"
    return (
        f"{value:.0f}"
        if measure in COUNTS
        else f"{value:.1f}"
        if measure in TOKENS
        else f"{100 * value:.1f}"
    )


def bounds(low: float, high: float, measure: str) -> str:
    """An interval. Where all prompts agree, resampling them shows nothing, so nothing is shown."""
    return (
        ""
        if math.isnan(low) or low == high
        else f"{number(low, measure)} to {number(high, measure)}"
    )


def lines(summary: pd.DataFrame, name: str) -> list[tuple[str, str, str, str, str]]:
    """One set of a summary over all its prompts, as text: (measure, title, value, interval,
    chance). pass@1, the average, is left out.
    """
    whole = {
        row["measure"]: row
        for row in summary[(summary["set"] == name) & (summary["difficulty"] == "all")].to_dict(
            "records"
        )
    }
    samples = int(whole["samples"]["value"])
    found = []
    for measure in [
        measure
        for measure in whole
        if measure not in (*COUNTS, "pass@1") and not measure.startswith("chance@")
    ]:
        row = whole[measure]
        # one guess for an average or a greedy completion, k for pass@k
        chance = whole.get(
            "chance@1" if measure in ("avg", "greedy") else measure.replace("pass@", "chance@")
        )
        guessed = number(chance["value"], measure) if chance and chance is not row else ""
        found.append(
            (
                measure,
                title(measure, samples),
                number(row["value"], measure),
                bounds(row["low"], row["high"], measure),
                guessed,
            )
        )
    return found


def summary_table(summary: pd.DataFrame, name: str) -> Table:
    """One set of a summary: a row a measure; all prompts with interval and chance line, then a
    column a difficulty.
    """
    cells = {
        (row["difficulty"], row["measure"]): row
        for row in summary[summary["set"] == name].to_dict("records")
    }
    levels = [level for level in dict.fromkeys(level for level, _ in cells) if level != "all"]
    prompts, samples = (int(cells["all", count]["value"]) for count in COUNTS)
    table = Table(
        box=None,
        pad_edge=False,
        title=f"{SETS[name]}: {prompts} prompts, {samples} sample{'s' if samples > 1 else ''} each",
        title_justify="left",
        title_style="bold",
    )
    for heading in (
        "",
        "all",
        "95 % interval",
        "chance",
        *(f"difficulty {level}" if level == levels[0] else str(level) for level in levels),
    ):
        table.add_column(heading, justify="right" if heading else "left")
    table.add_row(
        "prompts",
        str(prompts),
        "",
        "",
        *(number(cells[level, "prompts"]["value"], "prompts") for level in levels),
    )
    for measure, *shown in lines(summary, name):
        table.add_row(
            *shown, *(number(cells[level, measure]["value"], measure) for level in levels)
        )
    return table


def difference_table(
    differences: pd.DataFrame, name: str, ours: str, theirs: str, samples: int
) -> Table:
    """One set of a comparison: a row a measure."""
    ours, theirs = escape(ours), escape(theirs)
    table = Table(
        box=None,
        pad_edge=False,
        title=f"{SETS[name]}: {ours} − {theirs}",
        title_justify="left",
        title_style="bold",
    )
    for heading in ("", ours, theirs, "difference", "95 % interval", "p"):
        table.add_column(heading, justify="right" if heading else "left")
    for row in differences[
        (differences["set"] == name) & (differences["measure"] != "pass@1")
    ].to_dict("records"):
        measure = row["measure"]
        gap = number(row["difference"] + 0.0, measure)
        p = "–" if math.isnan(row["p"]) else "< .001" if row["p"] < 0.001 else f"{row['p']:.3f}"
        shown = [number(row[key], measure) for key in ("a", "b")]
        table.add_row(
            title(measure, samples),
            *shown,
            f"+{gap}" if row["difference"] > 0 else gap,
            bounds(row["low"], row["high"], measure),
            p,
        )
    return table


def chance_note(task: str, estimated: bool) -> str:
    """Where the chance line comes from."""
    if estimated:
        return (
            "chance: the model's own completions to other prompts, judged against each prompt"
            f" ({task} does not state its chance)"
        )
    return f"chance: blind guesses, as {task} states them"


def interval_note(compared: bool) -> str:
    """What the intervals cover."""
    return (
        f"intervals: bootstrap over prompts{', paired' if compared else ''}; they do not cover"
        " other training seeds"
    )


def nested(summary: pd.DataFrame) -> dict[str, Any]:
    """A summary as ``{set: {difficulty: {measure: value}}}``, an interval where there is one as
    ``measure_low`` and ``measure_high``.
    """
    found: dict[str, Any] = {}
    for row in summary.to_dict("records"):
        place = found.setdefault(row["set"], {}).setdefault(str(row["difficulty"]), {})
        place[row["measure"]] = int(row["value"]) if row["measure"] in COUNTS else row["value"]
        if not math.isnan(row["low"]):
            place |= {f"{row['measure']}_low": row["low"], f"{row['measure']}_high": row["high"]}
    return found


def plain(value: Any) -> Any:
    """``value`` as JSON can hold it: numpy numbers as Python's, NaN and infinities as ``None``."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
