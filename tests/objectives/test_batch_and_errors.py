"""Batches, masks, normalisers and derivatives of every method; and what is refused, in words."""

import math
from dataclasses import replace

import pytest
import torch
from toy import (
    NO_CLIP,
    close,
    gradient,
    heard,
    logps_gradient,
    loss_and_gradients,
    on_policy,
    random,
    rollout,
)

from rlkd_lab.objectives import METHODS, TokenBatch, group_advantages, prepare, token_loss
from rlkd_lab.objectives.advantages import reward_guided_mask, teacher_gap
from rlkd_lab.objectives.loss import advantage
from rlkd_lab.objectives.opd_rules import sigmoid_penalty
from rlkd_lab.objectives.rules import cispo
from rlkd_lab.objectives.settings import CHOICES, KNOBS, check_coef
from rlkd_lab.objectives.surrogates import aggregate, clipped_surrogate, log_importance

EVERY = pytest.mark.parametrize("method", METHODS)
AGGREGATIONS = pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
LOUD = {"kd_coef": 0.4, "kl_coef": 0.3, "importance_cap": 1.5}
TAUGHT = [
    name
    for name, row in METHODS.items()
    if "teacher" in row.needs and "divergence" not in row.needs
]
PER_TOKEN_INPUTS = ("old_logps", "sampler_logps", "teacher_logps", "ref_logps")


# --- derivatives ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"level": "sequence"},
        {"estimator": "k3", "ref_estimator": "k2"},
        {"ref_estimator": "k3"},
    ],
)
@EVERY
def test_gradients_by_finite_differences(method, options):
    if METHODS[method].surrogate is cispo or METHODS[method].penalty is sigmoid_penalty:
        pytest.skip(
            "its weight is detached on purpose, so its gradient is not the derivative of its value"
        )
    batch = rollout(lengths=(3, 2, 3, 1, 0, 2))
    # kd_ratio multiplies by a detached ρ: the same remark
    baseline = batch.divergence.detach().clone()

    def loss(logps, divergence):
        if METHODS[method].penalty is None:  # a baseline is detached on purpose
            divergence = baseline
        return token_loss(
            method,
            replace(batch, logps=logps, divergence=divergence),
            heard(method, **LOUD),
            {"kd_ratio": "off", **options},
        )[0]

    assert torch.autograd.gradcheck(loss, (batch.logps, batch.divergence))


def test_the_importance_weight_of_the_teacher_term_is_detached():
    batch = rollout()
    with_ratio, without = (
        logps_gradient(
            "kdrl",
            batch,
            {"rl_coef": 0.0, "kd_coef": 1.0},
            {"kd_ratio": kd_ratio, "aggregation": "constant"},
        )
        for kd_ratio in ("on", "off")
    )
    close(with_ratio, without * (batch.logps - batch.old_logps).detach().exp())


@EVERY
def test_advantages_are_detached_and_statistics_are_numbers(method):
    batch = rollout()
    rewards, teacher_logps, old_logps = (
        value.clone().requires_grad_()
        for value in (batch.rewards, batch.teacher_logps, batch.old_logps)
    )
    batch = replace(batch, rewards=rewards, teacher_logps=teacher_logps, old_logps=old_logps)
    prepared = prepare(method, batch)
    assert prepared.advantages is None or not prepared.advantages.requires_grad
    assert all(isinstance(value, float) for value in token_loss(method, prepared)[1].values())


# --- masks ----------------------------------------------------------------------------------------


POISONS = pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, -1e9, 1e9])


def poisoned(batch, poison, *names):
    """The batch with ``poison`` in the padding of the named fields; what carries a gradient is
    a leaf again.
    """
    padding = batch.completion_mask == 0
    filled = {name: getattr(batch, name).detach().masked_fill(padding, poison) for name in names}
    return replace(
        batch,
        **{
            name: value.requires_grad_(name in ("logps", "divergence"))
            for name, value in filled.items()
        },
    )


def same(method, mine, theirs, coefs, options):
    for a, b in zip(
        loss_and_gradients(method, mine, coefs, options),
        loss_and_gradients(method, theirs, coefs, options),
        strict=True,
    ):
        close(a, b)
    assert token_loss(method, mine, coefs, options)[1] == pytest.approx(
        token_loss(method, theirs, coefs, options)[1]
    )


