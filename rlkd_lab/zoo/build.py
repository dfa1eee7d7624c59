"""Pre-train the embedded students and teachers: ``python -m rlkd_lab.zoo.build``.

Three models are trained from fixed seeds, one thread each, two side by side; checkpoints go to a work folder so that a stopped build goes on. The two
students are then *chosen* among the checkpoints of one training run by :data:`WINDOWS`, as loaded in NF4 and sampled at T = 1 on validation prompts; the
card's table is made on test prompts. Nothing here looks at any later training with KD, GRPO, KDRL or TRRD.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from transformers import Qwen3Config, Qwen3ForCausalLM

from rlkd_lab.models import load_policy
from rlkd_lab.models.loading import Quant
from rlkd_lab.rollouts import DenseTwin
from rlkd_lab.tasks import Example, Split, arithmetic, find_task, knights
from rlkd_lab.training.environment import describe_environment
from rlkd_lab.training.evaluation import evaluate
from rlkd_lab.zoo.tokenizer import VOCAB_SIZE, character_tokenizer

ZOO = Path(__file__).parent


@dataclass(frozen=True)
class Recipe:
    """How one embedded model is made."""

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
    """Share of prompts of the task's out-of-distribution difficulty: seen in pre-training, never among the post-training prompts."""
    task: Literal["arithmetic", "knights"] = "arithmetic"
    part_tokens: int | None = None
    """A batch goes through the model in parts of at most so many tokens, sorted by length, which saves padding; None is one part."""


RECIPES = {
    # The student has seen a few checks: on-policy distillation can only reinforce what the student writes at least now and then.
    "student": Recipe(128, 4, 2, 384, 1000, 64, 1e-3, False, direct=0.5, corrupted=0.1, checked=0.1, seed=11),
    "teacher": Recipe(192, 4, 3, 512, 1500, 64, 1.5e-3, True, direct=0.0, corrupted=0.0, checked=1.0, seed=12),
    "teacher-concise": Recipe(192, 4, 3, 512, 1500, 64, 1.5e-3, True, direct=0.0, corrupted=0.0, checked=0.0, seed=13),
    "knights-student": Recipe(128, 4, 2, 384, 1500, 64, 1e-3, False, 0.5, 0.1, 0.1, seed=21, long=0.05, task="knights", part_tokens=1000),
    "knights-teacher": Recipe(192, 4, 3, 512, 2000, 64, 1.5e-3, True, 0.0, 0.0, 1.0, seed=22, long=0.05, task="knights", part_tokens=1000),
    "knights-teacher-concise": Recipe(192, 4, 3, 512, 2000, 64, 1.5e-3, True, 0.0, 0.0, 0.0, seed=23, long=0.05, task="knights", part_tokens=1000),
}
WINDOWS = {
    "student-weak": ("student", (0.08, 0.15), (0.0, 1.0)),
    "student": ("student", (0.25, 0.60), (0.45, 0.55)),
    "knights-student-weak": ("knights-student", (0.20, 0.30), (0.0, 1.0)),  # a blind guess is right in 15 %
    "knights-student": ("knights-student", (0.35, 0.65), (0.45, 0.55)),
}
"""Recipe, and accuracy and share of direct answers (NF4, T = 1, the training difficulty) that a student must have. Taken is the checkpoint nearest to the
middle of the accuracies."""
LIMIT = {"arithmetic": 200, "knights": 600}
"""Tokens that a completion may have when a model is measured."""
CHOOSE_ON, REPORT_ON = 1024, 2048
"""Prompts for choosing (validation) and for the card (test)."""
EVERY = 100
QUANTS: tuple[Quant, ...] = ("none", "nf4")


def completion_for(example: Example, recipe: Recipe, rng: random.Random) -> str:
    """One pre-training completion in the recipe's mixture of styles."""
    worked = arithmetic.worked if recipe.task == "arithmetic" else knights.worked
    if rng.random() < recipe.direct:
        return worked(example, "direct")
    if rng.random() < recipe.corrupted:
        if recipe.task == "knights":
            return knights.worked(example, "steps", wrong_try=rng.randrange(knights.assignments(example.difficulty).index(example.answer) + 1))
        error = rng.choice([-1, 1]) * rng.randint(1, 10)
        lines, value = arithmetic.steps(example.prompt, wrong_at=rng.randrange(example.difficulty), error=error)
        return "".join(lines) + f"#{value}"
    return worked(example, "checked" if rng.random() < recipe.checked else "steps")


