"""Schedules: how they are written, what they give at each step, and what is refused."""

import math

import pytest

from rlkd_lab.objectives import METHODS
from rlkd_lab.objectives.methods import schedules_for
from rlkd_lab.objectives.schedules import (
    Constant,
    Cosine,
    Linear,
    Switch,
    Warmup,
    parse_schedule,
    values_of,
)
from rlkd_lab.objectives.settings import check_coef
from rlkd_lab.training import make_config


@pytest.mark.parametrize(
    ("text", "schedule"),
    [
        ("0.1", Constant(0.1)),
        (0.1, Constant(0.1)),
        (0, Constant(0.0)),
        ("off", Constant(None)),
        (None, Constant(None)),
        ("linear:0.2:0.002", Linear(0.2, 0.002)),
        ("linear:0.2:0.002:0.5", Linear(0.2, 0.002, 0.5)),
        ("switch:1:0", Switch(1.0, 0.0, 0.5)),
        ("switch:1:0:0.25", Switch(1.0, 0.0, 0.25)),
        ("cosine:1e-3:0:0.5", Cosine(1e-3, 0.0, 0.5)),
        ("warmup:0.1:0.001", Warmup(0.1, Constant(0.001))),
        ("warmup:0.1:cosine:1:0", Warmup(0.1, Cosine(1.0, 0.0))),
    ],
)
def test_parse(text, schedule):
    assert parse_schedule(text) == schedule


@pytest.mark.parametrize(
    "schedule",
    [
        Constant(None),
        Constant(0.1),
        Constant(1 / 3),
        Linear(0.2, 0.002),
        Linear(0.1 + 0.2, 1e-7, 1 / 3),
        Switch(1.0, 0.0),
        Switch(1 / 7, 2 / 7, 0.3),
        Cosine(1 / 7, 1e-9, 1 / 3),
        Warmup(1 / 3, Linear(0.1 + 0.2, 0.0, 1 / 7)),
    ],
)
def test_what_a_schedule_writes_it_reads_back(schedule):
    # a run's record holds the text, and its replay must be exact
    assert parse_schedule(str(schedule)) == schedule


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fast",
        "none",
        "linear",
        "linear:",
        "linear:0.2",
        "linear:a:b",
        "linear:0.2:0.1:0.5:1",
        "switch:1",
        "switch:1:0:0.5:1",
        "step:1:0",
        "0.1:0.2",
        "0,1",
        "warmup:0.1",
        "warmup:0.1:off",
        "warmup:0.1:warmup:0.1:1",
        "cosine:1",
    ],
)
def test_a_bad_text_is_refused_with_the_grammar(text):
    with pytest.raises(
        ValueError, match="is no schedule: write a number, 'off', 'linear:START:END"
    ):
        parse_schedule(text)


@pytest.mark.parametrize("kind", ["linear", "switch", "warmup:0.1:cosine"])
@pytest.mark.parametrize("share", ["0", "-0.5", "1.5", "nan", "inf"])
def test_a_share_outside_the_run_is_refused(kind, share):
    with pytest.raises(ValueError, match="share of the run"):
        parse_schedule(f"{kind}:1:0:{share}")


def test_constant():
    assert [Constant(0.3).at(step, 3) for step in (1, 2, 3)] == [0.3, 0.3, 0.3]
    assert Constant(None).at(1, 3) is None


def test_linear_is_the_annealing_of_kdrl():
    # β_t = max(β_init − δ·t, β_min), with t counted from 0: KDRL's 5e-3, 5e-5 and 1e-3 reach the
    # minimum at step 81 of 280
    start, delta, end, total = 5e-3, 5e-5, 1e-3, 280
    schedule = Linear(start, end, 81 / total)
    for step in (1, 2, 40, 80, 81, 82, 280):
        assert schedule.at(step, total) == pytest.approx(
            max(start - delta * (step - 1), end), rel=1e-12
        )


def test_linear_goes_up_as_well_and_stays_at_its_end():
    values = [Linear(0.0, 1.0, 0.5).at(step, 8) for step in range(1, 9)]
    assert values == pytest.approx([0, 1 / 3, 2 / 3, 1, 1, 1, 1, 1])


def test_linear_scales_with_the_length_of_the_run():
    schedule = Linear(1.0, 0.0)
    assert schedule.at(51, 101) == pytest.approx(schedule.at(501, 1001)) == pytest.approx(0.5)
    assert schedule.at(100, 100) == 0.0  # the last step is at the end
    assert schedule.at(1, 1) == 1.0