@POISONS
@EVERY
def test_padding_never_leaks(method, poison):
    clean, coefs = rollout(), heard(method, **LOUD)
    for names in [
        ("old_logps", "sampler_logps", "teacher_logps", "ref_logps"),
        ("logps",),
        ("divergence",),
    ]:
        for aggregation in CHOICES["aggregation"]:
            same(
                method, poisoned(clean, poison, *names), clean, coefs, {"aggregation": aggregation}
            )


@POISONS
@pytest.mark.parametrize(
    "options",
    [
        {"ref_estimator": "k3"},
        {"ref_estimator": "k2"},
        {"estimator": "k3"},
        {"level": "sequence"},
        {"kd_ratio": "off"},
    ],
)
def test_padding_never_leaks_whatever_the_estimator(options, poison):
    clean = rollout()
    same("kdrl", poisoned(clean, poison, *PER_TOKEN_INPUTS), clean, LOUD, options)


def test_padding_of_a_micro_batch_never_leaks():
    # the trainer fills in fresh logps after the split
    part = list(prepare("kdrl", rollout(), LOUD).split(2))[1]
    same("kdrl", poisoned(part, math.nan, "logps", "ref_logps"), part, LOUD, {})


@AGGREGATIONS
@EVERY
def test_a_batch_without_tokens_is_zero_and_not_nan(method, aggregation):
    batch = replace(rollout(), completion_mask=torch.zeros(6, 5))
    for kd_normalizer in ("same", "kept"):
        loss, logps_grad, divergence_grad = loss_and_gradients(
            method,
            batch,
            heard(method, **LOUD),
            {"aggregation": aggregation, "kd_normalizer": kd_normalizer},
        )
        assert loss == 0
        assert not logps_grad.any()
        assert not divergence_grad.any()
        assert all(math.isfinite(value) for value in token_loss(method, batch)[1].values())


@EVERY
def test_the_dtype_of_the_mask_does_not_matter(method):
    batch = rollout()
    wanted = loss_and_gradients(method, batch)
    for mask in (
        batch.completion_mask.bool(),
        batch.completion_mask.double(),
        batch.completion_mask.to(torch.int8),
    ):
        for mine, theirs in zip(
            loss_and_gradients(method, replace(batch, completion_mask=mask)), wanted, strict=True
        ):
            close(mine, theirs)


# --- the teacher term: EOS, reward-guided masks, normaliser ---------------------------------------


def last_tokens(batch):
    """1 at the last token of every completion, where its end-of-sequence token stands."""
    return batch.completion_mask * (
        batch.completion_mask.cumsum(-1) == batch.completion_mask.sum(-1, keepdim=True)
    )


@pytest.mark.parametrize("opinion", [-30.0, -math.inf])
@pytest.mark.parametrize("method", TAUGHT)
def test_the_teacher_has_no_say_at_an_eos_of_weight_zero(method, opinion):
    # teacher and student end with different tokens: what the teacher thinks of the student's must
    # not count, not even as 0·inf
    batch = rollout()
    ends = last_tokens(batch)
    weighted = replace(batch, kd_weight=1.0 - ends)
    appalled = replace(weighted, teacher_logps=batch.teacher_logps.masked_fill(ends == 1, opinion))
    for mine, theirs in zip(
        loss_and_gradients(method, appalled), loss_and_gradients(method, weighted), strict=True
    ):
        close(mine, theirs)
    # while it has one at the tokens before it
    other = replace(
        weighted,
        teacher_logps=torch.where(ends == 1, batch.teacher_logps, batch.teacher_logps + 0.3),
    )
    assert (logps_gradient(method, other) - logps_gradient(method, weighted)).norm() > 1e-4


@pytest.mark.parametrize("method", ["kdrl", "kdrl_advantage"])
def test_at_an_eos_of_weight_zero_the_reward_alone_is_left(method):
    batch = rollout()
    ends = last_tokens(batch) == 1
    mine = logps_gradient(method, replace(batch, kd_weight=1.0 - ends.double()), {"kd_coef": 0.5})
    rewarded = logps_gradient("grpo", batch, options={"aggregation": "token"})
    close(mine[ends], rewarded[ends])
    assert (mine - rewarded)[~ends].norm() > 0.01


