"""The facts of the methods, each by exact enumeration or sample by sample, in float64 to 1e-10.

Fact 10 (TRL) stands in test_trl_parity.py.
"""

import math
from dataclasses import replace

import pytest
import torch
from toy import (
    NO_CLIP,
    VOCABULARY,
    close,
    expectation,
    expected_loss,
    gradient,
    heard,
    logps_gradient,
    loss_and_gradients,
    next_token_kls,
    on_policy,
    one_token_policy,
    random,
    rollout,
    sequence_kl,
    sequence_logps,
    two_token_policy,
)

from rlkd_lab.objectives import METHODS, TokenBatch, k1, k2, k3, prepare, token_loss
from rlkd_lab.objectives.loss import advantage, idle_rows
from rlkd_lab.objectives.surrogates import trrd_log_ratio

UNBOUNDED = {"trrd_gap_bound": None, "ratio_cap": None}
POLICIES = pytest.mark.parametrize("policy", [one_token_policy, two_token_policy])


# --- 1: what the estimators estimate, and where their gradients point -----------------------------


def sampled(estimator, student, teacher):
    """Σ_t k_t of every sequence."""
    return estimator(sequence_logps(student), sequence_logps(teacher).detach()).sum(-1)


@POLICIES
def test_fact_01_k1_and_k3_are_unbiased_in_value(policy):
    student, teacher = policy(0), policy(1)
    close(expectation(sampled(k1, student, teacher), student), sequence_kl(student, teacher))
    close(expectation(sampled(k3, student, teacher), student), sequence_kl(student, teacher))


def test_fact_01_k2_is_biased_in_value():
    student, teacher = one_token_policy(0), one_token_policy(1)
    assert (
        abs(expectation(sampled(k2, student, teacher), student) - sequence_kl(student, teacher))
        > 0.05
    )


@POLICIES
def test_fact_01_gradient_of_k1_is_zero_with_either_sign(policy):
    # so a "KDRL" that differentiates k1, as two public ones do, never hears its teacher
    student, teacher = policy(0), policy(1)
    loss = expectation(sampled(k1, student, teacher), student)
    close(gradient(loss, student), torch.zeros_like(student))
    close(gradient(-loss, student), torch.zeros_like(student))
    assert gradient(sequence_kl(student, teacher), student).norm() > 0.1


def test_fact_01_one_token_gradient_of_k2_is_that_of_the_reverse_kl():
    student, teacher = one_token_policy(0), one_token_policy(1)
    close(
        gradient(expectation(sampled(k2, student, teacher), student), student),
        gradient(sequence_kl(student, teacher), student),
    )


def test_fact_01_one_token_gradient_of_k3_is_that_of_the_forward_kl():
    student, teacher = one_token_policy(0), one_token_policy(1)
    close(
        gradient(expectation(sampled(k3, student, teacher), student), student),
        gradient(sequence_kl(teacher, student), student),
    )


def test_fact_01_one_token_k3_times_ratio_and_detached_k1_give_the_reverse_kl():
    student, teacher = one_token_policy(0), one_token_policy(1)
    logps, other = sequence_logps(student), sequence_logps(teacher).detach()
    ratio = (logps - logps.detach()).exp()
    reverse = gradient(sequence_kl(student, teacher), student)
    close(gradient(expectation((ratio * k3(logps, other)).sum(-1), student), student), reverse)
    close(
        gradient(expectation((k1(logps, other).detach() * logps).sum(-1), student), student),
        reverse,
    )


def test_fact_01_two_tokens_per_token_k2_is_the_next_token_kl_and_not_the_sequence_kl():
    student, teacher = two_token_policy(0), two_token_policy(50)
    per_token = gradient(expectation(sampled(k2, student, teacher), student), student)
    close(per_token, gradient(next_token_kls(student, teacher), student))
    of_sequence = gradient(sequence_kl(student, teacher), student)
    # some 10 % off here; how much depends on the two policies
    assert 0.05 < (per_token - of_sequence).norm() / of_sequence.norm() < 0.2
    # the dropped term runs through the first token alone: it decides the prefix of the second
    close(per_token[1:], of_sequence[1:])


