"""LUFFY and CHORD: traces of the teacher beside completions of the student in one batch.

The losses were written a second time, token by token, from the papers' formulas.
"""

import math
from dataclasses import replace

import pytest
import torch

from rlkd_lab.objectives import TokenBatch, prepare, token_loss
from tests.objectives.toy import close, logps_gradient, random

TRACE = torch.tensor([False, False, True, False, False, False, True, False])
GROUPS = torch.tensor([0, 0, 0, 1, 1, 1, 1, 0])
LENGTHS = torch.tensor([4, 2, 5, 1, 3, 4, 2, 0])
LUFFY = {"trace_gamma": 0.3, "importance_cap": 1.2, "kl_coef": 0.2, "rl_coef": 0.7}
CHORD = {"trace_weight": 0.3, "importance_cap": 1.2, "kl_coef": 0.2}


def mixed(seed=0):
    """Return two groups of four, a trace in each; every token differs."""
    logps = (-1.0 - random(8, 5, seed=seed).abs()).requires_grad_()

    def near(offset):
        return logps.detach() + 0.4 * random(8, 5, seed=10 * seed + offset)

    return TokenBatch(
        logps,
        (torch.arange(5) < LENGTHS[:, None]).long(),
        old_logps=near(1),
        sampler_logps=near(2),
        ref_logps=near(3),
        rewards=random(8, seed=seed + 4),
        group_ids=GROUPS,
        off_policy=TRACE,
    )


def own(batch):
    return replace(batch.select(~TRACE), off_policy=None)


def rollout_token(batch, i, t, credit, coefs):
    """Return the loss of a token that the student wrote."""
    now, old = batch.logps[i, t], batch.old_logps[i, t]
    ratio = (now - old).exp()
    gain = torch.minimum(ratio * credit, ratio.clamp(0.8, 1.2) * credit)
    weight = min(math.exp(old - batch.sampler_logps[i, t]), coefs["importance_cap"])
    gap = batch.ref_logps[i, t] - now
    return -gain * weight + coefs["kl_coef"] * ratio * (gap.exp() - 1 - gap)


def tokens():
    return [(i, t) for i in range(8) for t in range(int(LENGTHS[i]))]


def luffy(batch):
    """Return Σ over all tokens, divided by completions times the length limit."""
    total = 0.0
    for i, t in tokens():
        group = batch.rewards[GROUPS[i] == GROUPS]
        credit = LUFFY["rl_coef"] * (batch.rewards[i] - group.mean())
        if TRACE[i]:
            p = batch.logps[i, t].exp()
            total = total - p / (p + LUFFY["trace_gamma"]) * credit
        else:
            total = total + rollout_token(batch, i, t, credit, LUFFY)
    return total / (8 * 7)


def chord(batch):
    """Return both terms, each a mean over its own tokens."""
    rollouts, traces = [], []
    for i, t in tokens():
        p = batch.logps[i, t].exp()
        if TRACE[i]:
            traces.append(-(p * (1 - p)).detach() * batch.logps[i, t])
            continue
        group = batch.rewards[(GROUPS[i] == GROUPS) & ~TRACE]
        credit = (batch.rewards[i] - group.mean()) / (group.std() + 1e-4)
        rest = 1 - CHORD["trace_weight"]
        rollouts.append(rollout_token(batch, i, t, rest * credit, CHORD))
    share = sum(traces) / len(traces)
    return sum(rollouts) / len(rollouts) + CHORD["trace_weight"] * share


@pytest.mark.parametrize(("method", "by_hand"), [("luffy", luffy), ("chord", chord)])
def test_value_and_gradient_are_those_of_the_formula(method, by_hand):
    coefs = LUFFY if method == "luffy" else CHORD
    options = {"constant_length": 7}
    for seed in range(4):
        batch = mixed(seed)
        expected = by_hand(batch)
        (wanted,) = torch.autograd.grad(expected, batch.logps)
        close(token_loss(method, batch, coefs, options)[0], expected)
        close(logps_gradient(method, batch, coefs, options), wanted)
        parts = prepare(method, batch, coefs, options).split(3)
        close(sum(token_loss(method, part, coefs, options)[0] for part in parts), expected)


def test_without_traces_each_is_a_method_of_its_own():
    batch = own(mixed())
    close(logps_gradient("luffy", batch), logps_gradient("dr_grpo", batch))
    grpo = logps_gradient("grpo", batch, options={"aggregation": "token"})
    close(logps_gradient("chord", batch, {"trace_weight": 0.3}), 0.7 * grpo)


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_mu_goes_from_grpo_to_weighted_imitation(aggregation):
    batch, how = mixed(), {"aggregation": aggregation}
    alone = own(batch)
    found = logps_gradient("chord", batch, {"trace_weight": 0.0}, how)
    close(found[~TRACE], logps_gradient("grpo", alone, options=how))
    assert not found[TRACE].any()
    traces = replace(batch.select(TRACE), off_policy=None)
    p = traces.logps.detach().exp()
    weighted = logps_gradient("sft", traces, options=how) * p * (1 - p)
    found = logps_gradient("chord", batch, {"trace_weight": 1.0}, how)
    close(found[TRACE], weighted)
    assert not found[~TRACE].any()


def test_a_large_gamma_is_the_plain_importance_weight_of_a_trace():
    batch, gamma = mixed(), 1e4
    found = gamma * logps_gradient("luffy", batch, {"trace_gamma": gamma})[TRACE]
    credit = prepare("luffy", batch).advantages[:, None]
    plain = -batch.logps.detach().exp() * batch.mask * credit
    torch.testing.assert_close(found, plain[TRACE] / (8 * 5), rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("method", ["luffy", "chord"])
def test_a_trace_that_has_become_likely_at_once_breaks_nothing(method):
    batch = mixed()
    batch = replace(batch, old_logps=batch.old_logps.masked_fill(TRACE[:, None], -2000.0))
    usual, _ = token_loss(method, mixed(), {"kl_coef": 0.2, "importance_cap": 2.0})
    loss, stats = token_loss(method, batch, {"kl_coef": 0.2, "importance_cap": 2.0})
    close(loss, usual)
    assert logps_gradient(method, batch, {"kl_coef": 0.2}).isfinite().all()
    assert stats["ratio/max"] == token_loss(method, mixed())[1]["ratio/max"]
