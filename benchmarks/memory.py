"""Predicted against measured peak memory, over models, precisions, lengths and micro-batches.

    python benchmarks/memory.py   # writes results/memory.json, on a GPU memory-gpu.json

Models of random weights with a vocabulary of 32,000, so that completions run to their limit.
Measured is the second step of a KDRL run: on a GPU what PyTorch's allocator had at most; on a CPU
all tensors before the step and the highest sum of what the allocator gave and took during it. ``16
bit`` is the way of a GPU.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

GPU = torch.cuda.is_available()
VOCABULARY = 32_000
WIDE = (
    {"hidden": 1536, "layers": 12, "teacher": 2048, "teacher_layers": 16, "tokens": 512}
    if GPU
    else {}
)
BASE: dict[str, Any] = {
    "hidden": 256,
    "layers": 4,
    "teacher": 384,
    "teacher_layers": 4,
    "quant": "nf4",
    "tokens": 96,
    "micro_batch": 8,
    "group_size": 8,
    "prompts": 2,
    "checkpointing": False,
    "precision": "16 bit" if GPU else "float32",
    "family": "qwen3",
} | WIDE
CHANGES: list[dict[str, Any]] = [
    {},
    {"tokens": 2 * BASE["tokens"]},
    {"micro_batch": 2},
    {"layers": 2 * BASE["layers"]},
    {"hidden": 2 * BASE["hidden"]},
    {"quant": "none"},
    {"checkpointing": True},
    {"family": "llama"},
    {"group_size": 16, "prompts": 4},
    {"tokens": 4 * BASE["tokens"]},
    *({"tokens": times * BASE["tokens"], "micro_batch": 2} for times in (2, 4)),
]
if not GPU:
    CHANGES += [
        {"precision": "16 bit"},
        {"precision": "16 bit", "checkpointing": True},
        {"precision": "16 bit", "quant": "none", "layers": 2},
    ]


def make_model(folder: Path, family: str, hidden: int, layers: int) -> str:
    """A model of random weights with the embedded models' tokenizer; returns its folder."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    from rlkd_lab.zoo.tokenizer import character_tokenizer

    kinds: dict[str, tuple[Any, Any]] = {
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
    }
    config, model = kinds[family]
    shape = {
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "head_dim": 64,
    }
    tokens = {
        "vocab_size": VOCABULARY,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "tie_word_embeddings": True,
    }
    torch.manual_seed(0)
    model(
        config(**shape, **tokens, num_key_value_heads=hidden // 128, max_position_embeddings=4096)
    ).save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return str(folder)


def config_of(case: dict[str, Any], folder: Path) -> Any:
    """The run of a case, its models made."""
    from rlkd_lab.training import make_config

    student = make_model(folder / "student", case["family"], case["hidden"], case["layers"])
    teacher = make_model(
        folder / "teacher", case["family"], case["teacher"], case["teacher_layers"]
    )
    return make_config(
        "kdrl",
        student=student,
        teacher=teacher,
        quant=case["quant"],
        teacher_quant=case["quant"],
        steps=3,
        group_size=case["group_size"],
        prompts_per_step=case["prompts"],
        max_new_tokens=case["tokens"],
        micro_batch=case["micro_batch"],
        gradient_checkpointing=case["checkpointing"],
        eval_every=0,
        samples_every=0,
        checkpoint_every=0,
        updates_per_rollout=1,
        difficulty=(2, 2),
        knobs={"learning_rate": 0.0},
    )


def tensors_now() -> int:
    """Bytes of all tensors that Python can reach."""
    gc.collect()
    found = {}
    for item in gc.get_objects():
        if isinstance(item, torch.Tensor) and item.device.type != "meta":
            storage = item.untyped_storage()
            found[storage._cdata] = storage.nbytes()
    return sum(found.values())


def peak_of_a_step(trainer: Any, context: Any) -> tuple[int, int]:
    """On a CPU: bytes of all tensors before a step, and the most that the allocator gave more
    during it.
    """
    trainer.state.optimizer.zero_grad()
    before = tensors_now()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        trainer.step(context)
    now = peak = 0
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return before, peak


def measure(case: dict[str, Any]) -> dict[str, float]:
    """Predicted and measured peak of a case, in bytes."""
    from rlkd_lab.models import loading
    from rlkd_lab.runs import RunFolder
    from rlkd_lab.training.context import Context
    from rlkd_lab.training.environment import describe_environment
    from rlkd_lab.training.plan import plan
    from rlkd_lab.training.trainer import Trainer

    if case["precision"] == "16 bit" and not GPU:
        loading.compute_dtype = lambda device: torch.bfloat16  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as name:
        config = config_of(case, Path(name))
        predicted = plan(config, case["precision"] == "16 bit")
        folder = RunFolder.create(
            Path(name) / "run", config.model_dump(), describe_environment(torch.device("cpu"))
        )
        trainer, context = Trainer(config), Context(config, folder)
        trainer.step(context)
        if GPU:
            torch.cuda.reset_peak_memory_stats()
            trainer.step(context)
            return {"predicted": predicted.peak, "measured": torch.cuda.max_memory_allocated()}
        before, peak = peak_of_a_step(trainer, context)
        return {
            "predicted": predicted.peak,
            "measured": before + peak,
            "before": before,
            "held": sum(predicted.held.values()),
        }


def main() -> None:
    from rlkd_lab.training.environment import describe_environment

    rows = []
    environment = describe_environment(torch.device("cuda" if GPU else "cpu"))
    target = Path(__file__).parent / "results" / ("memory-gpu.json" if GPU else "memory.json")
    for change in CHANGES:
        case = BASE | change
        out = subprocess.run(
            [sys.executable, __file__, json.dumps(case)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            encoding="utf-8",
        ).stdout
        found = json.loads(out.splitlines()[-1])
        rows.append(
            {"change": change, **found, "error": found["predicted"] / found["measured"] - 1}
        )
        print(json.dumps(rows[-1]), flush=True)
        result = {
            "command": "python benchmarks/memory.py",
            "base": BASE,
            "rows": rows,
            "largest_error": max(abs(row["error"]) for row in rows),
            "environment": environment,
        }
        target.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(json.loads(sys.argv[1]))))
    else:
        main()
