"""Sessions: run, resume, and how a run ends. A session answers the requests that reach its run."""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rlkd_lab.models import LanguageModel, default_device, distributed
from rlkd_lab.models.loading import one_at_a_time
from rlkd_lab.models.locating import zoo_names
from rlkd_lab.rollouts import Stopped
from rlkd_lab.runs import RunFolder
from rlkd_lab.runs.lock import alone
from rlkd_lab.training.before_loading import asked_prompts, check_pair
from rlkd_lab.training.config import RunConfig
from rlkd_lab.training.context import Context
from rlkd_lab.training.decisions import Decisions, Event
from rlkd_lab.training.environment import free_memory
from rlkd_lab.training.fingerprint import fingerprint
from rlkd_lab.training.fitting import fitted
from rlkd_lab.training.folders import config_of, create
from rlkd_lab.training.forks import FORK, RUN_FAILED, SWITCHED_OFF, Forks
from rlkd_lab.training.inputs import record_inputs
from rlkd_lab.training.knobs import Knobs
from rlkd_lab.training.patience import Patience
from rlkd_lab.training.plan import GIB
from rlkd_lab.training.recovery import declare_guards, go_back
from rlkd_lab.training.requests import RequestHandler
from rlkd_lab.training.selfcheck import check_start
from rlkd_lab.training.setup import Row
from rlkd_lab.training.teacher_settings import teacher_models
from rlkd_lab.training.track import Tracker, check_tracker
from rlkd_lab.training.trainer import Trainer

LOADING = "loading the models"
STOPPED = "stopped by hand; `rlkd resume` goes on"
OnStep = Callable[["Session", Row], object]


class Session:
    """A run in memory. ``on_step`` callbacks get it after each step.

    Args:
        trainer: with the loaded models.
        context: of the run.
    """

    def __init__(self, trainer: Trainer, context: Context) -> None:
        self.trainer, self.context = trainer, context
        trainer.switch(context)
        self.handler = RequestHandler(context, lambda: trainer.save(context))
        self.forks = Forks(trainer, context)
        self.tracker = Tracker(trainer.config, context.folder)
        self.patience = Patience(trainer.config, context.folder.rows())

    @property
    def config(self) -> RunConfig:
        """Of the run."""
        return self.trainer.config

    @property
    def folder(self) -> RunFolder:
        """Of the run."""
        return self.context.folder

    @property
    def knobs(self) -> Knobs:
        """Of the run: ``session.knobs.request(…)`` moves one from the next step on."""
        return self.context.knobs

    @property
    def policy(self) -> LanguageModel:
        """The model that is trained."""
        return self.trainer.policy

    @property
    def step(self) -> int:
        """Last whole step of the run."""
        return self.context.progress.step

    @property
    def done(self) -> bool:
        """Whether no step is left to take: all are taken, or patience is over."""
        return self.step >= self.config.steps or self.patience.over is not None

    @property
    def stopping(self) -> bool:
        """Whether the run ends after this step; ``resume`` takes it up there."""
        return self.handler.stopping

    @stopping.setter
    def stopping(self, stop: bool) -> None:
        self.handler.stopping = stop

    def stop_asked(self) -> bool:
        """Read requests, and return whether to stop between two tokens."""
        self.handler.listen()
        # several processes stop together, after the step
        return self.stopping and distributed.count() == 1

    def drive(self, on_step: OnStep | None = None) -> RunFolder:
        """Take steps until the last one, or until somebody stops the run."""
        try:
            self.folder.set_status("running", self.step)
            check_start(self.trainer, self.context)
            self._follow()  # where the run was stopped in their turn
            while self._goes_on():
                self._take_step(on_step)
        except (Stopped, KeyboardInterrupt) as error:
            self._end_cut()
            if isinstance(error, KeyboardInterrupt):
                raise
            return self.folder
        except BaseException as error:
            self._end_failed(error)
            raise
        if self.done:
            self._end_done()
        else:
            self._end_between_steps()
        return self.folder

    def _goes_on(self) -> bool:
        """Whether there is another step to take; waits while the run is paused."""
        if self.done or self.stopping:
            return False
        if distributed.first():
            self.handler.before_step()
        self.stopping = distributed.from_first(self.stopping)
        return not self.stopping

    def _take_step(self, on_step: OnStep | None) -> None:
        config, handler = self.config, self.handler
        if handler.forks_off:
            self.forks.end("idle", SWITCHED_OFF)
            handler.forks_off = False
        self.forks.before_step(handler.fork, handler.chances)
        row = self.trainer.step(self.context, self.stop_asked)
        self.folder.append("metrics.jsonl", row)
        self.tracker.log(row)
        self.patience.see(row)
        every = config.checkpoint_every
        due = self.done or (every and self.step % every == 0)
        if due:
            self.trainer.save(self.context)
        self.folder.set_status("running", self.step)
        if on_step is not None:
            on_step(self, row)
        self._follow()
        if due:
            self.forks.save()
        self.context.guards.after(row)
        handler.after_step()
        self.stopping = distributed.from_first(self.stopping)

    def _follow(self) -> None:
        """Train the forks up to the run's step."""
        for _ in self.forks.follow(self.stop_asked, lambda: self.stopping):
            self.handler.listen()

    # --- how a run ends ---------------------------------------------------------------------------

    def _end_done(self) -> None:
        """The last step is done."""
        self.handler.end()
        self.folder.set_status("done", self.step, self.patience.over)
        self.forks.end("done")

    def _end_between_steps(self) -> None:
        """Somebody stopped the run after a step."""
        self._save_all()
        self.folder.set_status("idle", self.step, STOPPED)
        self.forks.end("idle")

    def _end_cut(self) -> None:
        """Somebody stopped the run within a step. Nothing is lost but that step."""
        if self.handler.trouble is not None:
            self.handler.given_up = True
        try:
            if self.trainer.go_back(self.context):
                self._save_all()
            self.folder.set_status("idle", self.step, STOPPED)
            self.forks.end("idle")
        except OSError as refused:
            self.folder.say_over(
                "idle",
                self.step,
                f"{STOPPED} from the last checkpoint; another could not be written:"
                f" {refused.strerror}",
            )

    def _end_failed(self, error: BaseException) -> None:
        """Something failed. It may be the disk."""
        self.handler.given_up = True
        with contextlib.suppress(OSError):
            self.folder.set_status("failed", self.step, f"{type(error).__name__}: {error}")
            self.forks.end("failed", RUN_FAILED)

    def _save_all(self) -> None:
        """Write a last checkpoint of the run and of its forks."""
        if self.step:
            self.trainer.save(self.context)
        self.forks.save()


