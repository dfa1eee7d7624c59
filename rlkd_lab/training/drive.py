"""Driving a loop: run, resume, load or train. All of them listen to requests.jsonl."""

from __future__ import annotations

import contextlib
import difflib
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rlkd_lab.models import default_device, processes, zoo_names
from rlkd_lab.objectives import METHODS
from rlkd_lab.rollouts import Stopped
from rlkd_lab.runs import FORMAT, RunFolder, alone, checkpoints
from rlkd_lab.training.config import Move, RunConfig, likely_mistakes, validated
from rlkd_lab.training.control import Control
from rlkd_lab.training.data import data_until, record_data, refuse_changed
from rlkd_lab.training.environment import describe_environment, free_memory
from rlkd_lab.training.knobs import Knobs
from rlkd_lab.training.loop import Loop, Row, fingerprint
from rlkd_lab.training.plan import GIB, check_pair, fitted
from rlkd_lab.training.room import Room
from rlkd_lab.training.selfcheck import check_start
from rlkd_lab.training.twins import FORK, RUN_FAILED, Twins

LOADING = "loading the models"
STOPPED = "stopped by hand; `rlkd resume` goes on"


def run(
    config: RunConfig,
    out: str | Path,
    *,
    on_step: Callable[[Loop, Row], None] | None = None,
    script: list[dict[str, Any]] | None = None,
    check_data: Callable[[Loop], object] = lambda loop: None,
) -> RunFolder:
    """Train from the start into a new run folder, in the foreground.

    Args:
        config: see :func:`~rlkd_lab.training.config.make_config`.
        out: the folder to make.
        on_step: called after each step with the loop (``loop.knobs.request(…)``, ``loop.stopping =
            True``) and the row.
        script: recorded events to follow: knob moves and halved micro-batches.
        check_data: called with the loop before the folder is made; raises ValueError where the task
            does not give what it should.

    Raises:
        FileExistsError, PermissionError, FileNotFoundError, ValueError: as the parts do, before
            anything is written; a failure later is in status.json too.
    """
    processes.join()
    if processes.first():
        RunFolder.check_free(out)  # before models are loaded
    config = processes.from_first(within_memory(config))
    loop = Loop(
        config,
        RunFolder(out),
        Knobs(config, [event for event in script or [] if event["event"] == "knob"]),
    )
    loop.room = Room.of(config, script or [])
    check_data(loop)
    loop.folder = create(config, out)
    try:
        with _alone(loop.folder):
            record_data(loop.folder, loop.asked.data, loop.asked.told, 0, config.task)
            _declare_guards(loop, script or [])
            return _drive(loop, on_step)
    except ValueError:
        if (
            loop.step == 0 and processes.first()
        ):  # a mistake that only the first step could find leaves no half of a run
            shutil.rmtree(loop.folder.path)
        raise


def within_memory(config: RunConfig) -> RunConfig:
    """The config with micro_batch and logits_mib lowered until the plan fits what is free; embedded
    models always do.

    Raises:
        ValueError: it cannot be made to fit; says what would.
    """
    if config.plan == "off" or {config.student, config.teacher or config.student} <= set(
        zoo_names()
    ):
        return config
    check_pair(config)
    device = default_device()
    free = free_memory(device)
    fits, _ = fitted(config, free, device.type == "cuda")
    changed = {
        name: value for name, value in fits.model_dump().items() if value != getattr(config, name)
    }
    if changed:
        settings = ", ".join(f"{name}={value}" for name, value in changed.items())
        warnings.warn(
            f"{free / GIB:.1f} GiB are free: the run is made with {settings}, which changes"
            " nothing but speed",
            stacklevel=3,
        )
    return fits


def resume(
    path: str | Path,
    *,
    on_step: Callable[[Loop, Row], None] | None = None,
    accept_changed_data: bool = False,
) -> RunFolder:
    """Go on with a run from its last whole checkpoint; the rows after it are dropped and computed
    again. A run that is done is left alone.

    Args:
        path: of the run folder.
        on_step: as in :func:`run`.
        accept_changed_data: go on though the task gives other rows or prompts than before, and
            write an event.

    Raises:
        FileNotFoundError, ValueError: no run there, a damaged one, one that another process trains,
            a checkpoint that does not match its config, or changed data.
    """
    processes.join()
    folder = RunFolder.open(path)
    if (folder.path / FORK).exists():
        raise ValueError(
            f"{folder.path} is a twin, which is trained with its run: `rlkd resume"
            f" {folder.path.parent.parent}` goes on with both"
        )
    folder.writes = processes.first()
    config = config_of(folder)
    now = processes.from_first(folder.last_status())
    if (
        now["state"] == "done"
        and now["step"] >= config.steps
        and processes.from_first(folder.last_step()) >= config.steps
    ):
        return folder
    with _alone(folder):
        if processes.first() and not (now.get("pid") == os.getpid() and now.get("why") == LOADING):
            folder.ask(
                "begin"
            )  # a button pressed while nothing ran is forgotten; whoever pressed Start has said so already
        try:
            script = [event for event in folder.rows("events.jsonl") if event["event"] == "knob"]
            folder.set_status("running", now["step"], LOADING)
            loop = Loop(config, folder, Knobs(config, script, record_script=False))
            _go_back(loop, accept_changed_data)
            record_data(folder, loop.asked.data, loop.asked.told, loop.step, config.task)
        except KeyboardInterrupt:
            folder.set_status("idle", now["step"], STOPPED)
            raise
        except BaseException as error:
            folder.set_status("failed", now["step"], f"{type(error).__name__}: {error}")
            raise
        return _drive(loop, on_step)


