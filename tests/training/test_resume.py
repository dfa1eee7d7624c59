"""A run that was killed and resumed has the rows of one that was not; a replay has the rows of
the original.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlkd_lab.models.decoder import Decoder
from rlkd_lab.models.dense_copy import DenseCopy
from rlkd_lab.runs import RunFolder, checkpoints, first_difference
from rlkd_lab.training import replay, resume, run
from rlkd_lab.training.state import TrainState
from tests.short import SHORT


class Killed(BaseException):
    """Stands for a kill: nothing in the package catches it for good."""


def touch(loop, row):
    """What a hand on the panel does: a knob held over steps 2 and 3, another from step 3 on."""
    if row["step"] == 1:
        loop.knobs.request("kd_coef", 0.9)
    if row["step"] == 2:
        loop.knobs.request("learning_rate", 5e-4)
    if row["step"] == 3:
        loop.knobs.release("kd_coef")


def killer(at, also=None):
    def on_step(loop, row):
        if also is not None:
            also(loop, row)
        if row["step"] == at:
            raise Killed

    return on_step


def assert_same(path, expected):
    again = RunFolder.open(path)
    rows = again.rows()
    assert [row["step"] for row in rows] == [
        row["step"] for row in expected.rows()
    ]  # none lost, none doubled
    assert first_difference(rows, expected.rows()) == (None, 0.0)
    assert again.touched == expected.touched
    assert moves(again) == moves(expected)
    assert again.status()["state"] == "done"


def moves(folder):
    """All events but the self-check's: there is one for each life."""
    return [
        {k: v for k, v in row.items() if k != "time"}
        for row in folder.rows("events.jsonl")
        if row["event"] != "selfcheck"
    ]


@pytest.fixture(scope="module")
def touched(tiny, tmp_path_factory):
    """Five steps of KDRL with knobs moved by hand, never interrupted."""
    folder = run(
        tiny("kdrl", steps=5, checkpoint_every=2),
        tmp_path_factory.mktemp("touched") / "run",
        on_step=touch,
    )
    assert folder.touched
    assert folder.metrics()["coef/kd_coef"].tolist() == [0.1, 0.9, 0.9, 0.1, 0.1]
    return folder


# --- resume ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("checkpoint_every", "killed_at"),
    [
        (2, 3),
        # the last checkpoint holds the moved knobs; or there is none, and all moves come from the
        # recorded events
        (3, 4),
        (0, 4),
    ],
)
def test_a_touched_run_resumes_as_if_nothing_had_happened(
    tiny, tmp_path, touched, checkpoint_every, killed_at
):
    with pytest.raises(Killed):
        run(
            tiny("kdrl", steps=5, checkpoint_every=checkpoint_every),
            tmp_path / "run",
            on_step=killer(killed_at, touch),
        )
    assert RunFolder.open(tmp_path / "run").status()["state"] == "failed"
    # the hand is on the panel in the second life too, where the first one had not come to
    resume(
        tmp_path / "run",
        on_step=lambda loop, row: touch(loop, row) if row["step"] >= killed_at else None,
    )
    assert_same(tmp_path / "run", touched)


@pytest.mark.parametrize(
    ("method", "settings", "fields"),
    [
        ("opd_then_rl", {"temperature": "linear:1:0.8"}, {"engine": "hf"}),
        (
            "gkd",
            {"jsd_weight": "switch:0.1:0.9", "optimizer": "adamw_8bit"},
            {"minibatches": 2, "eval_every": 2},
        ),
        ("trrd", {"weight_decay": "0.1"}, {"minibatches": 2, "group_size": 3}),
    ],
)
def test_other_methods_too(tiny, tmp_path, method, settings, fields):
    config = tiny(method, settings, steps=3, checkpoint_every=2, **fields)
    straight = run(config, tmp_path / "straight")
    with pytest.raises(Killed):
        run(config, tmp_path / "run", on_step=killer(3))
    resume(tmp_path / "run")
    assert_same(tmp_path / "run", straight)


def after_the_row(monkeypatch, step):
    """Killed between the row of a step and its checkpoint."""

    save = TrainState.save

    def saved(self, folder, config, progress, held):
        if progress.step == step:
            raise Killed
        return save(self, folder, config, progress, held)

    monkeypatch.setattr(TrainState, "save", saved)


