"""The table: every method is a ratio rule, an advantage rule and a penalty, in a few lines; presets
are a method with other numbers.

    loss = aggregate( −min(ρ·A, clip(ρ)·A) + P , mask ),   A = rl_coef·Â + kd_coef·M·d  wherever the teacher enters the advantage

``prepare`` runs once on the whole rollout (group-relative advantages, masks and normalisers depend
on all of a group), ``token_loss`` on it or on any micro-batch of it.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Real
from types import CodeType, MappingProxyType

import torch
from torch import Tensor

from rlkd_lab.objectives.advantages import group_advantages, reward_guided_mask, teacher_gap
from rlkd_lab.objectives.batch import TokenBatch
from rlkd_lab.objectives.estimators import k3, weigh
from rlkd_lab.objectives.schedules import Schedule, parse_schedule, values_of
from rlkd_lab.objectives.surrogates import (
    aggregate,
    cispo_surrogate,
    clipped_surrogate,
    log_importance,
    normalizer,
    trrd_log_ratio,
)

Coefs = Mapping[str, float | None]
Options = Mapping[str, str | int | bool | None]


@dataclass(frozen=True)
class Knob:
    """A coefficient that may move while a run goes on. ``optional``: ``None`` switches it off."""

    low: float
    high: float
    help: str
    optional: bool = False
    log: bool = False


KNOBS: Mapping[str, Knob] = MappingProxyType(
    {
        "rl_coef": Knob(0.0, 10.0, "weight of the reward term"),
        "kd_coef": Knob(0.0, 10.0, "weight of the teacher term", log=True),
        "kl_coef": Knob(0.0, 10.0, "weight of the KL to the frozen reference", log=True),
        "trrd_alpha": Knob(0.0, 1.0, "anchor exponent: 1 is the old policy (GRPO), 0 the teacher"),
        "trrd_gap_bound": Knob(
            0.01, 20.0, "bound in nats on log π_θ/π_T inside the ratio", optional=True
        ),
        "ratio_cap": Knob(
            1.0, 100.0, "dual clip: cap on the ratio where A < 0 (CISPO: everywhere)", optional=True
        ),
        "clip_low": Knob(0.0, 1.0, "ε_low: the ratio is clipped below 1 − ε_low"),
        "clip_high": Knob(0.0, 10.0, "ε_high: the ratio is clipped above 1 + ε_high"),
        "gap_weight": Knob(
            0.0,
            1.0,
            "RLSD's λ: how far the teacher decides the size of each token's update; 0 is GRPO",
        ),
        "gap_clip": Knob(0.0, 1.0, "RLSD's ε_w: that size lies within 1 ± ε_w"),
        "jsd_weight": Knob(
            0.0, 1.0, "weight of the teacher in the JSD mixture: 0 forward KL, 1 reverse KL"
        ),
        "importance_cap": Knob(
            1.0, 100.0, "cap of the importance weight π_old/π_sampler", optional=True
        ),
    }
)

CHOICES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "aggregation": ("token", "sequence", "constant"),
        "scale_rewards": ("group", "none"),
        "level": ("token", "sequence"),
        "estimator": ("k2", "k3", "exact"),
        "ref_estimator": ("k3_ratio", "k3", "k2"),
        "kd_mask": ("none", "wrong", "group_wrong"),
        "kd_normalizer": ("same", "kept"),
        "kd_ratio": ("on", "off"),
        "divergence": ("reverse", "forward", "jsd"),
        "zero_spread": ("keep", "resample"),
        "group_rows": ("judged", "all"),
        "keep_traces": ("finished", "all", "correct"),
    }
)
"""Options and their values.

``kd_ratio``: multiply k2 and k3 by the detached ρ, which off-policy keeps the estimate right.
    ``kd_normalizer``: after masking, divide the teacher term like
the reward term, or by the tokens (rows) it kept; KDRL does not say. ``zero_spread``: groups whose
rewards are all equal stay in the rollout, or are drawn again (DAPO). ``keep_traces``: which teacher
traces are trained on; ``correct`` is rejection sampling. Beside these, ``constant_length`` (int) is
the length limit of ``aggregation='constant'`` and ``topk`` (int) the support of a divergence.

``group_rows``: with ``judged``, two kinds of completions do not enter the mean, the spread and the
    masks of their group: those that the verifier could not
judge, and those that ``mask_truncated`` leaves out of the loss. Their advantage is 0. The teacher
term stays on a completion that could not be judged; a completion that ``mask_truncated`` leaves out
has no term at all. With ``all``, both kinds enter with their reward, as in earlier versions.
"""


# --- where samples come from: (on_policy_frac, a uniform draw) -> whether a step uses traces
# -------


def from_student(on_policy_frac: float, uniform: Callable[[], float]) -> bool:
    """Train every step on the student's own completions."""
    return False


def from_teacher(on_policy_frac: float, uniform: Callable[[], float]) -> bool:
    """Train every step on the teacher's traces."""
    return True


def from_either(on_policy_frac: float, uniform: Callable[[], float]) -> bool:
    """Train a share ``on_policy_frac`` of the steps on the student's completions, the others on
    the teacher's traces. GKD (arXiv 2306.13649).
    """
    return uniform() >= on_policy_frac


