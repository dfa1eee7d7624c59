"""Out of memory: the step is begun again with half of the micro-batch, the result is the same,
and the record says so.
"""

from contextlib import contextmanager

import pytest
import torch

from rlkd_lab.rollouts import fast
from rlkd_lab.runs import RunFolder, first_difference
from rlkd_lab.runs.compare import TIMING
from rlkd_lab.training import hooks, replay, resume, run, token_stats
from rlkd_lab.training import models as models_module
from rlkd_lab.training.context import Context
from rlkd_lab.training.evaluation import evaluate
from rlkd_lab.training.folders import create
from rlkd_lab.training.models import Models
from rlkd_lab.training.trainer import Trainer

pytestmark = pytest.mark.loads

FIELDS = {
    "steps": 3,
    "prompts_per_step": 4,
    "group_size": 4,
    "micro_batch": 16,
    "max_new_tokens": 12,
    "checkpoint_every": 1,
    "updates_per_rollout": 2,
}


@pytest.fixture
def small(monkeypatch):
    """``small(rows, from_step)``: a memory for so many rows with their gradients; returns what
    it refused.
    """

    def shrink(rows, from_step=1):
        whole, refused = token_stats.hidden_states, []

        def hidden_states(lm, sequences):
            step = small.context.progress.step + 1 if small.context is not None else 1
            if (
                torch.is_grad_enabled()
                and len(sequences.completion_mask) > rows
                and step >= from_step
            ):
                refused.append(len(sequences.completion_mask))
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return whole(lm, sequences)

        monkeypatch.setattr(token_stats, "hidden_states", hidden_states)
        return refused

    class small:
        context = None

    taken = Trainer.step

    def step(self, context, *rest):
        small.context = context
        return taken(self, context, *rest)

    monkeypatch.setattr(Trainer, "step", step)
    return shrink


def events(folder):
    return [
        {key: event[key] for key in ("step", "pass", "size")}
        for event in folder.rows("events.jsonl")
        if event["event"] == "micro_batch"
    ]


def rows(folder):
    return folder.rows("metrics.jsonl")


@pytest.mark.parametrize(
    "fields",
    [{}, {"minibatches": 2}, {"samples_every": 1, "interference_every": 2}],
    ids=["plain", "minibatches", "looked at first"],
)
def test_a_step_that_does_not_fit_is_taken_in_halves_with_the_same_result(
    tiny, tmp_path, small, fields
):
    whole = run(tiny("kdrl", **FIELDS, **fields), tmp_path / "whole")
    refused = small(3, from_step=2)
    halved = run(tiny("kdrl", **FIELDS, **fields), tmp_path / "halved")
    assert refused
    assert max(refused) > 3
    assert first_difference(rows(halved), rows(whole), 1e-5)[0] is None
    found = events(halved)
    assert {event["step"] for event in found} == {2}
    assert found[-1]["size"] in (1, 2, 4)
    assert len({event["size"] for event in found}) == len(found)
    assert events(whole) == []


@pytest.mark.parametrize("looked", [{}, {"samples_every": 1}], ids=["plain", "looked at first"])
def test_gradients_that_were_half_made_when_memory_ran_out_are_not_counted_twice(
    tiny, tmp_path, monkeypatch, looked
):
    # the second micro-batch of every update fails once: the first one's gradients are there by then
    fields = {**FIELDS, "micro_batch": 4, **looked}
    whole = run(tiny("kdrl", **fields), tmp_path / "whole")
    forward, made, failed = token_stats.hidden_states, [], []

    def hidden_states(lm, sequences):
        if torch.is_grad_enabled():
            if made and not failed:
                failed.append(1)
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            made.append(1)
        return forward(lm, sequences)

    monkeypatch.setattr(token_stats, "hidden_states", hidden_states)
    halved = run(tiny("kdrl", **fields), tmp_path / "halved")
    assert failed
    assert first_difference(rows(halved), rows(whole), 1e-5)[0] is None
    assert len(events(halved)) == 1


def test_sampling_that_does_not_fit_goes_on_with_fewer_at_once_and_the_same_completions(
    tiny, tmp_path, monkeypatch
):
    whole = run(tiny("kdrl", **FIELDS), tmp_path / "whole")
    taken, steps = fast._sample, []

    def with_little_memory(request):
        if request.rows == 2:  # the self-check's
            return taken(request)
        steps.append(request.rows)
        if request.rows > 4 and len(steps) > 1:  # from the second rollout on
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return taken(request)

    monkeypatch.setattr(fast, "_sample", with_little_memory)
    fewer = run(tiny("kdrl", **FIELDS), tmp_path / "fewer")
    assert steps == [16, 16, 8, *[4] * 4, *[4] * 4]
    assert first_difference(rows(fewer), rows(whole), 1e-5)[0] is None
    (event,) = [event for event in fewer.rows("events.jsonl") if event["event"] == "sample_at_once"]
    assert (event["step"], event["size"]) == (2, 4)
    monkeypatch.undo()
    again = replay(fewer.path, tmp_path / "again")
    assert again.difference is None
    assert [
        event["size"]
        for event in again.folder.rows("events.jsonl")
        if event["event"] == "sample_at_once"
    ] == [4]


