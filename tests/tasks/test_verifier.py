"""Verifiers that raise, hang, die and say odd things, in a process of their own: a score all
the same, with a reason, and the next call is judged.
"""

import os
import re
import subprocess
import sys
import time

import pytest

from rlkd_lab.tasks import ArithmeticTask, Example, KnightsTask, QuestionTask, Score, Task, judge
from rlkd_lab.tasks.rewards import Verdict, check_verifier
from rlkd_lab.tasks.verifier import LONGEST, GuardedTask, guarded, key_of

FORTY_FOUR = Example("49-7+4-2?", "44", 3, "x")
ODD = """
import os, re, signal, sys, time
from rlkd_lab.tasks import ArithmeticTask, Score

def deep():
    return deep()

class Odd(ArithmeticTask):
    name = "odd"
    def __init__(self, worn=0):
        self.calls, self.worn, self.held = 0, int(worn), []
    def score(self, text, example):
        self.calls += 1
        if self.worn:
            self.held.append(bytes(self.worn << 20))
        if text == "pattern": re.fullmatch(r"(a+)+b", "a" * 60)
        if text == "sleep": time.sleep(1e6)
        if text == "integer": 9 ** (10 ** 10)
        if text == "memory": "x" * (10 ** 11)
        if text == "die": os._exit(3)
        if text == "killed": os.kill(os.getpid(), signal.SIGSEGV)
        if text == "exit": sys.exit("bye")
        if text == "deep": deep()
        if text == "raises": raise ValueError("a\\nb" * 500)
        if text == "input": input()
        if text == "print": print("noise"); sys.stdout.flush(); os.write(1, b"more noise\\n")
        if text == "other": raise KeyboardInterrupt
        if text == "calls": return Score({"accuracy": 1.0}, str(self.calls))
        if text == "folder": return Score({"accuracy": 1.0}, os.getcwd())
        if text == "pid": return Score({"accuracy": 1.0}, str(os.getpid()))
        return Score({"accuracy": float(text in ("right", "print"))}, text)
    def checking(self, text):
        if text == "raises":
            return text[10 ** 6]
        return {"number": 3}.get(text, "!" + text)
"""

