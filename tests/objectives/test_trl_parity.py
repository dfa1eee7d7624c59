"""Fact 10: value and gradient equal TRL's, whose loss is called unbound on a stub that has the
attributes it reads.
"""

from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from toy import close, gradient, heard, random, rollout

from rlkd_lab.objectives import group_advantages, token_loss
from rlkd_lab.objectives.estimators import jsd

trl = pytest.importorskip("trl")

LIMIT = 7  # TRL's max_completion_length, longer than the batch is wide
LOW, HIGH = 0.2, 0.28
CISPO_CAP = 1.3

# TRL's loss type -> our method, coefficients and options
OURS = {
    "grpo": ("grpo", {}, {}),
    "bnpo": ("grpo", {}, {"aggregation": "token"}),
    "dr_grpo": ("dr_grpo", {}, {"constant_length": LIMIT}),
    "dapo": ("dapo", {}, {}),
    "cispo": ("cispo", {"ratio_cap": CISPO_CAP}, {}),
}


def trl_loss(
    batch, loss_type, level="token", kl_coef=0.0, bias_correction=True, delta=None, importance=None
):
    stub = SimpleNamespace(
        args=SimpleNamespace(
            use_bias_correction_kl=bias_correction, delta=delta, steps_per_generation=1
        ),
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(
            num_processes=1, reduce=lambda value, reduction: value, gather=lambda value: value
        ),
        loss_type=loss_type,
        importance_sampling_level=level,
        beta=kl_coef,
        epsilon_low=LOW,
        epsilon_high=CISPO_CAP if loss_type == "cispo" else HIGH,
        max_completion_length=LIMIT,
        current_gradient_accumulation_steps=1,
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=importance is not None,
        vllm_importance_sampling_correction=True,
        _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _get_per_token_logps_and_entropies=lambda *_, **__: (
            batch.logps,
            torch.zeros_like(batch.logps),
            None,
        ),
    )
    ids = torch.zeros_like(batch.completion_mask)
    inputs = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": ids[:, :1],
        "completion_ids": ids,
        "completion_mask": batch.completion_mask,
        "advantages": batch.advantages,
        "ref_per_token_logps": batch.ref_logps,
        "num_items_in_batch": batch.completion_mask.sum(),
        "importance_sampling_ratio": importance,
    }
    if batch.old_logps is not None:
        inputs["old_per_token_logps"] = batch.old_logps
    return trl.GRPOTrainer._compute_loss(stub, None, inputs)


def our_loss(batch, loss_type, coefs=None, options=None):
    method, own_coefs, own_options = OURS[loss_type]
    return token_loss(
        method,
        batch,
        {**heard(method, clip_low=LOW, clip_high=HIGH), **own_coefs, **(coefs or {})},
        {**own_options, **(options or {})},
    )[0]


def scattered(seed=0):
    """A batch whose ratios reach far beyond both clips, with given advantages."""
    batch = rollout(seed)
    return replace(
        batch,
        advantages=random(6, seed=seed + 20),
        old_logps=batch.logps.detach() + random(6, 5, seed=seed + 21),
    )


def same(batch, mine, theirs):
    close(mine, theirs)
    close(gradient(mine, batch.logps), gradient(theirs, batch.logps))
    assert gradient(mine, batch.logps).norm() > 0.01


@pytest.mark.parametrize("kl", ["no KL", "k3·ρ", "k3"])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", OURS)
def test_fact_10_loss_and_gradient_equal_trl(loss_type, level, kl):
    kl_coef = 0.0 if kl == "no KL" else 0.4
    coefs, options = (
        {"kl_coef": kl_coef},
        {"level": level, "ref_estimator": "k3" if kl == "k3" else "k3_ratio"},
    )
    for batch in (scattered(0), scattered(1), replace(scattered(2), old_logps=None)):
        same(
            batch,
            our_loss(batch, loss_type, coefs, options),
            trl_loss(batch, loss_type, level, kl_coef, bias_correction=kl != "k3"),
        )


def test_fact_10_per_token_advantages_equal_trl():
    batch = replace(scattered(), advantages=random(6, 5, seed=30))
    same(batch, our_loss(batch, "dapo"), trl_loss(batch, "dapo"))


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
def test_fact_10_ratio_cap_is_the_delta_of_trl(loss_type, level):
    delta = 1.5
    batch = scattered()
    capped = our_loss(batch, loss_type, {"ratio_cap": delta}, {"level": level})
    same(batch, capped, trl_loss(batch, loss_type, level, delta=delta))
    # the cap acts on this batch, or the test would show nothing
    assert level == "sequence" or abs(capped - our_loss(batch, loss_type)) > 1e-3


@pytest.mark.parametrize("loss_type", OURS)
def test_fact_10_importance_cap_is_the_truncated_correction_of_trl(loss_type):
    batch, cap = scattered(), 1.2
    importance = (batch.old_logps - batch.sampler_logps).exp().clamp(max=cap)
    same(
        batch,
        our_loss(batch, loss_type, {"importance_cap": cap}),
        trl_loss(batch, loss_type, importance=importance),
    )


@pytest.mark.parametrize("scale", [True, False])
def test_fact_10_group_advantages_equal_trl(scale):
    from trl.trainer.utils import nanstd

    # the lines of TRL's _generate_and_score_completions, for rewards in rows of one prompt
    size = 4
    rewards = torch.cat(
        [
            random(8, seed=1),
            torch.ones(4, dtype=torch.float64),
            torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64),
        ]
    )
    mean = torch.nanmean(rewards.view(-1, size), dim=1).repeat_interleave(size, dim=0)
    std = nanstd(rewards.view(-1, size), dim=1).repeat_interleave(size, dim=0)
    theirs = (rewards - mean) / (std + 1e-4) if scale else rewards - mean
    groups = torch.arange(4).repeat_interleave(size)
    mine = group_advantages(rewards, groups, scale)
    # TRL's nanstd divides two integers, so its unbiased correction has only the digits of a float32
    torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=0.0)
    # ours needs no order: ids may be any integers, and a group's rows may be scattered
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    close(group_advantages(rewards[order], 7 * groups[order] - 3, scale), mine[order])


@pytest.mark.parametrize("weight", [0.0, 0.1, 0.5, 1.0])
def test_fact_10_jsd_equals_gkd_of_trl(weight):
    from trl.experimental.gkd import GKDTrainer

    student, teacher = random(2, 3, 5, seed=1).requires_grad_(), random(2, 3, 5, seed=2)
    theirs = GKDTrainer.generalized_jsd_loss(student, teacher, beta=weight, reduction="sum")
    mine = jsd(student.log_softmax(-1), teacher.log_softmax(-1), weight).sum()
    close(mine, theirs)
    close(gradient(mine, student), gradient(theirs, student))
