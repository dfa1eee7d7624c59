"""Losses written a second time and compared: value, and gradient in the student's logits.

These references were written from the sources before the package's rules were read. They start at
logits. Sources: notes on the papers. For OPDVR, vOPD, OPSA, PowerOPD, RG-OPD and SAF-OPD also the
authors' code; TRL for IW-OPD, and ports for REOPOLD, SDAR, EOPD and AOPD. For LUFFY copies of the
authors' code, for CHORD the authors' code, which adds 1e-6 to the spread where we add 1e-4.
Choices were taken from the package where the sources leave them open or differ. OPSA's
share is of a completion, rounded up. The importance weight leaves penalties alone, as in TRL. Old
log-probabilities stand in the gap. RG-OPD's mean is over all tokens. EOPD and AOPD look at the
whole vocabulary: with at most 8 words, these are the 16 likeliest of the paper.
A trace has no KL to the reference and no importance weight. Each term of CHORD has its own mean.
"""

import math
import random

import pytest
import torch

from rlkd_lab.objectives import METHODS, TokenBatch, token_loss

CASES = ("any", "on-policy", "all right", "all wrong", "one token", "teacher is student")
VALUES = {
    "rl_coef": (0.3, 1.0, 2.0),
    "kd_coef": (0.1, 1.0, 3.0),
    "kl_coef": (0.0, 0.0, 0.2),
    "clip_low": (0.0, 0.1, 0.2, 1.0),
    "clip_high": (0.0, 0.1, 0.28, 5.0),
    "ratio_cap": (None, 1.5, 3.0),
    "importance_cap": (None, None, 1.2),
    "extrapolation": (0.0, 0.5, 1.0, 1.25, 2.0),
    "push": (0.1, 0.5),
    "push_share": (0.1, 0.2, 0.5, 1.0),
    "trrd_alpha": (0.0, 0.3, 0.5, 1.0),
    "trrd_gap_bound": (None, 0.5, 1.0),
    "early_weight": (0.0, 0.5, 2.0),
    "gap_power": (0.1, 1.0, 5.0),
    "mixture": (0.1, 0.3, 0.5),
    "gap_share": (0.2, 1.0),
    "gap_scale": (0.1, 1.0),
    "gate_slope": (0.0, 1.0, 5.0),
    "gate_margin": (0.0, 0.0, 0.5),
    "unsure_above": (0.0, 0.8, 1.5),
    "cover_coef": (0.3, 1.0),
    "trace_gamma": (0.02, 0.1, 0.1, 1.0),
    "trace_weight": (0.0, 0.1, 0.1, 0.5, 1.0),
    "aggregation": ("token", "sequence", "constant"),
    "scale_rewards": ("group", "none"),
    "kd_mask": ("none", "wrong", "group_wrong"),
    "estimator": ("k2", "k3", "exact"),
    "kd_ratio": ("on", "off"),
    "ref_estimator": ("k3_ratio", "k3", "k2"),
    "level": ("token", "sequence"),
}
OPTIONS = {
    "grpo": ("scale_rewards",),
    "kdrl": ("scale_rewards", "kd_mask", "estimator", "kd_ratio"),
    "trrd": ("scale_rewards",),
    **dict.fromkeys(("opd", "opdvr", "grpd", "exopd", "vopd"), ("kd_mask",)),
    **dict.fromkeys(("iwopd", "poweropd", "reopold", "eopd", "aopd"), ("kd_mask",)),
    **dict.fromkeys(("safopd", "sdar"), ("scale_rewards", "kd_mask")),
    "rgopd": ("scale_rewards", "kd_mask", "level"),
    "opsa": (),
    **dict.fromkeys(("luffy", "chord"), ("scale_rewards",)),
}
WITH_TRACES = ("luffy", "chord")


