"""The parts of the study: sweeps that belong together, and their tables.

Each part is a sweep file in ``sweeps/``; its folder is ``OUT/PART``.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from rlkd_lab.study.parts import OUTCOMES, SESSIONS, SIGNS, TABLES, Study, read_part
from rlkd_lab.study.sweep import CHOSEN, Sweep, read_sweep

PARTS: dict[str, str] = {
    "core": "eight methods, one pair",
    "map": "when a teacher helps",
    "betas": "KDRL's coefficient",
    "alphas": "TRRD's α",
    "cost": "seconds of a step",
    "logic": "eight methods on Knights and Knaves",
    "logic_betas": "KDRL's coefficient on Knights and Knaves",
    "logic_2": "the methods of logic on a second student",
    "logic_3": "the methods of logic on a third student and another teacher",
    "pair_2": "the core's methods on a second pair",
    "pair_3": "the core's methods on a third pair",
}
"""The subject of each part, in the order in which the parts are run."""
COMPARED = ("core", "logic", "logic_2", "logic_3")
"""Parts whose trained weights are compared with those of OPD."""
FOLDER = Path(__file__).parent / "sweeps"
KEPT = (*TABLES, OUTCOMES, SIGNS, "sweep.json", SESSIONS, CHOSEN)
"""Files that :func:`copy_tables` copies of a part's folder."""


def sweep_of(part: str, preset: str | None = None) -> Sweep:
    """Return the sweep of a part, with another preset where the part allows it.

    Raises:
        ValueError: there is no such part, or it is about an embedded pair.
    """
    if part not in PARTS:
        raise ValueError(f"unknown part {part!r}: valid are {', '.join(PARTS)}")
    sweep = read_sweep(FOLDER / f"{part}.toml")
    if preset is None or preset == sweep.preset:
        return sweep
    if not is_general(sweep):
        raise ValueError(f"part {part} is about an embedded pair: --preset cannot change it")
    return sweep.model_copy(update={"preset": preset})


def is_general(sweep: Sweep) -> bool:
    """Return whether a sweep leaves the pair to the preset."""
    given = {name for arm in sweep.arms for name in (*sweep.settings, *arm.settings, *arm.grid)}
    return sweep.preset == "tiny" and not {"student", "teacher"} & given


def parts_of(core: bool, named: Sequence[str], preset: str | None) -> list[str]:
    """Return the parts to run: those named, the core alone, or all that the preset allows.

    Raises:
        ValueError: a part is unknown or cannot have the preset, or ``core`` and names are given.
    """
    if core and named:
        raise ValueError("--core is one part: give --part or --core")
    for name in named:
        sweep_of(name, preset)
    if core or named:
        return list(dict.fromkeys(named)) or ["core"]
    return [name for name in PARTS if preset is None or is_general(sweep_of(name))]


def read_study(out: str | Path) -> Study:
    """Read the parts of a study that have tables, in the order of :data:`PARTS`.

    Raises:
        FileNotFoundError: there is no such part, or a part lacks one of its tables.
        ValueError: a table is damaged.
    """
    found = {name: read_part(Path(out) / name) for name in _over(out)}
    if not found:
        raise FileNotFoundError(
            f"{out} has no part with its tables ({', '.join(TABLES)}): run `rlkd study` first"
        )
    return found


def _over(out: str | Path) -> list[str]:
    """Return the parts of a study that have a table."""
    return [name for name in PARTS if any((Path(out) / name / table).exists() for table in TABLES)]


def copy_tables(out: str | Path, target: str | Path) -> None:
    """Copy the tables of every part and of its trials, without the run folders.

    Raises:
        ValueError: the target is the study's own folder.
    """
    if Path(target).resolve() == Path(out).resolve():
        raise ValueError(f"--keep {target} is the study's own folder: its tables are there")
    for name in _over(out):
        for inner in (Path(name), Path(name) / "tuning", Path(name) / "finals"):
            for file in (Path(out) / inner / each for each in KEPT):
                if file.exists():
                    (Path(target) / inner).mkdir(parents=True, exist_ok=True)
                    shutil.copy(file, Path(target) / inner / file.name)