@dataclass(frozen=True)
class Method:
    """One row of the table. ``needs`` is any of teacher, groups, traces, divergence."""

    title: str
    source: str
    formula: str
    needs: frozenset[str] = frozenset()
    samples: Callable[[float, Callable[[], float]], bool] = from_student
    ratio: str = "importance"
    surrogate: str = "clipped"
    advantage: Callable[[TokenBatch, Coefs, Options], Tensor] | None = None
    penalty: Callable[[TokenBatch, Tensor, Coefs, Options], Tensor] | None = None
    coefs: Mapping[str, float | None] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    schedules: Mapping[str, str] = field(default_factory=dict)  # coefs hold where each starts
    watch: str = ""

    @property
    def knobs(self) -> dict[str, Knob]:
        """The coefficients that this method listens to, with their ranges."""
        return {name: KNOBS[name] for name in self.coefs}


# --- advantage rules: (batch, coefs, options) -> (B, T) -------------------------------------------


def reward_advantage(batch: TokenBatch, coefs: Coefs, options: Options) -> Tensor:
    """rl_coef·Â, the same in every column."""
    assert batch.advantages is not None
    given = batch.advantages.to(batch.logps.dtype)
    return _number(coefs, "rl_coef", 1.0) * (
        given if given.dim() == 2 else given[:, None].expand_as(batch.logps)
    )


def teacher_advantage(batch: TokenBatch, coefs: Coefs, options: Options) -> Tensor:
    """kd_coef·M·d_t. KDRL (arXiv 2506.02208), Eq. 5."""
    assert batch.teacher_logps is not None and batch.kd_weight is not None
    return _number(coefs, "kd_coef") * batch.kd_weight * teacher_gap(batch.teacher_logps, batch.old)


def joint_advantage(batch: TokenBatch, coefs: Coefs, options: Options) -> Tensor:
    """rl_coef·Â + kd_coef·M·d_t."""
    return reward_advantage(batch, coefs, options) + teacher_advantage(batch, coefs, options)


def routed_advantage(batch: TokenBatch, coefs: Coefs, options: Options) -> Tensor:
    """c·rl_coef·Â + kd_coef·M·d_t with c = 1 on right completions; with M = 1 − c
    (``kd_mask='wrong'``) each token listens to one of the two.
    """
    assert batch.correct is not None
    right = batch.correct.to(batch.logps.dtype)[:, None]
    return right * reward_advantage(batch, coefs, options) + teacher_advantage(
        batch, coefs, options
    )


def sized_advantage(batch: TokenBatch, coefs: Coefs, options: Options) -> Tensor:
    """((1 − λ) + λ·clip(exp(sign(Â)·d_t), 1 ± ε_w))·Â: the reward says where to, the teacher
    how far, token by token. RLSD (arXiv 2604.03128).
    """
    assert batch.teacher_logps is not None
    reward = reward_advantage(batch, coefs, options)
    weight, width = _number(coefs, "gap_weight"), _number(coefs, "gap_clip")
    # clipped as a logarithm, so that a gap of a thousand nats does not overflow
    gap = (
        (reward.sign() * teacher_gap(batch.teacher_logps, batch.old))
        .masked_fill(reward == 0, 0.0)
        .clamp(-50.0, 50.0)
    )
    return ((1 - weight) + weight * gap.exp().clamp(1 - width, 1 + width)) * reward


REWARD_ALONE = (reward_advantage, sized_advantage)
"""Rules whose advantage is 0 where Â is."""


# --- penalty rules: (batch, log π_θ/π_old, coefs, options) -> (B, T) ------------------------------


def teacher_penalty(batch: TokenBatch, log_ratio: Tensor, coefs: Coefs, options: Options) -> Tensor:
    """kd_coef·M·k2, times the detached ρ. KDRL (arXiv 2506.02208), Eq. 8."""
    assert batch.kd_weight is not None
    if options["estimator"] == "exact":
        return divergence_penalty(batch, log_ratio, coefs, options)
    assert batch.teacher_logps is not None
    theirs = torch.where(batch.kd_weight == 0, batch.logps.detach(), batch.teacher_logps)
    log_weight = log_ratio.detach() if options["kd_ratio"] == "on" else torch.zeros_like(log_ratio)
    weight, estimate = weigh(
        "k2" if options["estimator"] == "k2" else "k3", batch.logps, theirs, log_weight
    )
    return _number(coefs, "kd_coef") * batch.kd_weight * weight * estimate


def divergence_penalty(
    batch: TokenBatch, log_ratio: Tensor, coefs: Coefs, options: Options
) -> Tensor:
    """kd_coef·M·D(π_θ, π_T) over the vocabulary."""
    assert batch.divergence is not None and batch.kd_weight is not None
    # the divergence may be infinite where the teacher has no say
    return (
        _number(coefs, "kd_coef", 1.0)
        * batch.kd_weight
        * batch.divergence.masked_fill(batch.kd_weight == 0, 0.0)
    )


def likelihood_penalty(
    batch: TokenBatch, log_ratio: Tensor, coefs: Coefs, options: Options
) -> Tensor:
    """−log π_θ of the teacher's own tokens."""
    return -batch.logps


