"""The untouched twin: the same run without the change."""

import shutil

import pytest
from safetensors.torch import load_file

from rlkd_lab.runs import RunFolder, first_difference
from rlkd_lab.training import resume, run, trainer
from rlkd_lab.training.folders import create
from rlkd_lab.training.trainer import Trainer


def moved(folder, row, at=2, value=5.0):
    if row["step"] == at:
        folder.ask("knob", knob="kd_coef", value=value)


@pytest.fixture
def forked(tiny, tmp_path):
    """``forked(ask, kind)``: a run of five steps with twins."""

    def make(ask, name="run", kind="untouched", **fields):
        folder = create(tiny("kdrl", **{"steps": 5, "group_size": 4, **fields}), tmp_path / name)
        folder.ask("twin", kind=kind, chances=2)
        return resume(folder.path, on_step=lambda loop, row: ask(loop.folder, row))

    return make


def twins(folder):
    return {path.name: RunFolder(path) for path in sorted((folder.path / "twins").glob("*"))}


def test_the_twin_is_the_run_as_it_would_have_been(forked, tiny, tmp_path):
    folder = forked(moved)
    untouched = run(tiny("kdrl", steps=5, group_size=4), tmp_path / "untouched")
    (twin,) = twins(folder).values()
    assert first_difference(twin.rows(), untouched.rows()) == (None, 0.0)
    assert first_difference(folder.rows()[:2], untouched.rows()[:2]) == (None, 0.0)
    assert first_difference(folder.rows()[2:], untouched.rows()[2:])[0] is not None
    assert not twin.touched
    assert twin.status()["state"] == "done"


def test_training_a_twin_changes_nothing_in_the_run(forked):
    alone = forked(moved, "alone", kind="off")
    assert not (alone.path / "twins").exists()
    assert first_difference(forked(moved, "with").rows(), alone.rows()) == (None, 0.0)


def test_no_move_and_a_move_that_changes_nothing_make_no_twin(forked):
    assert twins(forked(lambda folder, row: None, "none")) == {}
    assert twins(forked(lambda folder, row: moved(folder, row, value=0.1), "same")) == {}


def test_a_second_move_does_not_fork_again(forked):
    folder = forked(
        lambda folder, row: moved(folder, row, at=row["step"], value=float(row["step"]))
    )
    assert list(twins(folder)) == ["step_000001"]


def test_noise_twins_have_the_same_prompts_and_other_completions(forked):
    folder = forked(moved, kind="noise", samples_every=1)
    found = twins(folder)
    assert list(found) == ["step_000002", "step_000002-noise1", "step_000002-noise2"]
    untouched, first, second = (twin.samples(3) for twin in found.values())
    assert untouched["prompt"].tolist() == first["prompt"].tolist() == second["prompt"].tolist()
    texts = {tuple(table["completion"]) for table in (untouched, first, second)}
    assert len(texts) == 3
    for twin in found.values():
        assert first_difference(twin.rows()[:2], folder.rows()[:2]) == (None, 0.0)


def test_switched_off_it_ends_and_the_next_move_forks_anew(forked):
    def ask(folder, row):
        if row["step"] == 1:
            folder.ask("knob", knob="kd_coef", value=5.0)
        if row["step"] == 2:
            folder.ask("twin", kind="off")
        if row["step"] == 3:
            folder.ask("twin", kind="untouched")
            folder.ask("knob", knob="kd_coef", value=1.0)

    found = twins(forked(ask))
    assert [(name, len(twin.rows())) for name, twin in found.items()] == [
        ("step_000001", 2),
        ("step_000003", 5),
    ]
    assert [row["coef/kd_coef"] for row in found["step_000003"].rows()] == [0.1, 5.0, 5.0, 5.0, 5.0]


