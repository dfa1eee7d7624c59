"""Run folders with made-up rollouts, as the loop records them."""

import json

import numpy as np
import pandas as pd

from rlkd_lab.objectives import METHODS
from rlkd_lab.objectives.methods import schedules_for
from rlkd_lab.runs import RunFolder


def rollout(seed=0, groups=3, size=4, longest=9, probe=False, texts="24+;=", detailed=2):
    """A frame of completions of different lengths; the first of the first ``detailed`` groups
    with alternatives.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(groups * size):
        length = int(rng.integers(2, longest + 1))
        tokens = [texts[int(k)] for k in rng.integers(0, len(texts), length - 1)] + ["<eos>"]
        logps, theirs = (-rng.exponential(1.0, length) for _ in range(2))
        row = {
            "prompt": f"{i // size}+1?",
            "answer": "7",
            "completion": "".join(tokens[:-1]),
            "reward": float(rng.choice([0.0, 0.1, 1.1])),
        }
        row |= {
            "correct": row["reward"] > 1,
            "parts": json.dumps(
                {"accuracy": float(row["reward"] > 1), "format": float(row["reward"] > 0)}
            ),
        }
        row |= {
            "group": i // size,
            "finished": i != 1,
            "ids": list(range(length)),
            "tokens": tokens,
        }
        row |= {
            "logps": logps.tolist(),
            "teacher_logps": theirs.tolist(),
            "ref_logps": (-rng.exponential(1.0, length)).tolist(),
        }
        row |= {
            name: rng.exponential(1.0, length).tolist()
            for name in ("entropy", "kl_teacher_rev", "kl_teacher_fwd")
        }
        for prefix in ("", "teacher_"):
            has = probe or (i % size == 0 and i // size < detailed)
            row[f"{prefix}top_tokens"] = [["2", "Q"]] * length if has else None
            row[f"{prefix}top_ids"] = [[2, 3]] * length if has else None
            row[f"{prefix}top_logps"] = (
                [[float(np.log(0.75)), float(np.log(0.25))]] * length if has else None
            )
        rows.append(row)
    return pd.DataFrame(rows)


def run_folder(path, method="trrd", frames=None, probes=None, coefs=None, written=True, **config):
    """A run folder with rollouts (and probes) by step, and the metrics rows that belong to them."""
    defaults = {
        "method": method,
        "seed": 0,
        "reward": {"accuracy": 1.0, "format": 0.1},
        "max_new_tokens": 20,
        "options": {},
    }
    folder = RunFolder.create(path, {**defaults, **config}, {})
    for kind, given in (
        ("step", {1: rollout()} if frames is None else frames),
        ("probe", probes or {}),
    ):
        for step, frame in given.items():
            frame.to_parquet(folder.path / "samples" / f"{kind}_{step:06d}.parquet")
    values = {name: schedule.at(1, 10) for name, schedule in schedules_for(method).items()} | (
        coefs or {}
    )
    assert set(values) == set(METHODS[method].coefs)
    for step in range(1, max({1} | set(frames or {}) | set(probes or {})) + 1) if written else []:
        folder.append(
            "metrics.jsonl",
            {
                "step": step,
                "coef/temperature": 1.0,
                **{f"coef/{name}": value for name, value in values.items()},
            },
        )
    return folder
