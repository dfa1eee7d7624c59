"""Extreme but finite log-probabilities in float32: never a NaN, and an infinite loss only where
nothing bounds a number that float32 cannot hold.
"""

import itertools
from dataclasses import replace

import pytest
import torch
from toy import close, heard, loss_and_gradients, rollout

from rlkd_lab.objectives import METHODS, TokenBatch, prepare, token_loss
from rlkd_lab.objectives.estimators import k2, k3, weigh

VALUES = (0.0, -200.0, -1e4)
UNBOUNDED = {"trrd_gap_bound": None, "ratio_cap": None}
LOUD = {"kl_coef": 0.5, "kd_coef": 0.3, "importance_cap": 2.0}
WAYS = [
    ({}, {}),
    (UNBOUNDED, {}),
    (UNBOUNDED | LOUD, {"estimator": "k3"}),
    (LOUD, {"ref_estimator": "k3"}),
    ({"kd_coef": 0.0}, {"estimator": "k3"}),
]


def extremes():
    """Every combination of policy, old policy, teacher and reference, three times:

    A = 1, 0 and −1. A row is one token.
    """
    columns = torch.tensor(list(itertools.product(VALUES, repeat=4))).repeat(3, 1).T[..., None]
    logps, old, teacher, ref = (column.clone() for column in columns)
    rows, sampler = len(logps), ref.clone()
    return TokenBatch(
        logps.requires_grad_(),
        torch.ones(rows, 1),
        old_logps=old,
        teacher_logps=teacher,
        ref_logps=ref,
        sampler_logps=sampler,
        teacher_entropy=torch.arange(rows)[:, None] % 3 / 1.0,
        advantages=torch.tensor([1.0, 0.0, -1.0]).repeat_interleave(rows // 3),
        correct=torch.arange(rows) % 2,
        divergence=torch.rand(rows, 1) * 1e4,
        group_ids=torch.arange(rows) // 3,
    )


@pytest.mark.parametrize(("coefs", "options"), WAYS)
@pytest.mark.parametrize("method", sorted(METHODS))
def test_no_loss_and_no_gradient_is_ever_nan(method, coefs, options):
    batch = extremes()
    coefs = heard(method, **coefs)
    batch = prepare(method, batch, coefs, options)  # whole, as HDPO looks at groups
    loss, _ = token_loss(method, batch, coefs, options)
    (found,) = (
        torch.autograd.grad(loss, batch.logps, allow_unused=True) if loss.requires_grad else (None,)
    )
    assert loss > -torch.inf  # a NaN fails too
    for row in () if found is None else (~found.isfinite()).nonzero()[:, 0].tolist():
        assert token_loss(method, batch.select(slice(row, row + 1)), coefs, options)[0] == torch.inf


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_row_is_infinite_only_where_nothing_bounds_what_float32_cannot_hold(method):
    # on-policy, so that the teacher alone is extreme: it may be 1e4 nats off, and every method's
    # defaults bear it
    batch = extremes()
    batch = replace(batch, old_logps=None, sampler_logps=None)
    loss, _ = token_loss(method, batch)
    (found,) = (
        torch.autograd.grad(loss, batch.logps, allow_unused=True)
        if loss.requires_grad
        else (torch.zeros(1),)
    )
    assert loss.isfinite()
    assert found is None or found.isfinite().all()


@pytest.mark.parametrize("method", ["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rlsd", "trrd"])
def test_without_an_advantage_there_is_no_loss_and_no_gradient(method):
    batch = extremes()
    batch = batch.select(batch.advantages == 0)
    logps = batch.logps.detach().requires_grad_()
    loss, stats = token_loss(method, replace(batch, logps=logps), heard(method, **UNBOUNDED))
    (found,) = torch.autograd.grad(loss, logps)
    assert loss == 0
    assert not found.any()
    assert stats.get("trrd/bound_frac", 0) == 0


def test_the_case_of_the_issue_trrd_without_bounds_and_a_teacher_at_minus_200_nats():
    logps = torch.tensor([[-1.0]], requires_grad=True)
    batch = TokenBatch(
        logps, torch.ones(1, 1), teacher_logps=torch.tensor([[-200.0]]), advantages=torch.zeros(1)
    )
    loss, _ = token_loss("trrd", batch, UNBOUNDED)
    loss.backward()
    assert (loss.item(), logps.grad.item()) == (0, 0)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_clipped_tokens_have_no_gradient_however_far_they_are(advantage):
    # A > 0 is clipped, and A < 0 capped: both at a ratio that overflows
    logps = torch.tensor([[-1.0]], requires_grad=True)
    batch = TokenBatch(
        logps,
        torch.ones(1, 1),
        teacher_logps=torch.tensor([[-1e4]]),
        advantages=torch.tensor([advantage]),
    )
    loss, _ = token_loss("trrd", batch, {"trrd_gap_bound": None})
    loss.backward()
    assert loss.item() == pytest.approx(-1.2 if advantage > 0 else 3.0)
    assert logps.grad.item() == 0


def test_a_masked_or_silent_teacher_may_say_anything():
    for opinion in (-torch.inf, torch.nan, torch.inf):
        for method in sorted(name for name, method in METHODS.items() if "teacher" in method.needs):
            batch = rollout()
            silent = torch.zeros_like(batch.logps)
            silent[:, 1:] = 1
            teacher = batch.teacher_logps.clone()
            teacher[:, 0] = opinion
            found = loss_and_gradients(
                method, replace(batch, teacher_logps=teacher, kd_weight=silent)
            )
            assert all(part.isfinite().all() for part in found)
            if "kd_coef" in METHODS[method].coefs:
                everywhere = replace(
                    batch,
                    teacher_logps=torch.full_like(teacher, opinion),
                )
                assert all(
                    part.isfinite().all()
                    for part in loss_and_gradients(method, everywhere, {"kd_coef": 0.0})
                )


# --- TRRD where the teacher is silent -------------------------------------------------------------


@pytest.mark.parametrize("bounds", [{}, {"trrd_gap_bound": None}, {"trrd_gap_bound": 0.1}])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_trrd_where_the_teacher_is_silent_is_grpo_within_and_beyond_the_bound(bounds, level):
    batch = rollout()
    batch = replace(
        batch, old_logps=batch.logps.detach() + 5 * (batch.old_logps - batch.logps.detach())
    )  # ratios of e^±4
    silent = (torch.arange(batch.logps.shape[1]) % 2 == 0).double().expand_as(batch.logps)
    options = {"aggregation": "token", "level": level}
    wanted = loss_and_gradients("grpo", batch, {"ratio_cap": 3.0}, options)[1]
    found = loss_and_gradients("trrd", replace(batch, kd_weight=1 - silent), bounds, options)[1]
    whole = loss_and_gradients(
        "trrd", replace(batch, kd_weight=torch.zeros_like(silent)), bounds, options
    )[1]
    close(whole, wanted)
    if level == "token":  # at sequence level a token's gradient runs through the whole row
        close(found * silent, wanted * silent)
        assert (found - wanted).norm() > 0.01


def test_the_case_of_the_issue_a_silent_teacher_at_a_log_ratio_of_minus_one_and_a_half():
    logps = torch.tensor([[-2.5]], dtype=torch.float64, requires_grad=True)
    batch = TokenBatch(
        logps,
        torch.ones(1, 1),
        old_logps=torch.full((1, 1), -1.0).double(),
        teacher_logps=torch.zeros(1, 1).double(),
        kd_weight=torch.zeros(1),
        advantages=torch.ones(1),
    )
    loss, stats = token_loss("trrd", batch)
    loss.backward()
    assert logps.grad.item() == pytest.approx(-torch.tensor(-1.5).exp().item())
    assert stats["trrd/bound_frac"] == 0


def test_the_bound_is_not_counted_where_it_cannot_act():
    batch = rollout()
    assert token_loss("trrd", batch, {"trrd_gap_bound": 0.01})[1]["trrd/bound_frac"] > 0.5
    assert (
        token_loss("trrd", batch, {"trrd_gap_bound": 0.01, "trrd_alpha": 1.0})[1]["trrd/bound_frac"]
        == 0
    )
    assert (
        token_loss("trrd", replace(batch, kd_weight=torch.zeros(6)), {"trrd_gap_bound": 0.01})[1][
            "trrd/bound_frac"
        ]
        == 0
    )


def test_trrd_with_alpha_one_does_not_look_at_the_teacher():
    batch = rollout()
    wanted = loss_and_gradients("grpo", batch, {"ratio_cap": 3.0}, {"aggregation": "token"})[1]
    close(
        loss_and_gradients(
            "trrd",
            replace(batch, teacher_logps=torch.full_like(batch.logps, -torch.inf)),
            {"trrd_alpha": 1.0},
        )[1],
        wanted,
    )


# --- the weighted estimators ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["k2", "k3"])
@pytest.mark.parametrize(
    ("log_weight", "ratio"),
    [
        (0.0, 0.3),
        (-1.0, 2.0),
        (0.5, 39.9),
        (0.5, 40.1),
        (-200.0, 200.0),
        (-3.0, 60.0),
        (2.0, -30.0),
        (1.0, 0.0),
    ],
)
def test_a_weighted_estimate_is_the_product_where_float64_can_hold_it(kind, log_weight, ratio):
    logps = torch.tensor([-ratio], dtype=torch.float64, requires_grad=True)
    log_weights, zero = (
        torch.tensor([log_weight], dtype=torch.float64),
        torch.zeros(1, dtype=torch.float64),
    )
    product = log_weights.exp() * (k2 if kind == "k2" else k3)(logps, zero)
    weight, estimate = weigh(kind, logps, zero, log_weights)
    torch.testing.assert_close(weight * estimate, product, rtol=1e-12, atol=0)
    wanted = torch.autograd.grad(product.sum(), logps)
    torch.testing.assert_close(
        torch.autograd.grad((weight * estimate).sum(), logps), wanted, rtol=1e-12, atol=0
    )


def test_weighted_k3_is_one_where_weight_and_ratio_cancel_in_float32():
    logps = torch.tensor([-200.0], requires_grad=True)
    weight, estimate = weigh("k3", logps, torch.zeros(1), torch.tensor([-200.0]))
    (weight * estimate).sum().backward()
    assert ((weight * estimate).item(), logps.grad.item()) == (1.0, -1.0)


@pytest.mark.parametrize("kind", ["k2", "k3"])
def test_an_estimate_of_zero_stays_zero_under_a_weight_that_overflows(kind):
    weight, estimate = weigh(kind, torch.zeros(1), torch.zeros(1), torch.tensor([1e4]))
    assert (weight * estimate).item() == 0
