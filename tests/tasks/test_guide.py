"""The guide's class is what it promises: at most 20 lines, a task, and it trains."""

import re
from pathlib import Path

from typer.testing import CliRunner

from rlkd_lab.commands import app
from rlkd_lab.runs import RunFolder
from rlkd_lab.tasks import Task, find_task
from rlkd_lab.zoo.tokenizer import CHARACTERS

PAGE = (Path(__file__).parents[2] / "docs" / "your_own_task.md").read_text(encoding="utf-8")


def test_the_class_of_the_page_is_a_task_of_20_lines_and_trains(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    (tmp_path / "my_task.py").write_text(code)
    name = f"{tmp_path / 'my_task.py'}:Backwards"
    task = find_task(name)
    assert isinstance(task, Task)
    for split in ("train", "validation", "test"):
        for example in task.examples(9, 0, split):
            assert set(example.prompt) <= set(CHARACTERS)
            assert task.score(example.answer, example).parts == {"accuracy": 1.0, "format": 1.0}
            assert not task.score(example.answer + "!", example).correct
    assert task.examples(9, 0) == task.examples(9, 0)
    settings = (
        f"task={name}",
        "max_new_tokens=16",
        "prompts_per_step=2",
        "group_size=2",
        "eval_every=2",
        "eval_prompts=8",
    )
    words = [
        "train",
        "--method",
        "grpo",
        "--steps",
        "2",
        "--out",
        str(tmp_path / "run"),
        *(word for one in settings for word in ("--set", one)),
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    rows = RunFolder.open(tmp_path / "run").rows()
    assert len(rows) == 2
    assert "eval/accuracy_ood" in rows[1]


def test_the_page_is_a_page():
    assert len(PAGE.split()) <= 900
