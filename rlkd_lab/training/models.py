"""The models of a run: the policy, the teacher, the reference, and their dense copies."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from rlkd_lab.models import (
    LanguageModel,
    default_device,
    distributed,
    load_policy,
    load_teacher,
    make_dense_copy,
    reference_of,
)
from rlkd_lab.models.adapters import attach, save_adapter
from rlkd_lab.models.dense_copy import DenseCopy
from rlkd_lab.models.loading import checkpoint_activations, one_at_a_time
from rlkd_lab.models.logprobs import chunk_of, vocabulary
from rlkd_lab.models.served import Server, is_served
from rlkd_lab.models.spans import Reader
from rlkd_lab.models.tokenizers import difference_of_tokenizers, load_tokenizer
from rlkd_lab.models.visitor import Visitor
from rlkd_lab.rollouts import Engine
from rlkd_lab.rollouts.sampling import find_engine
from rlkd_lab.runs import checkpoints
from rlkd_lab.tasks.verifier import GuardedTask, guarded
from rlkd_lab.training.config import RunConfig
from rlkd_lab.training.config_checks import check_device, of_teacher
from rlkd_lab.training.speed import Size
from rlkd_lab.training.state import AVERAGED
from rlkd_lab.training.teacher_settings import (
    CURRENT,
    SELF,
    START,
    check_other_tokenizer,
    teacher_columns,
    teachers_of,
    tokenizer_of,
)


@dataclass(frozen=True)
class FrozenModel:
    """A model that scores tokens and is not trained: the teacher or the reference."""

    own: LanguageModel
    """As it was loaded."""
    lm: LanguageModel
    """What the forwards go through: the dense copy, or ``own``."""
    copy: DenseCopy | None
    size: Size
    moves: bool = False
    """Whether its weights follow the student's, so that the copy must be synced."""
    reader: Reader | None = None
    """Of a teacher with another tokenizer."""
    server: Server | None = None
    """Of a teacher whose weights are elsewhere."""


@dataclass(frozen=True)
class Models:
    """Everything that a step computes with."""

    policy: LanguageModel
    """The model with the adapter that is trained."""
    student: LanguageModel
    """What the student's forwards go through. Gradients arrive at the policy's adapter."""
    copy: DenseCopy | None
    """The policy's dense copy, which is sampled from."""
    size: Size
    teacher: FrozenModel | None
    reference: FrozenModel
    task: GuardedTask
    engine: Engine
    chunk: int
    """Tokens whose logits are held at a time."""
    visitor: Visitor | None
    """With ``teacher_home=host`` the teacher is on the device only while it is asked."""
    more: tuple[FrozenModel, ...] = ()
    """Teachers beside the first, of several."""

    @property
    def whole_teacher(self) -> FrozenModel | None:
        """The teacher, where it is one and its next-token distributions can be compared."""
        one = self.teacher
        if one is None or self.more or one.reader is not None or one.server is not None:
            return None
        return one

    @property
    def teachers(self) -> tuple[FrozenModel, ...]:
        """All teachers, in the config's order."""
        return () if self.teacher is None else (self.teacher, *self.more)

    def frozen(self, name: str) -> FrozenModel:
        """Return the ``teacher`` or the ``reference``."""
        found = self.teacher if name == "teacher" else self.reference
        assert found is not None
        return found

    def sync(self) -> None:
        """Give the dense copies the adapters as they are now."""
        if self.copy is not None:
            self.copy.sync()
        for teacher in self.teachers:
            if teacher.moves and teacher.copy is not None:
                teacher.copy.sync()

    @contextmanager
    def teacher_here(self, asked: bool = True) -> Iterator[None]:
        """Have the teacher on the device inside, if it lives in host memory and is asked."""
        with self.visitor.here() if self.visitor and asked else nullcontext():
            yield


