"""Draw figures/hardware.png and write the table of docs/speed.md, from benchmarks/results/.

A device without results has no column. One sentence below the table names what was not measured.

    python benchmarks/hardware.py        # writes the figure, and the table in docs/speed.md
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MARKS = ("<!-- hardware -->\n", "<!-- /hardware -->\n")
NOT = "–"
COLOURS = {
    "ours": "#0072B2",
    "fast": "#0072B2",
    "lean": "#56B4E9",
    "continuous": "#009E73",
    "trl": "#D55E00",
    "hf": "#D55E00",
    "dense": "#999999",
}
PARTS = {
    "rollout": "#0072B2",
    "reward": "#F0E442",
    "teacher": "#009E73",
    "old": "#56B4E9",
    "update": "#E69F00",
    "the rest": "#CCCCCC",
}


def load(name: str) -> dict[str, Any]:
    """A results file, or nothing where there is none."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def times(value: dict[str, float] | None) -> str:
    """A ratio with its range."""
    return (
        NOT if not value else f"**{value['median']:.1f}×** ({value['min']:.1f}–{value['max']:.1f})"
    )


def of_kernels(
    found: dict[str, Any], quantity: str, measure: str, other: str = "ours_over_trl"
) -> str:
    """Ours over TRL's kernel, or over another way, at the largest number of tokens at which
    both ran.
    """
    entries = [
        entry
        for entry in found.get("results", [])
        if entry["quantity"] == quantity and other in entry
    ]
    if not entries:
        return NOT
    largest = max(entries, key=lambda entry: entry["tokens"])
    value = largest[other][measure]
    return (
        f"{value['median']:.2f} ({value['min']:.2f}–{value['max']:.2f}), {largest['tokens']:,}"
        " tokens"
    )


def of_sampling(sampled: dict[str, dict[str, Any]], key: str) -> str:
    """`generate` over an engine, for each number of completions."""
    return (
        "; ".join(
            f"{times(found[key])} at {rows}" for rows, found in sampled.items() if key in found
        )
        or NOT
    )


def column(
    suffix: str, found: dict[str, Any], whole: str, lean: str, sampled: dict[str, dict[str, Any]]
) -> dict[str, str]:
    """Return what is known of a device, a text for each row of the table.

    ``found`` is its benchmark of steps, in which ``whole`` and ``lean`` are ratios to TRL's step.
    """
    logprobs, memory = load(f"logprobs{suffix}"), load(f"memory{suffix}")
    peaks = [side["peak_gib"] for side in found.get("steps", {}).values()]
    after = [times(found[key]) for key in ("kdrl_over_grpo", "trrd_over_grpo") if key in found]
    return {
        "whole step of TRL's `GRPOTrainer` over ours, `mode=fast`": times(found.get(whole)),
        "whole step of TRL's `GRPOTrainer` over ours, `mode=lean`": times(found.get(lean)),
        "peak memory in GiB of TRL, of ours in `fast` and in `lean`": ", ".join(
            f"{peak:.1f}" for peak in peaks
        )
        or NOT,
        "sampling by `generate` over `engine=fast`": of_sampling(sampled, "generate_over_ours"),
        "sampling by `generate` over `engine=continuous`": of_sampling(
            sampled, "generate_over_continuous"
        ),
        "step without sampling, KDRL and TRRD over GRPO": ", ".join(after) or NOT,
        "log p and entropy: ours over TRL's kernel, time": of_kernels(logprobs, "logps", "seconds"),
        "log p and entropy: ours over TRL's kernel, memory": of_kernels(
            logprobs, "logps", "peak_gib"
        ),
        "exact reverse KL: ours over TRL's kernel, time": of_kernels(
            logprobs, "reverse_kl", "seconds"
        ),
        "exact reverse KL: ours over TRL's kernel, memory": of_kernels(
            logprobs, "reverse_kl", "peak_gib"
        ),
        "log p and entropy: ours over all logits at once, time": of_kernels(
            logprobs, "logps", "seconds", "ours_over_dense"
        ),
        "log p and entropy: ours over all logits at once, memory": of_kernels(
            logprobs, "logps", "peak_gib", "ours_over_dense"
        ),
        "exact reverse KL: ours over all logits at once, time": of_kernels(
            logprobs, "reverse_kl", "seconds", "ours_over_dense"
        ),
        "exact reverse KL: ours over all logits at once, memory": of_kernels(
            logprobs, "reverse_kl", "peak_gib", "ours_over_dense"
        ),
        "planned against measured peak memory, largest error": f"{memory['largest_error']:.1%} of"
        f" {len(memory['rows'])} cases"
        if memory
        else NOT,
    }


def table() -> str:
    """Return the measurements in Markdown: a row each, a column for each device with results."""
    step, gpu = load("step"), load("gpu")
    columns = {}
    if step:
        sampled = {"128": {"generate_over_ours": step["ratio_sampling_vs_generate"]}}
        name = f"{step['environment']['device']}, two cores, embedded pair"
        columns[name] = column("", step, "ratio_vs_trl", "", sampled)
    if gpu:
        name = f"{gpu['environment']['device']}, 1.5B ← 7B shapes"
        columns[name] = column("-gpu", gpu, "trl_over_fast", "trl_over_lean", gpu["sampling"])
    names = list(column("", {}, "", "", {}))
    known = {name: [cells[name] for cells in columns.values()] for name in names}
    rows = {name: cells for name, cells in known.items() if any(cell != NOT for cell in cells)}
    missing = [name for name in names if name not in rows] + ([] if gpu else ["anything on a GPU"])
    lines = [
        f"| | {' | '.join(columns)} |",
        f"|---|{'---|' * len(columns)}",
        *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()),
    ]
    lines += ["", f"Not measured: {'; '.join(missing)}."] if missing else []
    return "\n".join(lines) + "\n"


