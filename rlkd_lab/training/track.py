"""Send the rows of a run to a tracker, through accelerate's trackers (``track=``).

The run folder has everything without it. A tracker writes to this machine unless its own settings
say otherwise. A tracker that fails is left alone, and the run goes on.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlkd_lab.models import distributed
from rlkd_lab.runs import RunFolder
from rlkd_lab.training.config import RunConfig

COLUMNS = ["prompt", "completion", "reward"]
"""What a table of samples shows."""


def check_tracker(config: RunConfig) -> None:
    """Look for the tracker's package before anything is loaded.

    Raises:
        ValueError: it is not installed.
    """
    name = config.track
    if name is not None and importlib.util.find_spec(name) is None:
        raise ValueError(f"track={name} needs the package {name}: pip install {name}")


class Tracker:
    """Sends each row, and the completions that were recorded, to the tracker of a run.

    Args:
        config: of the run; without ``track`` nothing is sent.
        folder: of the run. Files of the tracker lie in ``track`` beside the run.
    """

    def __init__(self, config: RunConfig, folder: RunFolder) -> None:
        self.folder, self.step = folder, 0
        self._to: Any = None
        if config.track is not None and distributed.first():
            self._safely(lambda: self._start(config))

    def _start(self, config: RunConfig) -> None:
        run = self.folder.path.resolve()
        place = run.parent / "track"  # wandb makes links, and a run folder holds none
        place.mkdir(exist_ok=True)
        to = _make(str(config.track), run, place)
        to.start()
        plain = (str, int, float, bool)
        settings = {
            name: value if isinstance(value, plain) else json.dumps(value)
            for name, value in config.model_dump().items()
        }
        to.store_init_configuration(settings)
        self._to = to

    def log(self, row: dict[str, Any]) -> None:
        """Send the finite numbers of a row, each metric under its own name."""
        if self._to is None:
            return
        self.step = int(row["step"])
        numbers = {
            name: float(value)
            for name, value in row.items()
            if name != "step" and isinstance(value, int | float) and math.isfinite(value)
        }
        self._safely(lambda: self._send(numbers))

    def _send(self, numbers: dict[str, float]) -> None:
        self._to.log(numbers, step=self.step)
        if self.step in self.folder.sample_steps():
            table = self.folder.samples(self.step)[COLUMNS]
            TABLES[self._to.name](self._to, table, self.step)

    def close(self) -> None:
        """Let the tracker write what it holds."""
        if self._to is not None:
            self._safely(self._to.finish)

    def _safely(self, action: Callable[[], Any]) -> None:
        """Run an action of the tracker; where it fails, say so once and send nothing more."""
        try:
            action()
        except Exception as error:  # whatever a tracker raises, the run goes on
            self._to = None
            text = f"the tracker failed and gets nothing more: {type(error).__name__}: {error}"
            event = {"event": "warning", "step": self.step, "text": text, "time": time.time()}
            self.folder.append("events.jsonl", event)


def _make(name: str, run: Path, place: Path) -> Any:
    """Return accelerate's tracker of that name, set to stay on this machine."""
    from accelerate import PartialState, tracking

    PartialState()  # accelerate's trackers ask it which process they are in
    project = run.parent.name or "rlkd_lab"
    if name == "tensorboard":
        return tracking.TensorBoardTracker(run.name, logging_dir=str(place))
    if name == "wandb":
        os.environ.setdefault("WANDB_MODE", "offline")
        return tracking.WandBTracker(project, name=run.name, dir=str(place))
    if name == "trackio":
        return tracking.TrackioTracker(project, name=run.name)
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{place / 'mlflow.db'}")
    return tracking.MLflowTracker(experiment_name=project, run_name=run.name)


def _trackio_table(to: Any, table: Any, step: int) -> None:
    import trackio

    to.log({"samples": trackio.Table(dataframe=table)}, step=step)


def _mlflow_table(to: Any, table: Any, step: int) -> None:
    import mlflow

    mlflow.log_table(table, f"samples/step_{step:06d}.json")


TABLES: dict[str, Callable[[Any, Any, int], Any]] = {
    "tensorboard": lambda to, table, step: to.tracker.add_text("samples", table.to_html(), step),
    "wandb": lambda to, table, step: to.log_table("samples", dataframe=table, step=step),
    "trackio": _trackio_table,
    "mlflow": _mlflow_table,
}
"""How each tracker is given a table of completions."""
