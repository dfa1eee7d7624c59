"""Tasks: prompts and verifiers behind one protocol."""

from rlkd_lab.tasks.arithmetic import ArithmeticTask
from rlkd_lab.tasks.base import Example, Score, Split, Task
from rlkd_lab.tasks.knights import KnightsTask
from rlkd_lab.tasks.lengths import Lengths, Limit, LongPrompts
from rlkd_lab.tasks.questions import QuestionTask
from rlkd_lab.tasks.reasoning import ReasoningGymTask
from rlkd_lab.tasks.registry import find_task, from_file
from rlkd_lab.tasks.rewards import SHARED, Verdict, check_verifier, check_weights, judge
from rlkd_lab.tasks.verifier import GuardedTask, guarded

__all__ = [
    "SHARED",
    "ArithmeticTask",
    "Example",
    "GuardedTask",
    "KnightsTask",
    "Lengths",
    "Limit",
    "LongPrompts",
    "QuestionTask",
    "ReasoningGymTask",
    "Score",
    "Split",
    "Task",
    "Verdict",
    "check_verifier",
    "check_weights",
    "find_task",
    "from_file",
    "guarded",
    "judge",
]
