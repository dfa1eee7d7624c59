"""Runs of a second or two on the short pair, shared by the tests of a session."""

import json

import pytest

from rlkd_lab.objectives import METHODS
from rlkd_lab.objectives.rules import from_both
from rlkd_lab.training import make_config, run
from tests.short import EMBEDDED, SHORT

TINY = {
    "steps": 2,
    "prompts_per_step": 2,
    "group_size": 2,
    "max_new_tokens": 24,
    "difficulty": (2, 2),
    "traces": 8,
    "eval_every": 0,
    "eval_prompts": 8,
    "samples_every": 0,
    "checkpoint_every": 0,
    "resample_rounds": 2,
    "kl_every": 1,
}


@pytest.fixture(scope="session")
def tiny():
    """``tiny(method, settings, **fields)``: a config for a run of two steps."""

    def make(method="kdrl", settings=None, **fields):
        # the teacher's traces are cut by the length limit and trained on all the same, but for rft,
        # whose teacher is brief and often wrong
        own = (
            {**EMBEDDED, "teacher": "student", "traces": 24}
            if method == "rft"
            else {**SHORT, "options": {"keep_traces": "all", **fields.pop("options", {})}}
        )
        size = {"group_size": 3} if METHODS[method].samples is from_both else {}
        return make_config(method, settings=settings, **{**TINY, **size, **own, **fields})

    return make


@pytest.fixture(scope="session")
def trained(tiny, tmp_path_factory):
    """``trained(method, settings, **fields)``: the folder of such a run, trained once a session.

    Not for writing into.
    """
    made = {}

    def train(method="kdrl", settings=None, **fields):
        key = json.dumps([method, settings, fields], sort_keys=True)
        if key not in made:
            made[key] = run(
                tiny(method, settings, **fields), tmp_path_factory.mktemp("runs") / method
            )
        return made[key]

    return train
