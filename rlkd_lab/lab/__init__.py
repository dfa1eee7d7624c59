"""What a notebook shows: a run driven and watched, plots, figures with their sidecars, progress."""

from rlkd_lab.lab.driving import Handle, RunFailed, Status, launch, open_run, start
from rlkd_lab.lab.estimate import gpu_hours, memory_table, release
from rlkd_lab.lab.method_checks import check_method
from rlkd_lab.lab.plots import ALL, MAIN, STYLES, plot_groups, plot_runs, png, save_figure, seed_table
from rlkd_lab.lab.progress import progress
from rlkd_lab.lab.stage import Stage

__all__ = [
    "ALL",
    "MAIN",
    "STYLES",
    "Handle",
    "RunFailed",
    "Stage",
    "Status",
    "check_method",
    "gpu_hours",
    "launch",
    "memory_table",
    "open_run",
    "plot_groups",
    "plot_runs",
    "png",
    "progress",
    "release",
    "save_figure",
    "seed_table",
    "start",
]
