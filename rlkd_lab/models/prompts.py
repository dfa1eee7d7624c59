"""From a prompt to token ids: chat templates, system prompts, and what tokenizers add by
themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

PROBE = "49-7+4-2?"


@dataclass(frozen=True)
class PromptFormat:
    """How one model is asked.

    Args:
        tokenizer: of the model.
        source: name of the model, for messages.
        chat: prompts go into the tokenizer's chat template, as the user's turn.
        system_prompt: the system's turn before it, with ``chat``.
    """

    tokenizer: PreTrainedTokenizerBase
    source: str
    chat: bool = False
    system_prompt: str | None = None

    @classmethod
    def of(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        source: str,
        wanted: Literal["auto", "off"],
        system_prompt: str | None = None,
    ) -> PromptFormat:
        """``auto``: prompts go into the chat template where the tokenizer has one.

        Raises:
            ValueError: the system prompt would not be asked.
        """
        found = cls(
            tokenizer,
            source,
            wanted == "auto" and tokenizer.chat_template is not None,
            system_prompt or None,
        )
        if found.system_prompt is None:
            return found
        instead = "drop system_prompt, or put its text into --set prompt_template=TEXT"
        if wanted == "off":
            raise ValueError(
                "system_prompt cannot act with chat=off, where prompts stay bare: use --set"
                f" chat=auto, {instead}"
            )
        if not found.chat:
            raise ValueError(
                f"system_prompt cannot act: the tokenizer of {source} has no chat template;"
                f" {instead}"
            )
        if found.texts([PROBE]) == cls(tokenizer, source, True).texts([PROBE]):
            raise ValueError(
                f"system_prompt cannot act: the chat template of {source} leaves system turns"
                f" out; {instead}"
            )
        return found

    def texts(self, prompts: Sequence[str]) -> list[str]:
        """Prompts in the chat template.

        Raises:
            ValueError: the template refuses these turns (some have no place for a system prompt).
        """
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        turns = [[*system, {"role": "user", "content": prompt}] for prompt in prompts]
        try:
            return list(
                self.tokenizer.apply_chat_template(
                    turns, tokenize=False, add_generation_prompt=True
                )
            )
        except TemplateError as error:
            raise ValueError(
                f"the chat template of {self.source} refuses the prompt: {error}; change"
                " system_prompt, or use --set chat=off"
            ) from error

    def ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of prompts, without padding: with the tokens that the tokenizer puts before a
        text, without those that it puts after one, and with one beginning of sequence where
        template and tokenizer both write it.

        Raises:
            ValueError: as :meth:`texts`.
        """
        if not prompts:
            return []
        if self.chat:
            found = self.tokenizer(self.texts(prompts), add_special_tokens=False)[
                "input_ids"
            ]  # the template writes its own
        else:
            found = self.tokenizer(list(prompts))["input_ids"]
            if ending := len(ending_of(self.tokenizer)):
                found = [ids[:-ending] for ids in found]
        bos = self.tokenizer.bos_token_id
        return [ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids for ids in found]

    def notes(self) -> list[str]:
        """Sentences about what the tokenizer adds and is left out here."""
        ending = [] if self.chat else ending_of(self.tokenizer)
        if not ending:
            return []
        names = " ".join(map(str, self.tokenizer.convert_ids_to_tokens(ending)))
        return [
            f"the tokenizer of {self.source} puts {names} after every text; it is left out of"
            " prompts, which would have ended before their completion"
        ]


def ending_of(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Special tokens that a tokenizer puts after a text, as some do with the end of sequence."""
    whole, bare = (
        tokenizer(PROBE)["input_ids"],
        tokenizer(PROBE, add_special_tokens=False)["input_ids"],
    )
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return list(whole[start + len(bare) :])
    return []


def check_special_tokens(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Give the tokenizer a token to pad with, if it has none: its end of sequence.

    Raises:
        ValueError: it has neither.
    """
    if tokenizer.pad_token_id is not None:
        return
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"the tokenizer of {name!r} has no padding token and no end-of-sequence token:"
            " set eos_token in its tokenizer_config.json to the token that ends"
            " a text of this model"
        )
    tokenizer.pad_token = tokenizer.eos_token
