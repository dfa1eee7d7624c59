"""Checks of a model when it is loaded: architecture, weights, 4-bit layers and output head."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from rlkd_lab.models.adapters import not_finite
from rlkd_lab.models.language_model import LanguageModel
from rlkd_lab.models.wide import in_float32

MAX_QUANT_ERROR = 0.12
"""Largest relative error (Frobenius) of a 4-bit layer against its source.

NF4 itself costs about .09; a layer decoded wrongly .24 and more.
"""
BEHIND_THE_HEAD = {"final_logit_softcapping": None, "logits_scaling": 1, "logit_scale": 1}
"""What configs call a change of the logits behind the output head (Gemma 2, Granite, Cohere),
and the value that changes nothing.
"""
MAX_GAP = 1e-3
"""Nats by which two ways to run a model in float32 may differ at any token; rounding leaves about
1e-5.
"""
MAX_GAP_16 = 0.01
"""The same in 16 bit, in the mean over the tokens."""
ROUNDINGS, ROUNDINGS_16 = 16, 4
"""They may differ by this many times the model's own noise, where that is more.

Of a dense copy were seen .2 to 7 at the worst token, in float32, and .2 to 2.2 in the mean, in 16
bit, over depths of 2 to 30 layers and weights of spread .02 to 1.
"""
NOISES_16 = 2
"""The same where the noise is the distance from float32: :func:`~rlkd_lab.models.wide.in_float32`.

Of a lean decoder were seen .3 to 1.4, over depths of 2 to 28 layers and spreads of .02 to .5.
"""
BUFFERS = (".inv_freq", ".cos_cached", ".sin_cached", ".masked_bias", "position_ids")
"""Ends of names of tensors in old checkpoints that are computed, not learned."""
WITHOUT_4_BIT = (
    "Load it without: --set quant=none (a teacher: --set teacher_quant=none; rlkd"
    " eval: --quant none)"
)


def read_config(name: str, folder: Path) -> PreTrainedConfig:
    """Read the config of a model in a folder, and check its architecture.

    Raises:
        ValueError: in one sentence.
        OSError: there is no config.
    """
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        check_architecture(name, config)
    except (ValueError, OSError):
        raise
    except Exception as error:  # transformers' own checks, and what its models look up
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"the config.json of {name!r} cannot be used: {text:.300}") from error
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            f"{name!r} is a checkpoint that is quantised already (quantization_config in its"
            " config.json): give the model that it was made from, which is quantised as it is"
            " loaded"
        )
    return config


def check_architecture(name: str, config: PreTrainedConfig) -> None:
    """Refuse a model by its config alone, if it is not supported.

    It must be a causal language model with attention. LoRA and 4 bit reach linear layers alone, so
    most of its weights must lie there.

    Raises:
        ValueError: in one sentence.
    """
    if "/" in str(config._attn_implementation):
        raise ValueError(
            f"the config of {name!r} asks for the attention kernel"
            f" {config._attn_implementation}, which is code from the hub: remove that line"
        )
    for field, neutral in BEHIND_THE_HEAD.items():
        if getattr(config, field, None) not in (None, neutral):
            raise ValueError(
                f"{name!r} is of type {config.model_type}, which changes its logits behind"
                f" the output head ({field}, a soft cap or scale of"
                f" {getattr(config, field)}): the log-probabilities that are computed in"
                " chunks would be wrong; such models are not supported"
            )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(
            f"{name!r} is of type {config.model_type}, which is no causal language model of"
            " transformers"
        )
    # With another dtype, transformers would change the process's default for a moment.
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if (
        getattr(model, "_is_stateful", False)
        or getattr(config, "num_attention_heads", None) is None
    ):
        raise ValueError(
            f"{name!r} is of type {config.model_type}, which keeps a state instead of keys"
            " and values; such models are not supported"
        )
    if "position_ids" not in inspect.signature(model.base_model.forward).parameters:
        raise ValueError(
            f"{name!r} is of type {config.model_type}, which takes no position ids, so that"
            " padding would shift it; such models are not supported"
        )
    embeddings = {
        id(p)
        for part in (model.get_input_embeddings(), model.get_output_embeddings())
        for p in part.parameters()
    }
    inside = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    sizes = {id(p): p.numel() for p in model.parameters() if id(p) not in embeddings}
    reached = sum(size for key, size in sizes.items() if key in inside) / max(
        sum(sizes.values()), 1
    )
    if reached < 0.5:
        raise ValueError(
            f"{name!r} is of type {config.model_type}: LoRA and 4 bit reach {reached:.0%} of"
            " its weights, since the others are not in linear layers (GPT-2's"
            " transposed ones, experts kept as one tensor); such models are not supported"
        )


def check_weights(name: str, model: nn.Module, found: Mapping[str, Any]) -> None:
    """Refuse a model that is not the one of its checkpoint.

    transformers draws missing weights at random, and leaves out those without a place in the model.
    Weights that are not finite are refused too.

    Args:
        name: of the model.
        model: as it was loaded.
        found: what transformers says of the loading.

    Raises:
        ValueError: with the number of tensors and the first of them.
    """
    if others := sorted(found["mismatched_keys"]):
        key, there, wanted = others[0]
        raise ValueError(
            f"the weights of {name!r} do not fit its config.json: {len(others)} tensors have other"
            f" shapes (first: {key}, {tuple(there)}, where the config asks for {tuple(wanted)})"
        )
    if missing := sorted(found["missing_keys"]):
        raise ValueError(
            f"the checkpoint of {name!r} lacks {len(missing)} tensors (first: {missing[0]}),"
            " which would be random numbers: download it again"
        )
    _check_places(name, model, found["unexpected_keys"])
    odd = {key: what for key, value in model.named_parameters() if (what := not_finite(value.data))}
    if odd:
        key, what = next(iter(odd.items()))
        where = f"{len(odd)} tensors (first: {key})"
        dtype = str(model.get_parameter(key).dtype).removeprefix("torch.")
        raise ValueError(
            f"the checkpoint of {name!r} holds {what} as {dtype} in {where}: download it"
            " again, or take another"
        )


def _check_places(name: str, model: Any, unexpected: Iterable[str]) -> None:
    """Refuse weights that were left out, and a head that the config ties to other embeddings."""
    if surplus := sorted(key for key in unexpected if not key.endswith(BUFFERS)):
        raise ValueError(
            f"the checkpoint of {name!r} holds {len(surplus)} tensors that its config.json has no"
            f" place for (first: {surplus[0]}): they would be left out. Put the config.json back"
            " that belongs to these weights"
        )
    head = model.get_output_embeddings()
    if (
        getattr(model.config, "tie_word_embeddings", False)
        and head is not None
        and head.weight is not model.get_input_embeddings().weight
    ):
        raise ValueError(
            f"the checkpoint of {name!r} holds an output head that is not its embedding, and its"
            " config.json says they are one: set tie_word_embeddings to false there"
        )


def quantised_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Return every 4-bit linear layer by name."""
    from bitsandbytes.nn import Linear4bit

    return (
        (name, module) for name, module in model.named_modules() if isinstance(module, Linear4bit)
    )


