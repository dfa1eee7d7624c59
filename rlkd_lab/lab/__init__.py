"""What a notebook shows: a run driven and watched, plots, figures with their sidecars, progress, tokens."""

from rlkd_lab.lab.driving import Handle, RunFailed, Status, launch, open_run, start
from rlkd_lab.lab.inspector import inspect_tokens
from rlkd_lab.lab.plots import ALL, MAIN, STYLES, plot_groups, plot_runs, png, save_figure, seed_table
from rlkd_lab.lab.progress import progress
from rlkd_lab.lab.stage import Stage
from rlkd_lab.lab.tokens import token_arrays

__all__ = [
    "ALL",
    "MAIN",
    "STYLES",
    "Handle",
    "RunFailed",
    "Stage",
    "Status",
    "inspect_tokens",
    "launch",
    "open_run",
    "plot_groups",
    "plot_runs",
    "png",
    "progress",
    "save_figure",
    "seed_table",
    "start",
    "token_arrays",
]
