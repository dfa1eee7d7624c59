"""Whether settings agree with each other, and sentences about those that do not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from rlkd_lab.objectives.methods import METHODS, needs_of, resolve_options
from rlkd_lab.objectives.settings import nearest
from rlkd_lab.rollouts.sampling import ENGINES
from rlkd_lab.tasks.base import check_template
from rlkd_lab.tasks.reasoning import fault_of
from rlkd_lab.training.loop_knobs import check_knob
from rlkd_lab.training.presets import PRESETS
from rlkd_lab.training.teacher_settings import check_teacher

if TYPE_CHECKING:
    from rlkd_lab.training.config import RunConfig


def check_settings(config: RunConfig) -> None:
    """Refuse settings that contradict each other or the method.

    Only ``find_task`` checks the task's name, since it may import a library or read a file.

    Raises:
        ValueError: in one sentence.
    """
    nearest(config.method, METHODS, "method")
    check_template(config.prompt_template)
    nearest(config.preset, PRESETS, "preset")
    if ".py:" not in config.engine:
        nearest(config.engine, ENGINES, "engine")
    config.schedules()
    for move in config.moves:
        if not move.release:
            check_knob(config.method, move.knob, move.value)
    _check_needs(config)
    _check_adapter(config)
    check_teacher(config)
    try:
        json.dumps(config.model_dump(), allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            "the run could not write its config.json: a setting is infinite, too deep,"
            f" or half a character ({error})"
        ) from None


OF_AN_ADAPTER = ("lora_targets", "lora_kind", "lora_ranks", "lora_alphas")
"""Settings of a new adapter, which one that is gone on from has already."""


def _check_adapter(config: RunConfig) -> None:
    config.lora()
    for name in OF_AN_ADAPTER if config.adapter else ():
        if getattr(config, name) != type(config).model_fields[name].default:
            raise ValueError(
                f"{name} is for a new adapter; {config.adapter} has its own: leave {name} out"
            )


def _check_needs(config: RunConfig) -> None:
    """Refuse settings that do not give the method what it needs."""
    method = METHODS[config.method]
    options = resolve_options(method, config.options)
    if options["zero_spread"] == "resample" and "groups" not in method.needs:
        raise ValueError(
            f"zero_spread=resample looks for groups whose rewards differ; {config.method}"
            " does not look at rewards"
        )
    if {"groups", "traces"} <= method.needs and options["zero_spread"] == "resample":
        raise ValueError(
            f"zero_spread=resample draws prompts again, and {config.method} takes the prompts of"
            " the teacher's traces: leave zero_spread out"
        )
    if config.teacher is None and {"teacher", "traces"} & method.needs:
        raise ValueError(
            f"{config.method} needs a teacher: --set teacher=NAME, an embedded name"
            " (teacher, teacher-concise), a folder or a hub id"
        )
    if config.patience and not config.eval_every:
        raise ValueError(
            f"patience={config.patience} counts evaluations, and eval_every=0 makes none: use --set"
            " eval_every=N, or leave patience out"
        )
    if config.interference_every and config.group_size < 2:
        raise ValueError(
            "interference compares the method with GRPO, which needs a group of 2 or"
            " more: use --set group_size=2 or more, or --set interference_every=0"
        )
    if config.teacher_home == "host" and "divergence" in needs_of(method, {}, options):
        raise ValueError(
            f"{config.method} needs the teacher's whole distribution beside every update:"
            " teacher_home=host cannot be"
        )
    if {"groups", "traces"} <= method.needs and config.group_size < 3:
        raise ValueError(
            f"{config.method} puts a trace into each group, and compares the other completions:"
            " use --set group_size=3 or more"
        )
    if "groups" in method.needs and config.group_size < 2:
        raise ValueError(
            f"{config.method} compares completions of one prompt: a group of"
            f" {config.group_size} has no spread; use --set group_size=2 or more"
        )


def check_device(config: RunConfig, device: str, processes: int = 1) -> None:
    """Refuse what Apple's GPU, the device ``mps``, lacks.

    Raises:
        ValueError: in one sentence.
    """
    lacks = {
        "8-bit optimizer of bitsandbytes: use --set optimizer=adamw": config.optimizer != "adamw",
        "float64, which push_share is counted in": "push_share" in METHODS[config.method].coefs,
        "way to share it between processes: start one": processes > 1,
    }
    for what in (what for what, wanted in lacks.items() if wanted and device == "mps"):
        raise ValueError(f"Apple's GPU (mps) has no {what}. RLKD_DEVICE=cpu takes the CPU")


def of_teacher(config: RunConfig, problem: object) -> str:
    """Return what is wrong with the teacher, and whether the method needs one."""
    if METHODS[config.method].needs & {"teacher", "traces", "divergence"}:
        return str(problem)
    return (
        f"{problem}. {config.method} needs no teacher, which only adds the KL curves: --set"
        " teacher=off"
    )


def likely_mistakes(config: RunConfig) -> list[str]:
    """Return sentences about settings that are allowed and probably not meant."""
    found = []
    if config.top_p < 1 or config.top_k:
        found.append(
            "top_p and top_k bias the policy ratio by the probability mass they cut (see"
            " sampling/logp_difference_mean); for training leave them off"
        )
    if config.engine == "hf" and config.knobs.get("importance_cap") is not None:
        found.append(
            "importance_cap cannot act: the hf engine does not report the log-probabilities"
            " it sampled with"
        )
    clips = [name for name in ("clip_low", "clip_high") if name in config.knobs]
    if clips and config.updates_per_rollout * config.minibatches == 1 and config.method != "trrd":
        found.append(
            f"{' and '.join(clips)} cannot act: with one update per rollout the ratio is 1;"
            " use --set updates_per_rollout=2 or more"
        )
    if "groups" in METHODS[config.method].needs and not config.reward.get("accuracy"):
        found.append(
            "the reward has no weight on accuracy, so right answers earn nothing: if that is not"
            " meant, use --set reward.accuracy=1"
        )
    if (fault := fault_of(config.task)) is not None:
        found.append(fault)
    return found
