"""Rollouts: sampling engines behind one function, and teacher traces."""

from rlkd_lab.rollouts.request import Engine, Request, Sampling, Stopped
from rlkd_lab.rollouts.sampling import ENGINES, sample
from rlkd_lab.rollouts.traces import teacher_traces

__all__ = ["ENGINES", "Engine", "Request", "Sampling", "Stopped", "sample", "teacher_traces"]
