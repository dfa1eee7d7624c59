"""How long a step takes, how much it computes, and what share that is of what the device can do."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from rlkd_lab.models import LanguageModel, Sequences, default_device


class Clock:
    """Seconds by purpose, and floating-point operations."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.flops = 0.0

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        if torch.cuda.is_available():
            # alone: another run may record a graph
            torch.cuda.current_stream(default_device()).synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


@dataclass(frozen=True)
class Size:
    """Weights of a model's matrices: those of its layers, and its head's."""

    layers: int
    head: int

    @staticmethod
    def of(lm: LanguageModel) -> Size:
        """Adapters are not counted; 4-bit weights count as the numbers that they stand for."""
        linear = [
            module
            for name, module in lm.causal_lm.named_modules()
            if isinstance(module, nn.Linear) and "lora_" not in name
        ]
        head = int(lm.head.in_features) * int(lm.head.out_features)  # type: ignore[arg-type]
        return Size(sum(module.in_features * module.out_features for module in linear) - head, head)

    def forward(self, prompts: int, completions: int) -> float:
        """Return floating-point operations of a forward pass that predicts the completions, by
        tokens of both: two a weight and token, those of attention itself left out.
        """
        return 2.0 * (self.layers * (prompts + completions) + self.head * completions)


def tokens(part: Sequences) -> tuple[int, int]:
    """Of prompts and of completions."""
    both = torch.stack([part.prompt_mask.sum(), part.completion_mask.sum()])
    prompts, completions = both.tolist()  # together: a GPU's host waits once
    return int(prompts), int(completions)


@functools.cache
def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return floating-point operations a second of a large matrix product, the best of five:
    measured here, no data sheet's.
    """
    size = 8192 if device.type == "cuda" else 512
    x = torch.ones(size, size, device=device, dtype=dtype)
    best = 0.0
    for _ in range(5):
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()
        began = time.perf_counter()
        x @ x
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()
        best = max(best, 2.0 * size**3 / (time.perf_counter() - began))
    return best