def test_fact_01_two_tokens_sequence_level_k2_is_the_sequence_kl():
    student, teacher = two_token_policy(0), two_token_policy(1)
    of_sequence = k2(sequence_logps(student).sum(-1), sequence_logps(teacher).sum(-1).detach())
    close(
        gradient(expectation(of_sequence, student), student),
        gradient(sequence_kl(student, teacher), student),
    )


def test_fact_01_two_tokens_reward_to_go_is_the_sequence_kl():
    student, teacher = two_token_policy(0), two_token_policy(1)
    gap = (sequence_logps(teacher) - sequence_logps(student)).detach()
    to_go = gap.flip(-1).cumsum(-1).flip(-1)
    close(
        gradient(expected_loss("grpo", student, teacher, to_go), student),
        gradient(sequence_kl(student, teacher), student),
    )


@POLICIES
@pytest.mark.parametrize(
    ("method", "kd_coef"), [("opd", 1.0), ("kdrl", 0.3), ("kdrl_advantage", 0.3)]
)
def test_fact_01_the_teacher_term_of_a_method_is_the_next_token_reverse_kl(policy, method, kd_coef):
    student, teacher = policy(0), policy(1)
    nothing = torch.zeros(len(sequence_logps(student)), dtype=torch.float64)
    loss = expected_loss(method, student, teacher, nothing, {"kd_coef": kd_coef})
    close(gradient(loss, student), kd_coef * gradient(next_token_kls(student, teacher), student))


def test_fact_01_kdrl_with_k3_follows_the_forward_kl_instead():
    student, teacher = one_token_policy(0), one_token_policy(1)
    nothing = torch.zeros(VOCABULARY, dtype=torch.float64)
    loss = expected_loss("kdrl", student, teacher, nothing, {"kd_coef": 0.3}, {"estimator": "k3"})
    close(gradient(loss, student), 0.3 * gradient(sequence_kl(teacher, student), student))


@pytest.mark.parametrize(
    ("estimator", "exact"), [("k3_ratio", "reverse"), ("k2", "reverse"), ("k3", "forward")]
)
def test_fact_01_the_reference_penalty_follows_the_kl_that_its_estimator_promises(estimator, exact):
    student, reference = one_token_policy(0), one_token_policy(1)
    logps = sequence_logps(student)
    losses = []
    for row in range(VOCABULARY):
        one = logps[row : row + 1]
        batch = TokenBatch(
            one,
            torch.ones_like(one),
            ref_logps=sequence_logps(reference).detach()[row : row + 1],
            advantages=torch.zeros(1),
        )
        losses.append(token_loss("grpo", batch, {"kl_coef": 0.7}, {"ref_estimator": estimator})[0])
    wanted = (
        sequence_kl(student, reference) if exact == "reverse" else sequence_kl(reference, student)
    )
    close(
        gradient(expectation(torch.stack(losses), student), student),
        0.7 * gradient(wanted, student),
    )


@pytest.mark.parametrize("method", ["kdrl", "kdrl_masked", "kdrl_annealed", "kdrl_advantage"])
def test_fact_01_k1_as_a_loss_is_refused_with_the_reason(method):
    with pytest.raises(
        ValueError, match="expected gradient is 0, so the teacher would have no influence"
    ):
        token_loss(method, rollout(), options={"estimator": "k1"})


# --- 2: TRRD's limits -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_fact_02_trrd_with_alpha_one_is_grpo(seed):
    batch, options = rollout(seed), {"aggregation": "token"}
    wanted = loss_and_gradients("grpo", batch, options=options)
    for mine, theirs in zip(
        loss_and_gradients("trrd", batch, {"trrd_alpha": 1.0, **UNBOUNDED}, options),
        wanted,
        strict=True,
    ):
        close(mine, theirs)
    assert wanted[1].norm() > 0.01


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_fact_02_trrd_with_the_old_policy_as_teacher_is_grpo(alpha):
    batch = rollout()
    batch = replace(batch, teacher_logps=batch.old_logps)
    wanted = loss_and_gradients("grpo", batch, options={"aggregation": "token"})
    for mine, theirs in zip(
        loss_and_gradients("trrd", batch, {"trrd_alpha": alpha, **UNBOUNDED}), wanted, strict=True
    ):
        close(mine, theirs)


