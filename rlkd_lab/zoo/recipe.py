"""How a model of the zoo is made: its recipe, and the batches that follow from it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase

Row = tuple[list[int], list[int]]
"""Token ids and labels of one example; a label of -100 does not count."""
Part = tuple[torch.Tensor, torch.Tensor]
"""The same padded, (batch, time)."""


@dataclass(frozen=True)
class Recipe:
    """How one model is made."""

    hidden: int
    layers: int
    heads: int
    feed_forward: int
    steps: int
    batch: int
    lr: float
    cosine: bool
    direct: float
    """Share of completions that answer at once, without steps."""
    corrupted: float
    """Share of the worked completions in which one step is wrong and the rest follows from it."""
    checked: float
    """Share of the worked completions that repeat their steps as a check."""
    seed: int
    long: float = 0.1
    """Share of prompts out of distribution; post-training never has such prompts."""
    task: str = "arithmetic"
    part_tokens: int | None = None
    """Most tokens of a part of a batch, sorted by length to save padding; None is one part."""
    context: int = 512
    key_heads: int = 1


def drawn_style(
    recipe: Recipe, rng: random.Random
) -> Literal["direct", "corrupted", "checked", "steps"]:
    """Draw a style from the recipe's mixture."""
    if rng.random() < recipe.direct:
        return "direct"
    if rng.random() < recipe.corrupted:
        return "corrupted"
    return "checked" if rng.random() < recipe.checked else "steps"


def row_of(prompt: str, completion: str, tokenizer: PreTrainedTokenizerBase) -> Row:
    """Return prompt and completion with an end of sequence; the prompt has no labels."""
    ids = tokenizer(prompt)["input_ids"]
    target = tokenizer(completion)["input_ids"] + [tokenizer.eos_token_id]
    return ids + target, [-100] * len(ids) + target


def parts_of(rows: list[Row], part_tokens: int | None, pad: int) -> list[Part]:
    """Cut the rows of a step into parts of at most ``part_tokens`` tokens, padding included."""
    parts = [rows]
    if part_tokens is not None:
        parts = [[]]
        for row in sorted(rows, key=lambda row: -len(row[0])):
            if parts[-1] and (len(parts[-1]) + 1) * len(parts[-1][0][0]) > part_tokens:
                parts.append([])
            parts[-1].append(row)
    return [_padded(part, pad) for part in parts]


def _padded(rows: list[Row], pad: int) -> Part:
    width = max(len(ids) for ids, _ in rows)
    ids = [ids + [pad] * (width - len(ids)) for ids, _ in rows]
    labels = [labels + [-100] * (width - len(labels)) for _, labels in rows]
    return torch.tensor(ids), torch.tensor(labels)
