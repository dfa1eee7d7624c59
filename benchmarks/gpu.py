"""A KDRL step and sampling at real sizes on one GPU: ours, fast and lean, against TRL's GRPOTrainer
and transformers' `generate`.

    python benchmarks/gpu.py             # writes benchmarks/results/gpu.json
    python benchmarks/gpu.py --tiny      # small models, also on a CPU; writes nothing

Models of random weights in the shapes of Qwen2.5-1.5B (student, NF4 with LoRA) and Qwen2.5-7B
(teacher, NF4): all completions run to their limit, so that every side has the same tokens. TRL
takes a GRPO step without a teacher on the same 4-bit student and samples with `generate`; ours
takes a KDRL step with the teacher. Each side is a process of its own that takes a step when told
to; they take turns, and what counts is the median of the ratios of neighbours.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import step as steps  # benchmarks/step.py

TINY = "--tiny" in sys.argv
PROMPTS, GROUP, LIMIT = (2, 4, 24) if TINY else (8, 8, 512)
ENGINES = ("fast", "hf", "continuous", *(["vllm"] if find_spec("vllm") else []))
BATCHES = (8,) if TINY else (64, 256)
REPEATS = 2 if TINY else 7
SHAPES = {
    "student": (256, 768, 2, 4, 2, 8000, True) if TINY else (1536, 8960, 28, 12, 2, 151_936, True),
    "teacher": (384, 1152, 2, 6, 3, 8064, False)
    if TINY
    else (3584, 18_944, 28, 28, 4, 152_064, False),
}
"""Hidden size, feed-forward, layers, heads, key-value heads, vocabulary, tied embeddings."""
SETTINGS: dict[str, dict[str, Any]] = {
    "fast": {"dense_copy": True, "gradient_checkpointing": False, "micro_batch": 8},
    "lean": {"dense_copy": False, "gradient_checkpointing": True, "micro_batch": 8},
}


def make_models(folder: Path) -> None:
    """Random weights in bfloat16, once a benchmark."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from rlkd_lab.models import default_device
    from rlkd_lab.zoo.tokenizer import character_tokenizer

    for name, (hidden, feed_forward, layers, heads, key_heads, vocabulary, tied) in SHAPES.items():
        config = Qwen2Config(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=feed_forward,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=key_heads,
            tie_word_embeddings=tied,
            max_position_embeddings=32_768,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=0,
        )
        torch.manual_seed(0)
        with torch.device(default_device()):
            model = Qwen2ForCausalLM._from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(folder / name)
        character_tokenizer().save_pretrained(folder / name)
        del model


def memory() -> dict[str, float]:
    """Peak since the last step, and reset."""
    import torch

    if not torch.cuda.is_available():
        return {}
    peak = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return {"peak_gib": peak}


def serve_ours(folder: Path, what: str) -> None:
    """A step a line; ``what``: mode, and a method that is not KDRL after a colon."""
    from rlkd_lab.runs import RunFolder
    from rlkd_lab.training import make_config
    from rlkd_lab.training.context import Context
    from rlkd_lab.training.plan import plan
    from rlkd_lab.training.trainer import Trainer

    mode, _, method = what.partition(":")
    config = make_config(
        method or "kdrl",
        student=str(folder / "student"),
        teacher=str(folder / "teacher"),
        steps=10_000,
        prompts_per_step=PROMPTS,
        group_size=GROUP,
        max_new_tokens=LIMIT,
        updates_per_rollout=1,
        kl_every=0,
        eval_every=0,
        samples_every=0,
        checkpoint_every=0,
        logits_mib=256,
        difficulty=(2, 2),
        knobs={"learning_rate": 0.0},
        **SETTINGS[mode],
    )
    planned = {"planned_gib": plan(config, True).peak / 2**30}
    trainer, context = Trainer(config), Context(config, RunFolder(tempfile.mkdtemp()))
    for _ in sys.stdin:
        row = trainer.step(context)
        steps.answer(
            planned
            | {
                key: row[key]
                for key in ("step_time", "num_tokens", *(k for k in row if k.startswith("time/")))
            }
            | memory()
        )