IMPORTS = "from rlkd_lab.tasks import Example\nfrom rlkd_lab.tasks.verifier import guarded\n"
"""What a script in a subprocess begins with."""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("odd") / "odd.py"
    path.write_text(ODD, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def odd(path):
    task = guarded(f"{path}:Odd", seconds=1.5)
    yield task
    task.close()


def pid_of(task):
    return int(task.score("pid", FORTY_FOUR).answer)


FAILS = {
    "raises": r"score raised ValueError: a ba b.{180,200}$",
    "exit": "score raised SystemExit: bye",
    "deep": "score raised RecursionError",
    "input": "score raised EOFError",
    "other": "KeyboardInterrupt",
}
GONE = {
    "pattern": r"took longer than 1\.5 s",
    "sleep": r"took longer than 1\.5 s",
    "integer": r"took longer than 1\.5 s",
    "memory": "score needed too much memory",
    "die": r"ended its process \(exit code 3\)",
    "killed": r"ended its process \(exit code -11\)",
}


@pytest.mark.parametrize("text", FAILS)
def test_a_verifier_that_raises_is_a_reason_and_goes_on(odd, text):
    pid, score = pid_of(odd), odd.score(text, FORTY_FOUR)
    assert (score.parts, score.answer, score.correct) == ({"accuracy": 0.0}, None, False)
    odd.failed.clear()
    assert key_of("score", text, FORTY_FOUR) not in odd.given_up, (
        "the same everywhere: nothing to record"
    )
    assert re.search(FAILS[text], score.why)
    assert "\n" not in score.why
    assert odd.score("right", FORTY_FOUR) == Score({"accuracy": 1.0}, "right")
    assert pid_of(odd) == pid


@pytest.mark.parametrize("text", GONE)
def test_a_verifier_that_hangs_or_dies_is_ended_and_started_again(odd, text):
    pid, began = pid_of(odd), time.perf_counter()
    score = odd.score(text, FORTY_FOUR)
    assert time.perf_counter() - began < 30
    assert (score.parts, score.answer) == ({"accuracy": 0.0}, None)
    assert re.search(GONE[text], score.why)
    assert odd.score("right", FORTY_FOUR).correct
    assert pid_of(odd) != pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    # and it is not tried again
    began = time.perf_counter()
    assert odd.score(text, FORTY_FOUR).why == score.why
    assert time.perf_counter() - began < 1


def test_a_verifier_that_hangs_once_in_the_fast_tests_too(path):
    task = guarded(f"{path}:Odd", seconds=0.3)
    assert "took longer than 0.3 s" in task.score("pattern", FORTY_FOUR).why
    assert task.score("right", FORTY_FOUR).correct
    task.close()


def test_what_a_verifier_prints_is_no_answer(odd):
    assert odd.score("print", FORTY_FOUR).correct
    assert odd.score("right", FORTY_FOUR).correct


def test_checking_is_called_there_too(odd):
    assert odd.checking("x") == "!x"
    odd.failed.clear()
    assert [odd.checking(text) for text in ("number", "raises")] == ["", ""]
    assert odd.failed[0] == "checking returned a int; it returns text"
    assert odd.failed[1].startswith("checking raised IndexError")


def test_a_process_worn_out_by_earlier_calls_is_no_fault_of_a_completion(path):
    """It keeps 300 MiB a call: after a few its memory is over, and a fresh one judges."""
    task = guarded(f"{path}:Odd", {"worn": 300}, seconds=20)
    assert [task.score("right", FORTY_FOUR).correct for _ in range(16)] == [True] * 16
    assert task.failed == []
    assert int(task.score("calls", FORTY_FOUR).answer) < 16
    task.close()


def test_the_process_ends_with_the_run(path):
    """Whether it is closed, forgotten, or the run is killed."""
    task = guarded(f"{path}:Odd", seconds=5)
    pid = pid_of(task)
    task.close()
    assert_gone(pid)
    assert pid_of(task) != pid, "another call starts it again"
    pid = pid_of(task)
    del task
    assert_gone(pid)
    code = "import sys, time, os\n" + IMPORTS
    code += (
        f"task = guarded({str(path) + ':Odd'!r}, seconds=5)\nprint(task.score('pid',"
        " Example('', '', 1, 'x')).answer, flush=True)\ntime.sleep(100)\n"
    )
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(run.stdout.readline())
    os.kill(pid, 0)
    run.kill()
    run.wait()
    assert_gone(pid)


def test_a_call_that_nobody_waits_for_any_more_ends_itself(path):
    """The run is killed while its verifier hangs in a pattern, which listens to nobody."""
    code = "import threading\n" + IMPORTS
    code += (
        f"task = guarded({str(path) + ':Odd'!r}, seconds=2)\nprint(task.score('pid',"
        " Example('', '', 1, 'x')).answer, flush=True)\n"
    )
    code += "task.score('pattern', Example('', '', 1, 'x'))\n"
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(run.stdout.readline())
    time.sleep(0.5)
    run.kill()
    run.wait()
    os.kill(pid, 0)
    assert_gone(pid, seconds=25)


def assert_gone(pid, seconds=10):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
            with open(f"/proc/{pid}/stat") as file:
                if (
                    file.read().rpartition(")")[2].split()[0] == "Z"
                ):  # waits for its parent, which is not us
                    return
        except (ProcessLookupError, FileNotFoundError):
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} is still there")


# --- what a verifier may say ----------------------------------------------------------------------


class Says(ArithmeticTask):
    def __init__(self, *said):
        self.said = list(said)

    def score(self, completion, example):
        one = self.said.pop(0)
        return one(completion) if callable(one) else one


class Named:
    def __repr__(self):
        raise RuntimeError("no text")

    __str__ = __repr__


ODD_SCORES = {
    "dict": ({"accuracy": 1.0}, "score returned a dict; it returns Score"),
    "none": (None, "score returned a NoneType"),
    "nan": (Score({"accuracy": float("nan")}), "gave accuracy=nan, which is not in 0–1"),
    "inf": (Score({"accuracy": float("inf")}), "gave accuracy=inf, which is not in 0–1"),
    "negative": (Score({"accuracy": 1.0, "format": -0.1}), "gave format=-0.1, which is not in 0–1"),
    "bool": (
        Score({"accuracy": True}),
        r"gave accuracy=True, a bool; a part is a number in 0–1, such as float\(right\)",
    ),
    "text": (Score({"accuracy": "1"}), "gave accuracy='1', a str"),
    "object": (Score({"accuracy": Named()}), "score raised RuntimeError: no text"),
    "empty": (Score({}), "has no part accuracy; it has none"),
    "other": (Score({"format": 1.0}), "has no part accuracy; it has format"),
    "number": (Score({"accuracy": 1.0}, 44), "an answer that is a int"),
    "long": (
        Score({"accuracy": 1.0}, "9" * (LONGEST + 1)),
        "an answer that is a str; it is a text, of 1000000 characters at most",
    ),
    "parts": (Score(3), "score raised TypeError"),
    "silent": (
        lambda _: (_ for _ in ()).throw(ValueError(Named())),
        "score raised ValueError: an error without a text",
    ),
}


