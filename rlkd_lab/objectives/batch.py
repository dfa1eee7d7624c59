"""TokenBatch: everything a loss may look at, one row a completion, one column a generated token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

_PER_TOKEN = (
    "completion_mask",
    "old_logps",
    "sampler_logps",
    "teacher_logps",
    "ref_logps",
    "teacher_entropy",
    "divergence",
)
_PER_ROW = ("rewards", "correct", "group_ids", "counted", "off_policy")


@dataclass(frozen=True)
class TokenBatch:
    """Per-token tensors of a rollout (or of teacher traces), checked for shape once at
    construction.

    ``logps`` (B, T) alone carries a gradient, and ``divergence`` where it is used. All
    log-probabilities are in nats at the sampling temperature.
    """

    logps: Tensor
    """log π_θ(y_t), (B, T), with gradient."""
    completion_mask: Tensor
    """(B, T): 1 on generated tokens up to and including the end-of-sequence token."""
    old_logps: Tensor | None = None
    """log π_old, (B, T): the policy before the first update on this rollout, by the training
    forward. Missing: on-policy, ``logps.detach()``.
    """
    sampler_logps: Tensor | None = None
    """(B, T): what the sampling engine reported; feeds the importance correction (knob
    ``importance_cap``).
    """
    teacher_logps: Tensor | None = None
    """log π_T on the same tokens, (B, T)."""
    ref_logps: Tensor | None = None
    """log π_ref of the frozen reference, (B, T)."""
    teacher_entropy: Tensor | None = None
    """Entropy of the teacher's next token, (B, T), nats, ≥ 0."""
    rewards: Tensor | None = None
    """(B,): total reward, which may hold format parts."""
    correct: Tensor | None = None
    """(B,): correctness alone, 0 or 1."""
    group_ids: Tensor | None = None
    """(B,) integers: completions of one prompt share an id."""
    counted: Tensor | None = None
    """(B,) of bool: completions that enter their group's mean, spread and masks. Missing: all.
    A completion that does not count has Â = 0; the teacher and reference terms stay where the
    completion mask is 1."""
    off_policy: Tensor | None = None
    """(B,) of bool: traces of the teacher among completions of the policy. Missing: none, or the
    method trains on nothing else."""
    advantages: Tensor | None = None
    """Â, (B,) or (B, T): given, or made by :func:`prepare` from rewards and groups."""
    divergence: Tensor | None = None
    """(B, T) with gradient: exact or top-k divergence to the teacher, from the chunked head."""
    normalizer: float | None = None
    """Tokens or sequences of the whole rollout, by which sums are divided."""
    kd_weight: Tensor | None = None
    """(B,) or (B, T): weight of the teacher term per token, e.g. 0 at an EOS that the teacher does
    not share. :func:`prepare` multiplies the reward-guided mask M into it.
    """
    prepared_for: str | None = None
    """Name of the method that :func:`prepare` made this batch ready for."""
    prepared_with: dict[str, str | int | bool | None] | None = None
    """The options that :func:`prepare` used."""

    def __post_init__(self) -> None:
        if self.logps.dim() != 2:
            raise ValueError(f"logps must be (B, T); got {tuple(self.logps.shape)}")
        rows, tokens = self.logps.shape
        wanted: dict[str, list[tuple[int, ...]]] = {name: [(rows, tokens)] for name in _PER_TOKEN}
        wanted.update({name: [(rows,)] for name in _PER_ROW})
        wanted.update({name: [(rows,), (rows, tokens)] for name in ("advantages", "kd_weight")})
        for name, shapes in wanted.items():
            value = getattr(self, name)
            if value is not None and tuple(value.shape) not in shapes:
                expected = " or ".join(str(shape) for shape in shapes)
                raise ValueError(
                    f"{name} must be {expected} beside logps of {(rows, tokens)}; got"
                    f" {tuple(value.shape)}"
                )

        for name in ("counted", "off_policy"):
            value = getattr(self, name)
            if value is not None and value.dtype != torch.bool:
                raise ValueError(f"{name} must be of bool; got {value.dtype}: use {name}.bool()")

    @property
    def mask(self) -> Tensor:
        """``completion_mask`` in the dtype of ``logps``."""
        return self.completion_mask.to(self.logps.dtype)

    @property
    def own_mask(self) -> Tensor:
        """``mask`` with 0 on traces: the tokens that the policy wrote."""
        return self.mask if self.off_policy is None else self.mask * ~self.off_policy[:, None]

    @property
    def old(self) -> Tensor:
        """``old_logps``, or the detached ``logps`` on-policy."""
        return self.logps.detach() if self.old_logps is None else self.old_logps

    def blank_padding(self) -> TokenBatch:
        """0 in every per-token field where the mask is 0: padding may hold anything, and 0·inf
        is NaN in the backward pass.
        """
        padding = self.completion_mask == 0
        names = ("logps", *_PER_TOKEN[1:])
        given = {name: getattr(self, name) for name in names}
        return replace(
            self,
            **{
                name: value.masked_fill(padding, 0.0)
                for name, value in given.items()
                if value is not None
            },
        )

    def select(self, rows: Tensor | slice) -> TokenBatch:
        """Return the same batch with some of its rows; the normaliser stays that of the whole
        rollout.
        """
        return replace(
            self,
            **{
                f.name: getattr(self, f.name)[rows]
                for f in fields(self)
                if isinstance(getattr(self, f.name), Tensor)
            },
        )

    def split(self, n: int) -> Iterator[TokenBatch]:
        """``n`` micro-batches of (nearly) equal numbers of rows; at most one per row."""
        if n < 1:
            raise ValueError(f"a batch splits into 1 or more parts; got {n}")
        for rows in torch.arange(self.logps.shape[0]).tensor_split(min(n, self.logps.shape[0])):
            yield self.select(slice(int(rows[0]), int(rows[-1]) + 1))
