"""Self-checks of the models, before the first step of a run and in ``rlkd doctor --deep``: what a
library or a build can do wrongly without saying so.

1. Gradients are the same before and after a generation, they are derivatives, and the dense copy
    has the policy's.
2. What was sampled has the log-probabilities that the trainer gives it.
3. With its adapter off the policy says what its base said before an adapter was attached; with it
    on, something else.
4. A batch of different lengths, padded, has the log-probabilities of its sequences one by one.

An untrained adapter is silent (B = 0): while it is examined it has other values, and afterwards its
own, to the last bit. No random stream, gradient or optimizer state is touched, so a run has the
same rows with and without.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rlkd_lab.models import (
    LanguageModel,
    Sequences,
    distributed,
    load_policy,
    make_dense_copy,
    policy_logps,
)
from rlkd_lab.models.dense_copy import DenseCopy
from rlkd_lab.models.verification import probe_logps, rounded
from rlkd_lab.rollouts import Request, Sampling
from rlkd_lab.rollouts.fast import fast
from rlkd_lab.rollouts.sampling import counted
from rlkd_lab.rollouts.traces import sequences_of
from rlkd_lab.training import gaps
from rlkd_lab.training.config import RunConfig
from rlkd_lab.training.context import Context
from rlkd_lab.training.gaps import gap_and_limit, noise_of
from rlkd_lab.training.models import trained_through
from rlkd_lab.training.trainer import Trainer

PROMPTS = ("49-7?", "5+1-2+3+4?")
"""Of two lengths, in characters that every tokenizer has."""
COMPLETIONS = ("49-7=42;#42", "#11")
SAMPLING = Sampling(temperature=0.8, max_new_tokens=3)
"""A temperature that is forgotten somewhere shows at none but 1."""
STIR = 0.05
"""Size of s·B·A·x while the adapter is examined, where x has unit entries and A is as peft
starts it.
"""
AGAIN = (
    "this build of torch, transformers, peft or bitsandbytes is broken: install the versions"
    " of constraints.txt"
)


@dataclass(frozen=True)
class Finding:
    """One number of a check."""

    name: str
    value: float
    ok: bool
    text: str
    """With what was measured; what to do, where it is wrong."""


def check_start(trainer: Trainer, context: Context) -> None:
    """Examine the models of a run as it starts or goes on, and record the numbers as an event.

    Raises:
        ValueError: what is wrong, in the same words in all of several processes.
    """
    models = trainer.setup.models
    found = examine(models.policy, models.student, models.copy)
    wrong = [
        text
        for texts in distributed.from_all([one.text for one in found if not one.ok])
        for text in texts
    ]
    numbers = {one.name: one.value for one in found}
    step = context.progress.step
    context.tell({"event": "selfcheck", "step": step, **numbers, "time": time.time()})
    if wrong:
        raise ValueError(wrong[0])


def examine_models(config: RunConfig) -> list[Finding]:
    """Return the checks of the student of a config, loaded for it."""
    policy = load_policy(
        config.student,
        config.quant,
        lora=config.lora(),
        gradient_checkpointing=config.gradient_checkpointing,
    )
    policy.model.train()
    dense = make_dense_copy(policy, policy.said) if config.dense_copy else None
    return examine(policy, trained_through(policy, dense, config.gradient_checkpointing), dense)


def examine(
    policy: LanguageModel, student: LanguageModel, dense: DenseCopy | None
) -> list[Finding]:
    """Return all checks of a policy.

    Args:
        policy: with a trainable adapter, in training mode.
        student: what the training forwards go through: the policy, or the dense's model.
        dense: the dense copy to sample from, if there is one.
    """
    policy = replace(policy, chat=False)  # another view of the same model
    exact = DenseCopy.suits(policy)
    given = sequences_of(
        policy,
        list(PROMPTS),
        policy.tokenizer(list(COMPLETIONS), add_special_tokens=False)["input_ids"],
    )
    with _stirred(policy, dense):
        value, before = _gradients(policy, policy, given)
        drawn, said, off = _generate(policy, dense)
        found = [_after_generation(before, _gradients(policy, policy, given)[1], exact)]
        if exact:
            found.append(_slope(policy, given, value, before))
        if student.model is not policy.model:
            through = _gradients(policy, student, given)[1]
            noise = 0.0 if exact else _noise(policy, before, given)
            found.append(_through_the_copy(before, through, gaps.MAX_COPY_GAP[exact] + 2 * noise))
        with torch.no_grad():
            found += _adapter(policy, off, probe_logps(student), exact)
            # the mean over likely tokens is what 16 bit is good for; at unlikely ones a wrong mask
            # shows best
            found.append(_padding(student, given if exact else drawn, exact))
            # the sampler of the run against both forwards
            trainers = [policy] if student.model is policy.model else [policy, student]
            found.append(_sampler_or_own(policy, dense, (drawn, said), trainers, exact))
    return found


@contextmanager
def _stirred(policy: LanguageModel, dense: DenseCopy | None) -> Iterator[None]:
    """Inside, the adapter has a B that is not zero."""
    kept = [parameter.detach().clone() for parameter in policy.trainable()]
    generator = torch.Generator().manual_seed(0)
    module: Any
    try:
        with torch.no_grad():
            for module in policy.model.modules():
                if policy.adapter in getattr(module, "lora_B", {}):
                    b = module.lora_B[policy.adapter].weight
                    # std of A·x is 1/√3 for each of r numbers
                    std = STIR * (3 / b.shape[1]) ** 0.5 / module.scaling[policy.adapter]
                    b.copy_(torch.randn(b.shape, generator=generator) * std)
        if dense is not None:
            dense.sync()
        yield
    finally:
        _put(policy, kept)
        if dense is not None:
            dense.sync()


@torch.no_grad()
def _put(policy: LanguageModel, values: Sequence[Tensor]) -> None:
    for parameter, value in zip(policy.trainable(), values, strict=True):
        parameter.copy_(value)


def _gradients(
    policy: LanguageModel, through: LanguageModel, given: Sequences
) -> tuple[float, list[Tensor]]:
    """Return the summed log-probabilities, and their gradient by every matrix of the adapter."""
    parameters = policy.trainable()
    with torch.enable_grad():
        total = policy_logps(through, given)[0].sum()
        found = (
            torch.autograd.grad(total, parameters, allow_unused=True)
            if total.requires_grad
            else [None] * len(parameters)
        )
    return float(total.detach()), [
        torch.zeros_like(parameter) if one is None else one
        for one, parameter in zip(found, parameters, strict=True)
    ]


def _generate(policy: LanguageModel, dense: DenseCopy | None) -> tuple[Sequences, Tensor, Tensor]:
    """Sample as a run does, and let the policy's own layers infer too.

    Not through :func:`rlkd_lab.rollouts.sample`, in which several processes meet.

    Returns:
        Completions, the first one cut so that they differ in length; the log-probabilities with
        which they were drawn; and what the policy says of the probe's tokens with its adapter off.
    """
    prompt_ids, prompt_mask = policy.encode(PROMPTS)
    noise = torch.rand(
        len(PROMPTS), SAMPLING.max_new_tokens, generator=torch.Generator().manual_seed(0)
    ).to(policy.device)
    request = Request(policy, prompt_ids, prompt_mask, 1, SAMPLING, noise, dense=dense)
    with request.inferring():
        ids, logps = fast(request)
    with policy.inferring():
        off = probe_logps(replace(policy, adapter=None))
    mask = counted(ids, policy)[0].long()
    mask[0, SAMPLING.max_new_tokens // 2 :] = 0
    return Sequences(prompt_ids, prompt_mask, ids, mask), logps * mask, off


def _apart(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Return largest relative difference of two lists of gradients; one of a thousandth of the
    largest norm, or less, counts by that.
    """
    largest = max(float(one.norm()) for one in ours)
    return (
        max(
            float((a - b).norm()) / max(float(a.norm()), 1e-3 * largest)
            for a, b in zip(ours, theirs, strict=True)
        )
        if largest
        else float("nan")
    )


