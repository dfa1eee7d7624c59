"""Whatever a model writes: every verifier and every part of the reward gets it, and none
raises, waits, fills the memory or runs it.
"""

import time
import tracemalloc

import pytest

from rlkd_lab.tasks import ArithmeticTask, Example, KnightsTask, QuestionTask, judge
from rlkd_lab.tasks.answers import final_answer, grade
from rlkd_lab.tasks.rewards import SHARED, Sample
from rlkd_lab.tasks.verifier import GuardedTask, guarded

LARGE = 1_000_000
CANARY = "CANARY"
"""Replaced by a path at which no file must appear."""
HOSTILE = {
    "empty": "",
    "megabyte of one letter": "a" * LARGE,
    "megabyte of spaces": " " * LARGE,
    "megabyte of lines": "\n" * LARGE,
    "number of a million digits": "9" * LARGE,
    "answer of a million digits": "#" + "9" * LARGE,
    "boxed number of a million digits": "\\boxed{" + "9" * (LARGE - 9) + "}",
    "fraction of large numbers": "\\boxed{\\frac{" + "7" * 90 + "}{" + "3" * 90 + "}}",
    "deep LaTeX": "\\boxed{" + "\\frac{1}{" * 20_000 + "2" + "}" * 20_001,
    "deep roots": "\\boxed{" + "\\sqrt{" * 22 + "2" + "}" * 23,
    "boxed without end": "\\boxed{" * 100_000,
    "braces that open": "{" * LARGE,
    "braces that close": "}" * LARGE,
    "brackets of all kinds": "([{<" * 200_000,
    "nested thoughts": "<think>" * 60_000 + "</think>" * 60_000,
    "thoughts in a row": "<think></think>" * 60_000 + "4",
    "answers without end": "<answer>" * 100_000,
    "answers that end": "</answer>" * 100_000,
    "code that writes": f"__import__('pathlib').Path({CANARY!r}).touch()",
    "code that asks the shell": f"__import__('os').system('touch {CANARY}')",
    "code in an answer": f"<answer>__import__('os').system('touch {CANARY}')</answer>",
    "code in a list": f"<answer>[open({CANARY!r}, 'w')]</answer>",
    "code in a formula": f"<answer>sin(__import__('os').system('touch {CANARY}'))</answer>",
    "code in a box": f"\\boxed{{__import__('os').system('touch {CANARY}')}}",
    "LaTeX that reads and writes": f"\\boxed{{\\input{{/etc/passwd}}\\write18{{touch {CANARY}}}}}",
    "LaTeX that defines itself": "\\boxed{\\def\\a{\\a\\a}\\a}",
    "pickle": f"<answer>cos\nsystem\n(S'touch {CANARY}'\ntR.</answer>",
    "null bytes": "\x00" * 100_000 + "#44",
    "null byte in an answer": "<answer>\x0044\x00</answer>",
    "right-to-left marks": "\u202e\u200f#44\u202c\u2067",
    "half of a surrogate pair": "\ud800\\boxed{\udfff}<answer>\ud800</answer>#44\udc00",
    "digits of other scripts": "#٤٤ \\boxed{４４} <answer>४४</answer> ²",
    "letters that join": "e" + "\u0301" * 100_000,
    "exponents": "\\boxed{9^{9^{9^{9}}}}<answer>9**9**9**9**9</answer>",
    "exponent in a bracket": "\\boxed{9^{({999999999})}}<answer>((9**99)**99)**99</answer>",
    "factorials": "\\boxed{99999!!!}<answer>99999!</answer>",
    "floats out of range": "\\boxed{1e999999999}<answer>1e999999999</answer>#1e999",
    "not numbers": "<answer>nan</answer> \\boxed{NaN} #inf",
    "division by zero": "\\boxed{\\frac{1}{0}}<answer>1/0</answer>",
    "bait for patterns": "1+1=2;" * 160_000 + "x",
    "bait for tries": "AB:Af;" * 160_000 + "x",
    "bait for words": "aaa-" * 250_000 + "!",
    "bait for units": "1 " + "a" * 190 + "." * 5,
    "signs": "<answer>" + "-" * 1900 + "1</answer>",
    "operators": "<answer>" + "+".join(["1"] * 900) + "</answer>",
    "escapes of a terminal": "\x1b[2J\x1b]0;title\x07\x1b[31m#44\x1b[0m",
    "HTML": "<script>alert(1)</script><img src=x onerror=alert(1)><!--" * 1000,
    "JSON": "<answer>" + '{"a":' * 300 + "1" + "}" * 300 + "</answer>",
    "formats": "%s%n{0.__class__.__mro__}${jndi:ldap://x}" * 100,
    "backslashes": "\\" * LARGE,
    "dollars": "$" * LARGE,
    "hashes": "#" * LARGE,
    "bars": "|" * LARGE,
    "headings without an answer": "#### Explanation\n" * 58_000,
    "thoughts that are cut": "<think>" * 100_000 + "4",
    "one box or another": "\\boxed{1} or " * 60_000,
    "raised digits": "²" * LARGE,
    "repeated moves": "<answer>R99999999 A+999999999</answer>",
}
BOUND = 5.0
"""Seconds for a text of a million characters: a thousand times what is needed, and a hundredth
of what quadratic work would take.
"""


