"""What a sampling engine is asked for, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from rlkd_lab.models import LanguageModel
from rlkd_lab.models.dense_copy import DenseCopy


@dataclass(frozen=True)
class Sampling:
    """Says how completions are drawn.

    ``top_p`` and ``top_k`` bias the policy ratio by the mass they cut: leave them off for training.
    """

    temperature: float = 1.0
    max_new_tokens: int = 96
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        if (
            not self.temperature > 0
            or self.max_new_tokens < 1
            or not 0 < self.top_p <= 1
            or self.top_k < 0
        ):
            raise ValueError(
                "temperature > 0, max_new_tokens ≥ 1, 0 < top_p ≤ 1 and top_k ≥ 0 (0 is off)"
                f" are needed; got {self}"
            )


class Stopped(Exception):
    """Raised between two tokens when the stop flag is set."""


@dataclass(frozen=True)
class Request:
    """Asks for ``group_size`` completions of each prompt; an answer has them in a row."""

    lm: LanguageModel
    """The model in evaluation mode, without gradients, with its adapter switched on."""
    prompt_ids: Tensor
    """(prompts, P), padded on the left."""
    prompt_mask: Tensor
    """(prompts, P)."""
    group_size: int
    sampling: Sampling
    noise: Tensor
    """(prompts · group_size, max_new_tokens), uniform on [0, 1): a number for each token.

    An engine that draws with them, or seeds itself with :attr:`seed`, can be replayed.
    """
    stop: Callable[[], bool] = lambda: False
    """The engine asks it as often as is cheap, and raises :class:`Stopped` where it says yes."""
    dense: DenseCopy | None = None
    """A dense copy to sample from."""
    at_once: int = 0
    """Completions whose cache fits into memory, at least a group; 0 is all."""

    @contextmanager
    def inferring(self) -> Iterator[None]:
        """Have the models inside as an engine needs them."""
        with (
            self.lm.inferring(),
            nullcontext() if self.dense is None else self.dense.lm.inferring(),
            self.lm.active(),
        ):
            yield

    @property
    def rows(self) -> int:
        """Completions asked for."""
        return len(self.prompt_ids) * self.group_size

    @property
    def groups_at_once(self) -> int:
        """Whole groups that are sampled at a time."""
        return max((self.at_once or self.rows) // self.group_size, 1)

    @property
    def seed(self) -> int:
        """For an engine that does not draw with :attr:`noise`."""
        return int(self.noise[0, 0] * 2**31)

    def parts(self) -> Iterator[Request]:
        """Yield the request in parts of at most ``at_once`` completions, whole groups each."""
        step = self.groups_at_once
        for start in range(0, len(self.prompt_ids), step):
            yield self.part(start, start + step)

    def part(self, start: int, stop: int) -> Request:
        """Return the request for the prompts from ``start`` to ``stop``."""
        return replace(
            self,
            prompt_ids=self.prompt_ids[start:stop],
            prompt_mask=self.prompt_mask[start:stop],
            noise=self.noise[start * self.group_size : stop * self.group_size],
        )

    def unpadded(self) -> list[list[int]]:
        """Return the prompts' tokens."""
        return unpadded(self.prompt_ids, self.prompt_mask)


def unpadded(ids: Tensor, mask: Tensor) -> list[list[int]]:
    """Return the tokens of each row that count, (B, T) each: two waits for a GPU."""
    rows, counts = ids.tolist(), mask.tolist()
    return [
        [token for token, keep in zip(row, kept, strict=True) if keep]
        for row, kept in zip(rows, counts, strict=True)
    ]


class Engine(Protocol):
    """Draws the tokens."""

    def __call__(self, request: Request) -> tuple[Tensor, Tensor | None]:
        """Draw completions.

        Returns:
            Tokens, (rows, max_new_tokens), each row up to its first end of sequence, or full. What
            comes after does not matter. And the log-probability of each token as it was drawn,
            after temperature and top-p/top-k, or ``None`` where the engine does not know it.
        """
        ...
