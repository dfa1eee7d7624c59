"""The config of a run: every choice that is fixed before the start, and the schedules of the
knobs that may move.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from rlkd_lab.models.adapters import rank_and_alpha
from rlkd_lab.objectives import (
    CHOICES,
    KNOBS,
    METHODS,
    Constant,
    Knob,
    Schedule,
    check_coef,
    nearest,
    needs_of,
    parse_schedule,
    resolve_options,
    schedules_for,
)
from rlkd_lab.objectives.schedules import values_of
from rlkd_lab.rollouts import ENGINES
from rlkd_lab.tasks.base import check_template
from rlkd_lab.tasks.reasoning import fault_of
from rlkd_lab.training.guards import declared
from rlkd_lab.training.presets import MODES, PRESETS

LOOP_KNOBS: dict[str, Knob] = {
    "temperature": Knob(
        0.05,
        5.0,
        "sampling temperature; divides the logits of student, old policy, reference and"
        " teacher alike",
    ),
    "learning_rate": Knob(0.0, 1.0, "AdamW step size", log=True),
}
"""Live knobs that every method has, beside its own coefficients."""
LOOP_DEFAULTS: dict[str, float] = {"temperature": 1.0, "learning_rate": 1e-3}


class Move(BaseModel):
    """A knob moved at a step: it holds from there on, in place of its schedule, until it is
    moved again or released.
    """

    model_config = ConfigDict(extra="forbid")

    step: Annotated[int, Field(ge=1)]
    knob: str
    value: float | None = None
    release: bool = False


class RunConfig(BaseModel):
    """All settings of a run.

    ``knobs`` maps a knob to a number or a schedule, ``options`` an option to its value; what is
    missing is the method's default.
    """

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    method: Annotated[str, Field(description="a row of `rlkd methods`")] = "grpo"
    preset: Annotated[str, Field(description="the preset these settings started from")] = "tiny"
    steps: Annotated[
        int, Field(ge=1, description="optimisation steps; schedules are shares of this")
    ] = 60
    seed: Annotated[int, Field(ge=0, lt=2**31, description="of everything random in the run")] = 0

    student: Annotated[str, Field(description="embedded name, folder or hub id")] = "student"
    teacher: Annotated[
        str | None, Field(description="embedded name, folder or hub id; off for none")
    ] = "teacher"
    quant: Annotated[Literal["nf4", "none"], Field(description="student's base")] = "nf4"
    teacher_quant: Annotated[Literal["nf4", "none"], Field(description="teacher")] = "nf4"
    adapter: Annotated[
        str | None,
        Field(description="adapter folder to go on from; a frozen copy is the reference"),
    ] = None
    teacher_home: Annotated[
        Literal["device", "host"],
        Field(
            description="host: the teacher lies in host memory and comes to the GPU once a step,"
            " for a pass of its own"
        ),
    ] = "device"
    teacher_adapter: Annotated[str | None, Field(description="adapter folder of the teacher")] = (
        None
    )
    lora_rank: Annotated[
        int,
        Field(ge=1, description="rank r of the LoRA update; with `adapter` that of the adapter"),
    ] = 16
    lora_alpha: Annotated[
        int,
        Field(
            ge=1,
            description="the update is scaled by lora_alpha / lora_rank; with `adapter` that of"
            " the adapter",
        ),
    ] = 32
    gradient_checkpointing: Annotated[bool, Field(description="less memory, more time")] = False

    task: Annotated[
        str,
        Field(
            description="arithmetic, knights, a reasoning-gym set, a .jsonl/.json/.parquet/.csv"
            " file or folder, hub:OWNER/NAME, or PATH.py:CLASS"
        ),
    ] = "arithmetic"
    task_settings: Annotated[
        dict[str, Any],
        Field(
            description="of the task, set as task.NAME=VALUE: a reasoning-gym set's config, your"
            " class's arguments, a file's columns (question, answer)"
        ),
    ] = {}
    prompt_template: Annotated[
        str | None,
        Field(
            description="what a prompt looks like, with {question} in it; the task's own by default"
        ),
    ] = None
    max_prompt_tokens: Annotated[
        int | None,
        Field(
            ge=1,
            description="length limit of a prompt, in the chat template; by default what the"
            " context leaves beside a completion",
        ),
    ] = None
    long_prompts: Annotated[
        Literal["drop", "refuse"],
        Field(
            description="drop: longer rows are left out and counted, generated prompts drawn"
            " again; refuse: no run with such prompts"
        ),
    ] = "drop"
    difficulty: Annotated[
        tuple[int, int] | None,
        Field(description="range of the training prompts; the task's own by default"),
    ] = None
    chat: Annotated[
        Literal["auto", "off"],
        Field(description="auto: prompts go into the tokenizer's chat template where it has one"),
    ] = "auto"
    system_prompt: Annotated[str | None, Field(description="system turn of the chat template")] = (
        None
    )
    reward: Annotated[
        dict[str, float],
        Field(
            description="weights of the reward's parts, set as reward.NAME=WEIGHT: accuracy,"
            " format, …"
        ),
    ] = {
        "accuracy": 1.0,
        "format": 0.1,
    }

    verifier_seconds: Annotated[
        float,
        Field(
            ge=0,
            allow_inf_nan=False,
            description="time limit of judging one completion, for verifiers that are not"
            " arithmetic's or knights'; 0: in the run's process, without limits",
        ),
    ] = 10.0

    prompts_per_step: Annotated[int, Field(ge=1, description="prompts of a rollout")] = 6
    group_size: Annotated[int, Field(ge=1, description="completions per prompt")] = 8
    max_new_tokens: Annotated[int, Field(ge=1, description="length limit of a completion")] = 96
    sample_at_once: Annotated[
        int,
        Field(
            ge=0,
            description="completions sampled at a time, at least a group: less memory, more time;"
            " 0 is all",
        ),
    ] = 0
    top_p: Annotated[
        float,
        Field(
            gt=0, le=1, description="1 is off; below, the policy ratio is biased by the mass cut"
        ),
    ] = 1.0
    top_k: Annotated[
        int, Field(ge=0, description="0 is off; above, the policy ratio is biased by the mass cut")
    ] = 0
    engine: Annotated[
        str,
        Field(
            description="fast: our sampler; hf: transformers' generate; continuous: its"
            " continuous batching; PATH.py:NAME: one of your own"
        ),
    ] = "fast"
    dense_copy: Annotated[
        bool,
        Field(
            validation_alias=AliasChoices("dense_copy", "dense_twin"),
            description="sample from a dequantised copy; in float32 the adapter is merged into"
            " it, and it is trained through",
        ),
    ] = True
    resample_rounds: Annotated[
        int,
        Field(
            ge=1, description="rollouts sampled at most in a step with zero_spread=resample (DAPO)"
        ),
    ] = 4
    mask_truncated: Annotated[
        bool,
        Field(
            description="leave completions cut by the length limit out of the loss and, unless"
            " group_rows=all, out of their group's mean and spread"
        ),
    ] = False

    traces: Annotated[
        int, Field(ge=1, description="teacher traces made for sft, kd_forward and gkd")
    ] = 512
    on_policy_frac: Annotated[
        float,
        Field(ge=0, le=1, description="share of GKD's steps on the student's own completions"),
    ] = 0.5

    updates_per_rollout: Annotated[
        int,
        Field(
            ge=1,
            description="passes over a rollout; with 1 pass of 1 minibatch nothing is ever clipped",
        ),
    ] = 2
    minibatches: Annotated[int, Field(ge=1, description="optimizer steps per pass")] = 1
    micro_batch: Annotated[
        int,
        Field(
            ge=1,
            description="of the longest completions in one forward and backward pass; of shorter"
            " ones as many as have no more tokens",
        ),
    ] = 16
    plan: Annotated[
        Literal["auto", "off"],
        Field(
            description="auto: with models of your own, lower micro_batch and logits_mib until"
            " the prediction of `rlkd plan` fits"
        ),
    ] = "auto"
    logits_mib: Annotated[
        int,
        Field(
            ge=1, description="MiB of logits (float32) held at a time; less is slower, and as exact"
        ),
    ] = 64
    guards: Annotated[
        dict[str, str],
        Field(
            description="what is done about numbers that go wrong: guard.NAME=warn, skip, pause,"
            " stop or off, with :LIMIT:STEPS"
        ),
    ] = {}
    kl_every: Annotated[
        int,
        Field(
            ge=0,
            description="steps between measurements of the KLs that the method itself does not"
            " need (teacher, reference); 0 is never",
        ),
    ] = 1
    max_grad_norm: Annotated[float, Field(gt=0, description="gradient clipping")] = 1.0
    weight_decay: Annotated[float, Field(ge=0, description="AdamW")] = 0.0

    knobs: Annotated[
        dict[str, float | str | None],
        Field(
            description="knob: number, off, linear:START:END[:SHARE] or switch:BEFORE:AFTER[:SHARE]"
        ),
    ] = {}
    options: Annotated[dict[str, str | int], Field(description="option: value")] = {}
    moves: Annotated[
        list[Move],
        Field(
            description="knobs moved at given steps, as `rlkd train --schedule-from` takes them"
            " from a run"
        ),
    ] = []

    eval_every: Annotated[
        int, Field(ge=0, description="steps between evaluations on held-out prompts; 0 is never")
    ] = 10
    eval_prompts: Annotated[
        int, Field(ge=1, description="validation prompts of an evaluation, one completion each")
    ] = 128
    checkpoint_every: Annotated[
        int, Field(ge=0, description="steps between checkpoints; 0: the last step alone")
    ] = 5
    keep_checkpoints: Annotated[
        int,
        Field(
            ge=0,
            description="newest checkpoints that are kept, beside the best in accuracy; 0 keeps"
            " all",
        ),
    ] = 5
    samples_every: Annotated[
        int, Field(ge=0, description="steps between recorded rollouts; 0 is never")
    ] = 10
    keep_samples: Annotated[
        int,
        Field(
            ge=0, description="recorded rollouts that are kept, spread over the run; 0 keeps all"
        ),
    ] = 100
    interference_every: Annotated[
        int, Field(ge=0, description="steps between interference measurements; 0 is never")
    ] = 0

    @field_validator("guards")
    @classmethod
    def _known_guards(cls, guards: dict[str, str]) -> dict[str, str]:
        declared(guards)
        return guards

    @field_validator("knobs")
    @classmethod
    def _numbers(cls, knobs: dict[str, float | str | None]) -> dict[str, float | str | None]:
        """The same setting is the same value, whether it came as a number or as text."""
        found: dict[str, float | str | None] = {}
        for name, text in knobs.items():
            try:
                schedule = parse_schedule(text)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            found[name] = schedule.value if isinstance(schedule, Constant) else text
        return found

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        method = METHODS[nearest(self.method, METHODS, "method")]
        # whether there is such a task is for find_task, which may have to import a library or read
        # a file
        check_template(self.prompt_template)
        nearest(self.preset, PRESETS, "preset")
        if ".py:" not in self.engine:
            nearest(self.engine, ENGINES, "engine")
        self.schedules()
        for move in self.moves:
            if not move.release:
                check_knob(self.method, move.knob, move.value)
        options = resolve_options(method, self.options)
        if options["zero_spread"] == "resample" and "groups" not in method.needs:
            raise ValueError(
                f"zero_spread=resample looks for groups whose rewards differ; {self.method}"
                " does not look at rewards"
            )
        if (
            "teacher" in method.needs | ({"teacher"} if "traces" in method.needs else set())
            and self.teacher is None
        ):
            raise ValueError(
                f"{self.method} needs a teacher: --set teacher=NAME, an embedded name"
                " (teacher, teacher-concise), a folder or a hub id"
            )
        if self.interference_every and self.group_size < 2:
            raise ValueError(
                "interference compares the method with GRPO, which needs a group of 2 or"
                " more: use --set group_size=2 or more, or --set interference_every=0"
            )
        if self.teacher_home == "host" and "divergence" in needs_of(method, {}, options):
            raise ValueError(
                f"{self.method} needs the teacher's whole distribution beside every update:"
                " teacher_home=host cannot be"
            )
        if "groups" in method.needs and self.group_size < 2:
            raise ValueError(
                f"{self.method} compares completions of one prompt: a group of"
                f" {self.group_size} has no spread; use --set group_size=2 or more"
            )
        try:
            json.dumps(self.model_dump(), allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                "the run could not write its config.json: a setting is infinite, too deep,"
                f" or half a character ({error})"
            ) from None
        return self

    def schedules(self) -> dict[str, Schedule]:
        """A schedule for every live knob: the method's and the loop's."""
        own = {name: value for name, value in self.knobs.items() if name not in LOOP_KNOBS}
        valid = {**METHODS[self.method].coefs, **LOOP_KNOBS}
        for name in own:
            nearest(name, valid, f"knob of {self.method}")
        schedules = schedules_for(self.method, own)
        for name, default in LOOP_DEFAULTS.items():
            schedules[name] = parse_schedule(self.knobs.get(name, default))
            for value in values_of(schedules[name]):
                check_knob(self.method, name, value)
        return schedules


def check_knob(method: str, name: str, value: float | None) -> float | None:
    """The value of a live knob, if the method listens to it and it lies in range; else a
    ValueError in words.
    """
    return check_coef(name, value, {**METHODS[method].knobs, **LOOP_KNOBS})


def make_config(
    method: str, preset: str = "tiny", settings: dict[str, str] | None = None, **fields: Any
) -> RunConfig:
    """A config from a preset, fields, and ``name=value`` settings as they stand on the command line
    (a field, knob or option by its bare name).

    Raises:
        ValueError: in one sentence, naming the nearest valid name or the range.
    """
    nearest(method, METHODS, "method")
    fields = {RENAMED.get(name, name): value for name, value in fields.items()}
    settings = {RENAMED.get(name, name): value for name, value in (settings or {}).items()}
    start = PRESETS[nearest(preset, PRESETS, "preset")].settings
    values: dict[str, Any] = {**start, "preset": preset, "method": method, **fields}
    for name in ("knobs", "options", "reward", "task_settings"):
        if not isinstance(values.get(name, {}), Mapping):
            raise ValueError(f"{name} maps names to values; {values[name]!r:.80} does not")
    # a preset's coefficients are for the methods that have them, and do not replace a schedule that
    # makes a method what it is
    listens = METHODS[method].coefs.keys() - METHODS[method].schedules.keys() | LOOP_KNOBS.keys()
    preset_knobs = {
        name: value for name, value in start.get("knobs", {}).items() if name in listens
    }
    values["knobs"], values["options"] = (
        {**preset_knobs, **fields.get("knobs", {})},
        dict(values.get("options", {})),
    )
    valid = {
        **METHODS[method].coefs,
        **LOOP_KNOBS,
        **CHOICES,
        "constant_length": None,
        "topk": None,
        **RunConfig.model_fields,
    }
    for name in fields:
        nearest(name, RunConfig.model_fields, "setting")
    for name, value in settings.items():
        if name in (
            "method",
            "preset",
            "steps",
            "seed",
            "knobs",
            "options",
            "moves",
            "reward",
            "guards",
            "task_settings",
        ):
            raise ValueError(
                f"{name} is not a setting for --set: give it by its own option or argument"
            )
        if name in KNOBS and name not in METHODS[method].coefs:
            raise ValueError(
                f"{method} does not listen to {name}; its knobs are"
                f" {', '.join([*METHODS[method].coefs, *LOOP_KNOBS])}"
            )
        if name.startswith("reward."):
            values["reward"] = {
                **RunConfig.model_fields["reward"].default,
                **values.get("reward", {}),
                name.removeprefix("reward."): value,
            }
            continue
        if name.startswith("guard."):
            values["guards"] = {**values.get("guards", {}), name.removeprefix("guard."): value}
            continue
        if name.startswith("task."):
            values["task_settings"] = {
                **values.get("task_settings", {}),
                name.removeprefix("task."): literal(value),
            }
            continue
        if name == "mode":
            values |= MODES[nearest(value, MODES, "mode")]
            continue
        nearest(name, valid, f"knob, option or setting of {method}")
        if name in METHODS[method].coefs or name in LOOP_KNOBS:
            values["knobs"][name] = value
        elif name in CHOICES or name in ("constant_length", "topk"):
            values["options"][name] = int(value) if value.lstrip("-").isdigit() else value
        elif (
            name in ("adapter", "teacher", "teacher_adapter", "max_prompt_tokens")
            and value == "off"
        ):
            values[name] = None
        elif name == "difficulty":
            low, _, high = value.partition("-")
            values[name] = (low, high or low)
        else:
            values[name] = value
    return validated(_with_adapter(values, {*fields, *(settings or {})}))


def _with_adapter(values: dict[str, Any], asked: set[str]) -> dict[str, Any]:
    """The values with the rank and alpha of the adapter that the run starts from; a default or a
    preset does not change an adapter.

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


