"""What a fork takes over from its run's decisions."""

from rlkd_lab.training import make_config
from rlkd_lab.training.decisions import Decisions


def test_a_fork_takes_over_the_smaller_sizes_and_the_calls_that_were_given_up():
    config = make_config("grpo", settings={"micro_batch": "16"})
    decisions = Decisions(config)
    decisions.halve(3, "update 1")
    decisions.sample_fewer(3, 8)
    decisions.given_up["a call"] = (3, "too slow")
    fork = decisions.fork(config)
    assert (fork.micro_batch, fork.sample_at_once) == (8, 8)
    assert fork.given_up == {"a call": (3, "too slow")}
    fork.given_up["another"] = (4, "too slow")  # the run does not learn what its fork gave up
    assert decisions.given_up == {"a call": (3, "too slow")}
    assert fork.new_events() == []