def test_fact_02_trrd_between_the_limits_is_not_grpo():
    assert (
        logps_gradient("trrd", rollout(), UNBOUNDED)
        - logps_gradient("grpo", rollout(), options={"aggregation": "token"})
    ).norm() > 0.01


# --- 3: KDRL's limits -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["kdrl", "kdrl_advantage"])
def test_fact_03_kdrl_without_teacher_term_is_grpo(method):
    for batch in (rollout(), on_policy(rollout())):
        close(
            logps_gradient(method, batch, {"kd_coef": 0.0}),
            logps_gradient("grpo", batch, options={"aggregation": "token"}),
        )


@pytest.mark.parametrize("method", ["kdrl", "kdrl_advantage"])
def test_fact_03_kdrl_with_itself_as_teacher_is_grpo_on_policy(method):
    batch = on_policy(rollout())
    batch = replace(batch, teacher_logps=batch.logps.detach())
    close(
        logps_gradient(method, batch, {"kd_coef": 5.0}),
        logps_gradient("grpo", batch, options={"aggregation": "token"}),
    )


@POLICIES
@pytest.mark.parametrize("method", ["kdrl", "kdrl_advantage"])
def test_fact_03_kdrl_differs_from_grpo_by_exactly_the_gradient_of_the_kl(policy, method):
    # the complement, which catches a k1 in place of k2: there the difference would be 0, or have
    # the other sign
    student, teacher = policy(0), policy(1)
    advantages = random(len(sequence_logps(student)), seed=2)
    with_teacher = gradient(
        expected_loss(method, student, teacher, advantages, {"kd_coef": 0.3}), student
    )
    without = gradient(expected_loss("grpo", student, teacher, advantages), student)
    wanted = 0.3 * gradient(next_token_kls(student, teacher), student)
    close(with_teacher - without, wanted)
    assert wanted.norm() > 0.03
    assert without.norm() > 0.03


# --- 4: loss form and advantage form --------------------------------------------------------------


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
@pytest.mark.parametrize("kd_mask", ["none", "wrong", "group_wrong"])
def test_fact_04_both_forms_agree_sample_by_sample_on_policy(aggregation, kd_mask):
    batch, options = on_policy(rollout()), {"aggregation": aggregation, "kd_mask": kd_mask}
    as_loss, as_advantage = (
        logps_gradient(method, batch, {"kd_coef": 0.7}, options)
        for method in ("kdrl", "kdrl_advantage")
    )
    close(as_loss, as_advantage)
    assert as_loss.norm() > 0.01


def test_fact_04_they_differ_off_policy_under_clipping():
    # A > 0 and ρ = 2: the clip silences a teacher that sits in the advantage, and not one that sits
    # beside it
    logps = torch.tensor([[-1.0]], dtype=torch.float64, requires_grad=True)
    batch = TokenBatch(
        logps,
        torch.ones(1, 1),
        old_logps=logps.detach() - math.log(2),
        teacher_logps=logps.detach() - 0.5,
        advantages=torch.ones(1, dtype=torch.float64),
    )
    close(
        logps_gradient("kdrl_advantage", batch, {"kd_coef": 0.4}),
        torch.zeros(1, 1, dtype=torch.float64),
    )
    # kd_coef·ρ·(log π_θ − log π_T)
    close(
        logps_gradient("kdrl", batch, {"kd_coef": 0.4}),
        torch.full((1, 1), 0.4 * 2 * 0.5, dtype=torch.float64),
    )
    assert (
        logps_gradient("kdrl", rollout(), {"kd_coef": 0.7})
        - logps_gradient("kdrl_advantage", rollout(), {"kd_coef": 0.7})
    ).norm() > 0.01


