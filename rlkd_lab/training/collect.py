"""Collect: the completions that a step trains on, drawn from the student or read from traces.

Every random draw of step t comes from a generator that is seeded by (run seed, t, purpose). So no
random state is stored: a resumed run, a replay and a fork draw the same numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import torch

from rlkd_lab.models import distributed
from rlkd_lab.rollouts import Sampling, sample, teacher_traces
from rlkd_lab.rollouts.stored import Stored
from rlkd_lab.rollouts.traces import sequences_of, write_traces
from rlkd_lab.tasks import Example
from rlkd_lab.training.config import RunConfig
from rlkd_lab.training.context import Context
from rlkd_lab.training.samples import Rollout, joined
from rlkd_lab.training.scoring import rewards_differ, score
from rlkd_lab.training.setup import Row, Setup, StepValues, Traces

Stop = Callable[[], bool]


def generator_for(
    config: RunConfig, step: int, purpose: str, device: torch.device | str = "cpu", noise: str = ""
) -> torch.Generator:
    """Return the random stream of one purpose in one step.

    Args:
        config: its seed counts.
        step: of the run.
        purpose: such as ``prompts``. Each purpose has another stream.
        device: where the numbers are drawn.
        noise: of the context. Sampling alone depends on it.
    """
    digest = hashlib.sha256(f"{config.seed}/{step}/{purpose}{noise}".encode()).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest[:7], "big"))


def collect(setup: Setup, step: StepValues, context: Context, stop: Stop) -> tuple[Rollout, Row]:
    """Return the rollout of a step, and metrics of how it was collected.

    Raises:
        Stopped: ``stop`` returned true between two tokens.
    """
    config = setup.config
    draw = generator_for(config, step.number, "prompts")
    source = setup.method.row.samples(
        config.on_policy_frac, lambda: torch.rand(1, generator=draw).item()
    )
    if source == "teacher":
        return _from_traces(setup, context, draw, stop, config.prompts_per_step * config.group_size)
    if source == "both":
        return _from_both(setup, step, context, draw, stop)
    first = _sample(setup, step, context, draw, "sampling", stop)
    if setup.options["zero_spread"] != "resample":
        return first, {}
    return _resample(setup, step, context, draw, first, stop)


def _sample(
    setup: Setup,
    step: StepValues,
    context: Context,
    draw: torch.Generator,
    purpose: str,
    stop: Stop,
) -> Rollout:
    """One rollout of the student on fresh prompts."""
    config = setup.config
    seed = int(torch.randint(2**31, (1,), generator=draw))
    prompts = setup.models.task.examples(config.prompts_per_step, seed, "train", config.difficulty)
    return _answers(setup, step, context, prompts, config.group_size, purpose, stop)


def _answers(
    setup: Setup,
    step: StepValues,
    context: Context,
    prompts: list[Example],
    size: int,
    purpose: str,
    stop: Stop,
) -> Rollout:
    """Return ``size`` completions of the student for each prompt."""
    config, models = setup.config, setup.models
    drawn = sample(
        models.policy,
        [example.prompt for example in prompts],
        size,
        Sampling(step.temperature, config.max_new_tokens, config.top_p, config.top_k),
        generator_for(config, step.number, purpose, models.policy.device, context.noise),
        stop,
        models.engine,
        models.copy,
        context.decisions.sample_at_once,
    )
    if drawn.at_once != context.decisions.sample_at_once:
        context.decisions.sample_fewer(step.number, drawn.at_once)
    examples = [example for example in prompts for _ in range(size)]
    return Rollout(
        examples, drawn.texts, drawn.sequences, drawn.sampler_logps, drawn.finished, on_policy=True
    )


def _resample(
    setup: Setup,
    step: StepValues,
    context: Context,
    draw: torch.Generator,
    first: Rollout,
    stop: Stop,
) -> tuple[Rollout, Row]:
    """Sample until ``prompts_per_step`` groups have a spread of rewards, or ``resample_rounds`` are
    over. Then groups without spread fill up: they have no gradient, and count in the normaliser.
    DAPO (arXiv 2503.14476), §3.2.

    Rewards and lengths in the row are those of the first rollout: those of the kept groups are near
    one half by selection.
    """
    config, size = setup.config, setup.config.group_size
    batch, row, _ = score(setup, first)
    rollouts, spread = [first], rewards_differ(batch, size)
    while int(spread.sum()) < config.prompts_per_step and len(rollouts) < config.resample_rounds:
        purpose = f"sampling, round {len(rollouts) + 1}"
        rollouts.append(_sample(setup, step, context, draw, purpose, stop))
        spread = torch.cat([spread, rewards_differ(score(setup, rollouts[-1])[0], size)])
    kept = (~spread).int().argsort(stable=True)[: config.prompts_per_step]
    rows = (kept[:, None] * size + torch.arange(size)).flatten()
    pad = setup.models.policy.tokenizer.pad_token_id
    return joined(rollouts, rows, pad), row | {
        "sampling/rounds": float(len(rollouts)),
        "sampling/groups_with_spread": spread.float().mean().item(),
        "generated": sum(int(one.sequences.completion_mask.sum()) for one in rollouts),
    }


def _from_both(
    setup: Setup, step: StepValues, context: Context, draw: torch.Generator, stop: Stop
) -> tuple[Rollout, Row]:
    """Return groups of the student's completions, each with a trace of its prompt as last row."""
    size, number = setup.config.group_size - 1, setup.config.prompts_per_step
    traces, row = _from_traces(setup, context, draw, stop, number)
    own = _answers(setup, step, context, traces.examples, size, "sampling", stop)
    traces = replace(traces, finished=traces.finished.to(own.finished.device))
    if own.sampler_logps is not None:  # nobody reads those of a trace
        blank = torch.zeros_like(traces.sequences.completion_mask, dtype=own.sampler_logps.dtype)
        traces = replace(traces, sampler_logps=blank)
    groups = torch.arange(number)[:, None]
    rows = torch.cat([groups * size + torch.arange(size), number * size + groups], 1).flatten()
    both = joined([own, traces], rows, setup.models.policy.tokenizer.pad_token_id)
    off = (rows >= number * size).to(own.sequences.completion_mask.device)
    tokens = int(traces.sequences.completion_mask.sum())
    return replace(both, off_policy=off), row | {"traces/tokens": tokens}