def test_an_evaluation_remembers_how_few_completions_fit(tiny, tmp_path, monkeypatch):
    taken, tried = fast._sample, []

    def with_little_memory(request):
        tried.append(request.rows)
        if request.rows > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return taken(request)

    def evaluated(context):
        tried.clear()
        hooks.evaluation_row(trainer.setup, context, lambda: False)
        return tried.count(4), [rows for rows in tried if rows != 4]

    config = tiny("kdrl", eval_prompts=16)
    trainer = Trainer(config)
    context = Context(config, create(config, tmp_path / "run"))
    monkeypatch.setattr(fast, "_sample", with_little_memory)
    # in distribution and out of it, four at a time
    assert evaluated(context) == (8, [16, 8])
    assert evaluated(context) == (8, [])
    assert context.decisions.sample_at_once == 0
    tried.clear()
    evaluate(trainer.policy, trainer.setup.models.task, 16, max_new_tokens=4, batch=8)
    assert tried == [8, 4, 4, 4, 4]


def test_a_replay_and_a_resumed_run_sum_in_the_same_order(tiny, tmp_path, small, monkeypatch):
    small(3, from_step=2)
    config = tiny("kdrl", **FIELDS)
    first = run(config, tmp_path / "first")
    monkeypatch.undo()  # a machine with more memory
    again = replay(first.path, tmp_path / "again")
    assert again.difference is None
    assert events(again.folder) == events(first) != []

    def stop(loop, row):
        loop.stopping = row["step"] == 2

    cut = run(config, tmp_path / "cut", on_step=stop, script=first.rows("events.jsonl"))
    assert resume(cut.path).status()["state"] == "done"
    assert rows_without_times(cut) == rows_without_times(first)
    assert events(cut) == events(first)


def test_a_run_cut_after_its_checkpoint_follows_its_own_events(tiny, tmp_path, small, monkeypatch):
    small(3, from_step=2)
    first = run(tiny("kdrl", **{**FIELDS, "checkpoint_every": 0}), tmp_path / "first")
    expected = rows_without_times(first)
    monkeypatch.undo()
    # killed before its first checkpoint: everything is computed again
    for checkpoint in first.checkpoints():
        checkpoint.rename(tmp_path / checkpoint.name)
    first.set_status("idle", 3)
    resume(first.path)
    assert rows_without_times(first) == expected
    assert len(events(first)) == 1


def test_a_twin_that_does_not_fit_halves_its_own_micro_batch_and_not_the_runs(
    tiny, tmp_path, small, monkeypatch
):
    whole = token_stats.hidden_states
    folder = create(tiny("kdrl", **FIELDS), tmp_path / "run")
    folder.ask("twin", kind="untouched", chances=1)

    def touch(loop, row):
        if row["step"] == 1:
            loop.folder.ask("knob", knob="kd_coef", value=0.5)

    def in_twins_alone(lm, sequences):
        if (
            torch.is_grad_enabled()
            and len(sequences.completion_mask) > 3
            and current[-1].folder.path.parent.name == "twins"
        ):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return whole(lm, sequences)

    current, taken = [], Trainer.step

    def step(self, context, *rest):
        current.append(context)
        return taken(self, context, *rest)

    monkeypatch.setattr(token_stats, "hidden_states", in_twins_alone)
    monkeypatch.setattr(Trainer, "step", step)
    folder = resume(folder.path, on_step=touch)
    (twin,) = sorted((folder.path / "twins").iterdir())
    assert events(RunFolder.open(twin)) != []
    assert events(folder) == []
    monkeypatch.undo()
    assert replay(folder.path, tmp_path / "again").difference is None


def rows_without_times(folder):
    return [
        {name: value for name, value in row.items() if not name.startswith(TIMING)}
        for row in rows(RunFolder.open(folder.path))
    ]


def test_where_not_even_one_completion_fits_the_run_fails_in_words(tiny, tmp_path, small):
    small(0)
    with pytest.raises(
        torch.OutOfMemoryError,
        match="not even one completion at a time fits into memory: CUDA out of memory",
    ):
        run(tiny("kdrl", **FIELDS), tmp_path / "run")
    assert RunFolder.open(tmp_path / "run").status()["state"] == "failed"


@pytest.mark.parametrize("method", ["kdrl", "sft"])
def test_a_teacher_in_host_memory_is_asked_only_while_it_is_on_the_device(
    tiny, tmp_path, monkeypatch, method
):
    here, asked = [], []
    enter = Models.teacher_here

    @contextmanager
    def teacher_here(self, needed=True):
        here.append(needed)
        with enter(self, needed):
            yield
        here.pop()

    monkeypatch.setattr(Models, "teacher_here", teacher_here)
    fields = {"steps": 2, "samples_every": 1, "dense_copy": False}
    whole = run(tiny(method, **fields), tmp_path / "device")

    made = models_module.load_teacher

    def load_teacher(*given, **settings):
        teacher = made(*given, **settings)
        teacher.backbone.register_forward_pre_hook(lambda *_: asked.append(bool(here) and here[-1]))
        return teacher

    monkeypatch.setattr(models_module, "load_teacher", load_teacher)
    host = run(tiny(method, teacher_home="host", **fields), tmp_path / "host")
    assert asked
    assert all(asked)
    assert first_difference(rows(host), rows(whole), 1e-5)[0] is None
