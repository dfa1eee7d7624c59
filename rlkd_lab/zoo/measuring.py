"""What the scripts that make models share after training: measure, choose, store, write a card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from rlkd_lab.models import load_policy, make_dense_copy
from rlkd_lab.models.language_model import Quant
from rlkd_lab.tasks import Split, Task
from rlkd_lab.training.evaluation import evaluate
from rlkd_lab.zoo.recipe import Recipe

QUANTS: tuple[Quant, ...] = ("none", "nf4")
Window = tuple[str, tuple[float, float], tuple[float, float]]
"""Recipe or task, and bounds of accuracy and of the share of direct answers."""
Taken = dict[str, tuple[str, int]]
"""Recipe and step of each model that is kept."""


def measure(
    folder: Path,
    task: Task,
    quant: Quant,
    n: int,
    split: Split,
    *,
    limit: int,
    marks: tuple[str, str],
    difficulty: tuple[int, int] | None = None,
    batch: int = 512,
    device: torch.device | None = None,
) -> dict[str, float]:
    """Measure a checkpoint at T = 1: shares in [0, 1], lengths in tokens.

    Args:
        folder: the checkpoint.
        task: source of the prompts.
        quant: ``nf4`` or ``none``.
        n: number of prompts, with one completion each.
        split: split of the prompts.
        limit: most tokens of a completion.
        marks: beginning of a completion without steps, and a text in one with a check.
        difficulty: difficulty of the prompts; the task's own by default.
        batch: prompts sampled at once.
        device: a GPU if there is one.
    """
    policy = load_policy(str(folder), quant, device=device)
    result = evaluate(
        policy,
        task,
        n,
        split=split,
        difficulty=difficulty,
        max_new_tokens=limit,
        dense=make_dense_copy(policy),
        batch=batch,
    )
    texts = [row["completion"] for row in result.rows]
    return {
        "accuracy": result.accuracy,
        "direct": sum(text.startswith(marks[0]) for text in texts) / n,
        "checked": sum(marks[1] in text for text in texts) / n,
        "length": result.length,
        "truncated": result.truncated,
    }


def chosen(
    measured: Mapping[int, Mapping[str, float]],
    name: str,
    accuracy: tuple[float, float],
    direct: tuple[float, float],
) -> int:
    """Return the step within both bounds whose accuracy is nearest to the middle of its bounds.

    Raises:
        SystemExit: there is no such step.
    """
    (low, high), (least, most) = accuracy, direct
    suits = [
        step
        for step, found in measured.items()
        if low <= found["accuracy"] <= high and least <= found["direct"] <= most
    ]
    if not suits:
        raise SystemExit(
            f"no checkpoint suits {name} ({low:.0%}–{high:.0%} right, {least:.0%}–{most:.0%}"
            " direct): change the recipe it is taken from"
        )
    return min(suits, key=lambda step: abs(measured[step]["accuracy"] - (low + high) / 2))


def store(taken: Taken, work: Path, out: Path) -> None:
    """Copy the checkpoints that are kept to their places."""
    for name, (source, step) in taken.items():
        shutil.rmtree(out / name, ignore_errors=True)
        skip = shutil.ignore_patterns("trained.json")
        shutil.copytree(work / source / f"step_{step}", out / name, ignore=skip)


def card_entry(recipe: Recipe, source: str, step: int, work: Path) -> dict[str, Any]:
    """Return what card.json says of a model before it is measured."""
    trained = work / source / f"step_{step}" / "trained.json"
    made = json.loads(trained.read_text(encoding="utf-8"))
    return {"recipe": asdict(recipe), "taken_from": f"{source}, step {step}", **made}


def write_cards(folder: Path, card: Mapping[str, Any], lines: list[str]) -> None:
    """Write card.json and CARD.md."""
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    (folder / "CARD.md").write_text("\n".join(lines), encoding="utf-8")


def card_header(time_title: str, inside: str, outside: str) -> list[str]:
    """Return the head of a card's table."""
    return [
        f"| model | taken from | parameters | seed | {time_title} | precision | {inside} |"
        f" {outside} | answers directly | checks | length |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]


def card_rows(
    name: str, entry: Mapping[str, Any], table: Mapping[str, Mapping[str, float]], folder: str
) -> list[str]:
    """Return a model's two rows in a card's table, in full precision and in NF4."""
    weights = load_policy(folder, "none").causal_lm.parameters()
    size = sum(one.numel() for one in weights if not one.requires_grad) / 1e6
    lines = []
    for quant, label in (("none", "full"), ("nf4", "NF4")):
        inside = table[quant]
        outside = f"{table[f'{quant} ood']['accuracy']:.1%}" if f"{quant} ood" in table else "–"
        lines.append(
            f"| {name} | {entry['taken_from']} | {size:.2f} M | {entry['recipe']['seed']} |"
            f" {entry['seconds'] / 60:.0f} min | {label} |"
            f" {inside['accuracy']:.1%} | {outside} | {inside['direct']:.0%} |"
            f" {inside['checked']:.0%} | {inside['length']:.1f} |"
        )
    return lines