def draw_memory(axes: Axes, found: dict[str, Any]) -> None:
    """Planned against measured, a point a case."""
    rows = found["rows"]
    measured, planned = ([row[key] / 2**30 for row in rows] for key in ("measured", "predicted"))
    axes.plot([0, max(measured) * 1.05], [0, max(measured) * 1.05], color="#999999", linewidth=1)
    axes.scatter(measured, planned, color=COLOURS["ours"], s=18)
    axes.set(
        xlabel="measured peak, GiB",
        ylabel="planned, GiB",
        title=f"{len(rows)} models and settings",
        xlim=(0, None),
        ylim=(0, None),
    )


def draw_lengths(axes: Axes, found: dict[str, Any]) -> None:
    """Measured memory against the length of completions, a line for each micro-batch; crosses:
    planned.
    """
    base = found["base"]
    lines: dict[int, list[tuple[int, float, float]]] = {}
    for row in found["rows"]:
        if set(row["change"]) <= {"tokens", "micro_batch"}:
            case = base | row["change"]
            lines.setdefault(case["micro_batch"], []).append(
                (case["tokens"], row["measured"] / 2**30, row["predicted"] / 2**30)
            )
    for (batch, points), style in zip(sorted(lines.items()), ("-", "--", ":"), strict=False):
        length, measured, planned = zip(*sorted(points), strict=True)
        axes.plot(length, measured, style, color=COLOURS["ours"], label=f"micro-batch {batch}")
        axes.plot(
            length,
            planned,
            "x",
            color="black",
            markersize=5,
            label="planned" if batch == min(lines) else None,
        )
    axes.set(
        xlabel="tokens of a completion",
        ylabel="peak, GiB",
        title="memory and length",
        ylim=(0, None),
    )
    axes.legend(frameon=False)


def draw_split(axes: Axes, sides: dict[str, dict[str, float]]) -> None:
    """Seconds of a step by part, a bar a side."""
    for place, seconds in enumerate(sides.values()):
        parts = {part: seconds.get(f"time/{part}", 0.0) for part in PARTS if part != "the rest"}
        parts["the rest"] = max(seconds["step_time"] - sum(parts.values()), 0.0)
        left = 0.0
        for part, length in parts.items():
            axes.barh(
                place, length, left=left, color=PARTS[part], label=part if place == 0 else None
            )
            left += length
    axes.set_yticks(range(len(sides)), list(sides))
    axes.invert_yaxis()
    axes.set(xlabel="seconds of a step (median)", title="where a step's time goes")
    axes.legend(frameon=False, fontsize=7)


def draw_speed(axes: Axes, sampling: dict[str, dict[str, Any]]) -> None:
    """Tokens per second by engine and number of completions."""
    engines = ("hf", "fast", "continuous")
    for shift, engine in enumerate(engines):
        axes.bar(
            [x + shift / 4 for x in range(len(sampling))],
            [found[engine]["tokens_per_second"] for found in sampling.values()],
            width=0.23,
            color=COLOURS[engine],
            label=engine,
        )
    axes.set_xticks(
        [x + 0.25 for x in range(len(sampling))], [f"{rows} completions" for rows in sampling]
    )
    axes.set(ylabel="tokens per second", title="sampling")
    axes.legend(frameon=False)


def draw_kernels(axes: Axes, found: dict[str, Any], measure: str, unit: str) -> None:
    """Reverse KL against the number of tokens."""
    entries = [entry for entry in found["results"] if entry["quantity"] == "reverse_kl"]
    for way in ("ours", "trl", "dense"):
        points = [
            (entry["tokens"], entry[way][measure])
            for entry in entries
            if isinstance(entry[way], dict)
        ]
        axes.plot(*zip(*points, strict=True), marker="o", color=COLOURS[way], label=way)
    axes.set(xlabel="tokens", ylabel=unit, title="exact reverse KL, V = 151,936", ylim=(0, None))
    axes.legend(frameon=False)


def main() -> None:
    from rlkd_lab.plots import save_figure

    step, gpu = load("step"), load("gpu")
    panels: list[tuple[Any, tuple[Any, ...]]] = []
    for suffix in ("", "-gpu"):
        memory, logprobs = load(f"memory{suffix}"), load(f"logprobs{suffix}")
        panels += [(draw_memory, (memory,)), (draw_lengths, (memory,))] if memory else []
        panels += (
            [
                (draw_kernels, (logprobs, "seconds", "seconds")),
                (draw_kernels, (logprobs, "peak_gib", "GiB")),
            ]
            if logprobs.get("results")
            else []
        )
    if step:
        panels.append(
            (
                draw_split,
                ({"TRL, GRPO": step["seconds"]["trl"], "ours, GRPO": step["seconds"]["grpo"]},),
            )
        )
    if gpu:
        panels += [(draw_split, (gpu["steps"],)), (draw_speed, (gpu["sampling"],))]
    columns = min(3, len(panels))
    figure = Figure(
        figsize=(4.2 * columns, 3.2 * -(-len(panels) // columns)),
        facecolor="white",
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    grid = list(figure.subplots(-(-len(panels) // columns), columns, squeeze=False).flat)
    for axes, (draw, arguments) in zip(grid, panels, strict=False):
        draw(axes, *arguments)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    save_figure(
        figure,
        ROOT / "figures" / "hardware.png",
        [],
        results=sorted(path.name for path in RESULTS.glob("*.json")),
    )
    page = ROOT / "docs" / "speed.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(MARKS[0])
    page.write_text(
        before + MARKS[0] + "\n" + table() + "\n" + MARKS[1] + rest.partition(MARKS[1])[2],
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
