"""A user's names stand in a figure as they were written, whatever matplotlib would read into
them.
"""

import numpy as np
import pandas as pd
import pytest
from matplotlib.cbook import is_math_text
from matplotlib.text import Text

from rlkd_lab.lab.course.pictures.concentration import kl_concentration
from rlkd_lab.plots import (
    plot_arms,
    plot_budget,
    plot_differences,
    plot_frontier,
    plot_groups,
    plot_heat,
    plot_knob,
    plot_runs,
)
from rlkd_lab.plots.files import png
from rlkd_lab.plots.styles import literal
from rlkd_lab.runs import RunFolder

HOSTILE = [
    "$x$",
    "5$ or 7$",
    r"$\frac{$",
    "_hidden",
    "a_b^c",
    r"\alpha\$",
    "$$",
    r"{\bf x} & 100 %",
    "$_$",
]


def shown(figure):
    """Every text of a drawn figure as a reader sees it; a formula as None."""
    png(figure)
    texts = [text.get_text() for text in figure.findobj(Text) if text.get_visible()]
    return [
        None if is_math_text(text) else text.replace(r"\$", "$")
        for text in texts
        if "mathdefault" not in text
    ]  # a tick of a logarithmic axis


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    rows = [
        {
            "arm": arm,
            "method": arm,
            "seed": seed,
            "id avg": rng.random(),
            "id length": rng.random(),
            "knob $": arm,
            "other_$": place % 2,
            "$m$": rng.random(),
        }
        for place, arm in enumerate(HOSTILE)
        for seed in range(3)
    ]
    return pd.DataFrame(rows).assign(diverged=False, touched=False)


FIGURES = {
    "arms": lambda table: plot_arms(table, ["$m$"], title="$t$"),
    "differences": lambda table: plot_differences(table, HOSTILE[0], ["$m$"]),
    "knob": lambda table: plot_knob(table.assign(method="$x$"), "knob $", "$m$"),
    "frontier": lambda table: plot_frontier(table, "id length", "$m$"),
    "heat": lambda table: plot_heat(table, "knob $", "other_$", "$m$"),
}


@pytest.mark.parametrize("name", FIGURES)
def test_names_of_arms_knobs_and_columns_are_shown_as_they_are(table, name):
    texts = shown(FIGURES[name](table))
    assert None not in texts
    expected = {
        "frontier": HOSTILE[3:4],
        "differences": HOSTILE[1:],
        "arms": [*HOSTILE, "$t$"],
        "heat": [*HOSTILE, "knob $", "other_$"],
        "knob": [*HOSTILE, "knob $"],
    }
    for wanted in (*expected[name], "$m$"):
        assert any(wanted in text for text in texts), wanted


def test_curves_by_budget_have_every_arm_in_the_legend(table):
    rows = [
        {
            "arm": arm,
            "seed": seed,
            "method": arm,
            "step": step,
            "sampled_tokens": 100.0 * step,
            "train_seconds": 1.0 * step,
            "eval/accuracy": 0.1 * step,
        }
        for arm in HOSTILE
        for seed in range(2)
        for step in (1, 2, 3)
    ]
    texts = shown(plot_budget(pd.DataFrame(rows), title="$t$"))
    assert None not in texts
    assert {arm.strip() for arm in HOSTILE} <= {text.strip() for text in texts}


def test_groups_of_runs_and_methods_of_ones_own_are_shown_as_they_are(tmp_path):
    def made(name, method):
        folder = RunFolder.create(
            tmp_path / name, {"method": method, "seed": 0}, {"commit": "abc123", "device": "CPU"}
        )
        for step in (1, 2, 3):
            folder.append(
                "metrics.jsonl",
                {"step": step, "num_tokens": step, "step_time": 1.0, "reward/$part$": 0.1 * step},
            )
        return folder

    runs = [made(str(number), method) for number, method in enumerate(HOSTILE)]
    for figure in (
        plot_runs(runs, ["reward/$part$"], title="$t$"),
        plot_groups(dict(zip(HOSTILE, ([run] for run in runs), strict=True)), ["reward/$part$"]),
    ):
        texts = shown(figure)
        assert None not in texts
        assert {*HOSTILE, "reward/$part$"} <= {text.strip() for text in texts}


def test_a_label_of_a_picture_is_shown_as_it_is():
    assert any("$x$" in text for text in shown(kl_concentration(np.arange(10.0), label="$x$")))


def test_a_plain_name_is_not_changed():
    assert literal("kdrl, kd_coef=0.1", legend=True) == "kdrl, kd_coef=0.1"
