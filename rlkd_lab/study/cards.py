"""The cards of the embedded models: recipe and accuracy, as measured when they were made."""

from __future__ import annotations

import json
import math
from typing import Any

import pandas as pd
from safetensors import safe_open

from rlkd_lab.models import locate
from rlkd_lab.models.locating import ZOO
from rlkd_lab.tasks import find_task


def cards() -> dict[str, Any]:
    """Return ``{name: {"parameters", "taken_from", "recipe", "steps", "loss", …, "table"}}``.

    ``table`` maps "none", "nf4", "none ood" and "nf4 ood" to shares and mean length.
    """
    models = json.loads((ZOO / "card.json").read_text(encoding="utf-8"))["models"]
    return {name: {"parameters": parameters(name), **card} for name, card in models.items()}


def parameters(name: str) -> int:
    """Count the weights of a model in the headers of its files; tied ones count once."""
    total = 0
    for path in sorted(locate(name).glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            total += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118 - no mapping
    return total


def accuracies(card: dict[str, Any]) -> pd.DataFrame:
    """Return a card's table, a row for each precision ("full", "NF4") and set ("id", "ood").

    The columns are ``accuracy``, ``direct``, ``checked``, ``length`` and ``truncated``.
    """
    return pd.DataFrame(
        [
            {
                "precision": {"none": "full", "nf4": "NF4"}[key.partition(" ")[0]],
                "set": key.partition(" ")[2] or "id",
                **row,
            }
            for key, row in card["table"].items()
        ]
    )


def levels(card: dict[str, Any], which: str) -> str:
    """Return the difficulties of ``id`` or ``ood``: ``2–5`` operations, ``2–4`` people, …"""
    task = find_task(card["recipe"].get("task", "arithmetic"))
    low, high = task.train_difficulty if which == "id" else task.ood_difficulty or (0, 0)
    return str(low) if low == high else f"{low}–{high}"
