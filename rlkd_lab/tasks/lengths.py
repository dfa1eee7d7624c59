"""How long prompts may be, and what happens to longer ones.

Rows of files are measured once, before a run starts, and rows that are too long are left out. Tasks
that make their prompts draw again: the prompts depend on the arguments of ``examples`` and the
limits alone, so that every process, a resumed run and a replay draw the same ones. Where all
prompts fit, nothing is drawn that would not have been drawn without limits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from rlkd_lab.tasks.base import Example, Split, Task

LongPrompts = Literal["drop", "refuse"]
MISSES = 300
"""Prompts drawn in a row that are too long, after which no more are drawn.

Where a tenth of the prompts fits, this happens once in 5e13 draws.
"""
FEWEST = 0.1
"""Smallest share of a generated task's prompts that must fit."""
LARGE = 0.1
"""Share of prompts that are drawn again from which on this is told."""


@dataclass(frozen=True)
class Limit:
    """Room that one model has for a prompt."""

    measure: Callable[[Sequence[str]], list[int]]
    """Tokens of prompts, as the model reads them."""
    source: str
    """Name of the model."""
    context: int
    """Tokens of prompt and completion together."""
    completion: int
    """Tokens of the longest completion."""
    most: int | None = None
    """The setting ``max_prompt_tokens``."""
    remark: Callable[[str], str] = str
    """What is added to a sentence about this model."""
    asked: Callable[[Example], str] = lambda example: example.prompt
    """The prompt of an example, as this model is asked it."""

    @property
    def tokens(self) -> int:
        """Tokens of the longest prompt."""
        room = self.context - self.completion
        return room if self.most is None else min(room, self.most)

    def broken_by(self, tokens: int) -> str:
        """Say why a prompt of so many tokens does not fit."""
        if tokens == 0:
            return self.remark(
                f"{self.source} reads no token in a prompt: there is nothing to continue"
            )
        if tokens + self.completion > self.context:
            what = (
                f"prompts of {tokens:,} tokens and completions of {self.completion} do not fit"
                f" the context of {self.context} tokens of {self.source}"
            )
            return self.remark(f"{what}; lower max_new_tokens")
        return self.remark(f"prompts of {tokens:,} tokens are above max_prompt_tokens={self.most}")

    @property
    def why(self) -> str:
        """What sets the limit."""
        if self.most == self.tokens:
            return "max_prompt_tokens"
        return (
            f"the context of {self.context} tokens of {self.source}, less {self.completion}"
            " for the completion"
        )


Limits = Callable[[tuple[int, int] | None], Sequence[Limit]]
"""The limits of prompts of a range of difficulty."""


@dataclass(frozen=True)
class Lengths:
    """What was measured."""

    longest: int
    """Tokens of the longest prompt that fits."""
    told: str | None = None
    """A sentence about prompts that do not."""


Broken = tuple[int, Limit]
"""Tokens of a prompt, and the first limit that it breaks."""


def measured(
    limits: Sequence[Limit], examples: Sequence[Example]
) -> tuple[list[Broken | None], int]:
    """For each example the limit that its prompt breaks, ``None`` where it fits; and the tokens
    of the longest prompt that fits, 0 where none does.
    """
    broken: list[Broken | None] = [None] * len(examples)
    most = [0] * len(examples)
    for limit in limits:
        prompts = [limit.asked(example) for example in examples]
        for i, tokens in enumerate(limit.measure(prompts) if prompts else ()):
            most[i] = max(most[i], tokens)
            if broken[i] is None and not 0 < tokens <= limit.tokens:
                broken[i] = (tokens, limit)
    return broken, max(
        (tokens for tokens, problem in zip(most, broken, strict=True) if problem is None), default=0
    )


