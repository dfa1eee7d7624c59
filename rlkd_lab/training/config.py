"""The config of a run: every choice that is fixed before the start, and the schedules of knobs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from rlkd_lab.models.lora import Lora
from rlkd_lab.objectives.methods import METHODS, schedules_for
from rlkd_lab.objectives.schedules import Constant, Schedule, parse_schedule, values_of
from rlkd_lab.objectives.settings import nearest
from rlkd_lab.training.config_checks import check_settings
from rlkd_lab.training.guards import declared
from rlkd_lab.training.loop_knobs import LOOP_DEFAULTS, LOOP_KNOBS, Move, check_knob
from rlkd_lab.training.teacher_settings import (
    RATE,
    Teacher,
    TeacherCache,
    TeacherEma,
    TeacherHome,
    TeacherMix,
    TeacherPrompt,
    TeacherTokenizer,
)


class RunConfig(BaseModel):
    """Holds all settings of a run.

    ``knobs`` maps a knob to a number or a schedule, ``options`` an option to its value. The method
    gives the defaults of both.
    """

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    method: Annotated[str, Field(description="a row of `rlkd methods`")] = "grpo"
    preset: Annotated[str, Field(description="the preset these settings started from")] = "tiny"
    steps: Annotated[
        int, Field(ge=1, description="optimisation steps; schedules are shares of this")
    ] = 60
    seed: Annotated[int, Field(ge=0, lt=2**31, description="of everything random in the run")] = 0

    student: Annotated[str, Field(description="embedded name, folder or hub id")] = "student"
    teacher: Teacher = "teacher"
    quant: Annotated[Literal["nf4", "none"], Field(description="student's base")] = "nf4"
    teacher_quant: Annotated[Literal["nf4", "none"], Field(description="teacher")] = "nf4"
    adapter: Annotated[
        str | None,
        Field(description="adapter folder to go on from; a frozen copy is the reference"),
    ] = None
    teacher_home: TeacherHome = "device"
    teacher_adapter: Annotated[str | None, Field(description="the teacher's adapter folder")] = None
    teacher_prompt: TeacherPrompt = None
    teacher_ema: TeacherEma = RATE
    teacher_mix: TeacherMix = None
    teacher_tokenizer: TeacherTokenizer = None
    teacher_cache: TeacherCache = None
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
    lora_targets: Annotated[
        str,
        Field(
            description="layers with an adapter: all-linear, attention, mlp, or a regular"
            " expression for a layer's whole path"
        ),
    ] = "all-linear"
    lora_kind: Annotated[
        Literal["lora", "rslora", "dora"],
        Field(
            description="rslora: scaled by lora_alpha / √lora_rank; dora: no dense copy can hold"
            " it, so a step takes longer"
        ),
    ] = "lora"
    lora_ranks: Annotated[
        dict[str, Annotated[int, Field(ge=1)]],
        Field(description="other ranks, set as lora_ranks.LAYER=RANK: the end of a layer's path"),
    ] = {}
    lora_alphas: Annotated[
        dict[str, Annotated[int, Field(ge=1)]],
        Field(description="other alphas, set as lora_alphas.LAYER=ALPHA"),
    ] = {}
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
            " continuous batching; vllm; PATH.py:NAME: one of your own"
        ),
    ] = "fast"
    dense_copy: Annotated[
        bool,
        Field(
            validation_alias=AliasChoices("dense_copy", "dense_twin"),
            description="sample from a dequantised copy and train through it; in float32 the"
            " adapter is merged into it",
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
        int,
        Field(ge=1, description="teacher traces made for sft, kd_forward, gkd, luffy and chord"),
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
            " need (teacher, reference); 0 is never. With models of your own the default is 10",
        ),
    ] = 1
    max_grad_norm: Annotated[float, Field(gt=0, description="gradient clipping")] = 1.0
    optimizer: Annotated[
        Literal["adamw", "adamw_8bit"],
        Field(description="adamw_8bit: bitsandbytes' AdamW, its moments in 8 bits"),
    ] = "adamw"
    adam_beta1: Annotated[
        float, Field(ge=0, lt=1, description="AdamW's decay of the mean of gradients")
    ] = 0.9
    adam_beta2: Annotated[
        float, Field(ge=0, lt=1, description="AdamW's decay of the mean of their squares")
    ] = 0.95
    weight_decay: Annotated[float, Field(ge=0, description="of AdamW")] = 0.0

    knobs: Annotated[
        dict[str, float | str | None],
        Field(
            description="knob: number, off, linear:START:END[:SHARE], cosine:START:END[:SHARE],"
            " switch:BEFORE:AFTER[:SHARE] or warmup:SHARE: and one of these"
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
    eval_prompts: Annotated[int, Field(ge=1, description="validation prompts of an evaluation")] = (
        128
    )
    eval_samples: Annotated[int, Field(ge=1, description="completions of each of them")] = 1
    eval_ood: Annotated[
        bool, Field(description="whether harder prompts than those of training are asked too")
    ] = True
    eval_task: Annotated[
        str | None, Field(description="task or file that evaluations ask; the run's own by default")
    ] = None
    patience: Annotated[
        int,
        Field(
            ge=0,
            description="evaluations without a better accuracy after which the run ends; 0 is"
            " never (early stopping)",
        ),
    ] = 0
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
    track: Annotated[
        Literal["tensorboard", "trackio", "wandb", "mlflow"] | None,
        Field(description="tracker that rows and samples are sent to as well; off by default"),
    ] = None
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
        """Return constants as numbers, also where they came as text."""
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
        check_settings(self)
        return self

    def lora(self) -> Lora:
        """Return the adapter that a run without `adapter` starts from."""
        return Lora(
            self.lora_rank,
            self.lora_alpha,
            self.lora_targets,
            self.lora_kind,
            self.lora_ranks,
            self.lora_alphas,
        )

    def schedules(self) -> dict[str, Schedule]:
        """Return a schedule for every live knob: the method's and the loop's."""
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
