"""Pre-training a new model: a run that can be stopped and started again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from rlkd_lab.models.loading import compute_dtype
from rlkd_lab.zoo.recipe import Part, Recipe


def new_model(recipe: Recipe, vocabulary: int) -> Qwen3ForCausalLM:
    """Return a Qwen3 with the recipe's widths and weights from its seed."""
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


class _Training:
    """A model, its optimizer and its learning-rate schedule."""

    def __init__(self, recipe: Recipe, vocabulary: int, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        self.model = new_model(recipe, vocabulary)
        self.model.to(device)  # type: ignore[arg-type]
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=recipe.lr,
            betas=(0.9, 0.98),
            weight_decay=0.01,
            fused=True if device.type == "cuda" else None,
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._scale)
        self.parts: dict[str, Any] = {
            "model": self.model,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
        }

    def _scale(self, step: int) -> float:
        warm = min(1.0, (step + 1) / 100)
        left = max(0.0, 1 - step / self.recipe.steps)
        return warm * (left if self.recipe.cosine else 1.0)

    def resume(self, file: Path) -> tuple[int, float]:
        """Load a stopped run, if there is one; return its step and its seconds."""
        if not file.exists():
            return 0, 0.0
        saved = torch.load(file, weights_only=True, map_location=self.device)
        if saved.get("recipe") != asdict(self.recipe):
            raise ValueError(
                f"{file.parent} has checkpoints of another recipe: remove it, or name another"
                " work folder"
            )
        for name, part in self.parts.items():
            part.load_state_dict(saved[name])
        return saved["step"], saved["seconds"]

    def keep(self, file: Path, step: int, seconds: float) -> None:
        """Save everything that :meth:`resume` needs."""
        state = {name: part.state_dict() for name, part in self.parts.items()}
        at = {"step": step, "seconds": seconds, "recipe": asdict(self.recipe)}
        torch.save({**state, **at}, file.with_suffix(".tmp"))
        file.with_suffix(".tmp").rename(file)

    def step(self, parts: list[Part]) -> float:
        """Take one step on a batch and return its mean loss."""
        tokens = sum(int((labels >= 0).sum()) for _, labels in parts)
        self.optimizer.zero_grad()
        losses = []
        for part in parts:
            loss = self._summed_loss(part) / tokens
            loss.backward()
            losses.append(loss.detach())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        return sum(loss.item() for loss in losses)  # read last, so that no part waits for another

    def _summed_loss(self, part: Part) -> torch.Tensor:
        ids, labels = (tensor.to(self.device, non_blocking=True) for tensor in part)
        dtype = torch.bfloat16
        with torch.autocast(self.device.type, dtype, enabled=compute_dtype(self.device) == dtype):
            logits = self.model(input_ids=ids).logits[:, :-1]
            return torch.nn.functional.cross_entropy(
                logits.flatten(0, 1),
                labels[:, 1:].flatten(),
                ignore_index=-100,
                reduction="sum",
            )


def pretrain(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    batches: Callable[[int], Iterable[list[Part]]],
    folder: Path,
    every: int,
    device: torch.device | None = None,
) -> Iterator[tuple[int, float, float]]:
    """Train a new model, or resume a stopped run; yield step, loss and seconds so far.

    Products are in bfloat16 on a GPU that has it, and in float32 elsewhere.
    Weights and optimizer are float32 everywhere.

    Args:
        recipe: widths, steps, learning rate.
        tokenizer: stored beside each checkpoint. The embedding has a multiple of 64 rows.
        batches: from a step to its batch and all that follow. Each is a pure function of its
            step, so that a resumed run is the same as one without a stop.
        folder: place of the checkpoints ``step_N``, in 16 bit, and of ``resume.pt``.
        every: steps between checkpoints.
        device: the CPU by default.

    Raises:
        ValueError: the folder has checkpoints of another recipe.
    """
    vocabulary = -(-len(tokenizer) // 64) * 64
    training = _Training(recipe, vocabulary, device or torch.device("cpu"))
    start, spent = training.resume(folder / "resume.pt")
    training.model.train()
    began = time.monotonic() - spent
    for step, parts in enumerate(batches(start), start + 1):
        loss = training.step(parts)
        seconds = time.monotonic() - began
        if step % every == 0:
            place = folder / f"step_{step}"
            save(training.model, tokenizer, place)
            made = {"steps": step, "seconds": round(seconds), "loss": round(loss, 4)}
            (place / "trained.json").write_text(json.dumps(made), encoding="utf-8")
            training.keep(folder / "resume.pt", step, seconds)
        yield step, loss, seconds


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Store weights as bfloat16 safetensors beside their tokenizer."""
    half = Qwen3ForCausalLM(model.config)
    half.load_state_dict(model.state_dict())
    half.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
