"""Models: 4-bit loading with verification, LoRA, teacher and reference as views, chunked per-token log-probabilities."""

from rlkd_lab.models.loading import (
    LanguageModel,
    check_same_tokenizer,
    compute_dtype,
    default_device,
    dequantised,
    load_base,
    load_policy,
    load_teacher,
    locate,
    reference_of,
    verify_quantised,
    zoo_names,
)
from rlkd_lab.models.logprobs import (
    Sequences,
    hidden_states,
    policy_logps,
    targets,
    token_divergence,
    token_logps,
    top_alternatives,
    unflatten,
)

__all__ = [
    "LanguageModel",
    "Sequences",
    "check_same_tokenizer",
    "compute_dtype",
    "default_device",
    "dequantised",
    "hidden_states",
    "load_base",
    "load_policy",
    "load_teacher",
    "locate",
    "policy_logps",
    "reference_of",
    "targets",
    "token_divergence",
    "token_logps",
    "top_alternatives",
    "unflatten",
    "verify_quantised",
    "zoo_names",
]
