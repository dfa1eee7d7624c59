import io
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from rlkd_lab.objectives import METHODS
from rlkd_lab.plots import plot_groups, plot_runs, png, save_figure, seed_table
from rlkd_lab.plots.runs import ALL, MAIN
from rlkd_lab.plots.styles import STYLES
from rlkd_lab.runs import RunFolder


@pytest.fixture
def make(tmp_path):
    """``make(method, seed, steps)``: a run folder with made-up rows."""

    def run(method="grpo", seed=0, steps=12, name=None):
        folder = RunFolder.create(
            tmp_path / (name or f"{method}-{seed}"),
            {"method": method, "seed": seed},
            {"commit": "abc123", "device": "CPU"},
        )
        rng = np.random.default_rng(seed)
        for step in range(1, steps + 1):
            row = {
                "step": step,
                "num_tokens": 100 * step,
                "step_time": 0.5,
                **{metric: float(rng.random()) for metric in ALL},
            }
            row["eval/accuracy"] = float(rng.random()) if step % 4 == 0 else None
            folder.append("metrics.jsonl", row)
        return folder

    return run


def lines(figure, panel=0):
    """(raw, smoothed) lines of a panel: faint ones and labelled or opaque ones."""
    drawn = figure.axes[panel].get_lines()
    return [line for line in drawn if line.get_alpha()], [
        line for line in drawn if not line.get_alpha()
    ]


def words(figure):
    """Names of lines, and the caption."""
    caption = " ".join(figure._supxlabel.get_text().split())
    return figure.axes[0].get_legend_handles_labels()[1], caption


