"""The config of an adapter: read, checked field by field, and compared with its base."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from peft import LoraConfig

from rlkd_lab.models.locating import ZOO, zoo_names

KNOWN = frozenset(
    {
        "task_type",
        "peft_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "r",
        "target_modules",
        "exclude_modules",
        "lora_alpha",
        "lora_dropout",
        "fan_in_fan_out",
        "bias",
        "use_rslora",
        "modules_to_save",
        "init_lora_weights",
        "layers_to_transform",
        "layers_pattern",
        "rank_pattern",
        "alpha_pattern",
        "megatron_core",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "use_dora",
        "runtime_config",
        "lora_bias",
        "qalora_group_size",
        "ensure_weight_tying",
    }
)
"""Fields of an adapter's config that may hold anything.

Any other field changes what the adapter computes, or may, and must be empty.
"""
STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of ``init_lora_weights`` that leave the base as it is.

PiSSA, OLoRA, CorDA, LoRA-GA and LoftQ take a part of the base's weights away.
"""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_targets(value: Any) -> bool:
    if not isinstance(value, str):
        return value != [] and _is_names(value)
    try:
        re.compile(value)  # as peft does
    except re.error:
        return False
    return value != ""


def _is_switch(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _is_pattern(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_number(one) and one > 0 for one in value.values())


FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "r": (lambda value: type(value) is int and value > 0, "a whole number above 0"),
    "lora_alpha": (_is_number, "a finite number"),
    "lora_dropout": (lambda value: _is_number(value) and 0 <= value <= 1, "a number from 0 to 1"),
    "bias": (lambda value: value in ("none", "all", "lora_only"), '"none", "all" or "lora_only"'),
    "target_modules": (_is_targets, "names of modules, or a regular expression"),
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


def adapter_folder(path: str | Path) -> str:
    """Return ``path``, if it holds a LoRA adapter in safetensors that names no code.

    Raises:
        FileNotFoundError: it holds none; of an ``adapter_model.bin`` peft would open the pickle.
        ValueError: its config cannot be read, or asks for what is not supported.
    """
    adapter_settings(path)
    return str(path)


def adapter_settings(path: str | Path) -> dict[str, Any]:
    """Read the config of an adapter; errors as in :func:`adapter_folder`."""
    folder = Path(path)
    if not (folder / "adapter_model.safetensors").exists():
        pickled = (
            "; its adapter_model.bin is a pickle, which can run code when it is opened"
            if (folder / "adapter_model.bin").exists()
            else ""
        )
        raise FileNotFoundError(
            f"{str(path)!r} holds no adapter_model.safetensors{pickled}: save the adapter"
            " again with save_pretrained"
        )
    try:
        stored = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        kind = stored.get("peft_type")
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(
            f"the adapter {str(path)!r} has no adapter_config.json that can be read: {error}"
        ) from None
    if stored.get("megatron_config") is not None:
        raise ValueError(
            f"the adapter {str(path)!r} is one for Megatron, whose config names code to be"
            " run: such adapters are not supported"
        )
    if kind != "LORA":
        raise ValueError(
            f"the adapter {str(path)!r} is of peft's type {kind}, and only LORA is supported"
        )
    defaults = {one.name: one.default for one in fields(LoraConfig) if one.default is not MISSING}
    further = sorted(set(stored) - KNOWN)
    odd = [name for name in further if stored[name] and stored[name] != defaults.get(name)]
    if odd:
        raise ValueError(
            f"the adapter {str(path)!r} was made with {odd[0]}, which is not supported: train"
            " one without it"
        )
    if stored.get("init_lora_weights", True) not in STARTS:
        raise ValueError(
            f"the adapter {str(path)!r} was started with"
            f" init_lora_weights={stored['init_lora_weights']}, which changes the base's"
            " weights too:"
            " convert it to plain LoRA (path_initial_model_for_weight_conversion of peft's"
            " save_pretrained)"
        )
    check_fields(path, stored)
    return dict(stored)


def can_share_base(*adapters: str | Path | None) -> bool:
    """Return whether adapters can lie on one base. ``None`` is no adapter.

    They cannot where one replaces whole layers (``modules_to_save``) or biases (``bias``).
    """
    found = [adapter_settings(path) for path in adapters if path is not None]
    return all(
        not stored.get("modules_to_save") and stored.get("bias", "none") == "none"
        for stored in found
    )


def rank_and_alpha(path: str | Path) -> dict[str, int]:
    """Return ``lora_rank`` and ``lora_alpha`` of an adapter."""
    stored = adapter_settings(path)
    try:
        return {"lora_rank": int(stored["r"]), "lora_alpha": int(stored["lora_alpha"])}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"the adapter_config.json of {str(path)!r} has no rank and alpha (r, lora_alpha):"
            f" {error}"
        ) from None


def check_policy_adapter(path: str | Path) -> None:
    """Refuse an adapter that cannot be trained on.

    Raises:
        ValueError: in one sentence.
        FileNotFoundError: see :func:`adapter_folder`.
    """
    if (bias := adapter_settings(path).get("bias", "none")) != "none":
        raise ValueError(
            f"the adapter {str(path)!r} trains biases of its base (bias={bias}), which the"
            " reference shares: it can be a teacher_adapter, but not trained on"
        )
    rank_and_alpha(path)


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
    """Warn where the base that an adapter names is not the one it is put on.

    A path may be one of another machine. Then its last part is compared.
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
    found = ZOO / name if name in zoo_names() else Path(name)
    return found if found.is_dir() else None


def _last(name: str) -> str:
    """Return the last part of a path, a hub id, or a folder of the hub's cache."""
    parts = name.replace("\\", "/").rstrip("/").split("/")
    cached = [part for part in parts if part.startswith("models--")]
    return (cached[-1].split("--")[-1] if cached else parts[-1]).lower()
