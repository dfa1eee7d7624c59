"""Chunked per-token log-probabilities and divergences against the plain dense computation, in
value, gradient and memory.
"""

import pytest
import torch
from torch import nn
from torch.nn.functional import kl_div
from torch.utils._python_dispatch import TorchDispatchMode

from rlkd_lab.models import (
    LanguageModel,
    Sequences,
    load_policy,
    load_teacher,
    loading,
    logprobs,
    policy_logps,
    reference_of,
    token_logps,
)
from rlkd_lab.models.dense_copy import DenseCopy
from rlkd_lab.models.loading import load_base
from rlkd_lab.models.logprobs import (
    hidden_states,
    measured_divergences,
    targets,
    token_divergence,
    top_alternatives,
    unflatten,
)
from rlkd_lab.models.lora import Lora
from rlkd_lab.objectives import prepare, token_loss
from rlkd_lab.objectives.batch import TokenBatch
from rlkd_lab.rollouts.fast import OwnForward

CHUNKS = (1, 3, 7, 1000)
FAMILIES = ("qwen3", "qwen2", "gemma2")


@pytest.fixture(scope="module", params=FAMILIES)
def policy(request, make_model, stir):
    return stir(load_policy(make_model(request.param), "none", lora=Lora(4)))


@pytest.fixture(scope="module")
def pair(make_model, stir):
    policy = stir(load_policy(make_model(), "nf4", lora=Lora(4)))
    return policy, load_teacher(make_model(seed=1), "none", policy=policy)


def dense_log_softmax(lm, sequences, row, temperature=1.0):
    """One row without any padding through the whole model: (its length, V)."""
    prompt = sequences.prompt_ids[row][sequences.prompt_mask[row].bool()]
    completion = sequences.completion_ids[row][sequences.completion_mask[row].bool()]
    with lm.active():
        logits = lm.causal_lm(input_ids=torch.cat([prompt, completion])[None]).logits[0]
    return torch.log_softmax(logits[len(prompt) - 1 : -1].float() / temperature, -1), completion


def dense_logps(lm, sequences, temperature=1.0):
    rows = [
        dense_log_softmax(lm, sequences, row, temperature)
        for row in range(len(sequences.prompt_ids))
    ]
    logps = torch.cat([log_probs.gather(-1, ids[:, None])[:, 0] for log_probs, ids in rows])
    entropy = torch.cat([-(log_probs.exp() * log_probs).sum(-1) for log_probs, _ in rows])
    return logps, entropy


def gradients(lm, value):
    """Of Σ w·value with fixed weights that tell the tokens apart, by the adapter's parameters."""
    weights = torch.linspace(-1, 2, value.numel()).view(value.shape)
    return torch.autograd.grad((weights * value).sum(), lm.trainable(), retain_graph=True)


def close(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# --- values and gradients -------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_pitfall_12_padded_log_probabilities_equal_the_unpadded_ones_in_value_and_gradient(
    policy, ragged, temperature
):
    sequences = ragged(policy)
    expected, entropy = dense_logps(policy, sequences, temperature)
    expected_gradients = gradients(policy, expected)
    assert max(float(g.abs().max()) for g in expected_gradients) > 0.1
    for chunk in CHUNKS:
        found, found_entropy = token_logps(
            policy, hidden_states(policy, sequences), targets(sequences), temperature, chunk
        )
        close(found, expected)
        close(found_entropy, entropy.detach())
        assert not found_entropy.requires_grad
        for a, b in zip(gradients(policy, found), expected_gradients, strict=True):
            # float32 sums in another order, relative to the largest entry of the parameter
            close(a / b.abs().max(), b / b.abs().max(), 5e-5)


