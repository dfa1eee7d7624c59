"""The table: every method is a row of rules and numbers; presets are rows with other numbers.

    loss = aggregate( −min(ρ·A, clip(ρ)·A) + P , mask )

with A = rl_coef·Â + kd_coef·M·d wherever the teacher enters the advantage. The rows of OPD's family
stand in :mod:`~rlkd_lab.objectives.opd_methods`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from rlkd_lab.objectives.method import CLIP, GRPO, KDRL, REWARD, TEACHER, Method
from rlkd_lab.objectives.opd_methods import OPD_METHODS, opd
from rlkd_lab.objectives.opd_rules import group_gated_advantage
from rlkd_lab.objectives.rules import (
    cispo,
    divergence_penalty,
    from_both,
    from_either,
    from_teacher,
    joint_advantage,
    likelihood_penalty,
    remaining_advantage,
    reward_advantage,
    routed_advantage,
    shaped,
    sized_advantage,
    teacher_penalty,
    trace_penalty,
    trrd_ratio,
)
from rlkd_lab.objectives.schedules import Schedule, parse_schedule, values_of
from rlkd_lab.objectives.settings import Coefs, Options, check_coef, checked_options, nearest

# --- the table ------------------------------------------------------------------------------------

_grpo = Method(
    title="GRPO",
    source="DeepSeekMath (arXiv 2402.03300), Eq. 3",
    formula="−min(ρ·Â, clip(ρ)·Â) + kl_coef·k3,  ρ = π_θ/π_old",
    needs=REWARD,
    advantage=reward_advantage,
    coefs=GRPO,
    options={"aggregation": "sequence"},
    watch="frac_reward_zero_std: groups that are all right or all wrong teach nothing",
)
_kdrl = replace(
    _grpo,
    title="KDRL",
    source="KDRL (arXiv 2506.02208), Eq. 8",
    formula="−min(ρ·Â, clip(ρ)·Â) + kd_coef·M·stop-grad(ρ)·k2(π_θ, π_T)",
    needs=REWARD | TEACHER,
    penalty=teacher_penalty,
    coefs=KDRL,
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
    title="SFT",
    source="Kim & Rush (arXiv 1606.07947)",
    formula="−log π_θ(y),  y from the teacher",
    needs=frozenset({"traces"}),
    samples=from_teacher,
    ratio=None,
    penalty=likelihood_penalty,
    watch="reward and length move to the teacher's; prompts the student alone would meet are"
    " never seen",
)

_table: dict[str, Method] = {
    "sft": _sft,
    "rft": replace(
        _sft,
        title="RFT",
        source="RFT (arXiv 2308.01825)",
        formula="−log π_θ(y),  y from the teacher and right",
        options={"keep_traces": "correct"},
        watch="how many traces are kept: prompts that the teacher gets wrong are never trained on",
    ),
    "kd_forward": Method(
        title="Forward KL",
        source="Hinton et al. (arXiv 1503.02531); SeqKD with the full vocabulary",
        formula="kd_coef·Σ_v π_T (log π_T − log π_θ),  y from the teacher",
        needs=frozenset({"traces", "teacher", "divergence"}),
        samples=from_teacher,
        ratio=None,
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
        ratio=None,
        penalty=divergence_penalty,
        coefs={"kd_coef": 1.0, "jsd_weight": 0.5},
        options={"divergence": "jsd"},
        watch="jsd_weight towards 1 seeks modes: entropy falls faster",
    ),
    "opd": opd,
    "grpo": _grpo,
    "dr_grpo": replace(
        _grpo,
        title="Dr. GRPO",
        source="Dr. GRPO (arXiv 2503.20783), §3.2",
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
        coefs={**GRPO, "clip_high": 0.28},
        options={"aggregation": "token", "zero_spread": "resample"},
        watch="entropy should fall more slowly than GRPO's; sampling/rounds: what the full batch"
        " costs (reward.overlong=1 adds DAPO's length penalty)",
    ),
    "gspo": replace(
        _grpo,
        title="GSPO",
        source="GSPO (arXiv 2507.18071), Eq. 5–7",
        formula="−min(s·Â, clip(s)·Â),  s = (π_θ(y)/π_old(y))^(1/|y|)",
        coefs={**GRPO, "clip_low": 3e-4, "clip_high": 4e-4},
        options={"aggregation": "sequence", "level": "sequence"},
        watch="clip_ratio/low and /high are shares of whole completions, and large; with one"
        " update per rollout it is GRPO",
    ),
    "cispo": replace(
        _grpo,
        title="CISPO",
        source="MiniMax-M1 (arXiv 2506.13585), Eq. 4",
        formula="−stop-grad(min(ρ, ratio_cap))·Â·log π_θ",
        surrogate=cispo,
        coefs={"rl_coef": 1.0, "kl_coef": 0.0, "ratio_cap": 5.0, "importance_cap": None},
        options={"aggregation": "token"},
        watch="no token loses its gradient, however far the policy has moved; grad_norm",
    ),
    "luffy": replace(
        _grpo,
        title="LUFFY",
        source="LUFFY (arXiv 2504.14945), by a copy of the authors' code",
        formula="−min(ρ·Â, clip(ρ)·Â) on the student's completions, −p/(p + γ)·Â on a trace;"
        "  p = π_θ,  γ = trace_gamma,  Â = r − group mean, the trace included",
        needs=REWARD | {"traces"},
        samples=from_both,
        surrogate=shaped,
        coefs={**GRPO, "trace_gamma": 0.1},
        options={"aggregation": "constant", "scale_rewards": "none", "keep_traces": "correct"},
        watch="reward against traces/reward: where they are equal a trace teaches nothing;"
        " traces/logp: how likely the student finds the traces",
    ),
    "chord": replace(
        _grpo,
        title="CHORD",
        source="CHORD (arXiv 2508.11408), CHORD-φ, by the authors' code",
        formula="(1 − μ)·GRPO on the student's completions + μ·(−stop-grad(p·(1 − p))·log π_θ) on"
        " traces;  p = π_θ,  μ = trace_weight",
        needs=REWARD | {"traces"},
        samples=from_both,
        advantage=remaining_advantage,
        penalty=trace_penalty,
        coefs={"trace_weight": 0.1, "kl_coef": 0.0, **CLIP},
        options={"aggregation": "token"},
        watch="loss/kd is small: tokens that the student finds sure or unlikely hardly count;"
        " traces/logp: how likely the student finds the traces",
    ),
    "kdrl": _kdrl,
    "kdrl_advantage": _kdrl_advantage,
    "srpo": replace(
        _kdrl_advantage,
        title="SRPO",
        source="SRPO (arXiv 2604.02288); with an outside teacher as in arXiv 2609.04108",
        formula="−min(ρ·A, clip(ρ)·A),  A = c·Â + (1−c)·kd_coef·d,  c = 1 on right completions",
        advantage=routed_advantage,
        coefs={**KDRL, "kd_coef": 1.0},
        options={"aggregation": "token", "kd_mask": "wrong"},
        watch="wrong completions learn from the teacher alone: what the reward would push down is"
        " not pushed. Left out: its entropy weights",
    ),
    "hdpo": replace(
        _kdrl_advantage,
        title="HDPO",
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
        needs=REWARD | TEACHER,
        advantage=sized_advantage,
        coefs={**GRPO, "gap_weight": 0.5, "gap_clip": 0.2},
        options={"aggregation": "token"},
        watch="kl_teacher_rev need not fall: the teacher only decides which tokens move more. λ"
        " and ε_w are our choice",
    ),
    "trrd": replace(
        _grpo,
        title="TRRD",
        source="RLAD (arXiv 2602.22495), Eq. 3–5",
        formula="−min(r·Â, clip(r)·Â),  r = (π_θ/π_old)^α·(π_θ/π_T)^(1−α)",
        needs=REWARD | TEACHER,
        ratio=trrd_ratio,
        coefs={**GRPO, "trrd_alpha": 0.5, "trrd_gap_bound": 1.0, "ratio_cap": 3.0},
        options={"aggregation": "token"},
        watch="trrd/dead_frac: tokens without gradient from the first step on; trrd/bound_frac:"
        " how often the bound acts",
    ),
    **OPD_METHODS,
    "kdrl_annealed": replace(
        _kdrl,
        title="KDRL, annealed",
        source="KDRL (arXiv 2506.02208), §3.3",
        formula="KDRL with kd_coef from β_init to β_min, linearly over the run",
        coefs={**KDRL, "kd_coef": 0.2},
        schedules={"kd_coef": "linear:0.2:0.002"},
    ),
    "kdrl_masked": replace(
        _kdrl,
        title="KDRL, masked",
        source="KDRL (arXiv 2506.02208), §3.4",
        formula="KDRL with M = 1 on wrong completions alone (kd_mask=group_wrong: where nobody in"
        " the group is right)",
        options={"aggregation": "token", "kd_mask": "wrong"},
        watch="completions should stay shorter than KDRL's at the same reward",
    ),
    "opd_then_rl": replace(
        _kdrl_advantage,
        title="OPD-then-RL",
        source="Sequential Beats Joint (arXiv 2609.04108)",
        formula="A = d for the first half of the run, then Â",
        coefs={**KDRL, "kd_coef": 1.0, "rl_coef": 0.0},
        schedules={"kd_coef": "switch:1:0:0.5", "rl_coef": "switch:0:1:0.5"},
        watch="a kink in every curve at the switch",
    ),
}
METHODS: Mapping[str, Method] = MappingProxyType(_table)
"""Every method by name. Nobody writes into it; :func:`add_method` adds a row for this process."""
REWARD_ALONE = (reward_advantage, sized_advantage, group_gated_advantage)
"""Rules whose advantage is 0 where Â is."""


def resolve_options(
    method: Method, options: Options | None = None
) -> dict[str, str | int | bool | None]:
    """Return the method's options with the caller's on top, checked.

    Raises:
        ValueError: see :func:`~rlkd_lab.objectives.settings.checked_options`.
    """
    return checked_options(method.options, options or {})


def needs_of(method: Method, coefs: Coefs, options: Options) -> set[str]:
    """Return what a method needs: its row's needs, a reference where kl_coef > 0, and a divergence
    where an exact KL is asked for.
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
    """Return a schedule for every coefficient of a method: the caller's, the preset's or the
    constant default, each within its knob's range.
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