# --- 5: where TRRD is dead from the first step ----------------------------------------------------


@pytest.mark.parametrize(
    ("sign", "log_threshold"),
    [
        pytest.param(1.0, math.log(1.44), id="positive: π_old/π_T > 1.44"),
        pytest.param(-1.0, math.log(1.5625), id="negative: π_T/π_old > 1.5625"),
    ],
)
@pytest.mark.parametrize("beyond", [False, True])
def test_fact_05_dead_zone_of_trrd_at_step_zero(sign, log_threshold, beyond):
    distance = log_threshold + (1e-6 if beyond else -1e-6)
    logps = torch.tensor([[-1.0]], dtype=torch.float64, requires_grad=True)
    batch = TokenBatch(
        logps,
        torch.ones(1, 1),
        teacher_logps=logps.detach() - sign * distance,
        advantages=torch.tensor([sign]),
    )
    loss, stats = token_loss(
        "trrd", batch, {"trrd_alpha": 0.5, "clip_low": 0.2, "clip_high": 0.2, **UNBOUNDED}
    )
    ratio = math.exp(sign * distance / 2)
    close(
        gradient(loss, logps),
        torch.tensor([[0.0 if beyond else -sign * ratio]], dtype=torch.float64),
    )
    assert stats["trrd/dead_frac"] == float(beyond)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_fact_05_the_teacher_on_the_side_of_the_reward_is_never_dead(sign):
    logps = torch.tensor([[-1.0]], dtype=torch.float64, requires_grad=True)
    batch = TokenBatch(
        logps,
        torch.ones(1, 1),
        teacher_logps=logps.detach() + sign * 3.0,
        advantages=torch.tensor([sign]),
    )
    assert logps_gradient("trrd", batch, UNBOUNDED).abs() > 0.1


# --- 6: who may go against the reward -------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bounds", [{}, UNBOUNDED])
def test_fact_06_trrd_never_goes_against_the_reward(seed, bounds):
    batch = replace(rollout(seed), teacher_logps=4 * random(6, 5, seed=seed + 9))
    loss, stats = token_loss("trrd", batch, bounds)
    update = -gradient(loss, batch.logps) * advantage("trrd", batch)
    assert (update >= 0).all()
    alive = update[batch.completion_mask == 1] > 0
    close(1 - alive.double().mean(), torch.tensor(stats["trrd/dead_frac"], dtype=torch.float64))
    assert 0 < stats["trrd/dead_frac"] < 1


def test_fact_06_the_advantage_form_goes_against_it_exactly_where_the_teacher_outweighs_it():
    batch, kd_coef = on_policy(rollout()), 1.5
    reward = advantage("grpo", batch)
    gap = (batch.teacher_logps - batch.logps).detach()
    here = batch.completion_mask == 1
    against = -logps_gradient("kdrl_advantage", batch, {"kd_coef": kd_coef}) * reward < 0
    predicted = (gap * reward < 0) & (kd_coef * gap.abs() > reward.abs())
    assert torch.equal(against[here], predicted[here])
    assert 0 < int(predicted[here].sum()) < int(here.sum())
    # opposition alone is not enough
    assert ((gap * reward < 0) & ~predicted)[here].any()


# --- 7: groups that teach nothing -----------------------------------------------------------------


@pytest.mark.parametrize("make", [rollout, lambda: on_policy(rollout())])
def test_fact_07_equal_rewards_leave_kdrl_its_teacher_and_grpo_and_trrd_nothing(make):
    batch = replace(make(), rewards=torch.full((6,), 0.1, dtype=torch.float64))
    nothing = torch.zeros_like(batch.logps)
    assert torch.equal(logps_gradient("grpo", batch), nothing)
    assert torch.equal(logps_gradient("trrd", batch), nothing)
    ratio = (batch.logps - batch.old).detach().exp()
    disagreement = (batch.logps - batch.teacher_logps).detach()
    wanted = 0.3 * ratio * disagreement * batch.mask / batch.mask.sum()
    close(logps_gradient("kdrl", batch, {"kd_coef": 0.3}), wanted)
    assert logps_gradient("kdrl_advantage", batch, {"kd_coef": 0.3}).norm() > 0.01


