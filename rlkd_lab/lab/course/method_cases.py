"""A method with random batches to test it on, in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlkd_lab.objectives import METHODS, TokenBatch, token_loss
from rlkd_lab.objectives.methods import needs_of, resolve_options

NEXT_TO_NOTHING = 1e-9
LENGTHS = (5, 3, 4, 1, 0, 2)  # one completion has no token at all
GROUPS = (0, 1, 2, 0, 1, 2)  # interleaved, so that every micro-batch cuts a group

Coefs = dict[str, float | None]
Finding = tuple[bool | None, str]
"""Whether a check passed (``None``: it does not apply), and what was measured, in words."""


@dataclass
class Case:
    """A method with every term of its loss switched on."""

    name: str

    def __post_init__(self) -> None:
        self.method = METHODS[self.name]
        self.defaults: Coefs = dict(self.method.coefs)
        if self.defaults.get("rl_coef") == 0:  # a preset that begins without the reward
            self.defaults["rl_coef"] = 1.0
        extra = {"kl_coef": 0.3, "importance_cap": 1.5}
        self.active: Coefs = {name: extra.get(name, value) for name, value in self.defaults.items()}
        self.options = resolve_options(self.method, {"constant_length": max(LENGTHS)})
        self.needs = needs_of(self.method, self.active, self.options)

    def rollout(self, seed: int = 0, on_policy: bool = False) -> TokenBatch:
        """Return six completions of three prompts, padded; (6, 5)."""
        rows, width = len(LENGTHS), max(LENGTHS)
        logps = (-1.5 - random_normal(rows, width, seed=seed).abs()).requires_grad_()

        def near(offset: int, spread: float) -> Tensor:
            return logps.detach() + spread * random_normal(rows, width, seed=100 * seed + offset)

        batch = TokenBatch(
            logps=logps,
            completion_mask=(torch.arange(width) < torch.tensor(LENGTHS)[:, None]).long(),
            old_logps=None if on_policy else near(1, 0.3),
            sampler_logps=near(2, 0.3),
            teacher_logps=near(3, 0.8) if "teacher" in self.needs else None,
            ref_logps=near(4, 0.5),
            teacher_entropy=random_normal(rows, width, seed=100 * seed + 7).abs(),
            correct=torch.tensor([1, 0, 0, 0, 1, 0]),
            group_ids=torch.tensor(GROUPS),
        )
        if "divergence" in self.needs:
            exact = random_normal(rows, width, seed=seed + 6).abs().requires_grad_()
            batch = replace(batch, divergence=exact)
        if "groups" in self.needs:
            batch = replace(batch, rewards=random_normal(rows, seed=seed + 5))
        if {"groups", "traces"} <= self.needs:  # a trace in one group
            batch = replace(batch, off_policy=torch.arange(rows) == 3)
        return batch

    def loss(self, batch: TokenBatch, coefs: Coefs | None = None) -> Tensor:
        """Return the loss of a batch, a scalar; every term is on unless ``coefs`` is given."""
        return token_loss(self.name, batch, self.active if coefs is None else coefs, self.options)[
            0
        ]


def random_normal(*shape: int, seed: int) -> Tensor:
    """Return normal numbers in float64, always the same for a seed."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def leaves_of(batch: TokenBatch) -> list[Tensor]:
    """Return the tensors of a batch that have a gradient."""
    return [batch.logps] if batch.divergence is None else [batch.logps, batch.divergence]


def gradient_of(loss: Tensor, leaves: list[Tensor]) -> Tensor:
    """Return ∂loss/∂leaves as one vector, 0 where a leaf was not used."""
    if not loss.requires_grad:
        return torch.zeros(sum(leaf.numel() for leaf in leaves), dtype=torch.float64)
    parts = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
    filled = [
        torch.zeros_like(leaf) if part is None else part
        for leaf, part in zip(leaves, parts, strict=True)
    ]
    return torch.cat([part.flatten() for part in filled])


def outcome_of(loss: Tensor, batch: TokenBatch) -> Tensor:
    """Return value and gradient as one vector."""
    return torch.cat([loss.detach().reshape(1), gradient_of(loss, leaves_of(batch))])


def gap_between(ours: Tensor, theirs: Tensor) -> float:
    """Return ‖a − b‖ / ‖b‖, or ‖a − b‖ where b is 0."""
    norm = float(theirs.norm())
    gap = float((ours - theirs).norm()) / (norm if norm > NEXT_TO_NOTHING else 1.0)
    return gap if gap == gap else float("inf")  # a NaN must fail every check