def run(
    config: RunConfig,
    out: str | Path,
    *,
    on_step: OnStep | None = None,
    script: list[Event] | None = None,
    check_data: Callable[[Trainer], object] = lambda trainer: None,
) -> RunFolder:
    """Train from the start into a new run folder, in the foreground.

    Args:
        config: see :func:`~rlkd_lab.training.make_config.make_config`.
        out: the folder to make.
        on_step: called after each step with the session (``session.knobs.request(…)``,
            ``session.stopping = True``) and the row.
        script: recorded events to follow, see :class:`~rlkd_lab.training.decisions.Decisions`.
        check_data: called before the folder is made; raises ValueError where the task does not
            give what it should.

    Raises:
        FileExistsError, PermissionError, FileNotFoundError, ValueError: before anything is written.
            A later failure is in status.json too.
    """
    distributed.join()
    check_tracker(config)
    if distributed.first():
        RunFolder.check_free(out)  # before models are loaded
    config = distributed.from_first(within_memory(config))
    decisions = Decisions(config, script or [])
    Context(config, RunFolder(out), decisions)  # refuses a damaged script before models are loaded
    trainer = Trainer(config)
    check_data(trainer)
    context = Context(config, create(config, out), decisions)
    try:
        with _alone(context.folder):
            record_inputs(context.folder, trainer.inputs, trainer.asked.told, 0, config)
            declare_guards(trainer, context)
            return _drive(trainer, context, on_step)
    except ValueError:
        # a mistake that only the first step could find leaves no half of a run
        if context.progress.step == 0 and distributed.first():
            shutil.rmtree(context.folder.path)
        raise