# --- 8: TRRD's ratio is a mixture of two KLs ------------------------------------------------------


@POLICIES
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_fact_08_expected_log_ratio_of_trrd(policy, alpha):
    student, old, teacher = policy(0), policy(1), policy(2)
    logps = sequence_logps(student)
    batch = TokenBatch(logps, torch.ones_like(logps), teacher_logps=sequence_logps(teacher))
    log_ratio, bound = trrd_log_ratio(batch, logps - sequence_logps(old), alpha, None)
    wanted = alpha * sequence_kl(student, old) + (1 - alpha) * sequence_kl(student, teacher)
    close(expectation(log_ratio.sum(-1), student), wanted)
    assert not bound.any()


# --- 9: a loss of zero is no sign of nothing to learn ---------------------------------------------


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_fact_09_on_policy_grpo_has_value_zero_and_a_gradient(aggregation):
    batch = on_policy(rollout(lengths=(5,) * 6))
    loss, logps_grad, _ = loss_and_gradients("grpo", batch, options={"aggregation": aggregation})
    close(loss, torch.zeros((), dtype=torch.float64))
    assert logps_grad.norm() > 0.01


# --- 11: micro-batches ----------------------------------------------------------------------------

LOUD = {
    "kd_coef": 0.4,
    "kl_coef": 0.3,
    "importance_cap": 1.5,
}  # every term of the loss, where a method listens to it
SPLITS = (1, 2, 3, 6)


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
@pytest.mark.parametrize("method", METHODS)
def test_fact_11_micro_batches_change_neither_loss_nor_gradient(method, aggregation):
    check_splits(method, {"aggregation": aggregation})


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
@pytest.mark.parametrize(
    "options",
    [
        {"kd_mask": "wrong", "kd_normalizer": "kept"},
        {"kd_mask": "group_wrong", "kd_normalizer": "kept"},
        {"level": "sequence"},
        {"estimator": "exact"},
    ],
)
def test_fact_11_holds_with_masks_kept_normaliser_sequence_level_and_exact_divergence(
    options, aggregation
):
    check_splits("kdrl", {"aggregation": aggregation, **options})


def check_splits(method, options):
    batch, coefs = rollout(), heard(method, **LOUD)
    whole = loss_and_gradients(method, batch, coefs, options)
    assert whole[0] != 0
    assert any(grad.norm() > 0.01 for grad in whole[1:])
    for parts in SPLITS:
        losses = [
            token_loss(method, part, coefs, options)[0]
            for part in prepare(method, batch, coefs, options).split(parts)
        ]
        assert len(losses) == parts
        total = sum(losses)
        for mine, theirs in zip(
            (total.detach(), gradient(total, batch.logps), gradient(total, batch.divergence)),
            whole,
            strict=True,
        ):
            close(mine, theirs)


def test_fact_11_needs_the_whole_rollout_prepared_first():
    # what goes wrong otherwise: each part would divide by its own tokens, and groups would be cut
    batch = replace(rollout(), advantages=random(6, seed=8))
    whole = token_loss("dapo", batch, NO_CLIP)[0]
    assert abs(sum(token_loss("dapo", part, NO_CLIP)[0] for part in batch.split(2)) - whole) > 0.01


# --- the other rows -------------------------------------------------------------------------------


def wide(seed=0):
    """An off-policy batch whose ratios reach beyond GSPO's narrow clips too."""
    return replace(rollout(seed), advantages=random(6, seed=seed + 20))


