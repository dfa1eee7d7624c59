"""What a notebook shows: runs driven and watched, curves, tokens, pictures that ask for a
prediction first, exercises, figures with their sidecars.
"""

from rlkd_lab.lab.ablations import (
    at_budget,
    plot_arms,
    plot_budget,
    plot_differences,
    plot_frontier,
    plot_heat,
    plot_knob,
)
from rlkd_lab.lab.curves import watch_curves
from rlkd_lab.lab.driving import Handle, RunFailed, Status, launch, open_run, start
from rlkd_lab.lab.estimate import gpu_hours, memory_table, release
from rlkd_lab.lab.exercises import check, exercises, weak_verifier
from rlkd_lab.lab.inspector import inspect_tokens
from rlkd_lab.lab.method_checks import check_method
from rlkd_lab.lab.mistakes import add_mistakes
from rlkd_lab.lab.panel import Panel, panel
from rlkd_lab.lab.pictures import (
    PICTURES,
    after_one_wrong_step,
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
from rlkd_lab.lab.plots import (
    ALL,
    MAIN,
    STYLES,
    plot_groups,
    plot_runs,
    png,
    save_figure,
    seed_table,
)
from rlkd_lab.lab.progress import progress
from rlkd_lab.lab.stage import Stage
from rlkd_lab.lab.tokens import token_arrays

__all__ = [
    "ALL",
    "MAIN",
    "PICTURES",
    "STYLES",
    "Handle",
    "Panel",
    "RunFailed",
    "Stage",
    "Status",
    "add_mistakes",
    "after_one_wrong_step",
    "annealing_stack",
    "at_budget",
    "check",
    "check_method",
    "clip_surrogate",
    "estimator_arrows",
    "exercises",
    "exposure_bias",
    "gpu_hours",
    "gradient_angle",
    "group_advantage",
    "inspect_tokens",
    "kl_concentration",
    "kl_of_samples",
    "launch",
    "mask_grid",
    "measure_exposure",
    "memory_table",
    "open_run",
    "panel",
    "play",
    "plot_arms",
    "plot_budget",
    "plot_differences",
    "plot_frontier",
    "plot_groups",
    "plot_heat",
    "plot_knob",
    "plot_runs",
    "png",
    "progress",
    "release",
    "save_figure",
    "seed_table",
    "start",
    "token_arrays",
    "trrd_tokens",
    "trust_region",
    "two_humps",
    "watch_curves",
    "weak_verifier",
]
