"""Loaded models that the runs of many tests share, because loading costs more than a short run."""

import collections
import dataclasses
import sys
import weakref

import pytest

from rlkd_lab.models import default_device, loading
from rlkd_lab.models.locating import zoo_names
from rlkd_lab.models.logprobs import chunk_of, vocabulary
from rlkd_lab.rollouts.sampling import find_engine
from rlkd_lab.tasks.verifier import guarded
from tests.short import SHORT

LOADED_WITH = (
    "student",
    "teacher",
    "quant",
    "teacher_quant",
    "lora_rank",
    "lora_alpha",
    "lora_targets",
    "lora_kind",
    "lora_ranks",
    "lora_alphas",
    "gradient_checkpointing",
    "dense_copy",
    "seed",
)
"""Settings that decide what is loaded."""


class Pool:
    """Loads models as training does, and hands them out again once a run has let go of them.

    The adapter is as it was at the start, and dense copies follow it. Task and engine are new.
    Other models, adapters and a teacher in host memory are always loaded.
    """

    def __init__(self, load, examine):
        self.load, self.examine = load, examine
        self.free = collections.defaultdict(list)
        self.start = weakref.WeakKeyDictionary()
        self.findings = {}

    def load_models(self, config):
        from rlkd_lab.training.teacher_settings import teacher_columns

        names = {config.student, config.teacher} - {None}
        if (
            not names <= {*zoo_names(), *SHORT.values()}
            or config.adapter
            or config.teacher_adapter
            or config.teacher_home != "device"
        ):
            return self.load(config)
        dtype = loading.compute_dtype(default_device())
        alone = config.teacher_cache is not None  # no teacher is loaded
        key = (dtype, alone, *(str(getattr(config, name)) for name in LOADED_WITH))
        if self.free[key]:
            models = self.free[key].pop()
            for parameter, start in zip(
                models.policy.trainable(), self.start[models.policy.model], strict=True
            ):
                parameter.data.copy_(start)
                parameter.grad = None
            models.policy.model.train()
            models.sync()
        else:
            models = self.load(config)
            self.start[models.policy.model] = [
                parameter.detach().clone() for parameter in models.policy.trainable()
            ]
        for lm in filter(None, (models.policy, models.teacher and models.teacher.own)):
            lm.use_chat(config.chat, config.system_prompt)
        given = dataclasses.replace(
            models,
            task=guarded(
                config.task,
                config.task_settings,
                config.prompt_template,
                config.verifier_seconds,
                teacher_columns(config),
            ),
            engine=find_engine(config.engine),
            chunk=chunk_of(config.logits_mib, vocabulary(models.policy)),
        )
        weakref.finalize(given, self.free[key].append, models)
        return given

    def examined(self, policy, student, dense):
        """The self-check of models that were checked before is not made again."""
        if policy.model not in self.start:
            return self.examine(policy, student, dense)
        key = (id(policy.model), student is policy, dense is None)
        if key not in self.findings:
            self.findings[key] = self.examine(policy, student, dense)
        return self.findings[key]


@pytest.fixture(scope="session")
def pool():
    from rlkd_lab.training import models, selfcheck

    return Pool(models.load_models, selfcheck.examine)


@pytest.fixture(autouse=True)
def shared_models(request, monkeypatch):
    """Share loaded models between the runs of all tests that are not marked ``loads``.

    The memory of the short pair is not planned, nor is that of the embedded models.
    """
    if request.node.get_closest_marker("loads") is None and "rlkd_lab.training" in sys.modules:
        pool = request.getfixturevalue("pool")
        monkeypatch.setattr(
            "rlkd_lab.training.session.zoo_names", lambda: [*zoo_names(), *SHORT.values()]
        )
        monkeypatch.setattr("rlkd_lab.training.setup.load_models", pool.load_models)
        monkeypatch.setattr("rlkd_lab.training.selfcheck.examine", pool.examined)
