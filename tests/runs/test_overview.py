"""All runs below a folder, whole or torn."""

import os

import pytest

from rlkd_lab.runs import RunFolder, overview
from rlkd_lab.runs.overview import find_runs

CONFIG = {
    "method": "grpo",
    "steps": 4,
    "seed": 0,
    "student": "student",
    "knobs": {"kl_coef": 0.1},
    "options": {},
}


@pytest.fixture
def make(tmp_path):
    def run(name, steps=0, state="done", **config):
        folder = RunFolder.create(tmp_path / name, {**CONFIG, **config}, {})
        for step in range(1, steps + 1):
            folder.append(
                "metrics.jsonl",
                {"step": step, "reward": step / 10, "eval/accuracy": 0.5 if step == 2 else None},
            )
        folder.set_status(state, steps)
        return folder

    return run


@pytest.fixture
def table(tmp_path):
    return lambda alive=lambda status: True: overview(tmp_path, alive).set_index("run")


def test_runs_are_found_at_any_depth_and_by_their_path(make, table, tmp_path):
    make("b", 3)
    make("deep/er/a", 4)
    (tmp_path / "b" / "checkpoints" / "step_000002").mkdir()
    (
        tmp_path / "b" / "checkpoints" / "step_000002" / "metrics.jsonl"
    ).touch()  # nothing below a run is a run
    make(".c.new-1")  # being made
    found = table()
    assert list(found.index) == ["b", os.path.join("deep", "er", "a")]
    assert found["step"].tolist() == [3, 4]
    assert found["steps"].tolist() == [4, 4]
    assert find_runs(tmp_path / "b") == [tmp_path / "b"]
    assert overview(tmp_path / "b", lambda pid, since: True)["run"].tolist() == ["b"]


def test_last_values_and_moved_knobs(make, table):
    make("a", 3)
    make("b", 1).append(
        "events.jsonl", {"event": "knob", "step": 1, "knob": "kl_coef", "value": 0.2}
    )
    found = table()
    assert found["reward"].tolist() == [0.3, 0.1]
    assert found["accuracy"].tolist() == [0.5, None]
    assert found["touched"].tolist() == [False, True]


def test_settings_that_differ(make, table):
    make("a", seed=3)
    make("b", knobs={"kl_coef": 0.2})
    make("c", method="kdrl", options={"kd_mask": "wrong"})
    assert table()["settings"].to_dict() == {
        "a": {"knobs.kl_coef": 0.1},
        "b": {"knobs.kl_coef": 0.2},
        "c": {"knobs.kl_coef": 0.1, "options.kd_mask": "wrong"},
    }
    assert table()["seed"].tolist() == [3, 0, 0]


def test_a_run_whose_process_is_gone_is_lost(make, table):
    make("a", 1, state="running")
    make("b", 4)
    make("c", 1, state="paused")
    asked = []

    def gone(status):
        asked.append(status["pid"])
        return False

    assert table(gone)["state"].tolist() == ["lost", "done", "lost"]
    assert asked == [os.getpid()] * 2
    assert table()["state"].tolist() == ["running", "done", "paused"]


def test_torn_and_failed_runs_are_listed_with_what_is_wrong(make, table, tmp_path):
    make("a", 1)
    make("b", 1).set_status("failed", 1, "FloatingPointError: nan")
    make("c", 1)
    (tmp_path / "c" / "config.json").write_text('{"for')
    make("d", 1)
    (tmp_path / "d" / "status.json").unlink()
    make("e", 1)
    (tmp_path / "e" / "metrics.jsonl").write_text('{"step": 1}\nbroken\n{"step": 3}\n')
    make("f", 1)
    (tmp_path / "f" / "status.json").write_text("[]")
    make("g", 1)
    (tmp_path / "g" / "status.json").write_text("")
    found = table()
    assert found["state"].tolist() == ["done", "failed", *["torn"] * 5]
    for name, says in (
        ("b", "nan"),
        ("c", "torn"),
        ("d", "no status.json"),
        ("e", "damaged in line 2"),
        ("f", ""),
        ("g", ""),
    ):
        assert says in found.loc[name, "problem"]
    assert found["problem"].iloc[1:].str.len().gt(3).all()
    assert found.loc["a", "settings"] == {}  # a torn one makes no difference


def test_a_folder_without_runs_and_none_at_all(tmp_path):
    assert overview(tmp_path, lambda pid, since: True).empty
    with pytest.raises(FileNotFoundError, match="no folder"):
        overview(tmp_path / "nothing", lambda pid, since: True)
