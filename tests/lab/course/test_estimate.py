"""What a run will cost: hours and bytes, against numbers counted by hand and against the
tensors themselves.
"""

import pandas as pd
import pytest

from rlkd_lab.lab import gpu_hours, memory_table
from rlkd_lab.lab.course.estimate import HOW, held_bytes, size
from rlkd_lab.models import load_policy, load_teacher, reference_of
from rlkd_lab.models.dense_copy import DenseCopy
from rlkd_lab.training import make_config
from rlkd_lab.training.before_loading import asked_prompts
from rlkd_lab.training.model_shape import Shape
from rlkd_lab.training.plan import plan

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
    assert table["seconds"].drop("total").to_dict() == {
        "rollout": 7.0,
        "teacher": 1.0,
        "update": 2.0,
        "the rest": 0.5,
        "evaluation": 20.0,
    }
    assert table.loc["total", "hours"] == pytest.approx((10.5 * 300 + 20 * 10) / 3600)
    assert table["hours"].drop("total").sum() == pytest.approx(table.loc["total", "hours"])
    assert table.loc["total", "seconds"] == pytest.approx(10.5 + 20 * 10 / 300)


def test_without_evaluations_their_time_does_not_count():
    assert gpu_hours(ROWS, 3600).loc["total", "hours"] == pytest.approx(10.5)
    assert gpu_hours(ROWS.drop(columns="eval/accuracy").iloc[:3], 3600).loc[
        "total", "hours"
    ] == pytest.approx(10.0)


def test_too_little_to_measure_is_said():
    with pytest.raises(ValueError, match="2 or more measured steps"):
        gpu_hours(ROWS.iloc[:1], 100)
    with pytest.raises(ValueError, match="no evaluation was measured"):
        gpu_hours(ROWS.iloc[:3], 100, evaluations=4)


@pytest.fixture(scope="module")
def pair():
    student = load_policy("student")
    return student, load_teacher("teacher", policy=student)


def test_predicted_weights_are_those_that_lie_in_memory(pair):
    for lm in pair:
        # scales of scales are padded to whole blocks in models as small as these
        assert held_bytes(lm) == pytest.approx(Shape.of(lm.source).weights("nf4", 4), rel=0.02)


def test_dense_copies_are_those_that_the_twins_hold(pair):
    student, teacher = pair
    dense, reference, frozen = (
        DenseCopy(student),
        DenseCopy(reference_of(student)),
        DenseCopy(teacher),
    )
    own = {id(p) for lm in pair for p in lm.model.parameters()}
    held = sum(
        p.numel()
        for p in {
            id(p): p
            for p in [p for each in (dense, reference, frozen) for p in each.model.parameters()]
        }.values()
        if id(p) not in own
    )
    held += sum(base.numel() for _, base in dense.pairs)
    assert 4 * held == plan(make_config("kdrl"), False).held["dense copies"]


def test_the_memory_table_holds_predicted_and_measured_apart(pair):
    config = make_config("kdrl")
    table = memory_table(*pair, config)
    assert list(table.columns) == ["predicted", "measured", "how"]
    assert set(table.index[table["measured"] != ""]) == {"student", "teacher"}
    assert table.loc["peak", "predicted"] == size(plan(config, False).peak)
    assert {"dense copies", "sampling: cache", "updating: activations"} <= set(table.index)
    assert table["how"].str.len().max() <= 110
    away = memory_table(*pair, make_config("kdrl", teacher_home="host"))
    assert all(away["how"].str.len() > 0)
    assert "updating: activations, or the teacher and fewer" in away.index
    alone = memory_table(pair[0], None, make_config("grpo", teacher=None, dense_copy=False))
    assert "dense copies" not in alone.index
    assert set(alone.index[alone["measured"] != ""]) == {"student"}
    assert set(HOW) >= {name.rpartition(": ")[2] for name in table.index} - {"peak"}


def test_an_evaluation_counts_where_it_samples_more_than_a_rollout():
    short, config = make_config("grpo", eval_every=0), make_config("grpo")
    longest = asked_prompts(config).longest
    one = (
        Shape.of("student").cache_of_a_token(4) * 5 // 4
    )  # four layers, and one more while rows leave
    assert plan(short, False).sampling["cache"] == one * 48 * (longest + 96)
    assert plan(config, False).sampling["cache"] == one * 128 * (longest + 192)


def test_teacher_traces_count_where_they_need_more():
    longest, teacher = (
        asked_prompts(make_config("sft")).longest,
        Shape.of("teacher").cache_of_a_token(4) * 5 // 4,
    )
    assert plan(make_config("sft", eval_every=0), False).sampling["cache"] == teacher * 128 * (
        longest + 96
    )
    assert (
        plan(make_config("sft", eval_every=0, traces=8), False).sampling["cache"]
        == plan(make_config("grpo", eval_every=0), False).sampling["cache"]
    )
    assert plan(make_config("sft", eval_every=0, sample_at_once=8), False).sampling[
        "cache"
    ] == teacher * 8 * (longest + 96)
