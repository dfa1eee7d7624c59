"""The tokenizers of our models: characters for the embedded ones, byte pairs for the mid-size."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<eos>", "<unk>")
CHARACTERS = "\n" + "".join(chr(code) for code in range(32, 127))


def character_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with a token for each character; decoding joins the tokens.

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


def byte_pair_tokenizer(texts: Iterable[str], size: int = 2000) -> PreTrainedTokenizerFast:
    """Learn byte pairs from ``texts``, at most ``size`` tokens.

    The same texts in the same order give the same tokenizer.
    It has all bytes, so it can write any text.
    Each digit is a token, so that numbers are read place by place.

    >>> tokenizer = byte_pair_tokenizer(["Emma is a knight.", "Liam is a knave."] * 2)
    >>> ids = tokenizer("Emma – 128")["input_ids"]
    >>> tokenizer.decode(ids), tokenizer.convert_ids_to_tokens(ids)[-3:]
    ('Emma – 128', ['1', '2', '8'])
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL[:2]),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
