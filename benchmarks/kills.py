"""Runs that are killed again and again, until they are done: are their rows those of a run that was
left alone?

    python benchmarks/kills.py [--kills 200]        # writes benchmarks/results/kills.json

Every method is trained for a few steps with what makes resuming hard: several updates and
minibatches, gradient accumulation, evaluation, a schedule, a knob moved by hand, samples, more
checkpoints than are kept. Each life of a run is a process that goes on with it (``resume``) and
comes to one of these ends:

- ``instant``: SIGKILL at a random moment of it;
- ``operation``: SIGKILL just before its n-th file is opened for writing, renamed or removed in the
  run folder, for a random n;
- ``torn row``, ``torn event``, ``torn weights``, ``torn request``: SIGKILL with a part of a line, a
  tensor file or a knob request written;
- ``terminate``: SIGTERM at a random moment, as a batch system sends it.

When the run is done, its rows and its last weights must be those of the run that was left alone, to
the last bit (one thread, same machine).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # bits, and a process that may be forked
os.environ["HF_HUB_OFFLINE"] = "1"

import torch

from rlkd_lab.commands.common import ended_like_ctrl_c
from rlkd_lab.models import default_device
from rlkd_lab.objectives import METHODS
from rlkd_lab.runs import RunFolder, first_difference
from rlkd_lab.runs.tail import Tail
from rlkd_lab.training import RunConfig, make_config, resume, state
from rlkd_lab.training.environment import describe_environment
from rlkd_lab.training.folders import create
from rlkd_lab.training.setup import Row

ENDS = (
    "instant",
    "operation",
    "torn row",
    "torn event",
    "torn weights",
    "torn request",
    "terminate",
)
STEPS = 4
LIVES = 30
"""After so many kills a run is left alone."""
COMMON: dict[str, Any] = {
    "steps": STEPS,
    "prompts_per_step": 2,
    "group_size": 4,
    "max_new_tokens": 24,
    "difficulty": (2, 2),
    "traces": 24,
    "micro_batch": 2,
    "minibatches": 2,
    "eval_every": 2,
    "eval_prompts": 4,
    "samples_every": 2,
    "checkpoint_every": 1,
    "keep_checkpoints": 2,
    "resample_rounds": 2,
}


def config_of(method: str) -> RunConfig:
    """A run of a few steps with a schedule of the learning rate."""
    own = (
        {"teacher": "student"} if method == "rft" else {"options": {"keep_traces": "all"}}
    )  # brief answers of the teacher are rarely right
    return make_config(method, settings={"learning_rate": "linear:0.002:0.001"}, **COMMON, **own)


def hand(folder: RunFolder, row: Row) -> None:
    """Who moves a knob: temperature at step 3, asked for after step 1; after step 2 if the
    request was lost with the process.
    """
    if row["step"] <= 2 and not any(
        request.get("request") == "knob" for request in Tail(folder.path / "requests.jsonl").read()
    ):
        folder.ask("knob", knob="temperature", value=0.9, at=3)


def train(path: Path) -> None:
    """What a life does."""
    torch.set_num_threads(1)
    resume(path, on_step=lambda loop, row: hand(loop.folder, row))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before_operation(path: Path, number: int) -> None:
    """Die before the ``number``-th change of something in the folder."""
    left = [number]
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT

    def listen(event: str, args: tuple[Any, ...]) -> None:
        changes = (event == "open" and isinstance(args[2], int) and args[2] & writing) or event in (
            "os.rename",
            "os.remove",
            "os.rmdir",
            "os.mkdir",
            "os.truncate",
        )
        if changes and str(path) in str(args[0]):
            left[0] -= 1
            if left[0] == 0:
                die()

    sys.addaudithook(listen)


def within_a_line(name: str, number: int, draw: random.Random) -> None:
    """Die with a part of the ``number``-th line of a file written."""
    left, append = [number], RunFolder.append

    def torn(self: RunFolder, to: Any, row: dict[str, Any]) -> None:
        if to == name:
            left[0] -= 1
            if left[0] == 0:
                line = json.dumps(row).encode()
                with (self.path / name).open("ab") as file:
                    file.write(line[: draw.randrange(len(line))])
                die()
        append(self, to, row)

    RunFolder.append = torn  # type: ignore[method-assign]


def within_the_weights(number: int, draw: random.Random) -> None:
    """Die with a part of the ``number``-th checkpoint's moments written."""
    left, save = [number], state.save_file

    def torn(tensors: Any, path: Path) -> None:
        save(tensors, path)
        left[0] -= 1
        if left[0] == 0:
            os.truncate(path, draw.randrange(path.stat().st_size))
            die()

    state.save_file = torn  # type: ignore[assignment]


