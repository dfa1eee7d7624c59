"""Models: 4-bit loading with verification, LoRA, teacher and reference as views, chunked
per-token log-probabilities.
"""

import rlkd_lab.models.quick_import  # noqa: F401  before peft, which imports it too
from rlkd_lab.models.dense_copy import make_dense_copy
from rlkd_lab.models.language_model import LanguageModel
from rlkd_lab.models.loading import default_device, load_policy, load_teacher, reference_of
from rlkd_lab.models.locating import locate
from rlkd_lab.models.logprobs import policy_logps, token_logps
from rlkd_lab.models.lora import Lora
from rlkd_lab.models.sequences import Sequences

__all__ = [
    "LanguageModel",
    "Lora",
    "Sequences",
    "default_device",
    "load_policy",
    "load_teacher",
    "locate",
    "make_dense_copy",
    "policy_logps",
    "reference_of",
    "token_logps",
]
