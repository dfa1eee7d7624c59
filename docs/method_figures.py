"""Draw what each method does to one token: `docs/methods/figures/KEY.svg`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlkd_lab.objectives import METHODS, TokenBatch, divergence, terms
from rlkd_lab.objectives.methods import resolve_options
from rlkd_lab.objectives.rules import from_both, from_teacher

WORDS = ("so", "hm", "but", "ok")
STUDENT = (0.3, 0.4, 0.2, 0.1)
TEACHER = (0.6, 0.2, 0.15, 0.05)
SAMPLED = (0, 1, 0)
RATIO = (1.0, 1.0, 1.25)
ROWS = ("right completion", "wrong completion", "nobody is right")
COLUMNS = (
    "wrote “so”: the teacher agrees",
    "wrote “hm”: it does not",
    "“so”, already 1.25 × likelier",
)
SEEN = 0.5
"""The least kd_coef of a figure, so that the teacher's part can be seen."""


def pushes(key: str) -> Tensor:
    """Return minus the gradient of one token's loss with respect to the scores of four words.

    Each of three columns has a group with a right and a wrong completion, and a group with two
    wrong ones. Where a step trains on both, one group has a right completion, a right trace and
    two wrong completions. Shape: (3 rows, 3 columns, 4 words).
    """
    row = METHODS[key]
    choices: dict[str, Any] = resolve_options(row)
    both = _beside(key)
    correct = torch.tensor([1, 0, 1, 0] if both else [1, 0, 0, 0]).repeat_interleave(3)
    scores = torch.tensor(STUDENT, dtype=torch.float64).log().repeat(12, 1).requires_grad_()
    mine, theirs = scores.log_softmax(-1), torch.tensor(TEACHER, dtype=torch.float64).log()
    sampled = torch.tensor(SAMPLED).repeat(4)[:, None]
    logps = mine.gather(1, sampled)
    apart = divergence(
        choices["divergence"], mine, theirs.expand(12, 4), row.coefs.get("jsd_weight") or 0.5
    )
    batch = TokenBatch(
        logps,
        (
            correct
            if row.samples is from_teacher and choices["keep_traces"] == "correct"
            else torch.ones(12)
        )[:, None],
        old_logps=logps.detach()
        - torch.tensor(RATIO, dtype=torch.float64).log().repeat(4)[:, None],
        teacher_logps=theirs[sampled],
        ref_logps=logps.detach(),
        teacher_entropy=-(theirs.exp() * theirs).sum().expand(12, 1),
        rewards=correct.double(),
        correct=correct,
        group_ids=torch.arange(12) % 3 + (0 if both else 3) * (torch.arange(12) > 5),
        off_policy=torch.arange(12) // 3 == 2 if both else None,
        divergence=apart[:, None],
    )
    parts = terms(key, batch, _shown(key))
    given = (parts.surrogate.loss if parts.surrogate else None, parts.penalty, parts.reference)
    loss = sum((part.sum() for part in given if part is not None), torch.zeros(()))
    (gradient,) = torch.autograd.grad(loss, scores)
    return -gradient.reshape(4, 3, 4)[:3]


def _beside(key: str) -> bool:
    """Whether a step of the method trains on completions and a trace of each prompt."""
    return METHODS[key].samples is from_both


def figure(key: str) -> str:
    """Return the drawing of :func:`pushes` as SVG, the two distributions above it."""
    found = pushes(key)
    other = "".join(f"; here {name} = {x:g}" for name, x in _shown(key).items())
    lines = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 478" font-size="12"'
        ' font-family="sans-serif" fill="#222"><rect width="760" height="478" fill="white"/>'
    ]

    def text(x: float, y: float, words: str, more: str = "") -> None:
        lines.append(f'<text x="{x:.0f}" y="{y:.0f}"{more}>{words}</text>')

    def bar(x: float, base: float, height: float, colour: str, more: str = "") -> None:
        top = min(base, base - height)
        lines.append(
            f'<rect x="{x:.0f}" y="{top:.1f}" width="22" height="{abs(height):.1f}"'
            f' fill="{colour}"{more}/>'
        )

    middle, bold = ' text-anchor="middle"', ' font-weight="bold"'
    text(12, 22, METHODS[key].title, ' font-size="15"' + bold)
    text(12, 42, "before the step:")
    for n, word in enumerate(WORDS):
        for colour, shift, p in (("#999999", 0, STUDENT[n]), ("#E69F00", 23, TEACHER[n])):
            bar(150 + 62 * n + shift, 78, 80 * p, colour)
            text(161 + 62 * n + 1.2 * shift, 74 - 80 * p, f"{p:g}"[1:], middle)
        text(172 + 62 * n, 92, word, middle)
    for n, (colour, name) in enumerate((("#999999", "student"), ("#E69F00", "teacher"))):
        bar(430, 50 + 22 * n, 14, colour)
        text(458, 49 + 22 * n, f"probability, {name}")
    text(12, 120, "push on each word’s score:", bold)
    text(200, 120, "minus the gradient of the loss; the bold word was written" + other)
    scale = 34 / max(float(found.abs().max()), 1e-9)
    for column, title in enumerate(COLUMNS):
        text(235 + 210 * column, 144, title, middle)
    for row, name in enumerate((*ROWS[:2], "trace, right") if _beside(key) else ROWS):
        base = 200 + 108 * row
        text(12, base + 4, name)
        for column in range(3):
            left = 145 + 210 * column
            lines.append(f'<path d="M{left} {base}h180" stroke="#222"/>')
            for n, word in enumerate(WORDS):
                push = float(found[row, column, n])
                bar(left + 12 + 44 * n, base, push * scale, "#009E73" if push > 0 else "#D55E00")
                said = f"{push:+.2f}".replace("-", "−") if abs(push) > 0.005 else "0"
                at = base - max(push * scale, 0) - 4
                text(left + 23 + 44 * n, at, said, middle)
                text(left + 23 + 44 * n, base + 50, word, middle + bold * (n == SAMPLED[column]))
    return "\n".join([*lines, "</svg>", ""])


def _shown(key: str) -> dict[str, float]:
    """Return the coefficients that differ from the method's defaults."""
    given = METHODS[key].coefs.get("kd_coef")
    return {"kd_coef": SEEN} if given is not None and given < SEEN else {}