def test_with_one_update_gspo_and_cispo_are_grpo():
    batch = on_policy(rollout())
    for aggregation in ("sequence", "token"):
        grpo = logps_gradient("grpo", batch, options={"aggregation": aggregation})
        close(logps_gradient("cispo", batch, options={"aggregation": aggregation}), grpo)
        assert grpo.norm() > 0.01
    # the mean over a completion's tokens is what the sequence ratio differentiates to
    close(
        logps_gradient("gspo", batch),
        logps_gradient("grpo", batch, options={"aggregation": "sequence"}),
    )


def test_gspo_is_the_clipped_surrogate_of_whole_sequences_written_out():
    batch, low, high = wide(), 0.1, 0.15
    mask = batch.mask
    ratio = (((batch.logps - batch.old_logps) * mask).sum(1) / mask.sum(1).clamp(min=1)).exp()
    expected = -torch.minimum(
        ratio * batch.advantages, ratio.clamp(1 - low, 1 + high) * batch.advantages
    )
    expected = (expected * (mask.sum(1) > 0)).sum() / 6
    loss, stats = token_loss("gspo", batch, {"clip_low": low, "clip_high": high})
    close(loss, expected)
    close(gradient(loss, batch.logps), gradient(expected, batch.logps))
    assert stats["clip_ratio/low"] + stats["clip_ratio/high"] > 0
    # its own clips are narrow: at the paper's 3e-4 and 4e-4 every completion that moved at all is
    # outside
    assert sum(token_loss("gspo", batch)[1][f"clip_ratio/{side}"] for side in ("low", "high")) > 0.3


def test_cispo_leaves_no_token_without_gradient():
    batch = wide()
    here = batch.completion_mask == 1
    assert (logps_gradient("cispo", batch, {"ratio_cap": 1.0})[here] != 0).all()
    assert (logps_gradient("grpo", batch, {"clip_low": 0.01, "clip_high": 0.01})[here] == 0).any()
    # off-policy it is the policy gradient weighted by the capped ratio
    weight = (batch.logps - batch.old_logps).detach().exp().clamp(max=1.1)
    close(
        logps_gradient("cispo", batch, {"ratio_cap": 1.1}),
        -weight * batch.advantages[:, None] * batch.mask / 15,
    )


def test_srpo_sends_right_completions_to_the_reward_and_wrong_ones_to_the_teacher():
    batch = rollout()
    right = batch.correct.bool()
    mine = logps_gradient("srpo", batch, {"kd_coef": 0.7})
    close(mine[right], logps_gradient("grpo", batch, options={"aggregation": "token"})[right])
    close(mine[~right], logps_gradient("opd", batch, {"kd_coef": 0.7})[~right])
    for everybody, method, coefs in [(1, "grpo", {}), (0, "opd", {"kd_coef": 0.7})]:
        one_sided = replace(batch, correct=torch.full((6,), everybody))
        expected = logps_gradient(method, batch, coefs, {"aggregation": "token"})
        close(logps_gradient("srpo", one_sided, {"kd_coef": 0.7}), expected)
        assert expected.norm() > 0.01


def test_hdpo_adds_the_teacher_only_where_nobody_is_right():
    batch = rollout()  # groups 0 and 1 have somebody who is right, group 2 nobody
    alone = batch.group_ids == 2
    mine = logps_gradient("hdpo", batch, {"kd_coef": 0.4})
    close(mine[~alone], logps_gradient("grpo", batch, options={"aggregation": "token"})[~alone])
    close(mine[alone], logps_gradient("kdrl_advantage", batch, {"kd_coef": 0.4})[alone])
    assert (mine - logps_gradient("grpo", batch, options={"aggregation": "token"}))[
        alone
    ].norm() > 0.01
    # on a group of failures, all of one reward, GRPO is silent and HDPO is the teacher alone
    failed = replace(batch, rewards=torch.zeros(6, dtype=torch.float64), correct=torch.zeros(6))
    close(
        logps_gradient("hdpo", failed, {"kd_coef": 0.4}),
        logps_gradient("opd", failed, {"kd_coef": 0.4}),
    )


