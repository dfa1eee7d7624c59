"""Prompts and completions as tensors, with the prompts of student and teacher."""

from __future__ import annotations

from dataclasses import dataclass

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
    teacher_prompt_ids: Tensor | None = None
    """(B, Q), where the teacher reads another prompt."""
    teacher_prompt_mask: Tensor | None = None
    """(B, Q)."""
    teacher_shares: Tensor | None = None
    """(B, teachers): the weight of each of several teachers in a row; a row adds up to 1."""

    def select(self, rows: Tensor | slice) -> Sequences:
        """Return some rows, without columns that are padding in all of them."""
        own = _trimmed(self.prompt_ids[rows], self.prompt_mask[rows])
        completions = self.completion_ids[rows], self.completion_mask[rows]
        theirs: tuple[Tensor | None, Tensor | None] = None, None
        if self.teacher_prompt_ids is not None and self.teacher_prompt_mask is not None:
            theirs = _trimmed(self.teacher_prompt_ids[rows], self.teacher_prompt_mask[rows])
        shares = None if self.teacher_shares is None else self.teacher_shares[rows]
        return Sequences(*own, *completions, *theirs, shares)

    @property
    def for_teacher(self) -> Sequences:
        """The same completions after the prompts that the teacher reads."""
        if self.teacher_prompt_ids is None or self.teacher_prompt_mask is None:
            return self
        return Sequences(
            self.teacher_prompt_ids,
            self.teacher_prompt_mask,
            self.completion_ids,
            self.completion_mask,
        )


def _trimmed(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return prompts without columns that are padding in all rows."""
    first = mask.shape[1] - int(mask.sum(1).max())
    return ids[:, first:], mask[:, first:]
