"""Replay: run a recorded run again, moved knobs included, and say whether it came out the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rlkd_lab.runs import RunFolder, first_difference
from rlkd_lab.training.folders import config_of
from rlkd_lab.training.inputs import Inputs, changed_after, refuse_changed
from rlkd_lab.training.session import OnStep, Session, run
from rlkd_lab.training.setup import Row
from rlkd_lab.training.trainer import Trainer


@dataclass(frozen=True)
class Replay:
    """What a replay found."""

    folder: RunFolder
    difference: str | None
    """What differs first, in words, or ``None``."""
    largest: float
    """Largest absolute difference of any metric."""
    steps: int
    """Steps that were compared: fewer than the run has where its data was changed after them."""


def replay(
    path: str | Path,
    out: str | Path,
    *,
    tolerance: float = 0.0,
    on_step: OnStep | None = None,
    accept_changed_data: bool = False,
) -> Replay:
    """Run ``path`` again into ``out`` and compare row by row, timings left out.

    On the same CPU type, versions and thread count the rows are equal to the last bit; elsewhere
    give a tolerance. A run whose data was changed on the way is replayed up to that step.

    Raises:
        FileNotFoundError, ValueError, FileExistsError: as opening, configuring and creating a run
            do; or the task does not give what the run began with, unless
            ``accept_changed_data``.
    """
    original = RunFolder.open(path)
    rows = original.rows("metrics.jsonl")
    if not rows:
        raise ValueError(f"{path} has no finished step to replay")
    script = original.rows("events.jsonl")
    last = min([rows[-1]["step"], *changed_after(script)])

    def check_data(trainer: Trainer) -> None:
        if not accept_changed_data:
            began = Inputs.recorded(original, 0)
            refuse_changed(began, trainer.inputs, trainer.config, f"rlkd replay {path}")

    def watch(session: Session, row: Row) -> None:
        session.stopping = row["step"] >= last
        if on_step is not None:
            on_step(session, row)

    folder = run(config_of(original), out, on_step=watch, script=script, check_data=check_data)
    difference, largest = first_difference(folder.rows("metrics.jsonl"), rows[:last], tolerance)
    return Replay(folder, difference, largest, last)