def test_pitfall_12_more_padding_on_either_side_changes_nothing(policy, ragged):
    tight = ragged(policy)
    left, right = torch.zeros(3, 6, dtype=torch.long), torch.zeros(3, 4, dtype=torch.long)
    # what stands in the padding is nobody's business
    wide = Sequences(
        torch.cat([left + 50, tight.prompt_ids], 1),
        torch.cat([left, tight.prompt_mask], 1),
        torch.cat([tight.completion_ids, right + 60], 1),
        torch.cat([tight.completion_mask, right], 1),
    )
    width = tight.completion_mask.shape[1]
    for a, b in zip(policy_logps(policy, wide), policy_logps(policy, tight), strict=True):
        close(a[:, :width], b)
        assert torch.count_nonzero(a[:, width:]) == 0


def test_pitfall_12_shorter_rows_computed_alone_are_the_same(policy, ragged):
    together, _ = policy_logps(policy, ragged(policy))
    for row in range(3):
        alone, _ = policy_logps(policy, ragged(policy, slice(row, row + 1)))
        close(alone[0], together[row, : alone.shape[1]])


def test_log_probabilities_stand_where_the_mask_is_one(policy, ragged):
    sequences = ragged(policy)
    logps, entropy = policy_logps(policy, sequences)
    assert logps.shape == entropy.shape == sequences.completion_ids.shape
    assert bool(((logps != 0) == sequences.completion_mask.bool()).all())
    assert bool((logps <= 0).all())
    assert bool((entropy >= 0).all())
    close(logps[sequences.completion_mask.bool()], dense_logps(policy, sequences)[0])


