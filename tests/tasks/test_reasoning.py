"""Every set of reasoning-gym: prompts, its own verifier, and what a hostile answer can do to it."""

import builtins
import itertools
import random
import time
from dataclasses import replace

import pytest

from rlkd_lab.tasks import ReasoningGymTask, Task, find_task, reasoning
from rlkd_lab.tasks.base import split_of
from rlkd_lab.tasks.reasoning import FAULTS, INSTRUCTION, SAFE, fault_of, reasoning_gym_sets

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


@pytest.mark.parametrize("name", sorted(SAFE))
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


def test_drawing_and_judging_leave_the_global_stream_alone(monkeypatch):
    monkeypatch.setattr(reasoning, "KEPT", 0)  # all are drawn anew
    find_task("chain_sum")
    state = random.getstate()
    for name in FEW:
        task = ReasoningGymTask(name)
        (example,) = task.examples(1, 3)
        task.score("<answer>7</answer>", example)
    assert random.getstate() == state


def test_a_puzzle_is_drawn_once_and_is_everybodys_own(monkeypatch):
    task, other = find_task("chain_sum"), find_task("chain_sum", {"max_terms": 3, "min_terms": 3})
    wanted, others = task.examples(8, 5), other.examples(8, 5)
    assert {one.prompt for one in wanted} != {one.prompt for one in others}
    wanted[0].meta["metadata"].clear()
    monkeypatch.setattr(ReasoningGymTask, "_new_row", lambda *_: pytest.fail("drawn again"))
    again = find_task("chain_sum").examples(8, 5)
    assert again[0].meta["metadata"] and again[1:] == wanted[1:]
    assert other.examples(8, 5) == others


# --- sets that are wrong upstream -----------------------------------------------------------------


def share_right(task, text, level, number=40):
    examples = task.examples(number, 1, "train", (level, level))
    return (
        sum(task.score(f"<answer>{text}</answer>", example).correct for example in examples)
        / number
    )


def test_a_number_that_begins_like_the_right_one_is_not_right():
    task = find_task("coin_flip")
    for example in task.examples(10, 0):
        near = f"{float(example.answer) + 5e-5:.6f}"
        assert task.score(f"<answer>{example.answer}</answer>", example).correct
        assert task.score(f"<answer>{near}</answer>", example).correct
        for text in ("0", "0.", example.answer[:3] if len(example.answer) > 5 else "0"):
            assert not task.score(f"<answer>{text}</answer>", example).correct


def test_24_is_made_of_the_numbers_of_the_question():
    task = find_task("puzzle24")
    example = next(e for e in task.examples(30, 5) if e.answer == "1*3*(4 + 4)")
    right = {
        "(4+4)*3*1": True,
        "1*3*(4 + 4)": True,
        "5*(3 + 1) + 4": False,
        "3*(2 + 2 + 4)": False,
        "(4+4)*3": False,
        "4*4+4*3/1-4": False,
    }
    assert {
        text: task.score(f"<answer>{text}</answer>", example).correct for text in right
    } == right
    other = replace(example, answer="5*5 - 5/5")
    assert task.score("<answer>5*5 - 5/5</answer>", other).correct
    assert not task.score(
        "<answer>5*5 - 1/5</answer>", replace(example, answer="5*5 - 1/5")
    ).correct  # 24.8


def test_propositional_logic_is_as_wrong_as_its_fault_says():
    task = find_task("propositional_logic")
    assert "accept any statement" in fault_of("propositional_logic")
    assert share_right(task, "(P ∨ Q)", 0) == 1
    assert share_right(task, "(P ∨ Q)", 2) > 0.6
    # a contradiction follows from nothing but a contradiction
    assert share_right(task, "(P ∧ ¬P)", 0) == 0
    assert 0.3 < share_right(task, "(P ∧ ¬P)", 3) < 0.8


def _read(sentence):
    words = sentence.rstrip(".").split()
    return ("not" if words[3] == "not" else words[0], words[1], words[-1])


def _follows(premises, conclusion):
    """By all ways to fill the eight regions of three terms; every term has members."""
    terms = list(dict.fromkeys(term for _, *pair in (*premises, conclusion) for term in pair))
    regions = list(itertools.product((False, True), repeat=3))

    def true(statement, filled):
        kind, *pair = statement
        a, b = map(terms.index, pair)
        both, alone = any(r[a] and r[b] for r in filled), any(r[a] and not r[b] for r in filled)
        return {"All": not alone, "No": not both, "Some": both, "not": alone}[kind]

    for chosen in range(1, 256):
        filled = [region for number, region in enumerate(regions) if chosen >> number & 1]
        if (
            all(any(r[i] for r in filled) for i in range(3))
            and all(true(p, filled) for p in premises)
            and not true(conclusion, filled)
        ):
            return False
    return True


@pytest.mark.parametrize(("level", "low", "high"), [(1, 0.0, 0.0), (3, 0.05, 0.2)])
def test_syllogism_is_as_wrong_as_its_fault_says(level, low, high):
    task, wrong = find_task("syllogism"), 0
    examples = task.examples(200, 2, "train", (level, level))
    for example in examples:
        said = example.meta["metadata"]
        wrong += _follows(
            [_read(said["premise1"]), _read(said["premise2"])], _read(said["conclusion"])
        ) != (example.answer == "Yes")
    assert low <= wrong / 200 <= high
    assert "one question in nine" in fault_of("syllogism")


def test_a_fault_is_told_once_when_a_run_begins(tmp_path):
    from rlkd_lab.training import make_config
    from rlkd_lab.training.folders import create

    assert set(FAULTS) <= set(reasoning_gym_sets())
    assert fault_of("chain_sum") is None
    with pytest.warns(
        UserWarning, match="reasoning-gym's syllogism has a fault of its makers: in levels 2 and 3"
    ):
        folder = create(make_config("grpo", task="syllogism"), tmp_path / "run")
    (event,) = folder.rows("events.jsonl")
    assert (event["event"], event["text"]) == ("warning", fault_of("syllogism"))
