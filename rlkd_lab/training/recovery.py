"""Recovery: take a run back to its last whole checkpoint."""

from __future__ import annotations

import time
import warnings
from pathlib import Path

from rlkd_lab.models import default_device, distributed
from rlkd_lab.runs import RunFolder, checkpoints
from rlkd_lab.runs.checkpoints import Damaged
from rlkd_lab.training.context import Context
from rlkd_lab.training.decisions import Decisions, Event
from rlkd_lab.training.environment import describe_environment
from rlkd_lab.training.inputs import Inputs, refuse_changed
from rlkd_lab.training.trainer import Trainer

KEPT = (
    "knob",
    "data",
    "micro_batch",
    "sample_at_once",
    "verifier",
    "asked",
    "refused",
    "replaced",
)
"""Events that stay when later steps are computed again: what was decided holds there too, and what
was answered is not asked again."""


def go_back(trainer: Trainer, folder: RunFolder, accept_changed_data: bool = False) -> Context:
    """Load the last whole checkpoint of a run and drop later rows.

    Args:
        trainer: with the loaded models.
        folder: of the run.
        accept_changed_data: go back though the task gives other rows or prompts than before,
            or models and adapters are others.

    Returns:
        The run's context after that step.

    Raises:
        ValueError: a checkpoint is damaged and no other is whole; or the task does not give what
            the steps up to there were trained on.
    """
    rows = folder.rows("metrics.jsonl")
    events = folder.rows("events.jsonl")
    checkpoints.sweep_up(folder)
    # never one that the rows do not reach
    reached = [p for p in folder.checkpoints() if checkpoints.step_of(p) <= len(rows)]
    context, damaged = _load_last(trainer, folder, events, reached)
    step = context.progress.step
    if rows and not step:
        warnings.warn(
            f"{folder.path} has no checkpoint to go on from: the run begins again from step 1",
            stacklevel=4,
        )
    if step and not accept_changed_data:  # a run that begins again has one kind of data
        before, command = Inputs.recorded(folder), f"rlkd resume {folder.path}"
        refuse_changed(before, trainer.inputs, trainer.config, command)
    distributed.from_all(None)  # have read
    folder.truncate("metrics.jsonl", step)
    folder.truncate("events.jsonl", step, keep=KEPT)
    for text in damaged + _elsewhere(folder):
        context.tell({"event": "warning", "step": step, "text": text, "time": time.time()})
    declare_guards(trainer, context)
    context.guards.remember(row for row in rows if row["step"] <= step)
    return context


def _load_last(
    trainer: Trainer, folder: RunFolder, events: list[Event], reached: list[Path]
) -> tuple[Context, list[str]]:
    """Return the context at the newest whole checkpoint, and sentences about damaged ones."""
    config = trainer.config
    damaged: list[str] = []
    for path in reversed(reached):
        decisions = Decisions(config, events, checkpoints.step_of(path), record=False)
        context = Context(config, folder, decisions)
        try:
            trainer.load(context, path)
            return context, damaged
        except Damaged as error:
            damaged.append(str(error))
            if path == reached[0]:
                raise ValueError(
                    f"{error}, and no other is whole: put one back from a copy; or remove"
                    f" {path.parent}, and the run begins again from step 1"
                ) from error
            warnings.warn(f"{error}: the run goes on from an earlier one", stacklevel=5)
    return Context(config, folder, Decisions(config, events, record=False)), damaged


def _elsewhere(folder: RunFolder) -> list[str]:
    """Return what is another here than where the run was begun, as far as it may change the last
    bits of its numbers; somebody is warned of it.
    """
    try:
        before = folder.env()
        now = describe_environment(default_device())
        changed = [
            f"{name} {now[name]} (before: {before[name]})"
            for name in ("device", "threads", "system", "versions")
            if now[name] != before[name]
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []  # of a version that wrote less
    text = (
        f"the run goes on elsewhere than it began, {'; '.join(changed)}: what follows may"
        " differ in the last bits from what would have been"
    )
    if changed:
        warnings.warn(text, stacklevel=4)
    return [text] if changed else []


def declare_guards(trainer: Trainer, context: Context) -> None:
    """Record the declared guards as an event, where they differ from those on record.

    A replay writes what its record says of them.
    """
    decisions, guards = context.decisions, trainer.config.guards
    step = context.progress.step
    changes = decisions.declarations if decisions.record else []
    rows = context.folder.rows("events.jsonl")
    on_record = [event for event in rows if event["event"] == "guards"]
    last = on_record[-1].get("settings") if on_record else {}
    if not changes and guards != last:
        changes = [{"event": "guards", "step": step, "settings": guards, "time": time.time()}]
    for event in changes:
        context.tell(event)
