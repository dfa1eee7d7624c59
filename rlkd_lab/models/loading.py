"""Loading: a 4-bit base with a LoRA adapter (the policy), and a frozen teacher, each verified as it
is loaded.

Three silent faults are handled here. bitsandbytes on CPUs with AVX512-BF16 repacks a 4-bit weight
in its first inference forward and loses gradients from then on: the path is switched off on every
layer. NF4 on CPU decodes wrongly where in_features is no multiple of 64: every quantised layer is
compared with its source. And a head that does more than a matrix product (soft caps, scales) would
make the chunked log-probabilities wrong: logits are compared once.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import math
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils.logging import disable_progress_bar

from rlkd_lab.models.prompts import PromptFormat, check_special_tokens

# peft 0.21 asks transformers 5 by a name that is on its way out.
warnings.filterwarnings(
    "ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning
)
# loading a shard in a tenth of a second needs no bar; the hub's download bar stays
disable_progress_bar()

Quant = Literal["nf4", "none"]
P = ParamSpec("P")
R = TypeVar("R")
_loading = threading.RLock()
MAX_QUANT_ERROR = 0.12
"""Largest relative error (Frobenius) of a 4-bit layer against its source.

NF4 itself costs about .09; a layer decoded wrongly .24 and more.
"""
BEHIND_THE_HEAD = {"final_logit_softcapping": None, "logits_scaling": 1, "logit_scale": 1}
"""What configs call a change of the logits behind the output head (Gemma 2, Granite, Cohere),
and the value that changes nothing.
"""
ZOO = Path(__file__).parent.parent / "zoo"
MADE_BY = {"models/midsize/": "python -m rlkd_lab.zoo.midsize"}
"""Folders that a preset names and a command makes."""


@dataclass(eq=False)
class LanguageModel:
    """A causal LM with its tokenizer and the adapter that makes it who it is.

    Policy, reference and teacher may be three views of one set of base weights: ``adapter`` names
    the adapter that is active in this view, ``None`` is the bare base.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    source: str
    quant: Quant
    adapter: str | None = None
    adapter_source: str | None = None
    """Folder that the adapter was read from, if it was."""
    chat: bool = False
    """Prompts are put into the tokenizer's chat template, as the user's turn."""
    system_prompt: str | None = None
    """The system's turn before it, with ``chat``."""
    base_said: torch.Tensor | None = None
    """Of a policy: log-probabilities that its base gave :func:`probe_logps` before an adapter
    was attached, (N,), in nats.
    """

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The transformers model, with the LoRA layers inside it."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model  # type: ignore[return-value]

    @property
    def backbone(self) -> nn.Module:
        """Everything below the output head."""
        return self.causal_lm.base_model

    @property
    def head(self) -> nn.Module:
        """The output head."""
        return self.causal_lm.get_output_embeddings()

    @property
    def device(self) -> torch.device:
        return self.head.weight.device  # type: ignore[return-value]

    @property
    def eos_ids(self) -> frozenset[int]:
        """Every token that ends a completion: the tokenizer's and those of the generation
        config.
        """
        listed = (
            self.causal_lm.generation_config.eos_token_id
            if self.causal_lm.generation_config is not None
            else None
        )
        ids = listed if isinstance(listed, list) else [listed]
        return frozenset(i for i in [*ids, self.tokenizer.eos_token_id] if i is not None)

    @property
    def context(self) -> int:
        """Longest prompt plus completion, in tokens."""
        return int(getattr(self.causal_lm.config, "max_position_embeddings", 2**31))

    def use_chat(self, wanted: Literal["auto", "off"], system_prompt: str | None = None) -> None:
        """``auto``: prompts go into the chat template where the tokenizer has one.

        Raises:
            ValueError: the system prompt would not be asked.
        """
        found = PromptFormat.of(self.tokenizer, self.source, wanted, system_prompt)
        self.chat, self.system_prompt = found.chat, found.system_prompt

    @property
    def prompts(self) -> PromptFormat:
        """How prompts become tokens."""
        return PromptFormat(self.tokenizer, self.source, self.chat, self.system_prompt)

    def prompt_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of prompts, in the chat template where ``chat`` is set:
        :meth:`PromptFormat.ids`.
        """
        return self.prompts.ids(prompts)

    def encode(self, prompts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """:meth:`prompt_ids` padded left, and their mask, (B, P) each."""
        padded = self.tokenizer.pad(
            {"input_ids": self.prompt_ids(prompts)}, padding_side="left", return_tensors="pt"
        ).to(self.device)
        return padded["input_ids"], padded["attention_mask"]

    def trainable(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Run with this view's adapter, and put back what was there."""
        if not isinstance(self.model, PeftModel) or self.model.active_adapter == self.adapter:
            yield
        elif self.adapter is None:
            with self.model.disable_adapter():
                yield
        else:
            before = self.model.active_adapter
            self.model.set_adapter(self.adapter, inference_mode=True)
            try:
                yield
            finally:
                self.model.set_adapter(before)


