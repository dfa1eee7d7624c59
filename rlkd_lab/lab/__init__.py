"""What a notebook shows: plots, figures with their sidecars, progress, pictures that ask for a prediction first, exercises."""

from rlkd_lab.lab.exercises import check, exercises, weak_verifier
from rlkd_lab.lab.pictures import (
    PICTURES,
    annealing_stack,
    clip_surrogate,
    estimator_arrows,
    exposure_bias,
    gradient_angle,
    group_advantage,
    kl_concentration,
    kl_of_samples,
    mask_grid,
    measure_exposure,
    play,
    trrd_tokens,
    trust_region,
    two_humps,
)
from rlkd_lab.lab.plots import ALL, MAIN, STYLES, plot_runs, png, save_figure
from rlkd_lab.lab.progress import progress

__all__ = [
    "ALL",
    "MAIN",
    "PICTURES",
    "STYLES",
    "annealing_stack",
    "check",
    "clip_surrogate",
    "estimator_arrows",
    "exercises",
    "exposure_bias",
    "gradient_angle",
    "group_advantage",
    "kl_concentration",
    "kl_of_samples",
    "mask_grid",
    "measure_exposure",
    "play",
    "plot_runs",
    "png",
    "progress",
    "save_figure",
    "trrd_tokens",
    "trust_region",
    "two_humps",
    "weak_verifier",
]
