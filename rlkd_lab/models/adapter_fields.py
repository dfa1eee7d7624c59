"""The fields of an adapter's config: which value each may hold, and which base the config names."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_switch(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _is_pattern(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_number(one) and one > 0 for one in value.values())


FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "r": (lambda value: type(value) is int and value > 0, "a whole number above 0"),
    "lora_alpha": (_is_number, "a finite number"),
    "lora_dropout": (lambda value: _is_number(value) and 0 <= value <= 1, "a number from 0 to 1"),
    "bias": (lambda value: value in ("none", "all", "lora_only"), '"none", "all" or "lora_only"'),
    "target_modules": (
        lambda value: value is None or (value != [] and _is_names(value)) or _is_name(value),
        "names of modules",
    ),
    "modules_to_save": (
        lambda value: value is None or _is_names(value),
        "names of modules or null",
    ),
    "rank_pattern": (_is_pattern, "numbers above 0 by name"),
    "alpha_pattern": (_is_pattern, "numbers above 0 by name"),
    "use_dora": (_is_switch, "true or false"),
    "use_rslora": (_is_switch, "true or false"),
    "lora_bias": (_is_switch, "true or false"),
}
"""What may stand in a field, as a check and in words."""


def check_fields(path: str | Path, stored: Mapping[str, Any]) -> None:
    """Refuse a config with a value that its field cannot hold.

    Raises:
        ValueError: it names the first such field.
    """
    for name, (fits, words) in FIELDS.items():
        if name in stored and not fits(stored[name]):
            raise ValueError(
                f"the adapter_config.json of {str(path)!r} has {name}={stored[name]!r}, where"
                f" {words} must stand"
            )


def warn_of_another_base(path: str | Path, named: Any, base: str) -> None:
    """Warn where the base that an adapter names is not the one it is put on. A path may be one of
    another machine, of which only the last part is compared.
    """
    if not isinstance(named, str) or not named or named == base:
        return
    there, here = _folder(named), _folder(base)
    if there is not None and here is not None:
        same = there.resolve() == here.resolve()
    else:
        same = _last(named) == _last(base)
    if not same:
        warnings.warn(
            f"the adapter {str(path)!r} names {named!r} as its base and is put on {base!r}: on"
            " other weights of the same shape it computes something else",
            stacklevel=3,
        )


def _folder(name: str) -> Path | None:
    from rlkd_lab.models.loading import ZOO, zoo_names  # which needs the adapters

    found = ZOO / name if name in zoo_names() else Path(name)
    return found if found.is_dir() else None


def _last(name: str) -> str:
    """The model's own name, of a path, a hub id or a folder of the hub's cache."""
    parts = name.replace("\\", "/").rstrip("/").split("/")
    cached = [part for part in parts if part.startswith("models--")]
    return (cached[-1].split("--")[-1] if cached else parts[-1]).lower()
