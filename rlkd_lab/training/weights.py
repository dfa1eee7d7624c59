"""Digests of the models and adapters that a run names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlkd_lab.models.locating import locate
from rlkd_lab.training.config import RunConfig
from rlkd_lab.training.teacher_settings import SELF, local_teachers

Weights = dict[str, str]
WHOLE = 2**26
"""Bytes up to which a file is read whole. Of a larger one the start and samples are read."""
START, SAMPLES, BLOCK = 2**20, 256, 2**12
SAID = frozenset(
    {
        "_name_or_path",
        "transformers_version",
        "dtype",
        "torch_dtype",
        "base_model_name_or_path",
        "peft_version",
        "inference_mode",
    }
)
"""Fields of a config that change no number."""


def weights_of(config: RunConfig) -> Weights:
    """Return the SHA-256 of each model and adapter that a config names, by its setting.

    It covers names, sizes and bytes of the files (of a large file samples), and the config.
    """
    return {
        role: _digest_file(Path(name))
        if role == "teacher_cache"
        else _digest(Path(name) if role.endswith("adapter") else locate(name))
        for role, name in _names(config).items()
    }


def _names(config: RunConfig) -> dict[str, str]:
    cached = config.teacher_cache is not None  # no file of the teacher is needed then
    roles = ("student", "adapter", "teacher_cache" if cached else "teacher_adapter")
    named = {role: getattr(config, role) for role in roles}
    for number, teacher in enumerate(local_teachers(config), 1):
        if teacher not in SELF:
            named[f"teacher{number if number > 1 else ''}"] = teacher
    return {role: str(name) for role, name in named.items() if name is not None}


def _digest(folder: Path) -> str:
    sha = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        _add(sha, file)
    for file in (folder / "config.json", folder / "adapter_config.json"):
        if file.exists():
            stored = json.loads(file.read_text(encoding="utf-8"))
            kept = {name: value for name, value in stored.items() if name not in SAID}
            sha.update(json.dumps(kept, sort_keys=True).encode())
    return sha.hexdigest()


def _digest_file(file: Path) -> str:
    sha = hashlib.sha256()
    _add(sha, file)
    return sha.hexdigest()


def _add(sha: Any, file: Path) -> None:
    """Let name, size and bytes of a file enter a digest; of a large file samples."""
    size = file.stat().st_size
    sha.update(f"{file.name} {size}\n".encode())
    with file.open("rb") as opened:
        if size <= WHOLE:
            sha.update(opened.read())
            return
        sha.update(opened.read(START))
        for number in range(1, SAMPLES + 1):
            opened.seek((size - BLOCK) * number // SAMPLES)
            sha.update(opened.read(BLOCK))


def changed_files(before: Mapping[str, str], now: Weights, config: RunConfig) -> str | None:
    """Return which weights differ, in words, or ``None``."""
    names = _names(config)
    odd = [role for role in now if before.get(role, now[role]) != now[role]]
    return ", ".join(f"{role}={names[role]}" for role in odd) or None
