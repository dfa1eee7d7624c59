"""What a notebook shows: plots, figures with their sidecars, progress."""

from rlkd_lab.lab.plots import ALL, MAIN, STYLES, plot_runs, png, save_figure
from rlkd_lab.lab.progress import progress

__all__ = ["ALL", "MAIN", "STYLES", "plot_runs", "png", "progress", "save_figure"]
