"""A stored top k says of a policy what the teacher in memory says, in value and gradient."""

from types import SimpleNamespace

import pytest
import torch

from rlkd_lab.models.logprobs import token_divergence, token_logps
from rlkd_lab.models.top_logps import joined_top, logps_and_top, top_divergence, top_of

SIZE, HIDDEN, COUNT = 40, 16, 30


def head(rows, width, spread, seed):
    """A model of which the output head alone is there."""
    draw = torch.Generator().manual_seed(seed)
    weight = spread * torch.randn(rows, width, generator=draw, dtype=torch.float64)
    return SimpleNamespace(head=SimpleNamespace(weight=weight, bias=None))


# a student with the teacher's tokens, one padded further, and one that is nearly sure
STUDENTS = {"same": (SIZE, 0.5), "padded": (SIZE + 8, 0.5), "sure": (SIZE, 500.0)}


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
@pytest.mark.parametrize("which", STUDENTS)
def test_a_stored_top_k_gives_value_and_gradient_of_the_teacher_in_memory(kind, which):
    student = head(STUDENTS[which][0], HIDDEN, STUDENTS[which][1], 1)
    teacher = head(SIZE, HIDDEN + 2, 1.0, 2)
    draw = torch.Generator().manual_seed(3)
    hidden, theirs = (
        torch.randn(COUNT, width, generator=draw, dtype=torch.float64)
        for width in (HIDDEN, HIDDEN + 2)
    )
    ids, weights = torch.arange(COUNT), torch.rand(COUNT, generator=draw)
    for k in (1, 7, SIZE):
        live, kept = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
        exact = token_divergence(
            student, live, teacher, theirs, kind, weight=0.3, topk=None if k == SIZE else k, chunk=7
        )
        logps, entropy = token_logps(student, live, ids, chunk=7)
        stored = top_of(teacher, theirs, max(k, 12), SIZE)  # and cut to k
        top = joined_top([stored if k > 12 else stored.cut(k)])
        found = logps_and_top(student, kept, ids, top, chunk=7)
        value = top_divergence(found[2], top, kind, 0.3)
        torch.testing.assert_close(value, exact, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found[:2], (logps, entropy))
        ((exact + logps) * weights).sum().backward()
        ((value + found[0]) * weights).sum().backward()
        torch.testing.assert_close(kept.grad, live.grad, rtol=1e-5, atol=1e-5)
