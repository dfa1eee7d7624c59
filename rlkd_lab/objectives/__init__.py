"""The objectives: pure functions over per-token tensors.

This package imports torch and nothing of ours.
"""

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
from rlkd_lab.objectives.methods import (
    CHOICES,
    KNOBS,
    METHODS,
    Knob,
    Method,
    add_method,
    advantage,
    check_coef,
    idle_rows,
    is_added,
    nearest,
    needs_of,
    prepare,
    resolve_options,
    schedules_for,
    token_loss,
)
from rlkd_lab.objectives.schedules import Constant, Linear, Schedule, Switch, parse_schedule

__all__ = [
    "CHOICES",
    "KNOBS",
    "METHODS",
    "Constant",
    "Knob",
    "Linear",
    "Method",
    "Schedule",
    "Switch",
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
    "resolve_options",
    "reverse_kl",
    "reward_guided_mask",
    "schedules_for",
    "teacher_gap",
    "token_loss",
    "topk_with_tail",
]
