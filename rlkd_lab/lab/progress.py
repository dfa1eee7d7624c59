"""A progress bar for a run: reward, KL to the teacher, length, accuracy, peak memory and ETA."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

SHOWN = {"reward": "reward", "KL": "kl_teacher_rev", "length": "completions/mean_length", "acc": "eval/accuracy", "GiB": "memory/peak_gib"}


@contextmanager
def progress(total: int, label: str) -> Iterator[Callable[[Any, dict[str, Any]], None]]:
    """A bar over ``total`` steps; what it yields is the ``on_step`` of a run.

    with progress(config.steps, config.method) as show:
        run(config, out, on_step=show)
    """
    current: dict[str, str] = {}
    # At most one redraw a second: a notebook keeps every line that is printed.
    with tqdm(total=total, desc=label, unit="step", dynamic_ncols=True, mininterval=1.0) as bar:

        def show(loop: Any, row: dict[str, Any]) -> None:
            for key, name in SHOWN.items():
                if row.get(name) is not None:
                    current[key] = f"{row[name]:.3g}"
            bar.set_postfix(current, refresh=False)
            bar.update(row["step"] - bar.n)

        yield show
        bar.refresh()
