"""What the lab costs and how fast it answers.

    python benchmarks/lab.py   # ten minutes on an idle machine; writes results/lab.json

- Knob to effect: knobs moved at random moments of a running run; a move counts as in time if the
  first step that begins after the request has the value.
- Overhead of an open panel, fork off: steps in a time slice with the panel open against its
  neighbours without, in a thread of the kernel and in another its own, inside a real kernel,
  learning rate 0 (so that every step samples the same policy).
- First curve: from the start of the kernel of notebook 00 to the first picture with a step on it,
  all cells run in order.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
MOVES, SLICES, SLICE_SECONDS = 100, 13, 12.0


def knob_to_effect() -> dict[str, Any]:
    """A thread moves a knob at random moments; the loop notes when each step begins."""
    from rlkd_lab.runs import RunFolder
    from rlkd_lab.training import make_config, resume
    from rlkd_lab.training.folders import create
    from rlkd_lab.training.knobs import Knobs

    config = make_config(
        "kdrl",
        steps=100_000,
        prompts_per_step=2,
        group_size=4,
        max_new_tokens=48,
        eval_every=0,
        samples_every=0,
        checkpoint_every=0,
        settings={"learning_rate": "0"},
    )
    folder = create(config, Path(tempfile.mkdtemp()) / "run")
    began: list[tuple[float, int]] = []
    snapshot = Knobs.snapshot

    def timed(self: Knobs, step: int) -> Any:
        began.append((time.time(), step))
        return snapshot(self, step)

    Knobs.snapshot = timed  # type: ignore[method-assign]
    asked: list[tuple[float, int]] = []
    rng = random.Random(0)

    def move() -> None:
        watcher = RunFolder(folder.path)
        while not began:
            time.sleep(0.1)
        for number in range(MOVES):
            time.sleep(rng.uniform(0.05, 0.6))
            asked.append(
                (
                    time.time(),
                    watcher.ask("knob", knob="kd_coef", value=round(0.001 * (number + 1), 3)),
                )
            )
        time.sleep(2)
        watcher.ask("stop")

    mover = threading.Thread(target=move)
    mover.start()
    resume(folder.path)
    mover.join()
    Knobs.snapshot = snapshot  # type: ignore[method-assign]
    applied = {
        event["id"]: event["step"]
        for event in folder.rows("events.jsonl")
        if event["event"] == "knob"
    }
    rows = {row["step"]: row["coef/kd_coef"] for row in folder.rows()}
    late, seconds = 0, []
    for number, (at, name) in enumerate(asked):
        following = next((start, step) for start, step in began if start >= at)
        in_time = applied.get(name) is not None and applied[name] <= following[1]
        later = [
            value
            for when, (_, value) in enumerate(asked)
            if applied.get(value) == applied.get(name) and when > number
        ]
        late += not (
            in_time and (bool(later) or rows[applied[name]] == round(0.001 * (number + 1), 3))
        )
        seconds.append(following[0] - at)
    return {
        "moves": len(asked),
        "acted_on_the_next_step": len(asked) - late,
        "seconds_to_that_step_median": round(median(seconds), 3),
    }


def overhead(drive: str) -> dict[str, Any]:
    """Steps in slices of time, the panel open in every other one. Runs inside a kernel."""
    from rlkd_lab.lab import launch, panel, start
    from rlkd_lab.training import make_config

    config = make_config(
        "kdrl",
        steps=100_000,
        eval_every=0,
        samples_every=0,
        checkpoint_every=0,
        settings={"learning_rate": "0"},
    )
    run = {"thread": start, "process": launch}[drive](
        config, Path(tempfile.mkdtemp()) / "run", fork="off"
    )
    while run.status().step < 10:
        time.sleep(0.2)
    rates = []
    for number in range(SLICES):
        shown = panel(run) if number % 2 else None
        if shown is not None:
            shown._ipython_display_()
            time.sleep(2)  # what is built once is not an overhead of steps
        times = len(run.folder.rows())
        time.sleep(SLICE_SECONDS)
        rows = run.folder.rows()[times:]
        rates.append(sum(row["step_time"] for row in rows) / len(rows))
        if shown is not None:
            shown.close()
    run.stop()
    run.wait()
    ratios = [rates[i] / ((rates[i - 1] + rates[i + 1]) / 2) for i in range(1, SLICES - 1, 2)]
    return {
        "step_seconds_without": round(median(rates[::2]), 4),
        "ratio_median": round(median(ratios), 4),
        "ratios": [round(r, 3) for r in ratios],
    }


def in_a_kernel(call: str, timeout: int = 900) -> Any:
    """What a function of this file returns in a fresh kernel."""
    import nbformat
    from nbclient import NotebookClient

    source = (
        f"import sys, json\nsys.path.insert(0, {str(ROOT / 'benchmarks')!r})\nimport"
        f" lab\nprint('@' + json.dumps(lab.{call}))"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    NotebookClient(notebook, timeout=timeout).execute()
    texts = [output.get("text", "") for output in notebook.cells[0].outputs]
    return json.loads(
        next(line for text in texts for line in text.splitlines() if line.startswith("@"))[1:]
    )


def first_curve() -> float:
    """Seconds from the start of notebook 00's kernel to the first curve with a step on it."""
    import nbformat
    from nbclient import NotebookClient

    seen: list[float] = []

    class Client(NotebookClient):
        def process_message(self, message: Any, cell: Any, cell_index: int) -> Any:
            data = message["content"].get("data", {})
            if "image/png" in data and "GRPO: step" in data.get("text/plain", ""):
                seen.append(time.monotonic())
            return super().process_message(message, cell, cell_index)

    os.environ.pop("RLKD_SHORT", None)
    os.environ["RLKD_WAIT"] = "1"  # or the kernel would end with the last cell
    notebook = nbformat.read(ROOT / "notebooks" / "00_start_here.ipynb", as_version=4)
    with tempfile.TemporaryDirectory() as place:
        work = Path(place) / "notebooks"
        work.mkdir()
        (work / "recorded").symlink_to(ROOT / "notebooks" / "recorded")
        began = time.monotonic()
        Client(notebook, timeout=600, resources={"metadata": {"path": str(work)}}).execute()
    return round(seen[0] - began, 1)


def main() -> None:
    import torch

    from rlkd_lab.training.environment import describe_environment

    result: dict[str, Any] = {"command": "python benchmarks/lab.py"}
    target = ROOT / "benchmarks" / "results" / "lab.json"
    for name, measure in (
        ("panel_overhead_thread", lambda: in_a_kernel("overhead('thread')")),
        ("panel_overhead_process", lambda: in_a_kernel("overhead('process')")),
        ("first_curve_seconds_notebook_00", first_curve),
        ("knob_to_effect", knob_to_effect),
        (
            "environment",
            lambda: describe_environment(
                torch.device("cuda" if torch.cuda.is_available() else "cpu")
            ),
        ),
    ):
        result[name] = measure()
        target.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(globals()[sys.argv[1]](*sys.argv[2:]))
    else:
        main()