def dequantised(layer: nn.Module) -> torch.Tensor:
    """Return the weight that a (4-bit) linear layer computes with, (out, in), float32."""
    weight: Any = layer.weight
    if getattr(weight, "quant_state", None) is None:
        return weight.data.float()
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, weight.quant_state).float()


def verify_quantised(model: nn.Module, folder: Path) -> float:
    """Compare every 4-bit layer, dequantised, with its weight in the checkpoint.

    Returns:
        The largest relative error, ‖Ŵ − W‖ / ‖W‖.

    Raises:
        ValueError: an error above :data:`MAX_QUANT_ERROR`, or a layer whose source cannot be found.
    """
    files = _checkpoint_index(folder)
    worst = 0.0
    for name, layer in quantised_layers(model):
        key = f"{name.replace('.base_layer', '')}.weight"
        # checkpoints saved from the bare backbone lack its prefix
        key = key if key in files else key.partition(".")[2]
        if key not in files:
            raise ValueError(
                f"the 4-bit layer {name} cannot be verified: the checkpoint has no weight of"
                f" that name. {WITHOUT_4_BIT}"
            )
        with safe_open(folder / files[key], "pt") as file:
            source = file.get_tensor(key).float()
        loaded = dequantised(layer).cpu()
        same = loaded.shape == source.shape
        error = float(torch.dist(loaded, source) / source.norm()) if same else float("inf")
        worst = max(worst, error)
        if not error < MAX_QUANT_ERROR:
            if what := not_finite(source):
                raise ValueError(
                    f"the checkpoint {str(folder)!r} holds {what} in {key}: download it again, or"
                    " take another"
                )
            raise ValueError(
                f"the 4-bit layer {name} does not decode to its source: relative error"
                f" {error:.2f}, where NF4 costs about .09."
                f" Its in_features are {source.shape[1]}: on a CPU this must be a multiple of"
                f" 64. {WITHOUT_4_BIT}"
            )
    return worst


def _checkpoint_index(folder: Path) -> dict[str, str]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    files = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            files.update(dict.fromkeys(file.keys(), path.name))
    return files


def check_head(name: str, model: Any, trained: bool) -> None:
    """Refuse LoRA on the output head, and a head that is trained. The model may have no data."""
    head = model.get_output_embeddings()
    if isinstance(head, BaseTunerLayer) or (trained and isinstance(head, AuxiliaryTrainingWrapper)):
        raise ValueError(
            f"{name}: its adapter is on the output head (lm_head); such heads are not supported"
        )