def texts(tmp_path):
    canary = tmp_path / "ran"
    return canary, {name: text.replace(CANARY, str(canary)) for name, text in HOSTILE.items()}


QUESTION = Example("6 · 7?", "42", 0, "q")
INSIDE = {
    "arithmetic": (ArithmeticTask(), Example("49-7+4-2?", "44", 3, "x")),
    "knights": (KnightsTask(), Example("A:-B;B:A/B?", "aB", 2, "x")),
    "questions": (QuestionTask.without_rows("questions"), QUESTION),
    "questions, a formula": (
        QuestionTask.without_rows("questions"),
        Example("?", "\\frac{x^2+1}{2}", 0, "f"),
    ),
    "questions, a set": (
        QuestionTask.without_rows("questions"),
        Example("?", "\\{1, 2\\}", 0, "s"),
    ),
}
GYM = [
    "chain_sum",
    "countdown",
    "zebra_puzzles",
    "knights_knaves",
    "puzzle24",
    "n_queens",
    "binary_matrix",
    "string_insertion",
    "coin_flip",
    "polynomial_multiplication",
    "simple_integration",
    "propositional_logic",
    "rubiks_cube",
    "rush_hour",
    "codeio",
    "complex_arithmetic",
    "time_intervals",
    "boxnet",
]


def test_the_table_is_long_and_its_texts_are_within_what_is_judged():
    assert len(HOSTILE) >= 25
    assert max(len(text) for text in HOSTILE.values()) <= LARGE + 1


@pytest.mark.parametrize("name", INSIDE)
def test_no_text_hurts_a_verifier_of_ours(name, tmp_path):
    task, example = INSIDE[name]
    canary, table = texts(tmp_path)
    for kind, text in table.items():
        for one in (text, f"<think>{text}</think>{text}" if len(text) < LARGE / 3 else text):
            began = time.perf_counter()
            score = task.score(one, example)
            assert time.perf_counter() - began < BOUND, kind
            assert set(score.parts.values()) <= {0.0, 1.0}, kind
            assert score.answer is None or isinstance(score.answer, str), kind
            right = {"null bytes": "44", "digits of other scripts": "42"}.get(kind)
            assert not score.correct or right == example.answer, kind
    assert not canary.exists()


SETS = f"""
from dataclasses import replace
from rlkd_lab.tasks import find_task

class Sets:
    name, train_difficulty, ood_difficulty = "sets", (0, 0), None

    def __init__(self):
        self.tasks = {{name: find_task(name) for name in {GYM}}}

    def examples(self, n, seed, split="train", difficulty=None):
        return [replace(*task.examples(1, 0), id=name) for name, task in self.tasks.items()]

    def score(self, completion, example):
        return self.tasks[example.id].score(completion, example)
"""


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """All sets in one process, because each import of the library takes a second."""
    path = tmp_path_factory.mktemp("sets") / "sets.py"
    path.write_text(SETS)
    task = guarded(f"{path}:Sets", seconds=20)
    yield task, {example.id: example for example in task.examples(1, 0)}
    task.close()


@pytest.mark.parametrize("name", GYM)
def test_no_text_hurts_a_set_of_reasoning_gym(name, sets, tmp_path):
    """Judged as in a run: apart, with its limits; and none of them is needed here."""
    task, example = sets[0], sets[1][name]
    canary, table = texts(tmp_path)
    for kind, text in table.items():
        for one in (text, f"<answer>{text}</answer>"[: LARGE - 9]):
            score = task.score(one, example)
            assert score.why is None or "characters, more than" in score.why, kind
            assert set(score.parts) == {"accuracy", "credit", "format"}
            assert not score.correct, kind
    assert task.told() is None or "gave_up" not in task.told()
    assert not canary.exists()


def test_a_formula_that_takes_for_ever_is_given_up():
    """sympy simplifies what an integral is compared with, which no look at the text can bound."""
    task = guarded("intermediate_integration", seconds=2)
    (example,) = task.examples(1, 0)
    long = "+".join(f"sqrt(x+{i})/(x+{i})" for i in range(1, 100))
    assert (
        task.score(f"<answer>{long}</answer>", example).why == "the verifier took longer than 2 s"
    )
    assert task.score("<answer>x</answer>", example).why is None
    task.close()


