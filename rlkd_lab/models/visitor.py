"""A frozen model that lives in host memory and visits the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Visitor:
    """Keeps a frozen model's tensors in host memory, and copies them for each visit.

    Nothing is copied back: at the end of a visit the copies are dropped. On a GPU's host the memory
    is pinned, so that the copies of a visit follow each other without waiting.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        model.to("cpu")
        self.device = device
        self.home: list[tuple[Any, str, Tensor]] = []
        """(owner, attribute, tensor); of a 4-bit weight also what it is decoded with."""
        for owner, name in _tensors(model):
            tensor = getattr(owner, name)
            pinned = tensor.pin_memory() if device.type == "cuda" else tensor
            self.home.append((owner, name, pinned))
        self._leave()

    @contextmanager
    def here(self) -> Iterator[None]:
        """Have the model on its device inside."""
        try:
            for owner, name, tensor in self.home:
                setattr(owner, name, tensor.to(self.device, non_blocking=True))
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        for owner, name, tensor in self.home:
            setattr(owner, name, tensor)


def _tensors(model: nn.Module) -> Iterator[tuple[Any, str]]:
    """Yield owner and attribute of every tensor."""
    for parameter in model.parameters():
        yield parameter, "data"
        state = getattr(parameter, "quant_state", None)
        for part in (state, getattr(state, "state2", None)):
            for name in ("absmax", "code", "offset"):
                if isinstance(getattr(part, name, None), Tensor):
                    yield part, name
    for module in model.modules():
        for name in module._buffers:
            if getattr(module, name) is not None:
                yield module, name
