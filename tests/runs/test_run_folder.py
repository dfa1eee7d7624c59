import errno
import json
import os
from pathlib import Path

import pandas as pd
import pytest

from rlkd_lab.runs import RunFolder, first_difference
from rlkd_lab.runs.checks import FORMAT
from rlkd_lab.runs.compare import TIMING

CONFIG = {"method": "grpo", "seed": 0, "steps": 3}


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "run", CONFIG, {"commit": None})


# --- making one -----------------------------------------------------------------------------------


def test_a_new_run_can_be_opened_and_is_empty(folder):
    opened = RunFolder.open(folder.path)
    assert opened.config() == {"format": FORMAT, **CONFIG}
    assert opened.status()["state"] == "idle"
    assert opened.rows() == []
    assert opened.metrics().empty
    assert opened.checkpoints() == []
    assert not opened.touched
    assert [path.name for path in folder.path.parent.iterdir()] == ["run"]


def test_parents_are_made(tmp_path):
    assert RunFolder.create(tmp_path / "a" / "b", CONFIG, {}).status()["state"] == "idle"


def test_an_empty_folder_is_used(tmp_path):
    (tmp_path / "run").mkdir()
    RunFolder.create(tmp_path / "run", CONFIG, {})
    assert RunFolder.open(tmp_path / "run").config()["method"] == "grpo"


def test_what_is_there_is_refused_and_kept(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match="choose another --out"):
        RunFolder.create(tmp_path / "run", CONFIG, {})
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "thesis.tex"]


def test_a_file_in_its_place_is_refused(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(FileExistsError):
        RunFolder.create(tmp_path / "run", CONFIG, {})
    assert (tmp_path / "run").read_text() == "mine"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_no_permission_is_said_in_words(tmp_path, monkeypatch, number):
    def refuse(self, *args, **kwargs):
        raise OSError(
            number, os.strerror(number)
        )  # Python makes it a PermissionError where the number says so

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(
        PermissionError, match=r"no permission to write .*run: choose another --out"
    ):
        RunFolder.create(tmp_path / "run", CONFIG, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "failure",
    [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), TypeError("not JSON")],
)
def test_a_start_that_fails_half_way_leaves_nothing(tmp_path, monkeypatch, failure):
    write = RunFolder.write_json

    def full(self, name, value):
        if name == "env.json":
            raise failure
        write(self, name, value)

    monkeypatch.setattr(RunFolder, "write_json", full)
    with pytest.raises(type(failure)):
        RunFolder.create(tmp_path / "run", CONFIG, {})
    assert list(tmp_path.iterdir()) == []


# --- opening --------------------------------------------------------------------------------------


def test_no_run_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        RunFolder.open(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        RunFolder.open(tmp_path)


@pytest.mark.parametrize(
    ("written", "says"),
    [
        (FORMAT + 1, "update rlkd_lab$"),
        ("two", "'two', .* reads 1 to"),
        (None, "None"),
        (True, "True"),
        (-1, "-1"),
    ],
)
def test_another_format_is_refused(folder, written, says):
    folder.write_json("config.json", {"format": written, **CONFIG})
    with pytest.raises(ValueError, match=says):
        RunFolder.open(folder.path)


def test_a_torn_config_is_refused_wherever_it_was_torn(folder):
    path = folder.path / "config.json"
    whole = path.read_bytes().rstrip()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="torn"):
            RunFolder.open(folder.path)


@pytest.mark.parametrize("text", [b"{}", b"[]", b"3", b"null", b'"x"', b"\xff\xfe"])
def test_a_config_that_is_something_else_is_refused(folder, text):
    (folder.path / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match="torn"):
        RunFolder.open(folder.path)


# --- rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl"])
def test_a_file_torn_at_any_byte_gives_its_whole_rows(folder, name):
    rows = [
        {"step": 1, "text": "KL(θ‖T) — ½"},
        {"step": 2, "x": 1.5, "y": None},
        {"step": 3, "nested": {"a": [1, "}"]}},
    ]
    for row in rows:
        folder.append(name, row)
    path = folder.path / name
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        # a row whose newline alone is missing is whole
        assert folder.rows(name) == rows[: sum(cut >= end - 1 for end in ends)], cut