def reference_penalty(
    batch: TokenBatch, log_ratio: Tensor, coefs: Coefs, options: Options
) -> Tensor:
    """kl_coef·KL(π_θ‖π_ref) by k3·ρ (TRL's ``use_bias_correction_kl``), k3 or k2."""
    assert batch.ref_logps is not None
    kind = options["ref_estimator"]
    log_weight = log_ratio if kind == "k3_ratio" else torch.zeros_like(log_ratio)
    weight, estimate = weigh(
        "k2" if kind == "k2" else "k3", batch.logps, batch.ref_logps, log_weight
    )
    return _number(coefs, "kl_coef") * estimate * weight


# --- the table ------------------------------------------------------------------------------------

_CLIP: dict[str, float | None] = {
    "clip_low": 0.2,
    "clip_high": 0.2,
    "ratio_cap": None,
    "importance_cap": None,
}
_GRPO: dict[str, float | None] = {"rl_coef": 1.0, "kl_coef": 0.0, **_CLIP}
_KDRL: dict[str, float | None] = {"kd_coef": 0.1, **_GRPO}
_REWARD = frozenset({"groups"})
_TEACHER = frozenset({"teacher"})

_grpo = Method(
    title="GRPO",
    source="DeepSeekMath (arXiv 2402.03300), Eq. 3",
    formula="−min(ρ·Â, clip(ρ)·Â) + kl_coef·k3,  ρ = π_θ/π_old",
    needs=_REWARD,
    advantage=reward_advantage,
    coefs=_GRPO,
    options={"aggregation": "sequence"},
    watch="frac_reward_zero_std: groups that are all right or all wrong teach nothing",
)
_kdrl = replace(
    _grpo,
    title="KDRL, joint loss",
    source="KDRL (arXiv 2506.02208), Eq. 8",
    formula="−min(ρ·Â, clip(ρ)·Â) + kd_coef·M·k2(π_θ, π_T)",
    needs=_REWARD | _TEACHER,
    penalty=teacher_penalty,
    coefs=_KDRL,
    options={"aggregation": "token"},
    watch="kl_teacher_rev falls with kd_coef; length follows the teacher's",
)
_kdrl_advantage = replace(
    _kdrl,
    title="KDRL, advantage form",
    source="KDRL (arXiv 2506.02208), §3.2 (reward shaping)",
    formula="−min(ρ·A, clip(ρ)·A),  A = Â + kd_coef·M·d,  d = log π_T − log π_old",
    advantage=joint_advantage,
    penalty=None,
    watch="where d opposes Â and kd_coef·|d| > |Â| the update goes against the reward",
)

_sft = Method(
    title="SFT on teacher traces (sequence KD)",
    source="Kim & Rush (arXiv 1606.07947)",
    formula="−log π_θ(y),  y from the teacher",
    needs=frozenset({"traces"}),
    samples=from_teacher,
    ratio="none",
    penalty=likelihood_penalty,
    watch="reward and length move to the teacher's; prompts the student alone would meet are"
    " never seen",
)

