"""A figure for each claim of the scorecard, from the same tables as its verdict, and one of
what the teachers do for the students.
"""

from __future__ import annotations

import itertools
import json
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlkd_lab.lab.ablations import NAMES, dot, draw_arms, draw_knob, new_figure, spread, tick
from rlkd_lab.lab.plots import STYLES, save_figure
from rlkd_lab.study.claims import (
    ACCURACY,
    CHANCE,
    CLAIMS,
    LENGTH,
    MASKS_RATE,
    WINDOW,
    WINDOWS,
    Study,
    Verdict,
    judge_claims,
    steps_ahead,
)
from rlkd_lab.study.results import Part
from rlkd_lab.study.study import EDGE, WITH_TEACHER, by_teacher, comparisons, number

Draw = Callable[[Study], Figure]
LETTERS = 10
"""Of a title, in an inch."""


def _pick(part: Part, arms: Sequence[str]) -> pd.DataFrame:
    """The runs of some arms, in that order."""
    return pd.concat([part.runs[part.runs["arm"] == arm] for arm in arms], ignore_index=True)


def _arms(part: Part, arms: Sequence[str], measures: Sequence[str]) -> Figure:
    figure, panels = new_figure(len(measures), columns=2)
    for axes, measure in zip(panels, measures, strict=True):
        draw_arms(axes, _pick(part, arms), measure)
    return figure


def _curves(axes: Axes, part: Part, arms: Sequence[str], metric: str, label: str) -> None:
    """Trailing means over a full window, each seed faint; points as they are where the metric
    is an evaluation.
    """
    there = [arm for arm in arms if (part.runs["arm"] == arm).any()]
    styles = {
        arm: STYLES.get(
            str(part.runs.loc[part.runs["arm"] == arm, "method"].iloc[0]), ("#555555", "-")
        )
        for arm in there
    }
    for arm in there:
        found = part.curve(arm, metric)
        whole = {
            seed: curve if metric.startswith("eval/") else curve.rolling(WINDOW).mean()
            for seed, curve in found.items()
        }
        colour, style = styles[arm]
        for curve in whole.values():
            axes.plot(curve.index, curve, color=colour, linestyle=style, alpha=0.25, linewidth=0.8)
        if whole:
            mean = pd.concat(whole.values(), axis=1).mean(axis=1)
            axes.plot(mean.index, mean, color=colour, linestyle=style, linewidth=2, label=arm)
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)


def _order_of_methods(study: Study) -> Figure:
    return _arms(
        study["core"], ("sft", "grpo", "opd", "kdrl", "kdrl_annealed"), (ACCURACY, "ood avg")
    )


def _fewer_steps(study: Study) -> Figure:
    figure, (left, right) = new_figure(2, width=5.2)
    part = study["core"]
    _curves(
        left, part, ("grpo", "kdrl"), "accuracy", f"accuracy in training, mean of {WINDOW} steps"
    )
    for window in WINDOWS:
        spread(right, window, steps_ahead(part, window), STYLES["kdrl"][0])
    right.axhline(0, color="#888888", linewidth=0.8)
    right.set_xlabel("steps of the trailing mean")
    right.set_xticks(WINDOWS)
    right.set_ylabel("steps earlier at GRPO's end")
    right.grid(alpha=0.25)
    return figure


def _lengths(study: Study) -> Figure:
    figure, (left, right) = new_figure(2)
    draw_arms(left, _pick(study["core"], ("grpo", "kdrl", "opd")), LENGTH)
    _curves(
        right,
        study["core"],
        ("grpo", "kdrl", "opd"),
        "completions/mean_length",
        f"length in training, mean of {WINDOW} steps",
    )
    return figure


def _estimators(study: Study) -> Figure:
    figure, panels = new_figure(2)
    rows = pd.concat(
        [_pick(study["core"], ("kdrl",)), _pick(study["estimators"], ("kdrl_k3", "kdrl_exact"))],
        ignore_index=True,
    )
    for axes, measure in zip(panels, (ACCURACY, LENGTH), strict=True):
        draw_arms(axes, rows, measure, {"kdrl": "k2", "kdrl_k3": "k3", "kdrl_exact": "exact"})
    return figure


