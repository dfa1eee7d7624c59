"""What a merge changes: into the NF4 weights that the adapter was trained beside, against into the
base's own; and what bfloat16 keeps of a small update.

    python benchmarks/export.py --runs runs/export   # half an hour; trains what is not there

Writes benchmarks/results/export.json.

KDRL and GRPO on the embedded student, 60 steps, five seeds each. Policy and merged models are asked
the same 256 test prompts, 8 samples and a greedy completion each; the merged weights are bfloat16,
computed with in float32. KLs are those that `rlkd export` prints: the model as it is served, in
bfloat16.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from transformers import AutoModelForCausalLM

from rlkd_lab.models import LanguageModel
from rlkd_lab.models.merging import INTO
from rlkd_lab.study import evaluate_target, find_target, settings_of, task_of
from rlkd_lab.study.export import export_run
from rlkd_lab.training import load_or_train, make_config
from rlkd_lab.training.environment import describe_environment

ROOT = Path(__file__).parents[1]
RARELY = {"eval_every": 0, "samples_every": 0, "checkpoint_every": 0}


def merges(run: Path, evaluate: bool) -> dict[str, Any]:
    """A row for a run:

    KLs and rounding of both merges, and accuracy and greedy completions of policy and merges.
    """
    target = find_target(str(run))
    assert target.config is not None
    task, settings = task_of(target.config), settings_of(target.config, split="test", ood=False)
    policy = target.load()
    frames = {"policy": evaluate_target(policy, task, settings)} if evaluate else {}
    row: dict[str, Any] = {"run": run.name}
    for into in INTO:
        with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = export_run(run, f"{place}/merged", merged=True, into=into)
            assert found is not None
            row["trained"] = found.trained
            row[into] = {
                "shift": found.shift,
                "largest": found.largest,
                "kept": found.rounding.kept,
                "error": found.rounding.error,
            }
            if evaluate:
                served = AutoModelForCausalLM.from_pretrained(
                    f"{place}/merged", dtype=torch.float32
                )
                frames[into] = evaluate_target(
                    LanguageModel(served, policy.tokenizer, into, "none"), task, settings
                )
    for name, frame in frames.items():
        own = row if name == "policy" else row[name]
        own["accuracy"] = float(frame.loc[frame["mode"] == "sample", "correct"].mean())
        greedy = frame["mode"] == "greedy"
        if name != "policy":
            own["same_greedy"] = float(
                (
                    frame.loc[greedy, "completion"] == frames["policy"].loc[greedy, "completion"]
                ).mean()
            )
    print(json.dumps(row), flush=True)
    return row


def over_seeds(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means of a method's rows; the difference in accuracy with half of its 95 % interval over
    seeds (Student's t).
    """
    found: dict[str, Any] = {
        "trained": float(np.mean([row["trained"] for row in rows])),
        "accuracy": float(np.mean([row["accuracy"] for row in rows])),
    }
    for into in INTO:
        gaps = np.array([row[into]["accuracy"] - row["accuracy"] for row in rows])
        half = float(stats.t.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / len(gaps) ** 0.5)
        found[into] = {
            key: float(np.mean([row[into][key] for row in rows]))
            for key in ("shift", "same_greedy")
        }
        found[into] |= {"accuracy_minus_policy": float(gaps.mean()), "±": half}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/export"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "export.json")
    given = parser.parse_args()
    rows: dict[str, list[dict[str, Any]]] = {"kdrl": [], "grpo": []}
    for method, own in rows.items():
        for seed in range(5):
            run = given.runs / f"{method}-{seed}"
            load_or_train(make_config(method, steps=60, seed=seed, **RARELY), run)
            own.append(merges(run, evaluate=True))
    small = []
    for rate in ("1e-5", "1e-6"):
        run = given.runs / f"kdrl-lr{rate}"
        load_or_train(
            make_config("kdrl", steps=20, seed=0, settings={"learning_rate": rate}, **RARELY), run
        )
        small.append(merges(run, evaluate=False))
    summary = {method: over_seeds(own) for method, own in rows.items()}
    environment = describe_environment(torch.device("cpu"))
    result = {
        "command": "python benchmarks/export.py",
        **summary,
        "runs": [*rows["kdrl"], *rows["grpo"]],
        "small_updates": small,
        "environment": environment,
    }
    given.out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(summary, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
