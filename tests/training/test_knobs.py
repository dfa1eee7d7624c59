import threading

import pytest

from rlkd_lab.training import make_config, run
from rlkd_lab.training.decisions import Decisions
from rlkd_lab.training.knobs import Knobs


@pytest.fixture
def knobs():
    return Knobs(make_config("kdrl_annealed", steps=10))


def test_a_request_holds_from_the_next_snapshot_on(knobs):
    before, none = knobs.snapshot(1)
    assert before["kd_coef"] == 0.2
    assert none == []
    knobs.request("kd_coef", 0.7, source="panel")
    values, events = knobs.snapshot(2)
    assert values["kd_coef"] == 0.7
    assert events == [
        {"event": "knob", "step": 2, "knob": "kd_coef", "value": 0.7, "source": "panel"}
    ]
    values, events = knobs.snapshot(3)
    assert values["kd_coef"] == 0.7
    assert events == []


def test_a_snapshot_does_not_change_afterwards(knobs):
    values, _ = knobs.snapshot(1)
    knobs.request("kd_coef", 0.7)
    knobs.snapshot(2)
    assert values["kd_coef"] == 0.2


def test_the_last_request_of_a_step_wins_and_all_are_recorded(knobs):
    knobs.request("kd_coef", 0.7)
    knobs.request("kd_coef", 0.3)
    values, events = knobs.snapshot(2)
    assert values["kd_coef"] == 0.3
    assert [event["value"] for event in events] == [0.7, 0.3]


def test_release_gives_a_knob_back_to_its_schedule(knobs):
    scheduled = Knobs(knobs.config).snapshot(3)[0]["kd_coef"]
    knobs.request("kd_coef", 0.7)
    knobs.snapshot(2)
    knobs.release("kd_coef")
    values, (event,) = knobs.snapshot(3)
    assert values["kd_coef"] == scheduled
    assert event["release"] is True


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("kd_coeff", 1.0, "did you mean 'kd_coef'"),
        ("trrd_alpha", 0.5, "unknown knob"),
        ("kd_coef", 10.1, "lies in 0–10"),
        ("kd_coef", float("nan"), "lies in 0–10"),
        ("kd_coef", None, "off is out of range"),
        ("temperature", 0.0, "lies in 0.05–5"),
    ],
)
def test_a_refused_request_changes_nothing(knobs, name, value, says):
    before, _ = knobs.snapshot(1)
    with pytest.raises(ValueError, match=says):
        knobs.request(name, value)
    values, events = knobs.snapshot(1)
    assert values == before
    assert events == []


def test_text_is_no_value(knobs):
    with pytest.raises((TypeError, ValueError)):
        knobs.request("kd_coef", "0.5")
    assert knobs.snapshot(1)[1] == []


def test_an_unknown_knob_cannot_be_released(knobs):
    with pytest.raises(ValueError, match="did you mean"):
        knobs.release("kd_coeff")
    assert knobs.snapshot(1)[1] == []


def test_an_optional_knob_can_be_switched_off_and_on(knobs):
    knobs.request("ratio_cap", 4)
    assert knobs.snapshot(1)[0]["ratio_cap"] == 4.0
    knobs.request("ratio_cap", None)
    assert knobs.snapshot(2)[0]["ratio_cap"] is None


def test_a_script_moves_the_same_knobs_at_the_same_steps(knobs):
    knobs.request("kd_coef", 0.7)
    first, recorded = knobs.snapshot(4)
    stored = [{**event, "time": 1.0} for event in recorded]
    again = Knobs(knobs.config, Decisions(knobs.config, stored))
    assert again.snapshot(3)[0]["kd_coef"] != 0.7
    values, events = again.snapshot(4)
    assert values == first
    assert events == recorded


def test_requests_from_many_threads_are_neither_lost_nor_torn(knobs):
    gate = threading.Barrier(8 + 1)
    seen, events = [], []

    def hammer(worker):
        gate.wait()
        for i in range(100):
            knobs.request("kd_coef", worker + i / 1000)

    threads = [threading.Thread(target=hammer, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    gate.wait()
    step = 0
    while any(thread.is_alive() for thread in threads) or step == 0:
        step += 1
        values, moved = knobs.snapshot(step)
        seen.append(values["kd_coef"])
        events += moved
    values, moved = knobs.snapshot(step + 1)
    events += moved
    assert sorted(event["value"] for event in events) == sorted(
        worker + i / 1000 for worker in range(8) for i in range(100)
    )
    for worker in range(8):  # in the order in which each thread asked
        own = [event["value"] for event in events if int(event["value"]) == worker]
        assert own == sorted(own)
    assert values["kd_coef"] == events[-1]["value"]


def test_in_a_run_a_request_counts_from_the_next_step(tiny, tmp_path, monkeypatch):
    from rlkd_lab.training import trainer

    collect = trainer.collect

    def request_in_the_middle_of_step_1(setup, step, context, stop):
        if step.number == 1:
            context.knobs.request("kd_coef", 0.9)
            context.knobs.request("learning_rate", 0.0)
        return collect(setup, step, context, stop)

    monkeypatch.setattr(trainer, "collect", request_in_the_middle_of_step_1)
    weights = {}

    def watch(loop, row):
        weights[row["step"]] = [p.detach().clone() for p in loop.policy.trainable()]
        if row["step"] == 2:
            loop.knobs.release("kd_coef")

    folder = run(tiny("kdrl", steps=3), tmp_path / "run", on_step=watch)
    assert folder.metrics()["coef/kd_coef"].tolist() == [0.1, 0.9, 0.1]
    assert folder.metrics()["learning_rate"].tolist() == [1e-3, 0.0, 0.0]
    # what the row says is what the optimizer did
    assert all((a == b).all() for a, b in zip(weights[1], weights[2], strict=True))
    assert any((p != 0).any() for p in weights[1])
    events = [
        {k: v for k, v in row.items() if k != "time"}
        for row in folder.rows("events.jsonl")
        if row["event"] == "knob"
    ]
    assert events == [
        {"event": "knob", "step": 2, "knob": "kd_coef", "value": 0.9, "source": "program"},
        {"event": "knob", "step": 2, "knob": "learning_rate", "value": 0.0, "source": "program"},
        {"event": "knob", "step": 3, "knob": "kd_coef", "release": True, "source": "program"},
    ]
    assert folder.touched


def test_schedules_stand_in_the_rows(trained):
    rows = trained("opd_then_rl").metrics()
    assert rows["coef/kd_coef"].tolist() == [1.0, 0.0]
    assert rows["coef/rl_coef"].tolist() == [0.0, 1.0]
    annealed = trained("kdrl_annealed").metrics()["coef/kd_coef"].tolist()
    assert annealed == pytest.approx([0.2, 0.002])
    assert not trained("kdrl_annealed").touched