def serve_trl(folder: Path, batch: str) -> None:
    """A GRPO step of TRL's trainer a line."""
    import warnings

    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from rlkd_lab.models import load_policy
    from rlkd_lab.tasks import ArithmeticTask

    warnings.simplefilter("ignore")
    policy = load_policy(str(folder / "student"), "nf4", gradient_checkpointing=True)
    count = steps.WARM_UP + REPEATS + 2
    prompts = [
        example.prompt
        for example in ArithmeticTask().examples(PROMPTS * count, 0, difficulty=(2, 2))
    ]

    class OnDemand(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            sys.stdin.readline()
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            wait()
            steps.answer({"step_time": time.perf_counter() - self.began} | memory())

    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=int(batch),
        gradient_accumulation_steps=PROMPTS * GROUP // int(batch),
        num_generations=GROUP,
        max_completion_length=LIMIT,
        max_steps=count,
        learning_rate=0.0,
        beta=0.0,
        temperature=1.0,
        loss_type="grpo",
        bf16=torch.cuda.is_available(),
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        shuffle_dataset=False,
        save_strategy="no",
        report_to=[],
        logging_steps=10_000,
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )
    data = Dataset.from_list([{"prompt": prompt} for prompt in prompts])
    # a reward that differs inside every group
    trainer = GRPOTrainer(
        policy.model,
        [lambda completions, **_: [float(i % 2) for i in range(len(completions))]],
        config,
        train_dataset=data,
        processing_class=policy.tokenizer,
        callbacks=[OnDemand()],
    )
    trainer.train()


