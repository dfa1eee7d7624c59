"""Progress bars: of a run, with reward, KL, length, accuracy, memory and time left; of a file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

SHOWN = {
    "reward": "reward",
    "KL": "kl_teacher_rev",
    "length": "completions/mean_length",
    "acc": "eval/accuracy",
    "GiB": "memory/peak_gib",
}
"""The metrics beside the bar, by their short names."""


@contextmanager
def progress(total: int, label: str) -> Iterator[Callable[[Any, dict[str, Any]], None]]:
    """Yield an ``on_step`` for a run that shows a bar over ``total`` steps.

    with progress(config.steps, config.method) as show:
        run(config, out, on_step=show)
    """
    current: dict[str, str] = {}
    bars: list[tqdm[Any]] = []
    began = time.time()

    def show(loop: Any, row: dict[str, Any]) -> None:
        for key, name in SHOWN.items():
            if row.get(name) is not None:
                current[key] = f"{row[name]:.3g}"
        if not bars:
            # The first step makes the bar, so a run that is only loaded shows none,
            # and the rate of a resumed run is that of its new steps.
            bar = tqdm(
                total=total,
                desc=label,
                unit="step",
                dynamic_ncols=True,
                mininterval=1.0,  # a notebook keeps every line that is printed
                initial=row["step"] - 1,
            )
            bar.start_t = began
            bars.append(bar)
        bars[0].set_postfix(current, refresh=False)
        bars[0].update(row["step"] - bars[0].n)

    try:
        yield show
    finally:
        for bar in bars:
            bar.refresh()
            bar.close()


@contextmanager
def progress_of() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function that shows a bar for each thing that is made: its name, how many, of how
    many.
    """
    bars: dict[str, tqdm[Any]] = {}

    def show(what: str, done: int, of: int) -> None:
        if what not in bars:
            for bar in bars.values():
                bar.close()
            bars[what] = tqdm(total=of, desc=what, dynamic_ncols=True, mininterval=1.0)
        bars[what].update(done - bars[what].n)

    try:
        yield show
    finally:
        for bar in bars.values():
            bar.close()
