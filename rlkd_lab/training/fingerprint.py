"""The fingerprint of a config: whether a checkpoint belongs to it."""

from __future__ import annotations

import hashlib

from rlkd_lab.training.config import RunConfig
from rlkd_lab.training.make_config import RENAMED

DRAWS = "a number for each token"
"""How completions are drawn. A checkpoint of another way of drawing is refused."""
NOT_IN_FINGERPRINT = {
    "eval_every",
    "eval_prompts",
    "checkpoint_every",
    "keep_checkpoints",
    "samples_every",
    "keep_samples",
    "interference_every",
    "plan",
    "guards",
    "verifier_seconds",
    "track",
    "patience",
}
"""Settings that change no weight: a run may be resumed with other values of them."""
LATER_SETTINGS = {
    "max_prompt_tokens",
    "long_prompts",
    "optimizer",
    "adam_beta1",
    "adam_beta2",
    "lora_targets",
    "lora_kind",
    "lora_ranks",
    "lora_alphas",
}
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