def test_no_text_hurts_a_shared_part():
    for kind, text in HOSTILE.items():
        for name, part in SHARED.items():
            began = time.perf_counter()
            values = part(
                [Sample(text, 5, 9, False), Sample(f"<think>{text}</think>4", 7, 9, True)]
            )
            assert time.perf_counter() - began < BOUND, (name, kind)
            assert all(-1 <= value <= 1 for value in values)


def test_no_text_hurts_what_finds_the_checking():
    for task in (ArithmeticTask(), KnightsTask()):
        for kind, text in HOSTILE.items():
            for one in (text, "!" + text):
                began = time.perf_counter()
                assert len(task.checking(one)) <= len(one)
                assert time.perf_counter() - began < BOUND, kind


@pytest.mark.parametrize("name", ["arithmetic", "knights", "questions"])
def test_a_megabyte_takes_no_more_than_a_few(name):
    task, example = INSIDE[name]
    task.score("\\boxed{1}", example)  # imports
    for kind, text in HOSTILE.items():
        if len(text) > 10_000:
            long = f"<think>{text}</think>{text}"
            tracemalloc.start()
            task.score(text, example)
            SHARED["think_format"]([Sample(long, 1, 9, True)])
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert peak < 30 * 2**20, (kind, peak)


GROWING = [
    "a", " ", "\n", "9", "{", "}", "\\", "#", "$", "<think>", "</think>", "<answer>", "</answer>",
    "<answer></answer>", "\\boxed{", "1+1=2;", "AB:Af;", "!", "- ", "é", "9,", "a-",
]  # fmt: skip


def seconds(call, text):
    return min(timed(call, text) for _ in range(3))


def timed(call, text):
    began = time.process_time()
    call(text)
    return time.process_time() - began


@pytest.mark.parametrize("piece", GROWING)
def test_time_grows_with_the_length_and_no_faster(piece):
    """Eight times the text takes eight times as long, where it takes any time at all; quadratic
    work takes sixty-four.
    """
    calls = [
        *(
            (lambda text, task=task, example=example: task.score(text, example))
            for task, example in INSIDE.values()
        ),
        ArithmeticTask().checking,
        KnightsTask().checking,
        final_answer,
        lambda text: SHARED["think_format"]([Sample(text, 1, 9, True)]),
        lambda text: SHARED["think_format"]([Sample("<think>" + text, 1, 9, True)]),
    ]
    short, long = piece * (60_000 // len(piece)), piece * (480_000 // len(piece))
    for number, call in enumerate(calls):
        call(short)
        assert seconds(call, long) < 24 * seconds(call, short) + 0.02, number


def test_what_may_be_read_is_read_in_a_moment():
    """Every hostile text as an answer, cut to what is looked at: harmless and quick, or not
    read.
    """
    golds = (
        "42",
        "x^2+1",
        "(1,2)",
        "\\{1,2\\}",
        "x=5",
        "x<3",
        "7:00",
        "2020-05-03",
        "(B) 12",
        "yes",
        "blue",
        "18 cm^2",
    )
    for gold in golds:
        grade(gold, gold, True)  # the first one of a kind loads its library
    for kind, text in HOSTILE.items():
        for answer in {
            text[:200],
            text[-200:],
            text[7:207].strip("}"),
            text[:800],
            final_answer(text)[0],
        }:
            for marked in (True, False):
                began = time.process_time()
                found = [grade(gold, answer, marked) for gold in golds]
                assert all(
                    isinstance(one.text, str | None) and (one.text is not None or not one.correct)
                    for one in found
                )
                assert time.process_time() - began < BOUND, (kind, answer)


def test_a_rollout_of_hostile_texts_is_judged(tmp_path):
    canary, table = texts(tmp_path)
    task, example = INSIDE["arithmetic"]
    rows = list(table.values())
    found = judge(
        task,
        {"accuracy": 1.0, "think_format": 0.5, "overlong": 0.5},
        rows,
        [example] * len(rows),
        [True] * len(rows),
        [5] * len(rows),
        9,
    )
    assert [verdict.why is None for verdict in found] == [len(text) <= LARGE for text in rows]
    assert all(verdict.reward in (0.0, 0.5, 1.0) for verdict in found)
    assert GuardedTask(task).score(rows[0], example).why is None
    assert not canary.exists()


def test_the_canary_sings(tmp_path):
    """Where a text is run, the file is there: the tests above would see it."""
    canary, table = texts(tmp_path)
    eval(table["code that writes"])
    assert canary.exists()
