"""Tasks: where prompts come from, what a verifier says, and that nothing a model writes can
make it raise or run.
"""

import ast
import builtins
import operator
import os
import random
import subprocess
import sys
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rlkd_lab.models import load_policy
from rlkd_lab.rollouts import Sampling, sample
from rlkd_lab.tasks import (
    ArithmeticTask,
    Example,
    ReasoningGymTask,
    Score,
    Task,
    find_task,
    reasoning,
)
from rlkd_lab.tasks.arithmetic import steps, worked
from rlkd_lab.tasks.base import SPLITS, seeded, split_of
from rlkd_lab.tasks.fields import value_of
from rlkd_lab.tasks.registry import EMBEDDED

EVERY_TASK = pytest.mark.parametrize("name", ["arithmetic", "knights", "knights_knaves"])


KNIGHTS = ReasoningGymTask("knights_knaves")


# --- the protocol ---------------------------------------------------------------------------------


@EVERY_TASK
def test_a_task_keeps_the_protocol(name):
    task = find_task(name)
    assert isinstance(task, Task)
    assert task.name == name
    # out of distribution is harder than anything trained on
    assert task.train_difficulty[1] < task.ood_difficulty[0] <= task.ood_difficulty[1]


@EVERY_TASK
def test_the_same_arguments_give_the_same_examples_and_others_give_others(name, monkeypatch):
    monkeypatch.setattr(reasoning, "KEPT", 0)  # all are drawn anew
    task = find_task(name)
    task.examples(
        1, 0
    )  # the first import of reasoning-gym draws from the global stream; making puzzles must not
    random.seed(1)
    state = random.getstate()
    first = task.examples(6, 0)
    assert random.getstate() == state
    random.seed(2)
    assert find_task(name).examples(6, 0) == first
    assert task.examples(4, 0) == first[:4]
    for other in (
        task.examples(6, 1),
        task.examples(6, 0, "test"),
        task.examples(6, 0, difficulty=task.ood_difficulty),
    ):
        assert other != first


@EVERY_TASK
def test_examples_are_the_same_in_another_process(name):
    # a hash with a salt of the process would pass all the rest
    code = (
        "from rlkd_lab.tasks import find_task; print([e.id for e in"
        f" find_task({name!r}).examples(3, 5)])"
    )
    environment = os.environ | {"PYTHONHASHSEED": "77"}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    ).stdout
    assert ast.literal_eval(found) == [e.id for e in find_task(name).examples(3, 5)]