def test_rlsd_is_grpo_without_weight_without_room_and_without_a_gap():
    batch = rollout()
    grpo = logps_gradient("grpo", batch, options={"aggregation": "token"})
    close(logps_gradient("rlsd", batch, {"gap_weight": 0.0}), grpo)
    close(logps_gradient("rlsd", batch, {"gap_clip": 0.0}), grpo)
    close(logps_gradient("rlsd", replace(batch, teacher_logps=batch.old_logps)), grpo)
    assert (logps_gradient("rlsd", batch) - grpo).norm() > 0.001


@pytest.mark.parametrize("seed", range(3))
def test_rlsd_sets_the_size_and_never_the_direction(seed):
    batch = replace(rollout(seed), teacher_logps=8 * random(6, 5, seed=seed + 9))
    reward, weight, width = advantage("grpo", batch), 0.6, 0.3
    mine = advantage("rlsd", batch, {"gap_weight": weight, "gap_clip": width})
    assert (mine.sign() == reward.sign()).all()
    here = (reward != 0) & (batch.completion_mask == 1)
    scale = (mine / reward)[here]
    assert scale.min() >= 1 - weight * width - 1e-12
    assert scale.max() <= 1 + weight * width + 1e-12
    # what the teacher likes better counts more where the reward praises, and less where it blames
    gap = (batch.teacher_logps - batch.old_logps) * reward.sign()
    assert ((mine.abs() >= reward.abs()) == (gap >= 0))[here].all()
    close(
        mine[here], ((1 - weight + weight * gap.exp().clamp(1 - width, 1 + width)) * reward)[here]
    )


# --- teachers gated by the verifier, extrapolated, centred; a placebo -----------------------------


def test_opdvr_keeps_the_gap_where_its_sign_is_the_verdict_and_nothing_else():
    batch = rollout()
    gap = batch.teacher_logps - batch.old_logps
    sign = 2.0 * batch.correct[:, None] - 1.0
    kept = (gap * sign > 0) & (batch.completion_mask == 1)
    assert 0 < kept.sum() < batch.completion_mask.sum()
    tokens = batch.completion_mask.sum()
    expected = torch.where(kept, -0.7 * gap / tokens, 0.0)  # no ratio: the gradient of −A·log π
    close(logps_gradient("opdvr", batch, {"kd_coef": 0.7}), expected)
    unjudged = replace(batch, counted=torch.tensor([True, False, True, True, True, True]))
    assert not logps_gradient("opdvr", unjudged)[1].any()
    close(logps_gradient("opdvr", unjudged)[0], logps_gradient("opdvr", batch)[0])


def test_grpd_keeps_the_gap_where_its_sign_is_that_of_the_group_s_advantage():
    batch = rollout()
    gap, sign = batch.teacher_logps - batch.old_logps, advantage("grpo", batch).sign()
    kept = (gap * sign > 0) & (batch.completion_mask == 1)
    close(advantage("grpd", batch, {"kd_coef": 0.7}), torch.where(kept, 0.7 * gap, 0.0))
    obedient = replace(batch, teacher_logps=batch.old_logps + sign * gap.abs())
    here = sign != 0
    close(logps_gradient("grpd", obedient)[here], logps_gradient("opd", obedient)[here])
    flat = replace(batch, rewards=torch.zeros(6, dtype=torch.float64))
    assert not logps_gradient("grpd", flat).any()


@pytest.mark.parametrize("factor", [0.0, 1.0, 1.25, 2.0])
def test_exopd_follows_the_kl_to_the_extrapolated_teacher(factor):
    student, teacher, reference = (one_token_policy(seed) for seed in range(3))
    logps, options = student.log_softmax(-1), {"aggregation": "constant", "constant_length": 1}
    theirs, base = (each.detach().log_softmax(-1) for each in (teacher, reference))
    losses = []
    for token in range(VOCABULARY):
        batch = TokenBatch(
            logps[token].reshape(1, 1),
            torch.ones(1, 1),
            teacher_logps=theirs[token].reshape(1, 1),
            ref_logps=base[token].reshape(1, 1),
        )
        losses.append(token_loss("exopd", batch, {"extrapolation": factor}, options)[0])
    expected = (logps.exp().detach() * torch.stack(losses)).sum()
    # q ∝ π_T^λ · π_ref^(1−λ): the teacher at λ = 1, the reference at λ = 0
    goal = (factor * theirs + (1 - factor) * base).log_softmax(-1)
    exact = (logps.exp() * (logps - goal)).sum()
    close(gradient(expected, student), gradient(exact, student))


