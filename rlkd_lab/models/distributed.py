"""Several processes on one run: who this is, and what all of them know. With one process every
function here does nothing.

``accelerate launch -m rlkd_lab train …`` starts them, one a GPU. Each samples and differentiates
its share; completions, gradients and measured values are added up over all, so that every process
has the whole rollout, and all of them compute the same metrics as one process would.
"""

from __future__ import annotations

import os
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def join() -> None:
    """Meet the other processes, if this one was started as one of several."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available())


def count() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this one, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def first() -> bool:
    """Whether this is the process that writes."""
    return rank() == 0


def share(number: int) -> range:
    """Which of so many things in a row are this process's."""
    return range(number * rank() // count(), number * (rank() + 1) // count())


def add_up(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if count() > 1:
        dist.all_reduce(tensor)
    return tensor


def from_first(value: T) -> T:
    """What the first process has."""
    held = [value]
    if count() > 1:
        dist.broadcast_object_list(held, src=0)
    return held[0]


def from_all(value: T) -> list[T]:
    """What each process has, in their order."""
    found: list[T | None] = [None] * count()
    if count() == 1:
        return [value]
    dist.all_gather_object(found, value)
    return found  # type: ignore[return-value]
