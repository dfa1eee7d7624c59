"""The power goes: files end where they should not, and the run goes on from what is whole."""

import json
import random
import shutil
from itertools import pairwise

import pytest

from rlkd_lab.runs import RunFolder, checkpoints, first_difference
from rlkd_lab.runs.tail import Tail
from rlkd_lab.training import replay, resume, run
from rlkd_lab.training.context import Context
from rlkd_lab.training.folders import config_of
from rlkd_lab.training.recovery import go_back
from rlkd_lab.training.trainer import Trainer

FLIPS, OFFSETS = 50, 200


class Killed(BaseException):
    """Stands for a kill."""


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """Five steps, knobs moved by hand in the third and the last of them."""

    def hand(loop, row):
        if row["step"] in (2, 4):
            loop.folder.ask("knob", knob="kd_coef", value=row["step"] / 10)

    return run(
        tiny("kdrl", steps=5, checkpoint_every=2, samples_every=2),
        tmp_path_factory.mktemp("whole") / "run",
        on_step=hand,
    )


@pytest.fixture
def cut(whole, tmp_path):
    """As if it had been killed after its last step."""
    shutil.copytree(whole.path, tmp_path / "run")
    folder = RunFolder.open(tmp_path / "run")
    folder.set_status("running", 5, pid=2**22 + 1)
    return folder


def last_write(path):
    data = path.read_bytes()
    return data, data.rstrip(b"\n").rfind(b"\n") + 1


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl"])
def test_a_file_of_lines_that_ends_anywhere_in_its_last_one_has_all_the_others(cut, name):
    path = cut.path / name
    data, begin = last_write(path)
    rows = cut.rows(name)
    for end in range(begin, len(data) + 1):
        path.write_bytes(data[:end])
        assert cut.rows(name) == (rows if end >= len(data) - 1 else rows[:-1])
        assert Tail(path).read() == (rows if end == len(data) else rows[:-1])
    path.write_bytes(data[:begin] + b"\0" * 40)  # as some file systems leave it
    assert cut.rows(name) == rows[:-1]


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_run_goes_on_from_there_as_if_nothing_had_happened(whole, cut, name, share):
    path = cut.path / name
    data, begin = last_write(path)
    path.write_bytes(data[: begin + int(share * (len(data) - begin - 1))])
    resume(cut.path)
    assert first_difference(cut.rows(), whole.rows()) == (None, 0.0)


def test_a_status_that_ends_anywhere_keeps_no_run_from_going_on(cut):
    data = (cut.path / "status.json").read_bytes()
    for end in range(len(data)):
        (cut.path / "status.json").write_bytes(data[:end])
        assert cut.last_status()["step"] == 5


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "optimizer.safetensors", "state.json"]
)
def test_a_file_of_a_checkpoint_that_ends_early_is_seen(cut, name):
    path = cut.checkpoints()[-1] / name
    data = path.read_bytes()
    draw = random.Random(0)
    for end in {0, len(data) - 1, *(draw.randrange(len(data)) for _ in range(OFFSETS - 2))}:
        path.write_bytes(data[:end])
        with pytest.raises(checkpoints.Damaged, match="is damaged"):
            checkpoints.read(path.parent)
    path.write_bytes(data)
    checkpoints.read(path.parent)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.safetensors"])
def test_one_bit_that_fell_over_is_seen(cut, name):
    path = cut.checkpoints()[-1] / name
    data = path.read_bytes()
    draw = random.Random(0)
    for _ in range(FLIPS):
        at = draw.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :])
        with pytest.raises(checkpoints.Damaged, match=f"{name} is not what was written"):
            checkpoints.read(path.parent)


@pytest.mark.parametrize("change", [{"tokens": 205}, {"held": {"kd_coef": 0.9}}, {"sha256": {}}])
def test_a_state_that_was_changed_is_seen(cut, change):
    path = cut.checkpoints()[-1] / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(checkpoints.Damaged, match=r"state\.json is not what was written"):
        checkpoints.read(path.parent)


