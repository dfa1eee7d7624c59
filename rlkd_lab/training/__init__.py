"""Training: config, knobs, the loop, checkpoints, replay."""

from rlkd_lab.training.config import LOOP_KNOBS, PRESETS, Move, RunConfig, make_config
from rlkd_lab.training.drive import config_of, create, load_or_train, resume, run, schedule_from
from rlkd_lab.training.environment import describe_environment
from rlkd_lab.training.evaluation import Evaluation, evaluate
from rlkd_lab.training.knobs import Knobs
from rlkd_lab.training.loop import Loop
from rlkd_lab.training.replay import Replay, replay

__all__ = [
    "LOOP_KNOBS",
    "PRESETS",
    "Evaluation",
    "Knobs",
    "Loop",
    "Move",
    "Replay",
    "RunConfig",
    "config_of",
    "create",
    "describe_environment",
    "evaluate",
    "load_or_train",
    "make_config",
    "replay",
    "resume",
    "run",
    "schedule_from",
]