def test_kd_weight_multiplies_the_teacher_term_by_row_or_by_token():
    batch, coefs = rollout(), {"kd_coef": 0.5}
    by_row, by_token = random(6, seed=3).abs(), random(6, 5, seed=3).abs()
    ratio, gap = (
        (batch.logps - batch.old_logps).detach().exp(),
        teacher_gap(batch.teacher_logps, batch.old_logps),
    )
    k2_slope = ratio * (batch.logps - batch.teacher_logps).detach()
    for given, weight in [(by_row, by_row[:, None]), (by_token, by_token)]:
        weighted = replace(batch, kd_weight=given)
        weight = weight * batch.mask
        close(loss_and_gradients("gkd", weighted, coefs)[2], 0.5 * weight / 15)
        close(
            logps_gradient("kdrl", weighted, {**coefs, "rl_coef": 0.0}),
            0.5 * weight * k2_slope / 15,
        )
        close(advantage("opd", weighted, coefs) * batch.mask, 0.5 * weight * gap)


def test_reward_guided_masks():
    correct, groups = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]), torch.tensor([0, 1, 2, 0, 1, 2])
    assert reward_guided_mask("none", correct, groups).tolist() == [1, 1, 1, 1, 1, 1]
    assert reward_guided_mask("wrong", correct, groups).tolist() == [0, 1, 1, 1, 0, 1]
    assert reward_guided_mask("group_wrong", correct, groups).tolist() == [0, 0, 1, 0, 0, 1]


@pytest.mark.parametrize(("kd_mask", "taught"), [("wrong", [1, 2, 3, 5]), ("group_wrong", [2, 5])])
@pytest.mark.parametrize("method", ["kdrl", "kdrl_advantage", "opd"])
def test_kd_mask_silences_the_teacher_row_by_row(method, kd_mask, taught):
    batch = on_policy(rollout())  # or a clip might silence it too
    shifted = replace(batch, teacher_logps=batch.teacher_logps + 0.3)
    change = logps_gradient(method, shifted, options={"kd_mask": kd_mask}) - logps_gradient(
        method, batch, options={"kd_mask": kd_mask}
    )
    assert [row for row in range(6) if change[row].norm() > 1e-6] == [
        row for row in taught if batch.completion_mask[row].any()
    ]


def test_kd_mask_looks_at_correct_and_not_at_the_reward():
    batch, options = rollout(), {"kd_mask": "wrong"}
    assert (
        token_loss("kdrl", replace(batch, rewards=-batch.rewards), options=options)[1]["loss/kd"]
        == token_loss("kdrl", batch, options=options)[1]["loss/kd"]
    )
    assert token_loss("kdrl_masked", batch)[1] == token_loss("kdrl", batch, options=options)[1]


def test_kd_normaliser_kept_divides_by_what_the_mask_kept():
    # lengths 5 3 4 1 0 2; wrong are rows 1 2 3 5 with 3 + 4 + 1 + 2 = 10 of 15 tokens, in 4 of 6
    # rows
    batch = rollout()
    for aggregation, factor in [("token", 15 / 10), ("sequence", 6 / 4), ("constant", 6 / 4)]:
        same, kept = (
            token_loss(
                "kdrl",
                batch,
                options={
                    "aggregation": aggregation,
                    "kd_mask": "wrong",
                    "kd_normalizer": normalizer,
                },
            )[1]
            for normalizer in ("same", "kept")
        )
        assert kept["loss/kd"] == pytest.approx(same["loss/kd"] * factor)
        assert kept["loss/policy"] == pytest.approx(same["loss/policy"])


def test_kd_normaliser_kept_under_token_is_the_mean_over_the_kept_tokens():
    batch = on_policy(rollout())
    wrong = (batch.correct == 0)[:, None] * batch.mask
    mean = (0.5 * (batch.teacher_logps - batch.logps).square() * wrong).sum() / wrong.sum()
    stats = token_loss(
        "kdrl", batch, {"kd_coef": 0.3}, {"kd_mask": "wrong", "kd_normalizer": "kept"}
    )[1]
    assert stats["loss/kd"] == pytest.approx(0.3 * mean.item())


# --- aggregation ----------------------------------------------------------------------------------


