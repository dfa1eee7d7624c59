"""What a run will need of memory, part by part, before anything is loaded: ``rlkd plan``.

Weights, adapters, optimizer and cache are counted from the models' configs. What a forward and
backward pass holds is not a formula: the models' own code, shortened to one and two layers, runs on
PyTorch's meta device, where tensors have shapes and no data, while the bytes that live are counted;
layers are alike, so the rest is linear in their number. Completions are taken to be as long as the
limit allows. A model whose code does not run without data is taken for a Llama of the same sizes,
with a warning.

Left out: the CUDA context and the allocator's fragmentation (:data:`MARGIN` stands for them), and
the workspace of attention kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rlkd_lab.models.adapter_config import can_share_base
from rlkd_lab.objectives.methods import METHODS
from rlkd_lab.rollouts import traces
from rlkd_lab.training import evaluation
from rlkd_lab.training.before_loading import asked_prompts
from rlkd_lab.training.config import RunConfig
from rlkd_lab.training.config_checks import of_teacher
from rlkd_lab.training.memory_passes import one_pass
from rlkd_lab.training.model_shape import Shape
from rlkd_lab.training.teacher_settings import (
    AVERAGE,
    SELF,
    local_teachers,
    model_of,
    quant_of,
    teacher_models,
)

GIB = 2**30
MARGIN = 1.1
"""What is predicted times this must fit.

How far off predictions were where that was measured, on a CPU: benchmarks/results/memory.json.
"""
CONTEXT = GIB
"""Taken on a GPU by the CUDA context and loaded kernels: an assumption, not measured."""


@dataclass(frozen=True)
class Plan:
    """Bytes by part.

    What is held all the time, and what sampling and updating take beside it; they do not happen at
    once.
    """

    held: dict[str, int]
    sampling: dict[str, int]
    updating: dict[str, int]

    @property
    def peak(self) -> int:
        """Of all parts that are there at the same time."""
        return sum(self.held.values()) + max(
            sum(self.sampling.values()), sum(self.updating.values())
        )

    def fits(self, memory: float, gpu: bool = True) -> bool:
        """Whether ``memory`` bytes are enough, with :data:`MARGIN` and, on a GPU,
        :data:`CONTEXT`.
        """
        return self.peak * MARGIN + (CONTEXT if gpu else 0) <= memory


def plan(config: RunConfig, gpu: bool, prompt_tokens: int | None = None) -> Plan:
    """Predict the memory of a run.

    Args:
        config: of the run.
        gpu: whether it computes in 16 bit (on a GPU) or in float32 (on a CPU).
        prompt_tokens: of the longest prompt; by default see
            :func:`~rlkd_lab.training.before_loading.asked_prompts`.

    Raises:
        FileNotFoundError, ValueError: a model or task that is not there, a context that is too
            short.
    """
    size = 2 if gpu else 4
    student = Shape.of(config.student)
    teachers = [Shape.of(name) for name in teacher_models(config)]
    prompt = asked_prompts(config).longest if prompt_tokens is None else prompt_tokens
    _check_context(config, student, teachers, prompt)
    # in float32 the adapter is merged into the copy, and training goes through it
    merged = config.dense_copy and not gpu
    return Plan(
        _plan_held(config, student, teachers, size, merged),
        plan_sampling(config, gpu, prompt),
        _plan_updating(config, student, teachers, size, prompt, merged),
    )


def _check_context(
    config: RunConfig, student: Shape, teachers: Sequence[Shape], prompt: int
) -> None:
    names = (config.student, *teacher_models(config))
    for name, model in zip(names, (student, *teachers), strict=True):
        if prompt + config.max_new_tokens > model.context:
            problem = (
                f"prompts of {prompt} tokens and completions of {config.max_new_tokens} do"
                f" not fit the context of {model.context} tokens of {name}"
            )
            raise ValueError(problem if model is student else of_teacher(config, problem))


def _has_own_base(config: RunConfig, teacher: str) -> bool:
    """Whether a teacher does not share the student's base."""
    same = model_of(config, teacher) == config.student
    same = same and quant_of(config, teacher) == config.quant
    shares = config.teacher_adapter is None or can_share_base(
        config.teacher_adapter, config.adapter
    )
    return not (shares and same)


