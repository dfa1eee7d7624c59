"""Draw figures/hardware.png and write the table of docs/speed.md, from benchmarks/results/.

A device without results has no column. One sentence below the table names what was not measured.

    python benchmarks/hardware.py        # writes the figure, and the table in docs/speed.md
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlkd_lab.plots import save_figure
from rlkd_lab.plots.styles import FULL, finish, in_print, white_figure

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MARKS = ("<!-- hardware -->\n", "<!-- /hardware -->\n")
NOT = "–"
WAYS = {
    "ours": ("ours", "#0072B2"),
    "trl": ("TRL's", "#D55E00"),
    "dense": ("all logits\nat once", "#999999"),
    "hf": ("generate", "#D55E00"),
    "fast": ("fast", "#0072B2"),
    "continuous": ("continuous", "#56B4E9"),
}
"""Title and colour of each kernel and sampling engine."""
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
    missing = [name for name in names if name not in rows] + (
        [] if gpu else ["these rows on a GPU"]
    )
    lines = [
        f"| | {' | '.join(columns)} |",
        f"|---|{'---|' * len(columns)}",
        *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()),
    ]
    lines += ["", f"Not measured: {'; '.join(missing)}."] if missing else []
    return "\n".join(lines) + "\n"


def real_model() -> str:
    """Return the measurements of a real model in Markdown, or nothing without them."""
    found = load("smollm2")
    if not found:
        return ""
    ours, trl = found["seconds"]["grpo"], found["seconds"]["trl"]
    held = found["resident GiB after a step"]
    asked = found["setting"]
    count = int(asked["prompts_per_step"]) * int(asked["group_size"])
    lines = [
        f"\nSmolLM2-135M-Instruct in NF4, {found['environment']['device']}, two cores: a GRPO step"
        f" of {count} completions of at most {asked['max_new_tokens']} tokens. TRL's step over"
        f" ours: {times(found['ratio_vs_trl'])}, {asked['repeats']} pairs.\n",
        "| | ours | TRL |",
        "|---|---|---|",
        f"| seconds of a step | {ours['step_time']:.1f} | {trl['step_time']:.1f} |",
        f"| sampling | {ours['time/rollout']:.1f} | {trl['time/rollout']:.1f} |",
        f"| forward and backward passes | {ours['time/old'] + ours['time/update']:.1f} | |",
        f"| memory of the process, GiB | {held['grpo']:.1f} | {held['trl']:.1f} |",
    ]
    return "\n".join(lines) + "\n"


def draw_memory(axes: Axes, found: dict[str, Any]) -> None:
    """Planned against measured, a point a case."""
    rows = found["rows"]
    measured, planned = ([row[key] / 2**30 for row in rows] for key in ("measured", "predicted"))
    axes.plot([0, max(measured) * 1.05], [0, max(measured) * 1.05], color="#999999", linewidth=1)
    axes.plot(measured, planned, "x", color="black", markersize=5)
    axes.set(
        xlabel="measured peak, GiB",
        ylabel="planned peak, GiB",
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
        axes.plot(length, measured, style, color=WAYS["ours"][1], label=f"of {batch}")
        axes.plot(length, planned, "x", color="black", markersize=5)
    axes.set(
        xlabel="tokens of a completion",
        ylabel="measured peak, GiB",
        title="memory by micro-batch",
        ylim=(0, None),
    )


def draw_split(axes: Axes, sides: dict[str, dict[str, float]]) -> None:
    """Seconds of a step by part, a bar a side; a part has its name where it is longest."""
    longest: dict[str, tuple[float, float, int]] = {}
    for place, seconds in enumerate(sides.values()):
        parts = {part: seconds.get(f"time/{part}", 0.0) for part in PARTS if part != "the rest"}
        parts["the rest"] = max(seconds["step_time"] - sum(parts.values()), 0.0)
        left = 0.0
        for part, length in parts.items():
            axes.barh(place, length, left=left, color=PARTS[part], edgecolor="white", height=0.7)
            longest[part] = max(longest.get(part, (0.0, 0.0, 0)), (length, left, place))
            left += length
    whole = max(seconds["step_time"] for seconds in sides.values())
    for part, (length, left, place) in longest.items():
        if length > 0.08 * whole:
            colour = "white" if part == "rollout" else "black"
            axes.text(left + length / 2, place, part, ha="center", va="center", color=colour)
    axes.set_yticks(range(len(sides)), list(sides))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="seconds of a step", title="where a step's time goes")


def draw_speed(axes: Axes, sampling: dict[str, dict[str, Any]]) -> None:
    """Tokens per second by engine and number of completions."""
    for shift, engine in enumerate(("hf", "fast", "continuous")):
        name, colour = WAYS[engine]
        axes.bar(
            [x + shift / 4 for x in range(len(sampling))],
            [found[engine]["tokens_per_second"] for found in sampling.values()],
            width=0.23,
            color=colour,
            label=name,
        )
    axes.set_xticks(
        [x + 0.25 for x in range(len(sampling))], [f"{rows} completions" for rows in sampling]
    )
    axes.set(ylabel="tokens per second", title="sampling")


def draw_kernels(axes: Axes, found: dict[str, Any], measure: str, unit: str) -> None:
    """Reverse KL against the number of tokens; bars where there is one number of tokens."""
    entries = [entry for entry in found["results"] if entry["quantity"] == "reverse_kl"]
    there = {
        way: {entry["tokens"]: entry[way][measure] for entry in entries if entry.get(way)}
        for way in ("ours", "trl", "dense")
    }
    if len(entries) > 1:
        for way, points in there.items():
            name, colour = WAYS[way]
            axes.plot(list(points), list(points.values()), "o-", color=colour, label=name)
        axes.set(xlabel="tokens", ylabel=unit, title="exact reverse KL", ylim=(0, None))
        return
    for way, points in there.items():
        name, colour = WAYS[way]
        bars = axes.barh([name], list(points.values()), color=colour, height=0.7)
        axes.bar_label(bars, fmt="{:.1f}", padding=2)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.grid(axis="y", visible=False)
    axes.set(xlabel=unit, title=f"exact KL, {entries[0]['tokens']:,} tokens")


@in_print
def draw(panels: list[tuple[Any, tuple[Any, ...]]], caption: str) -> Figure:
    """Return the figure: three panels in a row, of which the last one fills the row."""
    rows = -(-len(panels) // 3)
    figure = white_figure(FULL, 2.0 * rows + 0.3, layout="constrained")
    grid = figure.add_gridspec(rows, 3)
    for number, (function, arguments) in enumerate(panels):
        row, column = divmod(number, 3)
        last = number == len(panels) - 1
        function(figure.add_subplot(grid[row, column : 3 if last else column + 1]), *arguments)
    return finish(figure, None, caption)


def main() -> None:
    step, gpu = load("step"), load("gpu")
    panels: list[tuple[Any, tuple[Any, ...]]] = []
    drawn = ["step", "gpu"]
    for suffix in ("", "-gpu"):
        memory, logprobs = load(f"memory{suffix}"), load(f"logprobs{suffix}")
        drawn += [f"memory{suffix}", f"logprobs{suffix}"]
        panels += [(draw_memory, (memory,)), (draw_lengths, (memory,))] if memory else []
        panels += (
            [
                (draw_kernels, (logprobs, "seconds", "seconds")),
                (draw_kernels, (logprobs, "peak_gib", "peak, GiB")),
            ]
            if logprobs.get("results")
            else []
        )
    if step:
        panels.append(
            (draw_split, ({"TRL's": step["seconds"]["trl"], "ours": step["seconds"]["grpo"]},))
        )
    if gpu:
        panels += [(draw_split, (gpu["steps"],)), (draw_speed, (gpu["sampling"],))]
    repeats = [str(load(name)["setting"]["repeats"]) for name in ("step", "logprobs") if load(name)]
    caption = (
        f"crosses: planned; bars: medians of n = {' (steps) and '.join(repeats)} (KL) repeats;"
        f" GRPO; {step.get('environment', {}).get('device', '')}"
    )
    save_figure(
        draw(panels, caption),
        ROOT / "figures" / "hardware.png",
        [],
        results=sorted(f"{name}.json" for name in drawn if load(name)),
    )
    page = ROOT / "docs" / "speed.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(MARKS[0])
    page.write_text(
        f"{before}{MARKS[0]}\n{table()}{real_model()}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
