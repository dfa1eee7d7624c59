"""Replay: run a recorded run again, moved knobs included, and say whether it came out the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rlkd_lab.runs import RunFolder, first_difference
from rlkd_lab.training.data import changed_after, data_until, refuse_changed
from rlkd_lab.training.drive import config_of, run
from rlkd_lab.training.loop import Loop, Row


@dataclass(frozen=True)
class Replay:
    """``difference`` is what differs first, in words, or None; ``largest`` the largest absolute
    difference of any metric; ``steps`` were compared, fewer than the run has where its data was
    changed after them.
    """

    folder: RunFolder
    difference: str | None
    largest: float
    steps: int


def replay(
    path: str | Path,
    out: str | Path,
    *,
    tolerance: float = 0.0,
    on_step: object = None,
    accept_changed_data: bool = False,
) -> Replay:
    """Run ``path`` again into ``out`` and compare row by row, timings left out.

    On the same CPU type, versions and thread count the rows are equal to the last bit; elsewhere
    give a tolerance. A run whose data was changed on the way, and that was accepted, is replayed up
    to that step: there is one file to draw from.

    Raises:
        FileNotFoundError, ValueError, FileExistsError: as opening, configuring and creating a run
            do; or the task does not give what the run began with, unless ``accept_changed_data``.
    """
    original = RunFolder.open(path)
    rows = original.rows("metrics.jsonl")
    if not rows:
        raise ValueError(f"{path} has no finished step to replay")
    script = original.rows("events.jsonl")
    last = min([rows[-1]["step"], *changed_after(script)])

    def check_data(loop: Loop) -> None:
        if not accept_changed_data:
            refuse_changed(
                data_until(original, 0), loop.asked.data, loop.config.task, f"rlkd replay {path}"
            )

    def watch(loop: Loop, row: Row) -> None:
        loop.stopping = row["step"] >= last
        if callable(on_step):
            on_step(loop, row)

    folder = run(config_of(original), out, on_step=watch, script=script, check_data=check_data)
    difference, largest = first_difference(folder.rows("metrics.jsonl"), rows[:last], tolerance)
    return Replay(folder, difference, largest, last)
