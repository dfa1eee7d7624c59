"""The tables of a sweep, read back: parts of a study, and means over seeds."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from rlkd_lab.study.statistics import collapsed, half_width
from rlkd_lab.study.sweep import Sweep
from rlkd_lab.study.versions import VERSION, with_version

SESSIONS = "sessions.jsonl"
"""File in a sweep's folder: a line for each time the sweep was run."""
TABLES = ("runs.csv", "curves.parquet", "levels.csv")
"""Files in a sweep's folder: a row for each run, for each step, and for each number of an
evaluation."""
OUTCOMES = "outcomes.parquet"
"""File in a sweep's folder: a row for each prompt of each run; older sweeps have none."""
SIGNS = "signs.csv"
"""File in a part's folder: how the weights of each run differ from those of OPD."""


NOT_RUN = "not run"


@dataclass(frozen=True)
class Part:
    """A sweep's tables, without the runs that diverged or whose knobs were moved by hand.

    :mod:`rlkd_lab.study.results` makes them.
    """

    runs: pd.DataFrame
    curves: pd.DataFrame
    levels: pd.DataFrame
    left_out: tuple[str, ...] = ()
    """The runs left out, in words."""
    diverged: Mapping[str, int] = field(default_factory=dict)
    """By arm the runs left out because they diverged."""
    outcomes: pd.DataFrame | None = None
    signs: pd.DataFrame | None = None
    """Conflicts of weight differences, see :mod:`rlkd_lab.study.signs`."""

    @property
    def whole(self) -> bool:
        """Whether every run that the sweep asks for is over."""
        return not any(words.endswith(NOT_RUN) for words in self.left_out)

    @property
    def programs(self) -> set[str]:
        """The versions of the programs that made its runs."""
        return set(with_version(self.runs)[VERSION])

    def versions(self, arm: str) -> set[str]:
        """Return the versions of the programs that made an arm's runs."""
        return set(with_version(self.runs[self.runs["arm"] == arm])[VERSION])

    @cached_property
    def _steps(self) -> dict[str, pd.DataFrame]:
        """The rows of the curves by arm."""
        return {str(arm): rows for arm, rows in self.curves.groupby("arm", sort=False)}

    def collapsed(self, arm: str) -> list[int]:
        """Return the seeds whose accuracy in training collapsed."""
        curves = self.curve(arm, "accuracy", on_policy=True)
        return [seed for seed, curve in curves.items() if collapsed(curve)]

    def best(self, arm: str) -> pd.Series:
        """Return by seed the test accuracy of the best checkpoint on validation prompts.

        Empty where the sweep did not evaluate it.
        """
        return self.of(arm, "best id avg")

    def of(self, arm: str, measure: str) -> pd.Series:
        """Return a column of the runs by seed."""
        rows = self.runs[self.runs["arm"] == arm].set_index("seed")
        return rows[measure].astype(float) if measure in rows else pd.Series(dtype=float)

    def shares(self, arm: str, of: str = "id") -> pd.DataFrame:
        """Return the share of right samples, a row for each seed and a column for each prompt.

        Empty where the sweep has no outcomes by prompt.
        """
        table = self.outcomes
        if table is None:
            return pd.DataFrame(dtype=float)
        rows = table[(table["arm"] == arm) & (table["set"] == of)]
        return (
            rows.assign(share=rows["right"] / rows["samples"])
            .astype({"prompt_id": str})
            .pivot(index="seed", columns="prompt_id", values="share")
        )

    def level(self, arm: str, difficulty: str, measure: str = "avg", of: str = "id") -> pd.Series:
        """Return a measure at one difficulty by seed."""
        table = self.levels
        rows = table[
            (table["arm"] == arm)
            & (table["set"] == of)
            & (table["difficulty"].astype(str) == difficulty)
            & (table["measure"] == measure)
        ]
        return rows.set_index("seed")["value"].astype(float)

    def curve(self, arm: str, metric: str, on_policy: bool = False) -> dict[int, pd.Series]:
        """Return a metric by step, for each seed, where it was measured.

        ``on_policy`` leaves out the steps that trained on others' completions.
        """
        rows = self._steps.get(arm)
        if rows is None or metric not in rows:
            return {}
        counts = rows[metric].notna() & (on_policy_steps(rows) | (not on_policy))
        seeds, steps, values = (rows[name].to_numpy()[counts] for name in ("seed", "step", metric))
        return {
            int(seed): pd.Series(values[seeds == seed].astype(float), index=steps[seeds == seed])
            for seed in sorted(set(seeds))
        }

    def conflict(self, arm: str) -> pd.Series:
        """Return by seed the share of weights whose sign conflicts with OPD's, of another seed."""
        if self.signs is None:
            return pd.Series(dtype=float)
        rows = self.signs[self.signs["arm"] == arm]
        return rows.set_index("seed")["conflict"].astype(float)

    def curve_means(self, arm: str, metric: str) -> pd.Series:
        """Return the mean of a metric over the steps, by seed."""
        means = {seed: curve.mean() for seed, curve in self.curve(arm, metric).items()}
        return pd.Series(means, dtype=float)


