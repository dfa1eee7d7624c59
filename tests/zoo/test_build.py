"""The embedded models can be made again: the batches that they were trained on are the same
ones.
"""

import hashlib

import pytest

from rlkd_lab.zoo import build
from rlkd_lab.zoo.measuring import chosen
from rlkd_lab.zoo.recipe import parts_of

BATCHES = {
    "student": "cde1cb3a720db20c",
    "teacher": "6537f95b10eab5ed",
    "teacher-concise": "5749864650598182",
    "knights-student": "94cb63c12eaab371",
    "knights-teacher": "419bf74ed25ac1ad",
    "knights-teacher-concise": "8d3828c33b54746c",
}
"""Digests of step 3, taken when the committed models were made by the same code."""


@pytest.mark.parametrize("name", BATCHES)
def test_the_batches_of_the_embedded_models_have_not_changed(name):
    parts = build.batch_for(3, build.RECIPES[name])
    assert (
        hashlib.sha256(
            repr([(ids.tolist(), labels.tolist()) for ids, labels in parts]).encode()
        ).hexdigest()[:16]
        == BATCHES[name]
    )


def test_parts_hold_every_row_once_within_their_tokens():
    rows = [
        ([index] * length, [-100] * length)
        for index, length in enumerate([3, 9, 4, 1, 7, 5, 2, 30], start=1)
    ]
    parts = parts_of(rows, 20, pad=0)
    assert all(ids.numel() <= 20 or len(ids) == 1 for ids, _ in parts)
    assert sorted(
        tuple(token for token in ids if token) for part, _ in parts for ids in part.tolist()
    ) == sorted(tuple(ids) for ids, _ in rows)
    (whole,) = parts_of(rows, None, pad=0)
    assert whole[0].shape == (8, 30)


def test_a_student_is_the_checkpoint_in_both_windows_nearest_to_the_middle():
    measured = {
        100: {"accuracy": 0.2, "direct": 0.5},
        200: {"accuracy": 0.42, "direct": 0.9},
        300: {"accuracy": 0.5, "direct": 0.45},
    }
    assert chosen(measured, "student", (0.1, 0.8), (0.4, 0.6)) == 300
    assert chosen(measured, "student", (0.1, 0.8), (0.0, 1.0)) == 200
    with pytest.raises(SystemExit, match="no checkpoint suits student"):
        chosen(measured, "student", (0.6, 0.8), (0.0, 1.0))
