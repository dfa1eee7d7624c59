"""A layer's weights, laid out for the lean decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from rlkd_lab.models.families import Family


@dataclass(frozen=True)
class Block:
    """A layer as the decoder runs it."""

    to_heads: Fused
    to_states: Any
    """The linear layer behind the attention."""
    gate_up: Fused
    down: Any
    norms: list[Tensor | None]
    """Weights before and after the attention, before and after the MLP."""
    head_norms: list[tuple[slice, Tensor]]
    """Which heads of queries and keys are normed, and by what, (heads, D)."""
    rotation: str | None
    window: int | None

    @classmethod
    def of(
        cls, layer: Any, family: Family, head_dim: int, rotation: str | None, window: int | None
    ) -> Block:
        """Lay out a layer of transformers. Its weights become views of the block's."""
        attention, mlp = layer.self_attn, layer.mlp
        return cls(
            Fused(*(getattr(attention, name) for name in family.qkv)),
            attention.o_proj,
            Fused(*(getattr(mlp, name) for name in family.gate_up)),
            mlp.down_proj,
            [
                None if name is None else norm_weight(getattr(layer, name), family)
                for name in family.norms
            ],
            _head_norms(attention, family, head_dim),
            rotation,
            window,
        )


def norm_weight(norm: Any, family: Family) -> Tensor:
    """Return what a norm multiplies by."""
    return norm.weight.data.float() + 1 if family.one_plus else norm.weight


def _head_norms(attention: Any, family: Family, head_dim: int) -> list[tuple[slice, Tensor]]:
    if not hasattr(attention, "q_norm"):
        return []
    queries, keys = attention.config.num_attention_heads, attention.config.num_key_value_heads
    q, k = (
        norm_weight(norm, family).data.view(-1, head_dim)
        for norm in (attention.q_norm, attention.k_norm)
    )
    if family.one_norm_for_all_heads:
        return [(slice(queries), q), (slice(queries, queries + keys), k)]
    return [(slice(queries + keys), torch.cat([q.expand(queries, -1), k.expand(keys, -1)]))]


class Fused:
    """One matrix of which the weights of several linear layers are views from now on.

    The rows of their adapters' A are below them. So a product gives both, and B takes what A gave.
    """

    def __init__(self, *modules: Any) -> None:
        self.widths = [len(module.weight) for module in modules]
        adapted = [module for module in modules if hasattr(module, "a")]
        weights = [module.weight.data for module in modules]
        self.weight = torch.cat([*weights, *(module.a for module in adapted)])
        parts = self.weight.split(self.widths + [len(module.a) for module in adapted])
        for module, part in zip(modules, parts, strict=False):
            module.weight.data = part
        for module, part in zip(adapted, parts[len(modules) :], strict=True):
            module.a = part
        self.bias: Tensor | None = None
        self.b = self._blocks(modules) if adapted else None
        if modules[0].bias is not None:
            nothing = self.weight.new_zeros(len(self.weight) - sum(self.widths))
            self.bias = torch.cat([*(module.bias.data for module in modules), nothing])

    def _blocks(self, modules: Any) -> Tensor:
        """Return B of all, where one without an adapter has a block of no columns."""
        ranks = [module.b.shape[1] if hasattr(module, "b") else 0 for module in modules]
        blocks = torch.block_diag(
            *(
                module.b if rank else self.weight.new_zeros(width, 0)
                for module, width, rank in zip(modules, self.widths, ranks, strict=True)
            )
        )
        row = column = 0
        for module, width, rank in zip(modules, self.widths, ranks, strict=True):
            if rank:
                module.b = blocks[row : row + width, column : column + rank]
            row, column = row + width, column + rank
        return blocks

    def __call__(self, x: Tensor) -> Tensor:
        out = linear(x, self.weight, self.bias)
        if self.b is None:
            return out
        out, low = out.split([len(self.b), self.b.shape[1]], dim=-1)
        if x.dim() != 2:
            return out + linear(low, self.b)
        return out.addmm_(low, self.b.T)