def fitting(
    task: Task,
    limits: Sequence[Limit],
    n: int,
    seed: int,
    split: Split,
    difficulty: tuple[int, int] | None,
) -> list[Example]:
    """``n`` examples of a task whose prompts fit; those that do not are drawn again, each in its
    place.

    Raises:
        ValueError: none of :data:`MISSES` further prompts fits.
    """
    found = list(task.examples(n, seed, split, difficulty))
    if not limits:
        return found
    broken, _ = measured(limits, found)
    missing = [i for i, problem in enumerate(broken) if problem is not None]
    misses = turn = 0
    while missing:
        size = min(
            len(missing) * 2**turn, MISSES
        )  # more each time, for tasks that look at n and not at the seed
        turn += 1
        drawn = task.examples(size, _again(seed, turn), split, difficulty)
        broken, _ = measured(limits, drawn)
        good = [example for example, problem in zip(drawn, broken, strict=True) if problem is None]
        misses = 0 if good else misses + max(len(drawn), 1)
        if misses >= MISSES:
            raise ValueError(
                f"{task.name}: none of {misses} {split} prompts drawn in a row fits:"
                f" {_said(_worst(broken)[1])}"
            )
        for i, example in zip(missing, good, strict=False):
            found[i] = example
        missing = missing[len(good) :]
    return found


def _again(seed: int, turn: int) -> int:
    return (
        int.from_bytes(hashlib.sha256(f"{seed}/too long/{turn}".encode()).digest()[:4], "big")
        % 2**31
    )


def _worst(broken: Sequence[Broken | None]) -> tuple[int, Broken]:
    """Return the longest prompt among those that do not fit: its index, tokens and limit."""
    return max(
        ((i, problem) for i, problem in enumerate(broken) if problem is not None),
        key=lambda one: one[1][0],
    )


def _said(problem: Broken) -> str:
    tokens, limit = problem
    return limit.broken_by(tokens)


def _beyond(tokens: int, limit: Limit) -> str:
    return f"above {limit.tokens:,} tokens ({limit.why})" if tokens else "without a token"


def check_rows(
    name: str, rows: Sequence[Example], limits: Sequence[Limit], long_prompts: LongPrompts
) -> tuple[list[Example], Lengths]:
    """Return the rows that fit, and what is to be told of the others.

    Raises:
        ValueError: none fits, or some do not and ``long_prompts`` is ``refuse``.
    """
    broken, longest = measured(limits, rows)
    kept = [row for row, problem in zip(rows, broken, strict=True) if problem is None]
    if len(kept) == len(rows):
        return kept, Lengths(longest)
    if not kept:
        raise ValueError(
            f"{name}: no row fits: even {_said(min(filter(None, broken), key=lambda one: one[0]))}"
        )
    at, (tokens, limit) = _worst(broken)
    have = (
        f"{name}: {len(rows) - len(kept):,} of {len(rows):,} rows have prompts"
        f" {_beyond(tokens, limit)}"
    )
    which = f"longest {tokens:,} ({rows[at].meta['where']})"
    if long_prompts == "refuse":
        raise ValueError(
            limit.remark(f"{have}, {which}: shorten or remove them, or --set long_prompts=drop")
        )
    return kept, Lengths(longest, limit.remark(f"{have} and are left out, {which}"))


def check_drawn(
    name: str, drawn: Sequence[Example], limits: Sequence[Limit], long_prompts: LongPrompts
) -> Lengths:
    """Return what is to be told of the prompts that a task makes, seen from some of them.

    Raises:
        ValueError: fewer than :data:`FEWEST` of them fit, or some do not and ``long_prompts`` is
            ``refuse``.
    """
    broken, longest = measured(limits, drawn)
    long = len(drawn) - broken.count(None)
    if not long:
        return Lengths(longest)
    if long == len(drawn):
        raise ValueError(f"{name}: {_said(min(filter(None, broken), key=lambda one: one[0]))}")
    _, (tokens, limit) = _worst(broken)
    if len(drawn) - long < FEWEST * len(drawn):
        raise ValueError(
            f"{name}: only {len(drawn) - long} of {len(drawn)} prompts fit:"
            f" {limit.broken_by(tokens)}"
        )
    have = (
        f"{name}: {long} of {len(drawn)} prompts drawn are {_beyond(tokens, limit)}, longest"
        f" {tokens:,}"
    )
    if long_prompts == "refuse":
        raise ValueError(
            limit.remark(
                f"{have}: make the task's prompts shorter, or --set long_prompts=drop draws others"
            )
        )
    return Lengths(
        longest,
        limit.remark(f"{have}; others are drawn in their place")
        if long >= LARGE * len(drawn)
        else None,
    )