def batch_for(step: int, recipe: Recipe) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Token ids and labels of a training step, (batch, time) for each part; a pure function of seed and step, so a build can resume."""
    task, tokenizer = find_task(recipe.task), character_tokenizer()
    rng = random.Random(recipe.seed * 1_000_003 + step)
    long = sum(rng.random() < recipe.long for _ in range(recipe.batch))
    seed = rng.randrange(2**31)
    examples = task.examples(recipe.batch - long, seed) + task.examples(long, seed, difficulty=task.ood_difficulty)
    rows = []
    for example in examples:
        prompt = tokenizer(example.prompt)["input_ids"]
        target = tokenizer(completion_for(example, recipe, rng))["input_ids"] + [tokenizer.eos_token_id]
        rows.append((prompt + target, [-100] * len(prompt) + target))
    parts = [rows]
    if recipe.part_tokens is not None:
        parts = [[]]
        for row in sorted(rows, key=lambda row: -len(row[0])):
            if parts[-1] and (len(parts[-1]) + 1) * len(parts[-1][0][0]) > recipe.part_tokens:
                parts.append([])
            parts[-1].append(row)
    return [_padded(part, tokenizer.pad_token_id) for part in parts]


def _padded(rows: list[tuple[list[int], list[int]]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(ids) for ids, _ in rows)
    return torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in rows]), torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in rows])


def train(name: str, work: Path) -> None:
    """Train one recipe, keeping a 16-bit checkpoint every :data:`EVERY` steps."""
    recipe = RECIPES[name]
    torch.set_num_threads(1)
    torch.manual_seed(recipe.seed)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCAB_SIZE,
            hidden_size=recipe.hidden,
            intermediate_size=recipe.feed_forward,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=1,
            head_dim=64,
            max_position_embeddings=1024 if recipe.task == "knights" else 512,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=0,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.01)

    def scale(step: int) -> float:
        warm = min(1.0, (step + 1) / 100)
        left = max(0.0, 1 - step / recipe.steps)
        return warm * (left if recipe.cosine else 1.0)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
    start, spent, state = 0, 0.0, work / name / "resume.pt"
    if state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        start, spent = saved["step"], saved["seconds"]
    model.train()
    began = time.monotonic() - spent
    for step in range(start, recipe.steps):
        parts = batch_for(step, recipe)
        tokens = sum(int((labels >= 0).sum()) for _, labels in parts)
        optimizer.zero_grad()
        loss = 0.0
        for ids, labels in parts:
            logits = model(input_ids=ids).logits[:, :-1]
            part = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum") / tokens
            part.backward()
            loss += part.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % EVERY == 0:
            seconds = time.monotonic() - began
            folder = work / name / f"step_{step + 1}"
            save(model, folder)
            (folder / "trained.json").write_text(json.dumps({"steps": step + 1, "seconds": round(seconds), "loss": round(loss, 4)}))
            torch.save(
                {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(), "step": step + 1, "seconds": seconds},
                state.with_suffix(".tmp"),
            )
            state.with_suffix(".tmp").rename(state)
            print(f"{name}: step {step + 1}/{recipe.steps}  loss {loss:.3f}  {seconds:.0f} s", flush=True)


def save(model: Qwen3ForCausalLM, folder: Path) -> None:
    """Store weights as bfloat16 safetensors beside their tokenizer."""
    twin = Qwen3ForCausalLM(model.config)
    twin.load_state_dict(model.state_dict())
    twin.bfloat16().save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)


def measure(folder: Path, task_name: str, quant: Quant, n: int, split: Split, ood: bool) -> dict[str, float]:
    """What a checkpoint does at T = 1: shares in [0, 1], lengths in tokens."""
    policy, task = load_policy(str(folder), quant), find_task(task_name)
    difficulty, limit = task.ood_difficulty if ood else None, LIMIT[task_name]
    result = evaluate(policy, task, n, split=split, difficulty=difficulty, max_new_tokens=limit, twin=DenseTwin(policy), batch=512)
    texts = [row["completion"] for row in result.rows]
    return {
        "accuracy": result.accuracy,
        "direct": sum(text.startswith("#") for text in texts) / n,
        "checked": sum("!" in text for text in texts) / n,
        "length": result.length,
        "truncated": result.truncated,
    }


def choose(work: Path, sources: list[str]) -> dict[str, tuple[str, int]]:
    """For each embedded name that comes from ``sources`` the recipe and step it is taken from."""
    taken = {name: (name, RECIPES[name].steps) for name in sources if "teacher" in name}
    for source in (name for name in sources if "student" in name):
        recipe, measured = RECIPES[source], {}
        for step in range(EVERY, recipe.steps + 1, EVERY):
            measured[step] = measure(work / source / f"step_{step}", recipe.task, "nf4", CHOOSE_ON, "validation", ood=False)
            print(f"{source} at {step}: {measured[step]}", flush=True)
        for name, (taken_from, (low, high), (least, most)) in WINDOWS.items():
            if taken_from != source:
                continue
            suits = [s for s, m in measured.items() if low <= m["accuracy"] <= high and least <= m["direct"] <= most]
            if not suits:
                raise SystemExit(f"no checkpoint of {source} suits {name} ({low:.0%}–{high:.0%} right, {least:.0%}–{most:.0%} direct): change its recipe")
            taken[name] = (source, min(suits, key=lambda s: abs(measured[s]["accuracy"] - (low + high) / 2)))
    return taken


def write_card(taken: dict[str, tuple[str, int]], work: Path) -> None:
    """CARD.md and card.json: recipe, seeds, time, and the evaluation table in full precision and in NF4; models that were not made anew keep theirs."""
    card: dict[str, Any] = json.loads((ZOO / "card.json").read_text()) if (ZOO / "card.json").exists() else {"prompts": REPORT_ON, "models": {}}
    environment = describe_environment(torch.device("cpu"))
    for name, (source, step) in taken.items():
        made, recipe = json.loads((work / source / f"step_{step}" / "trained.json").read_text()), RECIPES[source]
        table = {
            f"{quant}{' ood' if ood else ''}": measure(ZOO / name, recipe.task, quant, REPORT_ON, "test", ood) for quant in QUANTS for ood in (False, True)
        }
        card["models"][name] = {"recipe": asdict(recipe), "taken_from": f"{source}, step {step}", **made, "table": table, "environment": environment}
        print(name, table, flush=True)
    (ZOO / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    lines = [
        "# The embedded models",
        "",
        "Qwen3 architecture, character tokenizer, pre-trained from scratch by `python -m rlkd_lab.zoo.build` on multi-step arithmetic (`arithmetic`) and on",
        "Knights and Knaves in a compact notation (`knights`). Some of the pre-training problems are larger (10 %: 6–8 operations; 5 %: 5 people), as",
        "post-training prompts never are: these are out of the post-training distribution. The two students of a task are checkpoints of one run, chosen by",
        "accuracy and share of direct answers alone (see `build.py`).",
        f"Tables: {REPORT_ON} test prompts, one completion each, T = 1; the standard error of a share is at most 1.1 points. A blind guess is right in 1 %",
        "(arithmetic), 15 % (2–4 people), 3 % (5 people).",
    ]
    for task, inside_name, outside_name in (("arithmetic", "2–5 operations", "6–8 operations"), ("knights", "2–4 people", "5 people")):
        lines += [
            "",
            f"## {task}",
            "",
            f"| model | taken from | parameters | seed | wall time, one thread of a busy machine | precision | {inside_name} | {outside_name} |"
            " answers directly | checks | length |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for name, entry in card["models"].items():
            if entry["recipe"].get("task", "arithmetic") != task:
                continue
            size = sum(p.numel() for p in load_policy(name, "none").causal_lm.parameters() if not p.requires_grad) / 1e6
            for quant, label in (("none", "full"), ("nf4", "NF4")):
                inside, outside = entry["table"][quant], entry["table"][f"{quant} ood"]
                lines.append(
                    f"| {name} | {entry['taken_from']} | {size:.2f} M | {entry['recipe']['seed']} | {entry['seconds'] / 60:.0f} min | {label} |"
                    f" {inside['accuracy']:.1%} | {outside['accuracy']:.1%} | {inside['direct']:.0%} | {inside['checked']:.0%} | {inside['length']:.1f} |"
                )
    lines += ["", "Recipes, seeds and the numbers with all digits are in `card.json`.", ""]
    (ZOO / "CARD.md").write_text("\n".join(lines))


def main(
    task: Annotated[list[str], typer.Option(help="whose models to make: arithmetic, knights")] = list(LIMIT),  # noqa: B006 - typer copies it
    work: Annotated[Path, typer.Option(help="work folder; a stopped build goes on from it")] = Path("build/zoo"),
) -> None:
    """Rebuild the embedded models: train, choose, store, measure. About 50 minutes a task on two cores."""
    sources = sorted((name for name, recipe in RECIPES.items() if recipe.task in task), key=lambda name: "teacher" not in name)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.starmap(train, [(name, work) for name in sources], chunksize=1)
    taken = choose(work, sources)
    for name, (source, step) in taken.items():
        shutil.rmtree(ZOO / name, ignore_errors=True)
        shutil.copytree(work / source / f"step_{step}", ZOO / name, ignore=shutil.ignore_patterns("trained.json"))
    write_card(taken, work)


if __name__ == "__main__":
    typer.run(main)
