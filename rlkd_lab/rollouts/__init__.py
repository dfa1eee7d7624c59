"""Rollouts: sampling engines behind one function, and teacher traces."""

from rlkd_lab.rollouts.request import Engine, Request, Sampling, Stopped
from rlkd_lab.rollouts.sampling import (
    ENGINES,
    Completions,
    check_length,
    counted,
    find_engine,
    prompt_limit,
    sample,
)
from rlkd_lab.rollouts.traces import sequences_of, teacher_traces

__all__ = [
    "ENGINES",
    "Completions",
    "Engine",
    "Request",
    "Sampling",
    "Stopped",
    "check_length",
    "counted",
    "find_engine",
    "prompt_limit",
    "sample",
    "sequences_of",
    "teacher_traces",
]