_table: dict[str, Method] = {
    "sft": _sft,
    "rft": replace(
        _sft,
        title="Rejection-sampled SFT",
        source="RFT (arXiv 2308.01825)",
        formula="−log π_θ(y),  y from the teacher and right",
        options={"keep_traces": "correct"},
        watch="how many traces are kept: prompts that the teacher gets wrong are never trained on",
    ),
    "kd_forward": Method(
        title="Forward KL on teacher traces",
        source="Hinton et al. (arXiv 1503.02531); SeqKD with the full vocabulary",
        formula="kd_coef·Σ_v π_T (log π_T − log π_θ),  y from the teacher",
        needs=frozenset({"traces", "teacher", "divergence"}),
        samples=from_teacher,
        ratio="none",
        penalty=divergence_penalty,
        coefs={"kd_coef": 1.0},
        options={"divergence": "forward"},
        watch="kl_teacher_fwd falls first; mass-covering, so entropy stays high",
    ),
    "gkd": Method(
        title="GKD",
        source="GKD (arXiv 2306.13649), Eq. 4",
        formula="kd_coef·JSD_w(π_θ, π_T),  y from the student in a share on_policy_frac of the"
        " steps, else from the teacher",
        needs=frozenset({"traces", "teacher", "divergence"}),
        samples=from_either,
        ratio="none",
        penalty=divergence_penalty,
        coefs={"kd_coef": 1.0, "jsd_weight": 0.5},
        options={"divergence": "jsd"},
        watch="jsd_weight towards 1 seeks modes: entropy falls faster",
    ),
    "opd": Method(
        title="On-policy KD (KD-RKL)",
        source="KDRL (arXiv 2506.02208), Eq. 5",
        formula="−min(ρ·A, clip(ρ)·A),  A = kd_coef·d,  d = log π_T − log π_old",
        needs=_TEACHER,
        advantage=teacher_advantage,
        coefs={"kd_coef": 1.0, "kl_coef": 0.0, **_CLIP},
        options={"aggregation": "token"},
        watch="kl_teacher_rev falls; reward rises only as far as the teacher's habits are good",
    ),
    "grpo": _grpo,
    "dr_grpo": replace(
        _grpo,
        title="Dr.GRPO",
        source="Dr.GRPO (arXiv 2503.20783), §3.2",
        formula="GRPO with Â = r − group mean and a constant length in the denominator",
        options={"aggregation": "constant", "scale_rewards": "none"},
        watch="completions/mean_length of wrong answers should not grow",
    ),
    "dapo": replace(
        _grpo,
        title="DAPO",
        source="DAPO (arXiv 2503.14476), Eq. 8",
        formula="GRPO with ε_low .2, ε_high .28 and a mean over all tokens of the rollout; groups"
        " without spread are drawn again",
        coefs={**_GRPO, "clip_high": 0.28},
        options={"aggregation": "token", "zero_spread": "resample"},
        watch="entropy should fall more slowly than GRPO's; sampling/rounds: what the full batch"
        " costs (reward.overlong=1 adds DAPO's length penalty)",
    ),
    "gspo": replace(
        _grpo,
        title="GSPO",
        source="GSPO (arXiv 2507.18071), Eq. 5–7",
        formula="−min(s·Â, clip(s)·Â),  s = (π_θ(y)/π_old(y))^(1/|y|)",
        coefs={**_GRPO, "clip_low": 3e-4, "clip_high": 4e-4},
        options={"aggregation": "sequence", "level": "sequence"},
        watch="clip_ratio/low and /high are shares of whole completions, and large; with one"
        " update per rollout it is GRPO",
    ),
    "cispo": replace(
        _grpo,
        title="CISPO",
        source="MiniMax-M1 (arXiv 2506.13585), Eq. 4",
        formula="−stop-grad(min(ρ, ratio_cap))·Â·log π_θ",
        surrogate="cispo",
        coefs={"rl_coef": 1.0, "kl_coef": 0.0, "ratio_cap": 5.0, "importance_cap": None},
        options={"aggregation": "token"},
        watch="no token loses its gradient, however far the policy has moved; grad_norm",
    ),
    "kdrl": _kdrl,
    "kdrl_advantage": _kdrl_advantage,
    "srpo": replace(
        _kdrl_advantage,
        title="SRPO, sample routing",
        source="SRPO (arXiv 2604.02288); with an outside teacher as in arXiv 2609.04108",
        formula="−min(ρ·A, clip(ρ)·A),  A = c·Â + (1−c)·kd_coef·d,  c = 1 on right completions",
        advantage=routed_advantage,
        coefs={**_KDRL, "kd_coef": 1.0},
        options={"aggregation": "token", "kd_mask": "wrong"},
        watch="wrong completions learn from the teacher alone: what the reward would push down is"
        " not pushed. Left out: its entropy weights",
    ),
    "hdpo": replace(
        _kdrl_advantage,
        title="HDPO, advantage form (preset)",
        source="HDPO (arXiv 2603.23871); with an outside teacher as in arXiv 2609.04108",
        formula="A = Â + 1[nobody in the group is right]·kd_coef·d",
        options={"aggregation": "token", "kd_mask": "group_wrong"},
        watch="the teacher speaks on prompts that are too hard, and falls silent as they are"
        " solved. Left out: its privileged rollouts",
    ),
    "rlsd": replace(
        _grpo,
        title="RLSD",
        source="RLSD (arXiv 2604.03128); with an outside teacher as in arXiv 2609.04108",
        formula="−min(ρ·A, clip(ρ)·A),  A = ((1−λ) + λ·clip(exp(sign(Â)·d), 1±ε_w))·Â",
        needs=_REWARD | _TEACHER,
        advantage=sized_advantage,
        coefs={**_GRPO, "gap_weight": 0.5, "gap_clip": 0.2},
        options={"aggregation": "token"},
        watch="kl_teacher_rev need not fall: the teacher only decides which tokens move more. λ"
        " and ε_w are our choice",
    ),
    "trrd": replace(
        _grpo,
        title="TRRD (RLAD)",
        source="RLAD (arXiv 2602.22495), Eq. 3–5",
        formula="−min(r·Â, clip(r)·Â),  r = (π_θ/π_old)^α·(π_θ/π_T)^(1−α)",
        needs=_REWARD | _TEACHER,
        ratio="trrd",
        coefs={**_GRPO, "trrd_alpha": 0.5, "trrd_gap_bound": 1.0, "ratio_cap": 3.0},
        options={"aggregation": "token"},
        watch="trrd/dead_frac: tokens without gradient from the first step on; trrd/bound_frac:"
        " how often the bound acts",
    ),
    "kdrl_annealed": replace(
        _kdrl,
        title="KDRL, annealed (preset)",
        source="KDRL (arXiv 2506.02208), §3.3",
        formula="KDRL with kd_coef from β_init to β_min, linearly over the run",
        coefs={**_KDRL, "kd_coef": 0.2},
        schedules={"kd_coef": "linear:0.2:0.002"},
    ),
    "kdrl_masked": replace(
        _kdrl,
        title="KDRL, response-masked (preset)",
        source="KDRL (arXiv 2506.02208), §3.4",
        formula="KDRL with M = 1 on wrong completions alone (kd_mask=group_wrong: where nobody in"
        " the group is right)",
        options={"aggregation": "token", "kd_mask": "wrong"},
        watch="completions should stay shorter than KDRL's at the same reward",
    ),
    "opd_then_rl": replace(
        _kdrl_advantage,
        title="OPD, then GRPO (preset)",
        source="Sequential Beats Joint (arXiv 2609.04108)",
        formula="A = d for the first half of the run, then Â",
        coefs={**_KDRL, "kd_coef": 1.0, "rl_coef": 0.0},
        schedules={"kd_coef": "switch:1:0:0.5", "rl_coef": "switch:0:1:0.5"},
        watch="a kink in every curve at the switch",
    ),
}
METHODS: Mapping[str, Method] = MappingProxyType(_table)
"""Every method by name. Nobody writes into it; :func:`add_method` adds a row for this process."""
_added: set[str] = set()

