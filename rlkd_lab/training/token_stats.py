"""Token statistics: what the policy, the teacher and the reference say of the sampled tokens."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from rlkd_lab.models import Sequences, distributed, policy_logps, token_logps
from rlkd_lab.models.decoder import Prompts
from rlkd_lab.models.logprobs import (
    hidden_states,
    measured_divergences,
    targets,
    token_divergence,
    unflatten,
    vocabulary,
)
from rlkd_lab.models.spans import spread
from rlkd_lab.models.top_logps import Top, joined_top, logps_and_top, top_divergence
from rlkd_lab.objectives import TokenBatch
from rlkd_lab.objectives.estimators import Divergence
from rlkd_lab.training.gaps import check_gap, noise_of
from rlkd_lab.training.models import FrozenModel
from rlkd_lab.training.setup import Coefs, Setup, StepValues
from rlkd_lab.training.speed import Clock, tokens

KL_METRICS: dict[Divergence, str] = {"reverse": "kl_teacher_rev", "forward": "kl_teacher_fwd"}
PASS_COST = 192
"""Tokens of padding that take about as long as another forward and backward pass."""
COMPARED = 2
"""Completions of a step for which the dense copy is compared with the policy."""


@dataclass
class TokenStats:
    """Values per token of a rollout, (B, T) each, filled micro-batch by micro-batch.

    Names: ``old_logps``, ``teacher_logps``, ``ref_logps`` (nats), ``entropy`` and
    ``teacher_entropy`` (nats, ≥ 0), and the divergences ``reverse``, ``forward``,
    ``reverse_t1``, ``forward_t1`` (nats).
    """

    sequences: Sequences
    temperature: float
    ask: set[str]
    """The models that score, and ``divergences``. See :func:`models_to_ask`."""
    compare_copy: bool = False
    """Compare a few rows with a forward of the policy without its dense copy."""
    values: dict[str, Tensor] = field(default_factory=dict)
    prompts: dict[str, Prompts] = field(default_factory=dict)
    """Cache of the prompts' keys and values, by frozen model."""
    top: list[Top] | None = None
    """What a stored teacher said of the tokens of each row."""

    def add(self, rows: Tensor, mask: Tensor, found: dict[str, Tensor]) -> None:
        """Store values of some rows, flat over their tokens."""
        for name, flat in found.items():
            whole = self.values.setdefault(name, self._blank())
            whole[rows] = unflatten(flat.float(), mask)

    def _blank(self) -> Tensor:
        mask = self.sequences.completion_mask
        return torch.zeros(mask.shape, device=mask.device)

    def top_at(self, rows: Tensor | None) -> Top | None:
        """Return what a stored teacher said of some rows, flat over their tokens."""
        if self.top is None or rows is None:
            return None
        return joined_top([self.top[row] for row in rows.tolist()])

    def share(self) -> None:
        """Give every process what each has measured of its rows."""
        names = {name for names in distributed.from_all(list(self.values)) for name in names}
        for name in sorted(names):
            distributed.add_up(self.values.setdefault(name, self._blank()))

    def measured(self) -> dict[str, Tensor]:
        """Return entropy and divergences to the teacher, by metric name."""
        names = {"entropy": "entropy"} | {str(kind): name for kind, name in KL_METRICS.items()}
        return {names[name]: values for name, values in self.values.items() if name in names}

    def fill(self, batch: TokenBatch, rows: Tensor | slice = slice(None)) -> TokenBatch:
        """Return some rows of a batch with what the models said of them."""
        names = ("old_logps", "teacher_logps", "ref_logps", "teacher_entropy")
        found: dict[str, Any] = {
            name: self.values[name][rows] for name in names if name in self.values
        }
        return replace(batch.select(rows), logps=found["old_logps"], **found)


def models_to_ask(setup: Setup, step: StepValues) -> set[str]:
    """Return the models that must score the sampled tokens.

    Those that the method needs are asked in every step. Every ``kl_every`` steps the others are
    asked too, for the curves, and ``divergences`` are measured.
    """
    needs, every = setup.needs(step.coefs), setup.config.kl_every
    due = bool(every) and (step.number % every == 0 or step.number == 1)
    ask = {"reference"} if due or "reference" in needs else set()
    if setup.models.teacher is not None:
        ask |= {"teacher"} if due or "teacher" in needs else set()
        ask |= {"divergences"} if due else set()
    return ask


def check_padding_rows(setup: Setup, sequences: Sequences) -> None:
    """Raise ValueError for a token in the padding of the student's vocabulary that is longer than
    the teacher's: the teacher has no row for it.
    """
    ours = vocabulary(setup.models.policy)
    here = [one for one in setup.models.teachers if one.reader is None and one.server is None]
    theirs = min((vocabulary(teacher.own) for teacher in here), default=ours)
    if ours > theirs and int(sequences.completion_ids.max()) >= theirs:
        config = setup.config
        raise ValueError(
            f"{config.student} has written a token of its padding ({ours} rows), which"
            f" {config.teacher} has no row for ({theirs}): a student whose weights mean anything"
            " gives padding no probability"
        )


