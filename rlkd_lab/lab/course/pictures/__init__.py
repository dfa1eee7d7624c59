"""Pictures of the course: functions that return a figure, and :func:`play`, which asks first.

Values come from the functions that the trainer calls; gradients come from autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from rlkd_lab.lab.course.pictures.annealing import annealing_picture, annealing_stack
from rlkd_lab.lab.course.pictures.concentration import kl_concentration, kl_concentration_picture
from rlkd_lab.lab.course.pictures.estimators import ARROWS, estimator_arrows
from rlkd_lab.lab.course.pictures.exposure import (
    after_one_wrong_step,
    exposure_bias,
    exposure_picture,
    measure_exposure,
)
from rlkd_lab.lab.course.pictures.fits import HUMPED, two_humps
from rlkd_lab.lab.course.pictures.gradient_angles import gradient_angle, gradient_angle_picture
from rlkd_lab.lab.course.pictures.groups import MASKS, SPREAD, group_advantage, mask_grid
from rlkd_lab.lab.course.pictures.prediction import Picture, Prediction
from rlkd_lab.lab.course.pictures.ratios import CLIP, clip_surrogate
from rlkd_lab.lab.course.pictures.trust_regions import trust_region, trust_region_picture
from rlkd_lab.objectives.settings import nearest

PICTURES: Mapping[str, Callable[..., Picture]] = MappingProxyType(
    {
        "clip_surrogate": lambda: CLIP,
        "trust_region": trust_region_picture,
        "estimator_arrows": lambda: ARROWS,
        "two_humps": lambda: HUMPED,
        "kl_concentration": kl_concentration_picture,
        "exposure_bias": exposure_picture,
        "mask_grid": lambda: MASKS,
        "annealing_stack": annealing_picture,
        "gradient_angle": gradient_angle_picture,
        "group_advantage": lambda: SPREAD,
    }
)
DATA: Mapping[str, str] = MappingProxyType(
    {
        "kl_concentration": "recorded samples, run.samples(), or an array of KLs",
        "exposure_bias": "what measure_exposure(teacher) returned",
        "annealing_stack": "a run, or several",
        "gradient_angle": "a run trained with interference_every",
    }
)
"""The data that some pictures need, by picture."""


def play(name: str, *data: Any) -> Prediction:
    """Return a picture that asks for a prediction first, for the last line of a cell.

    play("clip_surrogate")
    play("trust_region", run.samples())

    Args:
        name: a key of :data:`PICTURES`; the drawing function has the same name.
        data: what the picture is drawn from, see :data:`DATA`.
            ``trust_region`` takes samples but does not need them.

    Raises:
        ValueError: an unknown name, missing data, or data that lacks what the picture shows.
    """
    make = PICTURES[nearest(str(name), PICTURES, "picture")]
    if name in DATA and not data:
        raise ValueError(f"{name} is drawn from data: give {DATA[name]}")
    return Prediction(make(*data))


__all__ = [
    "after_one_wrong_step",
    "annealing_stack",
    "clip_surrogate",
    "estimator_arrows",
    "exposure_bias",
    "gradient_angle",
    "group_advantage",
    "kl_concentration",
    "mask_grid",
    "measure_exposure",
    "play",
    "trust_region",
    "two_humps",
]
