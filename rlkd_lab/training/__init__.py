"""Training: configs, the trainer's step, knobs, sessions, checkpoints, replay."""

from rlkd_lab.training.config import RunConfig
from rlkd_lab.training.evaluation import evaluate
from rlkd_lab.training.folders import config_of, schedule_from
from rlkd_lab.training.make_config import make_config
from rlkd_lab.training.replay import replay
from rlkd_lab.training.session import load_or_train, resume, run

__all__ = [
    "RunConfig",
    "config_of",
    "evaluate",
    "load_or_train",
    "make_config",
    "replay",
    "resume",
    "run",
    "schedule_from",
]
