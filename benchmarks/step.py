"""What a step costs: one GRPO step against TRL's GRPOTrainer, our sampler against `generate`, KDRL
and TRRD against GRPO.

    make bench                            # writes benchmarks/results/step.json
    python benchmarks/step.py smollm2     # GRPO of SmolLM2-135M against TRL's; results/smollm2.json

The same 4-bit base and LoRA, the same prompts and sampling limits, float32, one update per rollout,
learning rate 0 (so that every step samples the same policy). The embedded student gets 16 prompts ×
8 completions of at most 96 tokens, SmolLM2 what benchmarks/smollm2.toml says. Each side is a
process of its own that takes a step when told to; they take turns, and what counts is the median of
the ratios of neighbours. TRL gets the model as our loader makes it: on CPUs with AVX512-BF16 the
plain 4-bit layer loses gradients after a generation (with that kernel left on, TRL's step took as
long).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

PROMPTS, GROUP, LIMIT = 16, 8, 96
WARM_UP, REPEATS = 3, 25
OURS = ("grpo", "kdrl", "trrd")


def settings_of(case: str) -> dict[str, str]:
    """Settings of a run, as `rlkd train --set` takes them."""
    from rlkd_lab.study.sweep import read_sweep
    from rlkd_lab.training.make_config import as_text

    if case == "smollm2":
        given = read_sweep(Path(__file__).parent / "smollm2.toml").settings
        return {name: as_text(name, value) for name, value in given.items()}
    return {
        "prompts_per_step": str(PROMPTS),
        "group_size": str(GROUP),
        "max_new_tokens": str(LIMIT),
        "updates_per_rollout": "1",
    }


def config_of(case: str, method: str = "grpo") -> Any:
    """The run whose steps are timed."""
    from rlkd_lab.training import make_config

    quiet = dict.fromkeys(("kl_every", "eval_every", "samples_every", "checkpoint_every"), "0")
    alone = {"teacher": "off", "teacher_adapter": "off"} if method == "grpo" else {}
    given = settings_of(case) | quiet | alone | {"learning_rate": "0"}
    return make_config(method, settings=given, steps=10_000)


def examples(step: int, case: str = "embedded") -> list[Any]:
    """The prompts of a step, the same on both sides."""
    from rlkd_lab.tasks.verifier import guarded

    config = config_of(case)
    task = guarded(config.task, config.task_settings, config.prompt_template)
    return task.examples(config.prompts_per_step, step)


def answer(value: dict[str, float]) -> None:
    print("@" + json.dumps(value), flush=True)


def serve_ours(method: str, case: str = "embedded") -> None:
    """A step of our trainer a line."""
    from rlkd_lab.runs import RunFolder
    from rlkd_lab.training.context import Context
    from rlkd_lab.training.trainer import Trainer

    config = config_of(case, method)
    trainer, context = Trainer(config), Context(config, RunFolder(tempfile.mkdtemp()))
    task = trainer.setup.models.task
    plain = task.examples
    task.examples = lambda n, *given: plain(n, context.progress.step)  # type: ignore[method-assign]
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


def serve_trl(batch: int, case: str = "embedded") -> None:
    """A step of TRL's trainer a line; ``batch`` completions in one forward and backward pass."""
    import warnings

    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from rlkd_lab.models import load_policy
    from rlkd_lab.models.prompts import PromptFormat
    from rlkd_lab.tasks.verifier import guarded

    warnings.simplefilter("ignore")
    given, seconds = config_of(case), {"generate": 0.0}
    task = guarded(given.task, given.task_settings, given.prompt_template).task
    policy = load_policy(given.student, given.quant)
    asked = PromptFormat.of(policy.tokenizer, given.student, given.chat, given.system_prompt)
    size, group = given.prompts_per_step, given.group_size
    listed = [one for step in range(WARM_UP + REPEATS + 2) for one in task.examples(size, step)]
    texts = [one.prompt for one in listed]
    texts = asked.texts(texts) if asked.chat else texts
    by_prompt = dict(zip(texts, listed, strict=True))

    def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        scores = [
            task.score(completion, by_prompt[prompt])
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        return [
            sum(weight * score.parts[part] for part, weight in given.reward.items())
            for score in scores
        ]

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
        gradient_accumulation_steps=size * group // batch,
        num_generations=group,
        max_completion_length=given.max_new_tokens,
        max_steps=WARM_UP + REPEATS,
        learning_rate=0.0,
        beta=0.0,
        temperature=float(given.knobs.get("temperature", 1.0)),
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
    data = Dataset.from_list([{"prompt": text} for text in texts])
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


SERVE = {
    "ours": serve_ours,
    "trl": lambda batch, *case: serve_trl(int(batch), *case),
    "sampling": serve_sampling,
}


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
    sides: dict[str, Side],
    repeats: int = REPEATS,
    failed: dict[str, str] | None = None,
    seen: Callable[[str], object] = lambda name: None,
) -> dict[str, list[dict[str, float]]]:
    """Steps of all sides in turn, the first few left out.

    With ``failed`` a side that ends is left out, and its last words are put there. ``seen`` is
    called with the name of a side after each of its steps.
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
                seen(name)
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


def smollm2(repeats: int = 6) -> None:
    """Time GRPO of SmolLM2-135M-Instruct beside TRL's, and write it with the memory of both."""
    import psutil
    import torch

    from rlkd_lab.training.environment import describe_environment

    config = config_of("smollm2")
    batch = config.prompts_per_step * config.group_size // 2
    sides = {
        "trl": Side("trl", str(batch), further=["smollm2"]),
        "grpo": Side("ours", "grpo", further=["smollm2"]),
    }
    memory = dict.fromkeys(sides, 0)
    rows = alternate(
        sides,
        repeats,
        seen=lambda name: memory.update(
            {name: max(memory[name], psutil.Process(sides[name].process.pid).memory_info().rss)}
        ),
    )
    result = {
        "command": "python benchmarks/step.py smollm2",
        "setting": settings_of("smollm2") | {"repeats": repeats, "trl batch": batch},
        "ratio_vs_trl": ratio(rows["trl"], rows["grpo"]),
        "seconds": {name: split(each) for name, each in rows.items()},
        "resident GiB after a step": {
            name: round(each / 2**30, 2) for name, each in memory.items()
        },
        "environment": describe_environment(torch.device("cpu")),
    }
    target = Path(__file__).parent / "results" / "smollm2.json"
    target.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


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
    if sys.argv[1:] == ["smollm2"]:
        smollm2()
    elif len(sys.argv) > 1:
        SERVE[sys.argv[1]](*sys.argv[2:])
    else:
        main()