def score_all(
    setup: Setup, stats: TokenStats, rows: Tensor, micro_batch: int, clock: Clock
) -> None:
    """Score some rows without gradient, in micro-batches."""
    with torch.no_grad():
        for some in micro_batches(stats.sequences, own_rows(rows, stats.sequences), micro_batch):
            score_rows(setup, stats, some, clock)


def score_rows(
    setup: Setup, stats: TokenStats, rows: Tensor, clock: Clock
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Let the models score the tokens of some rows. Their values go into ``stats``.

    Returns:
        The student's hidden states, (N, H), and log-probabilities, (N,), with their graph if
        gradients are on, and the teacher's hidden states. With a stored teacher these are the
        student's log-probabilities of its likeliest tokens.
    """
    models, part = setup.models, stats.sequences.select(rows)
    ids, counted = targets(part), tokens(part)
    clock.flops += models.size.forward(*counted)
    with clock("update" if torch.is_grad_enabled() else "old"):
        hidden = hidden_states(models.student, part)
        logps, entropy, states = logps_and_top(
            models.student, hidden, ids, stats.top_at(rows), stats.temperature, setup.chunk
        )
    found = {"old_logps": logps.detach(), "entropy": entropy}
    with torch.no_grad():
        if "teacher" in stats.ask and models.more:
            found |= _several(setup, stats, rows, part, hidden, clock)
        elif "teacher" in stats.ask:
            states, theirs = _teacher(setup, stats, rows, part, logps.detach(), clock)
            found |= theirs
            if "divergences" in stats.ask and states is not None:
                with clock("divergences"):
                    found |= _divergences(setup, stats, hidden, states)
        if "reference" in stats.ask:
            model = setup.models.frozen("reference")
            _, (found["ref_logps"], _) = _ask(setup, stats, model, "reference", rows, part, clock)
        if stats.compare_copy and not stats.values:
            _compare_copy(setup, stats, part, logps.detach())
    stats.add(rows, part.completion_mask, found)
    return hidden, logps, states


Said = tuple[Tensor | None, tuple[Tensor, Tensor | None]]
"""Hidden states of a model that is here, and its log-probabilities and entropies."""


def _ask(
    setup: Setup,
    stats: TokenStats,
    model: FrozenModel,
    name: str,
    rows: Tensor,
    part: Sequences,
    clock: Clock,
) -> Said:
    """Ask one model. A lean forward runs each prompt once; teachers read their own prompts."""
    whole, role = stats.sequences, name.partition(" ")[0]
    if role == "teacher":
        part, whole = part.for_teacher, whole.for_teacher
    clock.flops += model.size.forward(*tokens(part))
    with clock(role):
        if model.server is not None:
            return None, (model.server.logps(part), None)
        decoder = None if model.copy is None else model.copy.decoder
        if decoder is None:
            states = hidden_states(model.lm, part)
        else:
            if name not in stats.prompts:
                with model.lm.inferring():  # a copy that recomputes keeps no cache in training
                    stats.prompts[name] = decoder.read(whole)
            states = decoder.hidden_states(
                part.completion_ids, part.completion_mask, stats.prompts[name], rows
            )
        said = token_logps(model.lm, states, targets(part), stats.temperature, setup.chunk)
    return states, said


def _teacher(
    setup: Setup, stats: TokenStats, rows: Tensor, part: Sequences, logps: Tensor, clock: Clock
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Return the hidden states of the one teacher, and what it says of the student's tokens.

    A teacher on a server has neither states nor entropies; one with another tokenizer has none of
    the student's tokens.
    """
    model = setup.models.frozen("teacher")
    states, (said, entropy) = _ask(setup, stats, model, "teacher", rows, part, clock)
    if part.spans is not None:
        return None, {"teacher_logps": spread(part, part.for_teacher, logps, said)}
    entropies = {} if entropy is None else {"teacher_entropy": entropy}
    return states, {"teacher_logps": said} | entropies


def _several(
    setup: Setup, stats: TokenStats, rows: Tensor, part: Sequences, hidden: Tensor, clock: Clock
) -> dict[str, Tensor]:
    """Return log Σ w·π_T of several teachers, and the KL to each, (N,) in nats.

    A teacher is asked where its weight w is above 0.
    """
    shares, counted = part.teacher_shares, part.completion_mask.bool()
    assert shares is not None
    mixed = hidden.new_full((len(hidden),), -torch.inf, dtype=torch.float32)
    found = {"teacher_logps": mixed}
    for number, model in enumerate(setup.models.teachers, 1):
        share = shares[:, number - 1, None].expand_as(counted)[counted]
        mine, here = shares[:, number - 1].nonzero()[:, 0], share > 0
        if not len(mine):
            continue
        own, name = part.select(mine), f"teacher {number}"
        states, (logps, _) = _ask(setup, stats, model, name, rows[mine.to(rows.device)], own, clock)
        mixed[here] = torch.logaddexp(mixed[here], logps.float() + share[here].log())
        if "divergences" in stats.ask and states is not None:
            kind: Divergence = "reverse"
            with clock("divergences"):
                kls = measured_divergences(
                    setup.models.student,
                    hidden[here],
                    model.lm,
                    states,
                    [kind],
                    [stats.temperature],
                    setup.chunk,
                )
            found[name] = torch.zeros_like(mixed)
            found[name][here] = kls[kind, stats.temperature]
    return found


def _divergences(
    setup: Setup, stats: TokenStats, hidden: Tensor, theirs: Tensor
) -> dict[str, Tensor]:
    """Return both KLs to the teacher at the sampling temperature and at T = 1, (N,) each, nats."""
    measured = measured_divergences(
        setup.models.student,
        hidden,
        setup.models.frozen("teacher").lm,
        theirs,
        tuple(KL_METRICS),
        {stats.temperature, 1.0},
        setup.chunk,
    )
    found: dict[str, Tensor] = {}
    for kind in KL_METRICS:
        found[str(kind)] = measured[kind, stats.temperature]
        found[f"{kind}_t1"] = measured[kind, 1.0]
    return found


def _compare_copy(setup: Setup, stats: TokenStats, part: Sequences, logps: Tensor) -> None:
    """Compare the last rows of a micro-batch, (N,) in all, with the policy itself."""
    few = part.select(slice(-COMPARED, None))
    own, _ = policy_logps(setup.models.policy, few, stats.temperature, setup.chunk)
    own = own[few.completion_mask.bool()]
    check_gap(
        (own - logps[len(logps) - len(own) :]).abs(),
        "the dense copy is wrong: what is trained through it is not the policy",
        "use --set dense_copy=false",
        setup.models.copy is None or setup.models.copy.merges,
        noise=lambda: noise_of(setup.models.policy, few, stats.temperature),
    )


def live_batch(
    setup: Setup,
    stats: TokenStats,
    coefs: Coefs,
    batch: TokenBatch,
    part: Sequences,
    scored: tuple[Tensor, Tensor, Tensor | None] | None = None,
    rows: Tensor | None = None,
) -> TokenBatch:
    """Return a micro-batch with log-probabilities that carry the gradient, and with the divergence
    to the teacher where the method needs it.

    Args:
        setup: models and method.
        stats: temperature.
        coefs: of the method.
        batch: the micro-batch.
        part: its tokens.
        scored: what :func:`score_rows` returned with gradients on; by default a new forward.
        rows: of the rollout, for a stored teacher.
    """
    student, mask, top = setup.models.student, part.completion_mask, stats.top_at(rows)
    if scored is None:
        hidden = hidden_states(student, part)
        logps, _, theirs = logps_and_top(
            student, hidden, targets(part), top, stats.temperature, setup.chunk
        )
    else:
        hidden, logps, theirs = scored
    live = replace(batch, logps=unflatten(logps, mask))
    if "divergence" not in setup.needs(coefs):
        return live
    options: Any = setup.options
    weight = float(coefs.get("jsd_weight", 0.5) or 0.0)
    if top is not None and theirs is not None:
        per_token = top_divergence(theirs, top, options["divergence"], weight)
        return replace(live, divergence=unflatten(per_token, mask))
    teacher = setup.models.frozen("teacher").lm
    if theirs is None:
        with torch.no_grad():
            theirs = hidden_states(teacher, part.for_teacher)
    per_token = token_divergence(
        student,
        hidden,
        teacher,
        theirs,
        options["divergence"],
        weight=weight,
        topk=int(options["topk"]) if options["topk"] else None,
        temperature=stats.temperature,
        chunk=setup.chunk,
    )
    return replace(live, divergence=unflatten(per_token, mask))


def own_rows(rows: Tensor, sequences: Sequences) -> Tensor:
    """Return those of the rows that this process works on, of several."""
    mine = distributed.share(len(sequences.completion_mask))
    return rows[(rows >= mine.start) & (rows < mine.stop)]


def micro_batches(sequences: Sequences, rows: Tensor, micro_batch: int) -> list[Tensor]:
    """Cut rows into micro-batches of like lengths.

    None holds more tokens than ``micro_batch`` of the rollout's longest would. One ends where its
    padding would cost more than another pass.
    """
    read = [sequences] if sequences.teacher is None else [sequences, sequences.teacher]
    widest = max(max(one.prompt_mask.sum(1).tolist()) for one in read)
    each = zip(*(one.completion_mask.sum(1).tolist() for one in read), strict=True)
    lengths = [max(sizes) for sizes in each]
    limit = micro_batch * (widest + max(lengths))
    found: list[list[int]] = []
    padding = 0
    for row in sorted(rows.tolist(), key=lambda row: lengths[row]):
        added = (lengths[row] - lengths[found[-1][-1]]) * len(found[-1]) if found else 0
        full = found and (len(found[-1]) + 1) * (widest + lengths[row]) > limit
        if not found or full or padding + added > PASS_COST:
            found.append([])
            padding = added = 0
        found[-1].append(row)
        padding += added
    return [torch.tensor(micro_batch) for micro_batch in found]
