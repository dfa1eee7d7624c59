"""From parts to a reward: length, format, weights, and what a cut completion is worth."""

import time

import pytest

from rlkd_lab.tasks import ArithmeticTask, Example, Score, judge
from rlkd_lab.tasks.rewards import SHARED, Sample, brevity, check_weights, overlong, think_format

FORTY_FOUR = Example("49-7+4-2?", "44", 3, "x")


def lengths(*values, limit=100, correct=True):
    return [Sample("", value, limit, correct) for value in values]


def test_overlong_falls_over_the_last_fifth():
    assert overlong(lengths(1, 79, 80, 85, 90, 95, 100)) == pytest.approx(
        [0, 0, 0, -0.25, -0.5, -0.75, -1]
    )
    assert overlong(lengths(20, limit=20)) == [-1]


def test_brevity_ranks_a_group_by_length_and_praises_no_wrong_answer():
    assert brevity(lengths(10, 15, 20)) == [0.5, 0, -0.5]
    assert brevity(lengths(10, 15, 20, correct=False)) == [0, 0, -0.5]
    assert brevity(lengths(7, 7)) == [0, 0]


THOUGHTS = {
    "<think>2+2</think>4": 1,
    " <think>\n</think>\n4\n": 1,
    "<think></think>4": 1,
    "4": 0,
    "<think>4</think>": 0,
    "<think>4</think> \n": 0,
    "a<think>b</think>4": 0,
    "<think>a<think>b</think>4": 0,
    "<think>a</think>b</think>4": 0,
    "<think>a</think>b<think>c": 0,
    "</think>a<think>b": 0,
    "": 0,
}


@pytest.mark.parametrize("text", THOUGHTS)
def test_a_thought_and_then_an_answer(text):
    assert think_format([Sample(text, 1, 9, True)]) == [THOUGHTS[text]]


@pytest.mark.parametrize(
    "piece", ["<think>", "</think>", "<think></think>", " ", "<", "a", "\n", "<think>a</think> "]
)
def test_hostile_thoughts_take_no_time(piece):
    for text in (
        piece * (100_000 // len(piece)),
        "<think>" + piece * (100_000 // len(piece)),
        "<think></think>" + piece * (100_000 // len(piece)),
    ):
        began = time.perf_counter()
        think_format([Sample(text, 1, 9, True)])
        assert time.perf_counter() - began < 0.5


def test_a_group_is_judged_by_itself():
    texts, examples = ["#44", "#44", "#44", "#43"], [FORTY_FOUR] * 4
    found = judge(
        ArithmeticTask(),
        {"accuracy": 1.0, "brevity": 0.2},
        texts,
        examples,
        [True] * 4,
        [10, 20, 30, 40],
        100,
        group_size=2,
    )
    assert [verdict.parts["brevity"] for verdict in found] == [0.5, -0.5, 0.5, -0.5]
    assert [verdict.reward for verdict in found] == pytest.approx([1.1, 0.9, 1.1, -0.1])
    assert [verdict.correct for verdict in found] == [True, True, True, False]
    assert [verdict.answer for verdict in found] == ["44", "44", "44", "43"]
    assert {"format"} == {
        name for name in found[0].parts if name not in ("accuracy", "brevity")
    }  # recorded without a weight


def test_a_cut_completion_has_no_part_of_the_task_and_the_whole_penalty():
    (cut,) = judge(
        ArithmeticTask(),
        {"accuracy": 1.0, "format": 0.1, "overlong": 0.5},
        ["#44"],
        [FORTY_FOUR],
        [False],
        [24],
        24,
    )
    assert cut.parts == {"accuracy": 0.0, "format": 0.0, "overlong": -1.0}
    assert (cut.reward, cut.answer, cut.correct) == (-0.5, None, False)


def test_a_shared_part_without_a_weight_is_not_computed(monkeypatch):
    assert set(SHARED) == {"overlong", "brevity", "think_format"}
    (plain,) = judge(ArithmeticTask(), {}, ["#44"], [FORTY_FOUR], [True], [4], 24)
    assert plain.parts == {"accuracy": 1.0, "format": 1.0}
    assert plain.reward == 0


class Bare(ArithmeticTask):
    def score(self, completion, example):
        return Score({"accuracy": 1.0})


def test_an_unknown_part_is_an_error_that_names_the_known_and_a_weight_of_0_asks_for_none():
    with pytest.raises(
        ValueError,
        match=r"unknown reward part 'speed': the task arithmetic has accuracy, format; every task"
        r" can have overlong, brevity",
    ):
        check_weights(ArithmeticTask(), {"accuracy": 1.0, "speed": 1.0}, FORTY_FOUR)
    with pytest.raises(ValueError, match="unknown reward part 'format'"):
        check_weights(Bare(), {"format": 0.1}, FORTY_FOUR)
    check_weights(Bare(), {"format": 0.0}, FORTY_FOUR)
    assert (
        judge(Bare(), {"accuracy": 1.0, "format": 0.0}, [""], [FORTY_FOUR], [True], [1], 9)[
            0
        ].reward
        == 1
    )


def test_what_does_not_count_sets_no_length_for_its_group():
    group = [
        Sample("", 10, 100, True),
        Sample("", 20, 100, True),
        Sample("", 90, 100, False, counted=False),
    ]
    assert brevity(group) == [0.5, -0.5, 0.0]
    assert brevity([Sample("", 10, 100, True), Sample("", 20, 100, True, counted=False)]) == [
        0.0,
        0.0,
    ]
    assert brevity([Sample("", 10, 100, True, counted=False)] * 2) == [0.0, 0.0]
    texts, examples = ["#44", "#44", "cut"], [FORTY_FOUR] * 3
    rest = {
        "weights": {"accuracy": 1.0, "brevity": 0.2},
        "finished": [True, True, False],
        "lengths": [10, 20, 90],
        "limit": 90,
        "group_size": 3,
    }
    found = judge(
        ArithmeticTask(), texts=texts, examples=examples, leave_out=("truncated",), **rest
    )
    assert [verdict.parts["brevity"] for verdict in found] == [0.5, -0.5, 0.0]
    assert [verdict.counted for verdict in found] == [True, True, False]
    assert all(
        verdict.counted
        for verdict in judge(ArithmeticTask(), texts=texts, examples=examples, **rest)
    )