def _plan_held(
    config: RunConfig, student: Shape, teachers: Sequence[Shape], size: int, merged: bool
) -> dict[str, int]:
    """Return the bytes that are held all the time, by part."""
    adapter, named = student.adapter(config), local_teachers(config)
    visits = config.teacher_home == "host"
    apart = [
        teacher.weights(quant_of(config, name), size)
        for name, teacher in zip(named, teachers, strict=True)
        if not visits and _has_own_base(config, name)
    ]
    held = {
        "student": student.weights(config.quant, size),
        "teacher": sum(apart),
        "adapter": 4 * adapter * (1 + (config.adapter is not None) + (AVERAGE in named)),
        "gradients and optimizer": (12 if config.optimizer == "adamw" else 6) * adapter,
    }
    if merged:
        # once merged; a quantised base dequantised, and again for the reference; the teacher's once
        copies = 4 * student.linear * (3 if config.quant == "nf4" else 1)
        # a teacher that is the student shares a copy, but for an average, which is merged
        for name, teacher in zip(named, teachers, strict=True):
            own_copy = name not in SELF and config.teacher_quant == "nf4"
            copies += 4 * teacher.linear if own_copy or name == AVERAGE else 0
        held["dense copies"] = copies
    elif config.dense_copy:
        unpacked = size * student.linear if config.quant == "nf4" else 0
        # A and B in 16 bit; where layers are fused, B has zeros between the layers, about half more
        others = (config.adapter is not None) + (AVERAGE in named)
        held["dense copies"] = unpacked + size * adapter * (3 + 2 * others) // 2
    return held


def _plan_updating(
    config: RunConfig,
    student: Shape,
    teachers: Sequence[Shape],
    size: int,
    prompt: int,
    merged: bool,
) -> dict[str, int]:
    """Return the bytes that updating takes beside what is held, by part."""
    models, named = [student, *teachers], local_teachers(config)
    if config.teacher_home == "host" and teachers and _has_own_base(config, named[0]):
        # the teacher is here while nothing is held for a backward pass
        visit = teachers[0].weights(quant_of(config, named[0]), size)
        visit += _passes(config, models, size, prompt, gradient=False)
        most = max(_passes(config, models[:1], size, prompt), visit)
        updating = {"activations, or the teacher and fewer": most}
    else:
        updating = {"activations": _passes(config, models, size, prompt)}
    rows, width = config.prompts_per_step * config.group_size, prompt + config.max_new_tokens
    updating["values of all tokens"] = rows * (14 * 4 * config.max_new_tokens + 32 * width)
    prompts = config.prompts_per_step * prompt * sum(m.cache_of_a_token(size) for m in models)
    updating["prompts"] = prompts if merged else 0
    if not merged and "nf4" in (config.quant, config.teacher_quant):
        updating["a layer unpacked"] = size * max(model.largest for model in models)
    return updating


def plan_sampling(config: RunConfig, gpu: bool, prompt: int) -> dict[str, int]:
    """Return the bytes that sampling takes beside what is held, by part.

    Rollouts, evaluations and teacher traces sample; the one that needs most counts.
    """
    size, student = 2 if gpu else 4, Shape.of(config.student)
    needs = [(student, config.prompts_per_step * config.group_size, config.max_new_tokens)]
    if config.eval_every:
        needs.append(
            (
                student,
                min(config.eval_prompts * config.eval_samples, evaluation.BATCH),
                (1 + config.eval_ood) * config.max_new_tokens,
            )
        )  # out of distribution the limit is doubled
    writers = teacher_models(config)
    if writers and "traces" in METHODS[config.method].needs:
        needs.append(
            (Shape.of(writers[0]), min(config.traces, traces.BATCH), config.max_new_tokens)
        )
    most = (
        max(config.sample_at_once, config.group_size)
        if config.sample_at_once
        else max(rows for _, rows, _ in needs)
    )
    # a layer of the cache is copied when rows leave it; of the logits, log-probabilities,
    # probabilities and their sums are held
    caches = [
        min(rows, most)
        * (prompt + tokens)
        * shape.cache_of_a_token(size)
        * (shape.layers + 1)
        // shape.layers
        for shape, rows, tokens in needs
    ]
    logits = [min(rows, most) * shape.vocabulary * (16 + size) for shape, rows, _ in needs]
    return {"cache": max(caches), "logits of a token": max(logits)}


def _passes(
    config: RunConfig, models: Sequence[Shape], size: int, prompt: int, gradient: bool = True
) -> int:
    """Return the most bytes that a micro-batch holds.

    The student's graph stands beside teacher and reference; then comes the backward pass. Without
    ``gradient`` there are the passes of all models alone.
    """
    dtype = torch.bfloat16 if size == 2 else torch.float32
    configs = [model.counted for model in models]
    first = one_pass(config, configs, [1] * len(models), dtype, prompt, gradient)
    peaks = list(first)
    for which, model in enumerate(models):
        layers = [2 if i == which else 1 for i in range(len(models))]
        more = one_pass(config, configs, layers, dtype, prompt, gradient)
        peaks = [
            peak + (model.layers - 1) * (two - one)
            for peak, one, two in zip(peaks, first, more, strict=True)
        ]
    return max(peaks)
