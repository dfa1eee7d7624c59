"""A dense copy of a 4-bit model with its adapter merged in: the same function, without unpacking 4-bit weights for every token."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from rlkd_lab.models import LanguageModel, dequantised


class DenseTwin:
    """``twin.model`` computes what the policy computes, to rounding, after :meth:`sync`.

    The adapter is merged in float32: merged into 16-bit or 4-bit weights a small update would be rounded away. So the twin is made on float32 models alone,
    and costs two float32 copies of the linear layers. All other weights are shared with the policy.
    """

    def __init__(self, policy: LanguageModel) -> None:
        source = policy.causal_lm
        if not self.suits(policy):
            raise ValueError(f"a dense twin merges in float32; this model computes in {policy.head.weight.dtype}")
        config = copy.deepcopy(source.config)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        self.model = model.to_empty(device=policy.device).eval().requires_grad_(False)
        self.pairs: list[tuple[Any, Any, torch.Tensor]] = []
        module: Any
        for path, module in self.model.named_modules():
            twin_of: Any = source.get_submodule(path)
            adapted = hasattr(twin_of, "base_layer")
            original = twin_of.base_layer if adapted else twin_of
            for name, _ in module.named_parameters(recurse=False):
                setattr(module, name, getattr(original, name))
            for name, _ in module.named_buffers(recurse=False):
                module.register_buffer(name, getattr(original, name), persistent=False)
            if adapted or getattr(getattr(original, "weight", None), "quant_state", None) is not None:
                module.weight = nn.Parameter(dequantised(original), requires_grad=False)
            if adapted:
                self.pairs.append((module, twin_of, module.weight.data))
        self.policy = policy
        self.sync()

    @staticmethod
    def suits(policy: LanguageModel) -> bool:
        """Whether the policy computes in float32."""
        return policy.head.weight.dtype == torch.float32

    @torch.no_grad()
    def sync(self) -> None:
        """Merge the adapter as it is now: W + scaling·B·A."""
        name = self.policy.adapter
        for module, layer, base in self.pairs:
            module.weight.data = base + layer.get_delta_weight(name) if name in layer.lora_A else base
