"""Runs: the run folder, written and read; runs compared."""

from rlkd_lab.runs.compare import compare, first_difference
from rlkd_lab.runs.folder import RunFolder
from rlkd_lab.runs.overview import overview

__all__ = ["RunFolder", "compare", "first_difference", "overview"]
