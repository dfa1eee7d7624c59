"""Which runs belong together: numbered ones beside each other, and settings that differ.

A new run lies beside the old one: ``runs/kdrl``, ``runs/kdrl-2``, ``runs/kdrl-3``.
"""

from __future__ import annotations

import re
from pathlib import Path

NUMBERED = re.compile(r"(.+)-([1-9]\d*)")


def family(path: Path) -> list[Path]:
    """Return a run and the numbered runs beside it, oldest first."""
    match = NUMBERED.fullmatch(path.name)
    first = path
    if match and (path.with_name(match[1]) / "config.json").exists():
        first = path.with_name(match[1])
    later = {}
    for file in first.parent.glob("*/config.json"):
        match = NUMBERED.fullmatch(file.parent.name)
        if match and match[1] == first.name:
            later[int(match[2])] = file.parent
    return [first, *(later[number] for number in sorted(later))]


def place_beside(path: Path) -> Path:
    """Return the folder for the next run beside a run; nothing is there yet."""
    first, number = family(path)[0], 2
    while (place := first.with_name(f"{first.name}-{number}")).exists():
        number += 1
    return place
