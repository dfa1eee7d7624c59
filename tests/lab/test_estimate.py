"""What a run will cost: hours and bytes, against numbers counted by hand and against the tensors themselves."""

import inspect
from types import SimpleNamespace

import pandas as pd
import pytest

from rlkd_lab.lab import gpu_hours, memory_table
from rlkd_lab.lab.estimate import EVALUATED, adapter_bytes, cache_bytes, held_bytes, nf4_bytes, parameters_of
from rlkd_lab.models import load_policy, load_teacher, reference_of
from rlkd_lab.rollouts import DenseTwin
from rlkd_lab.training import evaluate, make_config

ROWS = pd.DataFrame(
    {
        "step": [1, 2, 3, 4],
        "time/rollout": [50.0, 6.0, 7.0, 8.0],
        "time/teacher": [9.0, 1.0, 1.0, 1.0],
        "time/update": [9.0, 2.0, 2.0, 2.0],
        "time/reference": [None] * 4,
        "step_time": [70.0, 9.5, 10.5, 31.5],
        "eval/accuracy": [None, None, None, 0.5],
    }
).set_index("step")


def test_hours_leave_the_first_step_out_and_hold_evaluations_apart():
    table = gpu_hours(ROWS, 300, evaluations=10)
    assert table["seconds"].drop("total").to_dict() == {"rollout": 7.0, "teacher": 1.0, "update": 2.0, "the rest": 0.5, "evaluation": 20.0}
    assert table.loc["total", "hours"] == pytest.approx((10.5 * 300 + 20 * 10) / 3600)
    assert table["hours"].drop("total").sum() == pytest.approx(table.loc["total", "hours"])
    assert table.loc["total", "seconds"] == pytest.approx(10.5 + 20 * 10 / 300)


def test_without_evaluations_their_time_does_not_count():
    assert gpu_hours(ROWS, 3600).loc["total", "hours"] == pytest.approx(10.5)
    assert gpu_hours(ROWS.drop(columns="eval/accuracy").iloc[:3], 3600).loc["total", "hours"] == pytest.approx(10.0)


def test_too_little_to_measure_is_said():
    with pytest.raises(ValueError, match="2 or more measured steps"):
        gpu_hours(ROWS.iloc[:1], 100)
    with pytest.raises(ValueError, match="no evaluation was measured"):
        gpu_hours(ROWS.iloc[:3], 100, evaluations=4)


def test_bytes_by_hand():
    assert nf4_bytes(1.5e9, double=False) / 2**30 == pytest.approx(0.7858, abs=1e-4)
    assert nf4_bytes(1.5e9) / 2**30 == pytest.approx(0.7207, abs=1e-4)
    assert adapter_bytes(1e6) == 16e6
    shape = SimpleNamespace(num_hidden_layers=28, num_key_value_heads=8, head_dim=128, hidden_size=1, num_attention_heads=1)
    assert cache_bytes(shape, 1) == 28 * 8 * 128 * 2 * 2
    old = SimpleNamespace(num_hidden_layers=2, hidden_size=64, num_attention_heads=4)
    assert cache_bytes(old, 10, 4) == 2 * 2 * 64 * 10 * 4


@pytest.fixture(scope="module")
def pair():
    student = load_policy("student")
    return student, load_teacher("teacher", policy=student)


def test_an_evaluation_samples_as_many_at_a_time_as_the_table_says():
    assert inspect.signature(evaluate).parameters["batch"].default == EVALUATED


def test_parameters_are_counted_by_kind(pair):
    student, teacher = pair
    for lm, million in ((student, 0.8), (teacher, 1.6)):
        counts = parameters_of(lm)
        assert counts["linear"] + counts["other"] == pytest.approx(million * 1e6, rel=0.03)
        full = parameters_of(load_teacher(lm.source, "none"))
        assert (full["linear"], full["other"], full["adapter"]) == (counts["linear"], counts["other"], 0)
    assert parameters_of(student)["adapter"] == sum(p.numel() for p in student.trainable())
    assert parameters_of(teacher)["adapter"] == 0


def test_computed_weights_are_those_that_lie_in_memory(pair):
    for lm in pair:
        counts = parameters_of(lm)
        # scales of scales are padded to whole blocks in models as small as these
        assert held_bytes(lm) == pytest.approx(nf4_bytes(counts["linear"]) + 4 * counts["other"], rel=0.02)


def test_dense_copies_are_those_that_the_twins_hold(pair):
    student, teacher = pair
    twin, reference, frozen = DenseTwin(student), DenseTwin(reference_of(student)), DenseTwin(teacher)
    own = {id(p) for lm in pair for p in lm.model.parameters()}
    held = sum(p.numel() for p in {id(p): p for p in [p for each in (twin, reference, frozen) for p in each.model.parameters()]}.values() if id(p) not in own)
    held += sum(base.numel() for _, _, base in twin.pairs)
    assert held == 3 * parameters_of(student)["linear"] + parameters_of(teacher)["linear"]


def test_the_memory_table_holds_computed_and_measured_apart(pair):
    table = memory_table(*pair, make_config("kdrl"))
    assert list(table.columns) == ["computed", "measured", "how"]
    assert (table["measured"] != "").sum() == 2
    assert table.loc["student: weights", "computed"] == table.loc["student: weights", "measured"]
    assert "evaluation: 128 completions of 192 tokens" in table.loc["key-value cache, at most", "how"]
    assert "dense copies" in table.index
    assert table["how"].str.len().max() <= 110
    alone = memory_table(pair[0], None, make_config("grpo", dense_twin=False, eval_every=0))
    assert "rollout: 48 completions of 96 tokens" in alone.loc["key-value cache, at most", "how"]
    assert not {"teacher: weights", "dense copies"} & set(alone.index)
    assert (alone["measured"] != "").sum() == 1