def serve_sampling(folder: Path, what: str) -> None:
    """A rollout a line; ``what``: engine and number of completions."""
    import torch

    from rlkd_lab.models import load_policy
    from rlkd_lab.models.dense_copy import DenseCopy
    from rlkd_lab.rollouts import Sampling, sample
    from rlkd_lab.tasks import ArithmeticTask

    engine, _, rows = what.partition(":")
    policy = load_policy(str(folder / "student"), "nf4")
    dense = None if engine == "hf" else DenseCopy(policy)
    for turn, _ in enumerate(sys.stdin):
        prompts = [
            example.prompt
            for example in ArithmeticTask().examples(int(rows) // GROUP, turn, difficulty=(2, 2))
        ]
        generator = torch.Generator(policy.device).manual_seed(turn)
        began = time.perf_counter()
        drawn = sample(
            policy, prompts, GROUP, Sampling(1.0, LIMIT), generator, engine=engine, dense=dense
        )
        tokens = float(drawn.sequences.completion_mask.sum())
        steps.answer({"step_time": time.perf_counter() - began, "num_tokens": tokens} | memory())


def serve_passes(folder: Path, way: str) -> None:
    """A forward and backward pass of eight completions a line, through the ``policy`` or its
    ``copy``; or a decoding step, of ``one`` graph or of its ``kernels``.
    """
    import torch

    from rlkd_lab.models import cache, load_policy, policy_logps
    from rlkd_lab.models.dense_copy import DenseCopy
    from rlkd_lab.rollouts.traces import sequences_of

    policy = load_policy(str(folder / "student"), "nf4")
    dense = DenseCopy(policy)
    if way == "kernels":
        cache.Graphs.__call__ = lambda _, decode, *given: decode(*given)  # type: ignore[method-assign]
    ids = torch.full((8, 64), 5, device=policy.device)
    decoder: Any = dense.decoder
    lm = {"policy": policy, "copy": dense.lm}.get(way)
    if lm is None:
        known, _ = decoder.prefill(ids, torch.ones_like(ids), GROUP, LIMIT)
        token, positions = (torch.full((8 * GROUP,), n, device=policy.device) for n in (5, 64))
    batch = sequences_of(policy, ["1+1?"] * 8, [[5] * LIMIT] * 8)
    for _ in sys.stdin:
        wait()
        began = time.perf_counter()
        if lm is None:
            decoder.step(token, positions, known)
        else:
            policy_logps(lm, batch)[0].sum().backward()
        wait()
        steps.answer({"step_time": time.perf_counter() - began} | memory())


def wait() -> None:
    """Let a GPU come to the end of what it was asked."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


SERVE: dict[str, Callable[[Path, str], None]] = {
    "ours": serve_ours,
    "trl": serve_trl,
    "sampling": serve_sampling,
    "passes": serve_passes,
    "models": lambda folder, _: make_models(folder),
}


def summary(rows: list[dict[str, float]]) -> dict[str, float]:
    """Median seconds of a step and its parts, highest peak, tokens per second where tokens are
    counted.
    """
    found = steps.split(rows)
    if "peak_gib" in rows[0]:
        found["peak_gib"] = round(max(row["peak_gib"] for row in rows), 2)
    return found


def ratios(taken: dict[str, list[dict[str, float]]], **pairs: tuple[str, str]) -> dict[str, Any]:
    """Return ratios of neighbours by name, of the pairs of which both sides came to their end."""
    return {
        name: steps.ratio(taken[over], taken[under])
        for name, (over, under) in pairs.items()
        if over in taken and under in taken
    }


def take_steps(side: Callable[[str, str], steps.Side], failed: dict[str, str]) -> dict[str, Any]:
    """A step of each side in turn."""
    sides = {
        "trl": side("trl", str(min(8, PROMPTS * GROUP))),
        **{mode: side("ours", mode) for mode in SETTINGS},
    }
    taken = steps.alternate(sides, REPEATS, failed)
    return ratios(taken, trl_over_fast=("trl", "fast"), trl_over_lean=("trl", "lean")) | {
        "steps": {name: summary(rows) for name, rows in taken.items()}
    }


def take_rollouts(
    side: Callable[[str, str], steps.Side], rows: int, failed: dict[str, str]
) -> dict[str, Any]:
    """A rollout of each engine in turn."""
    found = steps.alternate(
        {engine: side("sampling", f"{engine}:{rows}") for engine in ENGINES}, REPEATS, failed
    )
    pairs = {
        "generate_over_ours": ("hf", "fast"),
        "generate_over_continuous": ("hf", "continuous"),
    }
    speeds = {}
    for engine, each in found.items():
        tokens, seconds = (sum(row[name] for row in each) for name in ("num_tokens", "step_time"))
        speeds[engine] = summary(each) | {"tokens_per_second": round(tokens / seconds, 1)}
    return ratios(found, **pairs) | speeds


def write(result: dict[str, Any]) -> None:
    """Write what is there so far."""
    print(json.dumps(result, indent=2), flush=True)
    if not TINY:
        (Path(__file__).parent / "results" / "gpu.json").write_text(
            json.dumps(result, indent=2) + "\n", encoding="utf-8"
        )


def main() -> None:
    from rlkd_lab.models import default_device
    from rlkd_lab.training.environment import describe_environment

    failed: dict[str, str] = {}
    result: dict[str, Any] = {
        "command": "python benchmarks/gpu.py",
        "setting": {
            "prompts": PROMPTS,
            "group_size": GROUP,
            "max_new_tokens": LIMIT,
            "repeats": REPEATS,
            "shapes": SHAPES,
            "modes": SETTINGS,
            "trl": "1.16.0",
        },
        "environment": describe_environment(default_device()),
        "sampling": {},
        "failed": failed,
    }
    with tempfile.TemporaryDirectory() as name:
        flag = ["--tiny"] if TINY else []

        def side(kind: str, what: str) -> steps.Side:
            return steps.Side(kind, what, script=__file__, further=[name, *flag])

        # a process of its own, which keeps no memory of the GPU
        subprocess.run([sys.executable, __file__, "models", "both", name, *flag], check=True)
        result |= take_steps(side, failed)
        write(result)
        for rows in BATCHES:
            ended: dict[str, str] = {}
            result["sampling"][str(rows)] = take_rollouts(side, rows, ended)
            failed |= {f"{engine}:{rows}": why for engine, why in ended.items()}
            write(result)
    if failed:
        raise SystemExit(f"without an answer: {', '.join(failed)}")


if __name__ == "__main__":
    if len(sys.argv) > 3:
        SERVE[sys.argv[1]](Path(sys.argv[3]), sys.argv[2])
    else:
        main()
