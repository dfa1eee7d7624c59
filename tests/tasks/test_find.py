"""From a name to a task, and the sentence that a wrong name gets."""

import random
import subprocess
import sys

import pytest

from rlkd_lab.tasks import ArithmeticTask, find_task

OWN = """
from rlkd_lab.tasks import ArithmeticTask

class Mine(ArithmeticTask):
    def __init__(self, size: int = 3, template: str = "{question}"):
        self.name, self.size, self.template = "mine", size, template

class Half:
    name = "half"
    train_difficulty = (0, 0)
"""


def test_the_default_imports_no_task_library():
    code = """
import sys
from rlkd_lab.tasks import find_task
find_task('arithmetic').examples(2, 0)
print([name for name in sys.modules if name in ('reasoning_gym', 'math_verify', 'datasets')])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_arithmetic_has_neither_settings_nor_template():
    assert isinstance(find_task("arithmetic"), ArithmeticTask)
    for settings, template in (({"a": 1}, None), ({}, "{question}")):
        with pytest.raises(ValueError, match="arithmetic has no settings and no template"):
            find_task("arithmetic", settings, template)
    with pytest.raises(ValueError, match=r"prompt_template has no \{question\}"):
        find_task("countdown", template="Solve {x}")


def test_importing_reasoning_gym_leaves_the_global_stream_alone():
    code = "import random; random.seed(1); from rlkd_lab.tasks import find_task; find_task('chain_sum').examples(2, 0); print(random.random())"
    drawn = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert float(drawn) == random.Random(1).random()


@pytest.mark.parametrize(("name", "nearest"), [("aritmetic", "arithmetic"), ("countdwn", "countdown"), ("zebra_puzzle", "zebra_puzzles")])
def test_an_unknown_name_gets_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=f"unknown task '{name}': did you mean '{nearest}'") as raised:
        find_task(name)
    assert "\n" not in str(raised.value)


def test_a_class_of_your_own(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    task = find_task(f"{path}:Mine", {"size": 7}, "Q {question}")
    assert (task.name, task.size, task.template) == ("mine", 7, "Q {question}")
    for name, settings, says in (
        (f"{path}:Nobody", {}, "has no class 'Nobody'; its classes: Mine, Half"),
        (f"{path}:Half", {}, "is no task yet: it has no ood_difficulty, no examples, no score"),
        (f"{path}:Mine", {"sise": 1}, "does not take sise"),
        (str(path), {}, "write .*mine.py:CLASS"),
    ):
        with pytest.raises(ValueError, match=says):
            find_task(name, settings)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        find_task(f"{tmp_path / 'other.py'}:Mine")
    path.write_text("def broken(:")
    with pytest.raises(ValueError, match="the file does not run: SyntaxError"):
        find_task(f"{path}:Mine")