DEFAULT_OPTIONS: Mapping[str, str] = MappingProxyType(
    {name: values[0] for name, values in CHOICES.items()}
)


def nearest(name: str, valid: Mapping[str, object] | tuple[str, ...], kind: str) -> str:
    """``name`` if it is valid; otherwise a ValueError that names the nearest valid one."""
    if name in valid:
        return name
    close = difflib.get_close_matches(str(name), list(valid), n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}? " if close else ""
    listed = (
        f"valid are {', '.join(valid)}"
        if len(valid) <= 20
        else "`rlkd methods` and docs list the valid ones"
    )
    raise ValueError(f"unknown {kind} {name!r}: {hint}{listed}")


def check_coef(name: str, value: float | None, knobs: Mapping[str, Knob] = KNOBS) -> float | None:
    """``value`` if it lies in the knob's range, else a ValueError that says the range."""
    knob = knobs[nearest(name, knobs, "knob")]
    if value is None and knob.optional:
        return None
    if isinstance(value, bool) or not isinstance(value, Real | None):
        raise ValueError(
            f"{name}={value!r} is no value of a knob: a number in"
            f" {knob.low:g}–{knob.high:g}{', or None for off' if knob.optional else ''}"
        )
    if value is None or not knob.low <= value <= knob.high:  # a NaN fails the comparison too
        off = ", or off" if knob.optional else ""
        shown = (
            "off"
            if value is None
            else f"{value:g}"
            if isinstance(value, float) or abs(value) < 10**300
            else "a huge number"
        )
        raise ValueError(
            f"{name}={shown} is out of range: {name} ({knob.help}) lies in"
            f" {knob.low:g}–{knob.high:g}{off}"
        )
    return float(value)


def resolve_options(
    method: Method, options: Options | None = None
) -> dict[str, str | int | bool | None]:
    """The method's options with the caller's on top, checked.

    Raises:
        ValueError: for an unknown option or value; ``estimator='k1'`` is refused with the reason.
    """
    resolved: dict[str, str | int | bool | None] = {
        **DEFAULT_OPTIONS,
        "constant_length": None,
        "topk": None,
        **method.options,
        **(options or {}),
    }
    if resolved["estimator"] == "k1":
        raise ValueError(
            "k1 cannot be a loss: its expected gradient is 0, so the teacher would have no"
            " influence. Use 'k2' (the gradient of the reverse KL), or a method"
            " that puts the teacher into the advantage (kdrl_advantage, opd)"
        )
    for name in ("constant_length", "topk"):
        value = resolved[name]
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} must be a whole number of at least 1; got {value!r}")
    for name, value in resolved.items():
        if name not in ("constant_length", "topk"):
            nearest(str(value), CHOICES[nearest(name, CHOICES, "option")], name)
    return resolved


NEEDS = ("teacher", "groups", "traces", "divergence")
RATIOS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"importance": (), "trrd": ("trrd_alpha", "trrd_gap_bound"), "none": ()}
)
"""Ratio rules and the coefficients that each reads."""
SURROGATES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "clipped": ("clip_low", "clip_high", "ratio_cap", "importance_cap"),
        "cispo": ("ratio_cap", "importance_cap"),
    }
)
"""Surrogates and the coefficients that each reads."""