def _annealing(study: Study) -> Figure:
    figure, (left, right) = new_figure(2)
    runs = study["betas"].runs
    draw_knob(
        left,
        runs[runs["method"] == "kdrl"].assign(kd_coef=lambda rows: pd.to_numeric(rows["kd_coef"])),
        "kd_coef",
        ACCURACY,
    )
    left.set_title("fixed", fontsize=10)
    draw_knob(right, runs[runs["method"] == "kdrl_annealed"], "kd_coef", ACCURACY)
    right.set_title("annealed", fontsize=10)
    both = np.array([left.get_ylim(), right.get_ylim()])
    for axes in (left, right):
        axes.set_ylim(both[:, 0].min(), both[:, 1].max())
    return figure


def _masking(study: Study) -> Figure:
    """At equal coefficients where those parts were run, else each with its own settings."""
    if not {"rates", "masks"} <= study.keys():
        return _arms(study["core"], ("kdrl", "kdrl_masked"), (ACCURACY, LENGTH))
    figure, panels = new_figure(2)
    rates = study["rates"].runs
    unmasked = rates[pd.to_numeric(rates["learning_rate"]) == MASKS_RATE]
    for axes, measure in zip(panels, (ACCURACY, LENGTH), strict=True):
        for runs in (unmasked, study["masks"].runs):
            draw_knob(axes, runs, "kd_coef", measure)
            method = str(runs["method"].iloc[0])
            axes.plot([], [], dot(method)[1], color=dot(method)[0], label=method)
        axes.legend(frameon=False, fontsize=8)
    return figure


def _sizes(study: Study) -> Figure:
    figure, (left, right) = new_figure(2)
    part = study["knights"]
    draw_arms(left, _pick(part, ("grpo", "kdrl", "trrd", "opd")), ACCURACY)
    styles = {arm: STYLES[arm] for arm in ("grpo", "kdrl", "trrd")}
    for place, (arm, (colour, _)) in enumerate(styles.items()):
        for size in ("2", "3", "4"):
            spread(right, int(size) + 0.2 * (place - 1), part.level(arm, size), colour)
        right.plot([], [], "o", color=colour, label=arm)
    right.margins(x=0.1)
    right.set_xticks((2, 3, 4))
    right.set_xlabel("people in the puzzle")
    right.set_ylabel(NAMES[ACCURACY])
    right.legend(frameon=False, fontsize=8)
    right.grid(alpha=0.25)
    return figure


def _alphas(study: Study) -> Figure:
    figure, panels = new_figure(2)
    for axes, measure in zip(panels, (ACCURACY, LENGTH), strict=True):
        draw_knob(axes, study["alphas"].runs, "trrd_alpha", measure)
    return figure


def _cost(study: Study) -> Figure:
    figure, (axes,) = new_figure(1, width=6.4)
    arms = ("grpo", "kdrl", "trrd", "opd")
    part = study["core"]
    steps = part.curves[part.curves["step"].between(2, 11) & part.curves["arm"].isin(arms)]
    medians = (
        steps.groupby(["arm", "seed"], sort=False)["train_time"]
        .median()
        .reset_index()
        .assign(method=lambda rows: rows["arm"])
    )
    order = pd.concat([medians[medians["arm"] == arm] for arm in arms])
    draw_arms(axes, order, "train_time")
    axes.set_ylabel("seconds of a step,\nmedian of steps 2–11")
    axes.set_ylim(bottom=0)
    return figure


def _joint(study: Study) -> Figure:
    return _arms(study["knights"], ("grpo", "opd", "kdrl", "trrd"), (ACCURACY, "ood avg"))


