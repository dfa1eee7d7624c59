"""A config from a preset, fields, and settings as the command line has them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from rlkd_lab.models.adapter_config import rank_and_alpha
from rlkd_lab.models.locating import zoo_names
from rlkd_lab.objectives.methods import METHODS
from rlkd_lab.objectives.settings import CHOICES, KNOBS, nearest
from rlkd_lab.training.config import RunConfig
from rlkd_lab.training.loop_knobs import LOOP_KNOBS
from rlkd_lab.training.presets import MODES, PRESETS
from rlkd_lab.training.teacher_settings import SELF, names_in
from rlkd_lab.training.validated import validated

RENAMED = {"dense_twin": "dense_copy"}
"""Earlier names of settings. Old configs and commands may use them; fingerprints keep them."""
NUMBERED_OPTIONS = ("constant_length", "topk")
"""Options whose value is a whole number, which :data:`CHOICES` does not list."""
PLACES = {"guard": "guards", "lora_ranks": "lora_ranks", "lora_alphas": "lora_alphas"}
"""Fields that map names to values, by what ``--set`` writes before such a name."""
NOT_BY_SET = (
    "method",
    "preset",
    "steps",
    "seed",
    "knobs",
    "options",
    "moves",
    "reward",
    "task_settings",
    *PLACES.values(),
)
"""Fields with an option or an argument for themselves."""
NAMES_ELSEWHERE = {
    "gradient_accumulation_steps": "micro_batch, the completions of one pass; passes follow",
    "per_device_train_batch_size": "micro_batch, the completions of one pass",
    "num_generations": "group_size",
    "max_completion_length": "max_new_tokens",
    "max_prompt_length": "max_prompt_tokens",
    "num_iterations": "updates_per_rollout",
    "max_steps": "the option --steps",
    "eval_steps": "eval_every",
    "eval_dataset": "eval_task, a file or another task",
    "save_steps": "checkpoint_every",
    "save_total_limit": "keep_checkpoints",
    "early_stopping_patience": "patience",
    "lr": "learning_rate",
    "lr_scheduler_type": "learning_rate=cosine:0.001:0, or linear:0.001:0",
    "warmup_ratio": "learning_rate=warmup:0.1:0.001, a share of the run and a schedule",
    "warmup_steps": "learning_rate=warmup:0.1:0.001, a share of the run and a schedule",
    "optim": "optimizer",
    "beta": "kl_coef",
    "epsilon": "clip_low and clip_high",
    "lora_r": "lora_rank",
    "target_modules": "lora_targets",
    "rank_pattern": "lora_ranks.LAYER",
    "alpha_pattern": "lora_alphas.LAYER",
    "use_dora": "lora_kind=dora",
    "use_rslora": "lora_kind=rslora",
    "lora_dropout": "nothing: with dropout, the trained policy is not the sampled one",
    "report_to": "track",
}
"""Names that TRL, transformers and peft have for settings, and ours."""
KL_EVERY = 10
"""Steps between measurements of KLs that the method does not need, with models of one's own."""
CAP = 2.0
"""Of importance ratios with the engine ``vllm``, as TRL's default."""
CAN_BE_OFF = (
    "adapter",
    "teacher",
    "teacher_adapter",
    "teacher_prompt",
    "teacher_mix",
    "teacher_tokenizer",
    "max_prompt_tokens",
    "eval_task",
    "track",
)


def make_config(
    method: str, preset: str = "tiny", settings: dict[str, str] | None = None, **fields: Any
) -> RunConfig:
    """Make a config from a preset, fields, and settings as ``--set`` takes them.

    Raises:
        ValueError: in one sentence, naming the nearest valid name or the range.
    """
    nearest(method, METHODS, "method")
    fields = {RENAMED.get(name, name): value for name, value in fields.items()}
    settings = {RENAMED.get(name, name): value for name, value in (settings or {}).items()}
    values = _start(method, preset, fields)
    for name in fields:
        nearest(name, RunConfig.model_fields, "setting")
    for name, value in settings.items():
        _put(values, method, name, value)
    values = _with_teacher(_with_adapter(values, {*fields, *settings}), {*fields, *settings})
    return validated(_with_correction(_with_kl_every(values)))


