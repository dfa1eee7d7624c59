"""Every method of the kit passes its checks, and methods that are broken on purpose fail the
one that is meant for the mistake.
"""

from dataclasses import replace

import pytest
import torch

from rlkd_lab.lab import check_method
from rlkd_lab.lab.course.method_checks import CHECKS
from rlkd_lab.objectives import METHODS, add_method, adding, k1, k2, methods
from rlkd_lab.objectives.rules import reward_advantage, teacher_advantage, teacher_penalty

CHECKED = [name for name in METHODS if name not in ("sft", "rft")]
"""Those two only know the likelihood of the teacher's tokens: expectations over the student's
say nothing of them.
"""
LIMITS = {
    "kdrl": {"kd_coef": 0.0},
    "kdrl_advantage": {"kd_coef": 0.0},
    "kdrl_masked": {"kd_coef": 0.0},
    "kdrl_annealed": {"kd_coef": 0.0},
    "hdpo": {"kd_coef": 0.0},
    "opd_then_rl": {"kd_coef": 0.0},
    "trrd": {"trrd_alpha": 1.0, "trrd_gap_bound": None, "ratio_cap": None},
    "rlsd": {"gap_weight": 0.0},
    "safopd": {"kd_coef": 0.0},
    "sdar": {"kd_coef": 0.0},
}
EXACTLY = {
    "opd": "1",
    "kdrl": "0.1",
    "kdrl_advantage": "0.1",
    "kdrl_annealed": "0.2",
    "kdrl_masked": "0.1",
    "opd_then_rl": "1",
    "srpo": "1",
    "vopd": "1",
    "exopd": "1.2",
    "hdpo": "0.1",
}
"""Weight of ∇KL(π_θ‖π_T) that the defaults promise."""


@pytest.fixture(autouse=True)
def _tidy():
    before = dict(METHODS)
    yield
    for name in set(METHODS) - set(before):
        methods._table.pop(name)
        adding._added.discard(name)


def checked(reduces_to="grpo", at=None, base="kdrl", **row):
    """``passed`` and ``measured`` of a method made from a row of the kit, by check."""
    add_method("mine", replace(METHODS[base], **row))
    table = check_method("mine", reduces_to, {"kd_coef": 0.0} if at is None else at).set_index(
        "check"
    )
    assert table["measured"].str.len().max() <= 110  # what a notebook shows of a cell
    return table["passed"], table["measured"]


@pytest.mark.parametrize("name", CHECKED)
def test_every_method_passes(name):
    table = check_method(name, "grpo" if name in LIMITS else None, LIMITS.get(name)).set_index(
        "check"
    )
    assert tuple(table.index) == CHECKS
    passed, measured, needs = table["passed"], table["measured"], METHODS[name].needs
    assert passed.drop("teacher = student").all()
    # SDAR pushes up whatever was written: with a teacher that agrees only the mean is 0
    assert passed.fillna(True)["teacher = student"] == (name != "sdar")
    # what does not apply, and why
    apart = {check for check in CHECKS if passed.isna()[check]}
    expected = set() if name in LIMITS else {"limit"}
    expected |= {"teacher = student"} if "teacher" not in needs or "divergence" in needs else set()
    expected |= {"teacher in expectation"} if "teacher" not in needs else set()
    rewarded = "groups" in needs and METHODS[name].advantage is not None
    expected |= set() if rewarded else {"reward in expectation"}
    assert apart == expected
    if name in EXACTLY:
        assert measured["teacher in expectation"] == f"{EXACTLY[name]}·∇KL(π_θ‖π_T), exactly"
    if name == "kd_forward":
        assert measured["teacher in expectation"] == "1·∇KL(π_T‖π_θ), exactly"
    if rewarded and name not in (
        "trrd",
        "rlsd",
        "grpd",
    ):  # there the teacher sizes the reward's update
        share = {"chord": "0.9"}.get(name, "1")
        assert measured["reward in expectation"] == f"{share}·∇(−E[r]), exactly"


@pytest.mark.parametrize("name", ["sft", "rft"])
def test_a_method_on_teacher_traces_alone_is_refused_in_words(name):
    with pytest.raises(ValueError, match="trained on teacher traces"):
        check_method(name)


def test_k3_follows_the_forward_kl_and_says_so():
    passed, measured = checked(options={"estimator": "k3", "aggregation": "token"})
    assert passed.all()
    assert measured["teacher in expectation"] == "0.1·∇KL(π_T‖π_θ), exactly"


def test_the_exact_divergence_is_checked_too():
    passed, measured = checked(options={"estimator": "exact", "aggregation": "token"})
    assert passed.all()
    assert measured["teacher in expectation"] == "0.1·∇KL(π_θ‖π_T), exactly"


# --- broken on purpose ----------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_k1_as_a_loss_is_caught_in_expectation(sign):
    passed, measured = checked(
        penalty=lambda batch, log_ratio, coefs, options: (
            sign * coefs["kd_coef"] * k1(batch.logps, batch.teacher_logps)
        )
    )
    assert not passed["teacher in expectation"]
    assert "the teacher drops out" in measured["teacher in expectation"]
    assert passed["limit"]
    assert passed["finite differences"]


