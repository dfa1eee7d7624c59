"""Tokenizers: loaded and checked, and compared between student and teacher."""

from __future__ import annotations

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rlkd_lab.models.locating import locate
from rlkd_lab.models.prompts import check_special_tokens


def load_tokenizer(name: str, weights: bool = True) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model; ``weights`` as in :func:`~rlkd_lab.models.locating.locate`.

    Raises:
        FileNotFoundError: there is no such model, or it has no tokenizer.
        ValueError: the tokenizer has no token to pad with.
    """
    folder = locate(name, weights)
    files = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
    if not any((folder / file).exists() for file in files):
        raise FileNotFoundError(
            f"{name!r} has no tokenizer (tokenizer.json): save it beside the model with"
            " tokenizer.save_pretrained"
        )
    # without trust_remote_code transformers asks on the terminal
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    check_special_tokens(tokenizer, name)
    return tokenizer


def same_tokenizer(
    student: tuple[str, PreTrainedTokenizerBase], teacher: tuple[str, PreTrainedTokenizerBase]
) -> None:
    """Refuse names and tokenizers of a pair whose token ids do not mean the same.

    Distillation compares token by token. Padding rows of the embeddings may differ.

    Raises:
        ValueError: it names the first token that differs.
    """
    ours, theirs = student[1].get_vocab(), teacher[1].get_vocab()
    tokens = sorted(set(ours) | set(theirs))
    odd = next((token for token in tokens if ours.get(token) != theirs.get(token)), None)
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
