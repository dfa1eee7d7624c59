"""What to measure first on a GPU that is there for a quarter of an hour.

    python benchmarks/gpu_minutes.py             # writes benchmarks/results/gpu_minutes.jsonl
    python benchmarks/gpu_minutes.py --tiny      # small models, also on a CPU; writes nothing
    python benchmarks/gpu_minutes.py sampling    # items whose names contain a word; adds to it

Items are ordered by value. Each is a command in a process group of its own, with a time limit. Its
line of JSON is written as it ends, with the answers that it gave until then. After nine minutes no
item begins.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gpu  # benchmarks/gpu.py

HERE = Path(__file__).parent
TESTS = HERE.parent / "tests" / "gpu" / "test_on_gpu.py"
MINUTES, AT_ONCE = 9, 8
"""Tests at once: each has few gigabytes."""
PLACES = (str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH"))
WORDS = [word for word in sys.argv[1:] if word != "--tiny"]
ENVIRONMENT = """
import json, rlkd_lab.models as models, rlkd_lab.training.environment as environment
print(json.dumps(environment.describe_environment(models.default_device())))
"""


@dataclass(frozen=True)
class Item:
    name: str
    limit: float
    """Seconds."""
    command: Sequence[str]
    """Without the interpreter."""
    turns: int = 0
    """Lines that it is given; it answers each with a line."""


def answer_of(line: str) -> dict[str, Any] | None:
    """Return the JSON of a line, if it is some."""
    try:
        found = json.loads(line.removeprefix("@"))
    except ValueError:  # words of a library, or a line that was cut
        return None
    return found if isinstance(found, dict) else None


def run_item(item: Item) -> dict[str, Any]:
    """Run an item; return its answers, and its last words where it did not end well."""
    began, ended = time.perf_counter(), "done"
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        process = subprocess.Popen(
            [sys.executable, *item.command],
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            cwd=HERE.parent,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, PLACES))},
            start_new_session=True,
        )
        try:
            process.communicate("\n" * item.turns, timeout=item.limit)
            ended = "done" if process.returncode == 0 else f"status {process.returncode}"
        except subprocess.TimeoutExpired:
            ended = f"cut at {item.limit:g} s"
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        said.seek(0)
        lines = said.read().splitlines()
    answers = [found for line in lines if (found := answer_of(line)) is not None]
    found = {"item": item.name, "ended": ended, "seconds": round(time.perf_counter() - began, 1)}
    words = {} if ended == "done" else {"last_words": "\n".join(lines)[-1500:]}
    return found | {"answers": answers} | words


def tests() -> list[Item]:
    """Return each test of ``tests/gpu``, alone."""
    names = [
        line.removeprefix("def ").partition("(")[0]
        for line in TESTS.read_text(encoding="utf-8").splitlines()
        if line.startswith("def test_")
    ]
    start = ["-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", "--no-header"]
    return [Item(name, 100, [*start, f"{TESTS}::{name}"]) for name in names]


def part_of_gpu(models: Path, kind: str, what: str, limit: float, turns: int = 0) -> Item:
    """Return an item of benchmarks/gpu.py."""
    flags = ["--tiny"] if gpu.TINY else []
    words = [str(HERE / "gpu.py"), kind, what, str(models), *flags]
    return Item(f"{kind} {what}", limit, words, turns)


def items(models: Path) -> Iterator[Item]:
    """Yield what is measured after the tests, the most valuable first."""

    side = partial(part_of_gpu, models)
    for engine in gpu.ENGINES:
        for rows in gpu.BATCHES:
            yield side("sampling", f"{engine}:{rows}", 60, 2)
        if engine == "fast":
            for way in ("one", "kernels", "copy", "policy"):
                yield side("passes", way, 60, 12)
            for method in ("", ":grpo", ":trrd"):
                yield side("ours", f"fast{method}", 90, 3)
    if not gpu.TINY:
        for quantity in ("reverse_kl", "logps"):
            for way in ("ours", "trl"):
                words = [str(HERE / "logprobs.py"), way, quantity, "8192"]
                yield Item(f"kernel {way} {quantity}", 40, words)
        for change in ({}, {"checkpointing": True}):
            import memory  # benchmarks/memory.py

            words = [str(HERE / "memory.py"), json.dumps(memory.BASE | change)]
            yield Item(f"memory {change}", 60, words)
    yield side("trl", str(min(8, gpu.PROMPTS * gpu.GROUP)), 90, 3)


def chosen(item: Item) -> bool:
    """Whether an item is asked for."""
    return not WORDS or any(word in item.name for word in WORDS)


def main() -> None:
    began = time.perf_counter()
    target = HERE / "results" / "gpu_minutes.jsonl"

    def write(found: dict[str, Any]) -> None:
        line = json.dumps(found)
        print(line, flush=True)
        if not gpu.TINY:
            with target.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    if not gpu.TINY and not WORDS:
        target.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as models, ThreadPoolExecutor(AT_ONCE) as pool:
        together = [
            Item("environment", 60, ["-c", ENVIRONMENT]),
            part_of_gpu(Path(models), "models", "both", 120),
        ]
        untimed = [*together, *filter(chosen, tests() * (not gpu.TINY))]
        for one in as_completed([pool.submit(run_item, item) for item in untimed]):
            write(one.result())
        for item in items(Path(models)):
            if not chosen(item):
                continue
            if time.perf_counter() - began > 60 * MINUTES:
                write({"item": item.name, "ended": "left out: no time"})
            else:
                write(run_item(item))


if __name__ == "__main__":
    main()
