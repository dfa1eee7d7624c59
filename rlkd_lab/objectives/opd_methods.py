"""The rows of OPD and of the methods that change what its teacher says.

A = kd_coef·M·d,  d = log π_T − log π_old
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from rlkd_lab.objectives.method import CLIP, KDRL, OPD, REWARD, TEACHER, Method
from rlkd_lab.objectives.opd_rules import (
    centred_advantage,
    early_advantage,
    extrapolated_advantage,
    floored_advantage,
    gated_advantage,
    group_gated_advantage,
    negative_penalty,
    positive_advantage,
    power_advantage,
    reward_gated_penalty,
    sigmoid_penalty,
    sparse_advantage,
    unlikely_advantage,
    unsure_penalty,
)
from rlkd_lab.objectives.rules import reinforce, reward_advantage, teacher_advantage

opd = Method(
    title="OPD",
    source="KDRL (arXiv 2506.02208), Eq. 5",
    formula="−min(ρ·A, clip(ρ)·A),  A = kd_coef·d,  d = log π_T − log π_old",
    needs=TEACHER,
    advantage=teacher_advantage,
    coefs=OPD,
    options={"aggregation": "token"},
    watch="kl_teacher_rev falls; reward rises only as far as the teacher's habits are good",
)

OPD_METHODS: Mapping[str, Method] = {
    "opdvr": replace(
        opd,
        title="OPDVR",
        source="OPDVR (arXiv 2608.24696), by the authors' README",
        formula="−A·log π_θ,  A = kd_coef·s·max(0, s·d),  s = +1 where right, −1 where wrong",
        needs=TEACHER | {"verdicts"},
        surrogate=reinforce,
        advantage=gated_advantage,
        coefs={"kd_coef": 1.0, "kl_coef": 0.0, "importance_cap": None},
        watch="teacher/disagree: the share of tokens that the gate silences",
    ),
    "grpd": replace(
        opd,
        title="GRPD",
        source="OPDVR (arXiv 2608.24696), GRPD; the authors' code also multiplies by |Â|",
        formula="−min(ρ·A, clip(ρ)·A),  A = kd_coef·s·max(0, s·d),  s = sign(Â)",
        needs=REWARD | TEACHER | {"verdicts"},
        advantage=group_gated_advantage,
        watch="groups without spread teach nothing, as in GRPO; teacher/disagree: tokens that the"
        " gate silences",
    ),
    "exopd": replace(
        opd,
        title="ExOPD",
        source="G-OPD (arXiv 2602.12125)",
        formula="−min(ρ·A, clip(ρ)·A),  A = kd_coef·(d + (λ−1)·(log π_T − log π_ref)),"
        "  λ = extrapolation",
        needs=TEACHER | {"reference"},
        advantage=extrapolated_advantage,
        coefs={**OPD, "extrapolation": 1.25},
        watch="λ above 1 goes past the teacher: kl_teacher_rev falls, then rises; a note reports"
        " that λ near 1.5 breaks",
    ),
    "vopd": replace(
        opd,
        title="vOPD",
        source="vOPD (arXiv 2605.07865), by the authors' code",
        formula="−min(ρ·A, clip(ρ)·A),  A = kd_coef·(d + stop-grad KL(π_θ‖π_T)), the exact KL",
        needs=TEACHER | {"divergence"},
        advantage=centred_advantage,
        watch="grad_norm should swing less than OPD's at the same expected gradient",
    ),
    "opsa": replace(
        opd,
        title="OPSA",
        source="OPSA (arXiv 2608.31046), a constant form; the paper's own adapts by entropy",
        formula="−min(ρ·A, clip(ρ)·A),  A = −push on the share push_share of a completion's least"
        " likely tokens, else 0",
        needs=frozenset(),
        advantage=unlikely_advantage,
        coefs={"push": 0.1, "push_share": 0.2, "kl_coef": 0.0, **CLIP},
        watch="a placebo: no teacher and no reward. What it reaches needed neither. push is our"
        " choice",
    ),
    "iwopd": replace(
        opd,
        title="IW-OPD",
        source="IW-OPD (arXiv 2606.22600), by the authors' code and TRL 1.16",
        formula="−min(ρ·A, clip(ρ)·A),  A = kd_coef·d·(1 + γ·(1 − Σ_{s<t} |d_s| / Σ_s |d_s|)),"
        "  γ = early_weight",
        advantage=early_advantage,
        coefs={**OPD, "early_weight": 0.5},
        watch="grad_norm is up to 1 + γ times OPD's: the first tokens of a completion count more",
    ),
    "poweropd": replace(
        opd,
        title="PowerOPD",
        source="PowerOPD (arXiv 2606.17199), by the authors' code",
        formula="−min(ρ·A, clip(ρ)·A),  A = kd_coef·(π_T^a − π_old^a),  a = gap_power",
        advantage=power_advantage,
        coefs={**OPD, "gap_power": 1.0},
        watch="grad_norm has no spikes: A lies within ±kd_coef. a is our choice: the authors'"
        " README says 5, their script 0.4",
    ),
    "reopold": replace(
        opd,
        title="REOPOLD",
        source="REOPOLD (arXiv 2603.11137), Eq. 7, by notes on the paper",
        formula="−min(ρ·A, clip(ρ)·A),  A = kd_coef·max(d, log(λ/(1−λ))),  λ = mixture",
        advantage=floored_advantage,
        coefs={**OPD, "mixture": 0.2},
        watch="grad_norm has fewer spikes than OPD's. Left out: its entropy mask and its two"
        " phases; λ is our choice",
    ),
    "safopd": replace(
        opd,
        title="SAF-OPD",
        source="SAF-OPD (arXiv 2607.29209), by the authors' training script and notes on the paper",
        formula="−min(ρ·A, clip(ρ)·A),  A = Â + kd_coef·c·tanh(d) on the share gap_share of a"
        " completion's largest |d|, else Â;  c = gap_scale",
        needs=REWARD | TEACHER,
        advantage=sparse_advantage,
        coefs={**KDRL, "kd_coef": 1.0, "gap_share": 0.2, "gap_scale": 0.1},
        schedules={"kd_coef": "linear:1:0"},
        watch="entropy should fall more slowly than KDRL's in advantage form. Left out: the warm-up"
        " that ends when the KL has fallen",
    ),
    "sdar": replace(
        opd,
        title="SDAR",
        source="SDAR (arXiv 2605.15155), by a copy of the authors' code; with an outside teacher",
        formula="−min(ρ·Â, clip(ρ)·Â) + kd_coef·M·stop-grad(σ(b·R))·R,  R = log π_T − log π_θ,"
        "  b = gate_slope",
        needs=REWARD | TEACHER,
        advantage=reward_advantage,
        penalty=sigmoid_penalty,
        coefs={**KDRL, "gate_slope": 5.0},
        watch="kl_teacher_rev; entropy falls, since every written token is pushed up a little",
    ),
    "rgopd": replace(
        opd,
        title="RG-OPD",
        source="RG-OPD (arXiv 2607.04037), Eq. 1–4, by the authors' code",
        formula="kd_coef·M·KL(π_θ‖π_T) where Â > 0 and Σ_t d > δ, or Â ≤ 0 and Σ_t d < −δ;"
        "  δ = gate_margin",
        needs=REWARD | TEACHER | {"divergence", "verdicts"},
        ratio=None,
        advantage=None,
        penalty=reward_gated_penalty,
        coefs={"kd_coef": 1.0, "gate_margin": 0.0},
        options={"aggregation": "token", "level": "sequence"},
        watch="loss/kd: 0 if no completion passes the gate. The authors' code gates single tokens"
        " (level=token)",
    ),
    "eopd": replace(
        opd,
        title="EOPD",
        source="EOPD (arXiv 2603.07079), by readers of the authors' code",
        formula="−min(ρ·A, clip(ρ)·A) + cover_coef·kd_coef·M·1[H(π_T) > unsure_above]·KL(π_T‖π_θ),"
        "  A = kd_coef·d",
        needs=TEACHER | {"divergence", "entropy"},
        penalty=unsure_penalty,
        coefs={**OPD, "unsure_above": 0.8, "cover_coef": 1.0},
        options={"aggregation": "token", "divergence": "forward"},
        watch="teacher/entropy against unsure_above; entropy should fall less than OPD's",
    ),
    "aopd": replace(
        opd,
        title="AOPD",
        source="AOPD (arXiv 2605.06387), Eq. 7–10, by notes and a port",
        formula="−min(ρ·A, clip(ρ)·A) + cover_coef·kd_coef·M·1[d ≤ 0]·KL(π_T‖π_θ),"
        "  A = kd_coef·max(0, d)",
        needs=TEACHER | {"divergence"},
        advantage=positive_advantage,
        penalty=negative_penalty,
        coefs={**OPD, "cover_coef": 1.0},
        options={"aggregation": "token", "divergence": "forward"},
        watch="entropy stays higher than OPD's: no token is pushed down as such",
    ),
}