def literal(text: str) -> Any:
    """A number, true, false, null or a list as JSON has them; any other text is itself."""
    try:
        return json.loads(text.lower() if text in ("True", "False") else text, parse_constant=str)
    except (
        ValueError,
        RecursionError,
    ):  # no JSON, a number of thousands of digits, lists a thousand deep
        return text


def validated(values: dict[str, Any]) -> RunConfig:
    """A RunConfig, or a ValueError with one sentence a problem instead of pydantic's report."""
    try:
        return RunConfig(**values)
    except ValidationError as error:
        raise ValueError(in_words(error)) from None


WITHOUT_VALUE = {"missing": "it has to be given", "extra_forbidden": "there is no such field"}
"""pydantic's reports that are not about a value."""


def in_words(error: ValidationError) -> str:
    """pydantic's report as one line: a sentence a problem."""
    problems = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        text = item["msg"].removeprefix("Value error, ")
        if item["type"] in WITHOUT_VALUE:
            problems.append(f"{where}: {WITHOUT_VALUE[item['type']]}")
        else:
            problems.append(f"{where}={item['input']!r:.200}: {text}" if where else text)
    return " ".join("; ".join(problems).split())


DRAWS = "a number for each token"
"""How completions are drawn. A checkpoint of a version that drew otherwise is refused."""
_HOW_OFTEN = {
    "eval_every",
    "eval_prompts",
    "checkpoint_every",
    "keep_checkpoints",
    "samples_every",
    "keep_samples",
    "interference_every",
}
NOT_IN_FINGERPRINT = {*_HOW_OFTEN, "plan", "guards", "verifier_seconds"}
"""Settings that change no weight: a run may be resumed with other values of them."""
RENAMED = {"dense_twin": "dense_copy"}
"""Earlier names of settings. Old configs and commands may use them; fingerprints keep them."""
LATER_SETTINGS = {"max_prompt_tokens", "long_prompts"}
"""Settings that earlier versions lack. At their defaults they do not change a fingerprint, so that
checkpoints of earlier versions can be resumed."""


def fingerprint(config: RunConfig) -> str:
    """Hash the settings that a checkpoint depends on, and how completions are drawn."""
    fields = RunConfig.model_fields
    unset = {name for name in LATER_SETTINGS if getattr(config, name) == fields[name].default}
    text = DRAWS + config.model_dump_json(exclude=NOT_IN_FINGERPRINT | unset)
    for earlier, name in RENAMED.items():
        text = text.replace(f'"{name}":', f'"{earlier}":')
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def of_teacher(config: RunConfig, problem: object) -> str:
    """What is wrong with the teacher, and that a method which needs none does without."""
    if METHODS[config.method].needs & {"teacher", "traces", "divergence"}:
        return str(problem)
    return (
        f"{problem}. {config.method} needs no teacher, which only adds the KL curves: --set"
        " teacher=off"
    )


def likely_mistakes(config: RunConfig) -> list[str]:
    """Sentences about settings that are allowed and probably not meant."""
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
    if (fault := fault_of(config.task)) is not None:
        found.append(fault)
    return found
