"""Training: configs, the trainer's step, knobs, sessions, checkpoints, replay."""

from rlkd_lab.training.config import LOOP_KNOBS, PRESETS, Move, RunConfig, make_config
from rlkd_lab.training.environment import describe_environment
from rlkd_lab.training.evaluation import Evaluation, evaluate
from rlkd_lab.training.folders import config_of, create, schedule_from
from rlkd_lab.training.knobs import Knobs
from rlkd_lab.training.replay import Replay, replay
from rlkd_lab.training.session import Session, load_or_train, resume, run
from rlkd_lab.training.trainer import Trainer

__all__ = [
    "LOOP_KNOBS",
    "PRESETS",
    "Evaluation",
    "Knobs",
    "Move",
    "Replay",
    "RunConfig",
    "Session",
    "Trainer",
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
