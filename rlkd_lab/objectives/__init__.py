"""The objectives: pure functions over per-token tensors.

This package imports torch and nothing of ours.
"""

from rlkd_lab.objectives.adding import add_method
from rlkd_lab.objectives.advantages import group_advantages
from rlkd_lab.objectives.batch import TokenBatch
from rlkd_lab.objectives.estimators import divergence, forward_kl, k1, k2, k3, reverse_kl
from rlkd_lab.objectives.loss import prepare, terms, token_loss
from rlkd_lab.objectives.method import Method
from rlkd_lab.objectives.methods import METHODS

__all__ = [
    "METHODS",
    "Method",
    "TokenBatch",
    "add_method",
    "divergence",
    "forward_kl",
    "group_advantages",
    "k1",
    "k2",
    "k3",
    "prepare",
    "reverse_kl",
    "terms",
    "token_loss",
]
