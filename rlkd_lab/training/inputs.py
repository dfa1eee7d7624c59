"""What a run is trained on: digests of its data and of its models' weights.

A run that is resumed or replayed on anything else says so before it trains. env.json holds under
``data`` and ``weights`` what the run began with. An event ``data`` holds an accepted change, from
the step after its own.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlkd_lab.models import distributed
from rlkd_lab.runs import RunFolder
from rlkd_lab.training.config import RunConfig
from rlkd_lab.training.data import Data, notes, what_changed
from rlkd_lab.training.weights import Weights, changed_files

ACCEPT = "--accept-changed-data"


@dataclass(frozen=True)
class Inputs:
    """Holds digests of data and weights. They are empty where an older version recorded none."""

    data: Data
    weights: Weights

    @staticmethod
    def recorded(folder: RunFolder, step: float = math.inf) -> Inputs:
        """Return what a run was trained on after ``step``."""
        env = folder.env()
        found: dict[str, Any] = {"data": env.get("data"), "weights": env.get("weights")}
        for event in folder.rows("events.jsonl"):
            if event["event"] == "data" and event["step"] <= step:
                found |= {name: event[name] for name in found if name in event}
        data, weights = (dict(one) if isinstance(one, dict) else {} for one in found.values())
        return Inputs(data if "digest" in data else {}, weights)


def changed_after(events: Iterable[Mapping[str, Any]]) -> list[int]:
    """Return the steps after which a change was accepted."""
    return [event["step"] for event in events if event["event"] == "data" and event["step"] > 0]


def refuse_changed(before: Inputs, now: Inputs, config: RunConfig, command: str) -> None:
    """Raise ValueError, in every process, where data or weights have changed.

    The sentence says that ``command`` accepts the change.
    """
    data = distributed.from_first(what_changed(before.data, now.data) if before.data else None)
    if data is not None:
        raise ValueError(
            f"the data of {config.task} was changed since the run began: {data}. Put it back, or"
            f" go on with what is there: `{command} {ACCEPT}`"
        )
    files = distributed.from_first(changed_files(before.weights, now.weights, config))
    if files is not None:
        raise ValueError(
            f"the files of {files} were changed since the run began, so it is another model. Put"
            f" them back, or go on with what is there: `{command} {ACCEPT}`"
        )


def record_inputs(
    folder: RunFolder, now: Inputs, told: Sequence[str], step: int, config: RunConfig
) -> None:
    """Write down what the run is trained on from the next step on, where that is new.

    ``told`` are sentences about its prompts, written once.
    """
    if not distributed.first():
        return
    known = Inputs.recorded(folder)
    new = {} if known.data else {"data": now.data}
    new |= {} if known.weights else {"weights": now.weights}
    if new:
        folder.write_json("env.json", folder.env() | new)
    if not known.data:
        for text in told:
            _append(folder, step, text)
    for text, digests in _news(known, Inputs.recorded(folder, step), now, step, config):
        _append(folder, step, text, digests)
        warnings.warn(f"after step {step}: {text}", stacklevel=3)


def _news(
    known: Inputs, before: Inputs, now: Inputs, step: int, config: RunConfig
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield sentences, each with the digests that its event holds."""
    version, task = "the run was made by a version that did not record", config.task
    if not known.data:
        if step:
            yield f"{version} its data; what {task} gives is recorded from step {step} on", {}
    elif changed := what_changed(before.data or known.data, now.data):
        text = f"from here on the run is trained on changed data of {task}: {changed}"
        yield text, {"data": now.data}
    else:
        yield from ((text, {}) for text in notes(known.data, now.data, task))
    if not known.weights:
        if step:
            yield f"{version} the weights of its models; they are recorded from step {step} on", {}
    elif files := changed_files(before.weights or known.weights, now.weights, config):
        text = f"from here on the run is trained with changed files of {files}"
        yield text, {"data": now.data, "weights": now.weights}


def _append(
    folder: RunFolder, step: int, text: str, digests: Mapping[str, Any] | None = None
) -> None:
    event = {"event": "data" if digests else "warning", "step": step, **(digests or {})}
    folder.append("events.jsonl", event | {"text": text, "time": time.time()})
