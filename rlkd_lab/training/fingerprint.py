"""The fingerprint of a config: whether a checkpoint belongs to it."""

from __future__ import annotations

import hashlib

from rlkd_lab.training.config import RunConfig

RESULTS = 5
"""The version of everything that makes results from a config and a seed.

Raise it with every change after which they give other rows: of draws, prompts, losses, or order of
sums.
Tables of results carry it, arms of two versions are not compared, and a checkpoint of another
version is refused.
"""
NOT_IN_FINGERPRINT = {
    "eval_every",
    "eval_prompts",
    "eval_samples",
    "eval_ood",
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
LATER_SETTINGS: set[str] = set()
"""Settings that came after this version of results. At their defaults they do not change a
fingerprint, so that checkpoints from before them can be resumed.
"""


def fingerprint(config: RunConfig) -> str:
    """Hash the settings that a checkpoint depends on, and the version of what makes results."""
    fields = RunConfig.model_fields
    unset = {name for name in LATER_SETTINGS if getattr(config, name) == fields[name].default}
    text = f"results {RESULTS}" + config.model_dump_json(exclude=NOT_IN_FINGERPRINT | unset)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
