"""Runs: the run folder, written and read; runs compared."""

from rlkd_lab.runs.compare import compare
from rlkd_lab.runs.folder import FORMAT, TIMING, RunFolder, first_difference

__all__ = ["FORMAT", "TIMING", "RunFolder", "compare", "first_difference"]
