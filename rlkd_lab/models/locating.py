"""From the name of a model to its folder."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

ZOO = Path(__file__).parent.parent / "zoo"
MADE_BY = {"models/midsize/": "python -m rlkd_lab.zoo.midsize"}
"""Folders that a preset names and a command makes."""


def zoo_names() -> list[str]:
    """Return the names of the embedded models."""
    return sorted(path.parent.name for path in ZOO.glob("*/config.json"))


def locate(name: str, weights: bool = True) -> Path:
    """Return the folder of a model.

    Args:
        name: an embedded name (``student``), a folder, or a hub id. Of a hub id, safetensors and
            text files alone are downloaded.
        weights: whether the weights are needed beside config and tokenizer.

    Raises:
        FileNotFoundError: no such model, or the hub cannot be reached.
    """
    if name in zoo_names():
        return ZOO / name
    folder = Path(name)
    if not folder.is_dir() and (folder.is_absolute() or name.startswith((".", "~"))):
        raise FileNotFoundError(f"there is no folder {name!r}, where a model should lie")
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise FileNotFoundError(
                f"{name!r} is a folder without a config.json: it holds no transformers model"
            )
        return _with_weights(folder, name) if weights else folder
    for start, command in MADE_BY.items():
        if name.startswith(start):
            raise FileNotFoundError(
                f"no model {name!r} here yet: {command} makes it, in the folder that you"
                " start it from"
            )
    patterns = ["*.json", "*.txt", "*.model", "*.jinja", *(["*.safetensors"] if weights else [])]
    try:
        folder = Path(snapshot_download(name, allow_patterns=patterns))
    except (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        ValueError,
        OSError,
    ) as error:
        raise FileNotFoundError(
            f"no model {name!r}: it is not embedded ({', '.join(zoo_names())}), not a folder"
            " here, and the model hub did not give it"
            f" ({type(error).__name__}). Check the name, or download it on a machine with a"
            " network and give the folder"
        ) from error
    return _with_weights(folder, name) if weights else folder


def _with_weights(folder: Path, name: str) -> Path:
    if not list(folder.glob("*.safetensors")):
        raise FileNotFoundError(
            f"{name!r} has no *.safetensors: weights are read from safetensors alone, since a"
            " pickle can run code when it is opened"
        )
    return folder
