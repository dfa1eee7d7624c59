"""The loop: one for every method.

    snapshot of the knobs → prompts → completions → rewards → prepare → updates → a row

The first pass over a rollout is on-policy, so it is also where the old policy, the teacher and the
reference are asked about the same tokens (:class:`Seen`); only where something must look at the
whole rollout before the first update (minibatches, recorded samples, interference) is that a pass
of its own.

Every random draw of step t comes from a generator seeded by (run seed, t, purpose). So there is no
random state to store: a resumed run, a replay and a fork of a run draw the same numbers, and
another cell cannot disturb them. Several processes have the same adapter and the same rollout and
share the work on it.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import math
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlkd_lab.models import (
    LanguageModel,
    Sequences,
    chunk_of,
    hidden_states,
    load_policy,
    load_teacher,
    measured_divergences,
    processes,
    reference_of,
    save_adapter,
    targets,
    token_divergence,
    token_logps,
    unflatten,
    vocabulary,
)
from rlkd_lab.objectives import (
    METHODS,
    TokenBatch,
    idle_rows,
    k1,
    k2,
    k3,
    needs_of,
    prepare,
    resolve_options,
    token_loss,
)
from rlkd_lab.objectives.estimators import Divergence
from rlkd_lab.rollouts import (
    Completions,
    DenseTwin,
    Prompts,
    Sampling,
    check_length,
    dense_copy,
    find_engine,
    sample,
    sequences_of,
    teacher_traces,
)
from rlkd_lab.runs import RunFolder, checkpoints
from rlkd_lab.runs.checkpoints import Damaged
from rlkd_lab.tasks import Example, Verdict, check_verifier, check_weights, guarded, judge
from rlkd_lab.training.config import LOOP_KNOBS, RunConfig, of_teacher
from rlkd_lab.training.environment import peak_memory_gib
from rlkd_lab.training.evaluation import SEED, evaluate
from rlkd_lab.training.guards import Watch
from rlkd_lab.training.interference import interference
from rlkd_lab.training.knobs import Knobs
from rlkd_lab.training.rollout import PROBES, Rollout, joined, write_samples
from rlkd_lab.training.room import Room
from rlkd_lab.training.speed import Size, matmul_flops, tokens

Row = dict[str, Any]
Passed = TypeVar("Passed")
MAX_GAP = 1e-2
"""Nats by which a token's log-probability may differ between the policy itself, its dense copy
and the sampler, all in float32.
"""
MAX_GAP_OTHER = 1e-3
"""The same for an engine that is not ours: without a merged copy, rounding is about 1e-5."""
MAX_GAP_16 = 0.05
"""Nats by which it may differ in the mean over tokens in 16 bit."""
DRAWS = "a number for each token"
"""Checkpoints of versions that drew otherwise are not gone on from."""
PASS_COST = 192
"""Tokens of padding that take about as long as another forward and backward pass."""
CHECKED_STEPS = 2
"""Steps of a process in which they are compared: in a run's first the adapter is still 0."""
ODD = "losses that are not finite"
WHOLE = ("loss/", ODD)
"""Statistics of a micro-batch that add up to the rollout's; the others are means over its
tokens.
"""
KL_METRICS: dict[Divergence, str] = {"reverse": "kl_teacher_rev", "forward": "kl_teacher_fwd"}