def _after_generation(before: list[Tensor], after: list[Tensor], exact: bool) -> Finding:
    gap = _apart(before, after)
    text = f"gradients before and after a generation: relative difference {gap:.2g}"
    wrong = (
        "gradients are lost after a generation" if gap == gap else "no gradient reaches the adapter"
    )
    return _finding(
        "gradients",
        gap,
        gaps.MAX_GRADIENT_GAP[exact],
        text,
        f"{wrong} (relative difference {gap:.2g}); {AGAIN}, or use --set quant=none",
    )


def _slope(
    policy: LanguageModel, given: Sequences, value: float, gradients: list[Tensor]
) -> Finding:
    """Whether the gradient's norm is the slope of the loss along the gradient: a generation
    while the model was loaded spoils what is compared with.

    One step forward shows it. Where the loss bends too much for that, a step back is taken too.
    """
    norm = float(torch.stack([one.norm() for one in gradients]).norm())
    kept = [parameter.detach().clone() for parameter in policy.trainable()]
    step = 0.02 / norm if norm else 0.0  # the loss moves by ± .02

    def value_at(length: float) -> float:
        moved = [
            value + length / max(norm, 1e-30) * one
            for value, one in zip(kept, gradients, strict=True)
        ]
        _put(policy, moved)
        with torch.no_grad():
            return float(policy_logps(policy, given)[0].cpu().double().sum())

    gap = float("nan")
    if norm:
        ahead = value_at(step)
        gap = abs((ahead - value) / step / norm - 1)
        if not gap <= gaps.MAX_SLOPE_GAP:
            gap = abs((ahead - value_at(-step)) / (2 * step) / norm - 1)
        _put(policy, kept)
    text = f"gradients and the slope of the loss: relative difference {gap:.2g}"
    return _finding(
        "slope",
        gap,
        gaps.MAX_SLOPE_GAP,
        text,
        f"gradients are not the slope of the loss (relative difference {gap:.2g}); {AGAIN},"
        " or use --set quant=none",
    )