def test_importing_the_lab_imports_neither_pyplot_nor_statistics_nor_the_compiler():
    """The compiler of torch alone is a sixth of the time that a process needs to start.

    The collector is at work again, and looks at nothing of what was imported.
    """
    code = (
        "import gc, sys, rlkd_lab.lab\n"
        "assert gc.isenabled() and gc.get_freeze_count() > 300_000\n"
        "unused = {'matplotlib.pyplot', 'scipy.stats', 'torch._inductor.compile_fx'}\n"
        "loaded = unused & set(sys.modules)\n"
        "assert 'bitsandbytes' in sys.modules\n"
        "sys.exit(', '.join(loaded) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_methods_are_told_apart_in_grey():
    """By their dash, or by ten steps of lightness of a hundred."""
    assert set(STYLES) == set(METHODS)

    def lightness(colour):
        linear = [((c + 0.055) / 1.055) ** 2.4 if c > 0.04 else c / 12.92 for c in to_rgb(colour)]
        return 116 * np.dot((0.2126, 0.7152, 0.0722), linear) ** (1 / 3) - 16

    for (one, (a, dash)), (other, (b, its)) in itertools.combinations(STYLES.items(), 2):
        assert a != b
        assert dash != its or abs(lightness(a) - lightness(b)) > 9.9, (one, other)
    for family in (
        ("grpo", "dr_grpo", "dapo", "gspo"),
        ("sft", "rft"),
        [m for m in STYLES if "kdrl" in m],
    ):
        assert len({STYLES[method][1] for method in family}) == len(family)


def test_lines_have_their_names_at_the_ends_where_these_are_apart(make):
    runs = {name: [make(name, steps=0)] for name in ("grpo", "opd", "kdrl")}
    for height, (run,) in enumerate(runs.values()):
        for step in (1, 2):
            run.append("metrics.jsonl", {"step": step, "apart": float(height)})
    figure = plot_groups(runs, ["apart"])
    assert [text.get_text() for text in figure.axes[0].texts] == ["GRPO", "OPD", "KDRL"]
    assert not figure.legends


def test_no_name_stands_at_ends_that_are_alike(make):
    runs = {name: [make(name, steps=0)] for name in ("grpo", "opd", "kdrl", "trrd")}
    for (run,) in runs.values():
        for step in (1, 2):
            run.append("metrics.jsonl", {"step": step, "alike": float(step)})
    figure = plot_groups(runs, ["alike"])
    assert not figure.axes[0].texts
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["GRPO", "OPD", "KDRL", "TRRD"]


@pytest.mark.parametrize("window", [1, 3, 9])
def test_raw_values_are_faint_and_the_line_is_a_trailing_mean(make, window):
    run = make()
    figure = plot_runs([run], ["reward"], window=window)
    assert isinstance(figure, Figure)
    ([raw], [mean]) = lines(figure)
    values = run.metrics()["reward"].to_numpy()
    np.testing.assert_allclose(raw.get_ydata(), values)
    expected = [values[max(0, i + 1 - window) : i + 1].mean() for i in range(len(values))]
    np.testing.assert_allclose(mean.get_ydata(), expected)
    assert raw.get_alpha() < 0.5
    assert (mean.get_color(), mean.get_linestyle()) == STYLES["grpo"]
    assert f"trailing mean of {window} steps" in words(figure)[1]


def test_evaluations_are_never_smoothed(make):
    run = make()
    figure = plot_runs([run], ["eval/accuracy"], window=5)
    ([], [points]) = lines(figure)
    np.testing.assert_allclose(points.get_ydata(), run.metrics()["eval/accuracy"].dropna())
    np.testing.assert_array_equal(points.get_xdata(), [4, 8, 12])
    assert points.get_marker() == "o"
    assert figure.axes[0].get_ylim() == (0, 1)


@pytest.mark.parametrize(
    ("x", "values", "label"),
    [
        ("steps", np.arange(1, 13), "step"),
        ("tokens", 100 * np.arange(1, 13), "generated tokens"),
        ("seconds", 0.5 * np.arange(1, 13), "seconds"),
    ],
)
def test_x_axes(make, x, values, label):
    figure = plot_runs([make()], ["reward", "eval/accuracy"], x=x)
    np.testing.assert_allclose(lines(figure)[1][0].get_xdata(), values)
    np.testing.assert_allclose(lines(figure, 1)[1][0].get_xdata(), values[[3, 7, 11]])
    assert figure.axes[0].get_xlabel() == label


def test_runs_and_seeds_are_counted(make):
    figure = plot_runs([make("grpo", 0), make("grpo", 1), make("kdrl", 0)], MAIN)
    labels, title = words(figure)
    assert labels == [f"{METHODS['grpo'].title}, 2 runs", METHODS["kdrl"].title]
    assert "2 seeds" in title
    raw, mean = lines(figure)
    assert (len(raw), len(mean)) == (3, 3)  # a line a run
    assert words(plot_runs([make("trrd", 4)]))[1].endswith("seed 4")


def test_what_was_not_recorded_is_said(make):
    figure = plot_runs([make()], ["trrd/dead_frac"])
    assert [text.get_text() for text in figure.axes[0].texts] == ["not recorded"]
    empty = plot_runs([make("kdrl", steps=0)], MAIN)
    assert all([text.get_text() for text in axes.texts] == ["not recorded"] for axes in empty.axes)


def test_a_run_that_lacks_a_metric_stands_beside_one_that_has_it(make):
    figure = plot_runs([make("grpo"), make("kdrl", steps=0)], ["reward"])
    assert len(lines(figure)[1]) == 1
    assert not figure.axes[0].texts


@pytest.mark.parametrize("metrics", [MAIN[:1], MAIN[:2], MAIN, ALL[:4], ALL])
def test_a_panel_a_metric(make, metrics):
    figure = plot_runs([make()], metrics)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert len(shown) == len(metrics)
    assert all(axes.get_ylabel() for axes in shown)


def test_a_value_that_is_true_or_false_can_be_drawn(make):
    run = make(steps=0)
    for step, share in enumerate((True, False, True), 1):
        run.append("metrics.jsonl", {"step": step, "on_policy": share})
    ([raw], _) = lines(plot_runs([run], ["on_policy"]))
    assert [float(value) for value in raw.get_ydata()] == [1, 0, 1]


def test_nothing_to_plot_is_an_error_in_words(make):
    with pytest.raises(ValueError, match="at least one run"):
        plot_runs([])
    with pytest.raises(ValueError, match="at least one"):
        plot_runs([make()], [])


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_files_are_the_same_bytes_every_time(make, tmp_path, suffix):
    runs = [make("grpo"), make("kdrl", 1)]
    written = [
        save_figure(plot_runs(runs, MAIN), tmp_path / name / f"figure{suffix}", runs).read_bytes()
        for name in ("a", "b")
    ]
    assert written[0] == written[1]
    assert len(written[0]) > 5000


def test_a_pdf_stands_beside_a_png_with_the_same_bytes_every_time(make, tmp_path):
    runs = [make()]
    first, second = (
        save_figure(plot_runs(runs), tmp_path / name / "figure.png", runs).with_suffix(".pdf")
        for name in "ab"
    )
    assert first.read_bytes() == second.read_bytes()
    assert len(first.read_bytes()) > 5000


def test_the_background_is_opaque(make):
    picture = imread(io.BytesIO(png(plot_runs([make()], ["reward"]))))
    assert picture.shape[2] == 3 or (picture[..., 3] == 1).all()
    assert (picture[0, 0, :3] == 1).all()


def test_the_sidecar_says_what_went_in(make, tmp_path):
    calm, moved = make("grpo", 3), make("kdrl", 4, steps=5)
    moved.append("events.jsonl", {"event": "knob", "step": 1, "knob": "kd_coef", "value": 0.5})
    path = save_figure(
        plot_runs([calm, moved]),
        tmp_path / "new" / "figure.svg",
        [calm, moved],
        smoothing="trailing mean, 9 steps",
        x="steps",
    )
    side = json.loads(path.with_suffix(".json").read_text())
    assert side["figure"] == "figure.svg"
    assert side["smoothing"] == "trailing mean, 9 steps"
    assert side["runs"] == [
        {
            "run": "grpo-3",
            "method": "grpo",
            "seed": 3,
            "steps": 12,
            "touched": False,
            "commit": "abc123",
            "device": "CPU",
        },
        {
            "run": "kdrl-4",
            "method": "kdrl",
            "seed": 4,
            "steps": 5,
            "touched": True,
            "commit": "abc123",
            "device": "CPU",
        },
    ]
    assert str(tmp_path) not in path.with_suffix(".json").read_text()


# --- groups of seeds ------------------------------------------------------------------------------


def test_a_group_is_the_mean_of_its_seeds_with_each_behind_it(make):
    runs = [make("grpo", seed, steps=12) for seed in range(3)]
    figure = plot_groups({"GRPO": runs}, ["reward"], window=4)
    faint, (mean,) = lines(figure)
    smooth = [run.metrics()["reward"].rolling(4, min_periods=1).mean().to_numpy() for run in runs]
    for line, expected in zip(faint, smooth, strict=True):
        np.testing.assert_allclose(line.get_ydata(), expected)
    np.testing.assert_allclose(mean.get_ydata(), np.mean(smooth, axis=0))
    assert words(figure) == (
        ["GRPO"],
        "mean over 3 seeds, each seed faint · trailing mean of 4 steps",
    )
    assert words(plot_groups({"GRPO": runs[:1]}, ["reward"]))[1].startswith("one seed · ")


def test_a_metric_of_every_fifth_step_is_smoothed_over_steps_and_not_over_its_rows(make):
    run = make(steps=12)
    rows = [row | ({} if row["step"] % 5 == 1 else {"reward": None}) for row in run.rows()]
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second, third = (rows[step]["reward"] for step in (0, 5, 10))
    for figure in (
        plot_groups({"GRPO": [run]}, ["reward"], window=6),
        plot_runs([run], ["reward"], window=6),
    ):
        _, (mean,) = lines(figure)
        expected = [first, (first + second) / 2, (second + third) / 2]
        np.testing.assert_allclose(mean.get_ydata(), expected)


def test_groups_of_one_method_have_shades_of_one_colour_and_styles_of_their_own(make):
    groups = {
        "k2": [make("kdrl", 0, name="a")],
        "k3": [make("kdrl", 0, name="b")],
        "GRPO": [make("grpo", 0), make("grpo", 1, steps=6)],
    }
    figure = plot_groups(groups, ["reward", "eval/accuracy"])
    _, (a, b, c) = lines(figure)
    assert a.get_color() == STYLES["kdrl"][0]
    first, second = np.array(to_rgb(a.get_color())), np.array(to_rgb(b.get_color()))
    np.testing.assert_allclose(
        second / second.max(), first / first.max(), atol=0.02
    )  # the same hue, darker
    assert second.max() < 0.8 * first.max()
    assert a.get_linestyle() != b.get_linestyle()
    assert len(c.get_xdata()) == 6  # where every seed has a value
    assert "1–2 seeds" in words(figure)[1]


def test_the_table_has_a_t_interval_over_seeds(make):
    runs = [make("grpo", seed, steps=12) for seed in range(5)]
    values = np.array([run.metrics()["reward"].iloc[-10:].mean() for run in runs])
    half = 2.7764 * values.std(ddof=1) / 5**0.5
    table = seed_table({"GRPO": runs, "one": runs[:1]}, ["reward", "eval/accuracy", "not/there"])
    assert table.loc["GRPO", "reward"] == f"{values.mean():.3g} ± {half:.2g}"
    assert table.loc["one", "reward"] == f"{values[0]:.3g}"
    assert (
        table.loc["one", "accuracy, held-out prompts"]
        == f"{runs[0].metrics()['eval/accuracy'].dropna().iloc[-1]:.3g}"
    )
    assert table.loc["GRPO", "not/there"] == "–"


def test_an_empty_group_is_refused(make):
    with pytest.raises(ValueError, match="nothing to show"):
        plot_groups({"GRPO": []})
