"""Verifiers that cannot hurt a run: whatever one does with a completion, there is a score, and
where there is none, a reason.

Arithmetic and knights read a few characters with patterns that are linear in the text, and judge in
the run's process. Every other verifier runs foreign code (sympy's parser,
reasoning-gym's sets, your class): it judges in a subprocess
(:mod:`rlkd_lab.tasks.verifier_process`), each call within a time and a memory limit. A completion
that cannot be judged scores 0 in every part.

Whether a call is in time depends on the machine. So a run records which calls were given up, and
one that is resumed or replayed gives up the same ones.
"""

from __future__ import annotations

import functools
import hashlib
import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlkd_lab.tasks.arithmetic import ArithmeticTask
from rlkd_lab.tasks.base import SPLITS, Example, Score, Split, Task
from rlkd_lab.tasks.knights import KnightsTask
from rlkd_lab.tasks.lengths import (
    Lengths,
    Limit,
    Limits,
    LongPrompts,
    check_drawn,
    check_rows,
    fitting,
)
from rlkd_lab.tasks.questions import QuestionTask
from rlkd_lab.tasks.registry import find_task
from rlkd_lab.tasks.verifier_process import Answer, Unjudged, VerifierProcess, attempt

OURS = (ArithmeticTask, KnightsTask)
"""What judges in the run's process; a class made from them does not."""
LONGEST = 1_000_000
"""Characters of a completion, and of an answer; a longer one is not judged."""

GivenUp = dict[str, tuple[int, str]]
"""Calls that took too much time or memory, by :func:`key_of`: from which step on, and why."""


class GuardedTask:
    """A task whose ``score`` always returns, and whose parts are numbers in [0, 1], the same names
    every time.

    What the verifier could not judge has ``Score.why``: it raised, returned no such Score, or was
    given up.

    Args:
        task: anything that is a :class:`~rlkd_lab.tasks.base.Task`.
        process: the process in which it judges; ``None``: this one, without limits.
    """

    def __init__(self, task: Task, process: VerifierProcess | None = None) -> None:
        self.task, self.process = task, process
        self.name, self.train_difficulty, self.ood_difficulty = (
            task.name,
            task.train_difficulty,
            task.ood_difficulty,
        )
        self.limits: Limits = lambda difficulty: ()
        """Of prompts that are drawn; rows that are too long are gone."""
        self.parts: tuple[str, ...] = ()
        """Their names, as in the first score."""
        self.given_up: GivenUp = {}
        self.step = 0
        self.calls = 0
        """Since :meth:`begin`."""
        self.failed: list[str] = []
        self.fresh: dict[str, str] = {}
        """What was given up since then, and why."""

    @classmethod
    def of(cls, task: Task) -> GuardedTask:
        """Return a task, guarded in this process if it is not yet."""
        return task if isinstance(task, cls) else cls(task)

    def __getattr__(self, name: str) -> Any:
        if name == "task":
            raise AttributeError(name)
        return getattr(self.task, name)  # chance, settings, …

    def examples(
        self, n: int, seed: int, split: Split = "train", difficulty: tuple[int, int] | None = None
    ) -> list[Example]:
        return fitting(self.task, self.limits(difficulty), n, seed, split, difficulty)

    def keep_to(
        self,
        limits: Sequence[Limit],
        long_prompts: LongPrompts,
        drawn: Sequence[Example],
        harder: Sequence[Limit] = (),
    ) -> Lengths:
        """Ask no prompt from here on that is longer than the limits: of rows the longer ones are
        left out, other tasks draw again.

        Args:
            limits: of the prompts.
            long_prompts: ``drop``, or ``refuse`` a task that has longer ones.
            drawn: some examples, by which tasks without rows are judged.
            harder: the limits of prompts out of distribution, if they have others.

        Raises:
            ValueError: nothing fits, or ``long_prompts`` is ``refuse`` and something does not.
        """
        if not isinstance(self.task, QuestionTask):
            found = check_drawn(self.name, drawn, limits, long_prompts)
            self.limits = lambda difficulty: (
                harder if harder and difficulty == self.ood_difficulty else limits
            )
            return found
        kept, found = check_rows(
            self.name,
            [row for split in SPLITS for row in self.task.rows(split)],
            limits,
            long_prompts,
        )
        ids = {id(row) for row in kept}
        self.task.keep(lambda row: id(row) in ids)
        self.train_difficulty = self.task.train_difficulty
        return found

    def begin(self, step: int, given_up: GivenUp) -> None:
        """A step, with the calls that are given up in it; those that it adds are written there."""
        self.step, self.given_up, self.calls, self.failed, self.fresh = step, given_up, 0, [], {}

    def told(self) -> dict[str, Any] | None:
        """Return the event of this step, if a call failed in it."""
        if not self.failed:
            return None
        text = (
            f"{len(self.failed)} of {self.calls} calls of the verifier failed and score 0:"
            f" {self.failed[0]}"
        )
        gave_up = {"gave_up": self.fresh} if self.fresh else {}
        return {
            "event": "verifier",
            "step": self.step,
            "failed": len(self.failed),
            "of": self.calls,
            "why": self.failed[0],
            "text": text,
            **gave_up,
        }

    def score(self, completion: str, example: Example) -> Score:
        """Judge a completion. Never raises."""
        found = self._call("score", completion, example)
        if found.value is not None:
            score = Score(**found.value)
            self.parts = self.parts or tuple(score.parts)
            if set(score.parts) == set(self.parts):
                return score
            found = Answer(
                why=f"score gave the parts {', '.join(score.parts)}, and before"
                f" {', '.join(self.parts)}"
            )
        self.failed.append(found.why)
        return Score(dict.fromkeys(self.parts, 0.0), None, found.why)

    def checking(self, completion: str) -> str:
        """Return the part of a completion that checks the rest, where the task says which."""
        if not hasattr(self.task, "checking"):
            return ""
        found = self._call("checking", completion, None)
        if found.value is not None:
            return str(found.value["text"])
        self.failed.append(found.why)
        return ""

    def close(self) -> None:
        """End its process."""
        if self.process is not None:
            self.process.close()

    def _call(self, method: str, completion: str, example: Example | None) -> Answer:
        self.calls += 1
        if len(completion) > LONGEST:
            return Answer(
                why=f"{method} was not called: the completion has {len(completion)} characters,"
                f" more than {LONGEST}"
            )
        key = key_of(method, completion, example)
        step, why = self.given_up.get(key, (self.step + 1, ""))
        if step <= self.step:
            self.fresh[key] = why
            return Answer(why=why)
        call = (
            functools.partial(attempt, work, self.task)
            if self.process is None
            else self.process.call
        )
        found = call(method, completion, example)
        if found.machine:
            self.given_up[key], self.fresh[key] = (self.step, found.why), found.why
        return found


