"""Hooks: what a step measures or records beside training. None of them changes a weight."""

from __future__ import annotations

import torch

from rlkd_lab.objectives import TokenBatch
from rlkd_lab.rollouts import Sampling, sample
from rlkd_lab.tasks import judge
from rlkd_lab.tasks.rewards import Verdict
from rlkd_lab.training.collect import Stop
from rlkd_lab.training.context import Context
from rlkd_lab.training.evaluation import SEED, evaluate
from rlkd_lab.training.interference import interference
from rlkd_lab.training.samples import PROBES, Rollout, write_samples
from rlkd_lab.training.setup import Row, Setup, StepValues
from rlkd_lab.training.speed import Clock
from rlkd_lab.training.teachers import with_teacher_prompts
from rlkd_lab.training.token_stats import TokenStats, live_batch, score_rows


def interference_row(
    setup: Setup, step: StepValues, context: Context, batch: TokenBatch, stats: TokenStats
) -> Row:
    """Compare the gradients of reward, teacher and method on a rollout that is scored."""
    return interference(
        setup.models.policy,
        setup.method.at(step.coefs),
        stats.fill(batch),
        stats.sequences,
        lambda part, sequences: live_batch(setup, stats, step.coefs, part, sequences),
        context.decisions.micro_batch,
    )


def record_samples(
    setup: Setup,
    step: StepValues,
    context: Context,
    batch: TokenBatch,
    stats: TokenStats,
    rollout: Rollout,
    verdicts: list[Verdict],
    stop: Stop,
) -> None:
    """Write the rollout of a step and the probe prompts, and thin what was recorded before."""
    teacher = setup.models.whole_teacher
    folder = context.folder
    with setup.models.teacher_here():
        write_samples(
            folder,
            folder.path / "samples" / f"step_{step.number:06d}.parquet",
            setup.models.policy,
            None if teacher is None else teacher.lm,
            stats.fill(batch),
            rollout,
            verdicts,
            stats.measured(),
            step.temperature,
        )
        _record_probe(setup, step, context, stop)
    folder.thin_samples(setup.config.keep_samples)


def _record_probe(setup: Setup, step: StepValues, context: Context, stop: Stop) -> None:
    """A few fixed validation prompts, with the same random stream every time."""
    config, models = setup.config, setup.models
    examples = models.task.examples(PROBES, SEED, "validation", config.difficulty)
    if not examples:
        return
    draw = torch.Generator(device=models.policy.device).manual_seed(SEED)
    drawn = sample(
        models.policy,
        [example.prompt for example in examples],
        1,
        Sampling(1.0, config.max_new_tokens),
        draw,
        stop,
        models.engine,
        models.copy,
    )
    mask, finished = drawn.sequences.completion_mask, drawn.finished
    verdicts = judge(
        models.task,
        config.reward,
        drawn.texts,
        examples,
        finished.tolist(),
        mask.sum(1).tolist(),
        config.max_new_tokens,
    )
    rollout = Rollout(examples, drawn.texts, drawn.sequences, None, finished, on_policy=True)
    batch = TokenBatch(torch.zeros(mask.shape, device=mask.device), mask)
    rollout, batch, _ = with_teacher_prompts(setup, rollout, batch, verdicts)
    stats = TokenStats(rollout.sequences, 1.0, setup.all_scorers | {"divergences"})
    with torch.no_grad():
        score_rows(setup, stats, torch.arange(len(mask)), Clock())
    write_samples(
        context.folder,
        context.folder.path / "samples" / f"probe_{step.number:06d}.parquet",
        models.policy,
        None if models.whole_teacher is None else models.whole_teacher.lm,
        stats.fill(batch),
        rollout,
        verdicts,
        stats.measured(),
        1.0,
    )


def evaluation_row(setup: Setup, context: Context, stop: Stop) -> Row:
    """Measure accuracy and length on validation prompts, in and out of distribution."""
    config, models, task = setup.config, setup.models, setup.eval_task
    models.sync()
    row: Row = {}
    for suffix, difficulty, longer in (
        ("", config.difficulty if task is models.task else None, 1),
        ("_ood", task.ood_difficulty, 2),
    ):
        if suffix and not (config.eval_ood and difficulty):
            continue
        found = evaluate(
            models.policy,
            task,
            config.eval_prompts,
            difficulty=difficulty,
            max_new_tokens=longer * config.max_new_tokens,
            engine=models.engine,
            dense=models.copy,
            stop=stop,
            at_once=context.decisions.evaluate_at_once or context.decisions.sample_at_once,
            samples=config.eval_samples,
        )
        context.decisions.evaluate_at_once = found.at_once
        row[f"eval/accuracy{suffix}"] = found.accuracy
        row[f"eval/mean_length{suffix}"] = found.length
        row[f"eval/truncated{suffix}"] = found.truncated
    return row