def _passes(study: Study) -> Figure:
    figure, (axes,) = new_figure(1, width=6.4)
    part = study["core"]
    ks = sorted(
        int(str(name).removeprefix("id pass@"))
        for name in part.runs
        if str(name).startswith("id pass@")
    )
    styles = {arm: STYLES[arm] for arm in ("opd", "kdrl", "trrd", "grpo")}
    for arm, (colour, style) in styles.items():
        table = pd.DataFrame({k: part.of(arm, f"id pass@{k}") for k in ks})
        for _, row in table.iterrows():
            axes.plot(ks, row, color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(
            ks, table.mean(), color=colour, linestyle=style, linewidth=2, marker="o", label=arm
        )
    axes.plot(
        ks,
        [part.runs[f"id chance@{k}"].mean() for k in ks],
        color="#888888",
        linestyle="--",
        label="guesses",
    )
    axes.axhline(CHANCE, color="#888888", linewidth=0.5)
    axes.set_ylim(bottom=-0.02)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.set_xlabel("k")
    axes.set_ylabel("pass@k, test prompts")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _sequential(study: Study) -> Figure:
    figure, (left, right) = new_figure(2)
    arms = ("kdrl", "kdrl_annealed", "opd_then_rl")
    draw_arms(left, _pick(study["core"], arms), ACCURACY)
    _curves(right, study["core"], arms, "eval/accuracy", NAMES["eval/accuracy"])
    return figure


def _two_tasks(study: Study) -> Figure:
    figure, panels = new_figure(2)
    for axes, (name, title) in zip(
        panels, (("betas", "arithmetic"), ("knights_betas", "Knights and Knaves")), strict=True
    ):
        runs = study[name].runs
        draw_knob(
            axes,
            runs[runs["method"] == "kdrl"].assign(
                kd_coef=lambda rows: pd.to_numeric(rows["kd_coef"])
            ),
            "kd_coef",
            ACCURACY,
        )
        axes.set_title(title, fontsize=10)
    return figure


def _interference(study: Study) -> Figure:
    figure, (left, right) = new_figure(2)
    part, name = study["core"], "interference/sign_conflict_{}".format
    arms = ("grpo", "kdrl", "trrd")
    styles = {arm: STYLES[arm] for arm in arms}
    for place, arm in enumerate(arms):
        colour = styles[arm][0]
        means, floors = (
            pd.Series(
                {seed: curve.mean() for seed, curve in part.curve(arm, name(kind)).items()},
                dtype=float,
            )
            for kind in ("teacher_method", "split_teacher")
        )
        spread(left, place, means, colour)
        spread(left, place + 0.3, floors, "#888888", "_")
        for kind, style in (("teacher_method", "-"), ("split_teacher", ":")):
            found = part.curve(arm, name(kind))
            if found:
                mean = pd.concat(found.values(), axis=1).mean(axis=1)
                right.plot(
                    mean.index,
                    mean,
                    color=colour,
                    linestyle=style,
                    marker="o",
                    markersize=3,
                    label=arm if kind == "teacher_method" else None,
                )
    left.set_xticks(range(3), arms)
    left.set_xlim(-0.4, 2.6)
    left.set_ylabel("sign conflict with OPD's gradient\n(grey: two halves of a batch)")
    right.set_xlabel("step")
    right.set_ylabel("the same over training\n(dotted: halves)")
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.25)
    return figure


DRAW: dict[int, Draw] = {
    1: _order_of_methods,
    2: _fewer_steps,
    3: _lengths,
    4: _estimators,
    5: _annealing,
    6: _masking,
    7: _sizes,
    8: _alphas,
    9: _cost,
    10: _joint,
    11: _passes,
    12: _sequential,
    13: _two_tasks,
    14: _interference,
}


def claim_figure(study: Study, verdict: Verdict) -> Figure:
    """The figure of a claim, with its verdict in the title and effects with their intervals below.

    Raises:
        ValueError: its parts were not run.
    """
    claim = CLAIMS[verdict.number - 1]
    if missing := claim.missing(study):
        raise ValueError(
            f"claim {claim.number} needs parts that were not run: {', '.join(missing)}"
        )
    figure = DRAW[claim.number](study)
    title = (
        f"Claim {claim.number} ({claim.source}): {claim.text} — {verdict.outcome}"
        f" here{EDGE * verdict.edge}"
    )
    figure.suptitle(
        "\n".join(textwrap.wrap(title, int(LETTERS * figure.get_figwidth()))), fontsize=10
    )
    seeds = sorted({check.effect.seeds for check in verdict.checks})
    lines = [
        f"{check.text}: {number(check.effect.mean)} [{number(check.effect.low)},"
        f" {number(check.effect.high)}], {check.outcome}"
        for check in verdict.checks
    ]
    if verdict.outcome == "undecided" and any(
        check.outcome != "undecided" for check in verdict.checks
    ):  # why what is decided by itself does not decide it
        lines += textwrap.wrap(verdict.note, int(1.3 * LETTERS * figure.get_figwidth()))
    over = (
        "dots or faint lines: seeds; bars: an arm's 95 % interval; brackets: that of the"
        f" difference by seed, over {' or '.join(map(str, seeds))} seeds"
    )
    figure.set_figheight(figure.get_figheight() + 0.16 * max(len(lines) - 3, 0))
    figure.supxlabel("\n".join([*lines, over] if seeds else lines), fontsize=8, color="#444444")
    return figure


