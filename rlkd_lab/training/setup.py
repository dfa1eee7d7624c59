"""What all phases of a step share and none of them changes: config, method, models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from rlkd_lab.models.top_logps import Top
from rlkd_lab.objectives.loss import ResolvedMethod, resolve
from rlkd_lab.rollouts.stored import Stored
from rlkd_lab.tasks import Example
from rlkd_lab.tasks.verifier import GuardedTask
from rlkd_lab.training.config import RunConfig
from rlkd_lab.training.evaluation import evaluation_task
from rlkd_lab.training.loop_knobs import LOOP_KNOBS
from rlkd_lab.training.models import Models, load_models
from rlkd_lab.training.teacher_cache import stored_teacher

Coefs = Mapping[str, float | None]
Row = dict[str, Any]


@dataclass
class Traces:
    """Completions by the teacher and the examples that they answer, read when first needed."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    examples: dict[str, Example] = field(default_factory=dict)
    """By id."""
    stored: Stored | None = None
    """With ``teacher_cache``: the file that they come from."""
    top: list[Top] = field(default_factory=list)
    """What the stored teacher said of each of them."""


@dataclass(frozen=True)
class Setup:
    """A config with its method and its loaded models."""

    config: RunConfig
    method: ResolvedMethod
    models: Models
    traces: Traces
    eval_task: GuardedTask
    """The task that evaluations ask: ``models.task``, or another."""

    @staticmethod
    def load(config: RunConfig) -> Setup:
        """Load the models of a config. See :func:`~rlkd_lab.training.models.load_models`."""
        options = {"constant_length": config.max_new_tokens, **config.options}
        method = resolve(config.method, options=options)
        stored = stored_teacher(config)  # refuses a file before a model is loaded
        models = load_models(config)
        traces = Traces(stored=stored)
        return Setup(config, method, models, traces, evaluation_task(config, models.task))

    @property
    def tasks(self) -> tuple[GuardedTask, ...]:
        """All tasks, each once."""
        own = self.models.task
        return (own,) if self.eval_task is own else (own, self.eval_task)

    @property
    def options(self) -> dict[str, Any]:
        """Of the method, with its defaults."""
        return self.method.options

    @property
    def chunk(self) -> int:
        """Tokens whose logits are held at a time."""
        return self.models.chunk

    def needs(self, coefs: Coefs) -> set[str]:
        """Return what the method needs with these coefficients."""
        return self.method.at(coefs).needs

    @property
    def all_scorers(self) -> set[str]:
        """The frozen models that can score tokens."""
        return {"reference"} if self.models.teacher is None else {"reference", "teacher"}


@dataclass(frozen=True)
class StepValues:
    """The knob values of one step."""

    number: int
    values: Coefs
    """Of every knob."""

    @property
    def coefs(self) -> Coefs:
        """Those of the method."""
        return {name: value for name, value in self.values.items() if name not in LOOP_KNOBS}

    @property
    def temperature(self) -> float:
        """Of sampling, > 0."""
        return float(self.values["temperature"] or 1.0)

    @property
    def learning_rate(self) -> float:
        """Of AdamW, ≥ 0."""
        return float(self.values["learning_rate"] or 0.0)

    @property
    def row(self) -> Row:
        """The values by metric name."""
        row = {f"coef/{name}": v for name, v in self.values.items() if name != "learning_rate"}
        return row | {"learning_rate": self.values["learning_rate"]}


def mean(values: torch.Tensor) -> float:
    """Return the mean, NaN of nothing."""
    return values.float().mean().item() if values.numel() else float("nan")
