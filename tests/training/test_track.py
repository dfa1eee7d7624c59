"""Trackers: what they are given, and that none of them can stop a run."""

import pytest
from accelerate import tracking

from rlkd_lab.runs import first_difference
from rlkd_lab.training import run, track


class Kept:
    """A tracker that keeps what it is given; at step ``fails`` it raises."""

    name = "tensorboard"

    def __init__(self, fails=None):
        self.fails, self.rows, self.tables, self.settings, self.ended = fails, [], [], {}, False

    def start(self):
        pass

    def store_init_configuration(self, values):
        self.settings = values

    def log(self, values, step):
        if step == self.fails:
            raise ConnectionError("nobody answers")
        self.rows.append({**values, "step": step})

    def finish(self):
        self.ended = True


@pytest.fixture
def kept(monkeypatch):
    def make(**how):
        to = Kept(**how)
        monkeypatch.setattr(track, "_make", lambda name, run, place: to)
        monkeypatch.setattr(track, "check_tracker", lambda config: None)
        monkeypatch.setattr("rlkd_lab.training.session.check_tracker", lambda config: None)
        table = lambda to, table, step: to.tables.append((step, table))  # noqa: E731
        monkeypatch.setitem(track.TABLES, to.name, table)
        return to

    return make


def test_every_metric_under_its_name_and_recorded_completions_as_tables(tiny, tmp_path, kept):
    to = kept()
    folder = run(tiny("grpo", track="tensorboard", samples_every=2), tmp_path / "run")
    numbers = [
        {name: value for name, value in row.items() if value == value and value is not None}
        for row in folder.rows()
    ]
    assert to.rows == numbers
    assert to.settings["seed"] == 0
    assert [step for step, _ in to.tables] == folder.sample_steps()
    assert list(to.tables[0][1]) == ["prompt", "completion", "reward"]
    assert to.ended


def test_a_tracker_that_fails_is_left_alone_and_the_run_is_the_run_without_it(tiny, tmp_path, kept):
    alone = run(tiny("grpo"), tmp_path / "alone")
    to = kept(fails=2)
    folder = run(tiny("grpo", track="tensorboard"), tmp_path / "run")
    assert first_difference(folder.rows(), alone.rows()) == (None, 0.0)
    assert [row["step"] for row in to.rows] == [1]
    (event,) = [event for event in folder.rows("events.jsonl") if event["event"] == "warning"]
    assert "ConnectionError: nobody answers" in event["text"]
    assert event["step"] == 2


def test_a_missing_package_is_named_before_anything_is_loaded(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"track=wandb needs the package wandb: pip install wandb"):
        run(tiny("grpo", track="wandb"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "kind"), [("tensorboard", "TensorBoard"), ("wandb", "WandB"), ("mlflow", "MLflow")]
)
def test_each_name_is_a_tracker_of_accelerate(tmp_path, monkeypatch, name, kind):
    monkeypatch.setenv("WANDB_MODE", "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    to = track._make(name, tmp_path / "run", tmp_path / "track")
    assert type(to) is getattr(tracking, f"{kind}Tracker")
    assert to.name in track.TABLES
