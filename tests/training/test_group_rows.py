"""Completions that could not be judged, or that the length limit cut, in the groups of a run."""

import zlib

import numpy as np
import pytest
import torch

from rlkd_lab.lab.live.tokens import token_arrays
from rlkd_lab.objectives import group_advantages
from rlkd_lab.tasks import ArithmeticTask, Score
from rlkd_lab.training import replay, run

FIELDS = {
    "steps": 1,
    "group_size": 4,
    "prompts_per_step": 4,
    "samples_every": 1,
    "difficulty": (2, 4),
}


@pytest.fixture
def stumbling(monkeypatch):
    """A verifier that raises on a third of the texts, and calls half of the others right."""

    def score(self, text, example):
        number = zlib.crc32(text.encode())
        if number % 3 == 0 and text:
            raise RuntimeError("cannot judge this")
        return Score({"accuracy": float(number % 2), "format": 0.0})

    monkeypatch.setattr(ArithmeticTask, "score", score)


def spreads(samples, counted):
    """Unbiased std by group, 0 below two."""
    parts = [part.loc[counted[part.index], "reward"] for _, part in samples.groupby("group")]
    return np.array([part.std() if len(part) > 1 else 0.0 for part in parts])


@pytest.mark.parametrize(("settings", "left_out"), [
    ({}, ("unjudged",)),
    ({"mask_truncated": "true"}, ("unjudged", "truncated")),
    ({"mask_truncated": "true", "group_rows": "all"}, ()),
])  # fmt: skip
def test_they_leave_the_statistics_of_their_group(tiny, tmp_path, stumbling, settings, left_out):
    folder = run(tiny("grpo", settings, **FIELDS), tmp_path / "run")
    samples, row = folder.samples(1), folder.rows()[0]
    unjudged, cut = samples["why"].notna(), ~samples["finished"]
    assert unjudged.any()
    assert cut.any()
    counted = ~((unjudged & ("unjudged" in left_out)) | (cut & ("truncated" in left_out)))
    assert (samples["counted"] == counted).all()
    spread = spreads(samples, counted)
    assert row["reward_std"] == pytest.approx(spread.mean(), abs=1e-6)
    assert row["frac_reward_zero_std"] == (spread == 0).mean()
    # what the inspector shows is what was trained with
    shown = [float(values[0]) for values in token_arrays(folder, 1).arrays["advantage"]]
    given = (torch.tensor(samples["reward"].to_numpy()), torch.tensor(samples["group"].to_numpy()))
    wanted = group_advantages(*given, counted=torch.tensor(counted.to_numpy()))
    assert shown == pytest.approx(
        wanted.where(
            torch.tensor(~cut.to_numpy()) | ("mask_truncated" not in settings), torch.tensor(0.0)
        ).tolist(),
        abs=1e-5,
    )
    assert replay(folder.path, tmp_path / "again").difference is None


def test_a_group_whose_rewards_differ_by_an_unjudged_completion_alone_is_drawn_again(
    tiny, tmp_path, monkeypatch
):
    def score(self, text, example):
        if zlib.crc32(text.encode()) % 2 and text:
            raise RuntimeError("cannot judge this")
        return Score({"accuracy": 1.0, "format": 0.0})

    monkeypatch.setattr(ArithmeticTask, "score", score)
    fields = {**FIELDS, "resample_rounds": 2, "max_new_tokens": 48, "difficulty": (1, 1)}
    (row,) = run(tiny("dapo", **fields), tmp_path / "run").rows()
    (before,) = run(
        tiny("dapo", {"group_rows": "all", "mask_truncated": "true"}, **fields), tmp_path / "all"
    ).rows()
    assert row["sampling/groups_with_spread"] < before["sampling/groups_with_spread"]


def test_all_unjudged_but_one_trains_nothing_and_is_no_nan(tiny, tmp_path, monkeypatch):
    shown = []

    def score(self, text, example):
        shown.append(text)
        if text and len(shown) != 3:
            raise RuntimeError("cannot judge this")
        return Score({"accuracy": 1.0, "format": 1.0})

    monkeypatch.setattr(ArithmeticTask, "score", score)
    (row,) = run(
        tiny("grpo", student="student", **{**FIELDS, "max_new_tokens": 48, "difficulty": (1, 1)}),
        tmp_path / "run",
    ).rows()
    assert 0 < row["reward/unjudged"] < 1
    assert (row["grad_norm"], row["reward_std"], row["frac_reward_zero_std"]) == (0, 0, 1)