def test_aggregations_by_hand():
    # sft has the plainest per-token loss, −log π; a row without tokens stays in B
    logps = torch.tensor(
        [[-1.0, -2.0], [-4.0, math.nan], [math.nan, math.nan]],
        dtype=torch.float64,
        requires_grad=True,
    )
    batch = TokenBatch(logps, torch.tensor([[1, 1], [1, 0], [0, 0]]))
    for options, wanted in [
        ({"aggregation": "token"}, 7 / 3),
        ({"aggregation": "sequence"}, (1.5 + 4) / 3),
        ({"aggregation": "constant"}, 7 / (3 * 2)),
        ({"aggregation": "constant", "constant_length": 10}, 7 / (3 * 10)),
    ]:
        assert token_loss("sft", batch, options=options)[0].item() == pytest.approx(wanted)


def test_aggregate_drops_what_is_masked_and_divides_by_at_least_one():
    per_token = torch.tensor([[1.0, math.nan], [math.inf, math.nan]])
    for aggregation in CHOICES["aggregation"]:
        assert aggregate(per_token, torch.tensor([[1.0, 0.0], [0.0, 0.0]]), aggregation, 2.0) == 0.5
        assert aggregate(per_token, torch.zeros(2, 2), aggregation, 0.0) == 0


def test_dr_grpo_divides_by_a_constant_and_not_by_the_length():
    batch = rollout()
    mine = logps_gradient("dr_grpo", on_policy(batch), options={"constant_length": 8})
    centred = group_advantages(batch.rewards, batch.group_ids, scale=False)
    close(mine, -centred[:, None] * batch.mask / (6 * 8))


def test_a_given_normaliser_is_that_of_the_whole_rollout():
    batch = replace(rollout(), advantages=random(6, seed=8))
    close(2 * token_loss("dapo", replace(batch, normalizer=30.0))[0], token_loss("dapo", batch)[0])


def test_split_gives_every_row_once_and_at_most_one_part_a_row():
    batch = prepare("kdrl", rollout())
    for parts, sizes in [(1, [6]), (2, [3, 3]), (4, [2, 2, 1, 1]), (6, [1] * 6), (9, [1] * 6)]:
        pieces = list(batch.split(parts))
        assert [len(piece.logps) for piece in pieces] == sizes
        assert torch.equal(torch.cat([piece.rewards for piece in pieces]), batch.rewards)
        assert {piece.normalizer for piece in pieces} == {15.0}
    with pytest.raises(ValueError, match="1 or more parts; got 0"):
        list(batch.split(0))


# --- advantages -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("reward", [0.1, 0.7, 1 / 3, -0.3, 0.0])
@pytest.mark.parametrize("size", [2, 3, 7])
def test_equal_rewards_give_exactly_zero(reward, size, dtype):
    # the mean of seven times 0.1 is not 0.1, and the rest over a spread of 1e-4 would be a gradient
    rewards, groups = torch.full((size,), reward, dtype=dtype), torch.zeros(size, dtype=torch.long)
    for scale in (True, False):
        assert not group_advantages(rewards, groups, scale).any()


def test_rewards_equal_up_to_rounding_give_next_to_nothing():
    rewards = torch.tensor([0.1 + 0.2, 0.3], dtype=torch.float64)
    assert rewards[0] != rewards[1]
    assert group_advantages(rewards, torch.zeros(2, dtype=torch.long)).abs().max() < 1e-10


def test_a_flat_group_beside_a_spread_one():
    advantages = group_advantages(
        torch.tensor([0.1, 0.1, 0.1, 1.0, 0.0]), torch.tensor([4, 4, 4, 9, 9])
    )
    assert advantages[:3].tolist() == [0, 0, 0]
    torch.testing.assert_close(
        advantages[3:], torch.tensor([1.0, -1.0]) * 0.5 / (math.sqrt(0.5) + 1e-4)
    )


def test_bf16_rewards_keep_their_small_differences():
    assert (
        group_advantages(
            torch.tensor([1.0, 1.0078125, 1.0, 1.0], dtype=torch.bfloat16),
            torch.zeros(4, dtype=torch.long),
        ).dtype
        == torch.float32
    )


@pytest.mark.parametrize("method", ["grpo", "dr_grpo", "kdrl", "trrd"])
def test_a_group_of_one_is_refused_unless_advantages_are_given(method):
    batch = replace(rollout(), group_ids=torch.tensor([0, 0, 1, 1, 1, 2]))
    with pytest.raises(
        ValueError, match="sample at least 2 completions a prompt, or give advantages"
    ):
        token_loss(method, batch)
    assert token_loss(method, replace(batch, advantages=random(6)))[0].isfinite()


