"""What the scripts that make models share: a recipe, a training run that can be stopped, and
what a checkpoint does at T = 1.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from rlkd_lab.models import load_policy, make_dense_copy
from rlkd_lab.models.language_model import Quant
from rlkd_lab.models.loading import compute_dtype
from rlkd_lab.tasks import Split, Task
from rlkd_lab.training.evaluation import evaluate

QUANTS: tuple[Quant, ...] = ("none", "nf4")
Row = tuple[list[int], list[int]]
"""Token ids and labels of one example; a label of -100 does not count."""
Part = tuple[torch.Tensor, torch.Tensor]
"""The same padded, (batch, time)."""


@dataclass(frozen=True)
class Recipe:
    """How one model is made."""

    hidden: int
    layers: int
    heads: int
    feed_forward: int
    steps: int
    batch: int
    lr: float
    cosine: bool
    direct: float
    """Share of completions that answer at once, without steps."""
    corrupted: float
    """Share of the worked completions in which one step is wrong and the rest follows from it."""
    checked: float
    """Share of the worked completions that repeat their steps as a check."""
    seed: int
    long: float = 0.1
    """Share of prompts of the task's out-of-distribution difficulty: seen in pre-training,
    never among the post-training prompts.
    """
    task: str = "arithmetic"
    part_tokens: int | None = None
    """A batch goes through the model in parts of at most so many tokens, sorted by length,
    which saves padding; None is one part.
    """
    context: int = 512
    key_heads: int = 1


def drawn_style(
    recipe: Recipe, rng: random.Random
) -> Literal["direct", "corrupted", "checked", "steps"]:
    """One of the recipe's mixture of styles."""
    if rng.random() < recipe.direct:
        return "direct"
    if rng.random() < recipe.corrupted:
        return "corrupted"
    return "checked" if rng.random() < recipe.checked else "steps"


def row_of(prompt: str, completion: str, tokenizer: PreTrainedTokenizerBase) -> Row:
    """Prompt and completion with an end of sequence; the prompt has no labels."""
    ids = tokenizer(prompt)["input_ids"]
    target = tokenizer(completion)["input_ids"] + [tokenizer.eos_token_id]
    return ids + target, [-100] * len(ids) + target


def parts_of(rows: list[Row], part_tokens: int | None, pad: int) -> list[Part]:
    """The rows of a step, cut into parts of at most ``part_tokens`` tokens each, padding
    included.
    """
    parts = [rows]
    if part_tokens is not None:
        parts = [[]]
        for row in sorted(rows, key=lambda row: -len(row[0])):
            if parts[-1] and (len(parts[-1]) + 1) * len(parts[-1][0][0]) > part_tokens:
                parts.append([])
            parts[-1].append(row)
    return [_padded(part, pad) for part in parts]


def _padded(rows: list[Row], pad: int) -> Part:
    width = max(len(ids) for ids, _ in rows)
    return torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in rows]), torch.tensor(
        [labels + [-100] * (width - len(labels)) for _, labels in rows]
    )


def new_model(recipe: Recipe, vocabulary: int) -> Qwen3ForCausalLM:
    """A Qwen3 with the recipe's widths and weights from its seed."""
    torch.manual_seed(recipe.seed)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=recipe.hidden,
            intermediate_size=recipe.feed_forward,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.key_heads,
            head_dim=64,
            max_position_embeddings=recipe.context,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=0,
        )
    )


