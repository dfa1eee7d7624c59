"""Replay: run a recorded run again, moved knobs included, and say whether it came out the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rlkd_lab.runs import RunFolder, first_difference
from rlkd_lab.training.folders import config_of
from rlkd_lab.training.session import OnStep, Session, run
from rlkd_lab.training.setup import Row


@dataclass(frozen=True)
class Replay:
    """``difference`` is what differs first, in words, or None;

    ``largest`` the largest absolute difference of any metric.
    """

    folder: RunFolder
    difference: str | None
    largest: float


def replay(
    path: str | Path, out: str | Path, *, tolerance: float = 0.0, on_step: OnStep | None = None
) -> Replay:
    """Run ``path`` again into ``out`` and compare row by row, timings left out.

    On the same CPU type, versions and thread count the rows are equal to the last bit; elsewhere
    give a tolerance.

    Raises:
        FileNotFoundError, ValueError, FileExistsError: as opening, configuring and creating a run
            do.
    """
    original = RunFolder.open(path)
    rows = original.rows("metrics.jsonl")
    if not rows:
        raise ValueError(f"{path} has no finished step to replay")
    script = original.rows("events.jsonl")
    last = rows[-1]["step"]

    def watch(session: Session, row: Row) -> None:
        session.stopping = row["step"] >= last
        if on_step is not None:
            on_step(session, row)

    folder = run(config_of(original), out, on_step=watch, script=script)
    difference, largest = first_difference(folder.rows("metrics.jsonl"), rows, tolerance)
    return Replay(folder, difference, largest)
