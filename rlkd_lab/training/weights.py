"""The weights that a run began with, as digests: models and adapters lie in folders that somebody
may write anew, and a run that goes on would have another teacher without a word.

env.json holds them under ``weights``. A change that was accepted is an event ``data`` with
``weights``, after whose step it holds.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
import warnings
from collections.abc import Mapping
from pathlib import Path

from rlkd_lab.models import distributed, locate
from rlkd_lab.runs import RunFolder
from rlkd_lab.training.config import RunConfig
from rlkd_lab.training.data import ACCEPT, Data

Weights = dict[str, str]
WHOLE = 2**26
"""Bytes up to which a file is read whole; of a larger one the start and samples are."""
START, SAMPLES, BLOCK = 2**20, 256, 2**12
SAID = frozenset(
    {
        "_name_or_path",
        "transformers_version",
        "dtype",
        "torch_dtype",
        "base_model_name_or_path",
        "peft_version",
        "inference_mode",
    }
)
"""Fields of a config that change no number."""


def weights_of(config: RunConfig) -> Weights:
    """SHA-256 of each model and adapter that a config names, by its setting: names and sizes of
    the files, their bytes (of a large file samples), and the config beside them.
    """
    found = {}
    for role, name in _names(config).items():
        folder = Path(name) if role.endswith("adapter") else locate(name)
        found[role] = _digest(folder)
    return found


def _names(config: RunConfig) -> dict[str, str]:
    roles = ("student", "teacher", "adapter", "teacher_adapter")
    named = {role: getattr(config, role) for role in roles}
    return {role: str(name) for role, name in named.items() if name is not None}


def _digest(folder: Path) -> str:
    sha = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        sha.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as opened:
            if size <= WHOLE:
                sha.update(opened.read())
                continue
            sha.update(opened.read(START))
            for number in range(1, SAMPLES + 1):
                opened.seek((size - BLOCK) * number // SAMPLES)
                sha.update(opened.read(BLOCK))
    for file in (folder / "config.json", folder / "adapter_config.json"):
        if file.exists():
            stored = json.loads(file.read_text(encoding="utf-8"))
            kept = {name: value for name, value in stored.items() if name not in SAID}
            sha.update(json.dumps(kept, sort_keys=True).encode())
    return sha.hexdigest()


def weights_until(folder: RunFolder, step: float = math.inf) -> Weights | None:
    """The weights that a run was trained with after ``step``;

    ``None`` for runs of versions that did not record them.
    """
    changes = [
        event["weights"]
        for event in folder.rows("events.jsonl")
        if event["event"] == "data" and "weights" in event and event["step"] <= step
    ]
    found = changes[-1] if changes else folder.env().get("weights")
    return dict(found) if isinstance(found, dict) else None


def _changed(before: Mapping[str, str] | None, now: Weights, config: RunConfig) -> str | None:
    """Which weights differ, in words."""
    names = _names(config)
    odd = [role for role in now if before is not None and before.get(role, now[role]) != now[role]]
    return ", ".join(f"{role}={names[role]}" for role in odd) or None


def refuse_changed_weights(
    before: Mapping[str, str] | None, now: Weights, config: RunConfig, command: str
) -> None:
    """Raise ValueError, in every process, where weights are not what they were;

    ``command`` would go on all the same.
    """
    changed = distributed.from_first(_changed(before, now, config))
    if changed is not None:
        raise ValueError(
            f"the files of {changed} were changed since the run began, so it is another model. Put"
            f" them back, or go on with what is there: `{command} {ACCEPT}`"
        )


def record_weights(
    folder: RunFolder, now: Weights, step: int, config: RunConfig, data: Data
) -> None:
    """Write down the weights from the next step on, if they are new; ``data`` is the run's."""
    if not distributed.first():
        return
    before = weights_until(folder)
    if before is None:
        folder.write_json("env.json", folder.env() | {"weights": now})
        text = (
            "the run was made by a version that did not record the weights of its models; they are"
            f" recorded from step {step} on"
        )
        event = {"event": "warning", "step": step, "text": text, "time": time.time()}
        if not step:
            return
    elif changed := _changed(weights_until(folder, step) or before, now, config):
        text = f"from here on the run is trained with changed files of {changed}"
        event = {"event": "data", "step": step, "data": data, "weights": now, "text": text}
        event |= {"time": time.time()}
    else:
        return
    folder.append("events.jsonl", event)
    warnings.warn(f"after step {step}: {text}", stacklevel=3)
