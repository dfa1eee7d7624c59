"""The facts of the methods that change what OPD's teacher says, in float64 to 1e-10."""

import math
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from toy import (
    SUM,
    VOCABULARY,
    close,
    gradient,
    logps_gradient,
    loss_and_gradients,
    on_policy,
    one_token_policy,
    random,
    rollout,
)

from rlkd_lab.objectives import TokenBatch, token_loss
from rlkd_lab.objectives.loss import advantage


def gap_of(batch):
    """The gap d, 0 in the padding."""
    return (batch.teacher_logps - batch.old_logps) * batch.mask


def expected_gradient(method, student, teacher, coefs=None, **given):
    """The expected gradient over all tokens of a one-token policy."""
    logps, theirs = student.log_softmax(-1), teacher.detach().log_softmax(-1)
    weights = logps.detach().exp()
    total = torch.zeros_like(student)
    for token in range(VOCABULARY):
        batch = TokenBatch(
            logps[token].reshape(1, 1),
            torch.ones(1, 1),
            teacher_logps=theirs[token].reshape(1, 1),
            advantages=torch.zeros(1, dtype=torch.float64),
            **given,
        )
        total += weights[token] * gradient(token_loss(method, batch, coefs, SUM)[0], student)
    return total


# --- how much the gap counts ----------------------------------------------------------------------


def test_iwopd_weighs_a_token_by_what_disagreement_is_still_to_come():
    batch = rollout()
    gap = gap_of(batch)
    found = advantage("iwopd", batch, {"kd_coef": 0.7, "early_weight": 0.5})
    for row, length in enumerate(batch.completion_mask.sum(1).tolist()):
        size = gap[row, :length].abs()
        for at in range(length):
            weight = 1 + 0.5 * size[at:].sum() / size.sum()
            close(found[row, at], 0.7 * weight * gap[row, at])
    close(advantage("iwopd", batch, {"early_weight": 0.0}), advantage("opd", batch))


def test_iwopd_is_trls():
    trainers = pytest.importorskip("trl.experimental.iw_opd.iw_opd_trainer")
    stub = SimpleNamespace(
        temperature=1.0,
        iw_opd_gamma=0.5,
        iw_opd_epsilon=1e-8,
        model=SimpleNamespace(training=True),
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    logits = random(3, 5, 6, seed=1).requires_grad_()
    tokens = torch.arange(15).reshape(3, 5) % 6
    mask = (torch.arange(5) < torch.tensor([5, 2, 4])[:, None]).long()
    logps = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    old, teacher = (logps.detach() + spread * random(3, 5, seed=9) for spread in (0.0, 0.8))
    theirs = trainers.IWOPDTrainer._compute_iw_opd_loss(
        stub, logits, tokens, tokens.masked_fill(mask == 0, -100), teacher, old
    )
    ours, _ = token_loss("iwopd", TokenBatch(logps, mask, old_logps=old, teacher_logps=teacher))
    close(gradient(ours, logits), gradient(theirs, logits))


@pytest.mark.parametrize("power", [0.3, 1.0, 5.0])
def test_poweropd_is_a_difference_of_powers_within_one(power):
    batch = rollout()
    found = advantage("poweropd", batch, {"kd_coef": 0.7, "gap_power": power})
    wanted = batch.teacher_logps.exp() ** power - batch.old_logps.exp() ** power
    close(found * batch.mask, 0.7 * wanted * batch.mask)
    assert (torch.sign(found) == torch.sign(gap_of(batch)))[batch.completion_mask == 1].all()
    far = replace(batch, teacher_logps=torch.full_like(batch.logps, -1e4))
    assert advantage("poweropd", far, {"gap_power": power}).abs().max() <= 1


def test_poweropd_descends_the_squared_distance_at_power_one_and_is_opd_at_none():
    student, teacher = one_token_policy(0), one_token_policy(1)
    squared = (student.softmax(-1) - teacher.detach().softmax(-1)).square().sum()
    close(expected_gradient("poweropd", student, teacher), gradient(squared, student) / 2)
    batch = rollout()
    small = advantage("poweropd", batch, {"gap_power": 0.01}) / 0.01
    torch.testing.assert_close(small, advantage("opd", batch), rtol=0.05, atol=0.05)


def test_reopold_bounds_the_gap_from_below_alone():
    batch = rollout()
    gap, floor = gap_of(batch), math.log(0.4 / 0.6)
    assert (gap < floor).any() and (gap > -floor).any()
    found = advantage("reopold", batch, {"kd_coef": 0.7, "mixture": 0.4})
    close(found * batch.mask, 0.7 * gap.clamp(min=floor))
    close(advantage("reopold", batch, {"mixture": 1e-4}), advantage("opd", batch))
    close(advantage("reopold", batch, {"mixture": 0.5}) * batch.mask, gap.clamp(min=0.0))


def test_safopd_adds_the_largest_gaps_pressed_within_a_bound():
    batch = rollout()
    gap, reward = gap_of(batch), advantage("grpo", batch)
    found = advantage("safopd", batch, {"kd_coef": 0.7, "gap_share": 0.4, "gap_scale": 0.3})
    for row, length in enumerate(batch.completion_mask.sum(1).tolist()):
        largest = gap[row, :length].abs().argsort(descending=True)[: math.ceil(0.4 * length)]
        wanted = torch.zeros_like(gap[row])
        wanted[largest] = 0.7 * 0.3 * gap[row, largest].tanh()
        close((found - reward)[row], wanted)
    for coefs in ({"gap_share": 0.0}, {"gap_scale": 0.0}, {"kd_coef": 0.0}):
        grpo = logps_gradient("grpo", batch, options={"aggregation": "token"})
        close(logps_gradient("safopd", batch, coefs), grpo)


# --- SDAR -----------------------------------------------------------------------------------------


def test_sdar_pushes_every_written_token_up_by_its_gate():
    batch = rollout()
    gap = (batch.teacher_logps - batch.logps).detach()
    gate = 1 / (1 + (-2.0 * gap).exp())
    added = logps_gradient("sdar", batch, {"kd_coef": 0.7, "gate_slope": 2.0}) - logps_gradient(
        "grpo", batch, options={"aggregation": "token"}
    )
    close(added, -0.7 * gate * batch.mask / batch.mask.sum())


@pytest.mark.parametrize("slope", [0.0, 1.0, 5.0])
def test_sdar_follows_half_the_tanh_of_the_gap_in_expectation_and_nothing_at_slope_zero(slope):
    student, teacher = one_token_policy(0), one_token_policy(1)
    found = expected_gradient("sdar", student, teacher, {"kd_coef": 0.7, "gate_slope": slope})
    logps = student.log_softmax(-1)
    gap = teacher.detach().log_softmax(-1) - logps.detach()
    credit = logps.detach().exp() * (slope * gap / 2).tanh() / 2
    close(found, gradient(-0.7 * (credit * logps).sum(), student))
    assert bool(found.norm() > 0.01) == (slope > 0)


# --- where the divergence acts --------------------------------------------------------------------


def test_rgopd_hears_the_teacher_where_it_judges_a_completion_as_the_reward_does():
    shift = torch.tensor([0.6, -0.6, 0.6, -0.6, 0.6, -0.6], dtype=torch.float64)[:, None]
    credit = torch.tensor([1.0, 1.0, -1.0, -1.0, 0.0, 0.0], dtype=torch.float64)
    batch = rollout(lengths=(2,) * 6, advantages=credit)
    batch = replace(batch, teacher_logps=batch.old_logps + shift)  # the sums are ±1.2
    _, moved, pulled = loss_and_gradients("rgopd", batch, {"kd_coef": 0.7})
    kept = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 1.0], dtype=torch.float64)[:, None]
    assert not moved.any()
    close(pulled, (0.7 * kept / 12).expand(6, 2))
    for margin, heard in ((1.1, True), (1.3, False)):
        found = loss_and_gradients("rgopd", batch, {"gate_margin": margin})[2]
        assert found.any() == heard
    unjudged = replace(batch, counted=torch.tensor([True, True, True, False, True, True]))
    assert not loss_and_gradients("rgopd", unjudged)[2][3].any()


