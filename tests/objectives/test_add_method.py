"""Methods of one's own: a row put into the table for this process."""

from dataclasses import replace

import pytest
from toy import close, logps_gradient, rollout

from rlkd_lab.objectives import METHODS, Method, add_method, adding, methods, token_loss
from rlkd_lab.objectives.adding import is_added
from rlkd_lab.objectives.rules import (
    LogRatio,
    RatioRule,
    reward_advantage,
    teacher_advantage,
    trrd_ratio,
)


@pytest.fixture(autouse=True)
def _tidy():
    before = dict(METHODS)
    yield
    for name in set(METHODS) - set(before):
        methods._table.pop(name)
        adding._added.discard(name)


def halved(batch, coefs, options):
    return reward_advantage(batch, coefs, options) + 0.5 * teacher_advantage(batch, coefs, options)


def mine(**fields):
    return replace(METHODS["kdrl_advantage"], **{"title": "mine", "advantage": halved, **fields})


def test_an_added_method_is_a_row_like_the_others():
    add_method("mine", mine())
    assert is_added("mine")
    assert not is_added("kdrl")
    assert METHODS["mine"].title == "mine"
    close(
        logps_gradient("mine", rollout(), {"kd_coef": 0.4}),
        logps_gradient("kdrl_advantage", rollout(), {"kd_coef": 0.2}),
    )


def test_the_table_itself_stays_closed():
    with pytest.raises(TypeError):
        METHODS["mine"] = mine()


def test_only_what_was_added_can_be_replaced():
    add_method("mine", mine())
    add_method("mine", mine(title="better"))
    assert METHODS["mine"].title == "better"
    with pytest.raises(ValueError, match="'kdrl' is a method of the kit already"):
        add_method("kdrl", mine())
    assert METHODS["kdrl"].title == "KDRL"


@pytest.mark.parametrize(
    ("name", "row", "words"),
    [
        ("my method", {}, "is no name for a method"),
        ("mine", {"coefs": {"kd_coeff": 0.1}}, "did you mean 'kd_coef'"),
        ("mine", {"coefs": {**METHODS["kdrl"].coefs, "kd_coef": -0.1}}, "lies in 0–10"),
        (
            "mine",
            {"coefs": {**METHODS["kdrl"].coefs, "clip_low": None}},
            "clip_low=off is out of range",
        ),
        (
            "mine",
            {"coefs": {"kd_coef": 0.1}},
            "needs a value for clip_low, clip_high, ratio_cap, importance_cap",
        ),
        ("mine", {"ratio": trrd_ratio}, "needs a value for trrd_alpha, trrd_gap_bound"),
        ("mine", {"ratio": "trust"}, "ratio is 'trust'; it is a RatioRule"),
        ("mine", {"surrogate": "cut"}, "surrogate is 'cut'; it is a SurrogateRule"),
        ("mine", {"options": {"aggregation": "tokens"}}, "did you mean 'token'"),
        ("mine", {"options": {"estimator": "k1"}}, "k1 cannot be a loss"),
        ("mine", {"needs": frozenset({"teachers"})}, "did you mean 'teacher'"),
        ("mine", {"schedules": {"kd_coef": "linear:20:0"}}, "lies in 0–10"),
        ("mine", {"schedules": {"trrd_alpha": "linear:1:0"}}, "unknown knob of mine"),
        ("mine", {"advantage": None}, "needs an advantage rule"),
        ("mine", {"advantage": None, "ratio": None}, "neither a ratio nor a penalty"),
    ],
)
def test_a_row_that_cannot_work_is_refused_in_words(name, row, words):
    with pytest.raises(ValueError, match=words):
        add_method(name, mine(**row))
    assert "mine" not in METHODS


def test_a_penalty_alone_is_a_method():
    add_method(
        "mine",
        Method(
            "mine",
            "here",
            "−log π_θ",
            ratio=None,
            penalty=lambda batch, log_ratio, coefs, options: -batch.logps,
        ),
    )
    close(logps_gradient("mine", rollout()), logps_gradient("sft", rollout()))
    assert token_loss("mine", rollout())[1]["loss/policy"] == 0


def test_the_code_changes_with_the_rule_its_numbers_and_the_row_alone():
    def rule(weight):
        def advantage(batch, coefs, options):
            return weight * reward_advantage(batch, coefs, options)

        return advantage

    first = add_method("mine", mine(advantage=rule(1.0)))
    assert add_method("mine", mine(advantage=rule(1.0))) == first
    changed = {
        add_method("mine", mine(advantage=rule(2.0))),
        add_method("mine", mine(advantage=halved)),
        add_method("mine", mine(advantage=reward_advantage)),
        add_method("mine", mine(advantage=rule(1.0), options={"aggregation": "sequence"})),
        add_method("mine", mine(advantage=rule(1.0), needs=METHODS["kdrl"].needs | {"divergence"})),
    }
    assert len(changed | {first}) == 6


def test_a_ratio_of_ones_own_needs_no_change_of_the_kit():
    """A ratio to the middle of old policy and teacher is TRRD's at alpha = .5 without a bound."""

    def middle(batch, log_ratio, coefs):
        to_teacher = batch.logps - batch.teacher_logps
        return LogRatio(0.5 * (log_ratio + to_teacher), None)

    row = replace(METHODS["trrd"], title="mine", ratio=RatioRule(middle))
    add_method("mine", row)
    coefs = {"trrd_alpha": 0.5, "trrd_gap_bound": None}
    close(logps_gradient("mine", rollout(), coefs), logps_gradient("trrd", rollout(), coefs))
