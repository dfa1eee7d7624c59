"""The Task protocol: where prompts come from and how a completion is judged.

A task is a source of :class:`Example` and a rule-based verifier. A verifier is given text that a
model made up: it never raises on it and never evaluates it as code; what one does all the same
cannot hurt a run (:mod:`rlkd_lab.tasks.verifier`). What its parts are worth is not its business:
the weights are the config's (:mod:`rlkd_lab.tasks.rewards`).
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class Chat(str):
    r"""A prompt of several turns: a text to read, and ``turns`` for a chat template.

    >>> Chat([("user", "1+1?"), ("assistant", "2"), ("user", "Once more 1?")])
    'user: 1+1?\nassistant: 2\nuser: Once more 1?'
    """

    turns: tuple[tuple[str, str], ...]
    """Role and text of each; the last is the user's."""

    def __new__(cls, turns: Iterable[tuple[str, str]]) -> Chat:
        turns = tuple(turns)
        found = super().__new__(cls, "\n".join(f"{role}: {text}" for role, text in turns))
        found.turns = turns
        return found

    def __getnewargs__(self) -> tuple[tuple[tuple[str, str], ...]]:  # type: ignore[override]
        return (self.turns,)

    def changed(self, change: Callable[[str], str]) -> Chat:
        """Return it with every text changed."""
        return Chat((role, change(text)) for role, text in self.turns)


@dataclass(frozen=True)
class Example:
    """One prompt with its reference answer.

    ``difficulty`` is an integer that grows with the work needed (operations, people); ``id`` is the
    same for the same prompt in every process. A prompt may be a :class:`Chat`.
    """

    prompt: str
    answer: str
    difficulty: int
    id: str
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """What a verifier says of one completion."""

    parts: dict[str, float]
    """Each in [0, 1]; ``accuracy`` is correctness. The same names for every completion."""
    answer: str | None = None
    """The final answer as it was read, in a form in which equal answers are equal texts
    (majority@k counts them); ``None``: none could be read.
    """
    why: str | None = None
    """Why the verifier could not judge; every part is 0 then.

    Set where it is called, not by a verifier.
    """

    @property
    def correct(self) -> bool:
        """Correctness alone, without format or length parts."""
        return self.parts.get("accuracy", 0.0) >= 1.0


@runtime_checkable
class Task(Protocol):
    """What the training loop asks of a task."""

    name: str
    train_difficulty: tuple[int, int]
    """Smallest and largest difficulty of the training prompts."""
    ood_difficulty: tuple[int, int] | None
    """The same for out-of-distribution prompts, harder than anything trained on;

    ``None``: the task has none.
    """

    def examples(
        self, n: int, seed: int, split: Split = "train", difficulty: tuple[int, int] | None = None
    ) -> list[Example]:
        """``n`` examples; the same arguments give the same list. Splits share no prompt."""
        ...

    def score(self, completion: str, example: Example) -> Score:
        """Judge a completion. Never raises on its text."""
        ...


def split_of(text: str) -> Split:
    """Return the split that a prompt belongs to, by a hash of its text: 80 % train, 10 %
    validation, 10 % test.

    Splits are disjoint by construction: no seed and no difficulty can move a prompt.

    >>> split_of("49-7+4-2?") == split_of("49-7+4-2?")
    True
    """
    bucket = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % 10
    return "train" if bucket < 8 else "validation" if bucket == 8 else "test"


def check_split(split: str) -> None:
    """Raise ValueError for a split that no prompt belongs to."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: use {', '.join(SPLITS)}")


def check_template(template: str | None) -> None:
    """Raise ValueError for a template without ``{question}``; ``None`` is the task's own."""
    if template is not None and "{question}" not in template:
        raise ValueError(
            f"prompt_template has no {{question}}, where the question goes: {template[:60]!r}"
        )


def seeded(*parts: object) -> random.Random:
    """Return a random stream for a tuple of labels. The global stream is never touched."""
    return random.Random(hashlib.sha256(repr(parts).encode()).hexdigest())


def made_of(piece: re.Pattern[str], text: str) -> bool:
    """Whether the text is one match of ``piece`` after another, at least one and nothing else.
    ``+`` around the pattern says the same wherever no match begins with another, and keeps a place
    to come back to for each, which a long completion fills the memory with.

    >>> piece = re.compile("a;")
    >>> made_of(piece, "a;a;"), made_of(piece, "a;a"), made_of(piece, "")
    (True, False, False)
    """
    at = 0
    while found := piece.match(text, at):
        at = found.end()
    return 0 < at == len(text)
