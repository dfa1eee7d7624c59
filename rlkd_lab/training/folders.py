"""Run folders and configs: create a run, read its config back, make its moves a schedule."""

from __future__ import annotations

import difflib
import time
import warnings
from pathlib import Path

from rlkd_lab.models import default_device, distributed
from rlkd_lab.objectives import METHODS
from rlkd_lab.runs import RunFolder
from rlkd_lab.runs.checks import FORMAT
from rlkd_lab.training.config import RunConfig
from rlkd_lab.training.config_checks import likely_mistakes
from rlkd_lab.training.environment import describe_environment
from rlkd_lab.training.loop_knobs import Move
from rlkd_lab.training.validated import validated


def create(config: RunConfig, out: str | Path) -> RunFolder:
    """Create a run folder in state idle, before any model is loaded. ``resume`` starts it.

    Raises:
        FileExistsError, PermissionError: as :meth:`RunFolder.create`.
    """
    if not distributed.first():
        return RunFolder(distributed.from_first(str(out)), writes=False)
    folder = RunFolder.create(
        out,
        config.model_dump(),
        describe_environment(default_device()) | {"processes": distributed.count()},
    )
    distributed.from_first(str(out))
    for sentence in likely_mistakes(config):
        warnings.warn(sentence, stacklevel=2)
        folder.append(
            "events.jsonl", {"event": "warning", "step": 0, "text": sentence, "time": time.time()}
        )
    return folder


def config_of(folder: RunFolder) -> RunConfig:
    """Return the validated config of a run on disk.

    Raises:
        ValueError: a run of an older format, of a method that this process does not have, or with
            code of its own in a run folder; its curves can still be read.
    """
    stored = folder.config()
    if stored.pop("format") < FORMAT:
        raise ValueError(
            f"{folder.path} was made by an older version of rlkd_lab: its curves can be read"
            " and compared, but it cannot be run again or resumed"
        )
    if stored["method"] not in METHODS:
        close = difflib.get_close_matches(str(stored["method"]), METHODS, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(
            f"{folder.path} was trained with {stored['method']!r}, a method that this process"
            f" does not have{hint}: its curves can be read and compared;"
            " to resume it, call add_method with the same code and name first, in the same process"
        )
    config = validated(stored)
    refuse_code_of_runs(config, folder.path)
    return config


def refuse_code_of_runs(config: RunConfig, named_by: Path) -> None:
    """Refuse a config whose task or engine is code in a run folder.

    Raises:
        ValueError: it is.
    """
    for what, name in (("task", config.task), ("engine", config.engine)):
        file = Path(name.rpartition(":")[0])
        places = file.resolve().parents if file.suffix == ".py" else ()
        if any(
            (place / "metrics.jsonl").exists() and (place / "config.json").exists()
            for place in places
        ):
            raise ValueError(
                f"{named_by} names {file} as its {what}, which lies in a run folder: such"
                " a folder is data, and no code in it is run. Read the file and,"
                " if you would run it, copy it elsewhere and start a new run with --set"
                f" {what}=PATH.py:NAME"
            )


def schedule_from(folder: RunFolder, seed: int) -> RunConfig:
    """Return the config of a run with its moves by hand as a schedule, for another seed.

    The new run is an ordinary one: nobody touches it.

    Raises:
        ValueError: no knob was moved there.
    """
    moves = [
        Move(step=e["step"], knob=e["knob"], value=e.get("value"), release=bool(e.get("release")))
        for e in folder.rows("events.jsonl")
        if e["event"] == "knob"
    ]
    config = config_of(folder)
    if not moves and not config.moves:
        raise ValueError(f"no knob was moved in {folder.path}: there is no schedule to take")
    return config.model_copy(update={"seed": seed, "moves": config.moves + moves})
