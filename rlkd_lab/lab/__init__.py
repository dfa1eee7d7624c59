"""The notebooks' part of the package: runs to watch and steer, and a course.

``live`` shows a run and steers it: panel, curves, token inspector.
``course`` holds pictures that ask first, exercises, and checks of a method.
Figures of runs and studies are in :mod:`rlkd_lab.plots`.
"""

from rlkd_lab.lab.course.common_bugs import add_common_bugs
from rlkd_lab.lab.course.estimate import gpu_hours, memory_table, release
from rlkd_lab.lab.course.exercises import check, exercises
from rlkd_lab.lab.course.explorables import explorable
from rlkd_lab.lab.course.method_checks import check_method
from rlkd_lab.lab.course.notebook import Notebook, show_source
from rlkd_lab.lab.course.pictures import (
    after_one_wrong_step,
    annealing_stack,
    clip_surrogate,
    estimator_arrows,
    exposure_bias,
    gradient_angle,
    group_advantage,
    kl_concentration,
    mask_grid,
    measure_exposure,
    play,
    trust_region,
    two_humps,
)
from rlkd_lab.lab.course.right_answers import weak_verifier
from rlkd_lab.lab.live.browser import runs
from rlkd_lab.lab.live.compare_view import compare
from rlkd_lab.lab.live.curve_view import watch_curves
from rlkd_lab.lab.live.handle import RunFailed, launch, open_run, start
from rlkd_lab.lab.live.inspector import inspect_tokens
from rlkd_lab.lab.live.panel import panel
from rlkd_lab.lab.live.tokens import token_arrays

__all__ = [
    "Notebook",
    "RunFailed",
    "add_common_bugs",
    "after_one_wrong_step",
    "annealing_stack",
    "check",
    "check_method",
    "clip_surrogate",
    "compare",
    "estimator_arrows",
    "exercises",
    "explorable",
    "exposure_bias",
    "gpu_hours",
    "gradient_angle",
    "group_advantage",
    "inspect_tokens",
    "kl_concentration",
    "launch",
    "mask_grid",
    "measure_exposure",
    "memory_table",
    "open_run",
    "panel",
    "play",
    "release",
    "runs",
    "show_source",
    "start",
    "token_arrays",
    "trust_region",
    "two_humps",
    "watch_curves",
    "weak_verifier",
]
