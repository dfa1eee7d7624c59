"""Config files: YAML, TOML, or the config.json of a run, below what the command line says."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import yaml

from rlkd_lab.objectives.methods import METHODS, resolve_options
from rlkd_lab.objectives.schedules import Constant
from rlkd_lab.objectives.settings import CHOICES, KNOBS
from rlkd_lab.runs.checks import FORMAT
from rlkd_lab.training.config import RunConfig
from rlkd_lab.training.folders import refuse_code_of_runs
from rlkd_lab.training.loop_knobs import LOOP_KNOBS
from rlkd_lab.training.make_config import PLACES, RENAMED, as_text, make_config
from rlkd_lab.training.presets import MODES, PRESETS

NAMED = ("method", "preset", "steps", "seed")
"""Settings with an option of their own on the command line."""
INSIDE = {
    "knobs": "",
    "options": "",
    "task_settings": "task.",
    **{field: f"{name}." for name, field in PLACES.items()},
}
"""Fields that hold settings by name, and what ``--set`` writes before such a name."""

NOT_PLAIN = re.compile("[\x7f-\x9f\u2028\u2029\ufffe\uffff]")
"""Characters that JSON takes within a text, and YAML does not."""


class _Loader(yaml.SafeLoader):
    """Reads YAML without tags and aliases; ``off``, ``yes`` and dates stay texts."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        # an alias has no tag at all
        if getattr(self.peek_event(), "tag", "*") is not None:
            raise ValueError("a value begins with ! or *: tags and aliases are not read")
        node = super().compose_node(parent, index)
        if isinstance(node, yaml.MappingNode):
            _once((str(key.value), value) for key, value in node.value)
        return node


for _tag, _pattern, _first in (
    ("null", r"null|Null|NULL|~|", "nN~"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), [*_first, ""]
    )


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs as a dictionary.

    Raises:
        ValueError: a name stands twice.
    """
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r:.80} stands twice")
        found[name] = value
    return found


READERS = {
    ".yaml": lambda text: yaml.load(text, _Loader),
    ".yml": lambda text: yaml.load(text, _Loader),
    ".toml": tomllib.loads,
    ".json": lambda text: json.loads(text, object_pairs_hook=_once),
}


def read_config(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return a file's fields for :func:`make_config`, and its settings as ``--set`` takes them.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is no config, in one sentence.
    """
    if path.suffix.lower() not in READERS:
        raise ValueError(
            f"{path} is no config file: its name ends in {', '.join(READERS)}; a run's is"
            " RUN/config.json"
        )
    try:
        found = READERS[path.suffix.lower()](path.read_text(encoding="utf-8-sig"))
        if not isinstance(found, dict) or not found:
            raise ValueError("it holds no settings: write a name and a value on each line")
        if found.pop("format", FORMAT) != FORMAT:
            raise ValueError("it is a run's config of another version of rlkd_lab")
        return _parts(found)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None


def _parts(found: Mapping[Any, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what is a field for :func:`make_config`, and what is a setting."""
    fields: dict[str, Any] = {}
    settings: list[tuple[str, str]] = []
    for name, value in ((str(name), value) for name, value in found.items()):
        as_it_is = name in RunConfig.model_fields and name not in NAMED
        if name in ("reward", "task_settings") or (
            as_it_is and (value is None or isinstance(value, list))
        ):
            fields[name] = value
        elif name in INSIDE and isinstance(value, Mapping):
            settings += [(f"{INSIDE[name]}{key}", as_text(key, one)) for key, one in value.items()]
        elif name.startswith("task."):
            settings.append((name, json.dumps(value, ensure_ascii=False, default=str)))
        else:
            settings.append((name, as_text(name, value)))
    named = _once(settings)
    return {**fields, **{name: named.pop(name) for name in NAMED if name in named}}, named


def asked_config(
    path: Path | None, settings: Mapping[str, str], **named: Any
) -> tuple[RunConfig, dict[str, str]]:
    """Make the config that a file and the command line ask for; the command line wins.

    Args:
        path: a config file.
        settings: of ``--set``.
        named: the options of :data:`NAMED`; ``None`` for one that was not given.

    Returns:
        The config, and by name where a value comes from, unless it is a default.

    Raises:
        OSError, ValueError: in one sentence, see :func:`read_config` and :func:`make_config`.
    """
    fields, below = read_config(path) if path else ({}, {})
    named = {name: value for name, value in named.items() if value is not None}
    merged = {**fields, **named}
    if "method" not in merged:
        raise ValueError(
            "which method? --method NAME, a row of `rlkd methods`; or a --config with its method"
        )
    # later settings win, and `mode` sets several
    below = {name: value for name, value in below.items() if name not in settings}
    method, preset = merged.pop("method"), merged.pop("preset", "tiny")
    config = make_config(method, preset, {**below, **settings}, **merged)
    if path:
        refuse_code_of_runs(config, path)
    layers = {
        "preset": PRESETS[config.preset].settings,
        "file": {**fields, **below},
        "command line": {**named, **settings},
    }
    return config, {name: layer for layer, values in layers.items() for name in _names(values)}


def _names(values: Mapping[str, Any]) -> set[str]:
    """Return the names of :func:`effective` that some settings set."""
    names = {RENAMED.get(name, name) for name in _flat(values)}
    names |= {"reward"} if any(name.startswith("reward.") for name in names) else set()
    return names | (set(MODES["fast"]) if "mode" in names else set())


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return knobs, options, guards and settings of the task at the level of ``--set``."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name in INSIDE and isinstance(value, Mapping):
            found |= {INSIDE[name] + key: one for key, one in value.items()}
        else:
            found[name] = value
    return found


def effective(config: RunConfig, sources: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    """Return value and source of every setting, knob and option; what was asked for comes first."""
    given = _flat(config.model_dump())
    knobs = {
        name: one.value if isinstance(one, Constant) else str(one)
        for name, one in config.schedules().items()
    }
    options = resolve_options(METHODS[config.method], config.options)
    whole = {
        **config.model_dump(),
        "knobs": {**knobs, **config.knobs},
        "options": {name: value for name, value in options.items() if value is not None},
    }
    found = {}
    for name, value in _flat(whole).items():
        source = sources.get(name, "default") if name in given else "default"
        field = RunConfig.model_fields.get(name)
        if config.adapter and source == "default" and field and value != field.default:
            source = "adapter"  # rank and alpha are its own
        found[name] = (value, source)
    order = ("command line", "file", "preset", "adapter", "default")
    return dict(sorted(found.items(), key=lambda row: order.index(row[1][1])))


def as_yaml(rows: Mapping[str, tuple[Any, str]]) -> str:
    """Return a config file with what was asked for, and all else as comments."""
    lines = ["# rlkd train --config FILE --out RUN. Lines after # say what holds without them."]
    about = {name: " | ".join(values) for name, values in CHOICES.items()}
    about |= {name: knob.help for name, knob in {**KNOBS, **LOOP_KNOBS}.items()}
    about |= {name: field.description or "" for name, field in RunConfig.model_fields.items()}
    for name, (value, source) in rows.items():
        asked = source in ("command line", "file") or name in ("method", "preset")
        line = f"{name}: {json.dumps(value, ensure_ascii=False)}"
        line = NOT_PLAIN.sub(lambda one: f"\\u{ord(one[0]):04x}", line)
        lines.append(line if asked else f"# {line}  # {about.get(name, '')}")
    return "\n".join(lines) + "\n"