class MissingWeights(FileNotFoundError):
    """A model without weights in safetensors."""


def default_device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def compute_dtype(device: torch.device) -> torch.dtype:
    """float32 on CPU, bfloat16 on GPUs that have it, float16 on older ones (adapters stay
    float32 everywhere).
    """
    if device.type != "cuda":
        return torch.float32
    return (
        torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    )


def zoo_names() -> list[str]:
    """Names of the embedded models."""
    return sorted(path.parent.name for path in ZOO.glob("*/config.json"))


def locate(name: str, weights: bool = True) -> Path:
    """The folder of a model: an embedded name (``student``), a local folder, or a hub id, which is
    downloaded (safetensors and text files alone).

    Args:
        name: of the model.
        weights: without them, config and tokenizer are enough, and only they are downloaded.

    Raises:
        FileNotFoundError: neither of these, or the hub cannot be reached.
    """
    if name in zoo_names():
        return ZOO / name
    folder = Path(name)
    if not folder.is_dir() and (folder.is_absolute() or name.startswith((".", "~"))):
        raise FileNotFoundError(f"there is no folder {name!r}, where a model should lie")
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise FileNotFoundError(
                f"{name!r} is a folder without a config.json: it holds no transformers model"
            )
        return _with_weights(folder, name) if weights else folder
    for start, command in MADE_BY.items():
        if name.startswith(start):
            raise FileNotFoundError(
                f"no model {name!r} here yet: {command} makes it, in the folder that you"
                " start it from"
            )
    try:
        folder = Path(
            snapshot_download(
                name,
                allow_patterns=[
                    "*.json",
                    "*.txt",
                    "*.model",
                    "*.jinja",
                    *(["*.safetensors"] if weights else []),
                ],
            )
        )
        return _with_weights(folder, name) if weights else folder
    except MissingWeights:
        raise
    except (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        ValueError,
        OSError,
    ) as error:
        raise FileNotFoundError(
            f"no model {name!r}: it is not embedded ({', '.join(zoo_names())}), not a folder"
            " here, and the model hub did not give it"
            f" ({type(error).__name__}). Check the name, or download it on a machine with a"
            " network and give the folder"
        ) from error


def _with_weights(folder: Path, name: str) -> Path:
    if not list(folder.glob("*.safetensors")):
        raise MissingWeights(
            f"{name!r} has no *.safetensors: weights are read from safetensors alone, since a"
            " pickle can run code when it is opened"
        )
    return folder


def one_at_a_time(load: Callable[P, R]) -> Callable[P, R]:
    """transformers and peft change settings of the whole process while they load: two threads
    that load at once spoil each other's model.
    """

    @functools.wraps(load)
    def wait(*args: P.args, **kwargs: P.kwargs) -> R:
        with _loading:
            return load(*args, **kwargs)

    return wait