def in_the_checkpoint(monkeypatch, step):
    """Killed with half of a checkpoint on disk."""
    from rlkd_lab.training import state

    def half(tensors, path):
        if f"step_{step:06d}" in str(path):
            path.write_bytes(b"half of a file")
            raise Killed
        save_file(tensors, path)

    monkeypatch.setattr(state, "save_file", half)


def before_the_row(monkeypatch, step):
    """Killed when the step's events are written and its row is not."""
    append = RunFolder.append

    def cut(self, name, row):
        if name == "metrics.jsonl" and row["step"] == step:
            raise Killed
        append(self, name, row)

    monkeypatch.setattr(RunFolder, "append", cut)


def within_the_row(monkeypatch, step):
    """Killed with half of the row on disk."""
    append = RunFolder.append

    def cut(self, name, row):
        append(self, name, row)
        if name == "metrics.jsonl" and row["step"] == step:
            path = self.path / name
            path.write_bytes(path.read_bytes()[:-40])
            raise Killed

    monkeypatch.setattr(RunFolder, "append", cut)


@pytest.mark.parametrize(
    "crash", [after_the_row, in_the_checkpoint, before_the_row, within_the_row]
)
def test_wherever_a_step_is_cut_no_row_is_lost_or_doubled(tiny, tmp_path, touched, crash):
    with pytest.MonkeyPatch.context() as monkeypatch:
        crash(monkeypatch, 4)
        with pytest.raises(Killed):
            run(tiny("kdrl", steps=5, checkpoint_every=2), tmp_path / "run", on_step=touch)
    folder = RunFolder.open(tmp_path / "run")
    assert [path.name for path in folder.checkpoints()] == ["step_000002"]
    assert len(folder.rows()) == (3 if crash in (before_the_row, within_the_row) else 4)
    resume(tmp_path / "run")
    assert_same(tmp_path / "run", touched)


def test_a_run_killed_twice_remembers_its_moves(tiny, tmp_path, touched):
    """The moves after the checkpoint are in events.jsonl alone, and the first resume must not
    lose what it has not come to yet.
    """
    with pytest.raises(Killed):
        run(tiny("kdrl", steps=5, checkpoint_every=0), tmp_path / "run", on_step=killer(4, touch))
    with pytest.raises(Killed):
        resume(tmp_path / "run", on_step=killer(1))
    assert RunFolder.open(tmp_path / "run").touched
    resume(tmp_path / "run")
    assert_same(tmp_path / "run", touched)


def test_resuming_a_finished_run_changes_nothing(trained, tmp_path):
    import shutil

    shutil.copytree(trained("kdrl").path, tmp_path / "run")
    before = {
        path: path.read_bytes()
        for path in (tmp_path / "run").rglob("*")
        if path.is_file() and path.name != "status.json"
    }
    resume(tmp_path / "run", on_step=lambda loop, row: pytest.fail("a step was taken"))
    assert {path: path.read_bytes() for path in before} == before
    assert RunFolder.open(tmp_path / "run").status()["state"] == "done"


# --- what does not fit ----------------------------------------------------------------------------


@pytest.fixture
def copy(trained, tmp_path):
    """Of a run that was interrupted after its last step: one that is done is left alone."""
    import shutil

    shutil.copytree(trained("kdrl").path, tmp_path / "run")
    folder = RunFolder.open(tmp_path / "run")
    folder.set_status("idle", folder.status()["step"])
    return folder


def edit(folder, **values):
    folder.write_json("config.json", {**folder.config(), **values})


