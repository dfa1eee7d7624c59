"""From a name to a task: ours, a reasoning-gym set, a file of questions, a dataset of the hub,
or a class of your own.
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlkd_lab.tasks.arithmetic import ArithmeticTask
from rlkd_lab.tasks.base import Task, check_template
from rlkd_lab.tasks.knights import KnightsTask
from rlkd_lab.tasks.questions import QuestionTask
from rlkd_lab.tasks.reasoning import ReasoningGymTask, reasoning_gym_sets
from rlkd_lab.tasks.rows import FILES, read_files, read_hub

EMBEDDED: dict[str, type[ArithmeticTask] | type[KnightsTask]] = {
    "arithmetic": ArithmeticTask,
    "knights": KnightsTask,
}
"""Tasks in the bare notation that the character tokenizer of the embedded models was made for."""
COLUMNS = ("question", "answer")
"""Settings of files and of datasets of the hub."""
MEMBERS = ("name", "train_difficulty", "ood_difficulty", "examples", "score")


def holds_rows(name: str) -> bool:
    """Return whether a task's name is that of a dataset of the hub, a file or a folder."""
    return name.startswith("hub:") or name.endswith(FILES) or Path(name).is_dir()


def find_task(
    name: str,
    settings: Mapping[str, Any] | None = None,
    template: str | None = None,
    fields: Sequence[str] = (),
) -> Task:
    r"""The task of that name. Only a name of reasoning-gym's imports reasoning-gym, only formulas
    import math-verify's parser.

    Args:
        name: ``arithmetic`` or ``knights``; a reasoning-gym set (``countdown``); a file (.jsonl,
            .json, .parquet, .csv) or a folder of train.* and test.* files with a question and an
            answer a row; ``hub:OWNER/NAME`` or ``hub:OWNER/NAME:CONFIG``; ``PATH.py:CLASS``, a
            class of your own.
        settings: of a reasoning-gym set (the fields of its config), of your own class (keyword
            arguments), of ``knights`` (``held_out``) or of rows (:data:`COLUMNS`).
        template: what a prompt looks like, with ``{question}`` in it; every other brace stands for
            itself. The task's own by default.
        fields: further columns of rows, see :mod:`rlkd_lab.tasks.fields`.

    Raises:
        ValueError, OSError: in one sentence.
    """
    settings = dict(settings or {})
    check_template(template)
    path, colon, attribute = name.rpartition(":")
    if colon and path.endswith(".py"):
        return own_task(Path(path), attribute, settings, template)
    if name.endswith(".py"):
        raise ValueError(f"task {name}: a file can hold several classes; write {name}:CLASS")
    if name in EMBEDDED:
        known = {"held_out"} if name == "knights" else set()
        if template or settings.keys() - known:
            raise ValueError(
                f"{name} has no settings and no template (knights alone has one, held_out):"
                " the embedded models read its bare prompts; use a reasoning-gym set such as"
                " chain_sum"
            )
        return KnightsTask(**settings) if name == "knights" else ArithmeticTask()
    if name.startswith("hub:"):
        return QuestionTask(
            name, read_hub(name.removeprefix("hub:")), template, columns_of(name, settings), fields
        )
    if holds_rows(name) or "/" in name or "\\" in name:
        rows, columns = read_files(Path(name)), columns_of(name, settings)
        return QuestionTask(name, rows, template, columns, fields)
    sets = reasoning_gym_sets()
    if name not in sets:
        close = difflib.get_close_matches(name, [*EMBEDDED, *sets], n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(repr(one) for one in close)}? " if close else ""
        raise ValueError(
            f"unknown task {name!r}: {hint}A task is arithmetic, knights, one of"
            f" reasoning-gym's {len(sets)} sets (countdown, zebra_puzzles, …),"
            " a .jsonl, .json, .parquet or .csv file or a folder of them, hub:OWNER/NAME, or"
            " PATH.py:CLASS"
        )
    return ReasoningGymTask(name, settings, template)


def from_file(path: Path, attribute: str, what: str) -> Any:
    """Something that a file defines. The file is run: give no file that you would not run.

    Args:
        path: a .py file.
        attribute: its name there.
        what: what it is to be, for the messages: ``task``, ``engine``.

    Raises:
        ValueError, OSError: in one sentence.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{what} {path}:{attribute}: there is no file {path}")
    module_name = f"rlkd_{what}_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their module up by name
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(
            f"{what} {path}: the file does not run: {type(error).__name__}: {error}"
        ) from error
    if not hasattr(module, attribute):
        own = [
            name
            for name, value in vars(module).items()
            if getattr(value, "__module__", None) == module_name
        ]
        raise ValueError(
            f"{what} {path} has no {attribute!r}; it has {', '.join(own) or 'nothing of its own'}"
        )
    return getattr(module, attribute)


def own_task(path: Path, attribute: str, settings: Mapping[str, Any], template: str | None) -> Task:
    """Return an instance of a class in a file."""
    found = from_file(path, attribute, "task")
    if not isinstance(found, type):
        raise ValueError(f"task {path}:{attribute} is a {type(found).__name__}; a task is a class")
    given = {**settings, **({} if template is None else {"template": template})}
    try:
        inspect.signature(found).bind(**given)
    except TypeError as error:
        raise ValueError(
            f"task {path}:{attribute} does not take {', '.join(given) or 'an empty call'}: {error}"
        ) from None
    try:
        task = found(**given)
    except Exception as error:
        raise ValueError(
            f"task {path}:{attribute} cannot be made: {type(error).__name__}: {error}"
        ) from error
    missing = [member for member in MEMBERS if not hasattr(task, member)]
    if missing:
        raise ValueError(
            f"task {path}:{attribute} is no task yet: it has no {', no '.join(missing)} (a"
            f" task has {', '.join(MEMBERS)})"
        )
    return task


def columns_of(name: str, settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the names of columns that settings of a task of questions hold.

    Raises:
        ValueError: another setting.
    """
    for setting in settings:
        if setting not in COLUMNS:
            close = difflib.get_close_matches(setting, COLUMNS, n=1, cutoff=0.4)
            hint = f"did you mean task.{close[0]}? " if close else ""
            raise ValueError(
                f"task {name} has no setting task.{setting}: {hint}Rows have task.question"
                " and task.answer, which name their columns"
            )
    return {setting: str(value) for setting, value in settings.items()}
