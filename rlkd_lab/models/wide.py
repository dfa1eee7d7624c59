"""A 16-bit model run in float32, to know its noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

NARROW = (torch.bfloat16, torch.float16)


@contextmanager
def in_float32(model: PreTrainedModel) -> Iterator[None]:
    """Run a 16-bit model in float32 inside the block, with one layer's weights wide at a time.

    How far it is from that is its noise in 16 bit.
    """
    kept: dict[nn.Module, dict[str, Any]] = {}

    def widen(module: nn.Module, *_: object) -> None:
        named = {**vars(module), **module._parameters}
        kept[module] = {
            name: value.data if isinstance(value, torch.Tensor) else value
            for name, value in named.items()
            if _narrow(value) or (name == "compute_dtype" and value in NARROW)  # bitsandbytes'
        }
        _put(module, {n: _wide(value) for n, value in kept[module].items()})

    def narrow(module: nn.Module, *_: object) -> None:
        _put(module, kept.pop(module))

    head: Any = model.get_output_embeddings()
    hooks = [
        hook
        for module in model.modules()
        if module is not head
        for hook in (
            module.register_forward_pre_hook(widen),
            module.register_forward_hook(narrow, always_call=True),
        )
    ]
    widen(head)  # its weight is used without a call
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        narrow(head)


def _narrow(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype in NARROW


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) else torch.float32


def _put(module: nn.Module, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if name in module._parameters:
            module.get_parameter(name).data = value  # tied weights stay tied
        else:
            setattr(module, name, value)
