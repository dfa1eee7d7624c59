import json
import tracemalloc

import numpy as np
import pytest
from fake import FakeHandle
from matplotlib.image import imread

from rlkd_lab.lab.live.curve_data import move_labels
from rlkd_lab.lab.live.curve_groups import GROUPS
from rlkd_lab.lab.live.curves import draw
from rlkd_lab.lab.live.history import EXACT, POINTS, History, Series
from rlkd_lab.lab.live.redraw import Redraw, say
from rlkd_lab.objectives import METHODS
from rlkd_lab.plots import png


@pytest.fixture
def run(tmp_path):
    return FakeHandle(tmp_path / "run")


def write(path, rows, mode="a"):
    with path.open(mode) as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


# --- history --------------------------------------------------------------------------------------


def test_rows_are_read_as_they_come(run):
    history = History(run.folder.path)
    assert not history.read()
    run.advance(3)
    assert history.read()
    assert not history.read()
    run.advance(2)
    assert history.read()
    np.testing.assert_array_equal(history["reward"].steps, [1, 2, 3, 4, 5])
    np.testing.assert_array_equal(history["reward"].values, run.folder.metrics()["reward"])
    assert history.last == run.folder.rows()[-1]
    assert "on_policy" in history
    assert "trrd/dead_frac" not in history
    assert len(history["trrd/dead_frac"]) == 0


def test_a_torn_last_line_waits_until_it_is_whole(run):
    run.advance(2)
    metrics = run.folder.path / "metrics.jsonl"
    whole = json.dumps({"step": 3, "reward": 0.25}) + "\n"
    with metrics.open("a") as file:
        file.write(whole[:11])
    history = History(run.folder.path)
    history.read()
    assert history.step == 2
    with metrics.open("a") as file:
        file.write(whole[11:])
    history.read()
    assert (history.step, history["reward"].values[-1], history.damaged) == (3, 0.25, 0)


