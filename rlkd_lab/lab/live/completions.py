"""Recorded completions that the token inspector shows."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from rlkd_lab.lab.live.token_text import visible
from rlkd_lab.lab.live.tokens import TokenArrays, Values


@dataclass(frozen=True)
class Shown:
    """One completion on screen."""

    step: int
    prompt: int
    """Number of the prompt in its step, from 0."""
    sample: int
    """Number of the completion of its prompt, from 0."""
    index: int
    """Its row in the record."""
    data: TokenArrays
    tokens: list[str]
    """Token strings as a reader sees them."""

    @property
    def row(self) -> pd.Series:
        return self.data.frame.iloc[self.index]

    def values(self, name: str) -> Values | None:
        """Return an array of this completion, (T,), or ``None`` where it was not recorded."""
        return self.data.arrays[name][self.index] if name in self.data.arrays else None

    def marked(self, name: str, position: int) -> bool:
        """Return whether a token has a mark."""
        values = self.values(name)
        return values is not None and bool(values[position])


def groups_of(frame: pd.DataFrame, across: bool) -> list[int]:
    """Return the group of each completion; each probe is a group."""
    return list(range(len(frame))) if across else frame["group"].tolist()


def choose(data: TokenArrays, across: bool, prompt: int, sample: int) -> Shown:
    """Return the completion of a prompt and a sample, both cut to what there is."""
    groups = groups_of(data.frame, across)
    order = list(dict.fromkeys(groups))
    prompt = min(max(prompt, 0), len(order) - 1)
    members = [i for i, group in enumerate(groups) if group == order[prompt]]
    sample = min(max(sample, 0), len(members) - 1)
    index = members[sample]
    tokens = visible([str(token) for token in data.frame["tokens"].iloc[index]])
    return Shown(data.step, prompt, sample, index, data, tokens)
