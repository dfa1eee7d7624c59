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
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from rlkd_lab.models.adapters import attach, can_share_base, check_policy_adapter
from rlkd_lab.models.checks import (
    WITHOUT_4_BIT,
    check_architecture,
    check_weights,
    probe_logps,
    quantised_layers,
    verify_head,
    verify_quantised,
)
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
ZOO = Path(__file__).parent.parent / "zoo"
LORA_RANK, LORA_ALPHA = 16, 32
"""Of a fresh adapter, where nothing else is asked for."""
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
        """The output head, the adapter's where it brings one (``modules_to_save``)."""
        head: Any = self.causal_lm.get_output_embeddings()
        return (
            head.modules_to_save[self.adapter]
            if self.adapter in getattr(head, "modules_to_save", ())
            else getattr(head, "original_module", head)
        )

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
                "4-bit loading needs bitsandbytes, which has no build for every system."
                f" {WITHOUT_4_BIT}"
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
    loaded: Any
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            device_map={"": device},
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # check_weights names them
            **settings,
        )
    except SafetensorError as error:
        raise ValueError(f"the weights of {name!r} are damaged: {error}") from error
    model, found = loaded
    check_weights(name, model, found)
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


@one_at_a_time
def load_policy(
    name: str,
    quant: Quant = "nf4",
    *,
    lora_rank: int | None = None,
    lora_alpha: int | None = None,
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
        lora_rank: r ≥ 1; by default that of ``adapter``, otherwise 16.
        lora_alpha: the adapter's output is scaled by lora_alpha / lora_rank; by default that of
            ``adapter``, otherwise 32.
        adapter: folder of an adapter to go on from; a frozen copy of it becomes the reference.
        gradient_checkpointing: recompute activations in the backward pass (less memory, more time).
        seed: of the adapter's initial weights.
        device: GPU if there is one.

    Raises:
        FileNotFoundError: see :func:`locate` and :func:`~rlkd_lab.models.adapters.attach`.
        ValueError: the base or the adapter is damaged or not supported, they do not fit, or the
            adapter has another rank or alpha than asked for.
    """
    model, tokenizer = load_base(name, quant, device)
    base_said = probe_logps(LanguageModel(model, tokenizer, name, quant))
    if gradient_checkpointing:
        checkpoint_activations(model)
    peft_model: PeftModel
    if adapter is not None:
        check_policy_adapter(adapter, {"lora_rank": lora_rank, "lora_alpha": lora_alpha})
        peft_model = attach(model, adapter, "default", name, trainable=True)
        attach(peft_model, adapter, "reference", name)
        for module in peft_model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    else:
        config = LoraConfig(
            r=lora_rank or LORA_RANK,
            lora_alpha=lora_alpha or LORA_ALPHA,
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
    """Load a frozen teacher. On the policy's base it is another view of it, adapter off or with
    another adapter, unless that adapter would change the base.

    Args:
        name: embedded name, folder or hub id.
        quant: ``nf4`` or ``none``.
        policy: shares its base where name and quant agree; its tokenizer must be the same.
        adapter: folder of the teacher's adapter.
        device: GPU if there is one.

    Raises:
        FileNotFoundError: no such model or adapter.
        ValueError: the tokenizers differ, or the adapter is damaged, not supported or made for
            another base.
    """
    shares = adapter is None or can_share_base(
        adapter, None if policy is None else policy.adapter_source
    )
    if (
        policy is not None
        and shares
        and policy.quant == quant
        and locate(policy.source) == locate(name)
    ):
        assert isinstance(policy.model, PeftModel)
        if adapter is None:
            return LanguageModel(policy.model, policy.tokenizer, name, quant)
        title = f"teacher{len(policy.model.peft_config)}"
        attach(policy.model, adapter, title, name)
        teacher = LanguageModel(policy.model, policy.tokenizer, name, quant, title, str(adapter))
        verify_head(teacher)
        return teacher
    model, tokenizer = load_base(name, quant, device)
    if adapter is not None:
        teacher = LanguageModel(
            attach(model, adapter, "default", name), tokenizer, name, quant, "default", str(adapter)
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
