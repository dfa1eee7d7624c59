"""What a step costs: one GRPO step against TRL's GRPOTrainer, our sampler against `generate`, KDRL
and TRRD against GRPO.

    make bench        # writes benchmarks/results/step.json

The same 4-bit base and LoRA, the same prompts and sampling limits, float32, 16 prompts × 8
completions of at most 96 tokens, one update per rollout, learning rate 0 (so that every step
samples the same policy). Each side is a process of its own that takes a step when told to; they
take turns, and what counts is the median of the ratios of neighbours. TRL gets the model as our
loader makes it: on CPUs with AVX512-BF16 the plain 4-bit layer loses gradients after a generation
(with that kernel left on, TRL's step took as long).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

PROMPTS, GROUP, LIMIT = 16, 8, 96
WARM_UP, REPEATS = 3, 25
OURS = ("grpo", "kdrl", "trrd")


def examples(step: int) -> list[Any]:
    from rlkd_lab.tasks import ArithmeticTask

    return ArithmeticTask().examples(PROMPTS, step)


def answer(value: dict[str, float]) -> None:
    print("@" + json.dumps(value), flush=True)


def serve_ours(method: str) -> None:
    """A step of our trainer a line."""
    from rlkd_lab.runs import RunFolder
    from rlkd_lab.training import make_config
    from rlkd_lab.training.context import Context
    from rlkd_lab.training.trainer import Trainer

    config = make_config(
        method,
        settings={"learning_rate": "0"},
        steps=10_000,
        prompts_per_step=PROMPTS,
        group_size=GROUP,
        max_new_tokens=LIMIT,
        updates_per_rollout=1,
        teacher=None if method == "grpo" else "teacher",
        kl_every=0,
        eval_every=0,
        samples_every=0,
        checkpoint_every=0,
    )
    trainer, context = Trainer(config), Context(config, RunFolder(tempfile.mkdtemp()))
    task = trainer.setup.models.task
    task.examples = lambda *given: examples(context.progress.step)  # type: ignore[method-assign]
    for _ in sys.stdin:
        row = trainer.step(context)
        answer(
            {
                key: row[key]
                for key in (
                    "step_time",
                    "num_tokens",
                    "reward",
                    *(k for k in row if k.startswith("time/")),
                )
            }
        )


def serve_trl(batch: int) -> None:
    """A step of TRL's trainer a line; ``batch`` completions in one forward and backward pass."""
    import warnings

    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from rlkd_lab.models import load_policy
    from rlkd_lab.tasks import ArithmeticTask

    warnings.simplefilter("ignore")
    task, policy, seconds = ArithmeticTask(), load_policy("student", "nf4"), {"generate": 0.0}
    listed = [example for step in range(WARM_UP + REPEATS + 2) for example in examples(step)]
    by_prompt = {example.prompt: example for example in listed}

    def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        scores = [
            task.score(completion, by_prompt[prompt])
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        return [score.parts["accuracy"] + 0.1 * score.parts["format"] for score in scores]

    plain = type(policy.model).generate

    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        drawn = plain(self, *args, **kwargs)
        seconds["generate"] = time.perf_counter() - began
        return drawn

    type(policy.model).generate = generate  # type: ignore[method-assign]

    class OnDemand(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            sys.stdin.readline()
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            answer(
                {"step_time": time.perf_counter() - self.began, "time/rollout": seconds["generate"]}
            )

    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=PROMPTS * GROUP // batch,
        num_generations=GROUP,
        max_completion_length=LIMIT,
        max_steps=WARM_UP + REPEATS,
        learning_rate=0.0,
        beta=0.0,
        temperature=1.0,
        loss_type="grpo",
        bf16=False,
        gradient_checkpointing=False,
        shuffle_dataset=False,
        save_strategy="no",
        report_to=[],
        logging_steps=10_000,
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )
    data = Dataset.from_list([{"prompt": example.prompt} for example in listed])
    GRPOTrainer(
        policy.model,
        [reward],
        config,
        train_dataset=data,
        processing_class=policy.tokenizer,
        callbacks=[OnDemand()],
    ).train()


def serve_sampling(engine: str) -> None:
    """A rollout a line: transformers' `generate` on the 4-bit model with its adapter, or our
    sampler.
    """
    import torch

    from rlkd_lab.models import load_policy
    from rlkd_lab.models.dense_copy import DenseCopy
    from rlkd_lab.rollouts import Sampling, sample

    policy = load_policy("student", "nf4")
    dense = DenseCopy(policy) if engine == "fast" else None
    for step, _ in enumerate(sys.stdin):
        prompts = [example.prompt for example in examples(step)]
        generator = torch.Generator(policy.device).manual_seed(step)
        began = time.perf_counter()
        drawn = sample(
            policy, prompts, GROUP, Sampling(1.0, LIMIT), generator, engine=engine, dense=dense
        )  # type: ignore[arg-type]
        answer(
            {
                "step_time": time.perf_counter() - began,
                "num_tokens": float(drawn.sequences.completion_mask.sum()),
            }
        )


SERVE = {"ours": serve_ours, "trl": lambda batch: serve_trl(int(batch)), "sampling": serve_sampling}


class Side:
    """A process that takes a step when told to."""

    def __init__(
        self, kind: str, name: str, script: str = __file__, further: Sequence[str] = ()
    ) -> None:
        command = [sys.executable, script, kind, name, *further]
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            encoding="utf-8",
        )

    def step(self) -> dict[str, float]:
        assert self.process.stdin is not None and self.process.stdout is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
        self.process.wait()
        self.errors.seek(0)
        said = self.errors.read()[-2000:]
        command = " ".join(map(str, self.process.args))  # type: ignore[arg-type]
        raise SystemExit(f"{command} ended without an answer; its last words:\n{said}")