def resume(
    path: str | Path, *, on_step: OnStep | None = None, accept_changed_data: bool = False
) -> RunFolder:
    """Resume a run from its last whole checkpoint. Later rows are dropped and computed again.

    A run that is done is left alone.

    Args:
        path: of the run folder.
        on_step: as in :func:`run`.
        accept_changed_data: resume though the task gives other rows or prompts than before, or
            the files of a model or adapter were changed, and write an event.

    Raises:
        FileNotFoundError, ValueError: no run is there, it is damaged, another process trains it, a
            checkpoint does not match its config, or its data was changed.
    """
    distributed.join()
    folder = RunFolder.open(path)
    if (folder.path / FORK).exists():
        raise ValueError(
            f"{folder.path} is a fork, which is trained with its run: `rlkd resume"
            f" {folder.path.parent.parent}` resumes both"
        )
    folder.writes = distributed.first()
    config = config_of(folder)
    if _state_of(folder, config)[1]:
        return folder
    with _alone(folder):
        now, over = _state_of(folder, config)
        if over:  # whoever held the folder has finished the run
            return folder
        # a button pressed while nothing ran is forgotten; who pressed Start has said so already
        if distributed.first() and not (
            now.get("pid") == os.getpid() and now.get("why") == LOADING
        ):
            folder.ask("begin")
        try:
            folder.set_status("running", now["step"], LOADING)
            trainer = Trainer(config)
            context = go_back(trainer, folder, accept_changed_data)
            step = context.progress.step
            record_inputs(folder, trainer.inputs, trainer.asked.told, step, config)
        except KeyboardInterrupt:
            folder.set_status("idle", now["step"], STOPPED)
            raise
        except BaseException as error:
            folder.set_status("failed", now["step"], f"{type(error).__name__}: {error}")
            raise
        return _drive(trainer, context, on_step)


def _state_of(folder: RunFolder, config: RunConfig) -> tuple[dict[str, Any], bool]:
    """Return the status of a run, and whether all of its steps are done."""
    now = distributed.from_first(folder.last_status())
    rows = folder.rows()
    last = now["step"] if Patience(config, rows).over else config.steps
    return now, distributed.from_first(now["state"] == "done" and len(rows) >= last)


def _drive(trainer: Trainer, context: Context, on_step: OnStep | None) -> RunFolder:
    try:
        session = Session(trainer, context)
    except BaseException as error:
        context.folder.set_status(
            "failed", context.progress.step, f"{type(error).__name__}: {error}"
        )
        trainer.close()
        raise
    try:
        return session.drive(on_step)
    finally:
        session.tracker.close()
        trainer.close()


def load_or_train(
    config: RunConfig, out: str | Path, *, on_step: OnStep | None = None
) -> RunFolder:
    """Return the run in ``out``: done ones as they are, interrupted ones resumed, missing ones
    trained.

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


@one_at_a_time
def within_memory(config: RunConfig) -> RunConfig:
    """The config with micro_batch and logits_mib lowered until the plan fits what is free; embedded
    models always do.

    Raises:
        ValueError: it cannot be made to fit; says what would. Or examples lack what the teacher's
            prompts are made of.
    """
    named = {config.student, *teacher_models(config)}
    if config.plan == "off" or named <= set(zoo_names()):
        if config.teacher_prompt or config.teacher_mix:
            asked_prompts(config)
        return config
    check_pair(config)
    device = default_device()
    free = free_memory(device)
    fits, _ = fitted(config, free, device.type == "cuda")
    asked = config.model_dump()
    changed = {name: value for name, value in fits.model_dump().items() if value != asked[name]}
    if changed:
        settings = ", ".join(f"{name}={value}" for name, value in changed.items())
        warnings.warn(
            f"{free / GIB:.1f} GiB are free: the run is made with {settings}, which changes"
            " nothing but speed",
            stacklevel=3,
        )
    return fits


@contextmanager
def _alone(folder: RunFolder) -> Iterator[None]:
    """Hold the folder's lock in the first of several processes. Where it cannot be had, all of them
    raise.
    """
    with ExitStack() as held:
        refused: Exception | None = None
        if distributed.first():
            try:
                held.enter_context(alone(folder.path, "trained"))
            except (ValueError, OSError) as error:
                refused = error
        refused = distributed.from_first(refused)
        if refused is not None:
            raise refused
        try:
            yield
        finally:
            folder.wait = None  # a folder that is kept does not keep the models
