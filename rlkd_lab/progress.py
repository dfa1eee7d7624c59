"""A progress bar for a run: reward, KL to the teacher, length, accuracy, peak memory and ETA."""

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


@contextmanager
def progress(total: int, label: str) -> Iterator[Callable[[Any, dict[str, Any]], None]]:
    """A bar over ``total`` steps; what it yields is the ``on_step`` of a run.

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
            # Made with the first step: a run that is only loaded shows no bar, and the rate of a
            # resumed one is that of its new steps. At most one redraw a second: a notebook keeps
            # every line that is printed.
            bars.append(
                tqdm(
                    total=total,
                    desc=label,
                    unit="step",
                    dynamic_ncols=True,
                    mininterval=1.0,
                    initial=row["step"] - 1,
                )
            )
            bars[0].start_t = began
        bars[0].set_postfix(current, refresh=False)
        bars[0].update(row["step"] - bars[0].n)

    try:
        yield show
    finally:
        for bar in bars:
            bar.refresh()
            bar.close()
