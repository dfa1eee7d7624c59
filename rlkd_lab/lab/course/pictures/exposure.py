"""Exposure bias: how a teacher continues after a wrong step, measured by sampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from rlkd_lab.lab.course.pictures.prediction import BLUE, ORANGE, Picture
from rlkd_lab.plots.styles import literal, white_figure
from rlkd_lab.tasks.arithmetic import ArithmeticTask, steps
from rlkd_lab.tasks.base import Example, seeded

if TYPE_CHECKING:
    from rlkd_lab.models import LanguageModel

ERRORS = (-10, -3, -2, -1, 1, 2, 3, 10)


def wrong_prefix(example: Example, position: int, seed: int = 0) -> tuple[str, str]:
    """Return the first ``position`` worked steps of a prompt, and the same with the last one wrong.

    Args:
        example: of the arithmetic task.
        position: from 1 to the number of operations.
        seed: of the error, one of :data:`ERRORS`.
    """
    right, _ = steps(example.prompt)
    rng = seeded("exposure", seed, example.prompt, position)
    # an error that would leave 0–99 is cut there, and may vanish
    for error in rng.sample(ERRORS, len(ERRORS)):
        wrong, _ = steps(example.prompt, position - 1, error)
        if wrong[position - 1] != right[position - 1]:
            return "".join(right[:position]), "".join(wrong[:position])
    raise AssertionError("no error of up to 10 changes a value within 0–99")


@torch.no_grad()
def measure_exposure(
    teacher: LanguageModel, operations: int = 4, prompts: int = 64, samples: int = 4, seed: int = 0
) -> pd.DataFrame:
    """Measure a teacher's accuracy after right prefixes and after prefixes with a wrong step.

    The prefixes are constructed: the same prompts at every position, with an error of
    ±1, 2, 3 or 10 in the last step. The teacher samples at T = 1, and the prompt's answer
    counts.

    Args:
        teacher: a model of the arithmetic task.
        operations: steps of each prompt, 2–8.
        prompts: test prompts, 2 or more.
        samples: continuations of each prefix.
        seed: of prompts, errors and sampling.

    Returns:
        A row for each ``position`` (1 … operations) and ``prefix`` (right, wrong).
        Further columns: ``prompts``, ``n`` (continuations), ``accuracy``, and its 95 %
        bootstrap interval over prompts, ``low`` and ``high``.
    """
    # imported here, because drawing alone need not load transformers
    from rlkd_lab.models import make_dense_copy
    from rlkd_lab.models.dense_copy import DenseCopy
    from rlkd_lab.rollouts import Sampling, sample
    from rlkd_lab.study.statistics import bootstrap

    task = ArithmeticTask()
    examples = task.examples(prompts, seed, "test", (operations, operations))
    generator = torch.Generator(device=teacher.device).manual_seed(seed)
    dense = make_dense_copy(teacher) if DenseCopy.suits(teacher) else None
    rows = []
    for position in range(1, operations + 1):
        pairs = [wrong_prefix(example, position, seed) for example in examples]
        for which, kind in enumerate(("right", "wrong")):
            prefixes = [pair[which] for pair in pairs]
            texts = [
                example.prompt + prefix for example, prefix in zip(examples, prefixes, strict=True)
            ]
            room = min(20 * operations + 16, teacher.context - max(map(len, texts)) - 1)
            sampling = Sampling(1.0, room)
            drawn = sample(teacher, texts, samples, sampling, generator, dense=dense).texts
            right = []
            for i, (example, prefix) in enumerate(zip(examples, prefixes, strict=True)):
                completions = drawn[i * samples : (i + 1) * samples]
                scores = [task.score(prefix + text, example).correct for text in completions]
                right.append(float(np.mean(scores)))
            interval = bootstrap(right)
            rows.append(
                {
                    "position": position,
                    "prefix": kind,
                    "prompts": prompts,
                    "n": prompts * samples,
                    "accuracy": interval.mean,
                    "low": interval.low,
                    "high": interval.high,
                }
            )
    return pd.DataFrame(rows)


def exposure_bias(measured: pd.DataFrame, title: str = "") -> Figure:
    """Draw the bars of :func:`measure_exposure` with their intervals.

    Args:
        measured: ``position``, ``prefix``, ``n``, ``accuracy``, ``low``, ``high``.
        title: say which teacher it is.
    """
    figure = white_figure(7.6, 4.4)
    axes = figure.subplots()
    for kind, shift, colour, label in (
        ("right", -0.2, BLUE, "all steps right so far"),
        ("wrong", 0.2, ORANGE, "the last step is wrong"),
    ):
        part = measured[measured["prefix"] == kind]
        at, height = part["position"].to_numpy(float) + shift, 100 * part["accuracy"].to_numpy()
        error = np.abs(100 * part[["low", "high"]].to_numpy().T - height)
        axes.bar(
            at, height, width=0.36, color=colour, label=label, yerr=error, capsize=4, ecolor="black"
        )
        for x, value, upper in zip(at, height, 100 * part["high"].to_numpy(), strict=True):
            axes.text(
                x,
                max(value, upper if np.isfinite(upper) else 0) + 2,
                f"{value:.0f}",
                ha="center",
                fontsize=9,
            )
    axes.set_xticks(sorted(measured["position"].unique()))
    axes.set_xlabel("the teacher goes on after this step")
    axes.set_ylabel("final answers that are right, %")
    axes.set_ylim(0, 125)
    axes.set_yticks(range(0, 101, 20))
    sizes = sorted(measured["n"].unique())
    axes.set_title(
        (f"{literal(title)}: " if title else "")
        + f"{' or '.join(map(str, sizes))} continuations a bar, 95 % bootstrap over prompts",
        fontsize=10,
    )
    axes.legend(loc="upper center", ncols=2, frameon=False, fontsize=10)
    axes.grid(axis="y", alpha=0.25)
    figure.tight_layout()
    return figure


def after_one_wrong_step(measured: pd.DataFrame) -> float:
    """Return the mean accuracy over the positions of the wrong step, 0–1.

    Exercise 02.one_wrong_step asks for it.
    """
    return float(measured.loc[measured["prefix"] == "wrong", "accuracy"].mean())


def exposure_picture(measured: pd.DataFrame, title: str = "") -> Picture:
    """Return the question and the picture, from :func:`measure_exposure`."""
    wrong, right = (
        after_one_wrong_step(measured),
        float(measured.loc[measured["prefix"] == "right", "accuracy"].mean()),
    )
    edges: Sequence[float] = (0.1, 0.5, 0.9)
    lesson = (
        "It looks at the prompt again later on, as a check does, and mends what went wrong:"
        " read a continuation."
    )
    if wrong < 0.5:
        lesson = (
            "A teacher that knows right steps alone goes on from a wrong one as if it were"
            " right: on the student's own wrong prefixes its word is worth little."
        )
    return Picture(
        question=f"After right steps the teacher ends up right in {right:.0%} of its"
        " continuations. How often after a prefix whose last step is wrong?",
        choices=("under 10 %", "10 to 50 %", "50 to 90 %", "90 % and more"),
        answer=int(np.searchsorted(edges, wrong, side="right")),
        why=f"In {wrong:.0%}. {lesson}",
        draw=lambda: exposure_bias(measured, title),
    )
