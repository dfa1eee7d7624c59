"""Completions that do not count leave the statistics of their group: what is left is the group
without them.
"""

from dataclasses import replace

import pytest
import torch
from toy import close, gradient, random, rollout

from rlkd_lab.objectives import METHODS, TokenBatch, group_advantages, prepare, token_loss
from rlkd_lab.objectives.advantages import reward_guided_mask
from rlkd_lab.objectives.loss import idle_rows

GROUPED = sorted(name for name, method in METHODS.items() if "groups" in method.needs)
LENGTHS = (5, 3, 4, 1, 6, 2, 3, 2)
COUNTED = torch.tensor([True, True, False, True, True, True, False, True])
KEPT = COUNTED.nonzero()[:, 0]
FIXED = 17.0
"""One normaliser for both batches: what a rollout is divided by is no statistic of a group."""


def eight(**given):
    """Two groups of four; row 2 is right and row 6 has a NaN for a reward, and neither counts."""
    rewards = random(8, seed=9)
    rewards[6] = torch.nan
    fields = {
        "group_ids": torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]),
        "correct": torch.tensor([0, 0, 1, 0, 1, 0, 0, 0]),
    }
    return rollout(
        lengths=LENGTHS,
        **{**fields, "rewards": rewards, "counted": COUNTED, "normalizer": FIXED, **given},
    )


def leaf(method, batch):
    """What the method's gradient goes through: log-probabilities, or the divergence alone."""
    return batch.logps if METHODS[method].ratio else batch.divergence


def removed(batch):
    return replace(batch.select(KEPT), counted=None)


@pytest.mark.parametrize("kd_mask", ["none", "wrong", "group_wrong"])
@pytest.mark.parametrize("method", GROUPED)
def test_the_others_are_credited_and_taught_as_if_the_row_was_not_there(method, kd_mask):
    options = {"kd_mask": kd_mask} if method != "hdpo" else {}
    whole, without = (
        prepare(method, eight(), options=options),
        prepare(method, removed(eight()), options=options),
    )
    assert torch.equal(whole.advantages[KEPT], without.advantages)
    assert not whole.advantages[~COUNTED].any()
    if without.kd_weight is not None:
        assert torch.equal(whole.kd_weight[KEPT], without.kd_weight)


@pytest.mark.parametrize("method", GROUPED)
def test_the_gradient_of_the_others_is_that_without_the_row_and_its_reward_has_none(method):
    batch = eight()
    loss, _ = token_loss(method, batch)
    found = gradient(loss, leaf(method, batch))
    other = eight()
    loss, _ = token_loss(method, removed(other))
    close(found[KEPT], gradient(loss, leaf(method, other))[KEPT])
    assert found[KEPT].norm() > 1e-3
    silent = eight(kd_weight=torch.zeros(8, dtype=torch.float64))
    loss, _ = token_loss(method, silent)
    close(
        gradient(loss, leaf(method, silent))[~COUNTED],
        torch.zeros(2, max(LENGTHS), dtype=torch.float64),
    )


@pytest.mark.parametrize("method", ["grpo", "dr_grpo", "kdrl", "hdpo", "trrd"])
def test_the_gradient_by_finite_differences(method):
    options = {"kd_ratio": "off"}  # its ratio is detached, which differences would see
    batch = prepare(method, eight(), options=options)
    assert torch.autograd.gradcheck(
        lambda logps: token_loss(method, replace(batch, logps=logps), options=options)[0],
        batch.logps,
    )


def test_the_teacher_still_speaks_on_a_row_that_does_not_count():
    batch = eight()
    loss, _ = token_loss("kdrl", batch)
    assert gradient(loss, batch.logps)[2, :4].abs().min() > 0


@pytest.mark.parametrize("scale", [True, False])
def test_a_group_in_which_fewer_than_two_count_has_no_advantage(scale):
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.5, 0.0])
    groups, counted = (
        torch.tensor([0, 0, 1, 1, 2, 2]),
        torch.tensor([True, False, False, False, True, True]),
    )
    found = group_advantages(rewards, groups, scale, counted)
    assert found[:4].tolist() == [0, 0, 0, 0]
    assert found[4] > 0 > found[5]


def test_everything_counts_by_default_to_the_last_bit():
    rewards, groups = random(24, seed=3).float(), torch.arange(24) // 4
    everybody = torch.ones(24, dtype=torch.bool)
    for scale in (True, False):
        assert torch.equal(
            group_advantages(rewards, groups, scale),
            group_advantages(rewards, groups, scale, everybody),
        )
    grouped = rewards.view(6, 4)
    wanted = (grouped - grouped.mean(1, keepdim=True)) / (grouped.std(1, keepdim=True) + 1e-4)
    torch.testing.assert_close(group_advantages(rewards, groups), wanted.flatten())


def test_who_is_right_but_does_not_count_silences_nobody():
    correct, groups = torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.tensor([0, 0, 1, 1])
    counted = torch.tensor([False, True, True, True])
    assert reward_guided_mask("group_wrong", correct, groups).tolist() == [0, 0, 0, 0]
    assert reward_guided_mask("group_wrong", correct, groups, counted).tolist() == [1, 1, 0, 0]
    assert reward_guided_mask(
        "group_wrong", correct, groups, torch.zeros(4, dtype=torch.bool)
    ).tolist() == [1, 1, 1, 1]


def test_rows_that_do_not_count_are_idle_where_the_reward_alone_speaks():
    assert torch.equal(idle_rows("grpo", prepare("grpo", eight())), ~COUNTED)
    assert not idle_rows("kdrl", prepare("kdrl", eight())).any()


@pytest.mark.parametrize(
    "counted", [torch.ones(8), torch.ones(7, dtype=torch.bool), torch.ones(8, 6, dtype=torch.bool)]
)
def test_counted_is_one_bool_a_row(counted):
    with pytest.raises(ValueError, match="counted must be"):
        eight(counted=counted)


def test_a_micro_batch_takes_its_part_of_counted():
    batch = TokenBatch(torch.zeros(2, 1), torch.ones(2, 1), counted=torch.tensor([True, False]))
    assert [part.counted.tolist() for part in batch.split(2)] == [[True], [False]]
