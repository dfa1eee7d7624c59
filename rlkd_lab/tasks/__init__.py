"""Tasks: prompts and verifiers behind one protocol."""

from rlkd_lab.tasks.arithmetic import ArithmeticTask
from rlkd_lab.tasks.base import Example, Score, Split, Task
from rlkd_lab.tasks.reasoning import KnightsKnavesTask
from rlkd_lab.tasks.rewards import SHARED, Verdict, check_weights, judge

TASKS: dict[str, type[ArithmeticTask] | type[KnightsKnavesTask]] = {task.name: task for task in (ArithmeticTask, KnightsKnavesTask)}


def find_task(name: str) -> Task:
    """The task of that name."""
    return TASKS[name]()


__all__ = [
    "SHARED",
    "TASKS",
    "ArithmeticTask",
    "Example",
    "KnightsKnavesTask",
    "Score",
    "Split",
    "Task",
    "Verdict",
    "check_weights",
    "find_task",
    "judge",
]