def draw(method, seed):
    """Return a random rollout as logits, knobs and options."""
    choose = random.Random(f"{method} {seed}")
    generator = torch.Generator().manual_seed(choose.randrange(2**31))
    case = CASES[seed % len(CASES)]
    rows = "abc" if method in WITH_TRACES else "ab"
    groups = [3 * group for group in range(choose.randint(1, 3)) for _ in rows] + [0]
    choose.shuffle(groups)
    shape = len(groups), 1 if case == "one token" else choose.randint(2, 9), choose.randint(2, 8)

    def near(logits, spread):
        return logits + spread * torch.randn(shape, dtype=torch.float64, generator=generator)

    student = near(torch.zeros(shape, dtype=torch.float64), choose.choice((0.3, 1.0, 3.0)))
    same = case in ("on-policy", "teacher is student")
    old = near(student, 0.0 if same else choose.choice((0.1, 0.5)))
    teacher = near(student, 0.0 if case == "teacher is student" else choose.choice((1.0, 4.0)))
    correct = torch.tensor([choose.random() < 0.5 for _ in groups]).double()
    correct = {"all right": torch.ones, "all wrong": torch.zeros}.get(
        case, lambda *_, **__: correct
    )(len(groups), dtype=torch.float64)
    lengths = torch.tensor([choose.randint(0, shape[1]) for _ in groups])
    lengths[0] = shape[1]
    holes = torch.rand(shape[:2], generator=generator) < 0.1
    x = {
        "student": student.requires_grad_(),
        "old": old,
        "teacher": teacher,
        "frozen": near(student.detach(), 0.5),
        "sampler": near(old, 0.3),
        "tokens": torch.randint(shape[2], shape[:2], generator=generator),
        "mask": ((torch.arange(shape[1]) < lengths[:, None]) & ~holes).long(),
        "correct": correct,
        "rewards": correct + choose.choice((0.0, 0.3)) * near(student, 1.0)[:, 0, 0].detach(),
        "groups": torch.tensor(groups),
        "traces": torch.tensor([group not in groups[row + 1 :] for row, group in enumerate(groups)])
        & (method in WITH_TRACES),
        "heard": (torch.rand(shape[:2], generator=generator) < 0.8).double(),
    }
    if method == "trrd":  # its teacher is part of the ratio
        x["heard"] = torch.ones_like(x["heard"])
    coefs = {name: choose.choice(VALUES[name]) for name in METHODS[method].coefs}
    names = (*OPTIONS[method], "aggregation", "ref_estimator")
    options = {name: choose.choice(VALUES[name]) for name in names}
    if options["aggregation"] == "constant":
        options["constant_length"] = 7
    return x, coefs, options


# --- the references ---


def said(x, who):
    """Return a model's log-probabilities of the sampled tokens."""
    return x[who].log_softmax(-1).gather(-1, x["tokens"][..., None])[..., 0]


def reverse_kl(x):
    """Return KL(student‖teacher) of the next token."""
    ours, theirs = x["student"].log_softmax(-1), x["teacher"].log_softmax(-1)
    return (ours.exp() * (ours - theirs)).sum(-1)


def forward_kl(x):
    """Return KL(teacher‖student) of the next token."""
    ours, theirs = x["student"].log_softmax(-1), x["teacher"].log_softmax(-1)
    return (theirs.exp() * (theirs - ours)).sum(-1)


def group_relative(x, options, alone=False):
    """Return Â: the reward minus its group's mean, over standard deviation + 1e-4 or not.

    Where the student's rows are ``alone``, a trace has 0.
    """
    found = torch.zeros_like(x["rewards"])
    for group in x["groups"].unique():
        rows = (x["groups"] == group) & ~(x["traces"] & alone)
        rewards = x["rewards"][rows]
        spread = rewards.std() + 1e-4 if options.get("scale_rewards", "group") == "group" else 1.0
        found[rows] = (rewards - rewards.mean()) / spread
    return found


def least_likely(x, coefs):
    """Return −push on the share of a completion's least likely tokens, rounded up."""
    found = torch.zeros_like(said(x, "old"))
    for row, logps in enumerate(said(x, "old").tolist()):
        real = [(logp, at) for at, logp in enumerate(logps) if x["mask"][row, at]]
        for _, at in sorted(real)[: math.ceil(coefs["push_share"] * len(real))]:
            found[row, at] = -coefs["push"]
    return found


