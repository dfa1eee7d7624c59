"""From what a verifier says to the reward, a weighted sum of parts.

    reward = Σ weight · part

The task's parts (``accuracy``, ``format``, …) lie in [0, 1]. They are 0 for a completion that the
length limit cut. The shared parts of :data:`SHARED` see length and group too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rlkd_lab.tasks.base import Example, Score, Task
from rlkd_lab.tasks.verifier import GuardedTask

OVERLONG_SHARE = 0.2
"""Share of the length limit over which the overlong penalty grows:

DAPO's 4,096 of 20,480 tokens.
"""


@dataclass(frozen=True)
class Sample:
    """Shows a completion to a shared part; ``length`` and ``limit`` are in tokens."""

    text: str
    length: int
    limit: int
    correct: bool
    counted: bool = True


@dataclass(frozen=True)
class Verdict:
    """Says what a completion is worth.

    ``answer`` is what was read, ``why`` the reason where it could not be judged. ``counted`` says
    whether it enters the statistics of its group.
    """

    reward: float
    parts: dict[str, float]
    answer: str | None
    correct: bool
    why: str | None = None
    counted: bool = True


def overlong(group: Sequence[Sample]) -> list[float]:
    """Return 0 up to 80 % of the length limit, and from there linearly down to −1 at the limit.

    DAPO (arXiv 2503.14476), Eq. 13.

    >>> overlong([Sample("", length, 100, True) for length in (50, 80, 90, 100)])
    [0.0, 0.0, -0.5, -1.0]
    """
    return [
        min(0.0, (one.limit - one.length) / (OVERLONG_SHARE * one.limit) - 1.0) for one in group
    ]


def brevity(group: Sequence[Sample]) -> list[float]:
    """Return λ = ½ − (length − shortest) / (longest − shortest), at most 0 for a wrong answer.

    Shortest and longest are those of the group's completions that count; the others have 0.
    Kimi k1.5 (arXiv 2501.12599), §2.3.3.

    >>> brevity([Sample("", 10, 100, True), Sample("", 20, 100, True), Sample("", 10, 100, False)])
    [0.5, -0.5, 0.0]
    """
    lengths = [one.length for one in group if one.counted] or [0]
    shortest, longest = min(lengths), max(lengths)
    if shortest == longest:
        return [0.0] * len(group)
    values = [
        0.5 - (one.length - shortest) / (longest - shortest) if one.counted else 0.0
        for one in group
    ]
    return [
        value if one.correct else min(0.0, value) for one, value in zip(group, values, strict=True)
    ]


def think_format(group: Sequence[Sample]) -> list[float]:
    """Return 1 where the completion is ``<think>…</think>`` and then an answer.

    DeepSeek-R1 (arXiv 2501.12948), §2.2.2.

    >>> texts = ("<think>2+2</think>4", "4", "<think>4</think>")
    >>> think_format([Sample(text, 1, 9, True) for text in texts])
    [1.0, 0.0, 0.0]
    """
    return [float(_thinks(one.text)) for one in group]


def _thinks(text: str) -> bool:
    thought, closing, answer = text.strip().partition("</think>")
    return bool(
        thought.startswith("<think>") and closing and answer.strip()
        and thought.count("<think>") == 1 and "<think>" not in answer and "</think>" not in answer
    )  # fmt: skip


SHARED: Mapping[str, Callable[[Sequence[Sample]], list[float]]] = {
    "overlong": overlong,
    "brevity": brevity,
    "think_format": think_format,
}
"""Parts that any task can have, off until they get a weight.

Each maps a group (the completions of one prompt) to a value a completion.
"""


def judge(
    task: Task,
    weights: Mapping[str, float],
    texts: Sequence[str],
    examples: Sequence[Example],
    finished: Sequence[bool],
    lengths: Sequence[int],
    limit: int,
    group_size: int = 1,
    leave_out: Collection[Literal["unjudged", "truncated"]] = (),
) -> list[Verdict]:
    """Score completions and weigh their parts.

    A completion that the verifier cannot judge has 0 in each of the task's parts, and a reason.

    Args:
        task: the verifier.
        weights: of the parts, by name. Without one, a task's part is recorded, and a shared part is
            not computed. A weight of 0 asks for no part.
        texts: completions, ``group_size`` in a row for one prompt.
        examples: one a completion.
        finished: ended by itself, not by the length limit.
        lengths: in tokens, the end of sequence included.
        limit: length limit in tokens.
        group_size: completions a prompt.
        leave_out: which completions do not count in their group.
    """
    task = GuardedTask.of(task)
    # what the length limit cut is worth nothing, and is not shown to the verifier
    judged = [
        task.score(text, example) if whole else None
        for text, example, whole in zip(texts, examples, finished, strict=True)
    ]
    nothing = dict.fromkeys(_parts(task, examples, weights), 0.0)
    scores = [
        score if score and not score.why else Score(nothing, None, score.why if score else None)
        for score in judged
    ]
    samples = []
    for text, length, score, whole in zip(texts, lengths, scores, finished, strict=True):
        left_out = (score.why and "unjudged" in leave_out) or (
            not whole and "truncated" in leave_out
        )
        samples.append(Sample(text, length, limit, score.correct, counted=not left_out))
    parts = [
        dict(score.parts) | shared
        for score, shared in zip(scores, _shared_parts(samples, weights, group_size), strict=True)
    ]
    return [
        Verdict(
            sum(weight * own[name] for name, weight in weights.items() if weight),
            own,
            score.answer,
            score.correct,
            score.why,
            one.counted,
        )
        for own, score, one in zip(parts, scores, samples, strict=True)
    ]


def _shared_parts(
    samples: Sequence[Sample], weights: Mapping[str, float], group_size: int
) -> list[dict[str, float]]:
    """Return the shared parts that have a weight, for each completion."""
    parts: list[dict[str, float]] = [{} for _ in samples]
    for name in weights:
        if name in SHARED:
            for start in range(0, len(samples), group_size):
                for offset, value in enumerate(SHARED[name](samples[start : start + group_size])):
                    parts[start + offset][name] = value
    return parts


def _parts(
    task: GuardedTask, examples: Sequence[Example], weights: Mapping[str, float]
) -> Sequence[str]:
    """Return the names of the task's parts, also where no completion has shown them."""
    if not task.parts and examples:
        task.score("", examples[0])
    return task.parts or ("accuracy", *(name for name in weights if name not in SHARED))


def check_verifier(task: Task, verdicts: Sequence[Verdict], finished: Sequence[bool]) -> None:
    """Raise ValueError where a verifier failed on all of several completions.

    It is broken then, and rewards of 0 would hide it.
    """
    shown = [verdict.why for verdict, whole in zip(verdicts, finished, strict=True) if whole]
    if len(shown) > 1 and all(shown):
        raise ValueError(
            f"the task {task.name}: {shown[0]}; so it went with all {len(shown)} completions"
            " that it was shown"
        )


def check_weights(task: Task, weights: Mapping[str, float], example: Example) -> None:
    """Raise ValueError for a part that nothing gives, or a verifier that fails on empty text."""
    score = GuardedTask.of(task).score("", example)
    if score.why:
        raise ValueError(
            f"the task {task.name}: {score.why}, on the empty completion; score must take any text"
        )
    own = score.parts
    unknown = [
        name
        for name, weight in weights.items()
        if weight and name not in own and name not in SHARED
    ]
    if unknown:
        raise ValueError(
            f"unknown reward part {unknown[0]!r}: the task {task.name} has {', '.join(own)};"
            f" every task can have {', '.join(SHARED)}"
        )
