"""A stored teacher: its traces and likeliest tokens, written once and trained on without it.

``rlkd teacher-cache`` calls :func:`make_cache`. A run with ``teacher_cache`` calls
:func:`stored_teacher` before it loads a model.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import torch

from rlkd_lab.models import LanguageModel, distributed, load_teacher
from rlkd_lab.models.locating import zoo_names
from rlkd_lab.models.logprobs import hidden_states, vocabulary
from rlkd_lab.models.tokenizers import difference_of_tokenizers, load_tokenizer
from rlkd_lab.models.top_logps import Top, top_of
from rlkd_lab.objectives.methods import METHODS, resolve_options
from rlkd_lab.rollouts.request import Sampling
from rlkd_lab.rollouts.stored import Stored, read_stored, write_stored
from rlkd_lab.rollouts.traces import digest_of, sequences_of, teacher_traces
from rlkd_lab.tasks import Example
from rlkd_lab.tasks.verifier import guarded
from rlkd_lab.training.before_loading import check_pair, fitted_task, reader_of
from rlkd_lab.training.config import RunConfig
from rlkd_lab.training.model_shape import Shape
from rlkd_lab.training.models import FrozenModel, frozen_model
from rlkd_lab.training.prompts import fit_prompts
from rlkd_lab.training.validated import validated
from rlkd_lab.training.weights import weights_of

TOPK = 32
"""Tokens stored at each place, by default."""
Show = Callable[[str, int, int], object]
"""Called with what is made, how many are done, and of how many."""


def make_cache(
    config: RunConfig, out: Path, topk: int = TOPK, show: Show = lambda what, done, of: None
) -> Stored:
    """Let the teacher of a config write its traces and its likeliest tokens into a file.

    Args:
        config: as of a run that will read the file.
        out: a new file.
        topk: tokens at each place of a trace, beside the bucket of all others.
        show: told how far it is.

    Raises:
        FileExistsError, FileNotFoundError, ValueError: in one sentence.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists already: delete it, or choose another --out")
    if distributed.count() > 1:
        raise ValueError("a teacher is stored by one process: start one")
    if topk < 1:
        raise ValueError(f"--topk {topk}: at least 1 token is stored at each place")
    validated(config.model_dump() | {"teacher_cache": str(out)})  # refuses methods
    config = config.model_copy(update={"teacher_cache": None})
    check_pair(config)
    assert config.teacher is not None
    task = guarded(
        config.task, config.task_settings, config.prompt_template, config.verifier_seconds
    )
    try:
        student = reader_of(config.student, config.chat, config.system_prompt)
        theirs = load_tokenizer(config.teacher, weights=False)
        if (detail := difference_of_tokenizers(student.tokenizer, theirs)) is not None:
            raise ValueError(f"a stored teacher needs the student's tokenizer: {detail}")
        lm = load_teacher(config.teacher, config.teacher_quant, adapter=config.teacher_adapter)
        lm.use_chat(config.chat, config.system_prompt)
        told = fit_prompts(task, config, student, [lm]).told
        for sentence in told:
            warnings.warn(sentence, stacklevel=2)
        teacher = frozen_model(lm, config.dense_copy)
        examples = task.examples(config.traces, config.seed, "train", config.difficulty)
        traces = _traces(config, task, teacher, show)
    finally:
        task.close()
    size = min(vocabulary(lm), Shape.of(config.student).vocabulary)
    about = _about(config, student, examples) | {
        "weights": _teacher_digests(config),
        "context": lm.context,
        "vocabulary": size,
        "topk": min(topk, size),
    }
    reader = replace(lm, tokenizer=student.tokenizer, chat=student.chat)
    reader.system_prompt = student.system_prompt
    pieces = _top(config, teacher, reader, traces, about, show)
    write_stored(out, traces, pieces, about)
    return read_stored(out)


def _traces(config: RunConfig, task: Any, teacher: FrozenModel, show: Show) -> pa.Table:
    """Return the traces that a run of the config would make."""
    with TemporaryDirectory() as folder:
        return teacher_traces(
            teacher.own,
            task,
            config.traces,
            config.seed,
            Path(folder) / "traces.parquet",
            keep=_keep(config),
            difficulty=config.difficulty,
            sampling=Sampling(1.0, config.max_new_tokens),
            dense=teacher.copy,
            at_once=config.sample_at_once,
            show=lambda done: show("traces", done, config.traces),
        )


@torch.no_grad()
def _top(
    config: RunConfig,
    teacher: FrozenModel,
    reader: LanguageModel,
    traces: pa.Table,
    about: dict[str, Any],
    show: Show,
) -> Iterator[list[Top]]:
    """Yield the likeliest tokens at the places of some traces, after the student's prompts."""
    count = len(traces)
    for start in range(0, count, config.micro_batch):
        rows = traces.slice(start, config.micro_batch).to_pylist()
        ids = [row["completion_ids"] for row in rows]
        part = sequences_of(reader, [row["prompt"] for row in rows], ids)
        states = hidden_states(teacher.lm, part)
        top = top_of(teacher.lm, states, about["topk"], about["vocabulary"])
        lengths = [len(each) for each in ids]
        pairs = zip(top.ids.split(lengths), top.logps.split(lengths), strict=True)
        yield [replace(top, ids=each, logps=logps) for each, logps in pairs]
        show("likeliest tokens", start + len(rows), count)