class Loop:
    """A run in memory: policy, teacher, optimizer, knobs, and the folder it writes."""

    def __init__(self, config: RunConfig, folder: RunFolder, knobs: Knobs | None = None) -> None:
        self.config, self.folder = config, folder
        if processes.count() > config.prompts_per_step:
            raise ValueError(
                f"{processes.count()} processes share the prompts of a step: use --set"
                f" prompts_per_step={processes.count()} or more"
            )
        self.knobs = knobs or Knobs(config)
        self.method = METHODS[config.method]
        self.options = resolve_options(
            self.method, {"constant_length": config.max_new_tokens, **config.options}
        )
        self.task = guarded(
            config.task, config.task_settings, config.prompt_template, config.verifier_seconds
        )
        self.engine = find_engine(config.engine)
        self.step = 0
        self.tokens = 0
        self.stopping = False
        self.listen: Callable[[], object] = lambda: None
        """Called between generated tokens; may set ``stopping``."""
        self.stream = ""
        """Part of the seed of every sampling: another word, other completions of the same
        prompts.
        """
        self.accuracy: float | None = None
        """Of the evaluation after ``step``, if there was one."""
        self.whole = True
        """Whether the weights are those of ``step``: a step stopped before its update has
        changed nothing.
        """
        self.checked = 0
        self.room = Room.of(config)
        for start in filter(None, (config.adapter, config.teacher_adapter)):
            checkpoints.check(Path(start))
        self.policy = load_policy(
            config.student,
            config.quant,
            lora_rank=None if config.adapter else config.lora_rank,
            lora_alpha=None if config.adapter else config.lora_alpha,
            adapter=config.adapter,
            gradient_checkpointing=config.gradient_checkpointing,
            seed=config.seed,
        )
        self.policy.model.train()
        self.policy.use_chat(config.chat, config.system_prompt)
        self.teacher: LanguageModel | None = None
        if config.teacher is not None:
            try:
                self.teacher = load_teacher(
                    config.teacher,
                    config.teacher_quant,
                    policy=self.policy,
                    adapter=config.teacher_adapter,
                )
            except ValueError as error:
                raise ValueError(of_teacher(config, error)) from error
            self.teacher.use_chat(config.chat, config.system_prompt)
            with self._teacher_here():
                pass  # from here on away, if its home is the host
        self.reference = reference_of(self.policy)
        dense = config.dense_twin and DenseTwin.suits(self.policy)
        self.twin = dense_copy(self.policy) if config.dense_twin else None
        # What the forwards go through; the student's gradients arrive at the policy's adapter
        # either way.
        self.student_lm = (
            self.twin.lm
            if self.twin is not None and self.twin.merges and not config.gradient_checkpointing
            else self.policy
        )
        frozen = {"teacher": self.teacher, "reference": self.reference}
        copies = {name: dense_copy(lm) for name, lm in frozen.items() if dense and lm is not None}
        self.frozen = {name: copy for name, copy in copies.items() if copy is not None}
        self.teacher_lm = self.frozen["teacher"].lm if "teacher" in self.frozen else self.teacher
        self.reference_lm = (
            self.frozen["reference"].lm if "reference" in self.frozen else self.reference
        )
        self.sizes = {"student": Size.of(self.policy)} | (
            {} if self.teacher is None else {"teacher": Size.of(self.teacher)}
        )
        self.chunk = chunk_of(config.logits_mib, vocabulary(self.policy))
        self.failures_told = False
        """Whether somebody was warned that calls of the verifier fail."""
        self.guards = Watch(config.guards, lambda event: self.folder.append("events.jsonl", event))
        self.optimizer = torch.optim.AdamW(
            self.policy.trainable(), lr=1.0, betas=(0.9, 0.95), weight_decay=config.weight_decay
        )
        self.traces: list[dict[str, Any]] | None = None
        self.trace_examples: dict[str, Example] = {}
        self._check_prompts()

    def _check_prompts(self) -> None:
        """Refuse, before anything is written, a task without prompts and prompts that leave no
        room for a completion.
        """
        needed = [(self.config.difficulty, self.config.max_new_tokens)]
        if self.config.eval_every and self.task.ood_difficulty is not None:
            needed.append((self.task.ood_difficulty, 2 * self.config.max_new_tokens))
        for difficulty, room in needed:
            try:
                examples = self.task.examples(16, self.config.seed, "train", difficulty)
            except (ValueError, OSError):
                raise
            except Exception as error:
                raise ValueError(
                    f"the task {self.task.name}: examples raised {type(error).__name__}: {error}"
                ) from error
            if not examples:
                raise ValueError(f"the task {self.config.task} has no training prompts")
            prompts = [example.prompt for example in examples]
            check_length(self.policy, prompts, room)
            if self.teacher is not None and difficulty == self.config.difficulty:
                try:
                    check_length(self.teacher, prompts, self.config.max_new_tokens)
                except ValueError as error:
                    raise ValueError(of_teacher(self.config, error)) from None
            check_weights(self.task, self.config.reward, examples[0])

    # --- one step ---------------------------------------------------------------------------------

    def take_step(self) -> Row:
        """Run one step and return its metrics row.

        Raises:
            Stopped: the stop flag was set; the step is discarded, and ``resume`` starts from the
                last checkpoint.
            FloatingPointError: a guard ends the run.
        """
        step, began = self.step + 1, time.perf_counter()
        values, moves = processes.from_first(self.knobs.snapshot(step))
        self.guards.begin(step)
        coefs = {name: value for name, value in values.items() if name not in LOOP_KNOBS}
        temperature = float(values["temperature"] or 1.0)
        clock, apart = Clock(), Clock()

        if self.twin is not None:
            self.twin.sync()
        self.room.before_sampling(step, self.knobs.record_script)
        self.task.begin(step, self.room.given_up)
        with clock("rollout"):
            rollout, row = self._rollout(step, temperature)
        with clock("reward"):
            batch, scored, verdicts = self._score(rollout)
        row = scored | row
        wanted = self._wanted(step, coefs)
        measures = (
            bool(self.config.interference_every)
            and step % self.config.interference_every == 0
            and rollout.on_policy
            and self.teacher is not None
        )
        records = bool(self.config.samples_every) and (
            step % self.config.samples_every == 0 or step == 1
        )
        if measures or records:
            wanted |= self._everybody()
        if "teacher" in wanted:
            self._check_rows(rollout.sequences)
        work = Work(
            step, rollout.sequences, temperature, coefs, wanted, Seen(rollout.sequences), clock
        )
        if measures or records or self.config.minibatches > 1 or self.config.teacher_home == "host":
            with self._teacher_here("teacher" in wanted):
                self._within_memory(
                    step, "looking", lambda: self._look_at(work, torch.arange(len(batch.logps)))
                )
            work.seen.share_out()
        if measures:
            known = work.seen.promised(work.seen.fill(batch), wanted)
            parts = (
                self.policy,
                self.config.method,
                known,
                rollout.sequences,
                self._live(work),
                coefs,
                self.options,
            )
            with apart("interference"):
                row |= self._within_memory(
                    step, "interference", lambda: interference(*parts, self.room.micro_batch)
                )
        if records:
            path = self.folder.path / "samples" / f"step_{step:06d}.parquet"
            with apart("samples"), self._teacher_here():
                write_samples(
                    self.folder,
                    path,
                    self.policy,
                    self.teacher_lm,
                    work.seen.fill(batch),
                    rollout,
                    verdicts,
                    work.seen.measured(),
                    temperature,
                )
                self._probe(step)
            self.folder.thin_samples(self.config.keep_samples)
        self.whole = False
        row |= self._update(work, batch, float(values["learning_rate"] or 0.0))
        row |= self._observed(rollout, work)
        for event in moves + self.room.told():
            self.folder.append("events.jsonl", {**event, "time": time.time()})
        self.step = step
        sampled = row.pop("generated", int(rollout.sequences.completion_mask.sum()))
        self.tokens += sampled
        if self.config.eval_every and (
            step % self.config.eval_every == 0 or step == self.config.steps
        ):
            with apart("evaluation"):
                row |= self.evaluate()
        self.accuracy = row.get("eval/accuracy")
        row |= {f"coef/{name}": value for name, value in values.items() if name != "learning_rate"}
        row |= {
            "learning_rate": values["learning_rate"],
            "num_tokens": self.tokens,
            "on_policy": rollout.on_policy,
        }
        row |= {f"time/{name}": seconds for name, seconds in clock.seconds.items()}
        needed = needs_of(self.method, coefs, self.options) | (
            {"old"} if self.config.minibatches > 1 else set()
        )
        for_curves = {"divergences", "teacher", "reference", "old"} - needed
        whole = time.perf_counter() - began
        training = (
            whole
            - sum(apart.seconds.values())
            - sum(clock.seconds.get(name, 0.0) for name in for_curves)
        )
        row |= {
            "step_time": whole,
            "train_time": training,
            "memory/peak_gib": peak_memory_gib(self.policy.device),
        }
        if rollout.on_policy:
            clock.flops += (
                self.sizes["student"].forward(*tokens(rollout.sequences)) / processes.count()
            )  # more, where groups without spread were left out
            row["speed/sampled_tokens_per_second"] = sampled / clock.seconds["rollout"]
        found = processes.from_all(
            (clock.flops, matmul_flops(self.policy.device, self.policy.head.weight.dtype))
        )
        computed, peak = (sum(each) for each in zip(*found, strict=True))
        speed = computed / sum(clock.seconds.values())
        row |= {"speed/tflops": speed / 1e12, "speed/utilisation": speed / peak}
        if (failures := self.room.unjudged(self.task.told(), self.knobs.record_script)) is not None:
            self.folder.append("events.jsonl", {**failures, "time": time.time()})
            if not self.failures_told:
                self.failures_told = True
                warnings.warn(
                    f"step {step}: {failures['text']} (what fails later stands in"
                    " events.jsonl alone)",
                    stacklevel=2,
                )
        self.whole = True
        return {"step": step, **row}

    def stop_asked(self) -> bool:
        """Whether to stop, asked between generated tokens."""
        self.listen()
        return self.stopping and processes.count() == 1  # several stop together, after the step

    def evaluate(self) -> Row:
        """Accuracy and length on the validation prompts, in and out of distribution."""
        config = self.config
        if self.twin is not None:
            self.twin.sync()
        found: Row = {}
        for suffix, difficulty in (("", config.difficulty), ("_ood", self.task.ood_difficulty)):
            if suffix and difficulty is None:
                continue
            result = evaluate(
                self.policy,
                self.task,
                config.eval_prompts,
                difficulty=difficulty,
                max_new_tokens=config.max_new_tokens if not suffix else 2 * config.max_new_tokens,
                engine=self.engine,
                twin=self.twin,
                stop=self.stop_asked,
                at_once=self.room.sample_at_once,
            )
            found |= {
                f"eval/accuracy{suffix}": result.accuracy,
                f"eval/mean_length{suffix}": result.length,
                f"eval/truncated{suffix}": result.truncated,
            }
        return found

    def _generator(self, step: int, purpose: str) -> torch.Generator:
        sampling = purpose.startswith("sampling")
        digest = hashlib.sha256(
            f"{self.config.seed}/{step}/{purpose}{self.stream if sampling else ''}".encode()
        ).digest()
        return torch.Generator(device=self.policy.device if sampling else "cpu").manual_seed(
            int.from_bytes(digest[:7], "big")
        )

    def _rollout(self, step: int, temperature: float) -> tuple[Rollout, Row]:
        """Completions to train on, and what the row should say of how they were got."""
        config = self.config
        draw = self._generator(step, "prompts")
        if "traces" in self.method.needs and (
            config.method != "gkd" or torch.rand(1, generator=draw).item() >= config.on_policy_frac
        ):
            table = self._teacher_traces()
            rows = [
                table[i]
                for i in torch.randint(
                    len(table), (config.prompts_per_step * config.group_size,), generator=draw
                ).tolist()
            ]
            examples = [self.trace_examples[r["example_id"]] for r in rows]
            sequences = sequences_of(
                self.policy, [r["prompt"] for r in rows], [r["completion_ids"] for r in rows]
            )
            finished = torch.tensor([r["finished"] for r in rows])
            return Rollout(
                examples,
                [r["completion"] for r in rows],
                sequences,
                None,
                finished,
                on_policy=False,
            ), {"traces/kept": len(table)}
        first = self._sample(draw, self._generator(step, "sampling"), temperature)
        if self.options["zero_spread"] != "resample":
            return first, {}
        return self._resampled(first, draw, step, temperature)

    def _sample(
        self, draw: torch.Generator, generator: torch.Generator, temperature: float
    ) -> Rollout:
        """One rollout of the student on fresh prompts."""
        config = self.config
        prompts = self.task.examples(
            config.prompts_per_step,
            int(torch.randint(2**31, (1,), generator=draw)),
            "train",
            config.difficulty,
        )
        drawn: Completions = sample(
            self.policy,
            [example.prompt for example in prompts],
            config.group_size,
            Sampling(temperature, config.max_new_tokens, config.top_p, config.top_k),
            generator,
            self.stop_asked,
            self.engine,
            self.twin,
            self.room.sample_at_once,
        )
        if drawn.at_once != self.room.sample_at_once:
            self.room.sample_fewer(self.step + 1, drawn.at_once)
        examples = [example for example in prompts for _ in range(config.group_size)]
        return Rollout(
            examples,
            drawn.texts,
            drawn.sequences,
            drawn.sampler_logps,
            drawn.finished,
            on_policy=True,
        )

    def _resampled(
        self, first: Rollout, draw: torch.Generator, step: int, temperature: float
    ) -> tuple[Rollout, Row]:
        """Dynamic sampling: rollouts until ``prompts_per_step`` groups have a spread of rewards, or
        ``resample_rounds`` are over; then groups without one fill up: they have no gradient, and
        count in the normaliser. DAPO (arXiv 2503.14476), §3.2.

        Rewards and lengths in the row are the first rollout's: those of the groups that were kept
        are near one half by selection.
        """
        config, size = self.config, self.config.group_size
        batch, row, _ = self._score(first)
        rollouts, spread = [first], _spread(batch, size)
        while (
            int(spread.sum()) < config.prompts_per_step and len(rollouts) < config.resample_rounds
        ):
            rollouts.append(
                self._sample(
                    draw, self._generator(step, f"sampling, round {len(rollouts) + 1}"), temperature
                )
            )
            spread = torch.cat([spread, _spread(self._score(rollouts[-1])[0], size)])
        kept = (~spread).int().argsort(stable=True)[: config.prompts_per_step]
        rows = (kept[:, None] * size + torch.arange(size)).flatten()
        return joined(rollouts, rows, self.policy.tokenizer.pad_token_id), row | {
            "sampling/rounds": float(len(rollouts)),
            "sampling/groups_with_spread": spread.float().mean().item(),
            "generated": sum(int(one.sequences.completion_mask.sum()) for one in rollouts),
        }

    def _teacher_traces(self) -> list[dict[str, Any]]:
        if self.traces is None:
            assert self.teacher is not None
            with self._teacher_here():
                table = teacher_traces(
                    self.teacher,
                    self.task,
                    self.config.traces,
                    self.config.seed,
                    self.folder.path / "traces.parquet",
                    keep=self.options["keep_traces"],  # type: ignore[arg-type]
                    difficulty=self.config.difficulty,
                    sampling=Sampling(1.0, self.config.max_new_tokens),
                    stop=self.stop_asked,
                    twin=self.frozen.get("teacher"),
                    at_once=self.room.sample_at_once,
                    written=self.folder.written,
                )
            self.traces = table.to_pylist()
            # a verifier may need more of an example than the table holds
            drawn = self.task.examples(
                self.config.traces, self.config.seed, "train", self.config.difficulty
            )
            self.trace_examples = {example.id: example for example in drawn}
        return self.traces

    def _score(self, rollout: Rollout) -> tuple[TokenBatch, Row, list[Verdict]]:
        """Rewards and what can be said of the completions before any model looks at them."""
        sequences, device = rollout.sequences, self.policy.device
        lengths = sequences.completion_mask.sum(1)
        asked = functools.partial(
            judge,
            self.task,
            self.config.reward,
            rollout.texts,
            rollout.examples,
            rollout.finished.tolist(),
            lengths.tolist(),
            self.config.max_new_tokens,
            self.config.group_size,
        )
        judged = processes.from_first(
            asked() if processes.first() else []
        )  # time limits may pass in one process and not in another
        check_verifier(self.task, judged, rollout.finished.tolist())
        rewards = torch.tensor([verdict.reward for verdict in judged], device=device)
        correct = torch.tensor([float(verdict.correct) for verdict in judged], device=device)
        groups = torch.arange(len(judged), device=device) // self.config.group_size
        mask = sequences.completion_mask
        if self.config.mask_truncated:
            mask = mask * rollout.finished.to(mask.device)[:, None]
        batch = TokenBatch(
            logps=torch.zeros(mask.shape, device=device),
            completion_mask=mask,
            sampler_logps=rollout.sampler_logps,
            rewards=rewards,
            correct=correct,
            group_ids=groups,
            kd_weight=self._teacher_weight(sequences),
        )
        lengths = lengths.float()
        row: Row = {
            "completions/mean_length": lengths.mean().item(),
            "completions/mean_length_correct": _mean(lengths[correct == 1]),
            "completions/mean_length_wrong": _mean(lengths[correct == 0]),
            "completions/clipped_ratio": 1 - rollout.finished.float().mean().item(),
        } | self._lengths(rollout, lengths)
        if rollout.on_policy:
            grouped = rewards.view(-1, self.config.group_size)
            row |= {"reward": rewards.mean().item(), "accuracy": correct.mean().item()}
            row |= {
                f"reward/{name}": sum(verdict.parts[name] for verdict in judged) / len(judged)
                for name in judged[0].parts
            }
            if any(verdict.why for verdict in judged):
                row["reward/unjudged"] = sum(bool(verdict.why) for verdict in judged) / len(judged)
            if self.config.group_size > 1:
                row |= {
                    "reward_std": grouped.std(1).mean().item(),
                    "frac_reward_zero_std": (grouped.std(1) == 0).float().mean().item(),
                }
        return batch, row, judged

    def _lengths(self, rollout: Rollout, lengths: Tensor) -> Row:
        """What the tokens of a completion are spent on, in tokens per completion; the three add
        up to the mean length.
        """
        part = getattr(
            self.task, "checking", None
        )  # a task may say which part of a completion checks the rest
        checks = [
            0
            if part is None
            else len(self.policy.tokenizer(part(text), add_special_tokens=False).input_ids)
            for text in rollout.texts
        ]
        checking = (
            torch.tensor(checks, device=lengths.device).clamp(max=lengths.max())
            * rollout.finished.to(lengths.device)
        ).float()
        truncated = (lengths * ~rollout.finished.to(lengths.device)).float()
        return {
            "completions/length_working": (lengths - checking - truncated).mean().item(),
            "completions/length_checking": checking.mean().item(),
            "completions/length_truncated": truncated.mean().item(),
        }

    def _probe(self, step: int) -> None:
        """Record what the policy makes of a few fixed validation prompts, with the same random
        stream every time.
        """
        config = self.config
        examples = self.task.examples(PROBES, SEED, "validation", config.difficulty)
        if not examples:
            return
        draw = torch.Generator(device=self.policy.device).manual_seed(SEED)
        sampling = Sampling(1.0, config.max_new_tokens)
        drawn = sample(
            self.policy,
            [example.prompt for example in examples],
            1,
            sampling,
            draw,
            self.stop_asked,
            self.engine,
            self.twin,
        )
        mask = drawn.sequences.completion_mask
        verdicts = judge(
            self.task,
            config.reward,
            drawn.texts,
            examples,
            drawn.finished.tolist(),
            mask.sum(1).tolist(),
            config.max_new_tokens,
        )
        seen = Seen(drawn.sequences)
        with torch.no_grad():
            self._look(
                Work(
                    step,
                    drawn.sequences,
                    1.0,
                    {},
                    self._everybody() | {"divergences"},
                    seen,
                    Clock(),
                ),
                torch.arange(len(mask)),
            )
        batch = seen.fill(TokenBatch(torch.zeros(mask.shape, device=mask.device), mask))
        rollout = Rollout(
            examples, drawn.texts, drawn.sequences, None, drawn.finished, on_policy=True
        )
        path = self.folder.path / "samples" / f"probe_{step:06d}.parquet"
        write_samples(
            self.folder,
            path,
            self.policy,
            self.teacher_lm,
            batch,
            rollout,
            verdicts,
            seen.measured(),
            1.0,
        )

    def _everybody(self) -> set[str]:
        """All the models that can be asked about tokens."""
        return {"reference"} if self.teacher is None else {"reference", "teacher"}

    def _teacher_weight(self, sequences: Sequences) -> Tensor | None:
        """0 at an end of sequence that the teacher would write with another token: there its
        log-probability says nothing about the answer.
        """
        if self.teacher is None or self.teacher.eos_ids >= self.policy.eos_ids:
            return None
        ours_alone = torch.tensor(
            sorted(self.policy.eos_ids - self.teacher.eos_ids),
            device=sequences.completion_ids.device,
        )
        return (~torch.isin(sequences.completion_ids, ours_alone)).float()

    def _check_rows(self, sequences: Sequences) -> None:
        """A student whose vocabulary is padded further than the teacher's can write a token
        that the teacher has no row for.
        """
        assert self.teacher is not None
        ours, theirs = vocabulary(self.policy), vocabulary(self.teacher)
        if ours > theirs and int(sequences.completion_ids.max()) >= theirs:
            raise ValueError(
                f"{self.config.student} has written a token of its padding ({ours} rows),"
                f" which {self.config.teacher} has no row for ({theirs}):"
                " a student whose weights mean anything gives padding no probability"
            )

    def _wanted(self, step: int, coefs: dict[str, float | None]) -> set[str]:
        """Whom to ask about the sampled tokens: those that the method needs, and every
        ``kl_every`` steps the others too, for the curves.
        """
        needs = needs_of(self.method, coefs, self.options)
        due = bool(self.config.kl_every) and (step % self.config.kl_every == 0 or step == 1)
        wanted = {"reference"} if due or "reference" in needs else set()
        if self.teacher is not None:
            wanted |= ({"teacher"} if due or "teacher" in needs else set()) | (
                {"divergences"} if due else set()
            )
        return wanted

    @contextmanager
    def _teacher_here(self, asked: bool = True) -> Iterator[None]:
        """With ``teacher_home=host`` the teacher is on the device only inside, for passes
        without gradient, and only if it is asked.
        """
        apart = (
            self.config.teacher_home == "host"
            and self.teacher is not None
            and self.teacher.model is not self.policy.model
        )
        if not apart or not asked:
            yield
            return
        assert self.teacher is not None
        model: Any = self.teacher.model
        model.to(self.policy.device)
        try:
            yield
        finally:
            model.to("cpu")

    def _look_at(self, work: Work, rows: Tensor) -> None:
        """:meth:`_look` without gradient, in micro-batches."""
        with torch.no_grad():
            for some in self._micro_batches(work.sequences, _own(rows, work)):
                self._look(work, some)

    def _look(self, work: Work, rows: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Policy, teacher and reference on some rows; what they say goes into ``work.seen``.

        Returns:
            The policy's hidden states and log-probabilities, with their graph if gradients are on,
            and the teacher's hidden states.
        """
        part, temperature, wanted, seen, clock = (
            work.sequences.select(rows),
            work.temperature,
            work.wanted,
            work.seen,
            work.clock,
        )
        ids, theirs = targets(part), None
        counted = tokens(part)
        clock.flops += self.sizes["student"].forward(*counted)
        with clock("update" if torch.is_grad_enabled() else "old"):
            hidden = hidden_states(self.student_lm, part)
            logps, entropy = token_logps(self.student_lm, hidden, ids, temperature, self.chunk)
        found = {"old_logps": logps.detach(), "entropy": entropy}
        with torch.no_grad():
            if "teacher" in wanted:
                assert self.teacher_lm is not None
                clock.flops += self.sizes["teacher"].forward(*counted)
                with clock("teacher"):
                    theirs = self._frozen_states("teacher", self.teacher_lm, rows, part, seen)
                    found["teacher_logps"], _ = token_logps(
                        self.teacher_lm, theirs, ids, temperature, self.chunk
                    )
                if "divergences" in wanted:
                    with clock("divergences"):
                        measured = measured_divergences(
                            self.student_lm,
                            hidden,
                            self.teacher_lm,
                            theirs,
                            tuple(KL_METRICS),
                            {temperature, 1.0},
                            self.chunk,
                        )
                        for kind in KL_METRICS:
                            found |= {
                                kind: measured[kind, temperature],
                                f"{kind}_t1": measured[kind, 1.0],
                            }
            if "reference" in wanted:
                clock.flops += self.sizes["student"].forward(*counted)
                with clock("reference"):
                    states = self._frozen_states("reference", self.reference_lm, rows, part, seen)
                    found["ref_logps"], _ = token_logps(
                        self.reference_lm, states, ids, temperature, self.chunk
                    )
        if self.twin is not None and self.checked < CHECKED_STEPS and not seen.values:
            with torch.no_grad():
                own, _ = token_logps(
                    self.policy, hidden_states(self.policy, part), ids, temperature, self.chunk
                )
            _check_gap(
                (own - logps.detach()).abs(),
                "the dense copy is wrong: what is trained through it is not the policy",
                "use --set dense_twin=false",
            )
        seen.add(rows, part.completion_mask, found)
        return hidden, logps, theirs

    def _frozen_states(
        self, name: str, lm: LanguageModel, rows: Tensor, part: Sequences, seen: Seen
    ) -> Tensor:
        """Hidden states of a model that is not trained; where it has a lean forward, each
        prompt is run once for all of its completions.
        """
        decoder = self.frozen[name].decoder if name in self.frozen else None
        if decoder is None:
            return hidden_states(lm, part)
        if name not in seen.prompts:
            seen.prompts[name] = decoder.read(seen.sequences)
        return decoder.hidden_states(
            part.completion_ids, part.completion_mask, seen.prompts[name], rows
        )

    def _observed(self, rollout: Rollout, work: Work) -> Row:
        """The metrics that follow from what the models said of the sampled tokens."""
        counts, full = rollout.sequences.completion_mask.bool(), work.seen.values
        row: Row = {"entropy": _mean(full["entropy"][counts])}
        for kind, name in KL_METRICS.items():
            if kind in full:
                # of two equal models rounding leaves ±1e-8
                row |= {
                    name: max(_mean(full[kind][counts]), 0.0),
                    f"{name}_t1": max(_mean(full[f"{kind}_t1"][counts]), 0.0),
                }
        if "teacher_logps" in full:
            pair = (full["old_logps"], full["teacher_logps"])
            row |= {
                f"kl_teacher_{name}": _mean(estimate(*pair)[counts])
                for name, estimate in (("k1", k1), ("k2", k2), ("k3", k3))
            }
        if "ref_logps" in full:
            row["kl_ref"] = _mean(k3(full["old_logps"], full["ref_logps"])[counts])
        if rollout.sampler_logps is not None:
            gap = (full["old_logps"] - rollout.sampler_logps)[counts].abs()
            row |= {
                "sampling/logp_difference_mean": _mean(gap),
                "sampling/logp_difference_max": gap.max().item(),
            }
            if self.checked < CHECKED_STEPS and self.config.top_p == 1 and self.config.top_k == 0:
                self._check_sampler(gap, corrected=work.coefs.get("importance_cap") is not None)
        elif (
            rollout.on_policy
            and self.config.engine != "hf"
            and work.coefs.get("importance_cap") is not None
        ):
            raise ValueError(
                f"importance_cap cannot act: the engine {self.config.engine} does not say"
                " with which log-probabilities it drew"
            )
        self.checked += 1
        return row

    def _check_sampler(self, gap: Tensor, corrected: bool) -> None:
        """Whether what was sampled is the policy that is trained;

        ``gap``: differences of the tokens' log-probabilities.
        """
        if self.config.engine != "fast" and not corrected:
            wrong = f"the engine {self.config.engine} does not sample the policy that is trained"
            _check_gap(
                gap,
                wrong,
                "correct for it with --set importance_cap=2, or use --set engine=fast",
                DenseTwin.suits(self.policy),
                MAX_GAP_OTHER,
            )
        elif self.config.engine == "fast" and self.twin is not None:
            _check_gap(
                gap,
                "the dense copy is wrong: it does not sample the policy that is trained",
                "use --set dense_twin=false",
                self.twin.merges,
            )

    def _micro_batches(self, sequences: Sequences, rows: Tensor) -> list[Tensor]:
        """Row numbers in micro-batches of like lengths: none holds more tokens than ``micro_batch``
        of the rollout's longest would, and one ends where its padding would cost more than another
        pass.
        """
        lengths, prompts = (
            mask.sum(1).tolist() for mask in (sequences.completion_mask, sequences.prompt_mask)
        )
        limit = self.room.micro_batch * (max(prompts) + max(lengths))
        found: list[list[int]] = []
        padding = 0
        for row in sorted(rows.tolist(), key=lambda row: lengths[row]):
            added = (lengths[row] - lengths[found[-1][-1]]) * len(found[-1]) if found else 0
            if (
                not found
                or padding + added > PASS_COST
                or (len(found[-1]) + 1) * (max(prompts) + lengths[row]) > limit
            ):
                found.append([])
                padding = added = 0
            found[-1].append(row)
            padding += added
        return [torch.tensor(micro_batch) for micro_batch in found]

    def _live(self, work: Work) -> Callable[[TokenBatch, Sequences], TokenBatch]:
        """A function that fills ``logps``, and ``divergence`` where the method needs it, with
        gradient.
        """

        def forward(part: TokenBatch, sequences: Sequences) -> TokenBatch:
            hidden = hidden_states(self.student_lm, sequences)
            logps, _ = token_logps(
                self.student_lm, hidden, targets(sequences), work.temperature, self.chunk
            )
            return self._with_gradient(work, part, sequences, hidden, logps)

        return forward

    def _with_gradient(
        self,
        work: Work,
        part: TokenBatch,
        sequences: Sequences,
        hidden: Tensor,
        logps: Tensor,
        theirs: Tensor | None = None,
    ) -> TokenBatch:
        """The batch with the live log-probabilities, and with the divergence to the teacher
        where the method needs it.
        """
        filled = replace(part, logps=unflatten(logps, sequences.completion_mask))
        if "divergence" not in needs_of(self.method, work.coefs, self.options):
            return filled
        assert self.teacher_lm is not None
        if theirs is None:
            with torch.no_grad():
                theirs = hidden_states(self.teacher_lm, sequences)
        topk = self.options["topk"]
        per_token = token_divergence(
            self.student_lm,
            hidden,
            self.teacher_lm,
            theirs,
            str(self.options["divergence"]),  # type: ignore[arg-type]
            weight=float(work.coefs.get("jsd_weight", 0.5) or 0.0),
            topk=int(topk) if topk else None,
            temperature=work.temperature,
            chunk=self.chunk,
        )
        return replace(filled, divergence=unflatten(per_token, sequences.completion_mask))

    def _update(self, work: Work, batch: TokenBatch, lr: float) -> Row:
        """All optimizer steps of a rollout.

        The first pass looks at the tokens as it goes, if nobody has yet.
        """
        config, step = self.config, work.step
        prepared = prepare(
            config.method, work.seen.promised(batch, work.wanted), work.coefs, self.options
        )
        idle = idle_rows(config.method, prepared, work.coefs, self.options).cpu()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        shuffle = self._generator(step, "minibatches")
        totals: dict[str, float] = {}
        norms: list[float] = []
        skipped = 0
        parameters = self.policy.trainable()
        for update in range(config.updates_per_rollout):
            order = (
                torch.randperm(len(batch.logps), generator=shuffle)
                if config.minibatches > 1
                else torch.arange(len(batch.logps))
            )
            parts = min(config.minibatches, len(order))
            looking = not work.seen.values
            for number, chosen in enumerate(order.tensor_split(parts)):
                if self.twin is not None and (update or number):
                    self.twin.sync()
                done = functools.partial(
                    self._gradients, work, prepared, chosen, idle[chosen], parts, looking
                )
                for found in processes.from_all(
                    self._within_memory(step, f"update {update * parts + number + 1}", done)
                ):
                    for name, value in found.items():
                        totals[name] = _joined(name, totals.get(name, 0.0), value)
                _add_up_gradients(parameters)
                if looking:
                    work.seen.share_out()
                norm = torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
                norms.append(float(norm))
                if self.guards.update(step, self._wrong(work, batch, norms[-1], totals)):
                    self.optimizer.step()
                else:
                    skipped += 1
        row = {
            name: value if name.endswith("/max") else value / config.updates_per_rollout
            for name, value in totals.items()
            if name != ODD
        }
        return (
            row
            | {"grad_norm": sum(norms) / len(norms)}
            | ({"guard/skipped": float(skipped)} if skipped else {})
        )

    def _wrong(
        self, work: Work, batch: TokenBatch, norm: float, totals: dict[str, float]
    ) -> dict[str, str | None]:
        """By guard, what is wrong before an update, in words; ``None`` where nothing is."""
        counts = batch.completion_mask.bool()

        def odd(values: Tensor | None, what: str, where: Tensor = counts) -> str | None:
            number = 0 if values is None else int((~values.isfinite() & where).sum())
            return (
                f"{what} of {number} token{'s' * (number > 1)} is −∞ or not a number"
                if number
                else None
            )

        theirs = None
        if "teacher" in needs_of(self.method, work.coefs, self.options):
            speaks = counts if batch.kd_weight is None else counts & (batch.kd_weight != 0)
            theirs = odd(
                work.seen.values.get("teacher_logps"), "the teacher's log-probability", speaks
            )
        broken = None
        if totals.get(ODD) or not math.isfinite(norm):
            assert batch.rewards is not None
            rewards = None if bool(batch.rewards.isfinite().all()) else "a reward is not finite"
            unlikely = odd(work.seen.values.get("old_logps"), "the policy's log-probability")
            broken = (
                unlikely
                or rewards
                or ("the loss is not finite" if totals.get(ODD) else "the gradient is not finite")
            )
        ratio = totals.get("ratio/max", 0.0)
        exploded = (
            f"the largest probability ratio is {ratio:.3g}"
            if self.guards.over("ratio", ratio)
            else None
        )
        return {"teacher": theirs, "loss": broken, "ratio": exploded}

    def _gradients(
        self,
        work: Work,
        prepared: TokenBatch,
        chosen: Tensor,
        idle: Tensor,
        parts: int,
        looking: bool,
    ) -> dict[str, float]:
        """The passes before one optimizer step: gradients of a minibatch, one of ``parts``, and
        its share of the metrics.
        """
        self.optimizer.zero_grad()
        # in float16 the share of one token in a mean over many is too small a number on its way
        # back; a power of two rounds nothing
        many = max(float(prepared.mask.sum()), prepared.normalizer or 1.0)
        scale = (
            2.0 ** int(math.log2(many)) if self.policy.head.weight.dtype == torch.float16 else 1.0
        )
        forward, found = self._live(work), dict[str, float]()
        quiet = idle & ~idle.all()  # a minibatch of idle rows alone still has a gradient, of zeros
        for rows in self._micro_batches(work.sequences, _own(chosen[~quiet], work)):
            part = work.sequences.select(rows)
            if looking:
                hidden, logps, theirs = self._look(work, rows)
            with work.clock("update"):
                known = work.seen.fill(prepared, rows)
                live = (
                    self._with_gradient(work, known, part, hidden, logps, theirs)
                    if looking
                    else forward(known, part)
                )
                loss, stats = token_loss(self.config.method, live, work.coefs, self.options)
                # The normaliser is the whole rollout's, so a minibatch holds only its share of the
                # mean.
                (loss * parts * scale).backward()
            # backwards through frozen weights is as much as forwards
            work.clock.flops += self.sizes["student"].forward(*tokens(part)) * (
                1 + (not looking) + self.config.gradient_checkpointing
            )
            share = float(live.mask.sum() / max(float(prepared.mask.sum()), 1.0))
            stats[ODD] = float(not math.isfinite(loss.item()))
            for name, value in stats.items():
                found[name] = _joined(
                    name,
                    found.get(name, 0.0),
                    value * (1.0 if name.startswith(WHOLE) or name.endswith("/max") else share),
                )
        for parameter in self.policy.trainable() if scale != 1 else ():
            if parameter.grad is not None:
                parameter.grad /= scale
        if looking:
            self._look_at(work, chosen[quiet])  # what has no gradient still counts in the metrics
        return found

    def _within_memory(self, step: int, name: str, passes: Callable[[], Passed]) -> Passed:
        """Some passes over a rollout. Out of memory, they are begun again with half of the
        micro-batch, which stays halved: the sums are the same to rounding, and an event says so.
        """
        self.room.before_passes(step, name, self.knobs.record_script)
        while True:
            try:
                return passes()
            except torch.OutOfMemoryError as error:
                if self.room.micro_batch == 1:
                    raise torch.OutOfMemoryError(
                        f"not even one completion at a time fits into memory: {error}"
                    ) from None
            # only here is what the passes held let go
            self.optimizer.zero_grad()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.room.halve(step, name)

    # --- going back -------------------------------------------------------------------------------

    def snapshot(self) -> State:
        """Weights, optimizer and counters, copied."""
        moments = {
            i: {key: value.clone() for key, value in entry.items()}
            for i, entry in self.optimizer.state_dict()["state"].items()
        }
        return State(
            [p.detach().clone() for p in self.policy.trainable()],
            moments,
            self.step,
            self.tokens,
            self.accuracy,
        )

    def restore(self, state: State) -> None:
        """Go back to a snapshot; everything computed from there is the same to the last bit."""
        with torch.no_grad():
            for parameter, value in zip(self.policy.trainable(), state.weights, strict=True):
                parameter.copy_(value)
        moments = {
            i: {key: value.clone() for key, value in entry.items()}
            for i, entry in state.moments.items()
        }  # the optimizer writes in place
        self.optimizer.load_state_dict(
            {"state": moments, "param_groups": self.optimizer.state_dict()["param_groups"]}
        )
        self.step, self.tokens, self.accuracy, self.whole = (
            state.step,
            state.tokens,
            state.accuracy,
            True,
        )

    # --- checkpoints ------------------------------------------------------------------------------

    def save_checkpoint(self) -> Path:
        """Adapter, optimizer, step and knobs; older ones are removed, as ``keep_checkpoints``
        says.
        """

        def fill(beside: Path) -> None:
            try:
                save_adapter(self.policy, beside)
                moments = self.optimizer.state_dict()["state"]
                save_file(
                    {
                        f"{i}.{key}": value.contiguous()
                        for i, entry in moments.items()
                        for key, value in entry.items()
                    },
                    beside / "optimizer.safetensors",
                )
            except SafetensorError as error:  # its text is all that is left of the system's error
                number = re.search(r"os error (\d+)", str(error))
                raise OSError(int(number[1]) if number else errno.EIO, str(error)) from error

        of = {"seed": self.config.seed, "config": fingerprint(self.config)}
        state = {
            "step": self.step,
            "tokens": self.tokens,
            "accuracy": self.accuracy,
            "held": self.knobs.held,
            **of,
        }
        path = checkpoints.save(self.folder, self.step, fill, state)
        checkpoints.prune(self.folder, self.config.keep_checkpoints)
        return path

    def load_checkpoint(self, path: Path) -> None:
        """Go back to a checkpoint.

        Raises:
            Damaged: its files are. ValueError: it belongs to another config.
        """
        held = checkpoints.read(path)
        try:
            made_with, step, tokens, knobs = (
                held["config"],
                int(held["step"]),
                int(held["tokens"]),
                dict(held["held"]),
            )
            if path.name != f"step_{step:06d}":
                raise ValueError(f"it says that it is of step {step}")
            adapter = load_file(path / "adapter_model.safetensors")
            flat = load_file(path / "optimizer.safetensors")
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise Damaged(
                f"the checkpoint {path} is damaged: {type(error).__name__}: {error}"
            ) from error
        if made_with != fingerprint(self.config):
            raise ValueError(
                f"the checkpoint {path} does not match the run's config.json: it was made"
                " with other settings"
            )
        weights = get_peft_model_state_dict(
            self.policy.model, adapter_name="default", save_embedding_layers=False
        )
        shapes = {name: value.shape for name, value in weights.items()}
        moments = {
            f"{i}.{key}"
            for i in range(len(self.policy.trainable()))
            for key in ("step", "exp_avg", "exp_avg_sq")
        }
        moments = moments if flat else set()  # before the first update there are none
        if shapes != {name: value.shape for name, value in adapter.items()} or moments != set(flat):
            odd = sorted(set(shapes) ^ set(adapter) | moments ^ set(flat))
            raise Damaged(
                f"the checkpoint {path} is damaged: "
                + (
                    f"missing or odd tensors, such as {odd[0]}"
                    if odd
                    else "tensors of other shapes"
                )
            )
        set_peft_model_state_dict(self.policy.model, adapter, adapter_name="default")
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in flat.items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict(
            {"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]}
        )
        self.step, self.tokens, self.knobs.held, self.accuracy = (
            step,
            tokens,
            knobs,
            held.get("accuracy"),
        )


@dataclass(frozen=True)
class State:
    """What a step changes."""

    weights: list[Tensor]
    moments: dict[int, dict[str, Tensor]]
    step: int
    tokens: int
    accuracy: float | None


class Seen:
    """What the models said of the tokens of a rollout, per token, (B, T) each: old policy,
    teacher, reference, entropy, divergences.
    """

    def __init__(self, sequences: Sequences) -> None:
        self.sequences = sequences
        self.values: dict[str, Tensor] = {}
        self.prompts: dict[str, Prompts] = {}
        """Of the frozen models, by name."""

    def add(self, rows: Tensor, mask: Tensor, found: dict[str, Tensor]) -> None:
        """Values of some rows, flat over their tokens."""
        for name, flat in found.items():
            whole = self.values.setdefault(
                name, torch.zeros(self.sequences.completion_mask.shape, device=mask.device)
            )
            whole[rows] = unflatten(flat.float(), mask)

    def share_out(self) -> None:
        """With several processes: what each has seen of its rows becomes known to all."""
        for name in sorted(
            {name for names in processes.from_all(list(self.values)) for name in names}
        ):
            processes.add_up(
                self.values.setdefault(
                    name,
                    torch.zeros(
                        self.sequences.completion_mask.shape,
                        device=self.sequences.completion_mask.device,
                    ),
                )
            )

    def measured(self) -> dict[str, Tensor]:
        """Entropy and divergences to the teacher, by metric name."""
        return {
            KL_METRICS.get(name, name): values
            for name, values in self.values.items()
            if name == "entropy" or name in KL_METRICS
        }  # type: ignore[call-overload]

    def fill(self, batch: TokenBatch, rows: Tensor | slice = slice(None)) -> TokenBatch:
        """Some rows of the batch with what is known of them."""
        old, teacher, reference = (
            (self.values[name][rows] if name in self.values else None)
            for name in ("old_logps", "teacher_logps", "ref_logps")
        )
        assert old is not None
        return replace(
            batch.select(rows), logps=old, old_logps=old, teacher_logps=teacher, ref_logps=reference
        )

    def promised(self, batch: TokenBatch, wanted: set[str]) -> TokenBatch:
        """The batch for ``prepare``, which asks only whether there will be a teacher, a
        reference and a divergence; what is known stays.
        """
        blank = torch.zeros_like(batch.logps)
        asked = blank if "teacher" in wanted else None
        teacher = asked if batch.teacher_logps is None else batch.teacher_logps
        reference = blank if "reference" in wanted and batch.ref_logps is None else batch.ref_logps
        return replace(batch, teacher_logps=teacher, ref_logps=reference, divergence=asked)


@dataclass(frozen=True)
class Work:
    """What all passes over the rollout of a step share."""

    step: int
    sequences: Sequences
    temperature: float
    coefs: dict[str, float | None]
    wanted: set[str]
    seen: Seen
    clock: Clock


class Clock:
    """Seconds by purpose, and what was computed in them, in floating-point operations."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.flops = 0.0

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


def fingerprint(config: RunConfig) -> str:
    """Changes with any setting that a checkpoint depends on (how often things are written is
    none), and with how completions are drawn.
    """
    often = {
        "eval_every",
        "eval_prompts",
        "checkpoint_every",
        "keep_checkpoints",
        "samples_every",
        "keep_samples",
        "interference_every",
    }
    free = {*often, "plan", "guards", "verifier_seconds"}
    return hashlib.sha256((DRAWS + config.model_dump_json(exclude=free)).encode()).hexdigest()[:16]


def _own(rows: Tensor, work: Work) -> Tensor:
    """Those of the rows that this process works on, of several."""
    mine = processes.share(len(work.sequences.completion_mask))
    return rows[(rows >= mine.start) & (rows < mine.stop)]


def _add_up_gradients(parameters: Sequence[Tensor]) -> None:
    """Over the processes; each has the gradient of its rows."""
    if processes.count() == 1:
        return
    flat = torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
    )
    for parameter, total in zip(
        parameters, processes.add_up(flat).split([p.numel() for p in parameters]), strict=True
    ):
        parameter.grad = total.view_as(parameter).clone()