def advantage(method, x, coefs, options):
    """Return A of each token."""
    old, teacher = said(x, "old"), said(x, "teacher")
    if method == "opsa":
        return least_likely(x, coefs)
    reward = group_relative(x, options, alone=method == "chord")[:, None].expand_as(old)
    if method == "chord":
        return (1 - coefs["trace_weight"]) * reward
    gap = x["heard"] * x["mask"] * (teacher - old)
    if method == "safopd":
        return coefs["rl_coef"] * reward + said_loudest(x, gap, coefs) * speaks(x, options)
    if "rl_coef" in coefs:
        return coefs["rl_coef"] * reward
    if method in ("opdvr", "grpd"):  # max(0, log π_T/π) where right, −max(0, log π/π_T) where wrong
        praised = x["correct"][:, None] > 0 if method == "opdvr" else reward > 0
        blamed = ~praised if method == "opdvr" else reward < 0
        gap = torch.where(praised, gap.clamp(min=0), torch.where(blamed, gap.clamp(max=0), 0.0))
    if method == "exopd":  # λ·(log π_T − log π_ref) − (log π − log π_ref)
        frozen = said(x, "frozen")
        gap = coefs["extrapolation"] * (teacher - frozen) - (old - frozen)
    if method == "vopd":  # minus the value, which is −KL
        gap = gap + reverse_kl(x).detach()
    if method == "iwopd":  # 1 + γ before any disagreement, 1 after all of it
        size = gap.abs()
        before = torch.stack([size[:, :t].sum(1) for t in range(size.shape[1])], 1)
        gap = gap * (1 + coefs["early_weight"] * (1 - before / (size.sum(1)[:, None] + 1e-300)))
    if method == "poweropd":
        gap = teacher.exp() ** coefs["gap_power"] - old.exp() ** coefs["gap_power"]
    if method == "reopold":  # at the floor both parts of a mixture are equal
        gap = gap.clamp(min=math.log(coefs["mixture"]) - math.log(1 - coefs["mixture"]))
    if method == "aopd":
        gap = torch.where(teacher.exp() - old.exp() <= 0, 0.0, gap)
    return coefs["kd_coef"] * speaks(x, options) * gap


def said_loudest(x, gap, coefs):
    """Return c·tanh of the gaps that reach their completion's quantile of |d|."""
    found = torch.zeros_like(gap)
    for row, real in enumerate(x["mask"].bool()):
        if real.any():
            size = gap[row].abs()
            loud = real & (size >= size[real].quantile(1 - coefs["gap_share"]))
            found[row, loud] = coefs["gap_scale"] * gap[row, loud].tanh()
    return coefs["kd_coef"] * found


def penalty_of(method, x, coefs, options):
    """Return what a method adds to the policy term, before kd_coef."""
    now, old, teacher = (said(x, who) for who in ("student", "old", "teacher"))
    if method == "sdar":
        gap = teacher - now
        return gap / (1 + (-coefs["gate_slope"] * gap.detach()).exp())
    if method == "rgopd":
        gap = x["heard"] * x["mask"] * (teacher - old)
        gap = gap.sum(1, keepdim=True) if options["level"] == "sequence" else gap
        good = group_relative(x, options)[:, None] > 0
        margin = coefs["gate_margin"]
        return reverse_kl(x) * ((good & (gap > margin)) | (~good & (gap < -margin)))
    if method == "eopd":
        theirs = x["teacher"].log_softmax(-1)
        unsure = -(theirs.exp() * theirs).sum(-1) > coefs["unsure_above"]
        return torch.where(unsure, coefs["cover_coef"] * forward_kl(x), 0.0)
    return torch.where(teacher.exp() <= old.exp(), coefs["cover_coef"] * forward_kl(x), 0.0)


def trace_term(method, x, coefs, options):
    """Return the loss of each token as if a teacher had written it."""
    now = said(x, "student")
    p = now.exp()
    if method == "luffy":
        return -advantage(method, x, coefs, options) * p / (p + coefs["trace_gamma"])
    return -coefs["trace_weight"] * (p * (1 - p)).detach() * now


def speaks(x, options):
    """Return the mask of the teacher's term, (B, T)."""
    wrong = 1 - x["correct"]
    nobody = torch.stack([wrong[x["groups"] == group].prod() for group in x["groups"]])
    masks = {"none": torch.ones_like(wrong), "wrong": wrong, "group_wrong": nobody}
    return masks[options["kd_mask"]][:, None] * x["heard"]


def policy_term(method, x, coefs, options):
    """Return minus the clipped gain of each token, case by case."""
    now, old, teacher = (said(x, who) for who in ("student", "old", "teacher"))
    gain = advantage(method, x, coefs, options)
    if method == "opdvr":
        return -gain * now
    ratio = (now - old).exp()
    if method == "trrd":
        gap, bound = now - teacher, coefs["trrd_gap_bound"]
        gap = gap if bound is None else gap.clamp(-bound, bound)
        ratio = ratio ** coefs["trrd_alpha"] * ((1 - coefs["trrd_alpha"]) * gap).exp()
    praised = ratio.clamp(max=1 + coefs["clip_high"])
    blamed = ratio.clamp(min=1 - coefs["clip_low"])
    if coefs["ratio_cap"] is not None:
        blamed = blamed.clamp(max=coefs["ratio_cap"])
    return -gain * torch.where(gain > 0, praised, blamed)


