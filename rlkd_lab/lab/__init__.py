"""What a notebook shows: plots, and figures with their sidecars."""

from rlkd_lab.lab.plots import ALL, MAIN, STYLES, plot_runs, png, save_figure

__all__ = ["ALL", "MAIN", "STYLES", "plot_runs", "png", "save_figure"]
