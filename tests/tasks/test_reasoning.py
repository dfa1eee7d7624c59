"""Every set of reasoning-gym: prompts, its own verifier, and what a hostile answer can do to it."""

import builtins
import random
import time

import pytest

from rlkd_lab.tasks import ReasoningGymTask, Task, find_task
from rlkd_lab.tasks.base import split_of
from rlkd_lab.tasks.reasoning import INSTRUCTION, SAFE, reasoning_gym_sets

FEW = ("chain_sum", "count_bits", "n_queens", "prime_factorization", "gsm_symbolic")
NO_REFERENCE = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
"""Sets with many right answers that give none."""
UNSURE = {
    "jugs": "its own plan fails its own simulation for some puzzles",
    "intermediate_integration": "some references are unevaluated Integral(…), which is no answer:"
    " it would score for every question",
}
HOSTILE = [
    "",
    "\x00",
    "xyzzy",
    "9" * 3000,
    "9**9**9**9",
    "(((9**99)**99)**99)**99",
    "__import__('os').system('true')",
    "[0 for a in [1] for b in [2]]",
    "1e999999999",
    "(" * 1500,
    "[" * 1500,
    "{" * 1500,
    "-" * 1900 + "1",
    "x " * 900,
    "1 " * 900,
    "U" * 1900,
    "R U " * 400,
    '{"a": ' * 300,
    "\ud800",
    "+".join(["(x+y)**9"] * 90),
    "exec('1')",
    "lambda: 0",
    "1,2;3|4\n" * 200,
    # moves that are made so often, or for ever; formulas that are read in quadratic time
    "nan",
    "nan+nanj",
    "-Infinity",
    "R99999999",
    "R999 " * 400,
    "R٩٩٩٩٩٩٩٩",
    "A+999999999",
    "¬" * 1900 + "P",
    "P∧" * 900 + "P",
]


def check(name):
    task = find_task(name)
    assert isinstance(task, Task)
    (example,) = task.examples(1, 0)
    assert split_of(example.id) == "train"
    if name in NO_REFERENCE:
        assert example.answer == ""
    elif name not in UNSURE:
        score = task.score(f"Well. <answer>{example.answer}</answer>", example)
        assert score.parts == {"accuracy": 1.0, "credit": 1.0, "format": 1.0}, example.answer
    for text in HOSTILE:
        began = time.perf_counter()
        score = task.score(f"<answer>{text}</answer>", example)
        assert time.perf_counter() - began < 2, text[:30]
        assert not score.correct, text[:30]
        assert 0 <= score.parts["credit"] < 1
    assert task.score(example.answer, example).parts == {
        "accuracy": 0.0,
        "credit": 0.0,
        "format": 0.0,
    }


@pytest.mark.parametrize("name", FEW)
def test_a_set_gives_prompts_and_accepts_its_own_answer_and_no_junk(name):
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in reasoning_gym_sets() if name not in FEW])
def test_every_set_does(name):
    check(name)


def test_levels_are_for_training_and_beyond_it():
    task = find_task("chain_sum")
    assert (task.train_difficulty, task.ood_difficulty) == ((0, 1), (2, 3))
    assert {e.difficulty for e in task.examples(20, 0)} == {0, 1}
    longest = max(e.prompt.count("+") + e.prompt.count(" - ") for e in task.examples(20, 0))
    assert (
        min(
            e.prompt.count("+") + e.prompt.count(" - ")
            for e in task.examples(20, 0, difficulty=(3, 3))
        )
        >= longest - 1
    )
    with pytest.raises(ValueError, match="within 0–3; got 0–9"):
        task.examples(1, 0, difficulty=(0, 9))
    # no curriculum, and one that does not validate
    for name in ("acre", "knight_swap"):
        assert (find_task(name).train_difficulty, find_task(name).ood_difficulty) == ((0, 0), None)


def test_settings_win_over_the_curriculum():
    task = find_task(
        "chain_sum", {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    )
    assert all(
        len(example.meta["metadata"]["expression"].split()) == 3 for example in task.examples(8, 0)
    )
    with pytest.raises(
        ValueError, match=r"unknown setting task\.min_term of chain_sum: did you mean 'min_terms'"
    ):
        find_task("chain_sum", {"min_term": 2})
    with pytest.raises(ValueError, match="reasoning-gym's chain_sum refuses"):
        find_task("chain_sum", {"min_terms": -2})
    with pytest.raises(ValueError, match=r"task\.seed is not for you"):
        find_task("chain_sum", {"seed": 2})


def test_another_template_moves_no_prompt_to_another_split():
    plain, other = (
        find_task("count_bits"),
        find_task("count_bits", template="Q: {question} {} \\boxed{x}"),
    )
    for split in ("train", "validation"):
        one, two = plain.examples(6, 1, split), other.examples(6, 1, split)
        assert [e.id for e in one] == [e.id for e in two]
        assert [f"Q: {e.prompt.removesuffix(INSTRUCTION)} {{}} \\boxed{{x}}" for e in one] == [
            e.prompt for e in two
        ]


def test_too_few_different_questions_are_an_error_and_no_endless_loop():
    task = find_task("letter_counting")
    task._row = lambda level, seed: {"question": "always this", "answer": "1", "metadata": {}}
    other = "validation" if split_of("always this" + INSTRUCTION) == "train" else "train"
    with pytest.raises(ValueError, match=rf"letter_counting gave no {other} question in 300 draws"):
        task.examples(1, 0, other)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name == "countdown" else name
        for name in sorted(SAFE)
    ],
)
def test_no_answer_is_evaluated(name, monkeypatch):
    task = find_task(name)
    (example,) = task.examples(1, 0)
    task.score("<answer>1</answer>", example)
    ran = []
    monkeypatch.setattr(builtins, "marker", lambda *_: ran.append(1), raising=False)
    for text in (
        "marker()",
        "[marker()]",
        "(marker())",
        "x*marker(1)",
        "sin(marker(1))",
        "X**marker(2)",
        "1+marker ( 1 )",
    ):
        assert not task.score(f"<answer>{text}</answer>", example).correct
    assert ran == []


def test_a_verifier_that_takes_any_text_is_not_used():
    task = find_task("game_of_life_halting")
    (example,) = task.examples(1, 0)
    other = {"True": "False", "False": "True"}[example.answer]
    assert [
        task.score(f"<answer>{text}</answer>", example).correct for text in (example.answer, other)
    ] == [True, False]


@pytest.mark.slow
def test_drawing_and_judging_leave_the_global_stream_alone():
    find_task("chain_sum")
    state = random.getstate()
    for name in FEW:
        task = ReasoningGymTask(name)
        (example,) = task.examples(1, 3)
        task.score("<answer>7</answer>", example)
    assert random.getstate() == state
