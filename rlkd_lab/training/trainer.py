"""The trainer: one step, for every method.

    knob values → prompts → completions → rewards → what the models say of the tokens → updates

A run and its forks are contexts that one trainer steps in turn. Several processes have the same
adapter and the same rollout, and share the work on it.
"""

from __future__ import annotations

import time
import warnings
from pathlib import Path

import torch

from rlkd_lab.models import LanguageModel, distributed
from rlkd_lab.models.dense_copy import DenseCopy
from rlkd_lab.objectives import TokenBatch
from rlkd_lab.tasks.rewards import check_weights
from rlkd_lab.training.collect import Stop, collect
from rlkd_lab.training.config import RunConfig
from rlkd_lab.training.context import Context
from rlkd_lab.training.decisions import Event
from rlkd_lab.training.gaps import MAX_GAP_OTHER, check_gap, noise_of
from rlkd_lab.training.hooks import evaluation_row, interference_row, record_samples
from rlkd_lab.training.inputs import Inputs
from rlkd_lab.training.metrics import gate_row, time_row, token_row
from rlkd_lab.training.prompts import Asked, fit_evaluation, fit_prompts
from rlkd_lab.training.samples import Rollout
from rlkd_lab.training.scoring import score
from rlkd_lab.training.setup import Row, Setup, StepValues
from rlkd_lab.training.speed import Clock
from rlkd_lab.training.state import Progress, TrainState
from rlkd_lab.training.teachers import with_teacher_prompts
from rlkd_lab.training.token_stats import (
    TokenStats,
    check_padding_rows,
    models_to_ask,
    score_all,
)
from rlkd_lab.training.update import update, within_memory
from rlkd_lab.training.weights import weights_of

CHECKED_STEPS = 2
"""Steps of a process in which sampler and copy are compared: in the first the adapter is 0."""