def _spread(batch: TokenBatch, group_size: int) -> Tensor:
    """Which groups have rewards that differ, (prompts,) of bool."""
    assert batch.rewards is not None
    grouped = batch.rewards.view(-1, group_size).cpu()
    return grouped.amax(1) > grouped.amin(1)


def gap_and_limit(gaps: Tensor, exact: bool = True, limit: float = MAX_GAP) -> tuple[float, float]:
    """How far apart log-probabilities of the same tokens are, in nats, and how far they may be:
    at worst in float32, in the mean in 16 bit.
    """
    return (float(gaps.max()), limit) if exact else (float(gaps.mean()), MAX_GAP_16)


def _check_gap(
    gaps: Tensor, wrong: str, instead: str, exact: bool = True, limit: float = MAX_GAP
) -> None:
    gap, limit = gap_and_limit(gaps, exact, limit)
    if gap > limit:  # a NaN is the loss's to report
        raise ValueError(f"{wrong}; log-probabilities differ by {gap:.2g} nats; {instead}")


def _joined(name: str, one: float, other: float) -> float:
    """A statistic over two parts of a rollout: the larger or the sum."""
    return max(one, other) if name.endswith("/max") else one + other


def _mean(values: Tensor) -> float:
    return values.float().mean().item() if values.numel() else float("nan")