def test_whoever_measures_or_hands_over_a_damaged_checkpoint_is_told(cut, tmp_path, tiny):
    from rlkd_lab.study.export import export_run
    from rlkd_lab.study.targets import find_target

    path = cut.checkpoints()[-1] / "adapter_model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-4] + bytes([data[-4] ^ 1]) + data[-3:])
    starts_there = tiny("grpo", {"adapter": str(path.parent)})
    for use in (
        lambda: find_target(str(cut.path)),
        lambda: export_run(cut.path, tmp_path / "out"),
        lambda: run(starts_there, tmp_path / "new"),
    ):
        with pytest.raises(
            checkpoints.Damaged, match=r"adapter_model\.safetensors is not what was written"
        ):
            use()
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "new").exists()
    assert find_target(str(cut.path), checkpoint=4).step == 4


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.safetensors"])
def test_a_tensor_file_that_ends_early_is_seen_without_its_digest_too(cut, name):
    """Checkpoints of older versions have none."""
    config = config_of(cut)
    trainer, context = Trainer(config), Context(config, cut)
    path = cut.checkpoints()[-1] / name
    state = json.loads((path.parent / "state.json").read_text())
    del state["sha256"], state["sha256_of_this"]
    (path.parent / "state.json").write_text(json.dumps(state))
    trainer.load(context, path.parent)
    data = path.read_bytes()
    draw = random.Random(0)
    for end in {0, len(data) - 1, *(draw.randrange(len(data)) for _ in range(OFFSETS - 2))}:
        path.write_bytes(data[:end])
        with pytest.raises(checkpoints.Damaged, match="is damaged"):
            trainer.load(context, path.parent)


def test_from_a_damaged_checkpoint_the_run_goes_back_further(whole, cut):
    path = cut.checkpoints()[-1] / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.warns(UserWarning, match="is damaged: .*: the run goes on from an earlier one"):
        resume(cut.path)
    (warning,) = [event for event in cut.rows("events.jsonl") if event["event"] == "warning"]
    assert "step_000005 is damaged" in warning["text"]
    assert first_difference(cut.rows(), whole.rows()) == (None, 0.0)


def test_with_all_checkpoints_spoilt_nothing_is_dropped_before_they_are_removed(whole, cut):
    for path in cut.checkpoints():
        (path / "optimizer.safetensors").write_bytes(b"")
    rows = (cut.path / "metrics.jsonl").read_bytes()
    earlier = pytest.warns(UserWarning, match="the run goes on from an earlier one")
    with earlier, pytest.raises(ValueError, match=r"no other is whole: .*or remove .*/checkpoints"):
        resume(cut.path)
    assert (cut.path / "metrics.jsonl").read_bytes() == rows
    assert cut.status()["state"] == "failed"
    shutil.rmtree(cut.path / "checkpoints")
    with pytest.warns(
        UserWarning, match="no checkpoint to go on from: the run begins again from step 1"
    ):
        resume(cut.path)
    assert first_difference(cut.rows(), whole.rows()) == (None, 0.0)


