"""Spans: the same text in two tokenizers, cut where both have a boundary.

A token of one tokenizer has no counterpart in another, but a span of bytes has. Between two common
boundaries a span's gap is log π_T(span) − log π(span), and each of the student's n tokens there
takes an n-th of it. So the gaps of a completion add up to log π_T(y) − log π(y), and a span of one
token has the teacher's log-probability as it is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from rlkd_lab.models.language_model import LanguageModel
from rlkd_lab.models.sequences import Sequences

ANCHORS = ("", "\n", ":", "=", "x")
"""Texts before a completion, so that a tokenizer adds no space of its own to it."""
PROBE = "49-7+4-2? So x² = 4;\n  a saint, a sinner. 答え"


class Bytes:
    """The bytes that each token of a tokenizer writes.

    Raises:
        ValueError: the tokens of a text do not write this text, as with a tokenizer that changes
            case or spaces.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
        self.tokenizer = tokenizer
        self._added = {
            number: str(token.content).encode()
            for number, token in tokenizer.added_tokens_decoder.items()
        }
        backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        decoder = "" if backend is None else json.dumps(json.loads(backend.to_str())["decoder"])
        self._falls_back = '"ByteFallback"' in decoder
        letters = {letter: byte for byte, letter in bytes_to_unicode().items()}
        self._letters = letters if '"ByteLevel"' in decoder else None
        self._known: dict[int, bytes] = {}
        text = known(tokenizer, PROBE)
        if b"".join(self.of(self.encode(text))) != text.encode():
            raise ValueError(
                f"the tokenizer of {source} cannot be compared with another: its tokens do not"
                f" write the text that they were made of ({PROBE[:9]!r})"
            )

    def of(self, ids: Sequence[int]) -> list[bytes]:
        """Return the bytes of tokens."""
        for number in set(ids) - self._known.keys():
            self._known[number] = self._bytes(number)
        return [self._known[number] for number in ids]

    def _bytes(self, number: int) -> bytes:
        token: Any = self.tokenizer.convert_ids_to_tokens(number)
        if token is None:  # a padding row of the vocabulary
            return b"\xff"
        if self._falls_back and len(token) == 6 and token.startswith("<0x"):
            return bytes.fromhex(token[3:5])
        if number in self._added:
            return self._added[number]
        if self._letters is not None:
            return bytes(self._letters.get(letter, 0xFF) for letter in token)
        return token.replace("▁", " ").encode()

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Return :meth:`encode` of each text; a tokenizer reads all of them at once."""
        found = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return [
            ids if b"".join(self.of(ids)) == text.encode() else self.encode(text)
            for ids, text in zip(found, texts, strict=True)
        ]

    def encode(self, text: str) -> list[int]:
        """Return the tokens that write a text, or the longest part of it from its start.

        Some tokenizers put a space before every text: an anchor takes it.
        """
        wanted, longest, best = text.encode(), -1, []
        for anchor in ANCHORS:
            ids = self.tokenizer(anchor + text, add_special_tokens=False)["input_ids"]
            written = self.of(ids)
            for skip in range(len(anchor) + 2):
                if b"".join(written[:skip]).replace(b" ", b"") != anchor.encode():
                    continue
                size = agreement(rest := b"".join(written[skip:]), wanted)
                if size > longest:
                    longest, best = size, list(ids[skip:])
                if rest == wanted:
                    return best
        return best


def agreement(ours: bytes, theirs: bytes) -> int:
    """Return how many bytes two texts have in common from their start."""
    if ours == theirs:
        return len(ours)
    pairs = enumerate(zip(ours, theirs, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(ours), len(theirs)))


def known(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Return the characters of a text that the tokenizer has tokens for."""
    unknown = tokenizer.unk_token_id
    return "".join(
        letter
        for letter in text
        if unknown is None
        or unknown not in tokenizer(letter, add_special_tokens=False)["input_ids"]
    )