@contextmanager
def _alone(folder: RunFolder) -> Iterator[None]:
    """The folder's lock, held by the first of several processes; if it cannot be had, all of
    them say so.
    """
    with ExitStack() as held:
        refused: Exception | None = None
        if processes.first():
            try:
                held.enter_context(alone(folder.path, "trained"))
            except (ValueError, OSError) as error:
                refused = error
        refused = processes.from_first(refused)
        if refused is not None:
            raise refused
        try:
            yield
        finally:
            folder.wait = None  # whoever keeps the folder does not keep the models


def _go_back(loop: Loop, accept_changed_data: bool) -> None:
    """To the last whole checkpoint; later rows are dropped.

    Raises:
        ValueError: there are checkpoints, and none is whole; or the task does not give what the
            steps up to there were trained on, and that is not accepted.
    """
    folder = loop.folder
    rows = folder.rows("metrics.jsonl")
    checkpoints.sweep_up(folder)
    reached = [
        path for path in folder.checkpoints() if checkpoints.step_of(path) <= len(rows)
    ]  # never one that the rows do not reach
    spoilt = []
    for path in reversed(reached):
        try:
            loop.load_checkpoint(path)
            break
        except checkpoints.Damaged as error:
            spoilt.append(str(error))
            if path == reached[0]:
                raise ValueError(
                    f"{error}, and no other is whole: put one back from a copy; or remove"
                    f" {path.parent}, and the run begins again from step 1"
                ) from error
            warnings.warn(f"{error}: the run goes on from an earlier one", stacklevel=3)
    if rows and not loop.step:
        warnings.warn(
            f"{folder.path} has no checkpoint to go on from: the run begins again from step 1",
            stacklevel=3,
        )
    if loop.step and not accept_changed_data:  # a run that begins again has one kind of data
        refuse_changed(
            data_until(folder), loop.asked.data, loop.config.task, f"rlkd resume {folder.path}"
        )
    loop.room = Room.of(loop.config, folder.rows("events.jsonl"), loop.step)
    processes.from_all(None)  # have read
    folder.truncate("metrics.jsonl", loop.step)
    # moves made by hand hold in the recomputed steps too, as do halved micro-batches, and what was
    # answered is not asked again
    folder.truncate(
        "events.jsonl",
        loop.step,
        keep=(
            "knob",
            "data",
            "micro_batch",
            "sample_at_once",
            "verifier",
            "asked",
            "refused",
            "replaced",
        ),
    )
    for text in spoilt + _elsewhere(folder):
        folder.append(
            "events.jsonl",
            {"event": "warning", "step": loop.step, "text": text, "time": time.time()},
        )
    _declare_guards(loop)
    loop.guards.remember(row for row in rows if row["step"] <= loop.step)


def _elsewhere(folder: RunFolder) -> list[str]:
    """What is another here than where the run was begun, as far as it may change the last bits
    of its numbers; somebody is warned of it.
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


def _declare_guards(loop: Loop, script: Sequence[dict[str, Any]] = ()) -> None:
    """Write down as of which step the guards are declared as they are, if that is new; in a
    replay, what the record says of it.
    """
    changes = [event for event in script if event["event"] == "guards"]
    loop.guards.follow(changes)
    declared = [event for event in loop.folder.rows("events.jsonl") if event["event"] == "guards"]
    if not changes and loop.config.guards != (declared[-1].get("settings") if declared else {}):
        changes = [
            {
                "event": "guards",
                "step": loop.step,
                "settings": loop.config.guards,
                "time": time.time(),
            }
        ]
    for event in changes:
        loop.folder.append("events.jsonl", event)


def load_or_train(
    config: RunConfig, out: str | Path, *, on_step: Callable[[Loop, Row], None] | None = None
) -> RunFolder:
    """The run in ``out``: as it is if it is done, resumed if it was interrupted, trained if it is
    not there.

    Raises:
        ValueError: the run there was made with other settings.
    """
    if not (Path(out) / "config.json").exists():
        return run(config, out, on_step=on_step)
    folder = RunFolder.open(out)
    if fingerprint(config_of(folder)) != fingerprint(config):
        raise ValueError(
            f"{out} holds a run with other settings: delete it, or choose another folder"
        )
    return resume(out, on_step=on_step)


def config_of(folder: RunFolder) -> RunConfig:
    """The validated config of a run on disk.

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
    for what, name in (("task", config.task), ("engine", config.engine)):
        file = Path(name.rpartition(":")[0])
        places = file.resolve().parents if file.suffix == ".py" else ()
        if any(
            (place / "metrics.jsonl").exists() and (place / "config.json").exists()
            for place in places
        ):
            raise ValueError(
                f"{folder.path} names {file} as its {what}, which lies in a run folder: such"
                " a folder is data, and no code in it is run. Read the file and,"
                " if you would run it, copy it elsewhere and start a new run with --set"
                f" {what}=PATH.py:NAME"
            )
    return config


