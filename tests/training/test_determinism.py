"""The same seed gives the same rows and weights to the last bit, whoever watches and whatever
else this process does meanwhile.
"""

import random
import threading

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rlkd_lab.lab import inspect_tokens, open_run
from rlkd_lab.lab.live.history import History
from rlkd_lab.models import load_teacher
from rlkd_lab.rollouts import Sampling, sample
from rlkd_lab.runs import RunFolder, first_difference
from rlkd_lab.runs.tail import Tail
from rlkd_lab.training import evaluate, run

FIELDS = {"steps": 3, "samples_every": 1, "eval_every": 2, "checkpoint_every": 1}
MOVED = {"learning_rate": "0.01"}
"""What is disturbed in one step shows in the next."""


def tails(path):
    """As a panel reads: rows and events as they come."""
    state = [Tail(path / "metrics.jsonl"), Tail(path / "events.jsonl"), History(path)]
    return lambda: [state[0].read(), state[1].read(), state[2].read()]


def frames(path):
    """As a notebook's cell does."""
    return lambda: [
        RunFolder.open(path).metrics(),
        RunFolder.open(path).samples(),
        RunFolder.open(path).status(),
    ]


def handle(path):
    """As the inspector and a second panel do."""
    return lambda: [open_run(path).status(), inspect_tokens(RunFolder.open(path)).html()]


def global_streams(path):
    """Another cell: it draws from every global stream, seeds them, and changes the settings of
    its thread.
    """

    def disturb():
        torch.set_grad_enabled(False)
        torch.manual_seed(1)
        torch.rand(100)
        np.random.seed(1)  # noqa: NPY002
        np.random.rand(10)  # noqa: NPY002
        random.seed(1)
        random.random()
        with torch.autocast("cpu", torch.bfloat16):
            torch.ones(4, 4) @ torch.ones(4, 4)

    return disturb


@pytest.fixture
def beside():
    """``beside(path, *what)``: threads that do this again and again until the test is over;
    each must have done it while the run went on.
    """
    over, threads, done = threading.Event(), [], {}

    def start(path, *what):
        for number, kind in enumerate(what):
            name = f"{kind.__name__} {number}"
            done[name] = 0

            def work(kind=kind, name=name):
                act = None
                while not over.is_set():
                    try:
                        act = act or kind(path)
                        act()
                        done[name] += 1
                    except (OSError, ValueError):  # nothing there yet
                        act = None
                    over.wait(0.01)

            threads.append(threading.Thread(target=work))
            threads[-1].start()
        return done

    yield start
    over.set()
    for thread in threads:
        thread.join()


def same(ours, theirs):
    assert first_difference(ours.rows(), theirs.rows()) == (None, 0.0)
    for mine, other in zip(ours.checkpoints(), theirs.checkpoints(), strict=True):
        for name in ("adapter_model.safetensors", "optimizer.safetensors"):
            a, b = load_file(mine / name), load_file(other / name)
            assert a.keys() == b.keys()
            assert all(torch.equal(a[key], b[key]) for key in a), name


@pytest.mark.parametrize(
    "what",
    [(), (tails,), (tails, frames, handle), (global_streams, tails)],
    ids=["alone", "one", "three", "another cell"],
)
def test_whoever_watches_and_whatever_another_cell_draws(trained, tiny, tmp_path, beside, what):
    expected = trained("kdrl", MOVED, **FIELDS)
    streams = torch.random.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        done = beside(tmp_path / "run", *what)
        found = run(tiny("kdrl", MOVED, **FIELDS), tmp_path / "run")
        assert all(done.values()), done
    finally:
        torch.random.set_rng_state(streams[0])
        np.random.set_state(streams[1])  # noqa: NPY002
        random.setstate(streams[2])
    same(found, expected)


def test_whatever_is_asked_of_the_models_between_two_steps(trained, tiny, tmp_path):
    def between(loop, row):
        models = loop.trainer.setup.models
        evaluate(
            models.policy, models.task, 4, difficulty=(2, 2), max_new_tokens=8, dense=models.copy
        )
        other = load_teacher("student-weak", "nf4")
        sample(
            other,
            ["1+1?"],
            2,
            Sampling(max_new_tokens=4),
            torch.Generator().manual_seed(row["step"]),
            engine="hf",
        )
        inspect_tokens(loop.folder).html()
        torch.manual_seed(row["step"])

    before = torch.random.get_rng_state()
    try:
        found = run(tiny("kdrl", MOVED, **FIELDS), tmp_path / "run", on_step=between)
    finally:
        torch.random.set_rng_state(before)
    same(found, trained("kdrl", MOVED, **FIELDS))
