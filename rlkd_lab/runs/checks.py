"""What a run folder must have before it is opened."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

FORMAT = 2
"""Format of the run folders that this version writes."""
NEEDED = ("env.json", "status.json", "metrics.jsonl", "events.jsonl")


def check_whole(path: Path) -> None:
    """Refuse a folder that is no run, is torn, is too new, or has links that lead out of it.

    Raises:
        FileNotFoundError: there is no run, or one of its files is missing.
        ValueError: config.json cannot be read, the format is newer, or a link leads out.
    """
    if not (path / "config.json").exists():
        what = "has no config.json: it is no run folder, or a torn one"
        raise FileNotFoundError(f"{path} {what if path.is_dir() else 'does not exist'}")
    try:
        written = json.loads((path / "config.json").read_text(encoding="utf-8"))["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}/config.json is torn: it cannot be read ({error})") from error
    if type(written) is not int or not 1 <= written <= FORMAT:
        newer = ": update rlkd_lab" if type(written) is int and written > FORMAT else ""
        raise ValueError(
            f"{path} has format {written!r:.40}, this version of rlkd_lab reads 1"
            f" to {FORMAT}{newer}"
        )
    for link in _links_out(str(path), os.path.realpath(path)):
        raise ValueError(
            f"{path} holds a link that leads out of it, {link}: a run folder is"
            " data; put what is meant in the place of the link"
        )
    for name in NEEDED:
        if not (path / name).exists():
            raise FileNotFoundError(
                f"{path} is torn: it has no {name}; put it back from a copy, or"
                " train anew in another folder"
            )


def _links_out(place: str, root: str) -> Iterator[str]:
    """Return links below a folder that lead out of ``root``; no link is followed.

    Files appear and disappear while a run is trained.
    """
    try:
        entries = list(os.scandir(place))
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_symlink():
            if not os.path.realpath(entry.path).startswith(os.path.join(root, "")):
                yield entry.path
        elif entry.is_dir(follow_symlinks=False):
            yield from _links_out(entry.path, root)
