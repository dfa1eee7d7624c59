"""One run with two checkpoints, shared by the tests of a session."""

import pytest

from rlkd_lab.training import make_config, run


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A run of two steps with a checkpoint after each. Not for writing into."""
    config = make_config(
        "grpo",
        steps=2,
        prompts_per_step=2,
        group_size=2,
        max_new_tokens=24,
        difficulty=(2, 2),
        eval_every=0,
        samples_every=0,
        checkpoint_every=1,
        knobs={"learning_rate": 0.01},
    )
    return run(config, tmp_path_factory.mktemp("runs") / "grpo")