def load_base(
    name: str, quant: Quant = "nf4", device: torch.device | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer from safetensors, quantised to NF4 with double quantisation if asked for,
    and verified.

    Raises:
        FileNotFoundError: see :func:`locate`.
        ValueError: a layer fails verification, or 4 bit is asked for where bitsandbytes is not
            installed.
    """
    if quant not in ("nf4", "none"):
        raise ValueError(f"quant is 'nf4' or 'none'; got {quant!r}")
    folder, device = locate(name), device or default_device()
    dtype = compute_dtype(device)
    settings: dict[str, Any] = {}
    if quant == "nf4":
        try:
            import bitsandbytes  # noqa: F401
        except ImportError:
            raise ValueError(
                "4-bit loading needs bitsandbytes, which has no build for every system; use"
                " quant='none' here"
            ) from None
        settings["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    tokenizer = load_tokenizer(name)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    check_architecture(name, config)
    for field, value in vars(config).items():
        if field.endswith(("dropout", "pdrop")) and isinstance(value, float):
            setattr(
                config, field, 0.0
            )  # with dropout the policy that is trained would not be the one that was sampled
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            device_map={"": device},
            **settings,
        )
    except SafetensorError as error:
        raise ValueError(f"the weights of {name!r} are damaged: {error}") from error
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


def load_tokenizer(name: str, weights: bool = True) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with a token to pad with; ``weights`` as in :func:`locate`.

    Raises:
        FileNotFoundError: see :func:`locate`; or the model has none.
        ValueError: it has no token to pad with.
    """
    folder = locate(name, weights)
    if not any(
        (folder / file).exists()
        for file in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
    ):
        raise FileNotFoundError(
            f"{name!r} has no tokenizer (tokenizer.json): save it beside the model with"
            " tokenizer.save_pretrained"
        )
    # trust_remote_code is False in so many words: left out, transformers asks on the terminal
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    check_special_tokens(tokenizer, name)
    return tokenizer


def quantised_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every 4-bit linear layer by name."""
    from bitsandbytes.nn import Linear4bit

    return (
        (name, module) for name, module in model.named_modules() if isinstance(module, Linear4bit)
    )


def dequantised(layer: nn.Module) -> torch.Tensor:
    """The weight that a (4-bit) linear layer computes with, (out, in), float32."""
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
                " that name. Load this model with quant='none'"
            )
        with safe_open(folder / files[key], "pt") as file:
            source = file.get_tensor(key).float()
        loaded = dequantised(layer).cpu()
        error = (
            float((loaded - source).norm() / source.norm())
            if loaded.shape == source.shape
            else float("inf")
        )
        worst = max(worst, error)
        if not error < MAX_QUANT_ERROR:
            raise ValueError(
                f"the 4-bit layer {name} does not decode to its source: relative error"
                f" {error:.2f}, where NF4 costs about .09."
                f" Its in_features are {source.shape[1]}: on a CPU this must be a multiple of"
                " 64. Load this model with quant='none'"
            )
    return worst


def _checkpoint_index(folder: Path) -> dict[str, str]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return dict(json.loads(index.read_text())["weight_map"])
    files = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            files.update(dict.fromkeys(file.keys(), path.name))
    return files


def verify_head(lm: LanguageModel) -> None:
    """Check once that head(backbone(x)) are the model's logits, which the chunked log-probabilities
    rest on.

    Raises:
        ValueError: the model scales or caps its logits behind the head, or trains it.
    """
    if not isinstance(lm.head, nn.Linear) or lm.head.weight.requires_grad:
        raise ValueError(
            f"{lm.source}: the output head is trained, or is no plain linear layer (an"
            " adapter with modules_to_save?); such heads are not supported"
        )
    ids = torch.arange(3, 11, device=lm.device)[None] % int(lm.causal_lm.config.vocab_size)
    with torch.no_grad(), lm.active():
        whole = lm.causal_lm(input_ids=ids).logits.float()
        parts = lm.head(lm.backbone(input_ids=ids).last_hidden_state).float()
    gap = float((whole - parts).abs().max() / whole.abs().max())
    if not gap < 1e-4:
        raise ValueError(
            f"{lm.source}: the logits are not the output head's alone (relative gap"
            f" {gap:.2g}); such models are not supported"
        )


@torch.no_grad()
def probe_logps(lm: LanguageModel) -> torch.Tensor:
    """Log-probabilities that a view of a model gives a few fixed tokens, (7,), nats."""
    ids = torch.arange(3, 11, device=lm.device) % int(lm.causal_lm.config.vocab_size)
    with lm.active():
        logits = lm.head(lm.backbone(input_ids=ids[None], use_cache=False).last_hidden_state)[
            0, :-1
        ].float()
    return torch.log_softmax(logits, dim=-1).gather(-1, ids[1:, None])[:, 0]


@one_at_a_time
def load_policy(
    name: str,
    quant: Quant = "nf4",
    *,
    lora_rank: int = 16,
    lora_alpha: int = 32,
    adapter: str | Path | None = None,
    gradient_checkpointing: bool = False,
    seed: int = 0,
    device: torch.device | None = None,
) -> LanguageModel:
    """A trainable LoRA adapter (float32, no dropout) on all linear layers of a frozen base.

    ``peft.prepare_model_for_kbit_training`` is not used: it casts every 16-bit parameter to
    float32.

    Args:
        name: embedded name, folder or hub id.
        quant: ``nf4`` or ``none``.
        lora_rank: r ≥ 1.
        lora_alpha: the adapter's output is scaled by lora_alpha / lora_rank.
        adapter: folder of an adapter to go on from; a frozen copy of it becomes the reference.
        gradient_checkpointing: recompute activations in the backward pass (less memory, more time).
        seed: of the adapter's initial weights.
        device: GPU if there is one.
    """
    model, tokenizer = load_base(name, quant, device)
    base_said = probe_logps(LanguageModel(model, tokenizer, name, quant))
    if gradient_checkpointing:
        checkpoint_activations(model)
    peft_model: PeftModel
    if adapter is not None:
        start = adapter_folder(adapter)
        try:
            peft_model = PeftModel.from_pretrained(model, start, is_trainable=True)
        except RuntimeError as error:
            raise ValueError(
                f"the adapter {start!r} does not fit the base {name!r}: it was trained on"
                " another one"
            ) from error
        # peft looks for the base's config there whenever it saves, on the hub if need be
        peft_model.peft_config["default"].base_model_name_or_path = model.name_or_path
        peft_model.load_adapter(start, "reference", is_trainable=False)
        for module in peft_model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    else:
        config = LoraConfig(
            r=lora_rank,
            lora_alpha=lora_alpha,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng(devices=[]):
            peft_model = get_peft_model(model, config)
        # peft's own start for A (B starts at 0), drawn from a stream that no other thread can
        # disturb
        generator = torch.Generator().manual_seed(seed)
        for weight_name, weight in peft_model.named_parameters():
            if "lora_A" in weight_name:
                start_a = nn.init.kaiming_uniform_(
                    torch.empty(weight.shape), a=math.sqrt(5), generator=generator
                )
                weight.data.copy_(start_a)
    policy = LanguageModel(
        peft_model,
        tokenizer,
        name,
        quant,
        "default",
        None if adapter is None else str(adapter),
        base_said=base_said,
    )
    verify_head(policy)
    return policy


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Recompute the activations of a layer in the backward pass."""
    # newer transformers have another name for it, and warn of this one
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})
    model.enable_input_require_grads()