def reference_loss(method, x, coefs, options):
    """Return the loss of a rollout."""
    now, old = said(x, "student"), said(x, "old")
    gated = method == "rgopd"
    loss = torch.zeros_like(now) if gated else policy_term(method, x, coefs, options)
    if coefs.get("importance_cap") is not None:
        loss = loss * (old - said(x, "sampler")).exp().clamp(max=coefs["importance_cap"])
    ratio, beyond = (now - old).exp(), said(x, "frozen") - now
    k2, k3 = beyond**2 / 2, beyond.exp() - beyond - 1
    to_frozen = {"k2": k2, "k3": k3, "k3_ratio": k3 * ratio}[options["ref_estimator"]]
    loss = loss + coefs.get("kl_coef", 0.0) * to_frozen
    if method == "kdrl":
        gap = said(x, "teacher") - now
        penalty = {"k2": gap**2 / 2, "k3": gap.exp() - gap - 1}.get(options["estimator"])
        if penalty is None:
            penalty = reverse_kl(x)
        elif options["kd_ratio"] == "on":
            penalty = penalty * ratio.detach()
        loss = loss + coefs["kd_coef"] * speaks(x, options) * penalty
    if method in ("sdar", "rgopd", "eopd", "aopd"):
        added = penalty_of(method, x, coefs, options)
        loss = loss + coefs["kd_coef"] * speaks(x, options) * added
    if method not in WITH_TRACES:
        return averaged(loss, x["mask"], options)
    traces, theirs = x["traces"], trace_term(method, x, coefs, options)
    if method == "luffy":
        return averaged(torch.where(traces[:, None], theirs, loss), x["mask"], options)
    return sum(
        averaged(part[rows], x["mask"][rows], options)
        for part, rows in ((loss, ~traces), (theirs, traces))
    )


def averaged(loss, mask, options):
    """Return the mean over tokens, or over rows, or by a constant length."""
    sums, lengths = (loss * mask).sum(1), mask.sum(1)
    return {
        "token": lambda: sums.sum() / lengths.sum().clamp(min=1),
        "sequence": lambda: (sums / lengths.clamp(min=1)).mean(),
        "constant": lambda: sums.mean() / options["constant_length"],
    }[options["aggregation"]]()


# --- the comparison ---


def package_loss(method, x, coefs, options):
    """Return the loss of the package on the same rollout."""
    batch = TokenBatch(
        said(x, "student"),
        x["mask"],
        old_logps=said(x, "old"),
        sampler_logps=said(x, "sampler"),
        teacher_logps=said(x, "teacher"),
        ref_logps=said(x, "frozen"),
        rewards=x["rewards"],
        correct=x["correct"],
        group_ids=x["groups"],
        teacher_entropy=torch.distributions.Categorical(logits=x["teacher"].detach()).entropy(),
        divergence=forward_kl(x) if method in ("eopd", "aopd") else reverse_kl(x),
        kd_weight=x["heard"],
        off_policy=x["traces"] if method in WITH_TRACES else None,
    )
    return token_loss(method, batch, coefs, options)[0]


@pytest.mark.parametrize("method", sorted(OPTIONS))
def test_value_and_gradient_are_those_of_a_second_derivation(method):
    moved = 0
    for seed in range(18):
        x, coefs, options = draw(method, seed)
        losses = [loss(method, x, coefs, options) for loss in (package_loss, reference_loss)]
        torch.testing.assert_close(*losses, rtol=1e-10, atol=1e-12, msg=f"{seed} {coefs} {options}")
        ours, theirs = (
            torch.autograd.grad(loss, x["student"], materialize_grads=True, allow_unused=True)[0]
            if loss.requires_grad
            else torch.zeros_like(x["student"])
            for loss in losses
        )
        torch.testing.assert_close(
            ours, theirs, rtol=1e-10, atol=1e-12, msg=f"{seed} {coefs} {options}"
        )
        moved += bool(theirs.any())
    assert moved >= 6