def _start(method: str, preset: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Return the values of the preset with those of the fields on top."""
    start = PRESETS[nearest(preset, PRESETS, "preset")].settings
    values: dict[str, Any] = {**start, "preset": preset, "method": method, **fields}
    for name in ("knobs", "options", "reward", "task_settings", *PLACES.values()):
        if not isinstance(values.get(name, {}), Mapping):
            raise ValueError(f"{name} maps names to values; {values[name]!r:.80} does not")
    # A preset's coefficients are for methods that have them. They do not replace a schedule that
    # makes a method what it is.
    listens = METHODS[method].coefs.keys() - METHODS[method].schedules.keys() | LOOP_KNOBS.keys()
    knobs = {name: value for name, value in start.get("knobs", {}).items() if name in listens}
    values["knobs"] = {**knobs, **fields.get("knobs", {})}
    values["options"] = dict(values.get("options", {}))
    return values


def _put(values: dict[str, Any], method: str, name: str, value: str) -> None:
    """Put a setting where it belongs.

    Raises:
        ValueError: nothing has that name.
    """
    if name in NOT_BY_SET:
        raise ValueError(
            f"{name} is not a setting for --set: give it by its own option or argument"
        )
    coefs = METHODS[method].coefs
    if name in KNOBS and name not in coefs:
        raise ValueError(
            f"{method} does not listen to {name}; its knobs are {', '.join([*coefs, *LOOP_KNOBS])}"
        )
    group, dot, inner = name.partition(".")
    if dot and group == "reward":
        weights = values.get("reward", {})
        values["reward"] = {**RunConfig.model_fields["reward"].default, **weights, inner: value}
    elif dot and group in PLACES:
        values[PLACES[group]] = {**values.get(PLACES[group], {}), inner: value}
    elif dot and group == "task":
        values["task_settings"] = {**values.get("task_settings", {}), inner: literal(value)}
    elif name == "mode":
        values |= MODES[nearest(value, MODES, "mode")]
    else:
        _put_by_name(values, method, name, value)


def _put_by_name(values: dict[str, Any], method: str, name: str, value: str) -> None:
    """Put a knob, an option or a field where it belongs."""
    knobs = {**METHODS[method].coefs, **LOOP_KNOBS}
    options = (*CHOICES, *NUMBERED_OPTIONS)
    valid = (*knobs, *options, *RunConfig.model_fields)
    if name in NAMES_ELSEWHERE and name not in valid:
        raise ValueError(f"{name} is another library's name; here it is {NAMES_ELSEWHERE[name]}")
    nearest(name, valid, f"knob, option or setting of {method}")
    if name in knobs:
        values["knobs"][name] = value
    elif name in options:
        values["options"][name] = int(value) if value.lstrip("-").isdigit() else value
    elif name in CAN_BE_OFF and value == "off":
        values[name] = None
    elif name == "difficulty":
        low, _, high = value.partition("-")
        values[name] = (low, high or low)
    else:
        values[name] = value


def _with_teacher(values: dict[str, Any], asked: set[str]) -> dict[str, Any]:
    """Return the values with a teacher that fits a student which is not embedded.

    The preset's embedded teacher has another tokenizer. With an adapter as teacher it gives way to
    the student's base; a method that needs no teacher gets none.
    """
    student, teacher = (
        str(values.get(name, RunConfig.model_fields[name].default))
        for name in ("student", "teacher")
    )
    if "teacher" in asked or student in zoo_names() or teacher not in zoo_names():
        return values
    if values.get("teacher_adapter"):
        return {**values, "teacher": student}
    needs = METHODS[values["method"]].needs & {"teacher", "traces", "divergence"}
    return values if needs else {**values, "teacher": None}


def _with_kl_every(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values with rarer measurements of KLs, where a model is not embedded.

    There a measurement takes up to 40 % of a step that needs no teacher.
    """
    fields = RunConfig.model_fields
    student, teacher = (values.get(name, fields[name].default) for name in ("student", "teacher"))
    models = {str(student), *names_in(None if teacher is None else str(teacher))}
    if models - {*SELF} <= set(zoo_names()):
        return values
    return {"kl_every": KL_EVERY, **values}


def _with_correction(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values with a correction for vLLM, whose numbers are not quite the trainer's."""
    knobs = values.get("knobs", {})
    known = "importance_cap" in METHODS[values["method"]].coefs
    if values.get("engine") != "vllm" or not known or "importance_cap" in knobs:
        return values
    return {**values, "knobs": {**knobs, "importance_cap": CAP}}


def _with_adapter(values: dict[str, Any], asked: set[str]) -> dict[str, Any]:
    """Return the values with the rank and alpha of the adapter that the run starts from.

    Raises:
        ValueError: the user asked for another rank or alpha than the adapter has.
    """
    try:
        own = rank_and_alpha(values["adapter"]) if values.get("adapter") else {}
    except (OSError, ValueError, TypeError):  # the loader says what is wrong there
        own = {}
    other = {
        name: value
        for name in own
        if str(value := values.get(name, RunConfig.model_fields[name].default)) != str(own[name])
    }
    for name in other.keys() & asked:
        raise ValueError(
            f"{name}={other[name]}: the adapter {values['adapter']} has {name}={own[name]},"
            f" which cannot be changed; leave {name} out"
        )
    if other:
        told = ", ".join(f"{name}={own[name]}" for name in other)
        warnings.warn(
            f"the run has {told}, as the adapter {values['adapter']} that it starts from",
            stacklevel=4,
        )
    return {**values, **own}


def split_settings(words: Iterable[str]) -> dict[str, str]:
    """Return settings that are written as ``NAME=VALUE``, by name.

    Raises:
        ValueError: a word has no equals sign.
    """
    settings = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"{word!r}: write NAME=VALUE")
        settings[name] = value
    return settings


def as_text(name: object, value: object) -> str:
    """Return a value of a file as ``--set`` takes it.

    Raises:
        ValueError: it is a list, a table or a date.
    """
    if value is not None and not isinstance(value, str | int | float):
        raise ValueError(f"{name}={value!s:.80}: a setting is a text, a number, true or false")
    return "off" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def literal(text: str) -> Any:
    """Return what a text means as JSON, or the text."""
    try:
        return json.loads(text.lower() if text in ("True", "False") else text, parse_constant=str)
    except (ValueError, RecursionError):  # no JSON, thousands of digits, lists a thousand deep
        return text