@pytest.mark.parametrize(("share", "last"), [(0.5, 5), (0.25, 2), (1.0, 10), (0.01, 0)])
def test_switch_holds_its_first_value_for_its_share_of_the_run(share, last):
    schedule = Switch(1.0, 0.0, share)
    assert [step for step in range(1, 11) if schedule.at(step, 10) == 1.0] == list(
        range(1, last + 1)
    )


def test_cosine_is_half_a_cosine_that_ends_at_its_end():
    # transformers' get_cosine_schedule_with_warmup: 0.5 (1 + cos(π t/T)), t from 0
    schedule = Cosine(2.0, 0.0)
    for step in range(1, 12):
        expected = 1 + math.cos(math.pi * (step - 1) / 10)
        assert schedule.at(step, 11) == pytest.approx(expected, abs=1e-12)
    assert Cosine(2.0, 1.0, 0.5).at(9, 10) == 1.0


@pytest.mark.parametrize("total", [1, 2, 9, 10, 100])
def test_a_warmup_rises_in_equal_steps_to_where_the_rest_starts(total):
    schedule, rising = Warmup(0.25, Linear(1.0, 0.5)), math.ceil(total / 4)
    values = [schedule.at(step, total) for step in range(1, total + 1)]
    assert values[:rising] == pytest.approx([step / rising for step in range(1, rising + 1)])
    rest = [Linear(1.0, 0.5).at(step, total - rising) for step in range(1, total - rising + 1)]
    assert values[rising:] == rest


def test_values_of_are_the_extremes():
    assert values_of(Constant(0.1)) == (0.1,)
    assert values_of(Linear(0.2, 0.002)) == (0.2, 0.002)
    assert values_of(Switch(1.0, 0.0)) == (1.0, 0.0)
    assert values_of(Cosine(1.0, 0.5)) == (1.0, 0.5)
    assert values_of(Warmup(0.1, Constant(0.5))) == (0.0, 0.5)  # temperature refuses it


def test_a_knob_that_may_not_be_near_zero_has_no_warmup():
    with pytest.raises(ValueError, match="temperature"):
        make_config("grpo", settings={"temperature": "warmup:0.1:1"})
    make_config("grpo", settings={"learning_rate": "warmup:0.1:cosine:0.001:0"})


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_schedule_within_range_for_every_knob(method):
    schedules = schedules_for(method)
    assert set(schedules) == set(METHODS[method].coefs)
    for knob, schedule in schedules.items():
        for step in (1, 5, 10):
            check_coef(knob, schedule.at(step, 10))


def test_the_callers_schedule_goes_before_the_presets_and_that_before_the_default():
    assert schedules_for("kdrl")["kd_coef"] == Constant(0.1)
    assert schedules_for("kdrl_annealed")["kd_coef"] == Linear(0.2, 0.002)
    assert schedules_for("kdrl_annealed", {"kd_coef": "0.3"})["kd_coef"] == Constant(0.3)
    assert schedules_for("trrd", {"trrd_gap_bound": "off"})["trrd_gap_bound"] == Constant(None)


def test_opd_then_rl_is_one_or_the_other():
    schedules = schedules_for("opd_then_rl")
    pairs = [
        (schedules["kd_coef"].at(step, 6), schedules["rl_coef"].at(step, 6)) for step in range(1, 7)
    ]
    assert pairs == [(1.0, 0.0)] * 3 + [(0.0, 1.0)] * 3


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("kdlr", {}, "did you mean 'kdrl'"),
        ("kdrl", {"kd_coeff": 0.1}, "did you mean 'kd_coef'"),
        ("grpo", {"kd_coef": 0.1}, "unknown knob of grpo 'kd_coef'"),
        ("sft", {"kd_coef": 0.1}, "unknown knob of sft"),
        ("kdrl", {"kd_coef": "linear:0.2:-1"}, "kd_coef=-1 is out of range"),
        ("kdrl", {"kd_coef": "switch:0.1:11"}, "kd_coef=11 is out of range"),
        ("kdrl", {"kd_coef": "nan"}, "kd_coef=nan is out of range"),
        ("kdrl", {"kd_coef": "off"}, "kd_coef=off is out of range"),
    ],
)
def test_a_bad_schedule_is_refused_before_the_run(method, given, message):
    with pytest.raises(ValueError, match=message):
        schedules_for(method, given)