def check_architecture(name: str, config: PreTrainedConfig) -> None:
    """Refuse, by its config alone, a model that is no causal language model with attention, and one
    of which most weights are not in linear layers (GPT-2's transposed ones, experts in one tensor):
    neither LoRA nor 4 bit would reach them.

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
    # in another dtype transformers would change the default dtype of the whole process for a
    # moment, under the feet of a run in another thread
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


def adapter_folder(path: str | Path) -> str:
    """``path``, if it holds an adapter in safetensors that names no code.

    Raises:
        FileNotFoundError: it does not, and peft would read a pickle too.
        ValueError: its config names a module that peft would import.
    """
    folder = Path(path)
    if not (folder / "adapter_model.safetensors").exists():
        raise FileNotFoundError(f"{str(path)!r} holds no adapter_model.safetensors")
    try:
        named = json.loads((folder / "adapter_config.json").read_text()).get("megatron_config")
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(
            f"the adapter {str(path)!r} has no adapter_config.json that can be read: {error}"
        ) from None
    if named is not None:
        raise ValueError(
            f"the adapter {str(path)!r} is one for Megatron, whose config names code to be"
            " run: such adapters are not supported"
        )
    return str(path)


def save_adapter(policy: LanguageModel, folder: Path) -> None:
    """The policy's adapter in PEFT's format. It names its base as the policy was asked for it, not
    the place where that lies on this machine, and has no blank model card.
    """
    assert isinstance(policy.model, PeftModel)
    policy.model.save_pretrained(str(folder), selected_adapters=["default"])
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    path.write_text(
        json.dumps(
            json.loads(path.read_text()) | {"base_model_name_or_path": policy.source}, indent=2
        )
        + "\n"
    )


def reference_of(policy: LanguageModel) -> LanguageModel:
    """The frozen reference: the policy's own base with the adapter off, or the frozen copy of
    the adapter it started from. No second model.
    """
    assert isinstance(policy.model, PeftModel)
    start = "reference" if "reference" in policy.model.peft_config else None
    return LanguageModel(policy.model, policy.tokenizer, policy.source, policy.quant, start)


@one_at_a_time
def load_teacher(
    name: str,
    quant: Quant = "nf4",
    *,
    policy: LanguageModel | None = None,
    adapter: str | Path | None = None,
    device: torch.device | None = None,
) -> LanguageModel:
    """A frozen teacher. On the policy's own base it is another view of it: adapter off, or an
    adapter of its own.

    Args:
        name: embedded name, folder or hub id.
        quant: ``nf4`` or ``none``.
        policy: shares its base where name and quant agree; its tokenizer must be the same.
        adapter: folder of the teacher's adapter.
        device: GPU if there is one.

    Raises:
        ValueError: the tokenizers differ.
    """
    if policy is not None and policy.quant == quant and locate(policy.source) == locate(name):
        assert isinstance(policy.model, PeftModel)
        if adapter is None:
            return LanguageModel(policy.model, policy.tokenizer, name, quant)
        title = f"teacher{len(policy.model.peft_config)}"
        policy.model.load_adapter(adapter_folder(adapter), title, is_trainable=False)
        return LanguageModel(policy.model, policy.tokenizer, name, quant, title, str(adapter))
    model, tokenizer = load_base(name, quant, device)
    if adapter is not None:
        teacher = LanguageModel(
            PeftModel.from_pretrained(model, adapter_folder(adapter)),
            tokenizer,
            name,
            quant,
            "default",
            str(adapter),
        )
    else:
        teacher = LanguageModel(model, tokenizer, name, quant)
    teacher.model.requires_grad_(False)
    teacher.model.eval()
    if policy is not None:
        check_same_tokenizer(policy, teacher)
    verify_head(teacher)
    return teacher


def check_same_tokenizer(student: LanguageModel, teacher: LanguageModel) -> None:
    """Per-token distillation compares the same token ids, so both must mean the same by them.
    Padding rows of the embedding may differ.

    Raises:
        ValueError: with the first token that differs.
    """
    same_tokenizer((student.source, student.tokenizer), (teacher.source, teacher.tokenizer))


def same_tokenizer(
    student: tuple[str, PreTrainedTokenizerBase], teacher: tuple[str, PreTrainedTokenizerBase]
) -> None:
    """:func:`check_same_tokenizer` for names and tokenizers, without models."""
    ours, theirs = student[1].get_vocab(), teacher[1].get_vocab()
    odd = next(
        (
            token
            for token in sorted(set(ours) | set(theirs))
            if ours.get(token) != theirs.get(token)
        ),
        None,
    )
    probe = "49-7+4-2? So x² = 4;\n  a saint, a sinner."
    same_text = student[1](probe)["input_ids"] == teacher[1](probe)["input_ids"]
    if odd is None and same_text:
        return
    detail = (
        f"{odd!r} is {ours.get(odd)} for the student and {theirs.get(odd)} for the teacher"
        if odd is not None
        else "the same text splits differently"
    )
    raise ValueError(
        f"student ({student[0]}) and teacher ({teacher[0]}) have different tokenizers:"
        f" {detail}. Distillation token by token needs the same one;"
        " take a teacher of the student's family"
    )