@pytest.mark.parametrize("kind", ODD_SCORES)
def test_a_score_that_is_none_is_a_reason(kind):
    said, why = ODD_SCORES[kind]
    good = Score({"accuracy": 1.0, "format": 1.0}, "44")
    found = judge(
        Says(good, said, good),
        {"accuracy": 1.0, "format": 0.1},
        ["#44"] * 3,
        [FORTY_FOUR] * 3,
        [True] * 3,
        [4] * 3,
        24,
    )
    assert re.search(why, found[1].why)
    assert (found[1].reward, found[1].parts, found[1].answer, found[1].correct) == (
        0.0,
        {"accuracy": 0.0, "format": 0.0},
        None,
        False,
    )
    assert [verdict.why for verdict in (found[0], found[2])] == [None, None]
    assert found[0].reward == found[2].reward == 1.1


def test_numbers_of_numpy_are_numbers():
    import numpy as np

    said = Score({"accuracy": np.float32(1), "format": np.int64(0), "whole": 1})
    (found,) = judge(Says(said), {}, [""], [FORTY_FOUR], [True], [1], 9)
    assert found.parts == {"accuracy": 1.0, "format": 0.0, "whole": 1.0}
    assert {type(value) for value in found.parts.values()} == {float}


def test_other_parts_than_before_are_a_reason():
    one, other = Score({"accuracy": 1.0}), Score({"accuracy": 1.0, "speed": 1.0})
    found = judge(Says(one, other), {}, ["", ""], [FORTY_FOUR] * 2, [True] * 2, [1] * 2, 9)
    assert [verdict.why for verdict in found] == [
        None,
        "score gave the parts accuracy, speed, and before accuracy",
    ]
    assert [verdict.parts for verdict in found] == [{"accuracy": 1.0}, {"accuracy": 0.0}]


def test_a_failure_before_any_score_has_the_parts_of_the_others():
    found = judge(
        Says(None, Score({"accuracy": 1.0, "format": 1.0})),
        {"format": 1.0},
        ["", ""],
        [FORTY_FOUR] * 2,
        [True] * 2,
        [1] * 2,
        9,
    )
    assert [verdict.parts for verdict in found] == [
        {"accuracy": 0.0, "format": 0.0},
        {"accuracy": 1.0, "format": 1.0},
    ]


def test_what_the_length_limit_cut_is_not_shown_to_the_verifier():
    seen = []
    task = Says(*[lambda text: seen.append(text) or Score({"accuracy": 1.0})] * 3)
    found = judge(
        task, {"accuracy": 1.0}, ["cut", "whole"], [FORTY_FOUR] * 2, [False, True], [9, 3], 9
    )
    assert seen == ["whole"]
    assert [(verdict.reward, verdict.why) for verdict in found] == [(0.0, None), (1.0, None)]
    (found,) = judge(task, {"accuracy": 1.0}, ["cut"], [FORTY_FOUR], [False], [9], 9)
    assert seen == ["whole", ""], "the empty completion shows the parts where no other does"
    assert found.parts == {"accuracy": 0.0}


def test_a_completion_that_is_too_long_is_not_judged():
    found = judge(
        ArithmeticTask(),
        {},
        ["#44", "1" * LONGEST + "#44"],
        [FORTY_FOUR] * 2,
        [True] * 2,
        [1, 1],
        9,
    )
    assert [verdict.correct for verdict in found] == [True, False]
    assert "has 1000003 characters, more than 1000000" in found[1].why


def test_a_verifier_that_fails_on_everything_is_broken():
    found = judge(
        Says(None, None), {"accuracy": 1.0}, ["", ""], [FORTY_FOUR] * 2, [True] * 2, [1] * 2, 9
    )
    with pytest.raises(
        ValueError,
        match=r"the task arithmetic: score returned a NoneType.*; so it went with all 2"
        r" completions that it was shown",
    ):
        check_verifier(ArithmeticTask(), found, [True] * len(found))
    check_verifier(ArithmeticTask(), found[:1], [True])  # one alone says nothing of the verifier
    check_verifier(ArithmeticTask(), [], [])
    cut = Verdict(0.0, {"accuracy": 0.0}, None, False)
    with pytest.raises(
        ValueError, match="all 2 completions that it was shown"
    ):  # what was cut it has not seen
        check_verifier(ArithmeticTask(), [*found, cut], [True] * len(found) + [False])