def test_opd_needs_no_groups():
    assert token_loss("opd", replace(rollout(), rewards=None, group_ids=None))[0].isfinite()


def test_rl_coef_and_kd_coef_weigh_their_terms():
    batch = rollout()
    reward, gap = advantage("grpo", batch), teacher_gap(batch.teacher_logps, batch.old_logps)
    for method, coefs, wanted in [
        ("kdrl_advantage", {"rl_coef": 2.0, "kd_coef": 0.5}, 2 * reward + 0.5 * gap),
        ("opd", {"kd_coef": 0.5}, 0.5 * gap),
        ("kdrl", {"rl_coef": 0.0, "kd_coef": 0.5}, 0 * reward),
    ]:
        close(advantage(method, batch, coefs) * batch.mask, wanted * batch.mask)


def test_given_advantages_go_before_rewards_and_rl_coef_still_weighs_them():
    batch, given = rollout(), random(6, seed=4)
    close(
        advantage("grpo", replace(batch, advantages=given), {"rl_coef": 0.5}),
        0.5 * given[:, None].expand(6, 5),
    )
    with pytest.raises(ValueError, match="sft has no advantage"):
        advantage("sft", batch)


# --- clipping -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope", "cut"),
    [
        (1.1, 1.0, -1.1, -1.1, None),
        (1.4, 1.0, -1.3, 0.0, "high"),
        (0.5, 1.0, -0.5, -0.5, None),  # too small a ratio of a good token: pulled up
        (1.4, -1.0, 1.4, 1.4, None),  # too large a ratio of a bad token: pushed down
        (0.5, -1.0, 0.8, 0.0, "low"),
        (4.0, -1.0, 3.0, 0.0, "cap"),
        (4.0, 1.0, -1.3, 0.0, "high"),
    ],
)
def test_clipping_by_hand(ratio, advantage, loss, slope, cut):
    log_ratio = torch.tensor(math.log(ratio), dtype=torch.float64, requires_grad=True)
    value, cuts = clipped_surrogate(
        log_ratio,
        torch.tensor(advantage, dtype=torch.float64),
        clip_low=0.2,
        clip_high=0.3,
        ratio_cap=3.0,
    )
    assert value.item() == pytest.approx(loss)
    assert gradient(value, log_ratio).item() == pytest.approx(slope)
    assert [name for name, where in cuts.items() if where] == ([cut] if cut else [])


def test_clip_ratios_count_tokens():
    batch = replace(rollout(), advantages=random(6, seed=8))
    ratio, here = (batch.logps - batch.old_logps).detach().exp(), batch.completion_mask == 1
    up = (batch.advantages > 0)[:, None].expand(6, 5)
    stats = token_loss("grpo", batch, {"clip_low": 0.1, "clip_high": 0.2})[1]
    assert stats["clip_ratio/low"] == pytest.approx(
        ((ratio < 0.9) & ~up)[here].double().mean().item()
    )
    assert stats["clip_ratio/high"] == pytest.approx(
        ((ratio > 1.2) & up)[here].double().mean().item()
    )
    assert 0 < stats["clip_ratio/low"] < 1
    assert 0 < stats["clip_ratio/high"] < 1


def test_sequence_level_is_the_mean_over_the_tokens_of_a_row():
    batch = rollout()
    level = log_importance(batch, "sequence")
    for row, length in enumerate((5, 3, 4, 1, 0, 2)):
        mean = (
            (batch.logps - batch.old_logps)[row, :length].mean()
            if length
            else torch.zeros((), dtype=torch.float64)
        )
        close(level[row], mean.expand(5))