def add_method(name: str, method: Method) -> str:
    """Put a method of your own into :data:`METHODS` for this process: it then works in
    ``token_loss``, ``make_config`` and a run.

    A run of it can only be resumed where it was added, under the same name.
    ``rlkd_lab.lab.check_method`` runs the exact tests on it.

    Args:
        name: letters, digits and ``_``. One that was added before is replaced.
        method: most easily ``dataclasses.replace`` of a row that is there.

    Returns:
        eight hex digits that change with the row and the code of its rules (not with functions that
        those call): put them into the name of the run's folder, and an old run is never taken for
        one of the new code.

    Raises:
        ValueError: the name belongs to the kit; a coefficient, option, schedule or need is unknown
            or out of range; a rule or coefficient is missing.
    """
    if not name.isidentifier():
        raise ValueError(
            f"{name!r} is no name for a method: use letters, digits and _, and begin with a letter"
        )
    if name in _table and name not in _added:
        raise ValueError(f"{name!r} is a method of the kit already: choose another name")
    for need in method.needs:
        nearest(need, NEEDS, "need")
    for coef, value in method.coefs.items():
        check_coef(coef, value)
    resolve_options(method)
    nearest(method.ratio, RATIOS, "ratio")
    if method.ratio == "none" and method.penalty is None:
        raise ValueError(f"{name} has neither a ratio nor a penalty: its loss would always be 0")
    if method.ratio != "none" and method.advantage is None:
        raise ValueError(
            f"{name} needs an advantage rule beside its ratio, such as reward_advantage"
        )
    used = (
        []
        if method.ratio == "none"
        else [
            *RATIOS[method.ratio],
            *SURROGATES[nearest(method.surrogate, SURROGATES, "surrogate")],
        ]
    )
    missing = [coef for coef in used if coef not in method.coefs]
    if missing:
        raise ValueError(
            f"{name} needs a value for {', '.join(missing)} in coefs: its ratio or surrogate"
            " reads it (None is off where a knob may be off)"
        )
    for coef, text in method.schedules.items():
        for end in values_of(parse_schedule(text)):
            check_coef(nearest(coef, method.coefs, f"knob of {name}"), end)
    _table[name] = method
    _added.add(name)
    row = [
        str(value) if not callable(value) else _code_of(value)
        for value in (getattr(method, each.name) for each in fields(method) if each.name != "needs")
    ]
    return hashlib.sha256("\n".join([*row, *sorted(method.needs)]).encode()).hexdigest()[:8]


def is_added(name: str) -> bool:
    """Whether :func:`add_method` put it there, so that another process does not know it."""
    return name in _added


def _code_of(rule: Callable[..., Tensor]) -> str:
    """What a function does, in words of the interpreter: the same for the same code, wherever
    it stands; with the numbers it takes from around it.
    """

    def described(code: CodeType) -> list[str]:
        consts = [
            described(each) if isinstance(each, CodeType) else each for each in code.co_consts
        ]
        return [code.co_code.hex(), str(code.co_names), str(code.co_varnames), str(consts)]

    code = getattr(rule, "__code__", None)
    if code is None:
        return str(getattr(rule, "__qualname__", type(rule).__qualname__))
    around = {**rule.__globals__, **inspect.getclosurevars(rule).nonlocals}
    numbers = {
        name: around[name]
        for name in (*code.co_names, *code.co_freevars)
        if isinstance(around.get(name), int | float | str)
    }
    return str([*described(code), numbers, getattr(rule, "__defaults__", None)])


def needs_of(method: Method, coefs: Coefs, options: Options) -> set[str]:
    """What a method needs with these coefficients: its own needs, a reference where kl_coef >
    0, a divergence where an exact KL is asked for.
    """
    needs = set(method.needs)
    if coefs.get("kl_coef"):
        needs.add("reference")
    if method.penalty is teacher_penalty and options.get("estimator") == "exact":
        needs.add("divergence")
    return needs


def schedules_for(
    name: str, given: Mapping[str, str | float | None] | None = None
) -> dict[str, Schedule]:
    """A schedule for every coefficient of a method: the caller's, the preset's or the constant
    default, each within its knob's range.
    """
    method = METHODS[nearest(name, METHODS, "method")]
    for knob in given or {}:
        nearest(knob, method.coefs or {"(none)": None}, f"knob of {name}")
    texts = {**method.coefs, **method.schedules, **(given or {})}
    schedules = {knob: parse_schedule(text) for knob, text in texts.items()}
    for knob, schedule in schedules.items():
        for value in values_of(schedule):
            check_coef(knob, value)
    return schedules


def prepare(
    name: str, batch: TokenBatch, coefs: Coefs | None = None, options: Options | None = None
) -> TokenBatch:
    """Advantages, teacher mask and normaliser of a whole rollout; ``old_logps`` is filled in where
    it was missing.

    Args:
        name: a key of :data:`METHODS`.
        batch: the whole rollout, so that groups and normalisers are complete.
        coefs: knob values that differ from the method's defaults.
        options: choices that differ from the method's defaults, see :data:`CHOICES`.

    Returns:
        A batch with Â in ``advantages``, the teacher's weight per token in ``kd_weight`` and the
        normaliser; what the coefficients weigh is left to :func:`token_loss`.

    Raises:
        ValueError: for an unknown name, a value out of range, or an input that the method needs and
            the batch lacks.
    """
    method, _, choices = _resolve(name, coefs, options)
    _require(name, method, batch, set(method.needs) & {"groups"}, str(choices["kd_mask"]))
    if batch.prepared_for is not None:
        raise ValueError(
            f"this batch is already prepared (for {batch.prepared_for!r}): prepare the"
            " unprepared batch"
        )
    batch = replace(batch, old_logps=batch.old).blank_padding()
    mask, aggregation = batch.mask, choices["aggregation"]
    denominator = batch.normalizer
    if denominator is None:
        length = choices["constant_length"]
        denominator = normalizer(mask, aggregation, int(length) if length else None)  # type: ignore[arg-type]
    batch = replace(batch, kd_weight=_teacher_weight(batch, choices))
    advantages = batch.advantages
    if advantages is None and "groups" in method.needs:
        assert batch.rewards is not None and batch.group_ids is not None
        advantages = group_advantages(
            batch.rewards, batch.group_ids, choices["scale_rewards"] == "group", batch.counted
        )
    advantages = None if advantages is None else advantages.detach()
    return replace(
        batch,
        advantages=advantages,
        normalizer=denominator,
        prepared_for=name,
        prepared_with=_prepared_with(choices),
    )


