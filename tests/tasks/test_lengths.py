"""Prompts that fit: rows are left out and counted, tasks that make their prompts draw others."""

import json
import random
import warnings

import pytest

from rlkd_lab.tasks import ArithmeticTask, Example, KnightsTask, Score, find_task
from rlkd_lab.tasks.lengths import Limit, fitting
from rlkd_lab.tasks.questions import TEMPLATE
from rlkd_lab.tasks.verifier import GuardedTask


def limit(tokens, most=None, completion=10):
    """A model that reads a token a character."""
    return Limit(
        lambda prompts: [len(prompt) for prompt in prompts],
        "a model",
        tokens + completion,
        completion,
        most,
    )


class Words:
    """Words of 1 to 20 letters."""

    name, train_difficulty, ood_difficulty = "words", (1, 20), (15, 20)

    def __init__(self):
        self.calls = 0

    def examples(self, n, seed, split="train", difficulty=None):
        self.calls += 1
        rng = random.Random(f"{seed} {split}")
        low, high = difficulty or self.train_difficulty
        words = ["x" * rng.randint(low, high) + f"{rng.random():.9f}"[2:] for _ in range(n)]
        return [Example(word[:-9], "", len(word) - 9, word) for word in words]

    def score(self, completion, example):
        return Score({"accuracy": 0.0})


class Listed(Words):
    """The first prompts of one list, whatever the seed: half of them are long."""

    def examples(self, n, seed, split="train", difficulty=None):
        return [Example("x" * (20 if i % 2 == 0 else 5), "", 0, str(i)) for i in range(n)]


@pytest.mark.parametrize("task", [ArithmeticTask(), KnightsTask()])
def test_where_all_prompts_fit_the_same_ones_are_drawn(task):
    guarded = GuardedTask(task)
    guarded.keep_to([limit(400)], "drop", task.examples(8, 0), [limit(300)])
    for arguments in ((6, 3), (128, 20_000, "validation"), (5, 1, "test", task.ood_difficulty)):
        assert guarded.examples(*arguments) == task.examples(*arguments)


def test_prompts_that_are_too_long_are_drawn_again_in_their_place():
    task = Words()
    bare = task.examples(64, 7)
    found = fitting(task, [limit(12)], 64, 7, "train", None)
    assert all(len(example.prompt) <= 12 for example in found)
    assert len(found) == 64
    for before, after in zip(bare, found, strict=True):
        assert after == before or len(before.prompt) > 12
    assert len({example.id for example in found}) == 64
    assert fitting(Words(), [limit(12)], 64, 7, "train", None) == found
    other = fitting(Words(), [limit(12)], 64, 8, "train", None)
    assert not {example.id for example in found} & {example.id for example in other}


def test_a_task_that_looks_at_n_alone_gives_others_too():
    found = fitting(Listed(), [limit(12)], 4, 0, "train", None)
    assert [len(example.prompt) for example in found] == [5] * 4


@pytest.mark.parametrize("task", [Words(), Listed()])
def test_the_search_for_a_prompt_that_fits_ends(task):
    task.calls = 0
    with pytest.raises(
        ValueError,
        match=r"words: none of \d\d\d train prompts drawn in a row fits: prompts of \d+ tokens"
        r" and completions of 10 do not fit",
    ):
        fitting(task, [limit(0)], 4, 0, "train", None)
    assert task.calls < 20


def test_a_large_share_is_told_and_nearly_all_is_an_error():
    task = Words()
    drawn = task.examples(64, 0)

    def kept(tokens, long_prompts="drop", most=None):
        return GuardedTask(task).keep_to([limit(tokens, most)], long_prompts, drawn)

    assert kept(20).told is None
    assert kept(12).longest <= 12
    long = sum(len(example.prompt) > 12 for example in drawn)
    assert kept(12).told.startswith(f"words: {long} of 64 ")
    assert (
        "prompts drawn are above 12 tokens (the context of 22 tokens of a model, less 10 for"
        " the completion), longest 20; others are drawn" in kept(12).told
    )
    assert "above 12 tokens (max_prompt_tokens)" in kept(500, most=12).told
    with pytest.raises(ValueError, match=r"words: only \d of 64 prompts fit"):
        kept(1)
    with pytest.raises(
        ValueError,
        match="words: prompts of 1 tokens and completions of 10 do not fit the context of 10"
        " tokens of a model; lower max_new",
    ):
        kept(0)
    with pytest.raises(ValueError, match="--set long_prompts=drop draws others"):
        kept(12, "refuse")


def test_out_of_distribution_has_a_limit_of_its_own():
    guarded = GuardedTask(Words())
    guarded.keep_to([limit(12)], "drop", guarded.examples(32, 0), [limit(17)])
    lengths = {
        difficulty: {len(example.prompt) for example in guarded.examples(64, 0, "test", difficulty)}
        for difficulty in (None, (15, 20))
    }
    assert max(lengths[None]) == 12
    assert lengths[15, 20] == {15, 16, 17}


# --- rows -----------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    rows = [
        {
            "question": f"{i} + 1?" + "." * (300 if i == 16 else 200 if i in (5, 8) else 0),
            "answer": str(i + 1),
        }
        for i in range(40)
    ]
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


EXTRA = len(TEMPLATE) - len("{question}") + len("16 + 1?")


def test_rows_that_are_too_long_are_left_out_of_every_split_and_counted(file):
    task = GuardedTask(find_task(file))
    before = {split: len(task.task.rows(split)) for split in ("train", "validation", "test")}
    found = task.keep_to([limit(EXTRA + 100)], "drop", [])
    assert f": 3 of 40 rows have prompts above {EXTRA + 100} tokens" in found.told
    assert found.told.endswith(f"and are left out, longest {EXTRA + 300} (sums.jsonl, row 17)")
    assert found.longest == EXTRA
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few rows are asked again
        for split, count in before.items():
            assert {len(example.prompt) <= EXTRA for example in task.examples(count, 0, split)} == {
                True
            }
    assert sum(len(task.task.rows(split)) for split in before) == 37
    assert task.keep_to([limit(EXTRA + 100)], "refuse", []).told is None


def test_rows_that_are_too_long_can_be_refused_and_must_not_be_all(file):
    with pytest.raises(
        ValueError,
        match=rf"3 of 40 rows .*longest {EXTRA + 300} \(sums\.jsonl, row 17\): shorten or remove"
        r" them, or --set long_prompts=drop",
    ):
        GuardedTask(find_task(file)).keep_to([limit(EXTRA)], "refuse", [])
    with pytest.raises(
        ValueError,
        match=rf"no row fits: even prompts of {EXTRA - 1} tokens are above max_prompt_tokens=5",
    ):
        GuardedTask(find_task(file)).keep_to([limit(1000, most=5)], "drop", [])
