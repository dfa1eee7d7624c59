"""Runs: the run folder, written and read; runs compared."""

from rlkd_lab.runs import checkpoints
from rlkd_lab.runs.compare import compare
from rlkd_lab.runs.folder import FORMAT, TIMING, RunFolder, first_difference
from rlkd_lab.runs.lock import alone
from rlkd_lab.runs.overview import find_runs, overview
from rlkd_lab.runs.tail import Tail

__all__ = [
    "FORMAT",
    "TIMING",
    "RunFolder",
    "Tail",
    "alone",
    "checkpoints",
    "compare",
    "find_runs",
    "first_difference",
    "overview",
]