@pytest.mark.parametrize("kind", ["reverse", "forward", "jsd"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_divergences_equal_the_dense_ones_in_value_and_gradient(pair, ragged, kind, temperature):
    policy, teacher = pair
    sequences = ragged(policy)
    log_p = torch.cat(
        [dense_log_softmax(policy, sequences, row, temperature)[0] for row in range(3)]
    )
    log_q = torch.cat(
        [dense_log_softmax(teacher, sequences, row, temperature)[0] for row in range(3)]
    ).detach()
    log_m = torch.logaddexp(log_p + torch.tensor(0.3).log(), log_q + torch.tensor(0.7).log())
    expected = {
        "reverse": kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1),
        "forward": kl_div(log_p, log_q, log_target=True, reduction="none").sum(-1),
        # the weight is the teacher's share of the mixture
        "jsd": 0.3 * kl_div(log_m, log_p, log_target=True, reduction="none").sum(-1)
        + 0.7 * kl_div(log_m, log_q, log_target=True, reduction="none").sum(-1),
    }[kind]
    with torch.no_grad():
        theirs = hidden_states(teacher, sequences)
    for chunk in CHUNKS:
        found = token_divergence(
            policy,
            hidden_states(policy, sequences),
            teacher,
            theirs,
            kind,
            weight=0.7,
            temperature=temperature,
            chunk=chunk,
        )
        close(found, expected)
        assert bool((found >= -1e-6).all())
        for a, b in zip(gradients(policy, found), gradients(policy, expected), strict=True):
            close(a / b.abs().max(), b / b.abs().max(), 5e-5)
    assert all(p.grad is None for p in teacher.model.parameters())


@pytest.mark.parametrize("k", [1, 5, 128])
def test_top_k_divergence_equals_the_dense_one_with_a_tail(pair, ragged, k):
    policy, teacher = pair
    sequences = ragged(policy)
    hidden, theirs = hidden_states(policy, sequences), hidden_states(teacher, sequences).detach()
    p, q = (
        torch.softmax(lm.head(states), -1).double()
        for lm, states in ((policy, hidden), (teacher, theirs))
    )
    top = q.topk(k, -1).indices
    p_top, q_top = p.gather(-1, top), q.gather(-1, top)
    expected = (p_top * (p_top / q_top).log()).sum(-1)
    if k < 128:
        p_rest, q_rest = 1 - p_top.sum(-1), 1 - q_top.sum(-1)
        expected = expected + p_rest * (p_rest / q_rest).log()
    for chunk in (3, 1000):
        close(
            token_divergence(
                policy, hidden, teacher, theirs, "reverse", topk=k, chunk=chunk
            ).double(),
            expected,
            1e-4,
        )


def test_a_policy_does_not_diverge_from_itself(pair, ragged):
    policy, _ = pair
    hidden = hidden_states(policy, ragged(policy))
    for kind in ("reverse", "forward", "jsd"):
        close(
            token_divergence(policy, hidden, policy, hidden.detach(), kind),
            torch.zeros(len(hidden)),
        )


def test_pitfall_08_temperature_divides_the_logits_of_policy_teacher_and_reference_alike(
    pair, ragged
):
    policy, teacher = pair
    sequences = ragged(policy)
    for lm in (policy, teacher, reference_of(policy)):
        for temperature in (0.5, 2.0):
            close(
                policy_logps(lm, sequences, temperature)[0][sequences.completion_mask.bool()],
                dense_logps(lm, sequences, temperature)[0],
            )


def test_top_alternatives_are_the_likeliest_tokens(policy, ragged):
    sequences = ragged(policy)
    ids, values = top_alternatives(policy, hidden_states(policy, sequences), 4, temperature=0.8)
    expected = torch.cat(
        [dense_log_softmax(policy, sequences, row, 0.8)[0] for row in range(3)]
    ).topk(4, -1)
    close(values, expected.values)
    assert torch.equal(ids, expected.indices)
    assert not values.requires_grad


# --- empty selections -----------------------------------------------------------------------------


def test_an_empty_selection_gives_empty_results_that_can_be_differentiated(policy, ragged):
    whole = ragged(policy)
    empty = Sequences(
        whole.prompt_ids,
        whole.prompt_mask,
        whole.completion_ids,
        torch.zeros_like(whole.completion_mask),
    )
    hidden = hidden_states(policy, empty)
    assert hidden.shape == (0, 64)
    logps, entropy = token_logps(policy, hidden, targets(empty))
    divergence = token_divergence(policy, hidden, policy, hidden.detach())
    assert logps.shape == entropy.shape == divergence.shape == (0,)
    (logps.sum() + divergence.sum()).backward()
    assert torch.count_nonzero(unflatten(logps, empty.completion_mask)) == 0
    policy.model.zero_grad()


def test_top_alternatives_of_nothing_are_empty(policy, ragged):
    ids, values = top_alternatives(policy, hidden_states(policy, ragged(policy))[:0], 4)
    assert ids.shape == values.shape == (0, 4)


# --- precision ------------------------------------------------------------------------------------


def test_pitfall_09_a_bf16_model_gives_float32_log_probabilities(make_model, ragged, monkeypatch):
    monkeypatch.setattr(loading, "compute_dtype", lambda device: torch.bfloat16)
    policy = load_policy(make_model(), "none")
    sequences = ragged(policy)
    hidden = hidden_states(policy, sequences)
    assert hidden.dtype == torch.bfloat16
    logps, entropy = token_logps(policy, hidden, targets(sequences), chunk=5)
    assert logps.dtype == entropy.dtype == torch.float32
    # The head multiplies in bf16; from its logits on all is float32. A softmax in bf16 is off by
    # more than a thousandth.
    expected = torch.log_softmax(policy.head(hidden).float() / 0.7, -1).gather(
        -1, targets(sequences)[:, None]
    )[:, 0]
    close(token_logps(policy, hidden, targets(sequences), 0.7)[0], expected)
    assert token_divergence(policy, hidden, policy, hidden).dtype == torch.float32
    assert top_alternatives(policy, hidden, 3)[1].dtype == torch.float32


@pytest.fixture
def wide_products(monkeypatch):
    """As on CUDA: a product of 16-bit matrices whose sums are not rounded to 16 bit."""
    mm = torch.mm
    monkeypatch.setattr(logprobs, "_sums_stay_wide", lambda device, dtype: dtype == torch.bfloat16)
    monkeypatch.setattr(
        torch,
        "mm",
        lambda a, b, out_dtype=None: (
            mm(a, b) if out_dtype is None else mm(a.to(out_dtype), b.to(out_dtype))
        ),
    )
    monkeypatch.setattr(loading, "compute_dtype", lambda device: torch.bfloat16)


def test_pitfall_09_logits_of_a_bf16_model_are_not_rounded_where_the_device_can(
    make_model, ragged, wide_products
):
    policy = load_policy(make_model(), "none")
    sequences = ragged(policy)
    states = hidden_states(policy, sequences).detach().requires_grad_()
    ids = targets(sequences)
    log_probs = (states.float() @ policy.head.weight.float().T).log_softmax(-1)
    expected = log_probs.gather(-1, ids[:, None])[:, 0]
    torch.testing.assert_close(token_logps(policy, states, ids)[0], expected)
    apart = token_divergence(policy, states, policy, states.detach() * 1.1, topk=4)
    assert float(torch.autograd.grad(apart.sum(), states)[0].norm()) > 0
    dense = DenseCopy(policy)
    for way in (dense.decoder, OwnForward(policy.causal_lm)):
        prompt = sequences.prompt_ids, sequences.prompt_mask
        cache, first = way.prefill(*prompt, 1, 2)
        then = way.step(ids[: len(first)], sequences.prompt_mask.sum(1), cache)
        for logits in (first, then):
            assert logits.dtype == torch.float32
            assert not torch.equal(logits, logits.bfloat16().float())


def test_pitfall_09_float64_is_not_rounded(make_model, ragged):
    policy = load_policy(make_model(), "none")
    policy.model.double()
    logps, _ = policy_logps(policy, ragged(policy))
    assert logps.dtype == torch.float64


# --- memory ---------------------------------------------------------------------------------------


def head_alone(vocabulary, width=8, seed=0):
    """A language model that is an output head and nothing else."""
    head = nn.Linear(width, vocabulary, bias=False).requires_grad_(False)
    nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(seed))

    class Stub(LanguageModel):
        head = property(lambda self: self.model)  # type: ignore[assignment]

    return Stub(head, None, "stub", "none")  # type: ignore[arg-type]


