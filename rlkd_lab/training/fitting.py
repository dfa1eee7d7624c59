"""The largest settings of a run that fit into the memory, or what else would fit."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from rlkd_lab.training import evaluation
from rlkd_lab.training.before_loading import asked_prompts
from rlkd_lab.training.config import RunConfig
from rlkd_lab.training.plan import CONTEXT, GIB, MARGIN, Plan, plan, plan_sampling
from rlkd_lab.training.teacher_settings import teachers_of


def fitted(
    config: RunConfig, memory: float, gpu: bool, prompt_tokens: int | None = None
) -> tuple[RunConfig, Plan]:
    """Return the config with the largest settings that fit into ``memory`` bytes, and its plan.

    These are the completions sampled at a time, the micro-batch, the chunk of logits, and
    checkpointing. None of them changes the result beyond rounding. As a last resort the run samples
    from the 4-bit weights, slowly.

    Raises:
        ValueError: nothing of this fits; it says what would.
    """
    prompt = asked_prompts(config).longest if prompt_tokens is None else prompt_tokens
    starts = [config]
    if config.dense_copy:
        starts.append(config.model_copy(update={"dense_copy": False}))
    for trial in starts:
        found = plan(trial, gpu, prompt)
        while (
            not replace(found, updating={}).fits(memory, gpu)
            and (fewer := _fewer_at_once(trial)) is not None
        ):
            trial = fewer
            found = replace(found, sampling=plan_sampling(trial, gpu, prompt))
        if not replace(found, updating={}).fits(memory, gpu):
            continue  # no smaller micro-batch helps where sampling does not fit
        for smaller in _smaller(trial):
            found = plan(smaller, gpu, prompt)
            if found.fits(memory, gpu):
                return smaller, found
    trial = trial.model_copy(
        update={
            "micro_batch": 1,
            "logits_mib": min(trial.logits_mib, 64),
            "gradient_checkpointing": True,
        }
    )
    found = plan(trial, gpu, prompt)
    need = (found.peak * MARGIN + (CONTEXT if gpu else 0)) / GIB
    teacher = ", ".join(teachers_of(config)) or "no teacher"
    raise ValueError(
        f"{config.student} with {teacher} needs {need:.1f} GiB even"
        f" with micro_batch=1, and {memory / GIB:.1f} are there."
        f" {_would_fit(trial, memory, gpu, prompt)}"
    )


def _fewer_at_once(config: RunConfig) -> RunConfig | None:
    """Return a config that samples half of the groups at a time, or ``None`` for one group."""
    if config.sample_at_once:
        groups = max(config.sample_at_once // config.group_size, 1)
    else:
        groups = max(config.prompts_per_step, evaluation.BATCH // config.group_size)
    if groups == 1:
        return None
    return config.model_copy(update={"sample_at_once": groups // 2 * config.group_size})


def _smaller(config: RunConfig) -> Iterator[RunConfig]:
    """Yield smaller micro-batches, then smaller chunks of logits, then all with checkpointing."""
    for checkpointing in sorted({config.gradient_checkpointing, True}):
        micro, mib = config.micro_batch, config.logits_mib
        while True:
            yield config.model_copy(
                update={
                    "micro_batch": micro,
                    "logits_mib": mib,
                    "gradient_checkpointing": checkpointing,
                }
            )
            if micro == 1 and mib <= 64:
                break
            micro, mib = (micro // 2, mib) if micro > 1 else (micro, max(64, mib // 2))


def _would_fit(config: RunConfig, memory: float, gpu: bool, prompt: int) -> str:
    """Return what else could be given up: each alone, or else the first two or three together."""
    ways: list[str] = []
    tries: dict[str, dict[str, Any]] = {
        f"max_new_tokens={n}": {"max_new_tokens": n} for n in _halves(config.max_new_tokens, 64)
    }
    tries |= {
        f"prompts_per_step={n}": {"prompts_per_step": n}
        for n in _halves(config.prompts_per_step, 1)
    }
    if teachers_of(config):
        tries["teacher_home=host"] = {"teacher_home": "host"}
    for name, change in tries.items():
        kind = name.partition("=")[0]
        if not any(way.startswith(kind) for way in ways) and plan(
            config.model_copy(update=change), gpu, prompt
        ).fits(memory, gpu):
            ways.append(name)
    least = {setting: value for change in tries.values() for setting, value in change.items()}
    if not ways and plan(config.model_copy(update=least), gpu, prompt).fits(memory, gpu):
        for names in itertools.chain(
            itertools.combinations(tries, 2), itertools.combinations(tries, 3)
        ):
            together = {setting: value for name in names for setting, value in tries[name].items()}
            if len(together) == len(names) and plan(
                config.model_copy(update=together), gpu, prompt
            ).fits(memory, gpu):
                return f"What would fit: {' '.join(f'--set {name}' for name in names)} together"
    return (
        f"What would fit: {' or '.join(f'--set {way}' for way in ways)}"
        if ways
        else "A smaller model would be needed, or a larger card"
    )


def _halves(value: int, lowest: int) -> list[int]:
    found = []
    while value // 2 >= lowest:
        value //= 2
        found.append(value)
    return found