class Trainer:
    """The models of a run in memory, and the step that trains them.

    Args:
        config: of the run.

    Raises:
        FileNotFoundError, ValueError: what :func:`~rlkd_lab.training.models.load_models` and
            :func:`~rlkd_lab.training.prompts.fit_prompts` raise.
    """

    def __init__(self, config: RunConfig) -> None:
        if distributed.count() > config.prompts_per_step:
            raise ValueError(
                f"{distributed.count()} processes share the prompts of a step: use --set"
                f" prompts_per_step={distributed.count()} or more"
            )
        self.config = config
        self.setup = Setup.load(config)
        self.asked = self._fit_prompts()
        """Which prompts the task was kept to, and a digest of what it gives."""
        self.inputs = Inputs(self.asked.data, weights_of(config))
        """Digests of what the run is trained on."""
        self.state = TrainState(self.setup.models.policy, config)
        self.whole = True
        """Whether the live tensors are those of the context's progress."""
        self._current: Context | None = None
        self._shared = False
        """Whether another context has had the tensors. Then a step that is cut in an update must
        leave its context with the weights of the step before."""
        self._checked = 0
        self._failures_told = False

    def _fit_prompts(self) -> Asked:
        """Keep the task to prompts that leave room for a completion, and check its verifier."""
        models = self.setup.models
        teachers = [teacher.own for teacher in models.teachers]
        asked = fit_prompts(models.task, self.config, models.policy, teachers)
        check_weights(models.task, self.config.reward, asked.examples[0])
        if self.setup.eval_task is not models.task:
            fit_evaluation(self.setup.eval_task, models.task, self.config, models.policy, asked)
        for sentence in asked.told:
            warnings.warn(sentence, stacklevel=4)
        return asked

    @property
    def policy(self) -> LanguageModel:
        """The model that is trained."""
        return self.setup.models.policy

    def switch(self, context: Context) -> None:
        """Give the live tensors to a context. The one that had them keeps a copy of its own."""
        if self._current is context:
            return
        self._leave()
        if context.snapshot is not None:
            self.state.restore(context.snapshot)
        elif self._current is not None:
            raise RuntimeError("a context without weights: its step was cut in an update")
        self._current, self.whole = context, True

    def _leave(self) -> None:
        """Keep a copy of the live tensors for the context that has them."""
        if self._current is not None:
            self._shared = True
            if self.whole:
                self._current.snapshot = self.state.copy()

    def go_back(self, context: Context) -> bool:
        """Go back to the context's last whole step, and return whether that was possible.

        It is possible before the first update of the step that was cut, in its evaluation, and
        wherever forks are trained beside the run.
        """
        self.switch(context)
        if not self.whole and context.snapshot is not None:
            self.state.restore(context.snapshot)
            self.whole = True
        return self.whole

    def step(self, context: Context, stop: Stop = lambda: False) -> Row:
        """Run the next step of a context and return its row.

        A step that is cut short leaves the context's progress and held knobs as they were.

        Args:
            context: a run, or a fork of it.
            stop: asked between tokens.

        Raises:
            Stopped: ``stop`` returned true; the step is discarded.
            FloatingPointError: a guard ends the run.
        """
        self.switch(context)
        held = dict(context.knobs.held)
        try:
            return self._step(context, stop)
        except BaseException:
            context.knobs.held = held
            raise

    def _step(self, context: Context, stop: Stop) -> Row:
        setup, config = self.setup, self.config
        began, clock, extra = time.perf_counter(), Clock(), Clock()
        step, moves = self._begin(context)
        with clock("rollout"):
            rollout, collected = collect(setup, step, context, stop)
        with clock("reward"):
            batch, scored, verdicts = score(setup, rollout)
        rollout, batch, asked = with_teacher_prompts(setup, rollout, batch, verdicts)
        row = scored | collected | asked
        sampled = row.pop("generated", int(rollout.sequences.completion_mask.sum()))

        own = rollout.on_policy and rollout.off_policy is None
        measures = _due(config.interference_every, step) and own
        measures = measures and setup.models.teacher is not None
        records = _due(config.samples_every, step, first=True)
        stats = self._token_stats(step, rollout, everything=measures or records)
        if measures or records or config.minibatches > 1 or config.teacher_home == "host":
            self._score_before_update(context, step, stats, clock)
        if measures:
            with extra("interference"):
                row |= self._interference(context, step, batch, stats)
        if records:
            with extra("samples"):
                record_samples(setup, step, context, batch, stats, rollout, verdicts, stop)

        evaluates = _due(config.eval_every, step, last=config.steps)
        if context.snapshot is None and (evaluates or self._shared):
            context.snapshot = self.state.copy()
        self.whole = False
        row |= update(setup, step, context, self.state, batch, stats, clock)
        row |= token_row(batch, rollout, stats) | gate_row(setup, step, batch, stats)
        self._check_sampler(step, rollout, stats)
        for event in moves + context.decisions.new_events():
            context.tell({**event, "time": time.time()})
        if evaluates:
            with extra("evaluation"):
                row |= evaluation_row(setup, context, stop)

        seconds = time.perf_counter() - began
        training = seconds - sum(extra.seconds.values())
        drawn = sampled - row.get("traces/tokens", 0)
        row |= time_row(setup, step, rollout, drawn, clock, training)
        self._tell_failures(context, step)
        tokens = context.progress.tokens + sampled
        context.progress = Progress(step.number, tokens, row.get("eval/accuracy"))
        self.whole, context.snapshot = True, None
        counters = {"num_tokens": tokens, "on_policy": rollout.on_policy, "step_time": seconds}
        return {"step": step.number, **row, **step.row, **counters}

    def _begin(self, context: Context) -> tuple[StepValues, list[Event]]:
        """Take the knob values of the next step, and the events of moved knobs."""
        number = context.progress.step + 1
        values, moves = distributed.from_first(context.knobs.snapshot(number))
        context.guards.begin(number)
        self.setup.models.sync()
        context.decisions.before_sampling(number)
        for task in self.setup.tasks:
            task.begin(number, context.decisions.given_up)
        return StepValues(number, values), moves

    def _interference(
        self, context: Context, step: StepValues, batch: TokenBatch, stats: TokenStats
    ) -> Row:
        def passes() -> Row:
            return interference_row(self.setup, step, context, batch, stats)

        return within_memory(context, self.state, step.number, "interference", passes)

    def _token_stats(self, step: StepValues, rollout: Rollout, everything: bool) -> TokenStats:
        """Return empty statistics of a rollout, with the models that will be asked."""
        models, ask = self.setup.models, models_to_ask(self.setup, step)
        if everything:
            ask |= self.setup.all_scorers
        if "teacher" in ask:
            check_padding_rows(self.setup, rollout.sequences)
        through_copy = models.student is not models.policy
        compare = through_copy and self._checked < CHECKED_STEPS
        return TokenStats(
            rollout.sequences, step.temperature, ask, compare, top=rollout.teacher_top
        )

    def _score_before_update(
        self, context: Context, step: StepValues, stats: TokenStats, clock: Clock
    ) -> None:
        """Score the whole rollout in a pass without gradient."""
        setup, rows = self.setup, torch.arange(len(stats.sequences.completion_mask))
        with setup.models.teacher_here("teacher" in stats.ask):
            within_memory(
                context,
                self.state,
                step.number,
                "looking",
                lambda: score_all(setup, stats, rows, context.decisions.micro_batch, clock),
            )
        stats.share()

    def _check_sampler(self, step: StepValues, rollout: Rollout, stats: TokenStats) -> None:
        """Compare the sampler's log-probabilities with the trainer's, in the first steps.

        Raises:
            ValueError: what was sampled is not the policy that is trained.
        """
        config, copy = self.config, self.setup.models.copy
        corrected = step.coefs.get("importance_cap") is not None
        self._checked += 1
        if rollout.sampler_logps is None:
            if rollout.on_policy and config.engine != "hf" and corrected:
                raise ValueError(
                    f"importance_cap cannot act: the engine {config.engine} does not say with"
                    " which log-probabilities it drew"
                )
            return
        if self._checked > CHECKED_STEPS or config.top_p < 1 or config.top_k:
            return
        counts = rollout.sequences.completion_mask.bool()
        if rollout.off_policy is not None:
            counts = counts & ~rollout.off_policy[:, None]
        gap = (stats.values["old_logps"] - rollout.sampler_logps)[counts].abs()
        some = rollout.sequences.select(slice(config.micro_batch))

        def noise() -> float:
            return noise_of(self.policy, some, step.temperature)

        if config.engine != "fast" and not corrected:
            check_gap(
                gap,
                f"the engine {config.engine} does not sample the policy that is trained",
                "correct for it with --set importance_cap=2, or use --set engine=fast",
                DenseCopy.suits(self.policy),
                MAX_GAP_OTHER,
                noise,
            )
        elif config.engine == "fast" and copy is not None:
            check_gap(
                gap,
                "the dense copy is wrong: it does not sample the policy that is trained",
                "use --set dense_copy=false",
                copy.merges,
                noise=noise,
            )

    def _tell_failures(self, context: Context, step: StepValues) -> None:
        """Write the event of verifier calls that failed, and warn of the first."""
        for task in self.setup.tasks:
            failures = context.decisions.failures(task.told())
            if failures is None:
                continue
            context.tell({**failures, "time": time.time()})
            if not self._failures_told:
                self._failures_told = True
                warnings.warn(
                    f"step {step.number}: {failures['text']} (later failures stand in"
                    " events.jsonl alone)",
                    stacklevel=3,
                )

    # --- checkpoints ------------------------------------------------------------------------------

    def save(self, context: Context) -> Path:
        """Write a checkpoint of a context."""
        self.switch(context)
        return self.state.save(context.folder, self.config, context.progress, context.knobs.held)

    def load(self, context: Context, path: Path) -> None:
        """Take a context back to a checkpoint.

        Raises:
            Damaged: a file is missing or is not what was written.
            ValueError: the checkpoint belongs to another config.
        """
        self._leave()
        context.progress, context.knobs.held = self.state.load(path, self.config)
        self._current, self.whole, context.snapshot = context, True, None

    def close(self) -> None:
        """End the verifier's process."""
        for task in self.setup.tasks:
            task.close()


def _due(every: int, step: StepValues, first: bool = False, last: int = 0) -> bool:
    """Whether something is done in a step: every so many steps (0 is never), and in the first or
    the last one.
    """
    number = step.number
    return bool(every) and (number % every == 0 or (first and number == 1) or number == last)