def work(task: Task, method: str, completion: str, example: Example | None) -> dict[str, Any]:
    """Call the task, and return its answer in plain values, if it is of the right type."""
    if method == "checking":
        text = task.checking(completion)  # type: ignore[attr-defined]
        if not isinstance(text, str):
            raise Unjudged(f"checking returned a {type(text).__name__}; it returns text")
        return {"text": text[:LONGEST]}
    assert example is not None
    score = task.score(completion, example)
    if not isinstance(score, Score):
        raise Unjudged(
            f"score returned a {type(score).__name__}; it returns Score({{'accuracy': …}}, answer)"
        )
    parts: dict[str, float] = {}
    for name, value in dict(score.parts).items():
        if not isinstance(value, numbers.Real) or isinstance(value, bool):
            raise Unjudged(
                f"score gave {name}={value!r:.40}, a {type(value).__name__}; a part is a"
                " number in 0–1, such as float(right)"
            )
        parts[str(name)] = float(value)
        if not 0 <= parts[str(name)] <= 1:  # a NaN is not either
            raise Unjudged(f"score gave {name}={value}, which is not in 0–1")
    if "accuracy" not in parts:
        raise Unjudged(f"score has no part accuracy; it has {', '.join(parts) or 'none'}")
    if score.answer is not None and (
        not isinstance(score.answer, str) or len(score.answer) > LONGEST
    ):
        raise Unjudged(
            f"score gave an answer that is a {type(score.answer).__name__}; it is a text, of"
            f" {LONGEST} characters at most, or None"
        )
    return {"parts": parts, "answer": score.answer}


def guarded(
    name: str,
    settings: Mapping[str, Any] | None = None,
    template: str | None = None,
    seconds: float = 10.0,
    fields: Sequence[str] = (),
) -> GuardedTask:
    """Return the task of that name, as :func:`~rlkd_lab.tasks.registry.find_task` finds it.

    Args:
        name: see there, as ``settings`` and ``template``.
        settings: of the task.
        template: of its prompts.
        seconds: time limit of a call, for what judges in a process of its own; 0: it judges in this
            one, without limits.
        fields: see :func:`~rlkd_lab.tasks.registry.find_task`.

    Raises:
        ValueError, OSError: in one sentence.
    """
    task = find_task(name, settings, template, fields)
    if type(task) in OURS or not seconds:
        return GuardedTask(task)
    if (
        type(task) is QuestionTask
    ):  # which may have a hundred thousand rows, and needs none to judge
        return GuardedTask(
            task, VerifierProcess(QuestionTask.without_rows, (task.name,), work, seconds)
        )
    path, colon, attribute = name.rpartition(":")
    there = f"{Path(path).resolve()}:{attribute}" if colon else name
    return GuardedTask(
        task, VerifierProcess(find_task, (there, dict(settings or {}), template), work, seconds)
    )


def key_of(method: str, completion: str, example: Example | None) -> str:
    """Name a call: the same for the same completion of the same prompt, whenever it is judged."""
    parts = (method, completion, "" if example is None else str(example.id))
    return hashlib.sha256("\0".join(parts).encode(errors="surrogatepass")).hexdigest()[:16]
