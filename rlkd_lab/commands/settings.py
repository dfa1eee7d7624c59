"""What `--set` understands, by group; the ten settings that matter first."""

from __future__ import annotations

from rich.table import Table

from rlkd_lab.commands.common import console
from rlkd_lab.terminal import escape

FIRST = {
    "student": "the model that is trained: embedded name, folder or hub id",
    "teacher": "the model that it learns from; self for the student; off for none",
    "task": "arithmetic, knights, a reasoning-gym set, a file, hub:OWNER/NAME or PATH.py:CLASS",
    "learning_rate": "step size of AdamW",
    "lora_rank": "rank of the adapter",
    "prompts_per_step": "prompts of a step",
    "group_size": "completions of each prompt",
    "max_new_tokens": "length limit of a completion",
    "temperature": "sampling temperature",
    "eval_every": "steps between evaluations on held-out prompts",
}
"""The settings that matter first, with a short line of help each."""
GROUPS: dict[str, list[str]] = {
    "models": [
        "quant",
        "teacher_quant",
        "adapter",
        "teacher_adapter",
        "teacher_home",
        "teacher_mix",
        "teacher_tokenizer",
        "teacher_cache",
        "teacher_ema",
        "lora_alpha",
        "lora_targets",
        "lora_kind",
        "lora_ranks",
        "lora_alphas",
        "dense_copy",
        "gradient_checkpointing",
    ],
    "task and prompts": [
        "task_settings",
        "difficulty",
        "prompt_template",
        "chat",
        "system_prompt",
        "max_prompt_tokens",
        "long_prompts",
    ],
    "reward": ["reward", "verifier_seconds", "mask_truncated", "group_rows"],
    "sampling": ["engine", "top_p", "top_k", "sample_at_once", "zero_spread", "resample_rounds"],
    "the objective": ["aggregation", "scale_rewards", "level", "ref_estimator", "kl_every"],
    "the teacher's term": [
        "teacher_prompt",
        "estimator",
        "divergence",
        "kd_mask",
        "kd_normalizer",
        "kd_ratio",
        "traces",
        "keep_traces",
        "on_policy_frac",
    ],
    "the update": [
        "updates_per_rollout",
        "minibatches",
        "micro_batch",
        "plan",
        "logits_mib",
        "max_grad_norm",
        "optimizer",
        "adam_beta1",
        "adam_beta2",
        "weight_decay",
        "guards",
    ],
    "records": [
        "eval_prompts",
        "eval_samples",
        "eval_ood",
        "eval_task",
        "patience",
        "checkpoint_every",
        "keep_checkpoints",
        "samples_every",
        "keep_samples",
        "track",
        "interference_every",
    ],
}
"""All other settings and options."""


def first_settings() -> str:
    """Return the first settings as text for `rlkd train --help`."""
    lines = [f"[bold]{name}[/]: {text}" for name, text in FIRST.items()]
    return "\n\n".join(
        [
            "The ten settings that matter first, as --set NAME=VALUE:",
            *lines,
            "`rlkd methods` lists all others by group.",
        ]
    )


def print_settings() -> None:
    """Print the first ten settings, then all others by group, with defaults and help."""
    from rlkd_lab.objectives.settings import CHOICES
    from rlkd_lab.training.config import RunConfig
    from rlkd_lab.training.loop_knobs import LOOP_DEFAULTS, LOOP_KNOBS

    table = Table(box=None, show_header=False, pad_edge=False)
    for group, names in {"first": list(FIRST), **GROUPS}.items():
        table.add_row(f"[bold]{group}[/]", "")
        for name in names:
            if name in CHOICES:
                table.add_row(name, " | ".join(CHOICES[name]))
            elif name in LOOP_KNOBS:
                knob = LOOP_KNOBS[name]
                span = f"a knob, {knob.low:g}–{knob.high:g}, by default {LOOP_DEFAULTS[name]:g}"
                table.add_row(name, f"{knob.help}; {span}")
            else:
                field = RunConfig.model_fields[name]
                default = "" if field.default in (None, {}) else f" [{field.default}]"
                table.add_row(name, escape(f"{field.description}{default}"))
    console.print(
        "Settings for --set, beside the knobs above, with their defaults in brackets. A choice"
        " without one has the method's own default."
    )
    console.print(table)
