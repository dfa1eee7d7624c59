"""Studies: a model evaluated, two models compared, and the statistics of both."""

from rlkd_lab.study.eval_table import read_table, write_table
from rlkd_lab.study.evaluation import Settings, evaluate_target, settings_of
from rlkd_lab.study.sides import compare_runs
from rlkd_lab.study.summary import compare_frames, summarise
from rlkd_lab.study.targets import find_target, task_of

__all__ = [
    "Settings",
    "compare_frames",
    "compare_runs",
    "evaluate_target",
    "find_target",
    "read_table",
    "settings_of",
    "summarise",
    "task_of",
    "write_table",
]
