"""Loading: a 4-bit base with a LoRA adapter (the policy), and a frozen teacher, each verified as it
is loaded.

Three silent faults are handled here. bitsandbytes on CPUs with AVX512-BF16 repacks a 4-bit weight
in its first inference forward and loses gradients from then on: the path is switched off on every
layer. NF4 on CPU decodes wrongly where in_features is no multiple of 64: every quantised layer is
compared with its source. And a head that does more than a matrix product (soft caps, scales) would
make the chunked log-probabilities wrong: logits are compared once.
"""

from __future__ import annotations

import functools
import os
import threading
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from rlkd_lab.models.adapter_config import can_share_base, check_policy_adapter
from rlkd_lab.models.adapters import attach
from rlkd_lab.models.language_model import LanguageModel, Quant, other_shapes
from rlkd_lab.models.locating import locate
from rlkd_lab.models.lora import Lora, fresh_adapter
from rlkd_lab.models.tokenizers import load_tokenizer
from rlkd_lab.models.verification import (
    WITHOUT_4_BIT,
    check_weights,
    probe_logps,
    quantised_layers,
    read_config,
    verify_head,
    verify_quantised,
)

# peft 0.21 asks transformers 5 by a name that is on its way out.
warnings.filterwarnings(
    "ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning
)
# loading a shard in a tenth of a second needs no bar; the hub's download bar stays
disable_progress_bar()

P = ParamSpec("P")
R = TypeVar("R")
_loading = threading.RLock()
"""Of a fresh adapter, where nothing else is asked for."""


def default_device() -> torch.device:
    """Return the GPU of this process if there is one, Apple's too, else the CPU.

    The variable ``RLKD_DEVICE`` names another, such as ``cpu``.
    """
    apple = "mps" if torch.backends.mps.is_available() else "cpu"
    found = "cuda" if torch.cuda.is_available() else apple
    return numbered(torch.device(os.environ.get("RLKD_DEVICE") or found))


def numbered(device: torch.device) -> torch.device:
    """Return the device with its number.

    transformers loads in threads, and in a new thread ``cuda`` alone is the first GPU.
    """
    if device.type != "cuda" or device.index is not None:
        return device
    # to ask would start CUDA here
    return torch.device("cuda", torch.cuda.current_device() if torch.cuda.is_initialized() else 0)


def compute_dtype(device: torch.device) -> torch.dtype:
    """float32 on CPU and Apple's GPU, bfloat16 on GPUs that have it, float16 on older ones
    (adapters stay float32 everywhere).
    """
    if device.type != "cuda":
        return torch.float32
    return (
        torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    )


def one_at_a_time(load: Callable[P, R]) -> Callable[P, R]:
    """Let one thread at a time load.

    transformers and peft change settings of the whole process while they load.
    """

    @functools.wraps(load)
    def wait(*args: P.args, **kwargs: P.kwargs) -> R:
        with _loading:
            return load(*args, **kwargs)

    return wait


