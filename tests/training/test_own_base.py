"""A teacher or reference that has the policy's weights pulls at nothing, although its forward
rounds otherwise than the policy's.
"""

import pytest
import torch

from rlkd_lab.models import loading
from rlkd_lab.training import make_config, run

pytestmark = pytest.mark.loads

FIELDS = {
    "teacher": "student",
    "steps": 1,
    "prompts_per_step": 3,
    "group_size": 4,
    "max_new_tokens": 48,
    "eval_every": 0,
    "samples_every": 0,
    "checkpoint_every": 0,
}
NO_REWARD = {"rl_coef": 0.0}


def one_step(tmp_path, method, **fields):
    """The row, and the largest entry of any lora_B, which begin at 0."""
    last = {}

    def keep(loop, row):
        parameters = loop.policy.model.named_parameters()
        last["moved"] = max(
            float(value.abs().max())
            for name, value in parameters
            if "lora_B" in name and value.requires_grad
        )

    row = run(make_config(method, **{**FIELDS, **fields}), tmp_path / "run", on_step=keep).rows()[0]
    return row, last["moved"]


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("kdrl", {"knobs": NO_REWARD}),
        ("kdrl", {"knobs": NO_REWARD, "minibatches": 2}),
        ("kdrl_advantage", {"knobs": NO_REWARD, "minibatches": 3, "samples_every": 1}),
        ("kdrl", {"knobs": NO_REWARD, "options": {"estimator": "exact"}}),
        ("opd", {}),
        ("gkd", {"on_policy_frac": 1.0}),
        ("grpo", {"knobs": {**NO_REWARD, "kl_coef": 0.5}}),
        (
            "grpo",
            {
                "knobs": {**NO_REWARD, "kl_coef": 0.5},
                "options": {"ref_estimator": "k2"},
                "quant": "none",
                "teacher_quant": "none",
            },
        ),
    ],
)
def test_step_one_leaves_the_adapter_as_it_was(tmp_path, method, fields):
    row, moved = one_step(tmp_path, method, **fields)
    assert (row["grad_norm"], moved) == (0.0, 0.0)


SIXTEEN = {
    "opd": {},
    "gkd": {"on_policy_frac": 1.0},
    "kdrl": {"knobs": NO_REWARD, "teacher": "self"},
    "kdrl_advantage": {"knobs": NO_REWARD, "teacher": "self:ema"},
    "grpo": {"knobs": {**NO_REWARD, "kl_coef": 0.5}},
}


@pytest.mark.parametrize("settings", [{}, {"gradient_checkpointing": True}, {"dense_copy": False}])
@pytest.mark.parametrize("method", SIXTEEN)
def test_so_it_does_in_16_bit(tmp_path, monkeypatch, method, settings):
    """All of them run through the copy, or all through the policy."""
    if method == "gkd" and settings == {"dense_copy": False}:
        pytest.skip("its gradient is rounding; weights are compared between copies alone")
    monkeypatch.setattr(loading, "compute_dtype", lambda device: torch.bfloat16)
    row, moved = one_step(tmp_path, method, **settings, **SIXTEEN[method])
    assert (row["grad_norm"], moved) == (0.0, 0.0)


def test_a_teacher_with_the_same_adapter_pulls_at_nothing_either(tmp_path):
    one_step(tmp_path / "first", "grpo", checkpoint_every=1)
    adapter = str(next((tmp_path / "first" / "run" / "checkpoints").iterdir()))
    row, _ = one_step(
        tmp_path / "second", "kdrl", knobs=NO_REWARD, adapter=adapter, teacher_adapter=adapter
    )
    assert row["grad_norm"] == 0.0


def test_the_reward_is_heard_and_from_then_on_the_teacher_too(tmp_path):
    rows = [
        run(make_config(method, **{**FIELDS, "steps": 2}), tmp_path / method).rows()
        for method in ("kdrl", "grpo")
    ]
    assert rows[0][0]["grad_norm"] > 0.01
    assert rows[0][1]["loss/kd"] > 1e-8
    assert rows[0][1]["kl_teacher_k2"] > 1e-8


def test_a_teacher_of_other_weights_is_another(tmp_path):
    row, moved = one_step(tmp_path, "kdrl", knobs=NO_REWARD, teacher="teacher")
    assert row["grad_norm"] > 1e-3
    assert moved > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_means_every_weight(monkeypatch, dtype):
    from rlkd_lab.models import load_policy, load_teacher
    from rlkd_lab.models.dense_copy import DenseCopy
    from rlkd_lab.models.lora import Lora

    monkeypatch.setattr(loading, "compute_dtype", lambda device: dtype)
    policy = load_policy("student", "nf4", lora=Lora(2, 4))
    own, base = DenseCopy(policy), DenseCopy(load_teacher("student", "nf4", policy=policy))
    assert own.equals(base)
    assert own.equals(DenseCopy(load_teacher("student", "nf4")))  # loaded a second time
    assert not own.equals(DenseCopy(load_teacher("student", "none")))
    assert not own.equals(DenseCopy(load_teacher("teacher", "nf4")))
    with torch.no_grad():
        policy.trainable()[-1][0, 0] = 1e-3
    own.sync()
    assert not own.equals(base)
    assert not base.equals(own)
    assert own.equals(DenseCopy(policy))