Study = Mapping[str, Part]
"""Parts by name: core, estimators, …"""


def read_part(folder: str | Path) -> Part:
    """Read the tables of a sweep's folder, or of a copy of them.

    Raises:
        FileNotFoundError: a table is missing, because the sweep has never ended.
        ValueError: a table is damaged, or has a run twice.
    """
    path = Path(folder)
    missing = [name for name in TABLES if not (path / name).exists()]
    if missing:
        raise FileNotFoundError(
            f"{path} has no {missing[0]}: run the sweep first (what is over already is not"
            " run again)"
        )
    runs = _read(path / TABLES[0], "arm", "seed", "method", "diverged", "touched")
    steps = _read(path / TABLES[1], "arm", "seed", "method", "step")
    numbers = _read(path / TABLES[2], "arm", "seed", "set", "difficulty", "measure", "value")
    twice = runs[runs.duplicated(["arm", "seed"])]
    if len(twice):
        raise ValueError(
            f"{path / TABLES[0]} has {twice['arm'].iloc[0]}, seed {twice['seed'].iloc[0]}"
            " twice: a run counts once"
        )
    bad = left_out(runs)
    why = [
        f"{row.arm}, seed {row.seed}: {'diverged' if row.diverged else 'moved by hand'}"
        for row in runs[bad].itertuples()
    ]
    keep = pd.MultiIndex.from_frame(runs.loc[~bad, ["arm", "seed"]])

    def kept(frame: pd.DataFrame) -> pd.DataFrame:
        pairs = pd.MultiIndex.from_frame(frame[["arm", "seed"]])
        return frame[pairs.isin(keep)].reset_index(drop=True)

    diverged = dict(Counter(map(str, runs.loc[runs["diverged"].astype(bool), "arm"])))
    tables = kept(runs), kept(steps), kept(numbers)
    more = [
        kept(_read(path / name, "arm", "seed", *columns)) if (path / name).exists() else None
        for name, columns in (
            (OUTCOMES, ("set", "prompt_id", "right", "samples")),
            (SIGNS, ("other", "conflict")),
        )
    ]
    return Part(*tables, (*why, *_not_there(path, runs)), diverged, *more)


def _read(path: Path, *columns: str) -> pd.DataFrame:
    """Read a table that must have these columns."""
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
        else:
            table = pd.read_csv(path, dtype={"difficulty": str})
        if missing := [name for name in columns if name not in table]:
            raise ValueError(f"it has no column {missing[0]!r}")
    except (ValueError, OSError) as error:  # of pandas, pyarrow and decoders alike
        raise ValueError(
            f"{path} is damaged: {str(error).splitlines()[0]}; start the sweep again, and it"
            " is written anew"
        ) from None
    return table


def _not_there(path: Path, runs: pd.DataFrame) -> list[str]:
    """Return in words the runs of the sweep that its table does not have."""
    try:
        sweep = Sweep(**json.loads((path / "sweep.json").read_text(encoding="utf-8")))
        asked = {(job.arm, job.seed) for job in sweep.jobs()}
    except (OSError, ValueError, TypeError):  # no sweep.json, or one that this version cannot read
        return []
    there = set(zip(runs["arm"], runs["seed"], strict=True))
    return [f"{arm}, seed {seed}: {NOT_RUN}" for arm, seed in sorted(asked - there)]


def on_policy_steps(frame: pd.DataFrame) -> pd.Series:
    """Return which steps trained on the student's own completions."""
    if "on_policy" not in frame:
        return pd.Series(True, index=frame.index)
    return frame["on_policy"].fillna(True).astype(bool)


def left_out(runs: pd.DataFrame) -> pd.Series:
    """Return which runs do not count: they diverged, or a knob was moved by hand."""
    return runs["diverged"].astype(bool) | runs["touched"].astype(bool)


def by_arm(runs: pd.DataFrame, measures: Sequence[str]) -> pd.DataFrame:
    """Return a row for each arm: ``runs``, ``left_out``, and each measure with its interval.

    A measure is the mean over the runs that count.
    ``MEASURE ±`` is the half-width of its 95 % interval (Student's t; NaN below two seeds).
    """
    rows = []
    for arm, group in runs.groupby("arm", sort=False):
        bad = left_out(group)
        row: dict[str, Any] = {"arm": arm, "runs": len(group), "left_out": int(bad.sum())}
        for name in measures:
            values = group.loc[~bad, name].dropna().to_numpy(dtype=float)
            row[name] = values.mean() if len(values) else math.nan
            row[f"{name} ±"] = half_width(values)
        rows.append(row)
    return pd.DataFrame(rows)
