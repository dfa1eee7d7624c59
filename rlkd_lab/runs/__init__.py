"""Runs: the run folder, written and read; runs compared."""

from rlkd_lab.runs.compare import compare
from rlkd_lab.runs.folder import FORMAT, TIMING, RunFolder, first_difference
from rlkd_lab.runs.overview import find_runs, overview

__all__ = ["FORMAT", "TIMING", "RunFolder", "compare", "find_runs", "first_difference", "overview"]