def within_a_request(draw: random.Random) -> None:
    """Die with a part of a knob request written."""
    ask = RunFolder.ask

    def torn(self: RunFolder, request: str, **what: Any) -> int:
        if request == "knob":
            line = json.dumps({"id": 1, "request": request, **what}).encode()
            with (self.path / "requests.jsonl").open("ab") as file:
                file.write(line[: draw.randrange(1, len(line))])
            die()
        return ask(self, request, **what)

    RunFolder.ask = torn  # type: ignore[method-assign]


def life(path: Path, end: str | None, number: int, seconds: float, draw: random.Random) -> bool:
    """One process that goes on with the run; whether it came to its end by itself.

    ``seconds``: how long an undisturbed life takes.
    """
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # warnings of going back
            if end == "operation":
                before_operation(path, number)
            elif end in ("torn row", "torn event"):
                within_a_line(
                    "metrics.jsonl" if end == "torn row" else "events.jsonl", number, draw
                )
            elif end == "torn weights":
                within_the_weights(number, draw)
            elif end == "torn request":
                within_a_request(draw)
            with ended_like_ctrl_c():
                train(path)
            os._exit(0)
        except KeyboardInterrupt:
            os._exit(3)
        except BaseException as error:
            (path.parent / "error.txt").write_text(
                f"{type(error).__name__}: {error}", encoding="utf-8"
            )
            os._exit(1)
    if end in ("instant", "terminate"):
        time.sleep(draw.uniform(0.0, seconds))
        os.kill(child, signal.SIGKILL if end == "instant" else signal.SIGTERM)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 1:
        raise SystemExit(
            f"{path}, after {end}: {(path.parent / 'error.txt').read_text(encoding='utf-8')}"
        )
    return os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0


def weights(folder: RunFolder) -> str:
    """Digest of the last adapter."""
    return str(
        json.loads((folder.checkpoints()[-1] / "state.json").read_text(encoding="utf-8"))["sha256"][
            "adapter_model.safetensors"
        ]
    )


def killed(place: Path, methods: list[str], kills: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """A row a run, until so many kills have struck: what befell it and how it differs from the
    one that was left alone.
    """
    draw, left, turn = random.Random(seed), kills, 0
    alone: dict[str, tuple[RunFolder, float]] = {}
    while left > 0:
        method = methods[turn % len(methods)]
        if method not in alone:
            path = create(config_of(method), place / method / "alone").path
            began = time.perf_counter()
            assert life(path, None, 0, 0.0, draw)
            alone[method] = (RunFolder.open(path), time.perf_counter() - began)
        expected, seconds = alone[method]
        path = create(config_of(method), place / method / f"killed {turn}").path
        struck: Counter[str] = Counter()
        for _ in range(LIVES):
            end = draw.choice(ENDS) if left > 0 else None
            over = life(
                path, end, draw.randrange(1, 100 if end == "operation" else 3), seconds, draw
            )
            if over:
                break
            struck[str(end)] += 1
            left -= 1
        else:
            assert life(path, None, 0, 0.0, draw)
        run = RunFolder.open(path)
        difference, largest = first_difference(run.rows(), expected.rows())
        steps = [row["step"] for row in run.rows()]
        yield {
            "method": method,
            "kills": dict(struck),
            "rows lost": len(set(range(1, STEPS + 1)) - set(steps)),
            "rows doubled": len(steps) - len(set(steps)),
            "difference": difference
            if difference
            else None
            if weights(run) == weights(expected)
            else "other weights",
            "largest": largest,
            "done": run.status()["state"] == "done",
        }
        shutil.rmtree(path)
        turn += 1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    began, rows = time.time(), []
    with tempfile.TemporaryDirectory() as place:
        for row in killed(Path(place), list(METHODS), asked.kills, asked.seed):
            rows.append(row)
            print(f"{sum(sum(one['kills'].values()) for one in rows)} kills: {row}", flush=True)
    ends = Counter[str]()
    for row in rows:
        ends.update(row["kills"])
    result = {
        "command": f"python benchmarks/kills.py --kills {asked.kills} --seed {asked.seed}",
        "kills": sum(ends.values()),
        "by end": dict(ends),
        "runs": len(rows),
        "methods": len({row["method"] for row in rows}),
        "rows lost": sum(row["rows lost"] for row in rows),
        "rows doubled": sum(row["rows doubled"] for row in rows),
        "runs that differ": sum(row["difference"] is not None for row in rows),
        "not done": sum(not row["done"] for row in rows),
        "seconds": time.time() - began,
        "environment": describe_environment(default_device()),
    }
    (Path(__file__).parent / "results" / "kills.json").write_text(
        json.dumps(result, indent=2) + "\n", encoding="utf-8"
    )
    print(
        json.dumps({key: value for key, value in result.items() if key != "environment"}, indent=2)
    )


if __name__ == "__main__":
    main()