def _from_traces(
    setup: Setup, context: Context, draw: torch.Generator, stop: Stop, number: int
) -> tuple[Rollout, Row]:
    """Return a rollout of the teacher's completions, drawn with replacement."""
    traces = _traces(setup, context, stop)
    drawn = torch.randint(len(traces.rows), (number,), generator=draw).tolist()
    rows = [_in_students_tokens(setup, traces.rows[i]) for i in drawn]
    compares = bool(traces.top) and "divergence" in setup.method.row.needs
    rollout = Rollout(
        [traces.examples[row["example_id"]] for row in rows],
        [row["completion"] for row in rows],
        sequences_of(
            setup.models.policy,
            [row["prompt"] for row in rows],
            [row["completion_ids"] for row in rows],
        ),
        None,
        torch.tensor([row["finished"] for row in rows]),
        on_policy=False,
        teacher_top=[traces.top[i] for i in drawn] if compares else None,
    )
    return rollout, {"traces/kept": len(traces.rows)}


def _in_students_tokens(setup: Setup, row: dict[str, Any]) -> dict[str, Any]:
    """Return a trace with the student's tokens, where the teacher has another tokenizer."""
    teacher = setup.models.teacher
    if teacher is None or teacher.reader is None:
        return row
    most = setup.config.max_new_tokens
    ids, finished = teacher.reader.in_ours(row["completion"], row["finished"], most)
    return row | {"completion_ids": ids, "finished": finished}


def _traces(setup: Setup, context: Context, stop: Stop) -> Traces:
    """Return the teacher's traces, written or read the first time."""
    config, models, traces = setup.config, setup.models, setup.traces
    if not traces.rows and traces.stored is not None:
        _read_stored(setup, context, traces.stored)
    elif not traces.rows:
        teacher = models.frozen("teacher")
        with models.teacher_here():
            table = teacher_traces(
                teacher.own,
                models.task,
                config.traces,
                config.seed,
                context.folder.path / "traces.parquet",
                keep=setup.options["keep_traces"],
                difficulty=config.difficulty,
                sampling=Sampling(1.0, config.max_new_tokens),
                stop=stop,
                dense=teacher.copy,
                at_once=context.decisions.sample_at_once,
                written=context.folder.written,
            )
        _keep_traces(setup, table, config.seed)
    return traces


def _keep_traces(setup: Setup, table: pa.Table, seed: int) -> None:
    """Keep traces, and the examples that they answer."""
    config, traces = setup.config, setup.traces
    traces.rows = table.to_pylist()
    # a verifier may need more of an example than the table holds
    drawn = setup.models.task.examples(config.traces, seed, "train", config.difficulty)
    traces.examples = {example.id: example for example in drawn}


def _read_stored(setup: Setup, context: Context, stored: Stored) -> None:
    """Take traces and likeliest tokens from a stored teacher. The run keeps the traces."""
    topk = setup.options["topk"]
    cut = bool(topk) and int(topk) < stored.about["topk"]
    setup.traces.top = [top.cut(int(topk)) for top in stored.top] if cut else stored.top
    path = context.folder.path / "traces.parquet"
    if distributed.first() and not path.exists():
        context.folder.written(lambda: write_traces(stored.traces, path))
    _keep_traces(setup, stored.traces, stored.about["seed"])
