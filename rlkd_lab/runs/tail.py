"""Read a growing JSON-lines file, whole lines only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Tail:
    """``read`` returns the lines that were added since the last call.

    A torn last line waits until it is whole; one that is no JSON object is left out.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.offset = 0

    def read(self) -> list[dict[str, Any]]:
        """New rows, in order; none where there is no file yet."""
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, 2)
                if size == self.offset:
                    return []
                if size < self.offset:  # cut, or written anew: all of it again
                    self.offset = 0
                file.seek(self.offset)
                whole, newline, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return []
        self.offset += len(whole) + len(newline)
        rows = []
        for line in whole.split(b"\n"):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict):
                rows.append(row)
        return rows
