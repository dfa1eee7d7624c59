"""Two methods compared: several runs a side, which differ only in their seed.

A p-value over prompts between two single runs is about those two checkpoints.
Two seeds of one method differ at p < .05 in about half of all pairs.
So methods are compared over runs: a run is one number, and runs spread around their mean.
"""

from __future__ import annotations

import glob
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from rlkd_lab.models import locate
from rlkd_lab.objectives import METHODS
from rlkd_lab.objectives.methods import resolve_options
from rlkd_lab.study.statistics import welch
from rlkd_lab.study.summary import difference_row, per_prompt, powers_of_two, samples_of
from rlkd_lab.study.targets import Target
from rlkd_lab.training.fingerprint import NOT_IN_FINGERPRINT

FREE = {"seed", *NOT_IN_FINGERPRINT - {"interference_every"}}
"""Settings in which runs of one side may differ: the seed, and those that change no weights."""


def expanded(names: Sequence[str]) -> list[str]:
    """Replace each pattern, such as ``runs/a-*``, by the sorted paths that it matches.

    Raises:
        FileNotFoundError: a pattern matches nothing.
    """
    found: list[str] = []
    for name in names:
        if not glob.has_magic(name) or Path(name).exists():
            found.append(name)
            continue
        paths = sorted(glob.glob(name))
        if not paths:
            raise FileNotFoundError(f"no file matches {name}")
        found += paths
    return found


def check_sides(ours: Sequence[Target], theirs: Sequence[Target]) -> None:
    """Refuse sides that cannot be compared over runs, and warn of a mixed side.

    Raises:
        ValueError: a run, adapter or model stands twice, a single run is compared with several,
            or runs of the other side stand among the targets.

    Warns:
        UserWarning: the runs of a side differ in more than their seed, or share a seed, or the
            two sides average their tokens differently.
    """
    _refuse_twice((*ours, *theirs))
    if theirs and max(len(ours), len(theirs)) > 1:
        others = {_settings(target) for target in theirs if target.config is not None}
        strayed = [
            target.name
            for target in ours
            if target.config is not None
            and _settings(target) in others
            and _settings(target) != _settings(ours[0])
        ]
        if strayed:
            raise ValueError(
                f"{strayed[0]} has the settings of --against and stands among the targets:"
                " quote the pattern, as in --against 'runs/b-*'"
            )
        for side, other in ((ours, theirs), (theirs, ours)):
            if len(side) == 1 and side[0].run is not None:
                raise ValueError(
                    f"{side[0].name} is one run against {len(other)}: a method is compared"
                    " over two runs or more a side; give runs of other seeds"
                )
    for side in (ours, theirs):
        _warn_of_a_mixed_side(side)
    _warn_of_two_averages(ours, theirs)


def _warn_of_two_averages(ours: Sequence[Target], theirs: Sequence[Target]) -> None:
    """Warn that two methods that clip a ratio average their tokens differently.

    GRPO does it as in its paper, KDRL and TRRD in another way. In the study this alone makes a
    difference of 1.4 points on arithmetic (docs/findings.md).
    """
    configs = [side[0].config for side in (ours, theirs) if side]
    averages = [
        resolve_options(METHODS[config.method], config.options)["aggregation"]
        for config in configs
        if config is not None and METHODS[config.method].ratio is not None
    ]
    if len(set(averages)) == 2:
        warnings.warn(
            f"the sides average their tokens differently (aggregation={averages[0]} and"
            f" {averages[1]}), which changes the accuracy too: train both with one of them to"
            " compare what the methods add",
            stacklevel=3,
        )


def _refuse_twice(targets: Sequence[Target]) -> None:
    seen = set()
    for target in targets:
        if target.run is not None:
            key: tuple[str, ...] = (str(target.run.resolve()),)
            text = f"{key[0]} stands twice: give each run once"
        else:
            adapter = "" if target.adapter is None else str(target.adapter.resolve())
            key = (str(locate(target.base, weights=False).resolve()), target.quant, adapter)
            kind = "adapter" if adapter else "model"
            text = f"{target.name} stands twice: give each {kind} once"
        if key in seen:
            raise ValueError(text)
        seen.add(key)


