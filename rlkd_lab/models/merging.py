"""Merging: base weights and adapter as one dense model, and what that costs.

Two things change the function. The adapter was trained beside NF4 weights, and these are not the
base's own: ``into`` chooses which of the two it is added to. And rounding to 16 bit takes a part of
a small update away, or all of it: :class:`Rounding` says how much.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlkd_lab.models.adapters import attach
from rlkd_lab.models.checks import dequantised, quantised_layers
from rlkd_lab.models.loading import LanguageModel, locate, one_at_a_time
from rlkd_lab.models.logprobs import Sequences, hidden_states, token_divergence

INTO = ("nf4", "full")
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
ROWS = 8
"""Completions in one forward pass of :func:`kl_per_token`."""


@dataclass(frozen=True)
class Rounding:
    """What became of an update D of weights W in the rounding to the saved precision, over all
    layers that have an adapter; ``r`` rounds.
    """

    kept: float
    """⟨r(W + D) − r(W), D⟩ / ‖D‖²: about 1 where the update arrives on average, 0 where every
    weight falls back to what it was. 1 for D = 0.
    """
    error: float
    """‖r(W + D) − (W + D)‖ / ‖D‖, ≥ 0: the rounding as a share of the update.

    Most of it is the base's own rounding where W does not fit the precision.
    """


@dataclass(frozen=True)
class Merged:
    """A merge and what it changed, between the policy as it was trained and the model as it was
    saved and loaded again. KLs in nats a token, over the whole vocabulary, on completions by the
    policy.
    """

    into: str
    dtype: str
    rounding: Rounding
    shift: float
    """Mean KL(policy ‖ merged)."""
    largest: float
    """KL(policy ‖ merged) at the worst token."""
    trained: float
    """Mean KL(policy ‖ policy without its adapter): what training changed, for scale."""
    prompts: int
    tokens: int


@one_at_a_time
@torch.no_grad()
def merge(policy: LanguageModel, into: str, dtype: torch.dtype) -> tuple[PreTrainedModel, Rounding]:
    """W + ΔW in float32 on the CPU, rounded once, at the end.

    Args:
        policy: a model with an adapter that was read from a folder.
        into: ``nf4``: the policy's own 4-bit weights, dequantised, which is the function that was
            trained; ``full``: the base's weights as published.
        dtype: of the result.

    Returns:
        A plain transformers model without adapter, its config as the base's, and what the rounding
        cost.

    Raises:
        ValueError: ``nf4`` for a policy whose base is not in 4 bit, an adapter that cannot be
            merged, or weights that are too large for ``dtype``.
    """
    if into == "nf4" and policy.quant != "nf4":
        raise ValueError(
            f"the base of this adapter was not quantised (quant={policy.quant}), so there are"
            " no NF4 weights to merge into: use --into full"
        )
    model = AutoModelForCausalLM.from_pretrained(
        locate(policy.source), dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    )
    if into == "nf4":
        for path, layer in quantised_layers(policy.causal_lm):
            dense: Any = model.get_submodule(path.removesuffix(".base_layer"))
            dense.weight.copy_(dequantised(layer))
    assert policy.adapter_source is not None
    tied = bool(model.config.tie_word_embeddings)
    if tied:  # what an adapter adds to the embeddings it does not add to the head
        head = model.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
    adapted = attach(model, policy.adapter_source, "default", policy.source)
    settings: Any = adapted.peft_config["default"]
    if settings.lora_bias and any(
        layer.get_base_layer().bias is None for layer in _adapted_layers(adapted)
    ):
        raise ValueError(
            "the adapter holds LoRA biases for layers without a bias, which cannot be merged:"
            " hand over the adapter without --merge"
        )
    along = error = size = 0.0
    for layer in _adapted_layers(adapted):
        before = layer.get_base_layer().weight.clone()
        layer.merge(safe_merge=True)
        after = layer.get_base_layer().weight
        update, rounded = after - before, after.to(dtype).float()
        along += float(((rounded - before.to(dtype).float()) * update).sum(dtype=torch.float64))
        error += float((rounded - after).square().sum(dtype=torch.float64))
        size += float(update.square().sum(dtype=torch.float64))
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore",
            message="All adapters are already merged|Input and output embeddings are no longer"
            " tied",
        )
        plain: Any = (
            adapted.merge_and_unload()
        )  # also puts in what else an adapter may hold, such as whole layers that were trained
    embeddings, head = plain.get_input_embeddings(), plain.get_output_embeddings()
    plain.config.tie_word_embeddings = tied and torch.equal(embeddings.weight, head.weight)
    if plain.config.tie_word_embeddings:
        head.weight = embeddings.weight
    plain.to(dtype)
    for name, weight in plain.named_parameters():
        if not torch.isfinite(weight).all():
            raise ValueError(
                f"{name} has values that do not fit {str(dtype).removeprefix('torch.')}: use"
                " bfloat16 or float32"
            )
    return plain, Rounding(along / size, math.sqrt(error / size)) if size else Rounding(1.0, 0.0)


def _adapted_layers(model: PeftModel) -> Iterator[Any]:
    return (module for module in model.modules() if isinstance(module, BaseTunerLayer))


@torch.no_grad()
def kl_per_token(lm: LanguageModel, other: LanguageModel, sequences: Sequences) -> Tensor:
    """KL(lm ‖ other) over the whole vocabulary at each completion token, (N,), nats, float32 on
    the CPU.
    """
    found = []
    for first in range(0, len(sequences.completion_ids), ROWS):
        part = sequences.select(slice(first, first + ROWS))
        found.append(
            token_divergence(
                lm, hidden_states(lm, part), other, hidden_states(other, part), "reverse"
            ).cpu()
        )
    return torch.cat(found)