@pytest.mark.parametrize("seed", range(4))
def test_vopd_has_mean_zero_and_opds_expected_gradient(seed):
    student, teacher = one_token_policy(seed), one_token_policy(seed + 50)
    logps, theirs = student.log_softmax(-1), teacher.detach().log_softmax(-1)
    weights = logps.exp().detach()
    exact = (logps.exp() * (logps - theirs)).sum().detach().reshape(1, 1)
    options = {"aggregation": "constant", "constant_length": 1}
    batches = [
        TokenBatch(
            logps[token].reshape(1, 1),
            torch.ones(1, 1),
            teacher_logps=theirs[token].reshape(1, 1),
            divergence=exact,
        )
        for token in range(VOCABULARY)
    ]
    mean = sum(
        weight * advantage("vopd", batch).sum()
        for weight, batch in zip(weights, batches, strict=True)
    )
    close(mean, torch.zeros((), dtype=torch.float64))

    def gradients(method):
        losses = [token_loss(method, batch, None, options)[0] for batch in batches]
        return torch.stack([gradient(loss, student) for loss in losses])

    ours, opds = gradients("vopd"), gradients("opd")
    expected = (weights[:, None] * opds).sum(0)
    close((weights[:, None] * ours).sum(0), expected)


def test_opsa_pushes_the_least_likely_fifth_of_each_completion_and_reads_no_teacher():
    batch = rollout()
    pushed = advantage("opsa", batch, {"push": 0.3, "push_share": 0.4})
    for row, length in enumerate(batch.completion_mask.sum(1).tolist()):
        lowest = batch.old_logps[row, :length].argsort()[: math.ceil(0.4 * length)]
        expected = torch.zeros(batch.logps.shape[1], dtype=torch.float64)
        expected[lowest] = -0.3
        close(pushed[row], expected)
    alone = replace(batch, teacher_logps=None, rewards=None, group_ids=None, correct=None)
    close(logps_gradient("opsa", alone), logps_gradient("opsa", batch))
    assert not advantage("opsa", batch, {"push_share": 0.0}).any()


@pytest.mark.parametrize(
    ("share", "length", "count"),
    [(0.15, 100, 15), (0.6, 25, 15), (0.07, 100, 7), (0.3, 50, 15), (0.2, 6, 2), (0.01, 3, 1)],
)
def test_opsa_rounds_the_share_up_and_not_the_rounding_error(share, length, count):
    batch = TokenBatch(random(1, length), torch.ones(1, length))
    assert (advantage("opsa", batch, {"push_share": share}) != 0).sum() == count


def test_vopd_refuses_another_divergence_as_its_baseline():
    with pytest.raises(ValueError, match="leave divergence=reverse"):
        token_loss("vopd", rollout(), None, {"divergence": "forward"})


@pytest.mark.parametrize(
    "method", [name for name, rules in METHODS.items() if rules.ratio is not None]
)
def test_idle_rows_have_no_gradient_whatever_the_model_says(method):
    batch = rollout()
    batch = replace(
        batch, rewards=torch.where(batch.group_ids == 1, 0.5, batch.rewards)
    )  # the second group has no spread
    prepared = prepare(method, batch)
    idle = idle_rows(method, prepared)
    moved = logps_gradient(method, batch).abs().sum(1)
    assert not moved[idle].any()
    assert idle.any() == (
        method in ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "rlsd", "trrd", "grpd", "luffy")
    )
    if idle.any():
        assert torch.equal(idle, batch.group_ids == 1)
        assert not idle_rows(
            method, prepared, {"kl_coef": 0.1}
        ).any()  # the reference pulls at every row