def numbers(ours: Sequence[bytes], theirs: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of the span that each token belongs to, in both tokenizations of a text.

    A token without a span has −1: it ends after the last boundary that both have while their bytes
    are the same.

    >>> numbers([b"12", b"+", b"3"], [b"1", b"2+", b"3"])
    (array([0, 0, 1]), array([0, 0, 1]))
    >>> numbers([b"12", b"+", b"3"], [b"12", b"-", b"3"])
    (array([ 0, -1, -1]), array([ 0, -1, -1]))
    """
    ends, others = (np.cumsum([*map(len, tokens)], dtype=int) for tokens in (ours, theirs))
    common = np.intersect1d(ends, others)
    same = agreement(b"".join(ours), b"".join(theirs))
    common = common[(common > 0) & (common <= same)]
    places = (np.searchsorted(common, each) for each in (ends, others))
    one, other = (np.where(each < len(common), each, -1) for each in places)
    return one, other


class Reader:
    """Reads completions of a student as a teacher with another tokenizer would have written them.

    Args:
        student: its tokenizer and its ends of sequence.
        teacher: the same of the teacher.
    """

    def __init__(self, student: LanguageModel, teacher: LanguageModel) -> None:
        self.student, self.teacher = student, teacher
        self.ours = Bytes(student.tokenizer, student.source)
        self.theirs = Bytes(teacher.tokenizer, teacher.source)
        eos = teacher.tokenizer.eos_token_id
        self.eos = min(teacher.eos_ids) if eos is None else int(eos)

    def read(self, sequences: Sequences, prompts: Sequence[str], context: int) -> Sequences:
        """Return the sequences with what the teacher reads, and with spans.

        The teacher reads its own chat template. Bytes that are no text yet, such as half a
        character at a cut, have no span. Tokens that do not fit its context have none.

        Args:
            sequences: prompts and completions of the student.
            prompts: one a completion.
            context: of the teacher, in tokens.
        """
        device, pad = sequences.completion_ids.device, self.teacher.tokenizer.pad_token_id
        asked = self.teacher.tokenizer.pad(
            {"input_ids": self.teacher.prompt_ids(prompts)},
            padding_side="left",
            return_tensors="pt",
        )
        prompt_ids, prompt_mask = asked["input_ids"], asked["attention_mask"]
        rooms = (context - prompt_mask.sum(1)).tolist()
        pairs = zip(sequences.completion_ids, sequences.completion_mask.bool(), strict=True)
        rows = [ids[kept].tolist() for ids, kept in pairs]
        ended = [bool(row) and row[-1] in self.student.eos_ids for row in rows]
        written = [
            self.ours.of(row[:-1] if end else row) for row, end in zip(rows, ended, strict=True)
        ]
        texts = [b"".join(tokens).decode("utf-8", "replace") for tokens in written]
        each = zip(written, ended, self.theirs.encode_all(texts), rooms, strict=True)
        found = [self._row(*one) for one in each]
        theirs = _padded([ids for ids, _, _ in found], pad)
        mask = _padded([np.ones(len(ids), dtype=int) for ids, _, _ in found], 0)
        spans = _padded([spans for _, _, spans in found], -1)
        ours = _padded([own for _, own, _ in found], -1, sequences.completion_ids.shape[1])
        teacher = Sequences(
            prompt_ids.to(device),
            prompt_mask.to(device),
            theirs.to(device),
            mask.to(device),
            spans=spans.to(device),
        )
        return replace(sequences, teacher=teacher, spans=ours.to(device))

    def in_ours(self, text: str, finished: bool, most: int) -> tuple[list[int], bool]:
        """Return a trace of the teacher in at most so many of the student's tokens.

        Returns:
            The tokens, up to what the student has none for, and whether they end with an end of
            sequence.
        """
        ids, eos = self.ours.encode(text), self.student.tokenizer.eos_token_id
        ends = np.cumsum([len(one) for one in self.ours.of(ids)], dtype=int)
        same = agreement(b"".join(self.ours.of(ids)), text.encode())
        ids = ids[: int((ends <= same).sum())]
        whole = finished and same == len(text.encode()) and len(ids) < most
        ids += [min(self.student.eos_ids) if eos is None else int(eos)] * whole
        return ids[:most], whole

    def _row(
        self, written: list[bytes], ended: bool, theirs: list[int], room: int
    ) -> tuple[list[int], np.ndarray, np.ndarray]:
        """Return the teacher's tokens of a completion, and the spans of the student's and of them.

        An end of sequence is a span of its own.
        """
        theirs = theirs[: max(room - 1, 0)]
        read = self.theirs.of(theirs)
        ours, spans = numbers(written, read)
        if ended:
            last = max(ours, default=-1) + 1 if b"".join(read) == b"".join(written) else -1
            ours, spans, theirs = np.append(ours, last), np.append(spans, last), [*theirs, self.eos]
        # a model is asked for one token at least
        return (theirs, ours, spans) if theirs else ([self.eos], ours, np.array([-1]))


def spread(ours: Sequences, theirs: Sequences, logps: Tensor, their_logps: Tensor) -> Tensor:
    """Return the teacher's log-probabilities of the student's tokens, (N,) in nats.

    Args:
        ours: the student's tokens, with spans.
        theirs: the teacher's.
        logps: the student's log-probabilities, (N,).
        their_logps: the teacher's of its own tokens, (M,).
    """
    assert ours.spans is not None and theirs.spans is not None
    width = 1 + max(ours.spans.shape[1], theirs.spans.shape[1])

    def places(one: Sequences, spans: Tensor) -> tuple[Tensor, Tensor]:
        rows = torch.arange(len(spans), device=spans.device)[:, None] * width
        kept = one.completion_mask.bool()
        return (spans + rows)[kept], spans[kept] >= 0

    size = len(ours.spans) * width
    mine, has = places(ours, ours.spans)
    other, there = places(theirs, theirs.spans)
    wide = torch.float32 if logps.device.type == "mps" else torch.float64
    sums, own, count = torch.zeros(3, size, dtype=wide, device=logps.device)
    sums.index_add_(0, other[there], their_logps[there].to(sums))
    own.index_add_(0, mine[has], logps[has].to(own))
    count.index_add_(0, mine[has], torch.ones_like(logps[has]).to(count))
    gap = (sums - own) / count.clamp(min=1)
    # in float64, so that a span of one token has exactly what the teacher says
    return (logps.to(gap) + has * gap[mine.clamp(min=0)]).to(logps)


def _padded(rows: Sequence[Any], fill: int, width: int = 0) -> Tensor:
    found = np.full((len(rows), width or max(map(len, rows))), fill)
    for place, row in zip(found, rows, strict=True):
        place[: len(row)] = row
    return torch.from_numpy(found)
