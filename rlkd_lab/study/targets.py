"""What is evaluated: a run folder, an adapter folder, or a model.

Finding a target only reads small files; loading it comes later.
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
from rlkd_lab.training.data import data_of, what_changed
from rlkd_lab.training.inputs import Inputs
from rlkd_lab.training.make_config import literal
from rlkd_lab.training.validated import validated


@dataclass(frozen=True)
class Target:
    """A model to evaluate: a base, perhaps with an adapter, perhaps from a run."""

    name: str
    """The name that was asked for."""
    base: str
    quant: Quant
    adapter: Path | None = None
    config: RunConfig | None = None
    """Config of the run that the adapter comes from."""
    run: Path | None = None
    step: int | None = None

    def load(self) -> LanguageModel:
        """Load the frozen model, with its adapter beside the quantised base.

        Raises:
            FileNotFoundError: there is no such model.
            ValueError: the adapter does not fit the base or is damaged, or a layer fails
                verification.
        """
        return load_teacher(self.base, self.quant, adapter=self.adapter)

    @property
    def table(self) -> Path | None:
        """Path of the evaluation of a run's student; ``None`` for a target of no run."""
        return None if self.run is None else self.run / "eval" / f"step_{self.step:06d}.parquet"

    @property
    def label(self) -> str:
        """A short heading."""
        if self.run is None:
            return Path(self.name).name
        return f"{self.run.resolve().name}, step {self.step}"

    def describe(self) -> dict[str, Any]:
        """Return the target in plain values, for the record of an evaluation."""
        return {
            "name": self.name,
            "base": self.base,
            "quant": self.quant,
            "adapter": None if self.adapter is None else str(self.adapter),
            "step": self.step,
        }


def find_target(
    name: str,
    *,
    checkpoint: str | int | None = None,
    base: str | None = None,
    quant: Quant | None = None,
) -> Target:
    """Find the model behind a name or path.

    Args:
        name: an embedded name, a run folder, an adapter folder, a model folder or a hub id. A run
            folder means its student with the adapter of the last whole checkpoint.
        checkpoint: of the run folder: ``best`` by validation accuracy, ``last``, or a step.
        base: the base of an adapter; by default the run's, or the one in adapter_config.json.
        quant: ``nf4`` or ``none``; by default as in the run, otherwise ``nf4``.

    Raises:
        FileNotFoundError: there is nothing, no checkpoint in the run, or no base of the adapter.
        ValueError: the run or checkpoint is damaged, or an option does not apply.
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


def _checkpoint(run: RunFolder, wanted: str | int | None) -> Path:
    found = {checkpoints.step_of(path): path for path in run.checkpoints()}
    if not found:
        raise FileNotFoundError(
            f"{run.path} has no whole checkpoint, so there is no adapter; its student as it"
            f" was before training is {run.config()['student']!r}"
        )
    if wanted is None or wanted == "last":
        return found[max(found)]
    has = f"it has {', '.join(map(str, found))}"
    if wanted == "best":
        known = {row.get("step"): row.get("eval/accuracy") for row in run.rows()}
        scores = [(known[step], step) for step in found if isinstance(known.get(step), float)]
        if not scores:
            raise ValueError(
                f"no checkpoint of {run.path} was evaluated in its step, so none is the best: give"
                f" --checkpoint last or a step; {has}"
            )
        return found[max(scores)[1]]
    try:
        step = int(wanted)
    except ValueError:
        raise ValueError(f"--checkpoint {wanted}: write best, last or a step; {has}") from None
    if step not in found:
        raise FileNotFoundError(f"{run.path} has no checkpoint of step {step}; {has}")
    return found[step]


def _adapter(name: str, adapter: Path, base: str | None, quant: Quant | None) -> Target:
    checkpoints.check(adapter)
    # RUN/checkpoints/step_000010
    run, place = Path(os.path.normpath(adapter / ".." / "..")), adapter.resolve()
    if place.parent.name == "checkpoints" and (run / "config.json").exists():
        config = config_of(RunFolder.open(run))
        base, quant = base or config.student, quant or config.quant
        return Target(name, base, quant, adapter, config, run, checkpoints.step_of(place))
    return Target(name, base or _base_of(adapter), quant or "nf4", adapter)


def _base_of(adapter: Path) -> str:
    """Return the base that an adapter names, if it is on this machine."""
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
    """Return the task ``name``, or the run's with its settings, or arithmetic."""
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
"""Settings that say how a model is asked, beside ``task`` and ``task.NAME``."""


def asked_as(
    config: RunConfig | None, task: str | None, given: Mapping[str, str]
) -> tuple[RunConfig, list[str]]:
    """Return how an evaluation asks: as the run did, except for what is given.

    Args:
        config: the run's config; ``None`` for a model of no run.
        task: name of another task, to which settings and template of the run's do not apply.
        given: values of :data:`ASKED` and ``task.NAME``, as given to ``--set``.

    Returns:
        A config whose task and :data:`ASKED` count, and a sentence for each setting that differs
        from the run's.

    Raises:
        ValueError: a setting is unknown or its value is bad.
    """
    start = RunConfig(teacher=None) if config is None else config
    other = task is not None and task != start.task
    values: dict[str, Any] = {"task": task, "prompt_template": None} if other else {}
    settings = {} if other else dict(start.task_settings)
    for name, value in given.items():
        if name.startswith("task."):
            settings[name.removeprefix("task.")] = literal(value)
        else:
            name = nearest(name, ASKED, "setting of an evaluation for --set")
            off = value in ("", "off") and name in ("system_prompt", "max_prompt_tokens")
            values[name] = None if off else value
    found = validated({**start.model_dump(), **values, "task_settings": settings})
    told = []
    of_the_task = {"task_settings", "prompt_template"} if other else set()
    for name in (*ASKED, "task_settings") if config is not None else ():
        here, there = getattr(found, name), getattr(config, name)
        if name not in of_the_task and here != there:
            told.append(f"{name} is {here!r:.80} here and {there!r:.80} in the run")
    return found, told


def data_changed(run: Path | None, config: RunConfig, task: GuardedTask) -> str | None:
    """Return how rows differ from those that a run was trained on, in words, or ``None``."""
    before = None if run is None else Inputs.recorded(RunFolder.open(run)).data or None
    if before is None or not isinstance(task.task, QuestionTask):
        return None
    return what_changed(before, data_of(task, config.task, []))


def data_note(run: Path | None, config: RunConfig, task: GuardedTask) -> str | None:
    """Return a warning where the data are not those of the training.

    Prompts that were held out then may not be held out now.
    """
    changed = data_changed(run, config, task)
    if changed is None:
        return None
    return (
        f"the data of {config.task} is not what the run was trained on: {changed}; questions"
        " of its training may be among these"
    )