def _teacher_weight(batch: TokenBatch, options: Options) -> Tensor:
    """What the teacher term is multiplied by, per token, (B, T), ≥ 0: the batch's own weight, times
    the reward-guided mask M, rescaled where the normaliser is to count kept tokens alone.
    """
    kind, aggregation = str(options["kd_mask"]), options["aggregation"]
    weight = torch.ones_like(batch.logps)
    if batch.kd_weight is not None:
        given = batch.kd_weight.to(weight.dtype)
        weight = given if given.dim() == 2 else given[:, None].expand_as(batch.logps)
    if kind != "none":
        assert batch.correct is not None
        correct = batch.correct.to(weight.dtype)
        weight = weight * reward_guided_mask(kind, correct, batch.group_ids, batch.counted)[:, None]  # type: ignore[arg-type]
    if options["kd_normalizer"] == "kept":
        kept = batch.mask * (weight > 0)
        if aggregation == "token":
            total, full = float(kept.sum()), float(batch.mask.sum())
        else:
            total, full = float((kept.sum(-1) > 0).sum()), float(len(kept))
        weight = weight * (full / max(total, 1.0))
    return weight.detach()


def advantage(
    name: str, batch: TokenBatch, coefs: Coefs | None = None, options: Options | None = None
) -> Tensor:
    """A, (B, T), detached: what the method credits each token of a batch with, prepared or not.

    Raises:
        ValueError: as :func:`token_loss`, and for a method without a policy ratio.
    """
    method, values, choices = _resolve(name, coefs, options)
    if method.advantage is None:
        raise ValueError(f"{name} has no advantage: it is not a policy-gradient method")
    if batch.prepared_for is None:
        batch = prepare(name, batch, values, choices)
    return method.advantage(
        _checked(name, method, batch, values, choices), values, choices
    ).detach()


def idle_rows(
    name: str, batch: TokenBatch, coefs: Coefs | None = None, options: Options | None = None
) -> Tensor:
    """Rows of a prepared batch that have no gradient, whatever the model says: (B,) of bool.

    Where the reward alone speaks, these are the groups whose rewards are all equal.
    """
    method, values, _ = _resolve(name, coefs, options)
    if (
        method.advantage not in REWARD_ALONE
        or method.penalty is not None
        or values.get("kl_coef")
        or batch.advantages is None
    ):
        return torch.zeros(len(batch.logps), dtype=torch.bool, device=batch.logps.device)
    return batch.advantages.reshape(len(batch.logps), -1).eq(0).all(1)


def token_loss(
    name: str, batch: TokenBatch, coefs: Coefs | None = None, options: Options | None = None
) -> tuple[Tensor, dict[str, float]]:
    """The loss of a method on a batch or micro-batch. Pure; prepares by itself a batch that is not.

        loss = ( Σ mask·(−min(ρ·A, clip(ρ)·A) + P) ) / normaliser

    Args:
        name: a key of :data:`METHODS`.
        batch: see :class:`TokenBatch`.
        coefs: knob values that differ from the method's defaults.
        options: choices that differ from the method's defaults.

    Returns:
        The scalar loss with its graph, and detached statistics: ``loss/policy`` and ``loss/kd``
        (shares of this batch in the rollout's loss, any sign and ≥ 0 for k2), ``clip_ratio/low``,
        ``clip_ratio/high``, ``trrd/dead_frac``, ``trrd/bound_frac`` (shares of tokens in [0, 1]),
        ``ratio/max`` (the largest ρ of new to old policy, ≥ 0), ``kl_ref`` (nats, ≥ 0).

        The loss is +∞ where a number that nothing bounds is too large for the dtype (ρ with A < 0,
        k3 of a teacher that is far likelier). It is never NaN for finite log-probabilities. The
        guard ``loss`` leaves such an update out, or stops the run.

    Raises:
        ValueError: as :func:`prepare`, and for a batch prepared for another method.
    """
    method, values, choices = _resolve(name, coefs, options)
    if batch.prepared_for is None:
        batch = prepare(name, batch, values, choices)
    batch = _checked(name, method, batch, values, choices)
    mask = batch.mask
    stats: dict[str, float] = {}
    tokens = mask.sum().clamp(min=1)

    def share(where: Tensor) -> float:
        return float((where * mask).sum() / tokens)

    importance = log_importance(batch, choices["level"])  # type: ignore[arg-type]
    stats["ratio/max"] = float((importance.detach().exp() * mask).max()) if mask.numel() else 0.0
    policy = torch.zeros_like(batch.logps)
    if method.ratio != "none":
        assert method.advantage is not None
        advantages = method.advantage(batch, values, choices).detach()
        log_ratio, bound = importance, None
        if method.ratio == "trrd":
            log_ratio, bound = trrd_log_ratio(
                batch, importance, _number(values, "trrd_alpha"), values["trrd_gap_bound"]
            )
        if method.surrogate == "cispo":
            policy = cispo_surrogate(log_ratio, advantages, batch.logps, values["ratio_cap"])
        else:
            policy, cut = clipped_surrogate(
                log_ratio,
                advantages,
                _number(values, "clip_low"),
                _number(values, "clip_high"),
                values["ratio_cap"],
            )
            stats |= {"clip_ratio/low": share(cut["low"]), "clip_ratio/high": share(cut["high"])}
            if bound is not None:
                stats["trrd/dead_frac"] = share(cut["low"] | cut["high"] | cut["cap"])
                stats["trrd/bound_frac"] = share(
                    bound & (advantages != 0)
                )  # where there is something to bound
        if values["importance_cap"] is not None and batch.sampler_logps is not None:
            # not 0, or an infinite surrogate would become a NaN
            tiny = torch.finfo(policy.dtype).tiny
            policy = policy * (batch.old - batch.sampler_logps).exp().clamp(
                min=tiny, max=values["importance_cap"]
            )

    def summed(per_token: Tensor) -> Tensor:
        return aggregate(per_token, mask, choices["aggregation"], batch.normalizer or 1.0)  # type: ignore[arg-type]

    loss = summed(policy)
    stats["loss/policy"] = loss.item()
    if method.penalty is not None:
        penalty = summed(method.penalty(batch, importance, values, choices))
        stats["loss/kd"] = penalty.item()
        loss = loss + penalty
    if batch.ref_logps is not None:
        stats["kl_ref"] = share(k3(batch.logps.detach(), batch.ref_logps))
        if values.get("kl_coef"):
            loss = loss + summed(reference_penalty(batch, importance, values, choices))
    return loss, stats


