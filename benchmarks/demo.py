"""What the demo costs: time of each method's training and the split of a step, read from the runs
that `make demo` left.

make demo && python benchmarks/demo.py        # writes benchmarks/results/demo.json
"""

from __future__ import annotations

import json
from pathlib import Path

from rlkd_lab.runs import RunFolder

METHODS = ("opd", "grpo", "kdrl", "trrd")
PARTS = (
    "time/rollout",
    "time/reward",
    "time/old",
    "time/teacher",
    "time/divergences",
    "time/reference",
    "time/update",
)


def main() -> None:
    methods, env = {}, {}
    for name in METHODS:
        run = RunFolder.open(Path("runs/demo") / name)
        frame, env = run.metrics(), run.env()
        plain = frame[frame["eval/accuracy"].isna()]  # steps without an evaluation
        methods[name] = {
            "steps": len(frame),
            "seconds": round(float(frame["step_time"].sum()), 1),
            "step_seconds_median": round(float(plain["step_time"].median()), 3),
            "split_seconds_median": {
                part.removeprefix("time/"): round(float(plain[part].median()), 3) for part in PARTS
            },
            "peak_gib": round(float(frame["memory/peak_gib"].max()), 2),
        }
    result = {
        "command": "make demo && python benchmarks/demo.py",
        "total_seconds": round(sum(m["seconds"] for m in methods.values()), 1),
        "methods": methods,
        "environment": env,
    }
    target = Path(__file__).parent / "results" / "demo.json"
    target.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({"total_seconds": result["total_seconds"], "methods": methods}, indent=2))


if __name__ == "__main__":
    main()