@pytest.mark.parametrize(
    "values",
    [
        {"knobs": {"learning_rate": 0.5}},
        {"lora_rank": 8},
        {"seed": 9},
        {"method": "kdrl_masked"},
        {"student": "student-weak"},
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(copy, values):
    edit(copy, **values)
    before = (copy.path / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"does not match the run's config\.json"):
        resume(copy.path)
    assert (copy.path / "metrics.jsonl").read_bytes() == before


def test_a_finished_run_whose_config_now_asks_for_more_steps_is_refused(copy):
    """Schedules and the optimizer's warm-up run over the steps: more of them make another run."""
    copy.set_status("done", copy.status()["step"])
    edit(copy, steps=9)
    with pytest.raises(ValueError, match=r"does not match the run's config\.json"):
        resume(copy.path)


def test_how_often_things_are_written_may_be_changed(copy):
    edit(
        copy,
        eval_every=3,
        samples_every=7,
        checkpoint_every=1,
        interference_every=5,
        eval_prompts=16,
    )
    assert resume(copy.path).status()["state"] == "done"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"method": "grop"}, "'grpo'"),
        ({"steps": 0}, "steps"),
        ({"stepz": 4}, "stepz"),
        ({"knobs": {"kd_coef": 99}}, "0–10"),
    ],
)
def test_a_config_that_was_edited_badly_is_refused_in_words(copy, values, says):
    edit(copy, **values)
    with pytest.raises(ValueError, match=says) as raised:
        resume(copy.path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "optimizer.safetensors", "state.json"]
)
@pytest.mark.parametrize("keep", [0, 200])
def test_from_a_damaged_checkpoint_nothing_goes_on(copy, name, keep):
    path = copy.checkpoints()[-1] / name
    path.write_bytes(path.read_bytes()[: min(keep, path.stat().st_size - 3)])
    rows = copy.rows()
    with pytest.raises(ValueError, match=r"step_000002 is damaged: .*, and no other is whole"):
        resume(copy.path)
    assert copy.rows() == rows


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.safetensors"])
def test_a_checkpoint_without_some_of_its_tensors_is_damaged(copy, name):
    """Also where no digest says so."""
    path = copy.checkpoints()[-1] / name
    tensors = load_file(path)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(checkpoints.Damaged, match="is not what was written"):
        checkpoints.read(path.parent)
    state = json.loads((path.parent / "state.json").read_text())
    (path.parent / "state.json").write_text(
        json.dumps({**state, "sha256": {}, "sha256_of_this": None})
    )
    with pytest.raises(ValueError, match="is damaged: missing or surplus tensors"):
        resume(copy.path)


def test_a_missing_file_of_a_checkpoint_is_damage(copy):
    (copy.checkpoints()[-1] / "optimizer.safetensors").unlink()
    with pytest.raises(checkpoints.Damaged, match="is not what was written"):
        checkpoints.read(copy.checkpoints()[-1])


def test_a_digest_of_something_elsewhere_is_not_looked_at(copy):
    """The name in a state.json from elsewhere leads out of the folder, to a file that never
    ends.
    """
    path = copy.checkpoints()[-1]
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(
        json.dumps({**state, "sha256": {"/dev/zero": "0" * 64}, "sha256_of_this": None})
    )
    with pytest.raises(checkpoints.Damaged, match="/dev/zero is not what was written"):
        checkpoints.read(path)


def test_a_checkpoint_holds_weights_as_safetensors_alone(copy):
    for path in copy.checkpoints()[-1].iterdir():
        assert path.suffix in (".safetensors", ".json", ".md"), path.name


def test_the_optimizers_moments_come_back(trained, copy):
    """Adam's moments after two updates a step: without them the next step would be another one."""
    state = load_file(copy.checkpoints()[-1] / "optimizer.safetensors")
    kinds = {name.split(".", 1)[1] for name in state}
    assert {"exp_avg", "exp_avg_sq", "step"} <= kinds
    assert all(value == 4 for name, value in state.items() if name.endswith(".step"))
    assert all(torch.isfinite(value).all() for value in state.values())


# --- replay ---------------------------------------------------------------------------------------


def test_a_touched_run_replays_to_the_last_bit(touched, tmp_path):
    result = replay(touched.path, tmp_path / "again")
    assert (result.difference, result.largest) == (None, 0.0)
    assert moves(result.folder) == moves(touched)
    assert result.folder.touched