# --- who judges where -----------------------------------------------------------------------------


def test_what_is_not_ours_judges_apart(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    questions = tmp_path / "q.jsonl"
    questions.write_text(
        "".join(f'{{"question": "{i}+1?", "answer": "{i + 1}"}}\n' for i in range(60))
    )
    for name, inside in (
        ("arithmetic", True),
        ("knights", True),
        (f"{path}:Odd", False),
        ("chain_sum", False),
        ("q.jsonl", False),
    ):
        task = guarded(name)
        assert isinstance(task, Task)
        assert (task.process is None) == inside, name
        assert guarded(name, seconds=0).process is None
        (example,) = task.examples(1, 0)
        if not name.endswith("Odd"):
            right = {"chain_sum": f"<answer>{example.answer}</answer>"}.get(
                name, f"#{example.answer}" if inside else f"\\boxed{{{example.answer}}}"
            )
            assert task.score(right, example).correct, name
            assert not task.score("", example).correct
        task.close()
    assert isinstance(guarded("arithmetic").task, ArithmeticTask)
    assert isinstance(guarded("knights").task, KnightsTask)
    assert isinstance(guarded("q.jsonl").task, QuestionTask)
    assert guarded("arithmetic").chance(FORTY_FOUR) == 0.01
    assert not hasattr(guarded("chain_sum"), "chance")


def test_a_folder_that_is_left_is_the_folder_of_the_task(path, tmp_path, monkeypatch):
    monkeypatch.chdir(path.parent)
    task = guarded("odd.py:Odd")
    monkeypatch.chdir(tmp_path)
    assert task.score("folder", FORTY_FOUR).answer == str(path.parent.resolve())
    task.close()


def test_an_example_that_cannot_be_sent_says_so(odd):
    score = odd.score("right", Example("", "44", 1, "x", {"answer": lambda: 44}))
    assert "Example.meta is to hold plain values" in score.why


def test_a_task_that_can_be_made_only_here_says_so(tmp_path):
    """Its file looks at who imports it."""
    path = tmp_path / "shy.py"
    path.write_text(
        "import sys\nfrom rlkd_lab.tasks import ArithmeticTask\nassert 'pytest' in"
        " sys.modules, 'shy'\nclass Shy(ArithmeticTask):\n    name = 'shy'\n"
    )
    score = guarded(f"{path}:Shy").score("#44", FORTY_FOUR)
    assert "cannot be called in a process of its own" in score.why
    assert "AssertionError: shy" in score.why


def test_calls_that_were_given_up_are_given_up_again_from_that_step_on(path):
    task = guarded(f"{path}:Odd", seconds=0.3)
    key = key_of("score", "right", FORTY_FOUR)
    found = []
    for step in (2, 3, 4):
        task.begin(step, {key: (3, "took longer than 9 s")})
        found.append((task.score("right", FORTY_FOUR).why, (task.told() or {}).get("gave_up")))
    assert found == [(None, None), *[("took longer than 9 s", {key: "took longer than 9 s"})] * 2]
    known = {}
    task.begin(7, known)
    task.score("sleep", FORTY_FOUR)
    task.score("raises", FORTY_FOUR)
    assert known == {
        key_of("score", "sleep", FORTY_FOUR): (7, "the verifier took longer than 0.3 s")
    }
    event = task.told()
    assert (event["event"], event["step"], event["failed"], event["of"]) == ("verifier", 7, 2, 2)
    assert event["gave_up"] == {key: why for key, (_, why) in known.items()}
    assert event["why"] == "the verifier took longer than 0.3 s"
    task.begin(8, known)
    assert task.told() is None
    task.close()


def test_another_prompt_is_another_call():
    other = Example("1+1?", "2", 1, "y")
    keys = {
        key_of("score", "a", FORTY_FOUR),
        key_of("score", "a", other),
        key_of("score", "b", other),
        key_of("checking", "a", None),
        key_of("score", "\ud800", other),
    }
    assert len(keys) == 5


def test_guarding_twice_is_guarding_once():
    task = GuardedTask(ArithmeticTask())
    assert GuardedTask.of(task) is task