@pytest.mark.parametrize(
    ("stop_at", "checkpoint_every"),
    [(2, 0), (3, 2), (4, 1)],
    ids=["at the fork, no checkpoints", "between checkpoints", "at a checkpoint"],
)
def test_a_stopped_run_goes_on_with_its_twin(forked, stop_at, checkpoint_every):
    def ask(folder, row):
        moved(folder, row)
        if row["step"] == stop_at:
            folder.ask("stop")

    whole = forked(moved, "whole")
    cut = forked(ask, "cut", checkpoint_every=checkpoint_every)
    assert len(cut.rows()) == stop_at
    resume(cut.path)
    assert first_difference(cut.rows(), whole.rows()) == (None, 0.0)
    (ours,), (theirs,) = twins(cut).values(), twins(whole).values()
    assert first_difference(ours.rows(), theirs.rows()) == (None, 0.0)


def test_a_killed_run_goes_back_behind_the_fork_and_forks_again(forked):
    class Killed(Exception):
        pass

    def ask(folder, row):
        moved(folder, row, at=3)
        if row["step"] == 4:
            raise Killed

    whole = forked(lambda folder, row: moved(folder, row, at=3), "whole")
    with pytest.raises(Killed):
        forked(ask, "cut", checkpoint_every=2)
    folder = RunFolder(whole.path.parent / "cut")
    assert folder.status()["state"] == "failed"
    resume(folder.path)
    (ours,), (theirs,) = twins(folder).values(), twins(whole).values()
    assert first_difference(folder.rows(), whole.rows()) == (None, 0.0)
    assert first_difference(ours.rows(), theirs.rows()) == (None, 0.0)


def test_a_twin_that_fails_ends_and_the_run_goes_on(forked, monkeypatch):
    """What the move has spared the run may happen to its twin."""
    take_step = Trainer.step

    def fail(self, context, *rest):
        row = take_step(self, context, *rest)
        if context.folder.path.parent.name == "twins" and context.progress.step == 4:
            raise FloatingPointError("the loss of step 4 is nan")
        return row

    monkeypatch.setattr(Trainer, "step", fail)
    alone = forked(moved, "alone", kind="off")
    folder = forked(moved)
    assert first_difference(folder.rows(), alone.rows()) == (None, 0.0)
    assert folder.status()["state"] == "done"
    (twin,) = twins(folder).values()
    assert (twin.status()["state"], twin.status()["step"], len(twin.rows())) == ("failed", 3, 3)
    (warning,) = [
        event["text"]
        for event in folder.rows("events.jsonl")
        if event["event"] == "warning" and "fork" in event["text"]
    ]
    assert (
        warning
        == "the untouched fork failed after its step 3 and has ended (FloatingPointError: the"
        " loss of step 4 is nan); the run goes on"
    )


def test_switched_off_while_nothing_runs_it_is_not_taken_up_again(forked):
    def ask(folder, row):
        moved(folder, row)
        if row["step"] == 4:
            folder.ask("stop")

    folder = forked(ask)
    folder.ask("twin", kind="off")
    resume(folder.path)
    (twin,) = twins(folder).values()
    assert (twin.status()["why"], len(twin.rows())) == ("switched off", 4)


# --- what happens to the folder of a twin ---------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(tiny, tmp_path_factory):
    """Four of six steps with a noise twin and checkpoints; and the run that was never stopped,
    with its twins.
    """
    folders = []
    for name, stop_at in (("cut", 4), ("whole", 0)):
        folder = create(
            tiny("kdrl", steps=6, group_size=4, checkpoint_every=1),
            tmp_path_factory.mktemp("stopped") / name,
        )
        folder.ask("twin", kind="noise")

        def ask(loop, row, folder=folder, stop_at=stop_at):
            moved(folder, row, at=1)
            if row["step"] == stop_at:
                folder.ask("stop")

        folders.append(resume(folder.path, on_step=ask))
    return folders


def spoil(name, change):
    return lambda twin: (twin / name).write_bytes(change((twin / name).read_bytes()))


