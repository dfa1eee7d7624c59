"""Models: 4-bit loading with verification, LoRA, teacher and reference as views, chunked
per-token log-probabilities.
"""

from rlkd_lab.models import distributed
from rlkd_lab.models.adapters import save_adapter
from rlkd_lab.models.checks import dequantised, probe_logps, verify_quantised
from rlkd_lab.models.dense_copy import DenseCopy, make_dense_copy
from rlkd_lab.models.loading import (
    LanguageModel,
    check_same_tokenizer,
    compute_dtype,
    default_device,
    load_base,
    load_policy,
    load_teacher,
    locate,
    reference_of,
    zoo_names,
)
from rlkd_lab.models.logprobs import (
    Sequences,
    chunk_of,
    hidden_states,
    measured_divergences,
    policy_logps,
    targets,
    token_divergence,
    token_logps,
    top_alternatives,
    unflatten,
    vocabulary,
)

__all__ = [
    "DenseCopy",
    "LanguageModel",
    "Sequences",
    "check_same_tokenizer",
    "chunk_of",
    "compute_dtype",
    "default_device",
    "dequantised",
    "distributed",
    "hidden_states",
    "load_base",
    "load_policy",
    "load_teacher",
    "locate",
    "make_dense_copy",
    "measured_divergences",
    "policy_logps",
    "probe_logps",
    "reference_of",
    "save_adapter",
    "targets",
    "token_divergence",
    "token_logps",
    "top_alternatives",
    "unflatten",
    "verify_quantised",
    "vocabulary",
    "zoo_names",
]
