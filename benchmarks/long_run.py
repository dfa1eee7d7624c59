"""A long run: do memory, open files, the time of a step and the run folder stay as they are over
20,000 steps?

    python benchmarks/long_run.py [--steps 20000]        # writes benchmarks/results/long_run.json

A random model of two layers is trained with everything that a run writes (rows, events, rollouts,
checkpoints, evaluations, knobs moved by hand), so that what is measured is what the loop costs
beside a model. ``overhead`` is what passes between two steps: rows, status, requests, retention.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import psutil
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from rlkd_lab.models import default_device
from rlkd_lab.training import make_config, run
from rlkd_lab.training.environment import describe_environment
from rlkd_lab.training.session import Session
from rlkd_lab.training.setup import Row
from rlkd_lab.zoo.tokenizer import character_tokenizer

LOOKS = 20
WRITES = {
    "samples_every": 20,
    "checkpoint_every": 20,
    "eval_every": 200,
    "eval_prompts": 4,
    "keep_checkpoints": 5,
    "keep_samples": 100,
}


def stub(folder: Path) -> str:
    """A model of two small layers."""
    torch.manual_seed(0)
    tokenizer = character_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def size(folder: Path) -> int:
    """Bytes of all files in a run folder but the rows and events, which are a line a step."""
    return sum(
        path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".jsonl"
    )


def long_run(place: Path, steps: int, looks: int = LOOKS, **writes: int) -> list[dict[str, Any]]:
    """Train for so many steps and look at the process every ``steps / looks`` of them;

    ``writes`` are settings other than :data:`WRITES`.
    """
    model = stub(place / "model")
    config = make_config(
        "kdrl",
        steps=steps,
        student=model,
        teacher=model,
        quant="none",
        teacher_quant="none",
        lora_rank=2,
        prompts_per_step=1,
        group_size=2,
        max_new_tokens=2,
        updates_per_rollout=1,
        difficulty=(1, 1),
        guards={"rewards": "off"},
        **{**WRITES, **writes},
    )
    process, found = psutil.Process(), list[dict[str, Any]]()
    times, gaps, last = list[float](), list[float](), [0.0]

    def look(session: Session, row: Row) -> None:
        now = time.perf_counter()
        times.append(row["train_time"])
        gaps.append(now - last[0] - row["step_time"])
        if row["step"] % 100 == 0:
            session.folder.ask("knob", knob="kd_coef", value=0.1 + row["step"] % 300 / 1000)
        if row["step"] % (steps // looks) == 0:
            at = {
                "step": row["step"],
                "memory_mib": process.memory_info().rss / 2**20,
                "open_files": process.num_fds(),
                "threads": process.num_threads(),
            }
            held = {
                "folder_mib": size(session.folder.path) / 2**20,
                "checkpoints": len(session.folder.checkpoints()),
                "samples": len(session.folder.sample_steps()),
            }
            found.append(
                at | held | {"step_ms": 1000 * median(times), "overhead_ms": 1000 * median(gaps)}
            )
            print(json.dumps(found[-1]), flush=True)
            times.clear()
            gaps.clear()
        last[0] = time.perf_counter()

    last[0] = time.perf_counter()
    run(config, place / "run", on_step=look)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        rows = long_run(Path(place), asked.steps)
    result = {
        "command": f"python benchmarks/long_run.py --steps {asked.steps}",
        **WRITES,
        "rows": rows,
        "environment": describe_environment(default_device()),
    }
    (Path(__file__).parent / "results" / "long_run.json").write_text(
        json.dumps(result, indent=2) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
