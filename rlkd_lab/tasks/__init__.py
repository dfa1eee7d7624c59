"""Tasks: prompts and verifiers behind one protocol."""

from rlkd_lab.tasks.arithmetic import ArithmeticTask
from rlkd_lab.tasks.base import Example, Score, Split, Task
from rlkd_lab.tasks.reasoning import KnightsKnavesTask

TASKS: dict[str, type[ArithmeticTask] | type[KnightsKnavesTask]] = {task.name: task for task in (ArithmeticTask, KnightsKnavesTask)}

__all__ = ["TASKS", "ArithmeticTask", "Example", "KnightsKnavesTask", "Score", "Split", "Task"]
