"""Votes of majority@k: wrong answers that mean the same have one name."""

from __future__ import annotations

import re

from rlkd_lab.tasks.answers import final_answer
from rlkd_lab.tasks.base import Example, Task
from rlkd_lab.tasks.questions import QuestionTask
from rlkd_lab.tasks.rewards import Verdict
from rlkd_lab.tasks.verifier import GuardedTask

MOST = 24
"""Different wrong answers of a prompt that a new one is compared with."""
_INTEGER = re.compile(r"-?\d+\Z")


class Votes:
    """Names of the answers to the prompts of one task.

    A wrong answer to a question has the name of the first earlier one that equals it. Other tasks
    name their answers themselves.

    Args:
        task: the verifier, which also compares two answers.
    """

    def __init__(self, task: Task) -> None:
        self.task = GuardedTask.of(task)
        self.compares = isinstance(self.task.task, QuestionTask)
        self.names: dict[str, dict[str, tuple[str, str]]] = {}
        """By prompt, the name that an answer has by itself → its final answer, its name."""

    def name(self, example: Example, completion: str, verdict: Verdict) -> str | None:
        """Return the name that the answer of a completion votes for; ``None``: it has no vote."""
        own = verdict.answer
        if own is None or verdict.correct or not self.compares:
            return own
        seen = self.names.setdefault(example.id, {})
        if own not in seen:
            name = self._equal(own, completion, seen) or own
            if len(seen) >= MOST:
                return name
            seen[own] = final_answer(completion)[0], name
        return seen[own][1]

    def _equal(self, own: str, completion: str, seen: dict[str, tuple[str, str]]) -> str | None:
        """Return the name of the first answer that the completion's equals."""
        for other, (answer, name) in seen.items():
            if _INTEGER.match(own) and _INTEGER.match(other):
                continue
            if self.task.score(completion, Example("", answer, 0, f"as {answer}", {})).correct:
                return name
        return None
