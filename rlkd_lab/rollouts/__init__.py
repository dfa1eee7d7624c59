"""Rollouts: sampling engines behind one function, and teacher traces."""

from rlkd_lab.rollouts.decoder import Decoder, Prompts
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
from rlkd_lab.rollouts.twin import DenseTwin, dense_copy

__all__ = [
    "ENGINES",
    "Completions",
    "Decoder",
    "DenseTwin",
    "Engine",
    "Prompts",
    "Request",
    "Sampling",
    "Stopped",
    "check_length",
    "counted",
    "dense_copy",
    "find_engine",
    "prompt_limit",
    "sample",
    "sequences_of",
    "teacher_traces",
]
