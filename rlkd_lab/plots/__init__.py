"""Figures of runs, of ablations and of the study's claims.

The module draws without pyplot, so figures work in threads and without a display.
It reads run folders and tables; the command line and the notebooks draw with it.
"""

from rlkd_lab.plots.ablations import plot_arms, plot_differences, plot_heat, plot_knob
from rlkd_lab.plots.budgets import at_budget, plot_budget, plot_frontier
from rlkd_lab.plots.claims import claim_figure, draw_claims, teachers_figure
from rlkd_lab.plots.files import png, save_figure
from rlkd_lab.plots.runs import ALL, MAIN, plot_groups, plot_runs, seed_table
from rlkd_lab.plots.styles import STYLES

__all__ = [
    "ALL",
    "MAIN",
    "STYLES",
    "at_budget",
    "claim_figure",
    "draw_claims",
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
    "teachers_figure",
]