def pretrain(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: int,
    batches: Callable[[int], Iterable[list[Part]]],
    folder: Path,
    every: int,
    device: torch.device | None = None,
) -> Iterator[tuple[int, float, float]]:
    """Train a new model, or go on with one that was stopped; yields step, loss and seconds so far.

    On a GPU that has bfloat16 products are computed in it, on a CPU in float32; weights and
    optimizer are float32 everywhere.

    Args:
        recipe: widths, steps, learning rate.
        tokenizer: stored beside each checkpoint.
        vocabulary: rows of the embedding.
        batches: from a step to its batch and all that follow; each a pure function of its step, so
            that a stopped run goes on as if it had not been.
        folder: of the checkpoints: ``step_N`` in 16 bit, and ``resume.pt``.
        every: steps between checkpoints.
        device: CPU if left out.

    Raises:
        ValueError: the folder has checkpoints of another recipe.
    """
    device = device or torch.device("cpu")
    model = new_model(recipe, vocabulary)
    model.to(device)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=recipe.lr,
        betas=(0.9, 0.98),
        weight_decay=0.01,
        fused=True if device.type == "cuda" else None,
    )

    def scale(step: int) -> float:
        warm = min(1.0, (step + 1) / 100)
        left = max(0.0, 1 - step / recipe.steps)
        return warm * (left if recipe.cosine else 1.0)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
    start, spent, state = 0, 0.0, folder / "resume.pt"
    if state.exists():
        saved = torch.load(state, weights_only=True, map_location=device)
        if saved.get("recipe") != asdict(recipe):
            raise ValueError(
                f"{folder} has checkpoints of another recipe: remove it, or name another work"
                " folder"
            )
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        start, spent = saved["step"], saved["seconds"]
    model.train()
    began = time.monotonic() - spent
    for step, parts in enumerate(batches(start), start):
        tokens = sum(int((labels >= 0).sum()) for _, labels in parts)
        optimizer.zero_grad()
        losses = []
        for part in parts:
            ids, labels = (tensor.to(device, non_blocking=True) for tensor in part)
            with torch.autocast(
                device.type, torch.bfloat16, enabled=compute_dtype(device) == torch.bfloat16
            ):
                logits = model(input_ids=ids).logits[:, :-1]
                loss = (
                    torch.nn.functional.cross_entropy(
                        logits.flatten(0, 1),
                        labels[:, 1:].flatten(),
                        ignore_index=-100,
                        reduction="sum",
                    )
                    / tokens
                )
            loss.backward()
            losses.append(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        mean = sum(
            part.item() for part in losses
        )  # only now, so that no part waits for the one before
        seconds = time.monotonic() - began
        if (step + 1) % every == 0:
            save(model, tokenizer, folder / f"step_{step + 1}")
            made = {"steps": step + 1, "seconds": round(seconds), "loss": round(mean, 4)}
            (folder / f"step_{step + 1}" / "trained.json").write_text(
                json.dumps(made), encoding="utf-8"
            )
            weights = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
            }
            torch.save(
                {**weights, "step": step + 1, "seconds": seconds, "recipe": asdict(recipe)},
                state.with_suffix(".tmp"),
            )
            state.with_suffix(".tmp").rename(state)
        yield step + 1, mean, seconds


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Store weights as bfloat16 safetensors beside their tokenizer."""
    half = Qwen3ForCausalLM(model.config)
    half.load_state_dict(model.state_dict())
    half.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


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
    """What a checkpoint does at T = 1: shares in [0, 1], lengths in tokens.

    Args:
        folder: of the checkpoint.
        task: where the prompts come from.
        quant: ``nf4`` or ``none``.
        n: prompts, one completion each.
        split: of the prompts.
        limit: tokens of a completion.
        marks: what a completion without steps starts with, and what one with a check has in it.
        difficulty: of the prompts; the task's own by default.
        batch: prompts sampled at once.
        device: GPU if there is one.
    """
    policy = load_policy(str(folder), quant, device=device)
    dense = make_dense_copy(policy)
    result = evaluate(
        policy,
        task,
        n,
        split=split,
        difficulty=difficulty,
        max_new_tokens=limit,
        dense=dense,
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
    """The step within both windows whose accuracy is nearest to the middle of its own;

    SystemExit where there is none.
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


def card_header(time_title: str, inside: str, outside: str) -> list[str]:
    """The head of a card's table."""
    return [
        f"| model | taken from | parameters | seed | {time_title} | precision | {inside} |"
        f" {outside} | answers directly | checks | length |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]


def card_rows(
    name: str, entry: Mapping[str, Any], table: Mapping[str, Mapping[str, float]], folder: str
) -> list[str]:
    """A model's two rows in a card's table, in full precision and in NF4."""
    size = (
        sum(
            p.numel()
            for p in load_policy(folder, "none").causal_lm.parameters()
            if not p.requires_grad
        )
        / 1e6
    )
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