def test_a_replay_sees_a_row_that_was_altered(copy, tmp_path):
    rows = copy.rows()
    rows[1]["reward"] += 0.25
    (copy.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = replay(copy.path, tmp_path / "again")
    assert result.difference.startswith("step 2: reward is")
    assert result.largest == pytest.approx(0.25)
    assert replay(copy.path, tmp_path / "tolerant", tolerance=0.3).difference is None


def test_a_run_that_was_stopped_is_replayed_as_far_as_it_came(tiny, tmp_path):
    def stop(loop, row):
        loop.stopping = row["step"] == 2

    run(tiny("kdrl", steps=4), tmp_path / "run", on_step=stop)
    result = replay(tmp_path / "run", tmp_path / "again")
    assert result.difference is None
    assert len(result.folder.rows()) == 2


def test_a_run_without_a_step_cannot_be_replayed(tmp_path, tiny):
    folder = RunFolder.create(tmp_path / "run", tiny("kdrl").model_dump(), {})
    with pytest.raises(ValueError, match="no finished step"):
        replay(folder.path, tmp_path / "again")
    assert not (tmp_path / "again").exists()


# --- a true kill ----------------------------------------------------------------------------------


def test_sigkill_in_mid_run_and_resume(tmp_path):
    from typer.testing import CliRunner

    from rlkd_lab.commands import app

    def arguments(out):
        small = {
            "prompts_per_step": 2,
            "group_size": 2,
            "max_new_tokens": 24,
            "difficulty": "2-2",
            "eval_every": 4,
            "eval_prompts": 8,
            "samples_every": 2,
            "checkpoint_every": 2,
            **SHORT,
        }
        sets = [part for name, value in small.items() for part in ("--set", f"{name}={value}")]
        return ["train", "--method", "kdrl", "--steps", "8", "--out", str(out), *sets]

    out = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "rlkd_lab", *arguments(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 240
    while (
        not (out / "metrics.jsonl").exists()
        or (out / "metrics.jsonl").read_bytes().count(b"\n") < 3
    ):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()

    folder = RunFolder.open(out)
    assert folder.status()["state"] == "running"  # nobody was left to say otherwise
    rows = len(folder.rows())
    assert 3 <= rows < 8
    assert folder.metrics().index.tolist() == list(range(1, rows + 1))
    assert len(folder.samples()) == 4
    assert not folder.touched

    assert CliRunner().invoke(app, ["resume", str(out)]).exit_code == 0
    straight = CliRunner().invoke(app, arguments(tmp_path / "straight"))
    assert straight.exit_code == 0
    assert_same(out, RunFolder.open(tmp_path / "straight"))


def test_a_run_stopped_between_two_steps_loses_none(tiny, tmp_path):
    def stop_after_two(loop, row):
        loop.stopping = row["step"] == 2

    folder = run(
        tiny("grpo", steps=4, checkpoint_every=0), tmp_path / "run", on_step=stop_after_two
    )
    assert [path.name for path in folder.checkpoints()] == ["step_000002"]
    assert folder.status()["state"] == "idle"


def test_a_checkpoint_that_the_rows_do_not_reach_is_not_used(tiny, tmp_path):
    config = tiny("grpo", steps=4, checkpoint_every=2)
    whole = run(config, tmp_path / "run").rows()
    folder = RunFolder.open(tmp_path / "run")
    folder.truncate("metrics.jsonl", 3)
    folder.set_status("idle", 3)
    resume(tmp_path / "run")
    assert first_difference(folder.rows(), whole) == (None, 0.0)


@pytest.mark.loads
@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (DenseCopy, "what is trained through it is not the policy"),
        (Decoder, "it does not sample the policy"),
    ],
)
def test_a_copy_that_computes_something_else_stops_the_run_at_its_first_step(
    tiny, tmp_path, monkeypatch, broken, says
):
    monkeypatch.setattr(
        "rlkd_lab.training.session.check_start", lambda *_: None
    )  # which would find it before
    made = broken.__init__

    def spoil(self, *given):
        made(self, *given)
        if broken is DenseCopy:
            self.pairs and self.pairs[-1][1].data.mul_(1.2)
        else:
            self.eps = 0.1

    monkeypatch.setattr(broken, "__init__", spoil)
    with pytest.raises(ValueError, match=rf"{says}.*dense_copy=false"):
        run(tiny("grpo"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_of_an_older_format_is_read_and_not_resumed(trained, tmp_path):
    shutil.copytree(trained("grpo").path, tmp_path / "old")
    folder = RunFolder.open(tmp_path / "old")
    folder.write_json("config.json", {**folder.config(), "format": 1, "format_weight": 0.1})
    assert len(RunFolder.open(tmp_path / "old").metrics()) == 2
    with pytest.raises(ValueError, match="made by an older version"):
        resume(tmp_path / "old")