def verify_head(lm: LanguageModel) -> torch.Tensor:
    """Check once that head(backbone(x)) are the model's logits, and that no token sees later ones.

    The log-probabilities in chunks rest on it. Both show where the first tokens alone are run.

    Returns:
        What :func:`probe_logps` gives.

    Raises:
        ValueError: the model scales or caps its logits behind the head, trains it, or looks ahead.
    """
    if not isinstance(lm.head, nn.Linear) or lm.head.weight.requires_grad:
        raise ValueError(
            f"{lm.source}: the output head is trained, or is no plain linear layer (an"
            " adapter on lm_head, or with it in modules_to_save?);"
            " such heads are not supported"
        )
    ids, few = _probe_ids(lm), 4
    with torch.no_grad(), lm.active():
        # as peft runs it, with what it hooks in
        whole = lm.model(input_ids=ids, use_cache=False).logits.float()
        first = _logits(lm, ids[:, :few])
        size = float(whole.abs().max())
        if not float((whole[:, :few] - first).abs().max()) < 1e-4 * size:
            _find_fault(lm, whole, _logits(lm, ids), ids, few)
    return _said(whole, ids)


def _find_fault(
    lm: LanguageModel, whole: torch.Tensor, parts: torch.Tensor, ids: torch.Tensor, few: int
) -> None:
    """Refuse a model whose ``whole`` logits are not its head's, or look ahead.

    Args:
        lm: the model.
        whole: as the model gives them.
        parts: by the head.
        ids: tokens of both.
        few: how many of them are run alone.
    """
    gap = float((whole - parts).abs().max() / whole.abs().max())
    if not gap < 1e-4:
        raise ValueError(
            f"{lm.source}: the logits are not the output head's alone (relative gap"
            f" {gap:.2g}); such models are not supported"
        )
    with in_float32(lm.causal_lm):  # in 16 bit, rounding may leave more than .05
        among, alone = _logits(lm, ids)[:, :few], _logits(lm, ids[:, :few])
    ahead = float((among - alone).abs().max() / whole.abs().max())
    if ahead > 0.01:  # rounding in float32 leaves about 1e-6
        raise ValueError(
            f"{lm.source}: its tokens see later ones (relative gap {ahead:.2g}), as in models that"
            " make embeddings: it is no causal language model"
        )


@contextmanager
def rounded(model: PreTrainedModel) -> Iterator[None]:
    """Change each entry of the embeddings by one rounding, up or down, inside the block.

    What that does to the model's answers is its noise.
    """

    def change(_: nn.Module, __: Any, states: torch.Tensor) -> torch.Tensor:
        signs = (
            torch.randint(2, states.shape, generator=torch.Generator().manual_seed(0)).to(states)
            * 2
            - 1
        )
        return states * (1 + torch.finfo(states.dtype).eps * signs)

    with model.get_input_embeddings().register_forward_hook(change):
        yield


def gap_and_noise(
    gaps: torch.Tensor,
    noise: Callable[[], torch.Tensor],
    exact: bool,
    times_16: float = ROUNDINGS_16,
) -> tuple[float, float]:
    """Return how far two ways to run a model are apart, and how far they may be, in nats.

    Args:
        gaps: absolute differences of log-probabilities.
        noise: by how much rounding moves those of the model; called above the smallest limit.
        exact: in float32 the worst token counts, in 16 bit the mean.
        times_16: how often the noise, in 16 bit.
    """
    gap, limit = (float(gaps.max()), MAX_GAP) if exact else (float(gaps.mean()), MAX_GAP_16)
    if gap < limit:
        return gap, limit
    moved = noise()
    times = ROUNDINGS * float(moved.max()) if exact else times_16 * float(moved.mean())
    return gap, max(limit, times)


@torch.no_grad()
def probe_logps(lm: LanguageModel) -> torch.Tensor:
    """Return the log-probabilities that a view gives a few fixed tokens, (31,), nats."""
    ids = _probe_ids(lm)
    with lm.active():
        return _said(_logits(lm, ids), ids)


def _probe_ids(lm: LanguageModel) -> torch.Tensor:
    """Return the probe's tokens, (1, 32)."""
    size = int(lm.causal_lm.config.vocab_size)
    return (3 + torch.arange(32, device=lm.device)[None] * (size // 32 + 1)) % size


def _logits(lm: LanguageModel, ids: torch.Tensor) -> torch.Tensor:
    """Return head(backbone(x)), (1, N, V)."""
    return lm.head(lm.backbone(input_ids=ids, use_cache=False).last_hidden_state).float()


def _said(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return the log-probabilities of the tokens behind the first, (N − 1,), in nats."""
    return torch.log_softmax(logits[0, :-1], dim=-1).gather(-1, ids[0, 1:, None])[:, 0]