def _noise(policy: LanguageModel, gradients: list[Tensor], given: Sequences) -> float:
    """Return how far a rounding of its embeddings moves a policy's gradients, relatively."""
    with rounded(policy.causal_lm):
        return _apart(gradients, _gradients(policy, policy, given)[1])


def _through_the_copy(ours: list[Tensor], copy: list[Tensor], limit: float) -> Finding:
    gap = _apart(ours, copy)
    text = f"gradients through the dense copy and through the policy: relative difference {gap:.2g}"
    wrong = (
        "the dense copy is wrong: its gradients are not the policy's (relative difference"
        f" {gap:.2g}); use --set dense_copy=false"
    )
    return _finding("copy", gap, limit, text, wrong)


def _sampler_or_own(
    policy: LanguageModel,
    dense: DenseCopy | None,
    sampled: tuple[Sequences, Tensor],
    trainers: Sequence[LanguageModel],
    exact: bool,
) -> Finding:
    """Check the sampler. Without the lean decoder, where that alone is at fault.

    Warns:
        UserWarning: the run samples through the model's own forward.
    """
    found = _sampler(*sampled, trainers, exact, dense)
    if found.ok or dense is None or dense.decoder is None:
        return found
    lean, dense.decoder = dense.decoder, None
    again = _sampler(*_generate(policy, dense)[:2], trainers, exact, dense)
    if not again.ok:
        dense.decoder = lean
        return found
    warnings.warn(
        f"{policy.source} is sampled through its own forward, more slowly: log-probabilities of"
        f" the lean decoder differ by {found.value:.2g} nats from the trainer's",
        stacklevel=3,
    )
    return again


def _sampler(
    drawn: Sequences,
    said: Tensor,
    trainers: Sequence[LanguageModel],
    exact: bool,
    dense: DenseCopy | None,
) -> Finding:
    counts = drawn.completion_mask.bool()
    apart = [
        (policy_logps(trainer, drawn, SAMPLING.temperature)[0] - said)[counts].abs()
        for trainer in trainers
    ]
    gap, limit = gap_and_limit(
        torch.cat(apart),
        exact,
        gaps.MAX_GAP if dense is not None and dense.merges else gaps.MAX_GAP_OTHER,
        lambda: max(noise_of(lm, drawn, SAMPLING.temperature) for lm in trainers),
    )
    text = f"log-probabilities of sampler and trainer: {gap:.2g} nats apart"
    wrong = (
        "what is sampled is not the policy that is trained: log-probabilities differ by"
        f" {gap:.2g} nats"
    )
    instead = (
        AGAIN if dense is None else f"use --set dense_copy=false; where that does not help, {AGAIN}"
    )
    return _finding("sampler", gap, limit, text, f"{wrong}; {instead}")


def _adapter(policy: LanguageModel, off: Tensor, on: Tensor, exact: bool) -> Iterator[Finding]:
    assert policy.base_said is not None
    gap, limit = gap_and_limit((off - policy.base_said).abs(), exact, gaps.MAX_BASE_GAP)
    text = f"log-probabilities with the adapter off and of the base: {gap:.2g} nats apart"
    wrong = (
        "with its adapter off the policy is not its base, so the reference is wrong:"
        f" log-probabilities differ by {gap:.2g} nats from those before an adapter"
    )
    yield _finding("base", gap, limit, text, f"{wrong} was attached; {AGAIN}")
    moved = float((on - off).abs().max())
    text = f"log-probabilities with an adapter on and off: {moved:.2g} nats apart"
    wrong = (
        "the adapter does nothing: with it on and off the policy says the same (a difference"
        f" of {moved:.2g} nats); {AGAIN}"
    )
    speaks = moved >= gaps.MIN_ADAPTER_GAP
    yield Finding("adapter", moved, speaks, text if speaks else wrong)


def _padding(student: LanguageModel, batch: Sequences, exact: bool) -> Finding:
    whole = policy_logps(student, batch)[0]
    alone = [
        policy_logps(student, batch.select(slice(row, row + 1)))[0] for row in range(len(whole))
    ]
    gap, limit = gap_and_limit(
        (whole - torch.cat(alone))[batch.completion_mask.bool()].abs(),
        exact,
        gaps.MAX_GAP_OTHER,
        lambda: noise_of(student, batch),
    )
    text = f"log-probabilities of a padded batch and of its sequences alone: {gap:.2g} nats apart"
    wrong = (
        f"padding changes what the policy says: log-probabilities differ by {gap:.2g} nats"
        " between a batch and its sequences alone"
    )
    return _finding("padding", gap, limit, text, f"{wrong}; {AGAIN}")


def _finding(name: str, value: float, limit: float, text: str, wrong: str) -> Finding:
    ok = value <= limit  # a NaN is not
    return Finding(name, value, ok, text if ok else wrong)