def test_a_reversed_teacher_is_caught_in_expectation():
    def advantage(batch, coefs, options):
        return reward_advantage(batch, coefs, options) - teacher_advantage(batch, coefs, options)

    for row in (
        {"base": "kdrl_advantage", "advantage": advantage},
        {"penalty": lambda *rule: -teacher_penalty(*rule)},
    ):
        passed, measured = checked(**row)
        assert not passed["teacher in expectation"]
        assert (
            measured["teacher in expectation"]
            == "pushes AWAY from the teacher (cosine -1.00): -0.1·∇KL(π_θ‖π_T), exactly"
        )
        assert passed.drop("teacher in expectation").all()  # nothing else can see it


def test_a_bounded_teacher_is_allowed_and_a_reversed_one_still_caught():
    def advantage(batch, coefs, options, sign=1):
        gap = sign * (batch.teacher_logps - batch.old).clamp(-2, 2)
        return reward_advantage(batch, coefs, options) + coefs["kd_coef"] * gap

    passed, measured = checked(base="kdrl_advantage", advantage=advantage)
    assert passed.all()
    assert (
        "none of these" in measured["teacher in expectation"]
    )  # no longer the gradient of a KL, and that is said
    passed, measured = checked(
        base="kdrl_advantage", advantage=lambda *rule: advantage(*rule, sign=-1)
    )
    assert "pushes AWAY" in measured["teacher in expectation"]


def test_a_reversed_reward_is_caught_in_expectation():
    passed, measured = checked(advantage=lambda *rule: -reward_advantage(*rule))
    assert not passed["reward in expectation"]
    assert "pushes AWAY from the reward (cosine -1.00)" in measured["reward in expectation"]
    assert not passed["limit"]


def test_a_reward_that_drops_out_is_caught():
    passed, measured = checked(advantage=lambda *rule: 0 * reward_advantage(*rule))
    assert not passed["reward in expectation"]
    assert "the reward drops out" in measured["reward in expectation"]


def test_a_missing_detach_is_caught_with_a_teacher_that_agrees():
    def penalty(batch, log_ratio, coefs, options, detach=False):
        gap = batch.teacher_logps - batch.logps
        return -coefs["kd_coef"] * (gap.detach() if detach else gap) * batch.logps

    passed, measured = checked(penalty=penalty)
    assert not passed["teacher = student"]
    assert "is a detach missing" in measured["teacher = student"]
    passed, measured = checked(penalty=lambda *rule: penalty(*rule, detach=True))
    assert passed.all()
    assert measured["teacher in expectation"] == "0.1·∇KL(π_θ‖π_T), exactly"


def test_a_normaliser_of_the_micro_batch_is_caught_by_splitting():
    def penalty(batch, log_ratio, coefs, options):
        return (
            coefs["kd_coef"]
            * k2(batch.logps, batch.teacher_logps)
            * batch.completion_mask.numel()
            / batch.mask.sum().clamp(min=1)
        )

    passed, measured = checked(penalty=penalty)
    assert not passed["micro-batches"]
    assert "a rule looks at all rows" in measured["micro-batches"]


def test_a_gradient_that_leaves_the_graph_is_caught_by_finite_differences():
    def penalty(batch, log_ratio, coefs, options):
        return coefs["kd_coef"] * k2(
            torch.tensor(batch.logps.tolist(), dtype=torch.float64), batch.teacher_logps
        )

    passed, measured = checked(penalty=penalty)
    assert not passed["finite differences"]
    assert "leaves the graph" in measured["finite differences"]


def test_padding_that_counts_is_caught():
    def penalty(batch, log_ratio, coefs, options):
        return (
            coefs["kd_coef"] * k2(batch.logps, batch.teacher_logps).mean(1, keepdim=True)
            + 0 * batch.logps
        )

    passed, measured = checked(penalty=penalty)
    assert not passed["padding"]
    assert "a mean over columns counts padding" in measured["padding"]


def test_a_limit_that_is_not_reached_is_caught():
    passed, measured = checked(
        penalty=lambda batch, log_ratio, coefs, options: 0.1 * k2(batch.logps, batch.teacher_logps)
    )
    assert not passed["limit"]
    assert measured["limit"].startswith("at kd_coef=0, value and gradient differ from grpo's by")
    assert not check_method("kdrl", "dr_grpo", {"kd_coef": 0.5}).set_index("check")["passed"][
        "limit"
    ]


def test_a_teacher_that_is_only_looked_at_is_caught():
    passed, measured = checked(penalty=None)
    assert not passed["teacher in expectation"]
    assert "the teacher drops out" in measured["teacher in expectation"]


def test_a_method_sees_only_what_its_needs_promise():
    add_method("mine", replace(METHODS["kdrl"], needs=frozenset({"groups"})))
    with pytest.raises(AssertionError):
        check_method("mine")


@pytest.mark.parametrize(
    ("factor", "words"), [(float("nan"), "is not finite"), (None, "hardly follows the reward")]
)
def test_a_reward_term_that_is_not_finite_or_hardly_there_is_caught(factor, words):
    def advantage(batch, coefs, options):
        credit = METHODS["kdrl"].advantage(batch, coefs, options)
        return credit**2 if factor is None else credit * factor

    passed, measured = checked(advantage=advantage)
    assert not passed["reward in expectation"]
    assert words in measured["reward in expectation"]