def test_the_bound_of_trrd_acts_on_the_teacher_alone_and_cuts_its_gradient():
    logps = torch.tensor([[-1.0, -1.0, -3.0]], dtype=torch.float64, requires_grad=True)
    teacher_logps = torch.tensor([[-1.5, -3.0, -1.0]], dtype=torch.float64)
    batch = TokenBatch(
        logps, torch.ones(1, 3), teacher_logps=teacher_logps, advantages=-torch.ones(1)
    )
    coefs = {"trrd_alpha": 0.6, "trrd_gap_bound": 1.0, "ratio_cap": None, "clip_low": 1.0}
    loss, stats = token_loss(
        "trrd", batch, coefs, {"aggregation": "constant", "constant_length": 1}
    )
    # within the bound r = e^(.4·.5) with slope 1; beyond it r = e^(±.4·1) with the slope α of the
    # old policy's part
    assert loss.item() == pytest.approx(math.exp(0.2) + math.exp(0.4) + math.exp(-0.4))
    close(
        gradient(loss, logps),
        torch.tensor(
            [[math.exp(0.2), 0.6 * math.exp(0.4), 0.6 * math.exp(-0.4)]], dtype=torch.float64
        ),
    )
    assert stats["trrd/bound_frac"] == pytest.approx(2 / 3)


def test_importance_cap_weighs_the_policy_term_alone():
    batch, cap = rollout(), 1.1
    weight = (batch.old_logps - batch.sampler_logps).exp().clamp(max=cap)
    assert (weight == cap).any()
    assert (weight < cap).any()
    coefs = {"kd_coef": 0.4, "kl_coef": 0.3}
    plain, capped = (
        token_loss("kdrl", batch, {**coefs, "importance_cap": given})[1] for given in (None, cap)
    )
    assert capped["loss/kd"] == plain["loss/kd"]
    close(
        logps_gradient("grpo", batch, {"importance_cap": cap}),
        logps_gradient("grpo", batch) * weight,
    )
    # without a sampler's report there is nothing to correct
    close(
        logps_gradient("grpo", replace(batch, sampler_logps=None), {"importance_cap": cap}),
        logps_gradient("grpo", batch),
    )


# --- on-policy ------------------------------------------------------------------------------------


@EVERY
def test_missing_old_logps_mean_on_policy(method):
    missing = on_policy(rollout())
    given = replace(missing, old_logps=missing.logps.detach())
    for mine, theirs in zip(
        loss_and_gradients(method, missing), loss_and_gradients(method, given), strict=True
    ):
        close(mine, theirs)


def test_a_prepared_batch_remembers_the_policy_it_was_prepared_with():
    prepared = prepare("grpo", on_policy(rollout()))
    moved = replace(prepared, logps=(prepared.logps + 0.5).detach().requires_grad_())
    assert token_loss("grpo", moved)[1]["clip_ratio/high"] > 0


@pytest.mark.parametrize("method", ["grpo", "dapo", "kdrl", "trrd"])
def test_kl_ref_is_reported_at_no_weight_and_is_zero_for_the_reference_itself(method):
    batch = rollout()
    log_ratio = (batch.ref_logps - batch.logps).detach()
    k3_by_hand = (log_ratio.exp() - 1 - log_ratio)[batch.completion_mask == 1].mean()
    assert token_loss(method, batch)[1]["kl_ref"] == pytest.approx(k3_by_hand.item())
    assert token_loss(method, replace(batch, ref_logps=batch.logps.detach()))[1]["kl_ref"] == 0


def test_loss_is_the_sum_of_its_reported_parts():
    loss, stats = token_loss("kdrl", rollout(), {"kl_coef": 0.0})
    assert loss.item() == pytest.approx(stats["loss/policy"] + stats["loss/kd"])


def test_kd_forward_and_gkd_scale_and_mask_the_divergence():
    batch = rollout()
    for method in ("kd_forward", "gkd"):
        loss, logps_grad, divergence_grad = loss_and_gradients(method, batch, {"kd_coef": 0.5})
        close(loss, 0.5 * (batch.divergence * batch.mask).sum().detach() / 15)
        close(divergence_grad, 0.5 * batch.mask / 15)
        assert not logps_grad.any()