def alternate(
    sides: dict[str, Side], repeats: int = REPEATS, failed: dict[str, str] | None = None
) -> dict[str, list[dict[str, float]]]:
    """Steps of all sides in turn, the first few left out.

    With ``failed`` a side that ends is left out, and its last words are put there.
    """
    found: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    try:
        for turn in range(WARM_UP + repeats):
            for name in list(found):
                try:
                    row = sides[name].step()
                except SystemExit as error:
                    if failed is None:
                        raise
                    failed[name] = str(error)
                    del found[name]
                    continue
                if turn >= WARM_UP:
                    found[name].append(row)
    finally:
        for side in sides.values():
            side.process.kill()
    return found


def spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
    }


def ratio(
    over: list[dict[str, float]], under: list[dict[str, float]], without: str | None = None
) -> dict[str, float]:
    """Median and range of the ratios of neighbours;

    ``without`` takes a part of the step out on both sides.
    """

    def cost(row: dict[str, float]) -> float:
        return row["step_time"] - (row[without] if without else 0.0)

    return spread([cost(a) / cost(b) for a, b in zip(over, under, strict=True)])


def split(rows: list[dict[str, float]]) -> dict[str, float]:
    """Median seconds of a step and of its parts."""
    names = sorted(
        {name for row in rows for name in row if name.startswith(("step_time", "time/"))}
    )
    return {name: round(median(row.get(name, 0.0) for row in rows), 3) for name in names}


def main() -> None:
    import torch

    from rlkd_lab.training.environment import describe_environment

    # TRL's fastest batch is found first, and is what it is measured with.
    tried = alternate({str(batch): Side("trl", str(batch)) for batch in (16, 32, 128)}, repeats=5)
    batch = min(tried, key=lambda name: median(row["step_time"] for row in tried[name]))
    steps = alternate({"trl": Side("trl", batch), "grpo": Side("ours", "grpo")})
    sampling = alternate({name: Side("sampling", name) for name in ("hf", "fast")})
    methods = alternate({name: Side("ours", name) for name in OURS})
    for row, *others in zip(*methods.values(), strict=True):
        assert all(other["num_tokens"] == row["num_tokens"] for other in others), (
            "the methods did not see the same completions"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result = {
        "command": "make bench",
        "setting": {
            "prompts": PROMPTS,
            "group_size": GROUP,
            "max_new_tokens": LIMIT,
            "updates_per_rollout": 1,
            "student": "student (NF4, LoRA r 16)",
            "teacher": "teacher (NF4), for KDRL and TRRD; twice the student's parameters",
            "repeats": REPEATS,
            "trl": {
                "version": "1.16",
                "per_device_train_batch_size": int(batch),
                "tried": {name: split(rows) for name, rows in tried.items()},
            },
        },
        "ratio_vs_trl": ratio(steps["trl"], steps["grpo"]),
        "ratio_sampling_vs_generate": ratio(sampling["hf"], sampling["fast"]),
        "kdrl_over_grpo": ratio(methods["kdrl"], methods["grpo"], without="time/rollout"),
        "trrd_over_grpo": ratio(methods["trrd"], methods["grpo"], without="time/rollout"),
        "kdrl_over_grpo_whole_step": ratio(methods["kdrl"], methods["grpo"]),
        "trrd_over_grpo_whole_step": ratio(methods["trrd"], methods["grpo"]),
        "seconds": {
            "trl": split(steps["trl"]),
            "grpo": split(steps["grpo"]),
            "generate": split(sampling["hf"]),
            "sampler": split(sampling["fast"]),
            **{f"{name} on the same completions": split(methods[name]) for name in OURS},
        },
        "meaning": {
            "kdrl_over_grpo": "what follows the sampling (rewards, teacher, update) on"
            " the same completions; _whole_step: with it"
        },
        "environment": describe_environment(device),
    }
    target = Path(__file__).parent / "results" / "step.json"
    target.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(
        json.dumps(
            {
                key: result[key]
                for key in result
                if "ratio" in key or "_over_" in key or key == "seconds"
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        SERVE[sys.argv[1]](sys.argv[2])
    else:
        main()
