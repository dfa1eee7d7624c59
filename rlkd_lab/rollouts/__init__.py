"""Rollouts: sampling engines behind one function, and teacher traces."""

from rlkd_lab.rollouts.decoder import Decoder, Prompts
from rlkd_lab.rollouts.sampling import Completions, Engine, Sampling, Stopped, check_length, sample
from rlkd_lab.rollouts.traces import sequences_of, teacher_traces
from rlkd_lab.rollouts.twin import DenseTwin

__all__ = ["Completions", "Decoder", "DenseTwin", "Engine", "Prompts", "Sampling", "Stopped", "check_length", "sample", "sequences_of", "teacher_traces"]
