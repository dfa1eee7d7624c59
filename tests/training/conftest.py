"""Runs of a second or two on the embedded pair, shared by the tests of a session."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from rlkd_lab.models.locating import ZOO
from rlkd_lab.training import make_config, run

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
}


@pytest.fixture(scope="session")
def short_pair(tmp_path_factory):
    """The embedded pair cut to its first layer: a step takes a third of the time."""
    folder = tmp_path_factory.mktemp("short")
    return {name: cut(name, folder / name) for name in ("student", "teacher")}


def cut(name, folder):
    """Copy an embedded model with its first layer alone."""
    shutil.copytree(ZOO / name, folder)
    weights = load_file(folder / "model.safetensors")
    first = {k: v for k, v in weights.items() if "layers." not in k or "layers.0." in k}
    save_file(first, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"num_hidden_layers": 1, "layer_types": config["layer_types"][:1]}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture(scope="session")
def tiny(short_pair):
    """``tiny(method, settings, **fields)``: a config for a run of two steps."""

    def make(method="kdrl", settings=None, **fields):
        # the teacher's traces are cut by the length limit and trained on all the same, but for rft,
        # whose teacher is brief and often wrong
        own = (
            {"student": "student", "teacher": "student", "traces": 24}
            if method == "rft"
            else {**short_pair, "options": {"keep_traces": "all", **fields.pop("options", {})}}
        )
        return make_config(method, settings=settings, **{**TINY, **own, **fields})

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
