"""What an evaluation is pointed at: a run folder, an adapter folder, or a model.

Finding it reads small files alone; loading comes after.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkd_lab.models import LanguageModel, load_teacher, locate
from rlkd_lab.models.language_model import Quant
from rlkd_lab.models.locating import zoo_names
from rlkd_lab.objectives.settings import nearest
from rlkd_lab.runs import RunFolder, checkpoints
from rlkd_lab.tasks import QuestionTask
from rlkd_lab.tasks.verifier import GuardedTask, guarded
from rlkd_lab.training import RunConfig, config_of
from rlkd_lab.training.config import validated
from rlkd_lab.training.data import data_of, what_changed
from rlkd_lab.training.inputs import data_until
from rlkd_lab.training.make_config import literal


@dataclass(frozen=True)
class Target:
    """A model to evaluate: a base, perhaps with an adapter, perhaps from a run."""

    name: str
    """As it was asked for."""
    base: str
    quant: Quant
    adapter: Path | None = None
    config: RunConfig | None = None
    """Of the run that the adapter comes from."""
    run: Path | None = None
    step: int | None = None

    def load(self) -> LanguageModel:
        """The frozen model, with its adapter beside the quantised base.

        Raises:
            FileNotFoundError: no such model.
            ValueError: the adapter does not fit the base or is damaged, or a layer fails
                verification.
        """
        return load_teacher(self.base, self.quant, adapter=self.adapter)

    @property
    def table(self) -> Path | None:
        """Where the evaluation of a run's student lies;

        ``None`` for a model or an adapter that is in no run.
        """
        return None if self.run is None else self.run / "eval" / f"step_{self.step:06d}.parquet"

    @property
    def label(self) -> str:
        """Short, for headings."""
        return (
            Path(self.name).name
            if self.run is None
            else f"{self.run.resolve().name}, step {self.step}"
        )

    def describe(self) -> dict[str, Any]:
        """For the record, in plain values."""
        return {
            "name": self.name,
            "base": self.base,
            "quant": self.quant,
            "adapter": None if self.adapter is None else str(self.adapter),
            "step": self.step,
        }


def find_target(
    name: str, *, checkpoint: int | None = None, base: str | None = None, quant: Quant | None = None
) -> Target:
    """The model behind a name or path.

    Args:
        name: an embedded name; a run folder, meaning its student with the adapter of the last whole
            checkpoint; an adapter folder; a model folder or hub id.
        checkpoint: another step of the run folder.
        base: of an adapter. By default that of the run whose checkpoint it is, otherwise the one in
            its adapter_config.json.
        quant: ``nf4`` or ``none``; by default as in the run, otherwise ``nf4``.

    Raises:
        FileNotFoundError: nothing there, a run without a checkpoint, an adapter whose base cannot
            be found.
        ValueError: a damaged run or checkpoint, or an option that this target has no use for.
    """
    folder = Path(name)
    if name not in zoo_names():
        if (folder / "adapter_model.safetensors").exists():
            if checkpoint is not None:
                raise ValueError(
                    f"--checkpoint chooses among the checkpoints of a run folder; {name} is"
                    " one adapter"
                )
            return _adapter(name, folder, base, quant)
        if any((folder / file).exists() for file in ("metrics.jsonl", "status.json")):
            if base is not None:
                raise ValueError(
                    f"--base is for an adapter folder; {name} is a run folder, and its config"
                    " names the base"
                )
            adapter = _checkpoint(RunFolder.open(folder), checkpoint)
            return _adapter(name, adapter, None, quant)
    if checkpoint is not None or base is not None:
        raise ValueError(
            f"{name} is a model: --checkpoint is for a run folder and --base for an adapter folder"
        )
    locate(name)
    return Target(name, name, quant or "nf4")


def _checkpoint(run: RunFolder, step: int | None) -> Path:
    found = {checkpoints.step_of(path): path for path in run.checkpoints()}
    if not found:
        raise FileNotFoundError(
            f"{run.path} has no whole checkpoint, so there is no adapter; its student as it"
            f" was before training is {run.config()['student']!r}"
        )
    if step is not None and step not in found:
        raise FileNotFoundError(
            f"{run.path} has no checkpoint of step {step}; it has {', '.join(map(str, found))}"
        )
    return found[max(found) if step is None else step]


def _adapter(name: str, adapter: Path, base: str | None, quant: Quant | None) -> Target:
    checkpoints.check(adapter)
    run, place = (
        Path(os.path.normpath(adapter / ".." / "..")),
        adapter.resolve(),
    )  # RUN/checkpoints/step_000010
    if place.parent.name == "checkpoints" and (run / "config.json").exists():
        config = config_of(RunFolder.open(run))
        return Target(
            name,
            base or config.student,
            quant or config.quant,
            adapter,
            config,
            run,
            checkpoints.step_of(place),
        )
    return Target(name, base or _base_of(adapter), quant or "nf4", adapter)


def _base_of(adapter: Path) -> str:
    """The base that an adapter names, if it is here."""
    try:
        named = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))[
            "base_model_name_or_path"
        ]
        locate(named)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise FileNotFoundError(
            f"the base of the adapter {adapter} is not named in its adapter_config.json, or"
            " is not here: give it with --base"
        ) from None
    return str(named)


def task_of(config: RunConfig | None, name: str | None = None) -> GuardedTask:
    """The task to evaluate on:

    ``name``, otherwise the run's with its settings, otherwise arithmetic. The one place that turns
    settings into a task.
    """
    if config is None or (name is not None and name != config.task):
        return guarded(name or "arithmetic")
    return guarded(
        config.task, config.task_settings, config.prompt_template, config.verifier_seconds
    )


ASKED = (
    "chat",
    "system_prompt",
    "prompt_template",
    "max_prompt_tokens",
    "long_prompts",
    "verifier_seconds",
)
"""Settings of a run that say how it is asked, beside ``task`` and ``task.NAME``."""


def asked_as(
    config: RunConfig | None, task: str | None, given: Mapping[str, str]
) -> tuple[RunConfig, list[str]]:
    """How an evaluation asks: as the run did, but for what is given.

    Args:
        config: of the run; ``None`` for a model that is of no run.
        task: its name, if it is another one; settings and template of the run's task are for that
            task alone.
        given: values of :data:`ASKED` and ``task.NAME``, as they stand behind ``--set``.

    Returns:
        A config whose task and :data:`ASKED` count, and a sentence for each setting that is not the
        run's.

    Raises:
        ValueError: an unknown setting or a bad value, in one sentence.
    """
    start = RunConfig(teacher=None) if config is None else config
    other = task is not None and task != start.task
    values: dict[str, Any] = (
        {} if not other else {"task": task, "task_settings": {}, "prompt_template": None}
    )
    settings = dict(values.get("task_settings", start.task_settings))
    for name, value in given.items():
        if name.startswith("task."):
            settings[name.removeprefix("task.")] = literal(value)
        else:
            values[nearest(name, ASKED, "setting of an evaluation for --set")] = (
                None
                if value in ("", "off") and name in ("system_prompt", "max_prompt_tokens")
                else value
            )
    found = validated({**start.model_dump(), **values, "task_settings": settings})
    told = []
    if config is not None:
        shown = (
            [*ASKED, "task_settings"]
            if not other
            else [name for name in ASKED if name != "prompt_template"]
        )
        changed = [name for name in shown if getattr(found, name) != getattr(config, name)]
        told = [
            f"{name} is {getattr(found, name)!r:.80} here and {getattr(config, name)!r:.80}"
            " in the run"
            for name in changed
        ]
    return found, told


def data_note(run: Path | None, config: RunConfig, task: GuardedTask) -> str | None:
    """A sentence where the rows are not those that the run was trained on: what was held out
    then may not be now.
    """
    before = None if run is None else data_until(RunFolder.open(run))
    if before is None or not isinstance(task.task, QuestionTask):
        return None
    changed = what_changed(before, data_of(task, config.task, []))
    return (
        None
        if changed is None
        else f"the data of {config.task} is not what the run was trained on: {changed}; questions"
        " of its training may be among these"
    )