@pytest.mark.parametrize(
    ("name", "n"), [("arithmetic", 3000), ("knights", 400), ("knights_knaves", 40)]
)
def test_splits_share_no_prompt(name, n):
    task = find_task(name)
    prompts = {
        split: {
            e.prompt
            for seed in range(2)
            for e in task.examples(n // 2, seed, split, task.train_difficulty)
        }
        for split in SPLITS
    }
    prompts["ood"] = {e.prompt for e in task.examples(n // 3, 0, "test", task.ood_difficulty)}
    names = list(prompts)
    for i, one in enumerate(names):
        assert prompts[one]
        assert not any(prompts[one] & prompts[other] for other in names[i + 1 :])
    for split in SPLITS:
        assert {split_of(prompt) for prompt in prompts[split]} == {split}


def test_splits_have_their_shares():
    shares = [split_of(str(i)) for i in range(20_000)]
    assert [round(shares.count(split) / 20_000, 2) for split in SPLITS] == pytest.approx(
        [0.8, 0.1, 0.1], abs=0.011
    )


@EVERY_TASK
@pytest.mark.parametrize("which", ["train_difficulty", "ood_difficulty"])
def test_every_difficulty_of_a_range_occurs_and_no_other(name, which):
    task = find_task(name)
    low, high = getattr(task, which)
    found = {e.difficulty for e in task.examples(60, 0, "train", (low, high))}
    assert found == set(range(low, high + 1))
    assert {e.difficulty for e in task.examples(3, 0, "train", (low, low))} == {low}


@EVERY_TASK
def test_the_default_difficulty_is_the_training_range(name):
    task = find_task(name)
    assert task.examples(5, 0) == task.examples(5, 0, "train", task.train_difficulty)


@EVERY_TASK
@pytest.mark.parametrize("bad", [(0, 3), (5, 4), (2, 99)])
def test_a_difficulty_out_of_range_is_an_error_in_words(name, bad):
    with pytest.raises(ValueError, match=f"difficulty is a range of .*got {bad[0]}–{bad[1]}"):
        find_task(name).examples(1, 0, "train", bad)


@EVERY_TASK
def test_an_unknown_split_is_an_error_and_no_endless_loop(name, monkeypatch):
    tries = iter(range(50))

    def split_of_a_patient_man(text):
        assert next(tries, None) is not None, (
            "no prompt is ever in this split, and the search goes on for ever"
        )
        return split_of(text)

    monkeypatch.setattr(f"{type(find_task(name)).__module__}.split_of", split_of_a_patient_man)
    with pytest.raises(ValueError, match=r"split.*'dev'"):
        find_task(name).examples(1, 0, "dev")


@EVERY_TASK
def test_no_examples_are_no_examples(name):
    assert find_task(name).examples(0, 0) == []


@EVERY_TASK
def test_a_right_answer_has_all_its_parts(name):
    problem = find_task(name).examples(1, 0)[0]
    right = f"#{problem.answer}" if name in EMBEDDED else f"<answer>{problem.answer}</answer>"
    score = find_task(name).score(right, problem)
    assert score.parts == dict.fromkeys(score.parts, 1.0)
    assert {"format", "accuracy"} <= set(score.parts)
    assert score.correct
    assert not Score({"format": 1.0}).correct
    assert score.answer is not None
    assert score.answer.lower() == problem.answer.lower()
    assert find_task(name).score("", problem).answer is None


def test_streams_of_different_labels_differ():
    assert seeded("a", 1).random() == seeded("a", 1).random()
    assert (
        len({seeded(*parts).random() for parts in [("a", 1), ("a", "1"), ("a1",), ("a", 1, 0)]})
        == 4
    )


# --- arithmetic -----------------------------------------------------------------------------------


def evaluate(prompt):
    """The value of a chain by Python's own grammar, and all values on the way."""
    values = []

    def visit(node):
        if isinstance(node, ast.Constant):
            return node.value
        left, right = visit(node.left), visit(node.right)
        values.append({ast.Add: operator.add, ast.Sub: operator.sub}[type(node.op)](left, right))
        return values[-1]

    return visit(ast.parse(prompt.removesuffix("?"), mode="eval").body), values


@pytest.mark.parametrize("difficulty", [(1, 1), (2, 5), (6, 8), (20, 20)])
def test_answers_are_right_and_every_value_is_between_0_and_99(difficulty):
    for problem in ArithmeticTask().examples(400, 0, "train", difficulty):
        value, between = evaluate(problem.prompt)
        assert problem.answer == str(value)
        assert all(0 <= v <= 99 for v in between)
        assert problem.difficulty == len(between)
        assert problem.id == problem.prompt


@pytest.mark.parametrize("style", ["direct", "steps", "checked"])
def test_worked_completions_are_right_and_well_formed(style):
    task = ArithmeticTask()
    for problem in task.examples(100, 1) + task.examples(50, 1, difficulty=task.ood_difficulty):
        text = worked(problem, style)
        assert task.score(text, problem).parts == {"format": 1.0, "accuracy": 1.0}
        for line in text.partition("#")[0].replace("!", "").split(";")[:-1]:
            left, _, right = line.partition("=")
            assert evaluate(left)[0] == int(right)


def test_a_teacher_may_read_the_steps_without_the_answer():
    task = ArithmeticTask()
    for problem in task.examples(20, 1):
        assert value_of(task, problem, "steps") + f"#{problem.answer}" == task.trace(problem)


def test_a_wrong_step_is_followed_through():
    lines, value = steps("49-7+4-2?", wrong_at=1, error=5)
    assert lines == ["49-7=42;", "42+4=51;", "51-2=49;"]
    assert value == 49
    assert steps("9-7+4?", wrong_at=0, error=-10)[0][0] == "9-7=0;"


FORTY_FOUR = Example("49-7+4-2?", "44", 3, "x")
TABLE = [
    ("#44", 1, 1),
    ("49-7=42;42+4=46;46-2=44;#44", 1, 1),
    ("49-7=42;!49-7=42;#44", 1, 1),
    # wrong steps and a right answer: the steps are not judged
    ("1+1=3;#44", 1, 1),
    ("#45", 1, 0),
    ("#4", 1, 0),
    ("#440", 1, 0),
    ("#-44", 1, 0),
    ("#044", 1, 1),
    ("so it is #44", 0, 1),
    ("#44 ", 0, 0),
    ("#44\n", 0, 0),
    ("#44.", 0, 0),
    ("#44#44", 0, 1),
    # the last answer counts
    ("#44#45", 0, 0),
    ("#45;#44", 0, 1),
    ("44", 0, 0),
    ("# 44", 0, 0),
    ("#+44", 0, 0),
    ("#4 4", 0, 0),
    ("#40+4", 0, 0),
    ("#0x2c", 0, 0),
    ("#44e0", 0, 0),
    ("", 0, 0),
    ("#", 0, 0),
    ("#-", 0, 0),
    ("\x00#44", 0, 1),
    ("#44\x00", 0, 0),
    ("#" + "0" * 5000 + "44", 0, 0),
    ("#" + "9" * 100_000, 0, 0),
    ("49-7=42;42+4=46;46-2=44;44", 0, 0),
    ("49-7=42;#44;", 0, 0),
    ("!49-7=42;#44", 0, 1),
    # digits of another script are no tokens of ours and no answer
    ("#٤٤", 0, 0),
    ("#４４", 0, 0),
    ("#²", 0, 0),
]


@pytest.mark.parametrize(
    ("completion", "form", "accuracy"), TABLE, ids=lambda value: repr(value)[:24]
)
def test_arithmetic_scores(completion, form, accuracy):
    score = ArithmeticTask().score(completion, FORTY_FOUR)
    assert score.parts == {"format": form, "accuracy": accuracy}
    assert (score.answer == "44") == bool(accuracy)


def test_zero_and_nothing_are_told_apart():
    zero = Example("10-9-1?", "0", 2, "x")
    assert [
        ArithmeticTask().score(text, zero).correct for text in ("#0", "#", "", "#00", "#1")
    ] == [True, False, False, True, False]


@pytest.mark.parametrize(
    "text",
    [
        "1+1=2;" * 20_000 + "x",
        "1+1=2;" * 9_000 + "!" + "1+1=2;" * 9_000,
        "#" * 99_999,
        "1" * 99_999,
        "<answer>" * 5_000,
    ],
)
def test_a_long_completion_is_judged_in_no_time(text):
    # a pattern that backtracks, or starts anew at every opening tag, needs seconds, and a group of
    # such completions minutes
    began = time.perf_counter()
    ArithmeticTask().score(text, FORTY_FOUR)
    KNIGHTS.score(text, Example("", "A is a knight.", 1, "", {"answer": "A is a knight."}))
    assert time.perf_counter() - began < 1


# --- knights and knaves ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def puzzle():
    return KNIGHTS.examples(1, 0, "train", (3, 3))[0]


def swapped(puzzle, people):
    """The answer with the first ``people`` told wrongly."""
    terms = puzzle.meta["metadata"]["knight_knave_terms"]
    knight, knave = str(terms["knight"]), str(terms["knave"])
    parts = puzzle.answer.rstrip(".").replace(", and ", ", ").split(", ")
    assert len(parts) == 3
    turned = [
        part.replace(knight, "\0").replace(knave, knight).replace("\0", knave) for part in parts
    ]
    return ", ".join(turned[:people] + parts[people:])


def test_reasoning_gyms_own_answer_is_right_for_every_puzzle():
    task = KNIGHTS
    for problem in task.examples(20, 3) + task.examples(6, 3, "test", task.ood_difficulty):
        assert task.score(f"Let us see. <answer>{problem.answer}</answer>", problem).parts == {
            "format": 1.0,
            "accuracy": 1.0,
            "credit": 1.0,
        }
        assert problem.prompt.endswith("between <answer> and </answer>.\n")


def test_knights_and_knaves_scores(puzzle):
    right = puzzle.answer
    table = [
        (f"<answer>{right}</answer>", 1, 1),
        (f"<answer>\n {right.upper()} \n</answer>", 1, 1),
        (f"<answer>{swapped(puzzle, 0)}</answer>", 1, 1),
        (f"<answer>{swapped(puzzle, 1)}</answer>", 1, 0),
        (f"<answer>{swapped(puzzle, 3)}</answer>", 1, 0),
        # some of the people
        (f"<answer>{right.split(',')[0]}</answer>", 1, 0),
        # each person both ways
        (f"<answer>{right} {swapped(puzzle, 3)}</answer>", 1, 0),
        (f"<answer>{swapped(puzzle, 3)}</answer> or <answer>{right}</answer>", 0, 1),
        (f"<answer>{right}</answer> or <answer>{swapped(puzzle, 3)}</answer>", 0, 0),
        (right, 0, 0),
        (f"<answer>{right}", 0, 0),
        (f"{right}</answer>", 0, 0),
        ("<answer></answer>", 1, 0),
        ("<answer>\x00</answer>", 1, 0),
        ("", 0, 0),
        ("<answer>__import__('os').getcwd()</answer>", 1, 0),
    ]
    for completion, form, accuracy in table:
        parts = KNIGHTS.score(completion, puzzle).parts
        assert (parts["format"], parts["accuracy"]) == (form, accuracy), completion
        assert accuracy <= parts["credit"] <= 1


def test_a_puzzle_that_does_not_fit_an_embedded_student_is_an_error_in_words(puzzle):
    import torch

    student = load_policy("student", "none")
    longest = max(KNIGHTS.examples(8, 0, "train", (4, 4)), key=lambda e: len(e.prompt))
    assert len(longest.prompt) + 96 > student.context
    with pytest.raises(
        ValueError, match=r"prompt of \d{3,} tokens.* 96 .*context of 512 tokens.*student"
    ):
        sample(
            student,
            [longest.prompt],
            2,
            Sampling(max_new_tokens=96),
            torch.Generator().manual_seed(0),
        )


# --- whatever a model writes ----------------------------------------------------------------------

PIECES = st.sampled_from(
    [
        "#",
        "44",
        "-",
        "\x00",
        "9" * 60,
        "<answer>",
        "</answer>",
        "49-7=42;",
        "!",
        "\n",
        " is a knight",
        " and ",
        "\ud800",
        "٤",
        "((" * 50,
        "%s",
        "{0}",
        "\\d",
    ]
)
JUNK = st.one_of(
    st.text(max_size=80),
    st.lists(PIECES, max_size=14).map("".join),
    st.text(alphabet="0123456789#-+=;!", max_size=40),
)


@settings(max_examples=150, deadline=None)
@given(JUNK)
@example("#" + "9" * 5000)
@example("<answer>" * 40 + "</answer>" * 40)
@example("\x00" * 100)
@example("<answer>" + "9" * 5000 + "</answer>")
def test_a_verifier_never_raises(text):
    for task, problem in (
        (ArithmeticTask(), FORTY_FOUR),
        (
            KNIGHTS,
            Example(
                "", "Ann is a knight, and Bob is a knave.", 2, "", {"answer": "Ann is a knight."}
            ),
        ),
    ):
        score = task.score(text, problem)
        assert {"format", "accuracy"} <= set(score.parts) <= {"format", "accuracy", "credit"}
        assert all(score.parts[name] in (0.0, 1.0) for name in ("format", "accuracy"))
        assert 0 <= score.parts.get("credit", 0) <= 1


def test_a_verifier_never_evaluates(monkeypatch, tmp_path, puzzle):
    mark = tmp_path / "ran"
    calls = []
    KNIGHTS.score(
        "<answer>warm</answer>", puzzle
    )  # imports reasoning-gym, which may compile what it likes
    code = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    with monkeypatch.context() as patch:
        for name in ("eval", "exec"):
            patch.setattr(builtins, name, lambda *_, name=name: calls.append(name))
        for text in (
            code,
            f"#{code}",
            f"<answer>{code}</answer>",
            "#(lambda: 44)()",
            "<answer>eval('1')</answer>",
        ):
            assert not ArithmeticTask().score(text, FORTY_FOUR).correct
            assert not KNIGHTS.score(text, puzzle).correct
    assert calls == []
    assert not mark.exists()
