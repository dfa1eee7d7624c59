"""What is wrong with the common bugs, by enumeration on a toy vocabulary: the reason why the
table does not have them.
"""

import pytest
import torch

from rlkd_lab.lab import check_method
from rlkd_lab.lab.course.common_bugs import COMMON_BUGS, add_common_bugs
from rlkd_lab.objectives import TokenBatch, adding, methods, reverse_kl, token_loss

VOCABULARY = 7


@pytest.fixture(autouse=True)
def added():
    add_common_bugs()
    yield
    for name in COMMON_BUGS:
        methods._table.pop(name)
        adding._added.discard(name)


def expected_gradient(method, coefs, seed=0):
    """Exact expectation over one sampled token, with equal rewards so that Â = 0: (gradient,
    ∇KL(π_θ‖π_T)).
    """
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(VOCABULARY, generator=generator, dtype=torch.float64, requires_grad=True)
    theirs = torch.randn(VOCABULARY, generator=generator, dtype=torch.float64).log_softmax(0)
    probabilities = logits.detach().softmax(0)
    total = torch.zeros(VOCABULARY, dtype=torch.float64)
    for token in range(VOCABULARY):
        logps = logits.log_softmax(0)[token].expand(2, 1)
        batch = TokenBatch(
            logps=logps,
            completion_mask=torch.ones(2, 1),
            teacher_logps=theirs[token].expand(2, 1),
            rewards=torch.ones(2, dtype=torch.float64),
            correct=torch.ones(2),
            group_ids=torch.zeros(2, dtype=torch.long),
        )
        loss, _ = token_loss(method, batch, coefs)
        (gradient,) = torch.autograd.grad(loss, logits)
        total += probabilities[token] * gradient
    (right,) = torch.autograd.grad(reverse_kl(logits.log_softmax(0), theirs).sum(), logits)
    return total, right


@pytest.mark.parametrize("seed", range(3))
def test_k1_as_a_loss_leaves_the_teacher_without_influence(seed):
    for name in ("kdrl_k1", "kdrl_k1_flipped"):
        gradient, right = expected_gradient(name, {"kd_coef": 1.0}, seed)
        assert gradient.abs().max() < 1e-12 < right.norm()


@pytest.mark.parametrize("seed", range(3))
def test_the_flipped_sign_drives_the_student_away(seed):
    gradient, right = expected_gradient("kdrl_flipped", {"kd_coef": 1.0}, seed)
    assert torch.allclose(gradient, -right, atol=1e-12)
    for name in ("kdrl", "kdrl_advantage"):  # and these two are right
        assert torch.allclose(expected_gradient(name, {"kd_coef": 1.0}, seed)[0], right, atol=1e-12)


@pytest.mark.parametrize("name", COMMON_BUGS)
def test_the_checks_of_a_method_catch_each_of_them(name):
    found = check_method(name).set_index("check")["passed"]
    assert not found["teacher in expectation"]
    assert check_method("kdrl").set_index("check")["passed"]["teacher in expectation"]
