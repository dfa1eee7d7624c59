"""Tasks: prompts and verifiers behind one protocol."""

from rlkd_lab.tasks.arithmetic import ArithmeticTask
from rlkd_lab.tasks.base import Chat, Example, Score, Split, Task
from rlkd_lab.tasks.knights import KnightsTask
from rlkd_lab.tasks.questions import QuestionTask
from rlkd_lab.tasks.reasoning import ReasoningGymTask
from rlkd_lab.tasks.registry import find_task
from rlkd_lab.tasks.rewards import judge

__all__ = [
    "ArithmeticTask",
    "Chat",
    "Example",
    "KnightsTask",
    "QuestionTask",
    "ReasoningGymTask",
    "Score",
    "Split",
    "Task",
    "find_task",
    "judge",
]