# --- refused, in words ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "coefs", "options", "message"),
    [
        ("kdlr", {}, {}, "unknown method 'kdlr': did you mean 'kdrl'"),
        ("zzzz", {}, {}, "unknown method 'zzzz': valid are sft, "),
        ("kdrl", {"kd_coeff": 0.1}, {}, "unknown knob of kdrl 'kd_coeff': did you mean 'kd_coef'"),
        ("grpo", {"kd_coef": 0.1}, {}, "unknown knob of grpo 'kd_coef'"),
        ("sft", {"kd_coef": 0.1}, {}, "unknown knob of sft 'kd_coef'"),
        (
            "kdrl",
            {},
            {"agregation": "token"},
            "unknown option 'agregation': did you mean 'aggregation'",
        ),
        (
            "kdrl",
            {},
            {"aggregation": "tokens"},
            "unknown aggregation 'tokens': did you mean 'token'",
        ),
        ("kdrl", {}, {"kd_mask": "wrongs"}, "unknown kd_mask 'wrongs': did you mean 'wrong'"),
        ("kdrl", {}, {"estimator": None}, "unknown estimator 'None'"),
        ("kdrl", {"kd_coef": -0.1}, {}, "kd_coef=-0.1 is out of range: .* lies in 0–10"),
        ("kdrl", {"kd_coef": math.nan}, {}, "kd_coef=nan is out of range"),
        ("kdrl", {"kd_coef": math.inf}, {}, "kd_coef=inf is out of range"),
        ("kdrl", {"kd_coef": None}, {}, "kd_coef=off is out of range"),
        ("trrd", {"trrd_alpha": 1.01}, {}, "trrd_alpha=1.01 is out of range"),
        (
            "trrd",
            {"trrd_gap_bound": 0.0},
            {},
            "trrd_gap_bound=0 is out of range: .* lies in 0.01–20, or off",
        ),
        ("grpo", {"clip_low": 1.5}, {}, "clip_low=1.5 is out of range"),
        ("grpo", {"ratio_cap": 0.5}, {}, "ratio_cap=0.5 is out of range"),
    ],
)
def test_bad_names_and_values_are_refused(method, coefs, options, message):
    for call in (token_loss, prepare):
        with pytest.raises(ValueError, match=message):
            call(method, rollout(), coefs, options)


@pytest.mark.parametrize("length", [0, -5, 2.5, "long"])
def test_a_constant_length_that_is_no_length_is_refused(length):
    with pytest.raises(ValueError, match="constant_length"):
        token_loss("dr_grpo", rollout(), options={"constant_length": length})


@pytest.mark.parametrize("knob", KNOBS)
def test_knob_ranges(knob):
    spec = KNOBS[knob]
    assert check_coef(knob, spec.low) == spec.low
    assert check_coef(knob, spec.high) == spec.high
    for value in (spec.low - 1e-6, spec.high + 1e-6, math.nan):
        with pytest.raises(ValueError, match="out of range"):
            check_coef(knob, value)
    if spec.optional:
        assert check_coef(knob, None) is None
    else:
        with pytest.raises(ValueError, match=f"{knob}=off is out of range"):
            check_coef(knob, None)


@EVERY
def test_every_row_of_the_table_is_sound(method):
    row = METHODS[method]
    assert row.title
    assert row.source
    assert row.formula
    assert row.watch
    assert set(row.knobs) == set(row.coefs)
    for knob, value in row.coefs.items():
        check_coef(knob, value)
    for option, value in row.options.items():
        assert value in CHOICES[option]
    assert set(row.schedules) <= set(row.coefs)


def test_defaults_that_make_a_method_what_it_is():
    coefs = {name: row.coefs for name, row in METHODS.items()}
    assert (coefs["dapo"]["clip_low"], coefs["dapo"]["clip_high"]) == (0.2, 0.28)
    assert (coefs["grpo"]["clip_low"], coefs["grpo"]["clip_high"]) == (0.2, 0.2)
    assert (
        coefs["trrd"]["trrd_alpha"],
        coefs["trrd"]["trrd_gap_bound"],
        coefs["trrd"]["ratio_cap"],
    ) == (0.5, 1.0, 3.0)
    assert coefs["opd"]["kd_coef"] == 1.0
    # no reference KL unless it is asked for
    assert not any(knobs.get("kl_coef") for knobs in coefs.values())


