"""Early stopping: a run ends when its validation accuracy has not risen for some evaluations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rlkd_lab.training.config import RunConfig
from rlkd_lab.training.evaluation import evaluated_on


class Patience:
    """Counts evaluations without a better accuracy than all before.

    Args:
        config: of the run. With ``patience=0`` it never ends early.
        rows: of its earlier life.
    """

    def __init__(self, config: RunConfig, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self.limit, self.task = config.patience, evaluated_on(config)
        self.best: tuple[float, int] | None = None
        """The highest accuracy and the first step that had it."""
        self.since = 0
        """Evaluations since then."""
        for row in rows:
            self.see(row)

    def see(self, row: Mapping[str, Any]) -> None:
        """Look at the row of a step."""
        accuracy = row.get("eval/accuracy")
        if accuracy is None:
            return
        if self.best is None or accuracy > self.best[0]:
            self.best, self.since = (accuracy, int(row["step"])), 0
        else:
            self.since += 1

    @property
    def over(self) -> str | None:
        """Why the run ends now, or ``None`` where it goes on."""
        if not self.limit or self.since < self.limit or self.best is None:
            return None
        return (
            f"early: {self.since} evaluations on {self.task} without a better accuracy than"
            f" {self.best[0]:.1%} at step {self.best[1]} (patience={self.limit})"
        )
