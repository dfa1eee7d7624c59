"""Merging: base weights and adapter as one dense model, and what that costs.

Two things change the function. The adapter was trained beside NF4 weights, which are not the base's
own; ``into`` chooses the weights it is added to. Rounding to 16 bit takes a part of a small update
away, or all of it; :class:`Rounding` says how much.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlkd_lab.models.adapters import attach
from rlkd_lab.models.language_model import LanguageModel
from rlkd_lab.models.loading import one_at_a_time
from rlkd_lab.models.locating import locate
from rlkd_lab.models.logprobs import hidden_states, token_divergence
from rlkd_lab.models.sequences import Sequences
from rlkd_lab.models.verification import dequantised, quantised_layers

INTO = ("nf4", "full")
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
ROWS = 8
"""Completions in one forward pass of :func:`kl_per_token`."""


@dataclass(frozen=True)
class Rounding:
    """Says what the rounding ``r`` to the saved precision made of an update D of weights W.

    It counts all layers that have an adapter.
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
    """Says what a merge changed between the trained policy and the model on disk.

    KLs are in nats a token, over the whole vocabulary, on completions by the policy.
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
    """Merge W + ΔW in float32 on the CPU, and round once, at the end.

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
    assert policy.adapter_source is not None
    model = _dense_base(policy, into)
    tied = bool(model.config.tie_word_embeddings)
    if tied:  # what an adapter adds to the embeddings it does not add to the head
        own_head: Any = model.get_output_embeddings()
        own_head.weight = torch.nn.Parameter(own_head.weight.detach().clone())
    adapted = attach(model, policy.adapter_source, "default", policy.source)
    rounding = _merge_layers(adapted, dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore",
            message="All adapters are already merged|Input and output embeddings are no longer"
            " tied",
        )
        # also puts in what else an adapter may hold, such as whole layers that were trained
        plain: Any = adapted.merge_and_unload()
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
    return plain, rounding


def _dense_base(policy: LanguageModel, into: str) -> PreTrainedModel:
    """Load the policy's base in float32, with its dequantised weights if ``into`` is ``nf4``."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        locate(policy.source), dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    )
    if into == "nf4":
        for path, layer in quantised_layers(policy.causal_lm):
            dense: Any = model.get_submodule(path.removesuffix(".base_layer"))
            dense.weight.copy_(dequantised(layer))
    return model


def _merge_layers(model: PeftModel, dtype: torch.dtype) -> Rounding:
    """Merge the adapter into the layers, in place. Measure what rounding to ``dtype`` will do."""
    layers: list[Any] = [one for one in model.modules() if isinstance(one, BaseTunerLayer)]
    settings: Any = model.peft_config["default"]
    if settings.lora_bias and any(layer.get_base_layer().bias is None for layer in layers):
        raise ValueError(
            "the adapter holds LoRA biases for layers without a bias, which cannot be merged:"
            " hand over the adapter without --merge"
        )
    along = error = size = 0.0
    for layer in layers:
        before = layer.get_base_layer().weight.clone()
        layer.merge(safe_merge=True)
        after = layer.get_base_layer().weight
        update, rounded = after - before, after.to(dtype).float()
        along += _sum((rounded - before.to(dtype).float()) * update)
        error += _sum((rounded - after).square())
        size += _sum(update.square())
    return Rounding(along / size, math.sqrt(error / size)) if size else Rounding(1.0, 0.0)


def _sum(values: Tensor) -> float:
    """Return the sum in float64, which Apple's GPU lacks."""
    here = values.cpu() if values.device.type == "mps" else values
    return float(here.sum(dtype=torch.float64))


@torch.no_grad()
def kl_per_token(lm: LanguageModel, other: LanguageModel, sequences: Sequences) -> Tensor:
    """Return KL(lm ‖ other) at each completion token, (N,), nats, float32 on the CPU."""
    found = []
    for first in range(0, len(sequences.completion_ids), ROWS):
        part = sequences.select(slice(first, first + ROWS))
        states, theirs = hidden_states(lm, part), hidden_states(other, part)
        found.append(token_divergence(lm, states, other, theirs, "reverse").cpu())
    return torch.cat(found)
