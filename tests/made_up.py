"""Made-up parts of a study whose truth is known."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd

from rlkd_lab.study.parts import Part

METHOD = {"kdrl_k3": "kdrl", "kdrl_advantage_annealed": "kdrl_advantage"}


def part(arms, seeds=5, noise=0.002, curves=None, levels=None, chances=None, steps=60):
    """A part in which each arm has the given accuracy (and length), with a little noise over seeds.

    Args:
        arms: name → accuracy, or → {column: value}.
        curves: arm → {metric: function of step}.
    """
    rng = np.random.default_rng(0)
    rows, lines, numbers = [], [], []
    for arm, values in arms.items():
        given = values if isinstance(values, dict) else {"id avg": values}
        method = METHOD.get(arm, arm.split(",")[0])
        knobs = dict(text.split("=") for text in arm.split(",")[1:])
        given = {"id length": 50.0, "ood avg": 0.3, **given}
        for seed in range(seeds):
            wiggle = noise * rng.standard_normal()
            row = {
                "arm": arm,
                "seed": seed,
                "method": method,
                **{name: value * (1 + wiggle) for name, value in given.items()},
            }
            row |= {
                name: float(value) if value[0].isdigit() else value for name, value in knobs.items()
            }
            rows.append(row | {f"id chance@{k}": chance for k, chance in (chances or {}).items()})
            for step in range(1, steps + 1):
                line = {"arm": arm, "seed": seed, "method": method, "step": step}
                lines.append(
                    line
                    | {
                        name: f(step) * (1 + wiggle)
                        for name, f in (curves or {}).get(arm, {}).items()
                    }
                )
            for difficulty, value in (levels or {}).get(arm, {}).items():
                numbers.append(
                    {
                        "arm": arm,
                        "seed": seed,
                        "set": "id",
                        "difficulty": difficulty,
                        "measure": "avg",
                        "value": value * (1 + wiggle),
                        "low": 0,
                        "high": 1,
                    }
                )
    empty = pd.DataFrame(
        columns=["arm", "seed", "set", "difficulty", "measure", "value", "low", "high"]
    )
    return Part(
        pd.DataFrame(rows), pd.DataFrame(lines), pd.DataFrame(numbers) if numbers else empty
    )


def constant(value):
    return lambda step: value


def rising(rate, top=0.9):
    return lambda step: min(top, rate * step)


def at_end(value):
    """An evaluation at the last step alone."""
    return lambda step: value if step == 60 else math.nan


def betas(best, height_of_best=0.7):
    """Fixed coefficients of which ``best`` ends highest."""
    values = (0.01, 0.1, 1.0)
    names = {beta: f"kdrl,kd_coef={beta}" for beta in values}
    height = {beta: height_of_best if beta == best else 0.5 for beta in values}
    return part(
        {names[beta]: height[beta] for beta in values},
        curves={
            names[beta]: {"eval/accuracy": at_end(height[beta]), "coef/kd_coef": constant(beta)}
            for beta in values
        },
        noise=1e-6,
    )


def core(**changes):
    """A core in which every claim about it holds, but for what is changed: accuracies and
    lengths by arm, or ``curves``, ``chances``.
    """
    accuracy = {
        "kdrl": 0.80,
        "opd": 0.75,
        "grpo": 0.70,
        "sft": 0.60,
        "kdrl_k3": 0.60,
        "kdrl_annealed": 0.90,
        "kdrl_masked": 0.80,
        "trrd": 0.75,
    }
    length = {
        "kdrl": 60.0,
        "opd": 80.0,
        "grpo": 40.0,
        "sft": 60.0,
        "kdrl_k3": 60.0,
        "kdrl_annealed": 60.0,
        "kdrl_masked": 50.0,
        "trrd": 60.0,
    }
    passes = {"kdrl": (0.8, 0.85), "opd": (0.75, 0.95), "trrd": (0.75, 0.95)}
    arms = {
        arm: {"id avg": accuracy[arm], "ood avg": accuracy[arm] / 2, "id length": length[arm]}
        for arm in accuracy
    }
    for arm, (one, many) in passes.items():
        arms[arm] |= {"id pass@1": one, "id pass@4": many, "id pass@32": many}
    for arm, values in changes.get("arms", {}).items():
        arms[arm] |= values
    speed = {"grpo": rising(0.015), "kdrl": rising(0.03)}
    curves = {arm: {"accuracy": f} for arm, f in speed.items()}
    for arm in accuracy:
        curves.setdefault(arm, {})
        curves[arm] |= {
            "eval/accuracy": at_end(accuracy[arm]),
            "completions/mean_length": constant(length[arm]),
        }
    for arm, values in changes.get("curves", {}).items():
        curves[arm] |= values
    return part(
        arms,
        curves=curves,
        chances=changes.get("chances", {1: 0.001, 4: 0.004, 32: 0.03}),
        noise=changes.get("noise", 0.002),
        seeds=changes.get("seeds", 5),
    )


def costs(trrd=1.15):
    """Seconds of a step of three methods, whose completions are equally long."""
    seconds = {"grpo": 1.0, "kdrl": 1.15, "trrd": trrd}
    curves = {
        arm: {"train_time": constant(one), "completions/mean_length": constant(30.0)}
        for arm, one in seconds.items()
    }
    return part(dict.fromkeys(seconds, 0.5), curves=curves, steps=11)


CHANCES = {1: 0.001, 4: 0.004, 32: 0.03}


def logic(order=("trrd", "kdrl", "grpo", "opd"), lead_grows=True, chances=None, **more):
    """A part logic in which the arms end in this order; ``more`` holds further arms."""
    accuracy = dict(zip(order, (0.9, 0.8, 0.7, 0.6), strict=True))
    accuracy |= {"opd_then_rl": 0.8, "kdrl_advantage": 0.8, "kdrl_advantage_annealed": 0.8} | more
    passes = {"opd": 0.95, "trrd": 0.95, "kdrl_advantage": 0.85}
    arms = {
        arm: {"id avg": value, "id pass@1": value}
        | {f"id pass@{k}": passes.get(arm, 0.9) for k in (4, 32)}
        for arm, value in accuracy.items()
    }
    small, large = (0.05, 0.3) if lead_grows else (0.3, 0.05)
    levels = {name: {"2": 0.5, "3": 0.5, "4": 0.5} for name in ("grpo", "kdrl")}
    levels["trrd"] = {"2": 0.5, "3": 0.5 + small, "4": 0.5 + large}
    made = part(arms, levels=levels, chances=chances or CHANCES)
    return replace(made, signs=conflicts(0.45, 0.3, 0.2))


def conflicts(grpo, kdrl, trrd, floor=0.1):
    """A table of sign conflicts with OPD, by arm, with a little noise over five seeds."""
    values = {"grpo": grpo, "kdrl_advantage": kdrl, "trrd": trrd, "opd": floor}
    rows = [
        {"arm": arm, "seed": seed, "other": (seed + 1) % 5, "conflict": value + 0.001 * seed}
        for arm, value in values.items()
        for seed in range(5)
    ]
    return pd.DataFrame(rows)


TRUE = {
    "core": core(),
    "betas": betas(0.01),
    "cost": costs(),
    "logic_betas": betas(1.0, height_of_best=0.8),
    "alphas": part({f"trrd,trrd_alpha={alpha}": 0.7 for alpha in (0.4, 0.5, 0.6)}),
    "logic": logic(),
}
"""A study in which every claim holds."""


def written(folder, part, **columns):
    """The tables of a part, as a sweep writes them."""
    folder.mkdir(parents=True)
    part.runs.assign(
        **{
            "diverged": False,
            "touched": False,
            "worker_gib": 0.5,
            "worker_seconds": 180.0,
            **columns,
        }
    ).to_csv(folder / "runs.csv", index=False)
    part.curves.to_parquet(folder / "curves.parquet")
    part.levels.to_csv(folder / "levels.csv", index=False)
    if part.signs is not None:
        part.signs.to_csv(folder / "signs.csv", index=False)
    session = {"began": 0, "seconds": 3600, "workers": 2, "runs": 40, "device": "CPU (made up)"}
    (folder / "sessions.jsonl").write_text(json.dumps(session) + "\n")
    return folder
