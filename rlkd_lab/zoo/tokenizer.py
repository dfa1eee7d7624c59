"""The character tokenizer of the embedded models: printable ASCII, one token a character."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<eos>", "<unk>")
CHARACTERS = "\n" + "".join(chr(code) for code in range(32, 127))
VOCAB_SIZE = 128
"""Rows of the embedding: the tokens above and unused ones up to a multiple of 64."""


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character; decoding is plain joining, so text and tokens line up.

    >>> tokenizer = character_tokenizer()
    >>> tokenizer.decode(tokenizer("49-7?")["input_ids"])
    '49-7?'
    """
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
