"""Evaluations in a terminal and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
from rich.table import Table

from rlkd_lab.study.sides import compare_runs, side_label
from rlkd_lab.study.summary import SETS, compare_frames
from rlkd_lab.study.targets import Target
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
    """Return the title of a measure in a table."""
    return f"avg@{samples}" if measure == "avg" else TITLES.get(measure, measure)


def number(value: float, measure: str) -> str:
    """Return a share in percent or tokens with one decimal, or a count."""
    if math.isnan(value):
        return "–"
    if measure in COUNTS:
        return f"{value:.0f}"
    return f"{value if measure in TOKENS else 100 * value:.1f}"


def bounds(low: float, high: float, measure: str) -> str:
    """Return an interval; nothing where all prompts agree, since resampling shows nothing."""
    if math.isnan(low) or low == high:
        return ""
    return f"{number(low, measure)} to {number(high, measure)}"


def lines(summary: pd.DataFrame, name: str) -> list[tuple[str, str, str, str, str]]:
    """Return one set of a summary as text: (measure, title, value, interval, chance).

    The rows are over all prompts; pass@1, the average, is left out.
    """
    whole = {
        row["measure"]: row
        for row in summary[(summary["set"] == name) & (summary["difficulty"] == "all")].to_dict(
            "records"
        )
    }
    samples = int(whole["samples"]["value"])
    found = []
    for measure, row in whole.items():
        if measure in (*COUNTS, "pass@1") or measure.startswith("chance@"):
            continue
        # one guess for an average or a greedy completion, k for pass@k
        single = measure in ("avg", "greedy")
        chance = whole.get("chance@1" if single else measure.replace("pass@", "chance@"))
        value, interval = number(row["value"], measure), bounds(row["low"], row["high"], measure)
        guessed = number(chance["value"], measure) if chance and chance is not row else ""
        found.append((measure, title(measure, samples), value, interval, guessed))
    return found


def summary_table(summary: pd.DataFrame, name: str) -> Table:
    """Return the table of one set, with a row for each measure.

    All prompts have an interval and a chance line; each difficulty has a column.
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
    """Return the table of a comparison in one set, with a row for each measure.

    The heading says what ``p`` is over: prompts, or runs where a side has several.
    """
    ours, theirs = escape(ours), escape(theirs)
    table = Table(
        box=None,
        pad_edge=False,
        title=f"{SETS[name]}: {ours} − {theirs}",
        title_justify="left",
        title_style="bold",
    )
    over = "runs" if "runs_a" in differences else "prompts"
    for heading in ("", ours, theirs, "difference", "95 % interval", f"p, {over}"):
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
    """Say where the chance line comes from."""
    if estimated:
        return (
            "chance: the model's own completions to other prompts, judged against each prompt"
            f" ({task} does not state its chance)"
        )
    return f"chance: blind guesses, as {task} states them"


ONE_PAIR = (
    "p is over prompts and compares these two checkpoints, not two methods: two seeds of one"
    " method have p < .05 in about half of all pairs."
    " To compare methods, give several runs a side: rlkd eval 'runs/a-*' --against 'runs/b-*'"
)
"""A note for every p-value of two single checkpoints."""


def interval_note(compared: bool) -> str:
    """Say what the intervals cover, and what the p-value of two checkpoints does not."""
    note = (
        f"intervals: bootstrap over prompts{', paired' if compared else ''}; they do not cover"
        " other training seeds"
    )
    return f"{note}\n{ONE_PAIR}" if compared else note


def runs_note(ours: int, theirs: int) -> str:
    """Say what the intervals of a comparison over runs cover."""
    fewest, most = sorted((ours, theirs))
    spread = (
        f"Student's t over {most} runs against one fixed model"
        if fewest == 1
        else f"Welch's t over {ours} and {theirs} runs"
    )
    few = (
        "; with fewer than five runs a side they are wide, and a difference may be missed"
        if (most if fewest == 1 else fewest) < 5
        else ""
    )
    return f"intervals and p: {spread}. They cover training seeds, on these prompts{few}"


