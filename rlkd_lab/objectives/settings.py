"""Knobs with their ranges, options with their values, and errors that name the nearest one."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from types import MappingProxyType

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
        "extrapolation": Knob(
            0.0,
            3.0,
            "λ of ExOPD: 1 follows the teacher, 0 the reference, above 1 goes past the teacher",
        ),
        "early_weight": Knob(
            0.0, 10.0, "γ of IW-OPD: how much more a completion's first tokens count; 0 is OPD"
        ),
        "gap_power": Knob(0.01, 500.0, "a of PowerOPD: the power of both probabilities", log=True),
        "mixture": Knob(
            1e-4, 0.5, "λ of REOPOLD: the gap is at least log(λ/(1−λ)); at 0.5 none is below 0"
        ),
        "gap_share": Knob(
            0.0,
            1.0,
            "share of a completion's tokens, by the size of the gap, that SAF-OPD hears",
        ),
        "gap_scale": Knob(0.0, 10.0, "c of SAF-OPD: the gap enters as c·tanh(d)", log=True),
        "gate_slope": Knob(0.0, 100.0, "b of SDAR: how sharply its gate opens with the gap"),
        "gate_margin": Knob(
            0.0, 1000.0, "δ of RG-OPD: nats by which teacher and student must differ"
        ),
        "unsure_above": Knob(
            0.0, 20.0, "EOPD: nats of the teacher's entropy above which the forward KL acts"
        ),
        "cover_coef": Knob(
            0.0, 10.0, "weight of the forward KL that EOPD and AOPD add, beside kd_coef", log=True
        ),
        "push": Knob(0.0, 10.0, "how strongly OPSA pushes a token down", log=True),
        "push_share": Knob(
            0.0, 1.0, "share of a completion's least likely tokens that OPSA pushes"
        ),
        "trace_gamma": Knob(
            1e-4, 1e4, "γ of LUFFY: a trace's token of probability p counts p/(p + γ)", log=True
        ),
        "trace_weight": Knob(
            0.0, 1.0, "μ of CHORD: weight of the traces' term; the reward's has 1 − μ"
        ),
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
"""Options and their values, the default first."""
OPTION_HELP: Mapping[str, str] = MappingProxyType(
    {
        "aggregation": "how tokens are averaged: over all tokens, within each completion first, or"
        " by a constant length",
        "scale_rewards": "divide Â by the group's spread, or not",
        "group_rows": "whether completions that could not be judged, or that `mask_truncated`"
        " leaves out, enter their group's mean, spread and masks",
        "zero_spread": "keep groups whose rewards are all equal, or draw them again",
        "level": "one ratio a token, or one a completion (RG-OPD: one gate)",
        "estimator": "how the KL to the teacher is computed",
        "kd_ratio": "multiply k2 and k3 by the ratio, which keeps the estimate right off-policy",
        "kd_mask": "where the teacher speaks: everywhere, on wrong completions, or where nobody in"
        " the group is right",
        "kd_normalizer": "after masking, divide the teacher's term as the reward's, or by what is"
        " kept",
        "divergence": "which divergence to the teacher",
        "ref_estimator": "how the KL to the reference is computed",
        "keep_traces": "which traces of the teacher are trained on",
    }
)
"""What each option does.

With ``group_rows='judged'`` a completion that does not count has Â = 0. The teacher term stays on
one that could not be judged. With ``all``, both kinds enter with their reward.

Beside these, ``constant_length`` (int) is the length limit of ``aggregation='constant'``, and
``topk`` (int) the support of a divergence.
"""
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
        if len(valid) <= 40
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


def checked_options(*given: Options) -> dict[str, str | int | bool | None]:
    """Return the default options with the given ones on top, later ones over earlier ones.

    Raises:
        ValueError: for an unknown option or value; ``estimator='k1'`` is refused with the reason.
    """
    resolved: dict[str, str | int | bool | None] = {
        **DEFAULT_OPTIONS,
        "constant_length": None,
        "topk": None,
    }
    for options in given:
        resolved |= options
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
