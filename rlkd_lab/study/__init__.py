"""Studies: a model evaluated, two models compared, and the statistics of both."""

from rlkd_lab.study.evaluation import (
    Settings,
    about,
    chance_of,
    check_ks,
    check_out,
    compare_frames,
    evaluate_target,
    per_prompt,
    read_table,
    samples_of,
    settings_of,
    summarise,
    write_table,
)
from rlkd_lab.study.sides import check_sides, compare_runs, expanded
from rlkd_lab.study.statistics import (
    bootstrap,
    chance_pass_at_k,
    majority_at_k,
    paired_bootstrap,
    pass_at_k,
    welch,
)
from rlkd_lab.study.targets import Target, asked_as, data_note, find_target, task_of

__all__ = [
    "Settings",
    "Target",
    "about",
    "asked_as",
    "bootstrap",
    "chance_of",
    "chance_pass_at_k",
    "check_ks",
    "check_out",
    "check_sides",
    "compare_frames",
    "compare_runs",
    "data_note",
    "evaluate_target",
    "expanded",
    "find_target",
    "majority_at_k",
    "paired_bootstrap",
    "pass_at_k",
    "per_prompt",
    "read_table",
    "samples_of",
    "settings_of",
    "summarise",
    "task_of",
    "welch",
    "write_table",
]
