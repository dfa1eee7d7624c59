"""Small float64 batches, and policies so small that every sequence can be enumerated."""

from dataclasses import replace

import torch

from rlkd_lab.objectives import METHODS, TokenBatch, token_loss

EXACT = {"rtol": 0.0, "atol": 1e-10}
SUM = {
    "aggregation": "constant",
    "constant_length": 1,
}  # the plain sum over the tokens of a single row
NO_CLIP = {"clip_low": 1.0, "clip_high": 10.0}


def close(actual, expected):
    torch.testing.assert_close(actual, expected, **EXACT)


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# --- enumeration: a policy is one table of logits per prefix --------------------------------------

VOCABULARY = 4


def one_token_policy(seed):
    """Logits (V,) with gradient."""
    return random(VOCABULARY, seed=seed).requires_grad_()


def two_token_policy(seed):
    """Logits (1 + V, V) with gradient: row 0 for the first token, row 1 + a for the token after
    a.
    """
    return random(1 + VOCABULARY, VOCABULARY, seed=seed).requires_grad_()


def sequence_logps(logits):
    """Per-token log-probabilities of all sequences: (V, 1) for a one-token policy, (V², 2) for
    a two-token one.
    """
    if logits.dim() == 1:
        return logits.log_softmax(-1)[:, None]
    table = logits.log_softmax(-1)
    first = table[0].repeat_interleave(VOCABULARY)
    return torch.stack([first, table[1:].flatten()], dim=-1)


def kl(log_p, log_q):
    """Σ p (log p − log q), written out once more, so that the package is not tested against
    itself.
    """
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def sequence_kl(logits, other):
    return kl(sequence_logps(logits).sum(-1), sequence_logps(other).sum(-1))


def next_token_kls(logits, other):
    """KL of every next token, weighted by its prefix, whose distribution is held fixed
    (discount 0).
    """
    log_p, log_q = logits.log_softmax(-1), other.log_softmax(-1)
    if logits.dim() == 1:
        return kl(log_p, log_q)
    return kl(log_p[0], log_q[0]) + (log_p[0].exp().detach() * kl(log_p[1:], log_q[1:])).sum()


def expectation(values, logits):
    """Σ_y π(y)·value(y), the probabilities detached as in sampling."""
    return (sequence_logps(logits).sum(-1).exp().detach() * values).sum()


def gradient(scalar, leaf):
    """∂scalar/∂leaf, zeros where the leaf was not used."""
    (result,) = torch.autograd.grad(scalar, leaf, retain_graph=True, allow_unused=True)
    return torch.zeros_like(leaf) if result is None else result


def expected_loss(method, logits, teacher, advantages, coefs=None, options=None):
    """The expected on-policy loss of a method: each enumerated sequence is a batch of one row,
    and rows are weighted by their probability.
    """
    logps = sequence_logps(logits)
    with torch.no_grad():
        teacher_logps = sequence_logps(teacher)
    batch = TokenBatch(
        logps, torch.ones_like(logps), teacher_logps=teacher_logps, advantages=advantages
    )
    losses = [
        token_loss(method, batch.select(slice(row, row + 1)), coefs, {**SUM, **(options or {})})[0]
        for row in range(len(logps))
    ]
    return expectation(torch.stack(losses), logits)


# --- a batch with everything in it ----------------------------------------------------------------

LENGTHS = (5, 3, 4, 1, 0, 2)  # one row has no token at all
GROUPS = (0, 1, 2, 0, 1, 2)  # interleaved, so that every micro-batch cuts a group


def rollout(seed=0, lengths=LENGTHS, **given):
    """An off-policy batch of six completions of three prompts: padding, groups, teacher,
    reference, sampler and divergence.
    """
    rows, width = len(lengths), max(lengths)

    def near(offset, spread):
        return logps.detach() + spread * random(rows, width, seed=seed + offset)

    logps = (-1.5 - random(rows, width, seed=seed).abs()).requires_grad_()
    fields = {
        "logps": logps,
        "completion_mask": (torch.arange(width) < torch.tensor(lengths)[:, None]).long(),
        "old_logps": near(1, 0.3),
        "sampler_logps": near(2, 0.3),
        "teacher_logps": near(3, 0.8),
        "ref_logps": near(4, 0.5),
        "teacher_entropy": random(rows, width, seed=seed + 7).abs(),
        "rewards": random(rows, seed=seed + 5),
        "correct": torch.tensor([1, 0, 0, 0, 1, 0])[:rows],
        "group_ids": torch.tensor(GROUPS[:rows]),
        "divergence": random(rows, width, seed=seed + 6).abs().requires_grad_(),
    }
    return TokenBatch(**{**fields, **given})


def on_policy(batch):
    return replace(batch, old_logps=None)


def loss_and_gradients(method, batch, coefs=None, options=None):
    """The loss, and its gradients with respect to logps and divergence."""
    loss, _ = token_loss(method, batch, coefs, options)
    return loss.detach(), *(
        torch.zeros(()) if leaf is None else gradient(loss, leaf)
        for leaf in (batch.logps, batch.divergence)
    )


def logps_gradient(method, batch, coefs=None, options=None):
    return loss_and_gradients(method, batch, coefs, options)[1]


def heard(method, **coefs):
    """Those of the coefficients that a method listens to."""
    return {name: value for name, value in coefs.items() if name in METHODS[method].coefs}
