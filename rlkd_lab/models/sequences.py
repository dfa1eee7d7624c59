"""Prompts and completions as tensors, with what the teacher reads in their place."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class Sequences:
    """Prompts, padded left, and completions, padded right."""

    prompt_ids: Tensor
    """(B, P)."""
    prompt_mask: Tensor
    """(B, P): 1 on tokens."""
    completion_ids: Tensor
    """(B, T)."""
    completion_mask: Tensor
    """(B, T): 1 on tokens up to and including the end of sequence."""
    teacher: Sequences | None = None
    """What the teacher reads, where it is another prompt or another tokenizer's tokens."""
    spans: Tensor | None = None
    """(B, T): of another tokenizer, the span that a token belongs to, or −1.

    See :mod:`~rlkd_lab.models.spans`.
    """
    teacher_shares: Tensor | None = None
    """(B, teachers): the weight of each of several teachers in a row; a row adds up to 1."""

    def select(self, rows: Tensor | slice) -> Sequences:
        """Return some rows, without columns that are padding in all of them."""
        return Sequences(
            *_trimmed(self.prompt_ids[rows], self.prompt_mask[rows]),
            self.completion_ids[rows],
            self.completion_mask[rows],
            None if self.teacher is None else self.teacher.select(rows),
            None if self.spans is None else self.spans[rows],
            None if self.teacher_shares is None else self.teacher_shares[rows],
        )

    @property
    def for_teacher(self) -> Sequences:
        """What the teacher reads."""
        return self.teacher or self

    def after(self, prompt_ids: Tensor, prompt_mask: Tensor) -> Sequences:
        """Return the same completions, which the teacher reads after other prompts, (B, Q)."""
        theirs = Sequences(prompt_ids, prompt_mask, self.completion_ids, self.completion_mask)
        return replace(self, teacher=theirs)


def _trimmed(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return prompts without columns that are padding in all rows."""
    first = mask.shape[1] - int(mask.sum(1).max())
    return ids[:, first:], mask[:, first:]