def every_checkpoint(twin):
    for path in twin.glob("checkpoints/step_*/adapter_model.safetensors"):
        path.write_bytes(b"")


def without_line(number):
    return lambda data: b"".join(
        line for at, line in enumerate(data.splitlines(keepends=True), 1) if at != number
    )


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (spoil("checkpoints/step_000003/adapter_model.safetensors", lambda data: data[:100]), None),
        (spoil("status.json", lambda data: data[:10]), None),
        (spoil("metrics.jsonl", lambda data: b"".join(data.splitlines(keepends=True)[:2])), None),
        (every_checkpoint, "no whole checkpoint that its"),
        (lambda twin: shutil.rmtree(twin / "checkpoints"), "no whole checkpoint"),
        (spoil("metrics.jsonl", without_line(1)), "line 1, step 2 after step 0"),
        (spoil("metrics.jsonl", without_line(2)), "line 2, step 3 after step 1"),
        (spoil("config.json", lambda data: data[:50]), "config.json is torn"),
        (
            spoil("fork.json", lambda data: data[:5]),
            "fork.json, which says where it was forked, is missing or damaged",
        ),
    ],
)
def test_a_damaged_twin_does_not_keep_the_run_from_going_on(stopped, tmp_path, damage, says):
    whole = stopped[1]
    shutil.copytree(stopped[0].path, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    damage(tmp_path / "run" / "twins" / "step_000001")
    resume(folder.path)
    assert folder.status()["state"] == "done"
    assert first_difference(folder.rows(), whole.rows()) == (None, 0.0)
    for name, twin in twins(folder).items():
        if says is None or "noise" in name:
            assert twin.status()["state"] == "done"
            assert first_difference(twin.rows(), twins(whole)[name].rows()) == (None, 0.0)
    warnings = [
        event["text"]
        for event in folder.rows("events.jsonl")
        if event["event"] == "warning" and "fork" in event["text"]
    ]
    if says is None:
        assert not warnings
    else:
        assert RunFolder(tmp_path / "run" / "twins" / "step_000001").status()["state"] == "failed"
        (warning,) = warnings
        assert warning.startswith("the fork step_000001 cannot be resumed (") and says in warning


def test_a_twin_is_not_trained_alone(stopped):
    (path, _) = (twin.path for twin in twins(stopped[0]).values())
    before = (path / "metrics.jsonl").read_bytes()
    with pytest.raises(
        ValueError,
        match=r"is a fork, which is trained with its run: `rlkd resume .*/cut` resumes both",
    ):
        resume(path)
    assert (path / "metrics.jsonl").read_bytes() == before


def test_ctrl_c_in_the_update_of_a_fork_leaves_the_fork_its_own_weights(
    tiny, tmp_path, monkeypatch
):
    """Not those of the run, which are live when all are saved."""
    update, weights = trainer.update, {}

    def interrupted(setup, step, context, state, *rest):
        if context.folder.path.parent.name == "twins" and step.number == 3:
            weights["before"] = [p.detach().clone() for p in state.parameters]
            update(setup, step, context, state, *rest)
            raise KeyboardInterrupt
        return update(setup, step, context, state, *rest)

    monkeypatch.setattr(trainer, "update", interrupted)
    folder = create(
        tiny("kdrl", {"learning_rate": "0.01"}, steps=4, group_size=4), tmp_path / "run"
    )
    folder.ask("twin", kind="untouched")
    folder.ask("knob", knob="kd_coef", value=5.0, at=2)
    with pytest.raises(KeyboardInterrupt):
        resume(folder.path)
    (fork,) = twins(folder).values()
    assert fork.status()["step"] == 2
    saved = load_file(fork.checkpoints()[-1] / "adapter_model.safetensors")
    held = {tuple(value.flatten().tolist()) for value in saved.values()}
    assert {tuple(value.flatten().tolist()) for value in weights["before"]} == held