def test_after_a_tear_truncate_makes_the_file_whole_again(folder):
    for step in (1, 2, 3):
        folder.append("metrics.jsonl", {"step": step, "text": "½"})
    path = folder.path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-4])
    folder.truncate("metrics.jsonl", 2)
    folder.append("metrics.jsonl", {"step": 3, "text": "again"})
    assert [row["step"] for row in folder.rows()] == [1, 2, 3]
    assert folder.rows()[-1]["text"] == "again"
    assert not list(folder.path.glob("*.tmp"))


@pytest.mark.parametrize("keep", [0, 1, 2, 3, 9])
def test_truncate_keeps_the_rows_up_to_and_with_a_step(folder, keep):
    for step in (1, 2, 3):
        folder.append("metrics.jsonl", {"step": step})
    folder.truncate("metrics.jsonl", keep)
    assert [row["step"] for row in folder.rows()] == [step for step in (1, 2, 3) if step <= keep]


def test_damage_in_the_middle_is_an_error_that_names_the_line(folder):
    for step in (1, 2, 3):
        folder.append("metrics.jsonl", {"step": step})
    path = folder.path / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b'{"step": 2}', b'{"step" 2}'))
    with pytest.raises(ValueError, match=r"metrics\.jsonl is damaged in line 2"):
        folder.rows()


