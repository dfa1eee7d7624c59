"""The sizes of a model, by its config."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, PreTrainedConfig

from rlkd_lab.models.locating import locate
from rlkd_lab.models.verification import read_config
from rlkd_lab.training.config import RunConfig
from rlkd_lab.training.memory_passes import COUNTED, adapted, made, one_pass

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""A weight in NF4 with double quantisation: 4 bits, an 8-bit scale for each 64, a float32 scale
for each 256 of those.
"""


@dataclass(frozen=True)
class Shape:
    """Holds the sizes of a model."""

    config: PreTrainedConfig
    layers: int
    linear: int
    """Weights of the layers that are quantised."""
    other: int
    """All the rest: embeddings, norms, biases, an output head of its own."""
    largest: int
    """Weights of the largest linear layer."""
    context: int
    counted: PreTrainedConfig
    """The config that a pass is counted with: the model's, or a Llama's of the same sizes."""

    @staticmethod
    @functools.lru_cache
    def of(name: str) -> Shape:
        """Read the sizes from the config alone."""
        config = read_config(name, locate(name, weights=False))
        counts = [_count(made(config, layers)) for layers in (1, 2)]
        layers = int(config.num_hidden_layers)
        linear, other = (
            one + (layers - 1) * (two - one)
            for one, two in zip(*(count[:2] for count in counts), strict=True)
        )
        context = int(getattr(config, "max_position_embeddings", 2**31))
        shape = Shape(config, layers, linear, other, counts[0][2], context, config)
        if made(config, 1).config._attn_implementation != COUNTED:
            _tell(
                name,
                config,
                "its attention cannot be counted as a fused kernel, so all its probabilities are",
            )
        try:
            for again in (False, True):
                trial = RunConfig(micro_batch=1, max_new_tokens=8, gradient_checkpointing=again)
                one_pass(trial, [config], [2], torch.float32, 8, True)
        except Exception as error:
            # Training runs the same code with data, where it may work.
            text = " ".join(f"{type(error).__name__}: {error}".split())
            _tell(
                name,
                config,
                f"its code does not run without data ({text:.120}), so it is taken for a"
                " Llama of the same sizes",
            )
            return replace(shape, counted=_stand_in(config))
        return shape

    @property
    def vocabulary(self) -> int:
        return int(self.config.vocab_size)

    def weights(self, quant: str, size: int) -> int:
        """Return the bytes of all weights, the linear layers in 4 bits with ``quant="nf4"``."""
        return int(self.linear * (NF4_BYTES if quant == "nf4" else size)) + size * self.other

    def cache_of_a_token(self, size: int) -> int:
        """Return the bytes of the keys and values of a token in all layers."""
        config = self.config
        heads = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
        head_dim = int(
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        return 2 * self.layers * heads * head_dim * size

    def adapter(self, config: RunConfig) -> int:
        """Return the number of weights of the LoRA adapter, each case counted once."""
        key = (self.config.to_json_string(use_diff=False), str(config.lora()))
        if key not in _adapters:
            one, two = (
                sum(
                    p.numel()
                    for p in adapted(made(self.config, n), config).parameters()
                    if p.requires_grad
                )
                for n in (1, 2)
            )
            _adapters[key] = one + (self.layers - 1) * (two - one)
        return _adapters[key]


_adapters: dict[tuple[str, str], int] = {}


def _tell(name: str, config: PreTrainedConfig, why: str) -> None:
    warnings.warn(
        f"the memory of {name} (type {config.model_type}) is an estimate: {why}", stacklevel=3
    )


def _stand_in(config: PreTrainedConfig) -> LlamaConfig:
    """Return a Llama's config of the same sizes."""
    names = ("intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner")
    widths = [getattr(config, name, None) for name in names]
    inner = next(filter(None, widths), 4 * config.hidden_size)
    heads = int(config.num_attention_heads)
    return LlamaConfig(
        hidden_size=config.hidden_size,
        intermediate_size=inner,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=heads,
        num_key_value_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None),
        vocab_size=config.vocab_size,
    )


def _count(model: Any) -> tuple[int, int, int]:
    """Return the weights of linear layers but the head, of all else, and of the largest layer."""
    head = model.get_output_embeddings()
    linear = [
        module.weight.numel()
        for module in model.modules()
        if isinstance(module, nn.Linear) and module is not head
    ]
    return sum(linear), sum(p.numel() for p in model.parameters()) - sum(linear), max(linear)