def teachers_figure(study: Study) -> Figure:
    """Every method minus GRPO on the same student, in accuracy and in length: with the teacher that
    checks its work (round) and the one that does not (square).

    Raises:
        ValueError: one pair at most was run.
    """
    table = by_teacher(study)
    if table.empty:
        raise ValueError(
            "the figure compares pairs of student and teacher, and one at most was run"
        )
    students, teachers = (list(dict.fromkeys(table[name])) for name in ("student", "teacher"))
    figure, panels = new_figure(2 * len(students), width=4.8, columns=len(students))
    measures = {"accuracy": "accuracy − GRPO's, test prompts", "length": "length − GRPO's, tokens"}
    for index, axes in enumerate(panels):
        student, (measure, label) = (
            students[index % len(students)],
            list(measures.items())[index // len(students)],
        )
        axes.axhline(0, color="#888888", linewidth=0.8)
        for (place, arm), (side, teacher) in itertools.product(
            enumerate(WITH_TEACHER), enumerate(teachers)
        ):
            rows = table[
                (table["student"] == student)
                & (table["teacher"] == teacher)
                & (table["arm"] == arm)
            ]
            spread(axes, place + 0.36 * side - 0.18, rows[measure], dot(arm)[0], "os"[side])
        tick(axes, WITH_TEACHER)
        axes.set_ylabel(label)
        axes.set_title(student if index < len(students) else "", fontsize=10)
        axes.grid(axis="y", alpha=0.25)
    for marker, teacher in zip("os", teachers, strict=False):
        panels[0].plot([], [], marker, color="#555555", label=teacher)
    panels[0].legend(frameon=False, fontsize=8)
    figure.suptitle("Each method minus GRPO, which learns from reward alone", fontsize=11)
    seeds = table.groupby(["student", "teacher", "arm"])["seed"].nunique()
    figure.supxlabel(
        f"faint dots: seeds; markers and bars: mean and 95 % interval over {seeds.min()}"
        " seeds, paired",
        fontsize=8,
        color="#555555",
    )
    return figure


def draw_claims(study: Study, folder: str | Path) -> list[Path]:
    """``claim_01.png`` … for every claim whose parts were run, each with a sidecar: verdict,
    comparisons, runs. ``teachers.png`` where several pairs were.
    """
    drawn = []
    for verdict in judge_claims(study):
        claim = CLAIMS[verdict.number - 1]
        if claim.missing(study) or not verdict.checks:  # not run, or no run that counts
            continue
        effects = comparisons([verdict]).drop(
            columns=["claim", "source", "text", "verdict", "on_the_edge", "note"]
        )
        runs = {
            name: {
                str(arm): sorted(rows["seed"].tolist())
                for arm, rows in study[name].runs.groupby("arm")
            }
            for name in claim.needs
        }
        path = Path(folder) / f"claim_{claim.number:02d}.png"
        said = {
            "claim": claim.text,
            "verdict": verdict.outcome,
            "on_the_edge": verdict.edge,
            "comparisons": json.loads(effects.to_json(orient="records")),
            "seeds_of": runs,
        }
        save_figure(claim_figure(study, verdict), path, [], **said)
        drawn.append(path)
    if not (table := by_teacher(study)).empty:
        path = Path(folder) / "teachers.png"
        means = (
            table.groupby(["student", "teacher", "arm"], sort=False)[["accuracy", "ood", "length"]]
            .mean()
            .reset_index()
        )
        save_figure(
            teachers_figure(study),
            path,
            [],
            means=json.loads(means.to_json(orient="records")),
            seeds=sorted(set(table["seed"].tolist())),
        )
        drawn.append(path)
    return drawn