@dataclass(frozen=True)
class Compared:
    """The targets of `rlkd eval` and, where there is one, the other side.

    ``frames`` and ``summaries`` have one entry for each target, ours first.
    """

    ours: Sequence[Target]
    theirs: Sequence[Target]
    frames: Sequence[pd.DataFrame]
    summaries: Sequence[pd.DataFrame]
    ks: Sequence[int] | None = None

    @property
    def several(self) -> bool:
        """Whether a side has several runs, so that p is over runs."""
        return max(len(self.ours), len(self.theirs)) > 1

    @property
    def labels(self) -> tuple[str, str]:
        """Headings of both sides."""
        return side_label(self.ours), side_label(self.theirs) if self.theirs else ""

    @cached_property
    def estimated(self) -> bool:
        """Whether chance was estimated."""
        return bool((self.frames[0]["guesses"] > 0).any())

    @cached_property
    def differences(self) -> pd.DataFrame | None:
        """Differences over runs where a side has several, over prompts otherwise."""
        if not self.theirs:
            return None
        ours, theirs = self.frames[: len(self.ours)], self.frames[len(self.ours) :]
        return (
            compare_runs(ours, theirs, self.ks)
            if self.several
            else compare_frames(ours[0], theirs[0], self.ks)
        )

    def tables(self, samples: int) -> Iterator[Table]:
        """Return the tables of each target and of the difference, one for each set.

        A comparison over runs has no tables of single targets.
        """
        for target, summary in zip(self.ours, self.summaries, strict=False):
            for name in () if self.several and self.theirs else dict.fromkeys(summary["set"]):
                table = summary_table(summary, name)
                if len(self.ours) > 1:
                    table.title = f"{escape(target.label)}, {table.title}"
                yield table
        if self.differences is not None:
            for name in dict.fromkeys(self.differences["set"]):
                yield difference_table(self.differences, name, *self.labels, samples)

    def notes(self, task: str) -> list[str]:
        """Say where chance comes from, and what the intervals and p cover."""
        if self.several and self.theirs:
            return [runs_note(len(self.ours), len(self.theirs))]
        return [chance_note(task, self.estimated), interval_note(bool(self.theirs))]

    def as_json(self, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return record and results of a target, with ``against`` and ``differences``.

        Several targets are a list; ``p_covers`` says prompts or runs.
        """
        chance = "permutation" if self.estimated else "task"
        found = [
            {**record, "chance": chance, "results": nested(summary)}
            for record, summary in zip(records, self.summaries, strict=True)
        ]
        ours, theirs = found[: len(self.ours)], found[len(self.ours) :]
        shown: dict[str, Any] = {"runs": ours} if self.several else ours[0]
        if self.differences is None:
            return shown
        return {
            **shown,
            "against": theirs if self.several else theirs[0],
            "differences": self.differences.to_dict("records"),
            "p_covers": "runs" if self.several else "prompts",
            "note": runs_note(len(ours), len(theirs)) if self.several else ONE_PAIR,
        }


def nested(summary: pd.DataFrame) -> dict[str, Any]:
    """Return a summary as ``{set: {difficulty: {measure: value}}}``.

    An interval is ``measure_low`` and ``measure_high``.
    """
    found: dict[str, Any] = {}
    for row in summary.to_dict("records"):
        place = found.setdefault(row["set"], {}).setdefault(str(row["difficulty"]), {})
        place[row["measure"]] = int(row["value"]) if row["measure"] in COUNTS else row["value"]
        if not math.isnan(row["low"]):
            place |= {f"{row['measure']}_low": row["low"], f"{row['measure']}_high": row["high"]}
    return found


def plain(value: Any) -> Any:
    """Return a value for JSON: Python's numbers, with ``None`` for NaN and infinities."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