def load_base(
    name: str, quant: Quant = "nf4", device: torch.device | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load and verify a model and its tokenizer, from safetensors.

    ``nf4`` quantises the weights, with double quantisation.

    Raises:
        FileNotFoundError: see :func:`~rlkd_lab.models.locating.locate`.
        ValueError: a layer fails verification, or 4 bit is asked for where bitsandbytes is not
            installed.
    """
    if quant not in ("nf4", "none"):
        raise ValueError(f"quant is 'nf4' or 'none'; got {quant!r}")
    folder, device = locate(name), numbered(device or default_device())
    if device.type == "cuda":
        # It makes a plan for every new shape, in 50 ms; each token of a rollout has a new one.
        torch.backends.cuda.enable_cudnn_sdp(False)
    quantised = {"quantization_config": _nf4(device)} if quant == "nf4" else {}
    config = read_config(name, folder)
    tokenizer = load_tokenizer(name)
    # With dropout, the policy that is trained would not be the one that was sampled.
    for field, value in vars(config).items():
        if field.endswith(("dropout", "pdrop")) and isinstance(value, float):
            setattr(config, field, 0.0)
    loaded: Any
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=compute_dtype(device),
            use_safetensors=True,
            trust_remote_code=False,
            device_map={"": device},
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # check_weights names them
            **quantised,
        )
    except SafetensorError as error:
        raise ValueError(f"the weights of {name!r} are damaged: {error}") from error
    model, found = loaded
    shapes = found["mismatched_keys"] or other_shapes(model)
    check_weights(name, model, {**found, "mismatched_keys": shapes})
    if not LanguageModel(model, tokenizer, name, quant).eos_ids:
        raise ValueError(
            f"no token ends a completion of {name!r}: set eos_token in its"
            " tokenizer_config.json, or eos_token_id in its generation_config.json"
        )
    model.config.use_cache = False
    model.requires_grad_(False)
    if quant == "nf4":
        for _, layer in quantised_layers(model):
            layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
        verify_quantised(model, folder)
    return model, tokenizer


def _nf4(device: torch.device) -> BitsAndBytesConfig:
    try:
        import bitsandbytes
    except ImportError:
        raise ValueError(
            "4-bit loading needs bitsandbytes, which has no build for every system."
            f" {WITHOUT_4_BIT}"
        ) from None
    if device.type == "mps" and find_spec("bitsandbytes.backends.mps") is None:
        raise ValueError(
            f"bitsandbytes {bitsandbytes.__version__} has no 4-bit layers for Apple's GPU (mps);"
            f" 0.50 has. {WITHOUT_4_BIT}"
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype(device),
    )


@one_at_a_time
def load_policy(
    name: str,
    quant: Quant = "nf4",
    *,
    lora: Lora | None = None,
    adapter: str | Path | None = None,
    gradient_checkpointing: bool = False,
    seed: int = 0,
    device: torch.device | None = None,
) -> LanguageModel:
    """Put a trainable LoRA adapter (float32, no dropout) on linear layers of a frozen base.

    ``peft.prepare_model_for_kbit_training`` is not used: it casts every 16-bit parameter to
    float32.

    Args:
        name: embedded name, folder or hub id.
        quant: ``nf4`` or ``none``.
        lora: a new adapter; by default of rank 16 on all linear layers.
        adapter: folder of an adapter to start from, in place of a new one. A frozen copy of it
            becomes the reference.
        gradient_checkpointing: recompute activations in the backward pass (less memory, more time).
        seed: of the adapter's initial weights.
        device: GPU if there is one.

    Raises:
        FileNotFoundError: the model or the adapter is not there.
        ValueError: the base or the adapter is damaged or not supported, they do not fit, or both
            ``lora`` and ``adapter`` are given.
    """
    if lora is not None and adapter is not None:
        raise ValueError("lora makes a new adapter, and adapter starts from one: give one of them")
    model, tokenizer = load_base(name, quant, device)
    base_said = probe_logps(LanguageModel(model, tokenizer, name, quant))
    if gradient_checkpointing:
        checkpoint_activations(model)
    if adapter is not None:
        check_policy_adapter(adapter)
        adapted = attach(model, adapter, "default", name, trainable=True)
        attach(adapted, adapter, "reference", name)
        for module in adapted.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    else:
        adapted = fresh_adapter(model, lora or Lora(), seed)
    source = None if adapter is None else str(adapter)
    policy = LanguageModel(adapted, tokenizer, name, quant, "default", source, base_said=base_said)
    policy.said = verify_head(policy)
    return policy


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Recompute the activations of a layer in the backward pass."""
    # newer transformers have another name for it, and warn of this one
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})


def reference_of(policy: LanguageModel) -> LanguageModel:
    """Return the frozen reference, a view of the policy's model.

    It is the base with the adapter off, or the frozen copy of the adapter that the policy started
    from.
    """
    assert isinstance(policy.model, PeftModel)
    start = "reference" if "reference" in policy.model.peft_config else None
    said = policy.base_said if start is None else policy.said
    return LanguageModel(
        policy.model, policy.tokenizer, policy.source, policy.quant, start, said=said
    )


@one_at_a_time
def load_teacher(
    name: str,
    quant: Quant = "nf4",
    *,
    policy: LanguageModel | None = None,
    adapter: str | Path | None = None,
    device: torch.device | None = None,
) -> LanguageModel:
    """Load a frozen teacher.

    On the policy's base it is another view, unless its adapter would change the base.

    Args:
        name: embedded name, folder or hub id.
        quant: ``nf4`` or ``none``.
        policy: shares its base where name and quant agree.
        adapter: folder of the teacher's adapter.
        device: GPU if there is one.

    Raises:
        FileNotFoundError: no such model or adapter.
        ValueError: the adapter is damaged, not supported or made for another base.
    """
    source = None if adapter is None else str(adapter)
    if policy is not None and _shares_base(name, quant, policy, adapter):
        assert isinstance(policy.model, PeftModel)
        if adapter is None:
            return LanguageModel(policy.model, policy.tokenizer, name, quant, said=policy.base_said)
        title = f"teacher{len(policy.model.peft_config)}"
        attach(policy.model, adapter, title, name)
        teacher = LanguageModel(policy.model, policy.tokenizer, name, quant, title, source)
        teacher.said = verify_head(teacher)
        return teacher
    model, tokenizer = load_base(name, quant, device)
    if adapter is not None:
        adapted = attach(model, adapter, "default", name)
        teacher = LanguageModel(adapted, tokenizer, name, quant, "default", source)
    else:
        teacher = LanguageModel(model, tokenizer, name, quant)
    teacher.model.requires_grad_(False)
    teacher.model.eval()
    teacher.said = verify_head(teacher)
    return teacher


def _shares_base(
    name: str, quant: Quant, policy: LanguageModel, adapter: str | Path | None
) -> bool:
    if adapter is not None and not can_share_base(adapter, policy.adapter_source):
        return False
    return policy.quant == quant and locate(policy.source) == locate(name)
