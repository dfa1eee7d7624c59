"""Read a growing JSON-lines file, whole lines only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHUNK = 1 << 20
SAME = 256
"""Bytes before the place reached; if they change, the file was cut and written anew."""


class Tail:
    """The whole lines that were appended to a file since the last read.

    A last line without its end is read once it is whole.
    ``damaged`` counts whole lines that are no JSON objects.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.restart()

    def restart(self) -> None:
        """Read from the beginning again."""
        self.offset, self.before, self.damaged = 0, b"", 0

    def changed(self) -> bool:
        """Return whether the file was cut or written anew before the place reached.

        Everything read so far is then void.
        """
        try:
            if self.path.stat().st_size < self.offset:
                return True
            with self.path.open("rb") as file:
                file.seek(self.offset - len(self.before))
                return file.read(len(self.before)) != self.before
        except FileNotFoundError:
            return self.offset > 0

    def read(self) -> list[dict[str, Any]]:
        """Return the new rows; all of them if the file was written anew."""
        if self.changed():
            self.restart()
        return list(self.rows())

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield new rows; a damaged line is counted and left out."""
        rest = b""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        with file:
            file.seek(self.offset)
            while chunk := file.read(CHUNK):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self.offset += len(line) + 1
                    self.before = (self.before + line + b"\n")[-SAME:]
                    row = _object(line)
                    if row is not None:
                        yield row
                    else:
                        self.damaged += bool(line)


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None