def schedule_from(folder: RunFolder, seed: int) -> RunConfig:
    """The config of a run with its moves by hand made part of it, for another seed: an ordinary
    run, which nobody touches.

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


def create(config: RunConfig, out: str | Path) -> RunFolder:
    """A new run folder in state idle, before any model is loaded; :func:`resume` starts it.

    Raises:
        FileExistsError, PermissionError: as :meth:`RunFolder.create`.
    """
    if not processes.first():
        return RunFolder(processes.from_first(str(out)), writes=False)
    folder = RunFolder.create(
        out,
        config.model_dump(),
        describe_environment(default_device()) | {"processes": processes.count()},
    )
    processes.from_first(str(out))
    for sentence in likely_mistakes(config):
        warnings.warn(sentence, stacklevel=2)
        folder.append(
            "events.jsonl", {"event": "warning", "step": 0, "text": sentence, "time": time.time()}
        )
    return folder


def _drive(loop: Loop, on_step: Callable[[Loop, Row], None] | None) -> RunFolder:
    folder, config = loop.folder, loop.config
    held, before = dict(loop.knobs.held), None
    control: Control | None = None
    twins: Twins | None = None
    try:
        control, twins = Control(loop), Twins(loop)
        folder.set_status("running", loop.step)
        check_start(loop)
        for _ in twins.follow():  # where the run was stopped in their turn
            control.listen()
        while loop.step < config.steps and not loop.stopping:
            if processes.first():
                control.before_step()
            loop.stopping = processes.from_first(loop.stopping)
            if loop.stopping:
                break
            if control.twins_off:
                twins.end("idle", "switched off")
                control.twins_off = False
            twins.before_step(control.twin, control.chances)
            # a stop during its evaluation goes back before the step
            before = (
                loop.snapshot()
                if config.eval_every
                and ((loop.step + 1) % config.eval_every == 0 or loop.step + 1 == config.steps)
                else None
            )
            row = loop.take_step()
            control.step = loop.step
            held = dict(loop.knobs.held)  # those of the last whole step
            folder.append("metrics.jsonl", row)
            due = loop.step == config.steps or (
                config.checkpoint_every and loop.step % config.checkpoint_every == 0
            )
            if due:
                loop.save_checkpoint()
            folder.set_status("running", loop.step)
            if on_step is not None:
                on_step(loop, row)
            for _ in twins.follow():
                control.listen()
            if due:
                twins.save()
            loop.guards.after(row)
            control.after_step()
            loop.stopping = processes.from_first(loop.stopping)
    except (Stopped, KeyboardInterrupt) as error:
        if control is not None and control.trouble is not None:
            control.given_up = True
        try:
            if not loop.whole and before is not None:
                loop.restore(before)
            if loop.whole:  # nothing is lost but the step that was cut
                loop.knobs.held = held
                _leave(loop, twins)
            folder.set_status("idle", loop.step, STOPPED)
            if twins is not None:
                twins.end("idle")
        except OSError as refused:
            folder.say_over(
                "idle",
                loop.step,
                f"{STOPPED} from the last checkpoint; another could not be written:"
                f" {refused.strerror}",
            )
        if isinstance(error, KeyboardInterrupt):
            raise
        return folder
    except BaseException as error:
        if control is not None:
            control.given_up = True
        with contextlib.suppress(OSError):  # what failed may be the disk
            folder.set_status("failed", loop.step, f"{type(error).__name__}: {error}")
            if twins is not None:
                twins.end("failed", RUN_FAILED)
        raise
    finally:
        loop.task.close()
    if loop.step == config.steps:
        control.end()
        folder.set_status("done", loop.step)
        twins.end("done")
    else:  # stopped between two steps
        _leave(loop, twins)
        folder.set_status("idle", loop.step, STOPPED)
        twins.end("idle")
    return folder


def _leave(loop: Loop, twins: Twins | None) -> None:
    """A last checkpoint, to go on from."""
    if loop.step:
        loop.save_checkpoint()
    if twins is not None:
        twins.save()