def test_a_damaged_line_is_counted_and_left_out(run):
    run.advance(1)
    with (run.folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "rew\n[1, 2]\n' + "[" * 99_999 + "\n")
    write(run.folder.path / "metrics.jsonl", [{"step": 3, "reward": 0.5}])
    history = History(run.folder.path)
    history.read()
    assert (history.step, len(history["reward"]), history.damaged) == (3, 2, 3)


@pytest.mark.parametrize("more", [0, 400])
def test_what_a_resume_cuts_off_is_forgotten(run, more):
    """Also where the file has grown beyond the place reached before anyone looks."""
    run.advance(10)
    history = History(run.folder.path)
    history.read()
    run.folder.truncate("metrics.jsonl", 5)
    again = [{"step": step, "reward": 2.0} for step in range(6, 7 + more)]
    write(run.folder.path / "metrics.jsonl", again)
    assert history.read()
    np.testing.assert_array_equal(history["reward"].steps, np.arange(1, 7 + more))
    np.testing.assert_array_equal(history["reward"].values[5:], 2.0)


def test_ten_thousand_steps_stay_flat_in_memory(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.random(10_000)
    rows = [
        {
            "step": t + 1,
            "reward": float(value),
            **({"eval/accuracy": t / 1e4} if t % 5 == 4 else {}),
        }
        for t, value in enumerate(values)
    ]
    history, sizes = History(tmp_path), []
    tracemalloc.start()
    for part in range(10):
        write(tmp_path / "metrics.jsonl", rows[1000 * part : 1000 * (part + 1)])
        history.read()
        sizes.append(tracemalloc.get_traced_memory()[0])
        assert all(len(series) <= POINTS for series in history.series.values())
    tracemalloc.stop()
    assert sizes[-1] - sizes[2] < 50_000
    reward = history["reward"]
    assert len(reward) > POINTS // 4
    np.testing.assert_allclose(reward.values[-EXACT:], values[-EXACT:])
    np.testing.assert_array_equal(reward.steps[-EXACT:], np.arange(10_000 - EXACT + 1, 10_001))
    assert np.average(reward.values, weights=reward._weights) == pytest.approx(
        values.mean()
    )  # a mean of means, each with its rows
    assert set(reward._weights[: len(reward) // 4]) == {
        float(reward.stride)
    }  # neighbours, as many everywhere
    accuracy = history["eval/accuracy"]  # thinned by leaving out, not averaged
    np.testing.assert_allclose(accuracy.values, (accuracy.steps - 1) / 1e4)
    assert accuracy.steps[-1] == 10_000


def test_the_trailing_mean_is_that_of_the_last_steps():
    series, rng = Series(), np.random.default_rng(1)
    values = rng.random(30)
    for step, value in enumerate(values, 1):
        series.append(step, value)
    np.testing.assert_allclose(
        series.trailing_mean(9), [values[max(0, t - 8) : t + 1].mean() for t in range(30)]
    )
    sparse = Series()
    for step in (10, 20, 30):
        sparse.append(step, float(step))
    np.testing.assert_allclose(sparse.trailing_mean(9), [10, 20, 30])


def test_forks_come_and_go(run):
    run.advance(8)
    history = History(run.folder.path)
    assert history.latest_forks() == (None, [])
    fork = run.forked(step=8, count=2)
    run.forked("noise", step=8, count=2, seed=5)
    history.read()
    untouched, [noise] = history.latest_forks()
    assert (untouched.step, noise.kind) == (8, "noise")
    joined = untouched.joined(history, "reward")
    np.testing.assert_array_equal(joined.steps, np.arange(1, 11))
    np.testing.assert_array_equal(joined.values[:8], history["reward"].values)
    np.testing.assert_array_equal(joined.values, fork.metrics()["reward"])
    fork.path.rename(run.folder.path / "elsewhere")
    history.read()
    assert history.latest_forks() == (None, [])


# --- curves ---------------------------------------------------------------------------------------


def words(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("group", GROUPS)
def test_every_group_is_drawn_with_what_there_is(run, group):
    history = History(run.folder.path)
    empty = draw(history, "kdrl", group)
    assert all(
        [text.get_text() for text in axes.texts] == ["waits for the first step"]
        for axes in empty.axes
    )
    run.advance(22)
    history.read()
    figure = draw(history, "kdrl", group, steps=60)
    assert len(figure.axes) == len(GROUPS[group])
    drawn = [axes for axes in figure.axes if axes.get_lines() or axes.collections]
    assert len(drawn) == (
        2 if group == "clipped and dead tokens" else len(figure.axes)
    )  # KDRL has no TRRD
    import io

    picture = imread(io.BytesIO(png(figure)))
    assert picture.shape[2] == 3 or (picture[..., 3] == 1).all()  # opaque, for the dark theme


def test_the_difference_to_the_fork_is_zero_where_they_are_equal(run):
    run.advance(10)
    for kind in ("untouched", "noise"):
        folder = run.forked(kind, step=5, count=0)
        for row in run.folder.rows()[5:]:
            folder.append(
                "metrics.jsonl", row | ({"reward": row["reward"] + 0.9} if kind == "noise" else {})
            )
    history = History(run.folder.path)
    history.read()
    figure = draw(history, "kdrl")
    titles = [f"{name}: run − untouched fork" for name in ("reward", "KL to the teacher", "length")]
    assert [axes.get_title("left") for axes in figure.axes[3:]] == titles
    strip = figure.axes[3]
    difference = strip.get_lines()[1]
    np.testing.assert_array_equal(difference.get_xdata(), [5, 6, 7, 8, 9, 10])
    np.testing.assert_allclose(difference.get_ydata(), 0, atol=1e-12)
    # 0.9 more on 1 … 5 of the rows in the window
    np.testing.assert_allclose(
        strip.get_lines()[2].get_ydata(),
        [0, *(0.9 * n / min(5 + n, 9) for n in range(1, 6))],
        atol=1e-12,
    )
    assert {"untouched fork", "untouched, other samples", METHODS["kdrl"].title} <= set(
        words(figure)
    )
    assert any("chance" in label for label in words(figure))
    styles = [line.get_linestyle() for line in figure.axes[0].get_lines()]
    assert styles.count("-") == 2 + 0  # raw and mean of the run; forks are dotted


def test_a_moved_knob_is_a_line_with_its_words(run):
    run.advance(11)
    run.request("kd_coef", 0.3)
    run.advance(9)
    run.release("kd_coef")
    run.advance(10)
    history = History(run.folder.path)
    history.read()
    axes = draw(history, "kdrl").axes[0]
    assert [text.get_text() for text in axes.texts] == ["kd_coef 0.3", "kd_coef to its schedule"]
    assert [
        line.get_xdata()[0] for line in axes.get_lines() if list(line.get_ydata()) == [0, 1]
    ] == [12, 21]


def test_moves_near_each_other_share_a_label():
    moves = [
        {"step": s, "knob": k, "value": v}
        for s, k, v in (
            (10, "kd_coef", 0.3),
            (11, "kd_coef", 0.0),
            (11, "clip_high", 0.28),
            (30, "kd_coef", None),
        )
    ]
    assert move_labels(moves, 5) == [(10, "kd_coef 0.3 → 0, clip_high 0.28"), (30, "kd_coef off")]
    assert len(move_labels(moves, 0)) == 3


def test_a_label_names_what_acted_and_stays_short():
    moves = [{"step": 10, "knob": "kd_coef", "value": value} for value in (0.0, 0.35)]
    assert move_labels(moves, 5) == [(10, "kd_coef 0.35")]  # the 0 was in no step
    moves += [
        {"step": 11, "knob": knob, "value": 0.25}
        for knob in ("clip_high", "learning_rate", "temperature")
    ]
    ((step, words),) = move_labels(moves, 5)
    assert (step, words) == (10, "kd_coef 0.35, clip_high 0.25, …")


def test_evaluations_are_points_that_nothing_smooths(run):
    run.advance(40)
    history = History(run.folder.path)
    history.read()
    (line,) = draw(history, "kdrl", "accuracy").axes[0].get_lines()
    np.testing.assert_array_equal(line.get_ydata(), run.folder.metrics()["eval/accuracy"].dropna())
    assert line.get_marker() == "o"


def test_the_parts_of_the_length_add_up(run):
    run.advance(20)
    history = History(run.folder.path)
    history.read()
    axes = draw(history, "kdrl", "length in parts").axes[0]
    top = axes.collections[-1].get_paths()[0].vertices[:, 1].max()
    assert top == pytest.approx(history["completions/mean_length"].trailing_mean(9).max(), rel=1e-6)


# --- when -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("took", "seconds_apart"), [(0.01, 1.0), (0.2, 4.0)])
def test_redraws_are_bounded_whatever_the_step_rate(took, seconds_apart):
    redraw, drawn = Redraw(), []
    for step in range(10_000):  # a hundred steps a second
        now = step / 100
        if redraw.due(step, now):
            drawn.append(now)
            redraw.drawn(step, now, took)
    assert len(drawn) == pytest.approx(100 / seconds_apart, abs=1)
    assert np.diff(drawn).min() >= seconds_apart - 1e-9


def test_nothing_new_is_not_drawn_and_the_end_is_drawn_once():
    redraw = Redraw()
    assert redraw.due("a", 0.0)
    redraw.drawn("a", 0.0, 0.1)
    assert not redraw.due("a", 100.0)
    assert not redraw.due("b", 0.5)
    assert redraw.due("b", 0.5, rest="done")
    redraw.drawn("b", 0.5, 0.1, rest="done")
    assert not redraw.due("c", 0.6, rest="done")  # something comes after the end: no hurry
    assert redraw.due("c", 2.6, rest="done")


def test_a_drawing_that_took_long_delays_no_other_at_rest():
    """On a busy machine a second panel of a paused run stayed empty for half a minute."""
    redraw = Redraw()
    redraw.drawn("nothing yet", 0.0, took=3.0)
    assert not redraw.due("step 6", 50.0)
    assert redraw.due("step 6", 0.1, rest="done")
    redraw.drawn("step 6", 0.1, took=3.0, rest="done")
    assert redraw.due("step 7", 1.2, rest="done")


def test_a_sentence_for_where_there_are_no_pictures(run):
    run.request("kd_coef", 0.3)
    run.advance(10)
    history = History(run.folder.path)
    history.read()
    text = say(history, "kdrl", 60, "running")
    assert text.startswith("KDRL: step 10 of 60, running. reward 0.")
    assert text.endswith("moved by hand: kd_coef.")