def _prepared_with(options: Options) -> dict[str, str | int | bool | None]:
    """What :func:`prepare` has already used and :func:`token_loss` can no longer change."""
    return {
        name: options[name]
        for name in ("aggregation", "constant_length", "kd_mask", "kd_normalizer", "scale_rewards")
    }


def _checked(
    name: str, method: Method, batch: TokenBatch, coefs: Coefs, options: Options
) -> TokenBatch:
    """A prepared batch ready for the rules: the right method and options, padding blanked, the
    teacher silent where it has no say.
    """
    if batch.prepared_for != name or batch.normalizer is None:
        raise ValueError(
            f"this batch was prepared for {batch.prepared_for!r}, not for {name!r}: prepare"
            " the unprepared batch again"
        )
    if batch.prepared_with != _prepared_with(options):
        raise ValueError(
            f"this batch was prepared with {batch.prepared_with}, not with"
            f" {_prepared_with(options)}: prepare it again"
        )
    needs = needs_of(method, coefs, options) - {"groups"}
    _require(name, method, batch, needs, str(options["kd_mask"]))
    batch = batch.blank_padding()
    if batch.kd_weight is not None and coefs.get("kd_coef") == 0:
        batch = replace(batch, kd_weight=torch.zeros_like(batch.kd_weight))
    if batch.teacher_logps is not None and batch.kd_weight is not None:
        # where the teacher has no say it repeats the old policy, so that 0·inf is no NaN
        batch = replace(
            batch, teacher_logps=torch.where(batch.kd_weight == 0, batch.old, batch.teacher_logps)
        )
    return batch


def _number(coefs: Coefs, name: str, default: float | None = None) -> float:
    value = coefs.get(name, default)
    if value is None:
        raise ValueError(f"{name} has no value here")
    return value


def _resolve(
    name: str, coefs: Coefs | None, options: Options | None
) -> tuple[Method, Coefs, dict[str, str | int | bool | None]]:
    method = METHODS[nearest(name, METHODS, "method")]
    for knob, value in (coefs or {}).items():
        check_coef(nearest(knob, method.coefs or {"(none)": None}, f"knob of {name}"), value)
    return method, {**method.coefs, **(coefs or {})}, resolve_options(method, options)


def _require(name: str, method: Method, batch: TokenBatch, needs: set[str], kd_mask: str) -> None:
    if batch.advantages is not None and method.advantage is not None:
        needs = needs - {"groups"}
    if "divergence" in needs:  # the head that made the divergence has already seen the teacher
        needs = needs - {"teacher"}
    given = {
        "teacher": (
            batch.teacher_logps is not None,
            "teacher_logps: the teacher's log-probabilities of the same tokens",
        ),
        "groups": (
            batch.rewards is not None and batch.group_ids is not None,
            "rewards and group_ids (or advantages)",
        ),
        "reference": (batch.ref_logps is not None, "ref_logps, because kl_coef is not 0"),
        "divergence": (
            batch.divergence is not None,
            "divergence: the full-vocabulary divergence to the teacher",
        ),
        "traces": (True, ""),
    }
    for need in sorted(needs):
        present, words = given[need]
        if not present:
            raise ValueError(f"{name} needs {words}")
    if kd_mask != "none" and batch.correct is None:
        raise ValueError(
            f"{name} with kd_mask={kd_mask!r} needs correct: which completions are right"
        )
