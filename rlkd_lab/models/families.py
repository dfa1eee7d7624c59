"""The families of models that the lean decoder knows, and where each differs from Llama."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.functional import gelu, silu


@dataclass(frozen=True)
class Family:
    """How the layers of a family are built. The defaults are Llama's."""

    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    gate_up: tuple[str, ...] = ("gate_proj", "up_proj")
    norms: tuple[str | None, ...] = ("input_layernorm", None, "post_attention_layernorm", None)
    """Norms before and after the attention, before and after the MLP."""
    one_plus: bool = False
    """Whether a norm multiplies by 1 + its weight, in float32."""
    one_norm_for_all_heads: bool = False
    """Whether the norms of queries and of keys are taken over all heads at once."""
    windows: Literal["none", "every layer", "layer types"] = "none"
    """Which layers the config's ``sliding_window`` holds for."""
    rotation: Literal["one", "some layers", "by layer type"] = "one"
    """Some layers: those that ``no_rope_layers`` marks with 1. The others rotate nothing."""


FAMILIES = {
    "llama": Family(),
    "mistral": Family(windows="every layer"),
    "qwen2": Family(windows="layer types"),
    "qwen3": Family(windows="layer types"),
    "phi3": Family(qkv=("qkv_proj",), gate_up=("gate_up_proj",), windows="every layer"),
    "olmo2": Family(
        norms=(None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
        one_norm_for_all_heads=True,
    ),
    "smollm3": Family(windows="layer types", rotation="some layers"),
    "gemma3_text": Family(
        norms=(
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        ),
        one_plus=True,
        windows="layer types",
        rotation="by layer type",
    ),
}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": silu,
    "gelu_pytorch_tanh": partial(gelu, approximate="tanh"),
}
ROTATIONS = ("default", "linear", "llama3", "yarn")
"""Those that do not change with the length."""
NOT_KNOWN = ("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention")
"""What a config may ask for, and the decoder does not compute."""
FULL, SLIDING = "full_attention", "sliding_attention"


def suits(model: Any) -> bool:
    """Whether the lean decoder computes what a model computes, by its config and its layers."""
    config = model.config
    if config.model_type not in FAMILIES:
        return False
    family = FAMILIES[config.model_type]
    kinds = set(getattr(config, "layer_types", None) or ())
    allowed = {FULL, SLIDING} if family.windows == "layer types" else {FULL}
    parameters = config.rope_parameters or {}
    rotations = [parameters] if family.rotation != "by layer type" else parameters.values()
    return (
        activation_name(config) in ACTIVATIONS
        and kinds <= allowed
        and (family.windows != "none" or getattr(config, "sliding_window", None) is None)
        and not any(getattr(config, name, None) for name in NOT_KNOWN)
        and all(each.get("rope_type", "default") in ROTATIONS for each in rotations)
        and all(
            isinstance(module, nn.Linear)
            for layer in model.get_submodule("model").layers
            for module in projections(layer, family)
        )
    )


def projections(layer: Any, family: Family) -> list[Any]:
    """Return the linear layers of a layer."""
    attention, mlp = layer.self_attn, layer.mlp
    return [
        *(getattr(attention, name) for name in (*family.qkv, "o_proj")),
        *(getattr(mlp, name) for name in (*family.gate_up, "down_proj")),
    ]


def activation_name(config: Any) -> str:
    """Return the name of the MLP's activation."""
    return getattr(config, "hidden_activation", None) or config.hidden_act


def windows(config: Any) -> list[int | None]:
    """Return by layer how many columns a token sees, its own included; None for all."""
    way, layers = FAMILIES[config.model_type].windows, config.num_hidden_layers
    every = SLIDING if way == "every layer" else FULL
    kinds = config.layer_types if way == "layer types" else [every] * layers
    return [config.sliding_window if kind == SLIDING else None for kind in kinds]


def rotations(config: Any) -> list[str | None]:
    """Return by layer the name of its rotation; None where nothing is rotated."""
    way, layers = FAMILIES[config.model_type].rotation, config.num_hidden_layers
    if way == "by layer type":
        return list(config.layer_types)
    rotates = config.no_rope_layers if way == "some layers" else [1] * layers
    return ["one" if here else None for here in rotates[:layers]]
