"""Which metrics the live curves show together, and how they are called."""

from __future__ import annotations

from rlkd_lab.plots.styles import AXIS_LABELS

GROUPS: dict[str, tuple[tuple[str, ...], ...]] = {
    "main": (("reward",), ("kl_teacher_rev",), ("completions/mean_length",)),
    "entropy": (("entropy",),),
    "clipped and dead tokens": (
        ("clip_ratio/low",),
        ("clip_ratio/high",),
        ("trrd/dead_frac", "trrd/bound_frac"),
    ),
    "KL to the reference": (("kl_ref",),),
    "KL estimates against exact": (
        ("kl_teacher_rev", "kl_teacher_k1", "kl_teacher_k2", "kl_teacher_k3"),
    ),
    "interference": (
        (
            "interference/cosine",
            "interference/cosine_split_reward",
            "interference/cosine_split_teacher",
        ),
        (
            "interference/sign_conflict",
            "interference/sign_conflict_split_reward",
            "interference/sign_conflict_split_teacher",
        ),
    ),
    "length in parts": (
        (
            "completions/length_working",
            "completions/length_checking",
            "completions/length_truncated",
        ),
    ),
    "accuracy": (("eval/accuracy",), ("eval/accuracy_ood",)),
}
"""Groups of curves: a panel for each inner tuple, with one metric or several related ones."""

TITLES: dict[str, str] = {
    **AXIS_LABELS,
    "kl_teacher_rev": "KL(student‖teacher), nats/token",
    "kl_ref": "KL(student‖reference), nats/token",
    "clip_ratio/low": "clipped below, share of tokens",
    "clip_ratio/high": "clipped above, share of tokens",
    "trrd/dead_frac": "dead under TRRD, share of tokens",
    "interference/cosine": "cosine of reward and teacher gradients",
    "interference/sign_conflict": "share of signs in conflict",
    "completions/length_working": "response length in parts, tokens",
    "eval/accuracy": "accuracy, held out",
    "eval/accuracy_ood": "accuracy, out of distribution",
}
LABELS: dict[str, str] = {
    "kl_teacher_rev": "exact",
    "kl_teacher_k1": "k1",
    "kl_teacher_k2": "k2",
    "kl_teacher_k3": "k3",
    "trrd/dead_frac": "gradient cut",
    "trrd/bound_frac": "gap bound acts",
    "interference/cosine": "reward against teacher",
    "interference/sign_conflict": "reward against teacher",
    "interference/cosine_split_reward": "noise floor: two halves, reward",
    "interference/cosine_split_teacher": "noise floor: two halves, teacher",
    "interference/sign_conflict_split_reward": "noise floor: two halves, reward",
    "interference/sign_conflict_split_teacher": "noise floor: two halves, teacher",
    "completions/length_working": "working",
    "completions/length_checking": "checking",
    "completions/length_truncated": "truncated",
}
"""Names of curves that share a panel."""

DIFFERENCE = {
    "reward": "reward",
    "kl_teacher_rev": "KL to the teacher",
    "completions/mean_length": "length",
}
"""Short names of the metrics whose difference to the untouched fork is drawn."""

FAINT = ("main", "entropy", "clipped and dead tokens", "KL to the reference")
"""Groups whose raw values are drawn faint."""

EXPLAINED = {
    "accuracy": "each evaluation, not smoothed",
    "interference": "each measurement, not smoothed",
}
SEVERAL = (("#000000", "-"), ("#0072B2", "--"), ("#D55E00", "-."), ("#009E73", ":"))
"""Styles of metrics that share a panel."""

AREAS = (("#56B4E9", ""), ("#E69F00", "//"), ("#999999", ".."))
"""Colour and hatch of stacked areas."""
