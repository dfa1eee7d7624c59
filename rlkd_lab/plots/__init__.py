"""Figures of runs, of ablations and of the study's claims.

The module draws without pyplot, so figures work in threads and without a display.
It reads run folders and tables; the command line and the notebooks draw with it.
"""

from rlkd_lab.plots.ablations import plot_arms, plot_differences, plot_heat, plot_knob
from rlkd_lab.plots.budgets import plot_budget, plot_frontier
from rlkd_lab.plots.files import png, save_figure
from rlkd_lab.plots.runs import plot_groups, plot_runs, seed_table

__all__ = [
    "plot_arms",
    "plot_budget",
    "plot_differences",
    "plot_frontier",
    "plot_groups",
    "plot_heat",
    "plot_knob",
    "plot_runs",
    "png",
    "save_figure",
    "seed_table",
]
