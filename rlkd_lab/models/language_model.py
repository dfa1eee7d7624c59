"""A language model as a run sees it: one view of a base, with its adapter and tokenizer."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from rlkd_lab.models.prompts import PromptFormat

Quant = Literal["nf4", "none"]


@dataclass(eq=False)
class LanguageModel:
    """Holds a causal LM with its tokenizer and the name of its adapter.

    Policy, reference and teacher may be three views of one set of base weights. ``adapter`` names
    the adapter that is active in this view; ``None`` is the bare base.
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
    """Log-probabilities of the base by ``probe_logps`` before it got its adapter, (N,), in nats."""
    said: torch.Tensor | None = None
    """The same of this view as it was loaded."""
    room: int | None = None
    """Context in tokens of a model whose weights are elsewhere."""

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
        """Tokens that end a completion: the tokenizer's and those of the generation config."""
        written = None if self.model is None else self.causal_lm.generation_config
        listed = getattr(written, "eos_token_id", None)
        ids = listed if isinstance(listed, list) else [listed]
        return frozenset(i for i in [*ids, self.tokenizer.eos_token_id] if i is not None)

    @property
    def context(self) -> int:
        """Longest prompt plus completion, in tokens."""
        if self.room is not None:
            return self.room
        return int(getattr(self.causal_lm.config, "max_position_embeddings", 2**31))

    def use_chat(self, wanted: Literal["auto", "off"], system_prompt: str | None = None) -> None:
        """Put prompts into the chat template with ``auto``, where the tokenizer has one.

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
        """Return the token ids of prompts, in the chat template where ``chat`` is set."""
        return self.prompts.ids(prompts)

    def encode(self, prompts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return :meth:`prompt_ids` padded left, and their mask, (B, P) each."""
        padded = self.tokenizer.pad(
            {"input_ids": self.prompt_ids(prompts)}, padding_side="left", return_tensors="pt"
        ).to(self.device)
        return padded["input_ids"], padded["attention_mask"]

    def trainable(self) -> list[nn.Parameter]:
        """Return the parameters with a gradient."""
        return [p for p in self.model.parameters() if p.requires_grad]

    @contextlib.contextmanager
    def inferring(self) -> Iterator[None]:
        """Have the model in evaluation mode inside, without gradients."""
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.model.train(was_training)

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


def empty_model(source: PreTrainedModel) -> PreTrainedModel:
    """Make a model of the same config without data, in full precision."""
    config = copy.deepcopy(source.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    # Another default dtype would hold for all threads.
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval().requires_grad_(False)


def other_shapes(model: PreTrainedModel) -> list[tuple[str, torch.Size, torch.Size]]:
    """Return the weights whose shapes are not those of the config: name, theirs, the config's.

    transformers 5.17 loads a norm of another length into a 4-bit model, without a word.
    """
    wanted = {name: value.shape for name, value in empty_model(model).named_parameters()}
    found = {
        name: getattr(getattr(value, "quant_state", None), "shape", value.shape)
        for name, value in model.named_parameters()
    }
    return [
        (name, shape, wanted[name])
        for name, shape in found.items()
        if name in wanted and shape != wanted[name]
    ]
