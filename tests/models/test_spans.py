"""Spans of text between student and teacher with different tokenizers."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlkd_lab.models import LanguageModel
from rlkd_lab.models.spans import Bytes, Reader, numbers, spread
from rlkd_lab.rollouts.traces import sequences_of
from rlkd_lab.zoo.tokenizer import character_tokenizer
from tests.tokenizers_of_text import TEXTS, byte_pairs, pieces

MADE = {
    "bytes": byte_pairs,
    "other bytes": lambda: byte_pairs(700, TEXTS[:3]),
    "pieces": pieces,
    "characters": character_tokenizer,
}
TEXT = st.text(st.sampled_from("0123456789+-=;# saint\n²答🙂"), min_size=1, max_size=40)


@functools.cache
def tokenizer(kind):
    return MADE[kind]()


@functools.cache
def reader(ours, theirs):
    student, teacher = (lm(kind) for kind in (ours, theirs))
    return Reader(student, teacher)


@functools.cache
def lm(kind):
    return Bare(None, tokenizer(kind), kind, "none")


class Bare(LanguageModel):
    """A model without weights, on the CPU."""

    device = torch.device("cpu")


def completions(kind, texts, ended=True):
    """Sequences of a student that wrote these texts."""
    ids = [tokenizer(kind)(text, add_special_tokens=False)["input_ids"] for text in texts]
    ids = [row + [tokenizer(kind).eos_token_id] * ended for row in ids]
    return sequences_of(lm(kind), ["1+1?"] * len(texts), ids)


def asked(sequences, pair, context=10**6, seed=0):
    """Read, with random log-probabilities; return sequences, student's, teacher's, spread."""
    found = reader(*pair).read(sequences, ["1+1?"] * len(sequences.prompt_ids), context)
    draw = torch.Generator().manual_seed(seed)
    ours, theirs = (
        -3 * torch.rand(int(one.completion_mask.sum()), generator=draw)
        for one in (found, found.teacher)
    )
    return found, ours, theirs, spread(found, found.teacher, ours, theirs)


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
@given(text=TEXT)
@settings(max_examples=60, deadline=None)
def test_tokens_write_the_bytes_of_their_text(kind, text):
    known = Bytes(tokenizer(kind), kind)
    assert b"".join(known.of(known.encode(text))) == text.encode()


@pytest.mark.parametrize(
    "pair",
    [("bytes", "other bytes"), ("bytes", "pieces"), ("pieces", "bytes"), ("characters", "bytes")],
    ids=" to ".join,
)
@given(texts=st.lists(TEXT, min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_the_spans_add_up_to_the_sequence_and_one_token_is_itself(pair, texts):
    if pair[0] == "characters":
        texts = ["".join(c for c in text if c.isascii() and c != "\n") or "7" for text in texts]
    found, ours, theirs, said = asked(completions(pair[0], texts), pair)
    rows, other = (
        torch.arange(len(texts))[:, None].expand_as(one.completion_mask)[one.completion_mask.bool()]
        for one in (found, found.teacher)
    )
    for row in range(len(texts)):
        assert (found.spans[row][found.completion_mask[row].bool()] >= 0).all()
        torch.testing.assert_close(
            said[rows == row].sum(), theirs[other == row].sum(), rtol=1e-4, atol=1e-4
        )
        spans = found.spans[row].tolist()
        for span in set(spans) - {-1}:  # each span has its part, and its tokens one gap
            mine = (found.spans[row][found.completion_mask[row].bool()] == span).nonzero()[:, 0]
            its = (
                found.teacher.spans[row][found.teacher.completion_mask[row].bool()] == span
            ).nonzero()[:, 0]
            gap = (said - ours)[rows == row][mine]
            torch.testing.assert_close(gap, gap[:1].expand_as(gap), rtol=1e-4, atol=1e-4)
            assert float(said[rows == row][mine].sum()) == pytest.approx(
                float(theirs[other == row][its].sum()), abs=1e-4
            )


def test_equal_tokenizers_give_exactly_what_the_teacher_says():
    _, _, theirs, said = asked(completions("bytes", TEXTS[:3]), ("bytes", "bytes"))
    assert torch.equal(theirs, said)


def test_two_tokens_share_the_gap_of_their_span():
    both = numbers([b"1", b"2", b"=3"], [b"12", b"=", b"3"])
    assert [each.tolist() for each in both] == [[0, 0, 1], [0, 1, 1]]
    found, ours, theirs, said = asked(
        completions("characters", [" answer"]), ("characters", "bytes")
    )
    words = tokenizer("bytes").convert_ids_to_tokens(found.teacher.completion_ids[0].tolist())
    first = len(words[0])
    assert first > 1 and found.spans[0, :first].tolist() == [0] * first
    gap = theirs[0] - ours[:first].sum()
    torch.testing.assert_close(said[:first], ours[:first] + gap / first)


def test_what_the_teacher_cannot_read_has_no_span():
    whole = completions("bytes", ["12=答;3"], ended=False)
    for cut in range(1, whole.completion_ids.shape[1]):
        ids = [whole.completion_ids[0, :cut].tolist()]
        part = sequences_of(lm("bytes"), ["1+1?"], ids)
        found, ours, _, said = asked(part, ("bytes", "other bytes"))
        spans = found.spans[0].tolist()
        text = b"".join(Bytes(tokenizer("bytes"), "").of(ids[0]))
        half = text.decode("utf-8", "ignore").encode() != text
        assert (spans[-1] == -1) == half
        assert torch.equal(said[found.spans[0] < 0], ours[found.spans[0] < 0])
    # characters that the teacher lacks end what it can read
    found, *_ = asked(completions("bytes", ["12=答;3"]), ("bytes", "characters"))
    spans = found.spans[0].tolist()
    assert spans[0] == 0 and spans[-1] == -1
    # and so does its context
    found, *_ = asked(completions("bytes", ["12+3=15;#15"]), ("bytes", "other bytes"), context=8)
    assert found.teacher.prompt_mask.sum() + found.teacher.completion_mask.sum() <= 8
    assert found.spans[0, 0] == 0 and found.spans[0, -1] == -1


def test_a_teacher_reads_its_own_chat_template():
    teacher = Bare(None, byte_pairs(), "teacher", "none")
    teacher.tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}="
    )
    teacher.use_chat("auto")
    found = Reader(lm("characters"), teacher).read(completions("characters", ["7"]), ["3+4?"], 99)
    assert teacher.tokenizer.decode(found.teacher.prompt_ids[0]) == "<user>3+4?="


def test_a_tokenizer_that_changes_the_text_is_refused():
    from tokenizers import normalizers

    loud = byte_pairs()
    loud.backend_tokenizer.normalizer = normalizers.Replace("a", "A")
    with pytest.raises(ValueError, match="do not write the text"):
        Bytes(loud, "loud")


def test_aligning_a_large_rollout_takes_a_moment():
    import time

    texts = [(text * 9)[: 2 * 512] for text in TEXTS] * 4
    sequences = completions("bytes", texts[:128])
    assert sequences.completion_mask.sum() > 128 * 300
    read = reader("bytes", "other bytes")
    began = time.process_time()
    found = read.read(sequences, ["1+1?"] * 128, 10**6)
    took = time.process_time() - began
    assert found.spans.max() > 50
    assert took < 5, took