@one_at_a_time
def load_models(config: RunConfig) -> Models:
    """Load and verify all models of a run, its task and its engine.

    Raises:
        FileNotFoundError: a model or an adapter is not there.
        ValueError: a model, an adapter, the task or the engine cannot be used.
    """
    check_device(config, default_device().type, distributed.count())
    task = guarded(
        config.task,
        config.task_settings,
        config.prompt_template,
        config.verifier_seconds,
        teacher_columns(config),
    )
    engine = find_engine(config.engine)
    servers = {name: _connected(config, name) for name in teachers_of(config) if is_served(name)}
    theirs = None if config.teacher_cache else config.teacher_adapter
    for start in filter(None, (config.adapter, theirs)):
        checkpoints.check(Path(start))
    policy = load_policy(
        config.student,
        config.quant,
        lora=None if config.adapter else config.lora(),
        adapter=config.adapter,
        gradient_checkpointing=config.gradient_checkpointing,
        seed=config.seed,
    )
    policy.model.train()
    policy.use_chat(config.chat, config.system_prompt)
    copy = make_dense_copy(policy, policy.said) if config.dense_copy else None
    student = trained_through(policy, copy, config.gradient_checkpointing)
    reference = frozen_model(reference_of(policy), config.dense_copy, copy)
    teachers = [
        _itself(config, name, policy, copy, reference)
        if name in SELF
        else _teacher(config, name, policy, copy, servers.get(name))
        for name in teachers_of(config)
    ]
    teacher = teachers[0] if teachers else None
    model = None if teacher is None else teacher.own.model
    visits = config.teacher_home == "host" and model is not None and model is not policy.model
    return Models(
        policy=policy,
        student=student,
        copy=copy,
        size=Size.of(policy),
        teacher=teacher,
        reference=reference,
        task=task,
        engine=engine,
        chunk=chunk_of(config.logits_mib, vocabulary(policy)),
        visitor=Visitor(model, policy.device) if model is not None and visits else None,
        more=tuple(teachers[1:]),
    )


def trained_through(
    policy: LanguageModel, copy: DenseCopy | None, checkpointing: bool
) -> LanguageModel:
    """Return what the training forwards go through: the dense copy, or the policy itself.

    With ``checkpointing`` a copy in 16 bit recomputes its activations; a merged one is left out.
    """
    if copy is None or (copy.merges and checkpointing):
        return policy
    if checkpointing:
        checkpoint_activations(copy.model)
        copy.model.train()  # transformers recomputes in training mode alone
    return copy.lm


def _teacher(
    config: RunConfig,
    name: str,
    policy: LanguageModel,
    copy: DenseCopy | None,
    server: Server | None,
) -> FrozenModel:
    """Return a teacher that is another model, here or on a server."""
    try:
        if server is None:
            quant, adapter = config.teacher_quant, config.teacher_adapter
            lm = load_teacher(name, quant, policy=policy, adapter=adapter)
            copies = config.dense_copy and DenseCopy.suits(policy)
            found = frozen_model(lm, copies, copy if lm.model is policy.model else None)
        else:
            found = _served(name, server)
        found.own.use_chat(config.chat, config.system_prompt)
        detail = difference_of_tokenizers(policy.tokenizer, found.own.tokenizer)
        if detail is None:
            return found
        check_other_tokenizer(config, name, detail)
        return replace(found, reader=Reader(policy, found.own))
    except ValueError as error:
        raise ValueError(of_teacher(config, error)) from error


def _connected(config: RunConfig, name: str) -> Server:
    try:
        return Server(name, load_tokenizer(tokenizer_of(config, name), weights=False)).connect()
    except ValueError as error:
        raise ValueError(of_teacher(config, error)) from error


def _served(name: str, server: Server) -> FrozenModel:
    room = server.context - 1  # it is asked for a token more
    own = LanguageModel(None, server.tokenizer, name, "none", room=room)  # type: ignore[arg-type]
    return FrozenModel(own, own, None, Size(0, 0), server=server)


def _itself(
    config: RunConfig,
    name: str,
    policy: LanguageModel,
    copy: DenseCopy | None,
    reference: FrozenModel,
) -> FrozenModel:
    """Return the student as its own teacher: as it began, as it is, or an average.

    The average is a second adapter. It is equal to the policy's at the start.
    """
    if name == START:
        own = replace(reference.own, chat=policy.chat, system_prompt=policy.system_prompt)
        return replace(reference, own=own)
    if name == CURRENT:
        return FrozenModel(policy, policy if copy is None else copy.lm, copy, Size.of(policy))
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(policy, Path(folder))
        attach(policy.model, folder, AVERAGED, policy.source)
    return frozen_model(replace(policy, adapter=AVERAGED), config.dense_copy, copy, moves=True)


def frozen_model(
    lm: LanguageModel, wanted: bool, policys: DenseCopy | None = None, moves: bool = False
) -> FrozenModel:
    """Return a model that scores tokens; with a dense copy where that is wanted and suits it.

    Args:
        lm: the model.
        wanted: whether a copy in float32 is.
        policys: the policy's copy, where ``lm`` is a view of the policy's weights. In 16 bit it is
            scored through them, as the policy is.
        moves: see :class:`FrozenModel`.
    """
    base = None if policys is None or policys.merges else policys
    copy = make_dense_copy(lm, lm.said, base) if base or (wanted and DenseCopy.suits(lm)) else None
    return FrozenModel(lm, lm if copy is None else copy.lm, copy, Size.of(lm), moves)