def _settings(target: Target) -> str:
    return "" if target.config is None else target.config.model_dump_json(exclude=FREE)


def _warn_of_a_mixed_side(side: Sequence[Target]) -> None:
    """Warn of settings in which the runs of a side differ, and of seeds that stand twice."""
    if len(side) < 2:
        return
    known = [target for target in side if target.config is not None]
    if len(known) < len(side):
        odd = next(target for target in side if target.config is None)
        warnings.warn(
            f"{odd.name} is no run: nothing says whether it differs from the others in its"
            " seed alone",
            stacklevel=3,
        )
    if not known:
        return
    first, *rest = [
        {**target.config.model_dump(exclude=FREE), "checkpoint": target.step}
        for target in known
        if target.config is not None
    ]
    for target, settings in zip(known[1:], rest, strict=True):
        odd_names = [name for name in first if first[name] != settings[name]]
        if odd_names:
            text = ", ".join(
                f"{name} ({first[name]} and {settings[name]})" for name in odd_names[:3]
            )
            warnings.warn(
                f"{known[0].name} and {target.name} are taken for one method and differ in"
                f" {text:.300}",
                stacklevel=3,
            )
            break
    seeds = [target.config.seed for target in known if target.config is not None]
    if len(set(seeds)) < len(seeds):
        warnings.warn(
            f"{known[0].name} and others of its side share a seed: they are not independent runs",
            stacklevel=3,
        )


def compare_runs(
    ours: Sequence[pd.DataFrame], theirs: Sequence[pd.DataFrame], ks: Sequence[int] | None = None
) -> pd.DataFrame:
    """Compare two methods on the same prompts, a row for each set and measure.

    The columns are those of :func:`~rlkd_lab.study.summary.compare_frames`, and the numbers of
    runs, ``runs_a`` and ``runs_b``.
    A run is the mean of a measure over its prompts; ``a`` and ``b`` are means over runs.
    ``low``, ``high`` and ``p`` come from :func:`~rlkd_lab.study.statistics.welch`.
    All runs have the same prompts, so the interval is about these prompts.

    Args:
        ours: the tables of one side, one for each run.
        theirs: those of the other; a single one is a fixed model without seeds.
        ks: the k of pass@k and majority@k.

    Raises:
        ValueError: the tables have different prompts or sets, or fewer samples than a k.
    """
    every = [*ours, *theirs]
    ks = powers_of_two(min(map(samples_of, every))) if ks is None else ks
    if any(
        set(frame["prompt_id"]) != set(every[0]["prompt_id"])
        or set(frame["set"]) != set(every[0]["set"])
        for frame in every
    ):
        raise ValueError("the runs were not asked the same prompts: evaluate them with one command")
    rows: list[dict[str, Any]] = []
    for name in every[0]["set"].unique():
        a, b = (
            pd.DataFrame([per_prompt(frame[frame["set"] == name], ks).mean() for frame in side])
            for side in (ours, theirs)
        )
        for measure in [measure for measure in a if measure in b]:
            found = welch(a[measure], b[measure])
            rows.append(
                {
                    "set": name,
                    "measure": measure,
                    "a": a[measure].mean(),
                    "b": b[measure].mean(),
                    **difference_row(found),
                    "runs_a": len(ours),
                    "runs_b": len(theirs),
                }
            )
    return pd.DataFrame(rows)


def side_label(side: Sequence[Target]) -> str:
    """Return a short heading: ``a-…, 5 runs``, or the label of a single target."""
    if len(side) == 1:
        return side[0].label
    names = [(target.run or Path(target.name)).name for target in side]
    shared = os.path.commonprefix(names)  # noqa: RUF071 (of the names' characters)
    return f"{shared}…, {len(side)} runs" if shared else f"{names[0]} and {len(side) - 1} more"
