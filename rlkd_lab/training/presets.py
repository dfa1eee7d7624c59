"""Named starting points: the embedded pairs, and hub models in the settings of the papers, with the
source of every number.

A number that no paper gives is marked ``ours``. None of the hub presets was run here: no hub and no
GPU were at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

KDRL, RLAD, S = "KDRL (arXiv 2506.02208)", "RLAD (arXiv 2602.22495)", "S (arXiv 2609.04108)"
TEN_TIMES = f"ours: ten times the 1e-6 of {S}, which trains all parameters; LoRA needs about that"


@dataclass(frozen=True)
class Preset:
    """Settings that differ from the defaults of :class:`~rlkd_lab.training.config.RunConfig`."""

    title: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    """By setting; knobs and settings of the task by their own names."""


MODES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "fast": {"dense_copy": True, "gradient_checkpointing": False},
        "lean": {"dense_copy": False, "gradient_checkpointing": True},
    }
)
"""Two ways to run any preset, ``--set mode=…``: with a dequantised copy to sample from and nothing
recomputed, or with as little memory as goes. A preset as it is keeps the copy and recomputes; what
does not fit is lowered anyway.
"""
_MEMORY = {
    "gradient_checkpointing": True,
    "micro_batch": 8,
    "logits_mib": 256,
    "checkpoint_every": 10,
    "samples_every": 20,
    "kl_every": 10,
}
_MEMORY_SOURCES = {
    **dict.fromkeys(
        ("gradient_checkpointing", "micro_batch", "logits_mib"),
        "ours: memory; `rlkd plan` fits micro_batch and logits_mib to the card",
    ),
    **dict.fromkeys(
        ("checkpoint_every", "samples_every", "kl_every"), "ours: what is written, and how often"
    ),
}


def _rlad(student: str) -> Preset:
    settings = {
        "student": f"Qwen/{student}",
        "teacher": "Qwen/Qwen3-8B",
        "task": "knights_knaves",
        "prompts_per_step": 32,
        "group_size": 8,
        "max_new_tokens": 2048,
        "updates_per_rollout": 1,
        "minibatches": 4,
        "steps": 200,
        "knobs": {"learning_rate": 1e-5, "trrd_alpha": 0.5, "kd_coef": 0.1},
        **_MEMORY,
    }
    sources = {
        **dict.fromkeys(("student", "teacher", "task", "group_size"), RLAD),
        "prompts_per_step": f"{RLAD}: a batch of 256, read as completions: 32 × 8",
        "max_new_tokens": f"{RLAD}: the shortest of its contexts, 2K to 8K",
        "trrd_alpha": f"{RLAD}: near .5",
        "learning_rate": TEN_TIMES,
        **dict.fromkeys(
            ("updates_per_rollout", "minibatches"),
            "ours: four updates a rollout, so that ratios move and clipping acts",
        ),
        **dict.fromkeys(("steps", "kd_coef"), "ours"),
        **_MEMORY_SOURCES,
    }
    return Preset(
        f"RLAD's logic setting: {student} ← Qwen3-8B on Knights and Knaves", settings, sources
    )


def _head_to_head(
    title: str,
    task: str,
    kd_coef: float,
    task_settings: dict[str, int],
    difficulty: tuple[int, int] | None = None,
) -> Preset:
    settings: dict[str, Any] = {
        "student": "Qwen/Qwen3-1.7B-Base",
        "teacher": "Qwen/Qwen3-8B",
        "task": task,
        "task_settings": task_settings,
        "prompts_per_step": 16,
        "group_size": 8,
        "updates_per_rollout": 1,
        "minibatches": 8,
        "max_new_tokens": 2048,
        "steps": 200,
        "knobs": {
            "learning_rate": 1e-5,
            "kd_coef": kd_coef,
            "clip_low": 0.2,
            "clip_high": 0.2,
            "temperature": 1.0,
        },
        **_MEMORY,
    }
    told = [
        "student",
        "teacher",
        "task",
        "group_size",
        "kd_coef",
        "clip_low",
        "clip_high",
        "temperature",
        *(f"task.{name}" for name in task_settings),
    ]
    if difficulty is not None:
        settings["difficulty"] = difficulty
        told.append("difficulty")
    sources = {
        **dict.fromkeys(told, S),
        "prompts_per_step": f"{S}: a batch of 128, read as completions: 16 × 8",
        **dict.fromkeys(
            ("updates_per_rollout", "minibatches"), f"{S}: minibatches of 16, one pass"
        ),
        "learning_rate": TEN_TIMES,
        **dict.fromkeys(("max_new_tokens", "steps"), "ours"),
        **_MEMORY_SOURCES,
    }
    return Preset(f"the head-to-head's {title}: Qwen3-1.7B-Base ← Qwen3-8B", settings, sources)


def _gsm8k(student: str) -> Preset:
    settings = {
        "student": f"Qwen/{student}",
        "teacher": "Qwen/Qwen2.5-7B-Instruct",
        "task": "hub:openai/gsm8k",
        "prompts_per_step": 8,
        "group_size": 8,
        "max_new_tokens": 512,
        "steps": 200,
        "knobs": {"learning_rate": 1e-5, "kd_coef": 0.1},
        **_MEMORY,
    }
    ours = dict.fromkeys(
        (
            "student",
            "teacher",
            "task",
            "prompts_per_step",
            "group_size",
            "max_new_tokens",
            "steps",
            "learning_rate",
            "kd_coef",
        ),
        "ours",
    )
    return Preset(
        f"GSM8K on a 16 GB card: {student} ← Qwen2.5-7B-Instruct", settings, ours | _MEMORY_SOURCES
    )


_KDRL = {
    "student": "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
    "teacher": "Skywork/Skywork-OR1-Math-7B",
    "task": "hub:open-r1/DAPO-Math-17k-Processed",
    "prompts_per_step": 16,
    "group_size": 8,
    "max_new_tokens": 8192,
    "steps": 280,
    "updates_per_rollout": 1,
    "minibatches": 4,
    "knobs": {"learning_rate": 1e-5, "kd_coef": 2e-3, "kl_coef": 0.0},
    **_MEMORY,
}


def _midsize(title: str, task: str, max_new_tokens: int, task_settings: dict[str, int]) -> Preset:
    settings = {
        "student": f"models/midsize/student-{title}",
        "teacher": "models/midsize/teacher",
        "task": task,
        "task_settings": task_settings,
        "max_new_tokens": max_new_tokens,
        "prompts_per_step": 16,
        "micro_batch": 64,
        "eval_every": 20,
        "eval_prompts": 256,
        "checkpoint_every": 20,
    }
    sources = {name: "ours" for name in settings if name != "task_settings"} | {
        f"task.{name}": "ours" for name in task_settings
    }
    return Preset(f"the mid-size pair that `make midsize` pre-trains, on {task}", settings, sources)


PRESETS: dict[str, Preset] = {
    "tiny": Preset("the embedded pair on arithmetic: two CPU cores, minutes"),
    "knights": Preset(
        "the embedded pair on Knights and Knaves in a compact notation",
        {
            "task": "knights",
            "student": "knights-student",
            "teacher": "knights-teacher",
            "max_new_tokens": 256,
        },
        dict.fromkeys(("task", "student", "teacher", "max_new_tokens"), "ours"),
    ),
    "midsize-knights": _midsize("knights", "knights_knaves", 704, {}),
    "midsize-countdown": _midsize(
        "countdown", "countdown", 400, {"min_numbers": 3, "max_numbers": 3}
    ),
    "rlad-0.6b": _rlad("Qwen3-0.6B"),
    "rlad-1.7b": _rlad("Qwen3-1.7B"),
    "s-knights": _head_to_head(
        "Knights and Knaves",
        "knights_knaves",
        0.2,
        {"depth_constraint": 2, "width_constraint": 2},
        (6, 6),
    ),
    "s-zebra": _head_to_head(
        "Zebra puzzles", "zebra_puzzles", 0.2, {"num_people": 4, "num_characteristics": 4}
    ),
    "s-countdown": _head_to_head(
        "Countdown", "countdown", 0.02, {"min_numbers": 3, "max_numbers": 4}
    ),
    "kdrl-math": Preset(
        "KDRL's setting: DeepSeek-R1-Distill-Qwen-1.5B ← Skywork-OR1-Math-7B on mathematics",
        _KDRL,
        {
            **dict.fromkeys(("student", "teacher", "kd_coef", "kl_coef"), KDRL),
            "steps": f"{KDRL}: about 280",
            "learning_rate": TEN_TIMES,
            "task": "ours: an open set of competition problems with a number as the answer",
            **dict.fromkeys(
                (
                    "prompts_per_step",
                    "group_size",
                    "max_new_tokens",
                    "updates_per_rollout",
                    "minibatches",
                ),
                "ours",
            ),
            **_MEMORY_SOURCES,
        },
    ),
    "gsm8k-0.5b": _gsm8k("Qwen2.5-0.5B-Instruct"),
    "gsm8k-1.5b": _gsm8k("Qwen2.5-1.5B-Instruct"),
}
