"""What the kernel of the tests runs before a notebook: short steps, and models loaded once."""

from typing import Any

from rlkd_lab import training
from rlkd_lab.training import RunConfig, models, selfcheck, setup
from tests.pool import Pool

SMALL = {"prompts_per_step": 2, "group_size": 4, "max_new_tokens": 32}
make_config = training.make_config


def smaller(*given: Any, **fields: Any) -> RunConfig:
    """Return a config with few and short completions, where the notebook asks for no others."""
    return make_config(*given, **{**SMALL, **fields})


def shorten() -> None:
    """Have it so in this process."""
    pool = Pool(models.load_models, selfcheck.examine)
    setup.load_models, selfcheck.examine = pool.load_models, pool.examined
    training.make_config = smaller