def _keep(config: RunConfig) -> Any:
    return resolve_options(METHODS[config.method], config.options)["keep_traces"]


def _settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings that the run and the file must have in common."""
    return {
        "teacher_quant": config.teacher_quant,
        "traces": config.traces,
        "keep_traces": _keep(config),
        "max_new_tokens": config.max_new_tokens,
        "difficulty": config.difficulty and "-".join(map(str, config.difficulty)),
    }


def _about(config: RunConfig, student: LanguageModel, examples: list[Example]) -> dict[str, Any]:
    """Return what a file is made with, but for what the teacher's weights say."""
    return {
        "settings": _settings(config),
        "seed": config.seed,
        "teacher": config.teacher,
        "teacher_adapter": config.teacher_adapter,
        "tokenizer": _sha(sorted(student.tokenizer.get_vocab().items())),
        "rows": digest_of(examples),
        "prompts": _sha(student.prompt_ids([example.prompt for example in examples])),
    }


def _sha(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _teacher_digests(config: RunConfig) -> dict[str, str] | None:
    """Return digests of the teacher's files, or ``None`` where they are not on this machine."""
    names = [name for name in (config.teacher, config.teacher_adapter) if name is not None]
    if not all(name in zoo_names() or Path(name).is_dir() for name in names):
        return None
    found = weights_of(config.model_copy(update={"teacher_cache": None}))
    return {role: digest for role, digest in found.items() if role.startswith("teacher")}


def stored_teacher(config: RunConfig) -> Stored | None:
    """Return the stored teacher of a run, or ``None`` where it has none.

    Raises:
        FileNotFoundError, ValueError: the file does not fit the run; in one sentence.
    """
    if config.teacher_cache is None:
        return None
    stored, other = read_stored(config.teacher_cache), "or make another file"
    name, about = f"teacher_cache={config.teacher_cache}", stored.about
    ours = _settings(config)
    odd = [f"{each}={value}" for each, value in about["settings"].items() if ours[each] != value]
    if odd:
        sets = " ".join(f"--set {each}" for each in odd)
        raise ValueError(f"{name} was made with {', '.join(odd)}: give {sets}, {other}")
    _check_teacher(config, name, about)
    options = resolve_options(METHODS[config.method], config.options)
    if options["topk"] and int(options["topk"]) > about["topk"]:
        raise ValueError(
            f"{name} holds {about['topk']} tokens at each place, and topk={options['topk']} asks"
            f" for more: lower topk, {other}"
        )
    _check_rows(config, name, about)
    return stored


def _check_teacher(config: RunConfig, name: str, about: dict[str, Any]) -> None:
    """Refuse a file by another teacher. Where the teacher's files are not here, names decide."""
    here = _teacher_digests(config)
    roles = ("teacher", "teacher_adapter")
    odd = [role for role in roles if getattr(config, role) != about[role]]
    known = None if here is None or about["weights"] is None else here == about["weights"]
    if known or (known is None and not odd):
        return
    if odd:
        made = " ".join(f"--set {role}={about[role] or 'off'}" for role in odd)
        raise ValueError(f"{name} was made by another teacher: give {made}, or make another file")
    raise ValueError(
        f"the files of teacher={config.teacher} are not those that {name} was made with: put them"
        " back, or make another file"
    )


def _check_rows(config: RunConfig, name: str, about: dict[str, Any]) -> None:
    """Refuse a file of other prompts, tokens or lengths."""
    task, asked, student = fitted_task(config)
    size = Shape.of(config.student).vocabulary
    if asked.longest + config.max_new_tokens > about["context"]:
        raise ValueError(
            f"the teacher of {name} has a context of {about['context']} tokens, too few for"
            f" prompts of {asked.longest} and completions of {config.max_new_tokens}: use --set"
            f" max_prompt_tokens={about['context'] - config.max_new_tokens}, or make another file"
        )
    examples = task.examples(config.traces, about["seed"], "train", config.difficulty)
    ours = _about(config, student, examples)
    causes = {
        "tokenizer": f"the tokenizer of {config.student} is another than",
        "rows": f"the prompts or answers of {config.task} are others than",
        "prompts": f"the prompts of {config.task} become other tokens (chat, system_prompt) than",
    }
    for what, cause in causes.items():
        if ours[what] != about[what]:
            raise ValueError(f"{cause} those that {name} was made with: make another file")
    if size < about["vocabulary"]:
        raise ValueError(
            f"{config.student} has {size} tokens, and {name} is for {about['vocabulary']}: make"
            " another file"
        )