@pytest.mark.parametrize(
    ("method", "missing", "coefs", "options", "message"),
    [
        ("kdrl", "teacher_logps", {}, {}, "kdrl needs teacher_logps"),
        ("opd", "teacher_logps", {}, {}, "opd needs teacher_logps"),
        ("trrd", "teacher_logps", {}, {}, "trrd needs teacher_logps"),
        ("grpo", "rewards", {}, {}, r"grpo needs rewards and group_ids \(or advantages\)"),
        ("grpo", "group_ids", {}, {}, r"grpo needs rewards and group_ids \(or advantages\)"),
        (
            "grpo",
            "ref_logps",
            {"kl_coef": 0.1},
            {},
            "grpo needs ref_logps, the reference",
        ),
        ("gkd", "divergence", {}, {}, "gkd needs divergence"),
        ("vopd", "divergence", {}, {}, "vopd needs divergence"),
        ("vopd", "teacher_logps", {}, {}, "vopd needs teacher_logps"),
        ("exopd", "ref_logps", {}, {}, "exopd needs ref_logps"),
        ("opdvr", "correct", {}, {}, "opdvr needs correct"),
        ("kdrl", "divergence", {}, {"estimator": "exact"}, "kdrl needs divergence"),
        ("kdrl_masked", "correct", {}, {}, "kdrl_masked with kd_mask='wrong' needs correct"),
        (
            "opd",
            "group_ids",
            {},
            {"kd_mask": "group_wrong"},
            "kd_mask='group_wrong' needs group_ids",
        ),
    ],
)
def test_missing_inputs_are_refused(method, missing, coefs, options, message):
    with pytest.raises(ValueError, match=message):
        token_loss(method, replace(rollout(), **{missing: None}), coefs, options)


def test_what_a_method_does_not_use_it_does_not_need():
    bare = TokenBatch(random(2, 3).requires_grad_(), torch.ones(2, 3))
    assert token_loss("sft", bare)[0].isfinite()
    assert token_loss("gkd", replace(bare, divergence=random(2, 3).abs()))[0].isfinite()
    assert token_loss("grpo", replace(bare, advantages=torch.ones(2)))[0].isfinite()


def test_kdrl_with_an_exact_divergence_needs_no_log_probabilities_of_the_teacher():
    # the head that made the divergence has seen the teacher
    batch = rollout()
    options = {"estimator": "exact"}
    close(
        token_loss("kdrl", replace(batch, teacher_logps=None), options=options)[0],
        token_loss("kdrl", batch, options=options)[0],
    )


@pytest.mark.parametrize(
    "name",
    [
        "completion_mask",
        *PER_TOKEN_INPUTS,
        "divergence",
        "rewards",
        "correct",
        "group_ids",
        "advantages",
        "kd_weight",
    ],
)
def test_wrong_shapes_are_refused(name):
    with pytest.raises(
        ValueError, match=rf"{name} must be .*\(6,.* beside logps of \(6, 5\); got \(5, 6\)"
    ):
        replace(rollout(), **{name: torch.ones(5, 6)})


def test_logps_of_one_dimension_are_refused():
    with pytest.raises(ValueError, match=r"logps must be \(B, T\); got \(3,\)"):
        TokenBatch(torch.zeros(3), torch.ones(3))


def test_a_batch_prepared_for_another_method_is_refused():
    prepared = prepare("grpo", rollout())
    with pytest.raises(ValueError, match="prepared for 'grpo', not for 'dr_grpo'"):
        token_loss("dr_grpo", prepared)


@pytest.mark.parametrize(
    ("first", "second"), [("kdrl_advantage", "kdrl_advantage"), ("grpo", "dr_grpo")]
)
def test_preparing_twice_is_refused(first, second):
    # the advantages would be taken for Â and weighed again
    prepared = prepare(first, rollout(), {"rl_coef": 2.0})
    with pytest.raises(ValueError, match="prepared"):
        prepare(second, prepared, {"rl_coef": 2.0})


def test_preparing_changes_nothing_but_the_work():
    batch, coefs = rollout(), {**NO_CLIP, "kd_coef": 0.4}
    for method in ("kdrl", "kdrl_advantage"):
        prepared = prepare(method, batch, coefs)
        assert batch.prepared_for is None
        assert batch.advantages is None
        close(token_loss(method, prepared, coefs)[0], token_loss(method, batch, coefs)[0])


def test_a_prepared_batch_refuses_other_options_than_it_was_prepared_with():
    batch = rollout()
    with pytest.raises(ValueError, match="prepared with"):
        token_loss("grpo", prepare("grpo", batch), options={"aggregation": "token"})
    # coefficients weigh the loss, not the preparation: they may still move
    prepared = prepare("kdrl_advantage", batch, {"kd_coef": 0.1})
    moved = {"kd_coef": 5.0, "rl_coef": 0.5, "clip_high": 0.3}
    close(
        token_loss("kdrl_advantage", prepared, moved)[0],
        token_loss("kdrl_advantage", batch, moved)[0],
    )
