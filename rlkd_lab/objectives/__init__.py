"""The objectives: pure functions over per-token tensors.

This package imports torch and nothing of ours.
"""

from rlkd_lab.objectives.adding import add_method, is_added
from rlkd_lab.objectives.advantages import group_advantages, reward_guided_mask, teacher_gap
from rlkd_lab.objectives.batch import TokenBatch
from rlkd_lab.objectives.estimators import (
    divergence,
    forward_kl,
    jsd,
    k1,
    k2,
    k3,
    reverse_kl,
    topk_with_tail,
)
from rlkd_lab.objectives.loss import (
    ResolvedMethod,
    Terms,
    advantage,
    idle_rows,
    prepare,
    resolve,
    terms,
    token_loss,
)
from rlkd_lab.objectives.methods import METHODS, Method, needs_of, resolve_options, schedules_for
from rlkd_lab.objectives.schedules import Constant, Linear, Schedule, Switch, parse_schedule
from rlkd_lab.objectives.settings import CHOICES, KNOBS, Knob, check_coef, nearest

__all__ = [
    "CHOICES",
    "KNOBS",
    "METHODS",
    "Constant",
    "Knob",
    "Linear",
    "Method",
    "ResolvedMethod",
    "Schedule",
    "Switch",
    "Terms",
    "TokenBatch",
    "add_method",
    "advantage",
    "check_coef",
    "divergence",
    "forward_kl",
    "group_advantages",
    "idle_rows",
    "is_added",
    "jsd",
    "k1",
    "k2",
    "k3",
    "nearest",
    "needs_of",
    "parse_schedule",
    "prepare",
    "resolve",
    "resolve_options",
    "reverse_kl",
    "reward_guided_mask",
    "schedules_for",
    "teacher_gap",
    "terms",
    "token_loss",
    "topk_with_tail",
]