def test_rgopd_with_a_gate_a_token_hears_what_grpd_hears():
    batch = rollout()
    pulled = loss_and_gradients("rgopd", batch, options={"level": "token"})[2] != 0
    credited = advantage("grpd", batch) * batch.mask != 0
    assert torch.equal(pulled, credited)
    assert 0 < pulled.sum() < batch.mask.sum()


def test_eopd_adds_the_forward_kl_where_the_teacher_is_unsure():
    batch = rollout()
    unsure = (batch.teacher_entropy > 0.8) & (batch.completion_mask == 1)
    assert 0 < unsure.sum() < batch.mask.sum()
    coefs = {"kd_coef": 0.7, "cover_coef": 0.5}
    _, moved, pulled = loss_and_gradients("eopd", batch, coefs)
    close(moved, logps_gradient("opd", batch, {"kd_coef": 0.7}))
    close(pulled, 0.35 * unsure.double() / batch.mask.sum())
    sure = loss_and_gradients("eopd", batch, {"unsure_above": 20.0})
    for mine, opds in zip(sure, loss_and_gradients("opd", batch), strict=True):
        close(mine, opds)


def test_aopd_rewards_where_the_gap_is_above_zero_and_imitates_elsewhere():
    batch = on_policy(rollout())
    gap = (batch.teacher_logps - batch.logps).detach()
    praised = (gap > 0) & (batch.completion_mask == 1)
    blamed = (gap <= 0) & (batch.completion_mask == 1)
    _, moved, pulled = loss_and_gradients("aopd", batch, {"kd_coef": 0.7, "cover_coef": 0.5})
    close(moved, logps_gradient("opd", batch, {"kd_coef": 0.7}) * praised)
    close(pulled, 0.35 * blamed.double() / batch.mask.sum())


def test_aopd_in_expectation_is_the_positive_gap_and_a_share_of_the_forward_kl():
    student, teacher = one_token_policy(0), one_token_policy(1)
    logps, theirs = student.log_softmax(-1), teacher.detach().log_softmax(-1)
    forward = (theirs.exp() * (theirs - logps)).sum()
    found = expected_gradient("aopd", student, teacher, divergence=forward.reshape(1, 1))
    chance, gap = logps.detach().exp(), theirs - logps.detach()
    wanted = -(chance * gap.clamp(min=0.0) * logps).sum() + chance[gap <= 0].sum() * forward
    close(found, gradient(wanted, student))
