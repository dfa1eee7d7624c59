import math

import pytest
import torch

from rlkd_lab.training import run
from rlkd_lab.training.interference import cosine, sign_conflict

PAIRS = (
    "",
    "_reward_method",
    "_teacher_method",
    "_split_reward",
    "_split_teacher",
    "_split_method",
)
FIELDS = {"steps": 1, "interference_every": 1, "group_size": 4, "prompts_per_step": 4}


def test_cosine_by_hand():
    assert cosine(torch.tensor([3.0, 4.0]), torch.tensor([4.0, 3.0])) == pytest.approx(24 / 25)
    assert cosine(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])) == 0
    assert cosine(torch.tensor([1.0, 2.0]), torch.tensor([-1.0, -2.0])) == pytest.approx(-1)
    assert math.isnan(cosine(torch.zeros(2), torch.ones(2)))


def test_sign_conflict_by_hand():
    a, b = torch.tensor([1.0, -2.0, 3.0, 0.0, 5.0]), torch.tensor([1.0, 2.0, 3.0, -4.0, 0.0])
    assert sign_conflict(a, b) == pytest.approx(1 / 3)  # coordinates 4 and 5 are not in both
    assert sign_conflict(a, -a) == 1
    assert sign_conflict(a, a) == 0
    assert math.isnan(sign_conflict(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])))


@pytest.fixture
def spread(monkeypatch):
    """Every second completion is right: the reward's gradient is not 0."""
    from rlkd_lab.tasks.rewards import Verdict
    from rlkd_lab.training import scoring

    def judge(task, weights, texts, *_):
        return [
            Verdict(float(i % 2), {"accuracy": float(i % 2)}, None, bool(i % 2))
            for i in range(len(texts))
        ]

    monkeypatch.setattr(scoring, "judge", judge)


# the two that say what the cosines mean come first; the others are there because each builds its
# batch in another way
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("grpo", {}),
        ("opd", {}),
        ("kdrl", {}),
        ("trrd", {}),
        ("kdrl", {"estimator": "exact"}),
        ("gkd", {"on_policy_frac": "1"}),
        ("kdrl", {"kl_coef": "0.1"}),
    ],
)
def test_interference_in_a_run(tiny, tmp_path, spread, method, settings):
    row = run(tiny(method, settings, **FIELDS), tmp_path / "run").rows()[0]
    for pair in PAIRS:
        assert -1.0001 <= row[f"interference/cosine{pair}"] <= 1.0001
        assert 0 <= row[f"interference/sign_conflict{pair}"] <= 1
    for name in ("reward", "teacher", "method"):  # two halves are two different gradients
        assert row[f"interference/cosine_split_{name}"] < 0.999
    if method == "grpo":
        assert row["interference/cosine_reward_method"] == pytest.approx(1, abs=1e-5)
        assert row["interference/sign_conflict_reward_method"] == 0
        assert row["interference/cosine_teacher_method"] == pytest.approx(
            row["interference/cosine"], abs=1e-5
        )
        assert row["interference/cosine_split_method"] == pytest.approx(
            row["interference/cosine_split_reward"], abs=1e-5
        )
    if method == "opd":
        assert row["interference/cosine_teacher_method"] == pytest.approx(1, abs=1e-5)
        assert row["interference/cosine_reward_method"] == pytest.approx(
            row["interference/cosine"], abs=1e-5
        )
    if method == "kdrl" and not settings:
        # its gradient is the sum of the two, so it follows each of them at least as well as they
        # follow each other
        assert row["interference/cosine_reward_method"] > row["interference/cosine"]


def test_measuring_changes_no_step(tiny, tmp_path, spread):
    from rlkd_lab.runs import first_difference

    fields = {**FIELDS, "prompts_per_step": 2, "steps": 2}
    measured = run(tiny("kdrl", **{**fields, "interference_every": 2}), tmp_path / "a").rows()
    plain = run(tiny("kdrl", **{**fields, "interference_every": 0}), tmp_path / "b").rows()
    assert [sum(name.startswith("interference/") for name in row) for row in measured] == [0, 12]
    without = [
        {k: v for k, v in row.items() if not k.startswith("interference/")} for row in measured
    ]
    assert first_difference(without, plain) == (None, 0.0)


def test_one_prompt_has_no_second_half_and_no_crash(tiny, tmp_path, spread):
    row = run(tiny("kdrl", **{**FIELDS, "prompts_per_step": 1}), tmp_path / "run").rows()[0]
    assert row["interference/cosine"] is not None
    assert row["interference/cosine_split_reward"] is None


def test_only_steps_on_the_students_own_completions_are_measured(tiny, tmp_path):
    row = run(tiny("sft", **{**FIELDS, "prompts_per_step": 2}), tmp_path / "run").rows()[0]
    assert not any(name.startswith("interference/") for name in row)
