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
libraries = ('reasoning_gym', 'math_verify', 'latex2sympy2_extended', 'datasets')
print([name for name in libraries if name in sys.modules])
"""
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


def test_arithmetic_has_neither_settings_nor_template():
    assert isinstance(find_task("arithmetic"), ArithmeticTask)
    for settings, template in (({"a": 1}, None), ({}, "{question}")):
        with pytest.raises(ValueError, match="arithmetic has no settings and no template"):
            find_task("arithmetic", settings, template)
    with pytest.raises(ValueError, match=r"prompt_template has no \{question\}"):
        find_task("countdown", template="Solve {x}")


def test_importing_reasoning_gym_leaves_the_global_stream_alone():
    code = (
        "import random; random.seed(1); from rlkd_lab.tasks import find_task;"
        " find_task('chain_sum').examples(2, 0); print(random.random())"
    )
    drawn = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert float(drawn) == random.Random(1).random()


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("aritmetic", "arithmetic"), ("countdwn", "countdown"), ("zebra_puzzle", "zebra_puzzles")],
)
def test_an_unknown_name_gets_the_nearest(name, nearest):
    with pytest.raises(
        ValueError, match=f"unknown task '{name}': did you mean '{nearest}'"
    ) as raised:
        find_task(name)
    assert "\n" not in str(raised.value)


def test_a_class_of_your_own(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    task = find_task(f"{path}:Mine", {"size": 7}, "Q {question}")
    assert (task.name, task.size, task.template) == ("mine", 7, "Q {question}")
    for name, settings, says in (
        (f"{path}:Nobody", {}, "has no 'Nobody'; it has Mine, Half"),
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


BROKEN = {
    "__init__": ("    def __init__(self):\n        {}['x']\n", "cannot be made: KeyError"),
    "examples": (
        "    def examples(self, *_):\n        return 1 / 0\n",
        "examples raised ZeroDivisionError",
    ),
    "score": (
        "    def score(self, *_):\n        return {'accuracy': 1.0}\n",
        "score returned a dict",
    ),
    "raises": (
        "    def score(self, text, example):\n        return text[10**6]\n",
        "score raised IndexError",
    ),
    "nan": (
        "    def score(self, *_):\n        return Score({'accuracy': float('nan')})\n",
        "gave accuracy=nan, which is not in 0–1",
    ),
    "nothing": (
        "    def score(self, *_):\n        return Score({'format': 1.0})\n",
        "has no part accuracy",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_task_of_ones_own_is_one_sentence_and_leaves_nothing(tmp_path, kind):
    from rlkd_lab.training import make_config, run

    body, says = BROKEN[kind]
    (tmp_path / "mine.py").write_text(
        "from rlkd_lab.tasks import ArithmeticTask, Score\n\n\nclass Mine(ArithmeticTask):\n "
        "   name = 'mine'\n" + body,
        encoding="utf-8",
    )
    config = make_config(
        "grpo",
        steps=1,
        task=f"{tmp_path / 'mine.py'}:Mine",
        prompts_per_step=2,
        group_size=2,
        max_new_tokens=8,
        eval_every=0,
        teacher=None,
    )
    with pytest.raises(ValueError, match=says):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
