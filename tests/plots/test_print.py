"""The committed figures can be read in print: sizes of letters, edges, overlaps, names."""

import itertools
import re
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
from made_up import TRUE
from matplotlib.text import Text

from rlkd_lab.objectives import METHODS
from rlkd_lab.plots import (
    plot_arms,
    plot_budget,
    plot_differences,
    plot_frontier,
    plot_heat,
    plot_knob,
)
from rlkd_lab.plots.claims import claim_figure
from rlkd_lab.plots.runs import ALL, plot_groups
from rlkd_lab.plots.styles import FULL, HALF, PRINT
from rlkd_lab.plots.teacher_map import map_figure
from rlkd_lab.runs import RunFolder
from rlkd_lab.study.claims import CLAIMS, judge_claims
from rlkd_lab.study.study import read_study
from rlkd_lab.study.teacher_map import READINGS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def study():
    return read_study(ROOT / "results" / "embedded")


def four_methods():
    runs = ROOT / "notebooks" / "recorded"
    names = ("opd", "grpo", "kdrl", "trrd")
    groups = {name: [RunFolder.open(runs / f"{name}-{seed}") for seed in (0, 1)] for name in names}
    return plot_groups(groups, ALL, title="Four methods")


def boxes(figure, monkeypatch):
    """Each text that is drawn, with its box in pixels; ticks beyond the limits are not."""
    drawn = {}
    draw = Text.draw

    def spy(text, renderer, *rest, **more):
        if text.get_visible() and text.get_text().strip():
            drawn[text] = text.get_window_extent(renderer)
        draw(text, renderer, *rest, **more)

    monkeypatch.setattr(Text, "draw", spy)
    with matplotlib.rc_context(PRINT):
        figure.canvas.draw()
    return list(drawn.items())


def check(figure, monkeypatch):
    assert figure.get_figwidth() in (FULL, HALF)
    shown = boxes(figure, monkeypatch)
    assert len(shown) > 8
    for text, box in shown:
        words = text.get_text()
        assert 8 <= text.get_fontsize() <= 10, words
        assert box.x0 >= 0 and box.y0 >= 0, words
        assert box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height, words
        assert not set(re.findall(r"[a-z_/]+", words)) & {"kd_coef", "kl_teacher_rev"}, words
        assert not set(re.findall(r"\w+", words)) & set(METHODS), words
    upright = [(text, box) for text, box in shown if text.get_rotation() % 90 == 0]
    for (one, a), (other, b) in itertools.combinations(upright, 2):
        apart = a.x1 <= b.x0 or b.x1 <= a.x0 or a.y1 <= b.y0 or b.y1 <= a.y0
        assert apart, (one.get_text(), other.get_text())
    assert "\n" not in figure._supxlabel.get_text()


@pytest.mark.parametrize("number", range(1, len(CLAIMS) + 1))
def test_the_figure_of_a_claim_can_be_read_in_print(study, number, monkeypatch):
    """From the committed tables, or from made-up ones where its part was not run yet."""
    tables = TRUE if CLAIMS[number - 1].missing(study) else study
    check(claim_figure(tables, judge_claims(tables)[number - 1]), monkeypatch)


@pytest.mark.parametrize("reading", READINGS)
def test_the_map_can_be_read_in_print(study, reading, monkeypatch):
    check(map_figure(study["map"], reading), monkeypatch)


def test_the_figure_of_four_methods_can_be_read_in_print(monkeypatch):
    check(four_methods(), monkeypatch)


def test_ablations_can_be_read_in_print(study, monkeypatch):
    core, knobs = study["core"].runs, TRUE["betas"].runs.assign(diverged=False, touched=False)
    rates = pd.concat([knobs.assign(learning_rate=rate) for rate in (0.0005, 0.001)])
    check(plot_arms(core, title="Eight methods"), monkeypatch)
    check(plot_differences(core, "grpo"), monkeypatch)
    check(plot_frontier(core), monkeypatch)
    check(plot_budget(study["core"].curves), monkeypatch)
    check(plot_knob(knobs, "kd_coef"), monkeypatch)
    check(plot_heat(rates, "kd_coef", "learning_rate"), monkeypatch)


def test_every_committed_picture_has_a_file_for_print():
    for path in (ROOT / "figures").glob("*.png"):
        if path.stem not in ("demo", "panel"):  # runs of one's own, and a view of the browser
            assert path.with_suffix(".pdf").exists(), path.name
