"""A run without models: a folder with made-up rows, and a handle that obeys and refuses as a
real one does.
"""

import time
from dataclasses import dataclass

import numpy as np

from rlkd_lab.lab.live.family import place_beside
from rlkd_lab.objectives.settings import nearest
from rlkd_lab.runs import RunFolder
from rlkd_lab.training.loop_knobs import check_knob
from rlkd_lab.training.make_config import make_config


@dataclass
class Status:
    state: str
    step: int
    steps: int
    why: str | None
    where: str


def fake_row(step, rng, reward):
    """A row as the loop writes it, whose reward lies about ``reward``."""
    length = 24 + 6 * (1 - np.exp(-step / 20)) + rng.normal(0, 1.5)
    checking, truncated = 0.15 * length, 0.05 * length * rng.random()
    kl = 0.7 * np.exp(-step / 25) + 0.08 + abs(rng.normal(0, 0.02))
    row = {
        "step": step,
        "reward": float(np.clip(reward + rng.normal(0, 0.07), 0, 1.1)),
        "kl_teacher_rev": kl,
        "kl_teacher_k1": kl + rng.normal(0, 0.06),
        "kl_teacher_k2": kl * 1.2 + rng.normal(0, 0.03),
        "kl_teacher_k3": kl + rng.normal(0, 0.03),
        "completions/mean_length": length,
        "completions/length_working": length - checking - truncated,
        "completions/length_checking": checking,
        "completions/length_truncated": truncated,
        "entropy": 0.6 * np.exp(-step / 40) + 0.1,
        "clip_ratio/low": 0.02 * rng.random(),
        "clip_ratio/high": 0.03 * rng.random(),
        "kl_ref": 0.004 * step,
        "num_tokens": 1200 * step,
        "step_time": 0.5,
        "on_policy": True,
    }
    if step % 10 == 0:
        row |= {
            "eval/accuracy": 0.3 + 0.4 * (1 - np.exp(-step / 30)),
            "eval/accuracy_ood": 0.1 + 0.2 * (1 - np.exp(-step / 30)),
        }
        row |= {
            f"interference/cosine{s}": v + rng.normal(0, 0.05)
            for s, v in (("", 0.1), ("_split_reward", 0.3), ("_split_teacher", 0.6))
        }
        row |= {
            f"interference/sign_conflict{s}": v + rng.normal(0, 0.02)
            for s, v in (("", 0.47), ("_split_reward", 0.42), ("_split_teacher", 0.3))
        }
    return {
        name: float(value) if isinstance(value, np.floating) else value
        for name, value in row.items()
    }


class FakeHandle:
    """What ``start`` would give back; steps are taken by ``advance``."""

    def __init__(
        self,
        path,
        method="kdrl",
        steps=60,
        state="idle",
        where="thread",
        settings=None,
        config=None,
    ):
        self.config = config or make_config(method, steps=steps, settings=settings)
        self.folder = RunFolder.create(
            path, self.config.model_dump(), {"commit": "abc123", "device": "CPU"}
        )
        self.path, self.drive = self.folder.path.resolve(), where
        self.state, self.why, self.where = state, None, where
        self.at, self.ids, self.pending, self.held = 0, 0, [], {}
        self.rng = np.random.default_rng(0)
        self.calls = []

    # --- what the panel uses ----------------------------------------------------------------------

    def status(self):
        return Status(self.state, self.at, self.config.steps, self.why, self.where)

    def request(self, knob, value):
        self._open()
        checked = check_knob(self.config.method, knob, value)
        return self._ask({"knob": knob, "value": checked, "source": "panel"})

    def release(self, knob):
        self._open()
        nearest(knob, self.config.schedules(), "knob")
        return self._ask({"knob": knob, "release": True, "source": "panel"})

    def _ask(self, move):
        self.ids += 1
        self.pending.append({**move, "id": self.ids})
        self.calls.append((move["knob"], "release" if move.get("release") else move["value"]))
        return self.ids

    def _open(self):
        if self.state in ("done", "failed", "lost"):
            raise RuntimeError(f"the run is {self.state}: nothing was changed")

    def begin(self):
        self._open()
        self.state = "running"

    def pause(self):
        if self.state != "running":
            raise RuntimeError(f"the run is {self.state}: only a running one can be paused")
        self.state = "paused"

    def unpause(self):
        self.state = "running"

    def step(self):
        if self.state != "paused":
            raise RuntimeError(f"the run is {self.state}: pause it first")
        self.advance()

    def stop(self):
        self.state = "idle"

    def checkpoint(self):
        if self.state not in ("running", "paused"):
            raise RuntimeError(f"cannot write a checkpoint: the run is {self.state}")
        self.folder.append(
            "events.jsonl",
            {"event": "checkpoint", "step": self.at, "text": f"checkpoint at step {self.at}"},
        )

    def fork(self, kind):
        self.calls.append(("fork", kind))
        self.folder.ask("twin", kind=kind)

    def another(self, config):
        return FakeHandle(place_beside(self.path), state="running", config=config)

    def wait(self, timeout=None):
        return self.folder

    # --- what the loop would do -------------------------------------------------------------------

    def advance(self, count=1, reward=None):
        """Take steps."""
        for _ in range(count):
            self.at += 1
            for move in self.pending:
                self.folder.append(
                    "events.jsonl", {"event": "knob", "step": self.at, **move, "time": time.time()}
                )
                if move.get("release"):
                    self.held.pop(move["knob"], None)
                else:
                    self.held[move["knob"]] = move["value"]
            self.pending = []
            values = {
                name: schedule.at(self.at, self.config.steps)
                for name, schedule in self.config.schedules().items()
            } | self.held
            row = fake_row(
                self.at,
                self.rng,
                reward if reward is not None else 0.35 + 0.4 * (1 - np.exp(-self.at / 25)),
            )
            row |= {
                f"coef/{name}": value for name, value in values.items() if name != "learning_rate"
            } | {"learning_rate": values["learning_rate"]}
            self.folder.append("metrics.jsonl", row)
            if self.at == self.config.steps:
                self.state = "done"

    def refuse(self, knob, value, why):
        """As a loop does that finds out only when it looks at the request."""
        asked = next(move for move in self.pending if move["knob"] == knob)
        self.pending.remove(asked)
        self.folder.append(
            "events.jsonl",
            {
                "event": "refused",
                "step": self.at,
                "knob": knob,
                "value": value,
                "why": why,
                "id": asked["id"],
            },
        )

    def forked(self, kind="untouched", step=None, count=10, seed=1):
        """A fork from ``step`` on, ``count`` steps long."""
        step = self.at if step is None else step
        folder = RunFolder.create(
            self.folder.path / "twins" / f"{kind}-{step}", self.config.model_dump(), {}
        )
        folder.write_json("fork.json", {"step": step, "kind": kind})
        for row in self.folder.rows()[:step]:
            folder.append("metrics.jsonl", row)
        rng = np.random.default_rng(seed)
        for t in range(step + 1, step + 1 + count):
            folder.append("metrics.jsonl", fake_row(t, rng, 0.35 + 0.3 * (1 - np.exp(-t / 25))))
        return folder