def test_a_whole_last_line_that_is_damaged_is_an_error(folder):
    (folder.path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"step"\n')
    with pytest.raises(ValueError, match="line 2"):
        folder.rows()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_json_does_not_have_is_written_as_null(folder, value):
    folder.append("metrics.jsonl", {"step": 1, "kl": value, "reward": 0.5})
    line = (folder.path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=lambda name: pytest.fail(name)) == {
        "step": 1,
        "kl": None,
        "reward": 0.5,
    }
    assert pd.isna(folder.metrics()["kl"][1])


def test_metrics_are_a_table_by_step(folder):
    folder.append("metrics.jsonl", {"step": 1, "reward": 0.0})
    folder.append("metrics.jsonl", {"step": 2, "reward": 1.0, "eval/accuracy": 0.5})
    frame = folder.metrics()
    assert frame.index.tolist() == [1, 2]
    assert frame["eval/accuracy"].dropna().to_dict() == {2: 0.5}


# --- status, settings, checkpoints, samples -------------------------------------------------------


@pytest.mark.parametrize("state", ["idle", "running", "paused", "done", "failed"])
def test_status(folder, state):
    folder.set_status(state, 4, "because" if state == "failed" else None)
    status = folder.status()
    assert (status["state"], status["step"]) == (state, 4)
    assert status["why"] == ("because" if state == "failed" else None)


def test_a_replacement_that_fails_leaves_the_old_file(folder, monkeypatch):
    folder.set_status("running", 1)
    with pytest.raises(TypeError):
        folder.write_json("status.json", {"state": object()})
    assert folder.status()["state"] == "running"

    def killed(self, target):
        raise OSError("killed before the rename")

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(OSError, match="killed"):
        folder.set_status("done", 2)
    assert folder.status()["state"] == "running"


def test_half_written_checkpoints_are_not_seen(folder):
    for name in ("step_000010", "step_000002", "step_000020.tmp", "step_000030"):
        (folder.path / "checkpoints" / name).mkdir()
    for name in ("step_000010", "step_000002", "step_000020.tmp"):
        (folder.path / "checkpoints" / name / "state.json").write_text("{}")
    assert [path.name for path in folder.checkpoints()] == ["step_000002", "step_000010"]


def test_samples_by_step_and_the_last(folder):
    with pytest.raises(FileNotFoundError, match="recorded steps: none"):
        folder.samples()
    for step in (1, 10):
        pd.DataFrame({"prompt": [f"{step}+1?"]}).to_parquet(
            folder.path / "samples" / f"step_{step:06d}.parquet"
        )
    (folder.path / "samples" / "step_000011.tmp").write_bytes(b"half")
    assert folder.samples()["prompt"].tolist() == ["10+1?"]
    assert folder.samples(1)["prompt"].tolist() == ["1+1?"]
    with pytest.raises(FileNotFoundError, match=r"no samples of step 3.*recorded steps: 1, 10"):
        folder.samples(3)


def test_touched_means_a_knob_was_moved(folder):
    folder.append("events.jsonl", {"event": "warning", "step": 0, "text": "top_p"})
    assert not folder.touched
    folder.append("events.jsonl", {"event": "knob", "step": 2, "knob": "kd_coef", "value": 0.5})
    assert folder.touched


# --- comparing rows -------------------------------------------------------------------------------

ROWS = [
    {"step": 1, "reward": 0.5, "kl": None, "on_policy": True},
    {"step": 2, "reward": 0.25, "kl": 1.0, "on_policy": True},
]


def changed(step, **values):
    return [{**row, **values} if row["step"] == step else dict(row) for row in ROWS]


def test_equal_rows():
    assert first_difference(ROWS, changed(0)) == (None, 0.0)
    assert first_difference([], []) == (None, 0.0)


def test_the_first_difference_is_named_and_the_largest_measured():
    theirs = [{**ROWS[0], "reward": 0.5}, {**ROWS[1], "reward": 0.5, "kl": 3.0}]
    words, largest = first_difference(ROWS, theirs)
    assert words == "step 2: kl is 1.0 against 3.0"
    assert largest == 2.0


def test_tolerance_passes_small_differences_and_still_measures_them():
    words, largest = first_difference(ROWS, changed(2, reward=0.25 + 1e-4), tolerance=1e-3)
    assert words is None
    assert largest == pytest.approx(1e-4)
    assert first_difference(ROWS, changed(2, reward=0.26), tolerance=1e-3)[0] is not None


@pytest.mark.parametrize(
    "theirs",
    [changed(2, kl=None), changed(1, kl=0.0), changed(2, extra=1.0), changed(2, on_policy=False)],
)
def test_a_missing_value_is_a_difference_that_no_tolerance_passes(theirs):
    for ours, other in ((ROWS, theirs), (theirs, ROWS)):
        words, _ = first_difference(ours, other, tolerance=0.9)
        assert words is not None


@pytest.mark.parametrize(
    ("ours", "theirs", "says"),
    [(ROWS, ROWS[:1], "2 rows against 1"), (ROWS[:1], ROWS, "1 rows against 2")],
)
def test_row_counts(ours, theirs, says):
    assert first_difference(ours, theirs, tolerance=10.0)[0] == says


def test_timings_are_left_out():
    timed = changed(2, step_time=9.0, **{"time/rollout": 1.0, "memory/peak_gib": 2.0})
    assert first_difference(ROWS, timed) == (None, 0.0)
    assert TIMING == ("step_time", "train_time", "time/", "memory/", "speed/")


@pytest.mark.parametrize("name", ["env.json", "status.json", "metrics.jsonl", "events.jsonl"])
def test_a_folder_that_lacks_a_file_says_which(tmp_path, name):
    folder = RunFolder.create(tmp_path / "run", {}, {})
    (folder.path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"no {name}"):
        RunFolder.open(folder.path)


def test_a_row_without_its_step_is_damage(tmp_path):
    folder = RunFolder.create(tmp_path / "run", {}, {})
    (folder.path / "metrics.jsonl").write_text('{"reward": 1.0}\n{"step": 1}\n')
    with pytest.raises(ValueError, match="damaged in line 1"):
        folder.rows()


def test_what_cannot_be_asked_leaves_nothing(folder, monkeypatch):
    from rlkd_lab.runs import folder as module

    folder.ask("pause")
    before = (folder.path / "requests.jsonl").read_bytes()

    class Full:
        """A disk with room for five bytes."""

        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, line):
            return self.file.write(line[:5])

    add = module._add
    monkeypatch.setattr(module, "_add", lambda file, line: add(Full(file), line))
    with pytest.raises(
        OSError, match=r"nothing was asked, for .*requests\.jsonl cannot be written: no space left"
    ):
        folder.ask("stop")
    assert (folder.path / "requests.jsonl").read_bytes() == before
    monkeypatch.undo()
    (folder.path / "requests.jsonl").unlink()
    (folder.path / "requests.jsonl").mkdir()
    with pytest.raises(OSError, match=r"nothing was asked, for .*: Is a directory"):
        folder.ask("stop")
