"""Whose step it is: a run, or a fork of it."""

from __future__ import annotations

from collections.abc import Sequence

from rlkd_lab.runs import RunFolder
from rlkd_lab.training.config import RunConfig
from rlkd_lab.training.decisions import Decisions, Event
from rlkd_lab.training.guards import Guards
from rlkd_lab.training.knobs import Knobs
from rlkd_lab.training.state import Progress, Snapshot


class Context:
    """All that a step needs beside models and config, and that differs between a run and its fork.

    Args:
        config: of the run.
        folder: where rows, events and checkpoints go.
        decisions: recorded choices to follow; by default there are none.
        noise: part of the seed of every sampling; another word gives other completions of the
            same prompts.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        decisions: Decisions | None = None,
        noise: str = "",
    ) -> None:
        decisions = decisions or Decisions(config)
        self.folder, self.decisions, self.noise = folder, decisions, noise
        self.knobs = Knobs(config, decisions)
        followed: Sequence[Event] = decisions.declarations if decisions.record else ()
        self.guards = Guards(config.guards, self.tell, followed)
        self.progress = Progress()
        self.snapshot: Snapshot | None = None
        """Weights and moments while another context has the live tensors."""

    def tell(self, event: Event) -> None:
        """Write an event."""
        self.folder.append("events.jsonl", event)
