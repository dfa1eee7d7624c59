"""The fingerprint of a config: whether a checkpoint belongs to it."""

from __future__ import annotations

import hashlib

from rlkd_lab.training.config import RunConfig
from rlkd_lab.training.config_checks import OF_AN_ADAPTER
from rlkd_lab.training.make_config import RENAMED

RESULTS = 3
"""The version of everything that makes results from a config and a seed.

Raise it with every change after which they give other rows: of draws, prompts, losses, or order of
sums.
Tables of results carry it, arms of two versions are not compared, and a checkpoint of another
version is refused.
"""
_SEALS = {3: "a number for each token"}
"""What stands in the fingerprints of a version. Checkpoints of version 3 have these words."""
NOT_IN_FINGERPRINT = {
    "eval_every",
    "eval_prompts",
    "eval_samples",
    "eval_task",
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
    "teacher_prompt",
    "teacher_ema",
    "teacher_mix",
    "teacher_tokenizer",
    "teacher_cache",
    *OF_AN_ADAPTER,
}
"""Settings that earlier versions lack. At their defaults they do not change a fingerprint, so that
checkpoints of earlier versions can be resumed."""


def fingerprint(config: RunConfig) -> str:
    """Hash the settings that a checkpoint depends on, and the version of what makes results."""
    fields = RunConfig.model_fields
    unset = {name for name in LATER_SETTINGS if getattr(config, name) == fields[name].default}
    seal = _SEALS.get(RESULTS, f"results {RESULTS}")
    text = seal + config.model_dump_json(exclude=NOT_IN_FINGERPRINT | unset)
    for earlier, name in RENAMED.items():
        text = text.replace(f'"{name}":', f'"{earlier}":')
    return hashlib.sha256(text.encode()).hexdigest()[:16]
