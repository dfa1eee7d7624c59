"""A new LoRA adapter: on which layers, of which ranks, and how it starts."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

Kind = Literal["lora", "rslora", "dora"]
GROUPS = ("all-linear", "attention", "mlp")
"""Groups of layers that have a name."""
ATTENTION = re.compile(r"(attn|attention)\.[^.]+$")
"""End of the path of a linear layer within attention; all others are the MLP's."""


@dataclass(frozen=True)
class Lora:
    """What a new adapter is: W + s·B·A on linear layers, with s = alpha / rank.

    Args:
        rank: r ≥ 1.
        alpha: ≥ 1.
        targets: ``all-linear``, ``attention``, ``mlp``, or a regular expression that the whole path
            of a layer matches. The head never has one.
        kind: ``rslora`` has s = alpha / √rank (arXiv 2312.03732); ``dora`` learns the lengths of
            the columns too (arXiv 2402.09353).
        ranks: other ranks, by the end of a layer's path or a regular expression for it.
        alphas: other alphas, likewise.

    Raises:
        ValueError: one of them is no regular expression.
    """

    rank: int = 16
    alpha: int = 32
    targets: str = "all-linear"
    kind: Kind = "lora"
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, expressions in (
            ("lora_targets", (self.targets,)),
            ("lora_ranks", self.ranks),
            ("lora_alphas", self.alphas),
        ):
            for text in expressions:
                try:
                    re.compile(text)
                except re.error as error:
                    raise ValueError(
                        f"{name}: {text!r} is no regular expression: {error}"
                    ) from None

    def put_on(self, model: Any, empty: bool = False) -> PeftModel:
        """Put such an adapter on a model; ``empty`` makes it without data.

        Raises:
            ValueError: no linear layer matches, or a pattern names none of the chosen layers.
        """
        layers = self.layers(model)
        for name, patterns in (("lora_ranks", self.ranks), ("lora_alphas", self.alphas)):
            for pattern in () if empty else patterns:
                if not any(re.fullmatch(rf"(.*\.)?({pattern})", layer) for layer in layers):
                    raise ValueError(
                        f"{name}.{pattern}: no layer of the adapter has that name; the names end"
                        f" in {', '.join(sorted(_ends(layers)))}"
                    )
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=0.0,
            target_modules="all-linear" if self.targets == "all-linear" else _short(layers, model),
            use_rslora=self.kind == "rslora",
            use_dora=self.kind == "dora" and not empty,
            rank_pattern=dict(self.ranks),
            alpha_pattern=dict(self.alphas),
            task_type="CAUSAL_LM",
        )
        return get_peft_model(model, config, low_cpu_mem_usage=empty)

    def layers(self, model: Any) -> list[str]:
        """Return the paths of the layers that get an adapter.

        Raises:
            ValueError: there is none.
        """
        linear = _linear(model)
        if self.targets == "all-linear":
            return linear
        if self.targets in ("attention", "mlp"):
            within = self.targets == "attention"
            found = [path for path in linear if bool(ATTENTION.search(path)) == within]
        else:
            found = [path for path in linear if re.fullmatch(self.targets, path)]
        if not found:
            raise ValueError(
                f"lora_targets={self.targets!r} matches no linear layer: write all-linear,"
                f" attention, mlp, or an expression for a whole path such as {linear[0]!r}"
            )
        return found


def _linear(model: Any) -> list[str]:
    head = model.get_output_embeddings()
    return [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    ]


def _ends(paths: list[str]) -> set[str]:
    return {path.rsplit(".", 1)[-1] for path in paths}


def _short(layers: list[str], model: Any) -> list[str]:
    """Return the ends of paths where they mean the same layers, as adapters are usually written."""
    ends = _ends(layers)
    same = {path for path in _linear(model) if path.rsplit(".", 1)[-1] in ends}
    return sorted(ends if same == set(layers) else layers)


def fresh_adapter(model: PreTrainedModel, lora: Lora, seed: int) -> PeftModel:
    """Put a new adapter on a model. A starts as peft would start it, B at 0."""
    with torch.random.fork_rng(devices=[]):
        adapted = lora.put_on(model)
    # from a stream that no other thread can disturb
    generator = torch.Generator().manual_seed(seed)
    for name, weight in adapted.named_parameters():
        if "lora_A" in name:
            start = nn.init.kaiming_uniform_(
                torch.empty(weight.shape), a=math.sqrt(5), generator=generator
            )
            weight.data.copy_(start)
    return adapted
