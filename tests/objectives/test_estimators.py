"""Properties of the estimators and of the exact divergences, over random policies."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import close, gradient, kl, one_token_policy, random

from rlkd_lab.objectives import divergence, forward_kl, k1, k2, k3, reverse_kl
from rlkd_lab.objectives.estimators import jsd, topk_with_tail

SIZE = 6
FEW = settings(max_examples=25, deadline=None, derandomize=True, database=None)
LOGITS = st.lists(st.floats(-8, 8), min_size=SIZE, max_size=SIZE).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)
WEIGHTS = st.sampled_from([0.0, 1.0]) | st.floats(
    0.01, 0.99
)  # the ends are a convention: a KL, and not the limit, which is 0
DIVERGENCES = {
    "reverse": reverse_kl,
    "forward": forward_kl,
    "jsd .5": jsd,
    "jsd .1": lambda p, q: jsd(p, q, 0.1),
}
EACH = pytest.mark.parametrize("measure", DIVERGENCES.values(), ids=DIVERGENCES)


# --- sampled estimators ---------------------------------------------------------------------------


@FEW
@given(LOGITS, LOGITS)
def test_k2_and_k3_are_never_negative_and_zero_for_equal_inputs(a, b):
    for estimator in (k2, k3):
        assert (estimator(a, b) >= 0).all()
        assert (estimator(a, a) == 0).all()
    close(k1(a, b), -k1(b, a))


def test_estimators_by_hand():
    logps, other = torch.tensor([0.0]), torch.tensor([-0.5])
    assert k1(logps, other).item() == pytest.approx(0.5)
    assert k2(logps, other).item() == pytest.approx(0.125)
    assert k3(logps, other).item() == pytest.approx(0.1065307)  # exp(−½) + ½ − 1


def test_k3_keeps_its_digits_for_tiny_ratios():
    # exp(R) − R − 1 in float32 is mostly rounding here: ½R² = 5e-9 beside a rounding of 6e-8
    tiny = torch.tensor([1e-4, -1e-4])
    torch.testing.assert_close(k3(torch.zeros(2), tiny), 0.5 * tiny.square(), rtol=5e-3, atol=0.0)


# --- exact divergences ----------------------------------------------------------------------------


@EACH
@FEW
@given(a=LOGITS, b=LOGITS)
def test_divergences_are_never_negative_and_zero_for_equal_inputs(measure, a, b):
    log_p, log_q = a.log_softmax(-1), b.log_softmax(-1)
    assert measure(log_p, log_q) >= -1e-12
    close(measure(log_p, log_p), torch.zeros((), dtype=torch.float64))
    if (log_p - log_q).abs().max() > 1.0:
        assert measure(log_p, log_q) > 1e-9


@FEW
@given(LOGITS, LOGITS, WEIGHTS)
def test_jsd_mirrors_its_weight(a, b, weight):
    log_p, log_q = a.log_softmax(-1), b.log_softmax(-1)
    close(jsd(log_p, log_q), jsd(log_q, log_p))
    close(jsd(log_p, log_q, weight), jsd(log_q, log_p, 1 - weight))


@FEW
@given(LOGITS, LOGITS, st.floats(0.01, 0.99))
def test_jsd_is_at_most_the_entropy_of_its_coin(a, b, weight):
    coin = torch.tensor([weight, 1 - weight], dtype=torch.float64)
    assert jsd(a.log_softmax(-1), b.log_softmax(-1), weight) <= -(coin * coin.log()).sum() + 1e-12


@FEW
@given(LOGITS, LOGITS)
def test_the_ends_equal_kl_div_of_torch(a, b):
    log_p, log_q = a.log_softmax(-1), b.log_softmax(-1)
    of_teacher = F.kl_div(
        log_p, log_q, log_target=True, reduction="sum"
    )  # torch: kl_div(input, target) = KL(target‖input)
    of_student = F.kl_div(log_q, log_p, log_target=True, reduction="sum")
    for value in (
        forward_kl(log_p, log_q),
        jsd(log_p, log_q, 0.0),
        divergence("forward", log_p, log_q),
    ):
        close(value, of_teacher)
    for value in (
        reverse_kl(log_p, log_q),
        jsd(log_p, log_q, 1.0),
        divergence("reverse", log_p, log_q),
    ):
        close(value, of_student)
    close(divergence("jsd", log_p, log_q, 0.3), jsd(log_p, log_q, 0.3))


def test_exact_gradients_by_finite_differences():
    teacher = random(2, SIZE, seed=1).log_softmax(-1)
    for measure in DIVERGENCES.values():
        assert torch.autograd.gradcheck(
            lambda logits, measure=measure: measure(logits.log_softmax(-1), teacher),
            random(2, SIZE).requires_grad_(),
        )


def test_exact_reverse_kl_has_the_gradient_that_k2_has_in_expectation():
    student, teacher = one_token_policy(0), one_token_policy(1).detach().log_softmax(-1)
    logps = student.log_softmax(-1)
    sampled = (logps.detach().exp() * k2(logps, teacher)).sum()
    close(gradient(reverse_kl(logps, teacher), student), gradient(sampled, student))
    close(reverse_kl(logps, teacher), kl(logps, teacher))


# --- top-k with a tail ----------------------------------------------------------------------------


@EACH
@FEW
@given(a=LOGITS, b=LOGITS, k=st.integers(1, SIZE))
def test_topk_with_tail_lies_between_zero_and_the_exact_value(measure, a, b, k):
    log_p, log_q = a.log_softmax(-1), b.log_softmax(-1)
    coarse_p, coarse_q = topk_with_tail(log_p, log_q, k)
    assert -1e-12 <= measure(coarse_p, coarse_q) <= measure(log_p, log_q) + 1e-12
    for coarse in (coarse_p, coarse_q):
        close(coarse.exp().sum(), torch.ones((), dtype=torch.float64))


@FEW
@given(LOGITS, LOGITS)
def test_topk_of_the_whole_vocabulary_changes_nothing(a, b):
    log_p, log_q = a.log_softmax(-1), b.log_softmax(-1)
    assert topk_with_tail(log_p, log_q, SIZE) == (log_p, log_q)
    # merging a single token into the tail merges nothing
    close(reverse_kl(*topk_with_tail(log_p, log_q, SIZE - 1)), reverse_kl(log_p, log_q))


def test_topk_keeps_the_likeliest_tokens_of_the_teacher():
    log_p = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).log()
    log_q = torch.tensor([0.5, 0.2, 0.3, 0.0], dtype=torch.float64).log()
    coarse_p, coarse_q = topk_with_tail(log_p, log_q, 2)
    close(coarse_q.exp(), torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64))
    close(coarse_p.exp(), torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64))


def test_without_the_tail_the_value_would_be_negative():
    log_p, log_q = (
        torch.tensor(probabilities, dtype=torch.float64).log()
        for probabilities in ([0.05, 0.05, 0.9], [0.5, 0.4, 0.1])
    )
    coarse_p, coarse_q = topk_with_tail(log_p, log_q, 2)
    assert reverse_kl(coarse_p[:2], coarse_q[:2]) < 0 < reverse_kl(coarse_p, coarse_q)


def test_topk_tail_keeps_its_digits_where_the_top_holds_nearly_everything():
    logits = torch.tensor([60.0, 0.0, 0.0], dtype=torch.float64)
    log_p, log_q = logits.log_softmax(-1), logits.log_softmax(-1)
    tail = topk_with_tail(log_p, log_q, 1)[0][1]
    close(
        tail,
        torch.tensor(-60.0, dtype=torch.float64) + torch.tensor(2.0, dtype=torch.float64).log(),
    )


# --- excluded tokens: log-probability −inf --------------------------------------------------------

# logits of the student and of the teacher, and where the result is finite
OUT = -torch.inf
EXCLUDED = {
    "student excludes": ([0.3, OUT, 1.0, -0.5], [0.1, 0.5, 0.2, 0.9], {"reverse", "jsd"}),
    "teacher excludes": ([0.3, 0.2, 1.0, -0.5], [0.1, OUT, 0.2, 0.9], {"forward", "jsd"}),
    "both exclude": ([0.3, OUT, 1.0, -0.5], [0.1, OUT, 0.2, 0.9], {"reverse", "forward", "jsd"}),
    "each excludes another": ([OUT, 0.2, 1.0, -0.5], [0.1, OUT, 0.2, 0.9], {"jsd"}),
}
CASES = [(case, kind) for case, (_, _, finite) in EXCLUDED.items() for kind in sorted(finite)]


def kept_apart(kind, log_p, log_q):
    """The same divergence, by plain probabilities and with 0·log 0 = 0."""
    p, q = log_p.exp(), log_q.exp()
    if kind != "jsd":
        p, q = (p, q) if kind == "reverse" else (q, p)
        return sum(a * (a / b).log() for a, b in zip(p, q, strict=True) if a > 0)
    m = (p + q) / 2
    return sum(a * (a / c).log() / 2 for x in (p, q) for a, c in zip(x, m, strict=True) if a > 0)


@pytest.mark.parametrize(("case", "kind"), CASES)
def test_excluded_tokens_leave_value_and_gradient_finite(case, kind):
    student, teacher, _ = EXCLUDED[case]
    logits = torch.tensor(student, dtype=torch.float64, requires_grad=True)
    log_q = torch.tensor(teacher, dtype=torch.float64).log_softmax(-1)
    value = divergence(kind, logits.log_softmax(-1), log_q)
    close(value, kept_apart(kind, logits.detach().log_softmax(-1), log_q))
    of_logits = gradient(value, logits)
    assert of_logits.isfinite().all(), of_logits
    # against central differences of the tokens that the student does not exclude
    open_tokens = logits.detach().isfinite()

    def of_open(values):
        return divergence(
            kind, logits.detach().masked_scatter(open_tokens, values).log_softmax(-1), log_q
        )

    for token, index in enumerate(open_tokens.nonzero().flatten()):
        step = torch.zeros(int(open_tokens.sum()), dtype=torch.float64)
        step[token] = 1e-5
        at = logits.detach()[open_tokens]
        assert of_logits[index].item() == pytest.approx(
            ((of_open(at + step) - of_open(at - step)) / 2e-5).item(), abs=1e-8
        )


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("kind", ["reverse", "forward", "jsd"])
def test_an_empty_tail_leaves_value_and_gradient_finite(kind, k):
    # padding of the vocabulary: both models exclude the last two tokens, and at k = 2 and more
    # nothing else is left in the tail
    logits = torch.tensor([0.4, -0.3, OUT, OUT], dtype=torch.float64, requires_grad=True)
    log_q = torch.tensor([0.9, 0.1, OUT, OUT], dtype=torch.float64).log_softmax(-1)
    value = divergence(kind, *topk_with_tail(logits.log_softmax(-1), log_q, k))
    close(value, divergence(kind, logits[:2].log_softmax(-1), log_q[:2]))
    assert gradient(value, logits).isfinite().all(), gradient(value, logits)


def test_a_teacher_that_excludes_what_the_student_says_is_infinitely_far():
    log_p, log_q = torch.tensor([0.5, 0.5]).log(), torch.tensor([1.0, 0.0]).log()
    assert reverse_kl(log_p, log_q) == torch.inf
    assert jsd(log_p, log_q).isfinite()


# --- bad inputs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0, -1, SIZE + 1])
def test_topk_outside_the_vocabulary_is_refused(k):
    log_p = random(SIZE).log_softmax(-1)
    with pytest.raises(ValueError, match=f"1 ≤ k ≤ {SIZE}"):
        topk_with_tail(log_p, log_p, k)


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_jsd_weight_out_of_range_is_refused(weight):
    log_p = random(SIZE).log_softmax(-1)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        jsd(log_p, log_p, weight)


def test_unknown_divergence_is_refused_with_the_valid_names():
    log_p = random(SIZE).log_softmax(-1)
    with pytest.raises(ValueError, match="'reverse', 'forward' or 'jsd'"):
        divergence("reversed", log_p, log_p)