@pytest.mark.parametrize(
    ("without", "says"), [(2, "line 3, step 4 after step 2"), (0, "line 1, step 2 after step 0")]
)
def test_a_row_that_is_missing_is_seen(cut, without, says):
    lines = (cut.path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (cut.path / "metrics.jsonl").write_bytes(b"".join(lines[:without] + lines[without + 1 :]))
    with pytest.raises(ValueError, match=says):
        resume(cut.path)


def test_a_row_that_is_there_twice_is_seen(cut):
    lines = (cut.path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (cut.path / "metrics.jsonl").write_bytes(b"".join(lines[:2] + lines[1:]))
    with pytest.raises(
        ValueError,
        match=r"line 3, step 2 after step 2: put the file back from a copy, or cut it before that"
        r" line, and `rlkd resume",
    ):
        cut.rows()


def test_a_run_that_goes_on_elsewhere_says_so(cut):
    cut.write_json("env.json", cut.env() | {"threads": 64})
    with pytest.warns(
        UserWarning, match=r"goes on elsewhere than it began, threads \d+ \(before: 64\)"
    ):
        resume(cut.path)
    (warning,) = [event for event in cut.rows("events.jsonl") if event["event"] == "warning"]
    assert "may differ in the last bits" in warning["text"]


def test_a_run_that_is_done_and_has_lost_its_last_rows_computes_them_again(whole, cut):
    cut.set_status("done", 5)
    cut.truncate("metrics.jsonl", 3)
    resume(cut.path)
    assert first_difference(cut.rows(), whole.rows()) == (None, 0.0)


def test_rows_that_did_not_reach_the_disk_take_their_checkpoint_with_them(cut):
    """The checkpoint of step 4 is there, the rows end with step 3: what is gone on from is step
    2.
    """
    cut.truncate("metrics.jsonl", 3)
    assert go_back(Trainer(config_of(cut)), cut).progress.step == 2


def test_a_request_that_was_read_and_not_yet_answered_acts_where_it_was_meant(
    tiny, tmp_path, monkeypatch
):
    """Asked for after step 3, killed before the event of step 4 was written: the steps from the
    checkpoint on are computed again without it.
    """

    def hand(loop, row):
        if row["step"] == 3 and not any(
            request["request"] == "knob"
            for request in Tail(loop.folder.path / "requests.jsonl").read()
        ):
            loop.folder.ask("knob", knob="kd_coef", value=0.7)

    config = tiny("kdrl", steps=5, checkpoint_every=2)
    expected = run(config, tmp_path / "expected", on_step=hand)
    append = RunFolder.append

    def killed(self, name, row):
        if row.get("event") == "knob":
            raise Killed
        append(self, name, row)

    monkeypatch.setattr(RunFolder, "append", killed)
    with pytest.raises(Killed):
        run(config, tmp_path / "run", on_step=hand)
    monkeypatch.undo()
    folder = resume(tmp_path / "run", on_step=hand)
    assert [row["coef/kd_coef"] for row in folder.rows()] == [0.1, 0.1, 0.1, 0.7, 0.7]
    assert first_difference(folder.rows(), expected.rows()) == (None, 0.0)
    assert replay(folder.path, tmp_path / "again").difference is None


# --- what is kept ---------------------------------------------------------------------------------


def checkpoint(folder, step, accuracy=None):
    checkpoints.save(
        folder,
        step,
        lambda beside: (beside / "weights").write_text(str(step)),
        {"step": step, "accuracy": accuracy},
    )


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "run", {"method": "grpo"}, {})


def steps(folder):
    return [checkpoints.step_of(path) for path in folder.checkpoints()]


def test_the_newest_and_the_best_checkpoints_are_kept(folder):
    for step, accuracy in enumerate([0.1, 0.9, 0.3, None, 0.9, 0.4, 0.5, None], 1):
        checkpoint(folder, step, accuracy)
        checkpoints.prune(folder, 2)
        assert steps(folder)[-1] == step
    assert steps(folder) == [5, 7, 8]  # of two that are equal the newer
    checkpoints.prune(folder, 1)
    assert steps(folder) == [5, 8]
    checkpoint(folder, 9)
    checkpoints.prune(folder, 0)
    assert steps(folder) == [5, 8, 9]


def test_a_state_that_cannot_be_read_is_not_the_best(folder):
    for step in range(1, 5):
        checkpoint(folder, step, 0.5)
    (folder.path / "checkpoints" / "step_000004" / "state.json").write_text("{")
    (folder.path / "checkpoints" / "step_000002" / "state.json").write_text('{"accuracy": "high"}')
    checkpoints.prune(folder, 1)
    assert steps(folder) == [3, 4]


def test_half_removed_checkpoints_are_none_and_are_swept_up(folder, monkeypatch):
    for step in (1, 2, 3):
        checkpoint(folder, step)
    monkeypatch.setattr(shutil, "rmtree", lambda *rest, **more: None)  # killed here
    checkpoints.prune(folder, 1)
    assert steps(folder) == [3]
    monkeypatch.undo()
    checkpoints.sweep_up(folder)
    assert [path.name for path in (folder.path / "checkpoints").iterdir()] == ["step_000003"]


def test_what_others_put_beside_them_is_no_checkpoint_and_stays(folder):
    for step in (1, 2, 3):
        checkpoint(folder, step)
    for name in ("step_keepme", "step_000001_backup"):
        shutil.copytree(
            folder.path / "checkpoints" / "step_000001", folder.path / "checkpoints" / name
        )
    checkpoints.prune(folder, 1)
    assert steps(folder) == [3]
    assert {path.name for path in (folder.path / "checkpoints").iterdir()} == {
        "step_000003",
        "step_keepme",
        "step_000001_backup",
    }


def test_recorded_rollouts_are_thinned_over_the_whole_run(folder):
    most = 0
    for step in range(10, 5010, 10):
        for kind in ("step", "probe"):
            (folder.path / "samples" / f"{kind}_{step:06d}.parquet").touch()
        folder.thin_samples(20)
        kept = folder.sample_steps()
        assert (kept[0], kept[-1]) == (10, step)
        assert folder.sample_steps("probe") == kept
        most = max(most, len(kept))
    assert most == 20
    assert max(later - earlier for earlier, later in pairwise(kept)) < 3 * 5000 / 20


def test_what_is_kept_is_no_part_of_what_a_checkpoint_fits(tiny):
    from rlkd_lab.training.fingerprint import fingerprint

    assert fingerprint(tiny(keep_checkpoints=1, keep_samples=3)) == fingerprint(tiny())


def test_the_loop_keeps_what_the_config_says(tiny, tmp_path):
    folder = run(
        tiny(
            "grpo",
            steps=8,
            checkpoint_every=1,
            samples_every=1,
            keep_checkpoints=2,
            keep_samples=4,
            eval_every=2,
        ),
        tmp_path / "run",
    )
    accuracy = {row["step"]: row.get("eval/accuracy") for row in folder.rows()}
    best = max(
        (step for step in accuracy if accuracy[step] is not None),
        key=lambda step: (accuracy[step], step),
    )
    assert steps(folder) == sorted({best, 7, 8})
    assert folder.sample_steps()[0] == 1
    assert folder.sample_steps()[-1] == 8
    assert len(folder.sample_steps()) <= 4
