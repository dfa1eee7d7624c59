"""From a prompt to token ids: chat templates, system prompts, and what tokenizers add by
themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
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
            ValueError: the question or the system prompt would not be asked.
        """
        found = cls(
            tokenizer,
            source,
            wanted == "auto" and tokenizer.chat_template is not None,
            system_prompt or None,
        )
        if found.chat and PROBE not in cls(tokenizer, source, True).texts([PROBE])[0]:
            raise ValueError(
                f"the chat template of {source} leaves out a question that is plain text: use"
                " --set chat=off"
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
        """Return prompts in the chat template.

        Raises:
            ValueError: the template refuses these turns (some have no place for a system prompt).
        """
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        turns = [
            [*system, *({"role": role, "content": text} for role, text in turns_of(prompt))]
            for prompt in prompts
        ]
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
        """Return token ids of prompts, without padding: with the tokens that the tokenizer puts
        before a text, without those that it puts after one, and with one beginning of sequence
        where template and tokenizer both write it.

        The name of a special token in a prompt is plain text: a question with ``</s>`` does not
        end there. A bare prompt may write beginnings of sequence and the marks of a chat by
        itself: there only tokens that end or pad a text are, unless the chat template has them.

        Raises:
            ValueError: as :meth:`texts`; a chat of several turns without a chat template.
        """
        if not prompts:
            return []
        if not self.chat and (most := max(len(turns_of(prompt)) for prompt in prompts)) > 1:
            raise ValueError(
                f"a prompt is a chat of {most} turns, which needs the chat template of"
                f" {self.source}: it has none, or --set chat=off hides it"
            )
        plain = self._plain()
        if self.chat:
            found = self.tokenizer(self.texts(prompts), add_special_tokens=False)[
                "input_ids"
            ]  # the template writes its own
        else:
            found = self.tokenizer(list(prompts))["input_ids"]
            if ending := len(ending_of(self.tokenizer)):
                found = [ids[:-ending] for ids in found]
        for i, prompt in enumerate(prompts):
            if plain.search(prompt):
                found[i] = self._with_names(prompt, plain)
        bos = self.tokenizer.bos_token_id
        return [ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids for ids in found]

    def _plain(self) -> re.Pattern[str]:
        """Return names of special tokens that are text in a prompt."""
        tokenizer = self.tokenizer
        if self.chat:
            return re.compile(_any_of(special_tokens(tokenizer)))
        template = str(tokenizer.chat_template or "")
        ends = {str(one) for one in (tokenizer.eos_token, tokenizer.pad_token) if one}
        begins = {str(tokenizer.bos_token)} & ends  # one token for both, as GPT-2 has it
        names = [_any_of(name for name in ends - begins if name not in template)]
        names += [rf"(?!\A)(?:{_any_of(name for name in begins if name not in template)})"]
        return re.compile("|".join(names))

    def _with_names(self, prompt: str, plain: re.Pattern[str]) -> list[int]:
        """Return token ids of a prompt in which names of special tokens, those of ``plain``, are
        text.
        """
        free = (chr(code) for code in range(0xE000, 0xF900) if chr(code) not in prompt)
        # one character of no script for each name, while the template writes its own tokens
        held = dict(zip(dict.fromkeys(plain.findall(prompt)), free, strict=False))

        def hide(text: str) -> str:
            return plain.sub(lambda name: held[name.group()], text)

        text = prompt.changed(hide) if hasattr(prompt, "changed") else hide(prompt)
        found = [] if self.chat else around(self.tokenizer)[0]
        special = _any_of(special_tokens(self.tokenizer))
        for piece in re.split(f"({special})", self.texts([text])[0] if self.chat else text):
            own = re.fullmatch(special, piece) is not None
            for name, character in held.items():
                piece = piece.replace(character, name)
            if piece:
                found += self.tokenizer(
                    piece, add_special_tokens=False, split_special_tokens=not own
                )["input_ids"]
        return found

    def notes(self) -> list[str]:
        """Return sentences about what the tokenizer adds and is left out here."""
        ending = [] if self.chat else ending_of(self.tokenizer)
        if not ending:
            return []
        names = " ".join(map(str, self.tokenizer.convert_ids_to_tokens(ending)))
        return [
            f"the tokenizer of {self.source} puts {names} after every text; it is left out of"
            " prompts, which would have ended before their completion"
        ]


def turns_of(prompt: str) -> tuple[tuple[str, str], ...]:
    """Return role and text of a prompt's turns: of a :class:`~rlkd_lab.tasks.Chat` its own."""
    return getattr(prompt, "turns", (("user", prompt),))


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return names of all special tokens."""
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return list(dict.fromkeys([*tokenizer.all_special_tokens, *added]))


def _any_of(names: Iterable[str]) -> str:
    """Return a pattern of one of some texts, the longest first; without any, of nothing."""
    found = sorted(filter(str.strip, names), key=len, reverse=True)
    return "|".join(map(re.escape, found)) or "(?!)"


def ending_of(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return special tokens that a tokenizer puts after a text, as some do with the end of
    sequence.
    """
    return around(tokenizer)[1]


def around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return special tokens that a tokenizer puts before and after a text."""
    whole, bare = (
        tokenizer(PROBE)["input_ids"],
        tokenizer(PROBE, add_special_tokens=False)["input_ids"],
    )
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return list(whole[:start]), list(whole[start + len(bare) :])
    return [], []


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
