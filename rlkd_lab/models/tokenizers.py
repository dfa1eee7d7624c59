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


def difference_of_tokenizers(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase
) -> str | None:
    """Return where token ids of student and teacher do not mean the same, or ``None``.

    Padding rows of the embeddings may differ.
    """
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    tokens = sorted(set(ours) | set(theirs))
    odd = next((token for token in tokens if ours.get(token) != theirs.get(token)), None)
    if odd is not None:
        return f"{odd!r} is {ours.get(odd)} for the student and {theirs.get(odd)} for the teacher"
    probe = "49-7+4-2? So x² = 4;\n  a saint, a sinner."
    if student(probe)["input_ids"] == teacher(probe)["input_ids"]:
        return None
    return "the same text splits differently"