class Largest(TorchDispatchMode):
    """The largest number of elements of any tensor that an operation gives back."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return result


@pytest.mark.parametrize("what", ["logps", "reverse", "top-k"])
def test_pitfall_10_logits_of_all_tokens_are_never_held(what):
    tokens, vocabulary, chunk = 60, 4096, 4
    lm, teacher = head_alone(vocabulary), head_alone(vocabulary, seed=1)
    hidden = torch.randn(tokens, 8, generator=torch.Generator().manual_seed(2)).requires_grad_()
    saved = []

    def forward():
        if what == "logps":
            return token_logps(lm, hidden, torch.arange(tokens), chunk=chunk)[0]
        return token_divergence(
            lm,
            hidden,
            teacher,
            hidden.detach(),
            "reverse",
            topk=16 if what == "top-k" else None,
            chunk=chunk,
        )

    with (
        Largest() as seen,
        torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x),
    ):
        value = forward()
    saved = [one.numel() for one in saved if one.data_ptr() != lm.head.weight.data_ptr()]
    # between forward and backward only what the recomputation starts from
    assert sum(saved) <= tokens * (2 * 8 + 4)
    with seen:
        value.sum().backward()
    # a (chunk, V) tensor at most, and the head's weight
    assert seen.elements <= max(chunk, 8) * vocabulary
    assert hidden.grad is not None


def test_pitfall_10_the_default_chunk_bounds_the_logits(monkeypatch):
    monkeypatch.setattr("rlkd_lab.models.logprobs.CHUNK_MIB", 1)
    lm = head_alone(4096)
    with Largest() as seen, torch.no_grad():
        top_alternatives(lm, torch.randn(200, 8), 3)
        token_logps(lm, torch.randn(200, 8), torch.arange(200))
    assert seen.elements <= 2**18


def test_pitfall_10_the_backbone_alone_is_asked_for_hidden_states(make_model, ragged):
    policy = load_policy(make_model(), "none")
    calls = []
    policy.head.register_forward_hook(lambda module, args, out: calls.append(out.shape))
    hidden = hidden_states(policy, ragged(policy))
    assert calls == []
    # padding never reaches the head
    assert len(hidden) == int(ragged(policy).completion_mask.sum())


def test_a_head_with_a_bias_and_its_gradient_in_float64():
    generator = torch.Generator().manual_seed(5)
    lm = head_alone(50)
    lm.model.double()
    lm.model.bias = nn.Parameter(torch.randn(50, generator=generator).double(), requires_grad=False)
    hidden = torch.randn(7, 8, generator=generator).double().requires_grad_()
    ids = torch.randint(50, (7,), generator=generator)
    assert torch.autograd.gradcheck(
        lambda states: token_logps(lm, states, ids, 0.7, chunk=3)[0], hidden
    )
    expected = torch.log_softmax(lm.model(hidden) / 0.7, -1)
    close(token_logps(lm, hidden, ids, 0.7)[0], expected.gather(-1, ids[:, None])[:, 0], 1e-12)
    close(
        token_logps(lm, hidden, ids, 0.7)[1], -(expected.exp() * expected).sum(-1).detach(), 1e-12
    )


def test_all_divergences_of_one_pass_are_those_of_a_pass_each(pair, ragged):
    policy, teacher = pair
    hidden, theirs = (hidden_states(lm, ragged(policy)).detach() for lm in (policy, teacher))
    found = measured_divergences(
        policy, hidden, teacher, theirs, ("reverse", "forward", "jsd"), {1.0, 0.6}
    )
    assert len(found) == 6
    for (kind, temperature), values in found.items():
        close(
            values, token_divergence(policy, hidden, teacher, theirs, kind, temperature=temperature)
        )


# --- what the objectives make of it ---------------------------------------------------------------


def test_pitfall_14_a_dropped_completion_weighs_nothing_and_a_group_of_one_is_an_error(
    policy, ragged
):
    sequences = ragged(policy)
    logps, _ = policy_logps(policy, sequences)
    rewards, groups = torch.tensor([1.0, 0.0, 1.0]), torch.zeros(3, dtype=torch.long)
    kept = sequences.completion_mask * torch.tensor([1, 0, 1])[:, None]
    options = {"aggregation": "token"}

    def batch(logps, mask):
        return TokenBatch(
            logps=logps,
            old_logps=logps.detach(),
            completion_mask=mask,
            rewards=rewards,
            correct=rewards,
            group_ids=groups,
        )

    whole, dropped = (
        gradients_of_rows(prepare("grpo", batch(logps, mask), {}, options), options, logps)
        for mask in (sequences.completion_mask, kept)
    )
    assert float(whole[1].abs().max()) > 0
    assert float(dropped[1].abs().max()) == 0
    # it still counts in its group's mean, and no longer in the number of tokens
    torch.testing.assert_close(
        dropped[0], whole[0] * float(sequences.completion_mask.sum()) / float(kept.sum())
    )
    with pytest.raises(ValueError, match="group of one completion has no spread"):
        prepare(
            "grpo",
            TokenBatch(
                logps=logps,
                completion_mask=kept,
                rewards=rewards,
                correct=rewards,
                group_ids=torch.arange(3),
            ),
            {},
            {},
        )


def gradients_of_rows(batch, options, logps):
    loss, _ = token_loss("grpo", batch, {"kl_coef": 0.0}, options)
    return torch.autograd.grad(loss, logps, retain_graph=True)[0]


def test_pitfall_14_group_statistics_are_not_taken_in_sixteen_bit():
    from rlkd_lab.objectives.advantages import group_advantages

    rewards, groups = (
        torch.tensor([0.5, 0.50390625, 0.5, 0.50390625], dtype=torch.bfloat16),
        torch.zeros(4, dtype=torch.long),
    )
    assert group_advantages(rewards, groups).dtype == torch.float32
    close(
        group_advantages(rewards, groups), group_advantages(rewards.double(), groups).float(), 1e-6
    )


def test_log_probabilities_of_the_base_are_those_of_the_plain_model(make_model, ragged):
    model, tokenizer = load_base(make_model(), "nf4")
    lm = LanguageModel(model, tokenizer, "plain", "nf4")
    close(
        policy_logps(lm, ragged(lm))[0][ragged(lm).completion_mask.bool()],
        dense_logps(lm, ragged(lm))[0],
    )
