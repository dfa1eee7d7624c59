"""The curves in the page: their numbers are the drawing's, and they cost little."""

import base64
import csv
import io
import json
import shutil
import subprocess
import time
import tomllib
import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from fake import FakeHandle

from rlkd_lab.lab.live.curve_groups import GROUPS
from rlkd_lab.lab.live.curve_view import WEB, Curves, CurveView, packed, source, watch_curves
from rlkd_lab.lab.live.curves import curve_data, draw, drawn
from rlkd_lab.lab.live.history import History
from rlkd_lab.plots.styles import title_of

ROOT = Path(__file__).parents[3]
NODE = shutil.which("node")


@pytest.fixture
def run(tmp_path):
    """A run of 40 steps, with a moved knob and forks at step 20."""
    run = FakeHandle(tmp_path / "run")
    run.advance(20)
    run.request("kd_coef", 0.3)
    run.advance(20)
    return run


def read(run):
    history = History(run.folder.path)
    history.read()
    return history


def strip_of(run):
    panels = curve_data(read(run), "kdrl")["panels"]
    return next(panel for panel in panels if panel["name"] == "reward difference")


def table(data, call="csv(data, new Set(), [-Infinity, Infinity])"):
    """The CSV that the view's JavaScript writes of what is sent to it."""
    if NODE is None:
        pytest.skip("node is not here: the JavaScript cannot run")

    def sent(one):
        if isinstance(one, bytes):
            return {"bytes": base64.b64encode(one).decode()}
        if isinstance(one, dict):
            return {key: sent(value) for key, value in one.items()}
        return [sent(value) for value in one] if isinstance(one, list) else one

    view = """(key, one) => one?.bytes === undefined ? one
      : new DataView(Uint8Array.from(Buffer.from(one.bytes, "base64")).buffer)"""
    script = source("js").replace("export default", "const exported =")
    script += (
        f"const data = unpack(JSON.parse({json.dumps(json.dumps(sent(packed(data))))}, {view}));"
    )
    script += f"process.stdout.write({call});"
    done = subprocess.run([NODE], input=script, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return list(csv.DictReader(io.StringIO(done.stdout)))


@pytest.mark.parametrize("group", GROUPS)
def test_the_page_shows_the_numbers_of_the_drawing(run, group):
    for kind in ("untouched", "noise"):
        run.forked(kind, step=20, count=15)
    history = read(run)
    found = table(curve_data(history, "kdrl", group))
    lines = [line for axes in draw(history, "kdrl", group).axes for line in axes.get_lines()]
    drawn = [line for line in lines if list(line.get_ydata()) not in ([0, 1], [0, 0])]
    points = np.concatenate([line.get_xydata() for line in drawn] or [np.empty((0, 2))])
    edges = [row for row in found if row["line"].endswith(" edge")]
    there = [(row["step"], row["value"]) for row in found if row not in edges]
    assert len(points) + len(edges) > 10
    np.testing.assert_allclose(np.array(there, dtype=float).reshape(-1, 2), points, rtol=1e-6)
    if group == "length in parts":
        top = max(float(row["value"]) for row in edges)
        mean = history["completions/mean_length"].trailing_mean(9).max()
        assert top == pytest.approx(mean, rel=1e-6)


def test_a_downloaded_table_has_what_is_shown(run):
    title = title_of("kdrl")
    found = table(curve_data(read(run), "kdrl"), f"csv(data, new Set(['{title}']), [0, 99])")
    assert found == []  # raw values go with their line
    found = table(curve_data(read(run), "kdrl"), "csv(data, new Set(), [11, 13])")
    assert {row["step"] for row in found} == {"11", "12", "13"}
    assert {row["line"] for row in found} == {title, f"{title}, each step"}


def test_the_first_step_is_a_point(tmp_path):
    run = FakeHandle(tmp_path / "run")
    run.advance(1)
    data = curve_data(read(run), "kdrl")
    assert all(line["dots"] > 0 for panel in data["panels"] for line in panel["lines"])
    assert draw(read(run), "kdrl").axes[0].get_lines()[1].get_marker() == "o"


def test_a_difference_without_a_band_of_chance_is_faint_and_says_so(run):
    run.forked("untouched", step=20, count=15)
    (bare,) = [
        one for one in curve_data(read(run), "kdrl")["panels"] if one["name"] == "reward difference"
    ]
    assert bare["note"] == "no band of chance: this may be noise"
    assert bare["lines"][0]["alpha"] < 0.5
    run.forked("noise", step=20, count=15, seed=5)
    (whole,) = [
        one for one in curve_data(read(run), "kdrl")["panels"] if one["name"] == "reward difference"
    ]
    assert (whole["note"], whole["lines"][0]["alpha"], len(whole["bands"])) == ("", 1.0, 1)


@pytest.mark.parametrize("late", ["run", "untouched", "noise", "untouched noise"])
def test_a_metric_that_a_fork_has_not_measured_yet_has_no_difference(run, late):
    places = {"run": run.folder}
    for kind in ("untouched", "noise"):
        places[kind] = run.forked(kind, step=20, count=15)
    for kind, folder in places.items():
        rows = folder.rows()
        for row in rows:  # a KL is measured every ten steps
            if kind in late and row["step"] > 20:
                del row["kl_teacher_rev"]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder.path / "metrics.jsonl").write_text(text)
    data = curve_data(read(run), "kdrl")
    strips = {panel["name"].split()[0]: panel for panel in data["panels"] if panel["strip"]}
    assert ("kl_teacher_rev" in strips) == ("untouched" not in late)
    for name, strip in strips.items():
        banded = name != "kl_teacher_rev" or "noise" not in late
        assert [np.isfinite(band["high"]).all() for band in strip["bands"]] == [True] * banded
    assert drawn(data).axes


def test_the_step_that_is_read_is_that_of_the_run_and_not_of_a_longer_one_beside_it(tmp_path):
    for name, steps in (("mine", 30), ("mine-2", 7)):
        FakeHandle(tmp_path / name).advance(steps)
    history, other = History(tmp_path / "mine-2"), History(tmp_path / "mine")
    history.earlier = {"mine": other}
    history.read()
    other.read()
    call = "'step\\n' + lastStep(data.panels[0])"
    assert table(curve_data(history, "kdrl"), call) == [{"step": "7"}]


def test_the_note_of_a_difference_stands_above_its_line(run):
    run.forked("untouched", step=20, count=15)
    data = curve_data(read(run), "kdrl")
    drawn = draw(read(run), "kdrl").axes
    (axes,) = [one for one in drawn if "reward: run" in one.get_title("left")]
    note = axes.texts[0].get_window_extent()
    highest = max(np.max(line.get_ydata()) for line in axes.get_lines()[:2])
    assert note.y0 >= axes.transData.transform((0, highest))[1]
    panel = "data.panels.find((one) => one.name === 'reward difference')"
    reach = f"heights({panel}, new Set(), [0, 99])"
    (row,) = table(data, f"'low,high\\n' + {reach}")
    values = strip_of(run)["lines"][0]["y"]
    low, high = (float(row[name]) for name in ("low", "high"))
    assert (high - max(0, values.max())) / (high - low) > 0.18  # 14 of 80 pixels


@pytest.mark.parametrize("group", ["main", "entropy"])
def test_labels_of_neighbouring_moves_do_not_overlap(tmp_path, group):
    run = FakeHandle(tmp_path / "run", steps=100)
    for step in range(1, 101):
        if step % 3 == 0:
            run.request("kd_coef", step / 100)
        run.advance()
    figure = draw(read(run), "kdrl", group)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) > 4
    assert not [1 for a, b in pairwise(boxes) if a.overlaps(b)]


def test_twenty_thousand_steps_stay_flat_and_use_a_twentieth_of_the_time(tmp_path):
    now, history = [0.0], History(tmp_path)
    fork = tmp_path / "twins" / "untouched-0"
    fork.mkdir(parents=True)
    (fork / "fork.json").write_text('{"step": 1, "kind": "untouched"}')
    rng, view = np.random.default_rng(0), CurveView()
    curves = Curves(view, lambda: now[0] + time.process_time())
    curves.of(history, "kdrl", 20_000)  # no output for a still picture, which has its own test
    names = [name for (name,) in GROUPS["main"]]
    rows = [
        json.dumps({"step": step, **dict(zip(names, rng.random(3), strict=True))}) + "\n"
        for step in range(1, 20_001)
    ]
    sizes = []
    tracemalloc.start()
    for first in range(0, 20_000, 500):
        for path in (tmp_path, fork):
            with (path / "metrics.jsonl").open("a") as file:
                file.writelines(rows[first : first + 500])
        history.read()
        now[0] += 1.0
        curves.update(first, rest=None, share=20)
        sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert sizes[-1] - sizes[8] < 300_000
    drawing = []
    for each in range(20):
        now[0] += 1.0
        began = time.process_time()
        assert curves.update(each, rest=None, share=20)[0]
        drawing.append(time.process_time() - began)
    assert np.median(drawing) < 1.0 / 20  # it is drawn at most once a second
    lines = [line for panel in view.data["panels"] for line in panel["lines"]]
    assert view.data["step"] > 19_000
    assert len(lines) == 12
    assert max(len(line["x"]) for line in lines) / 4 <= 2000


def test_watch_curves_shows_a_view_and_a_still_in_the_foreground(tmp_path, monkeypatch):
    shown, updated = [], []

    class Shown:
        def update(self, data, **_):
            updated.append(data)

    monkeypatch.setattr(
        "rlkd_lab.lab.live.curve_view.display", lambda data, **_: (shown.append(data), Shown())[1]
    )
    run = FakeHandle(tmp_path / "run")
    now = iter(np.arange(0, 1000, 0.05))
    show = watch_curves(clock=lambda: next(now))
    for _ in range(60):
        run.advance()
        show(run, run.folder.rows()[-1])
    view, still = shown
    assert view.data["step"] == 60
    assert "<div class='rlkd-still'>" in still["text/html"]
    assert 1 <= len(updated) <= 3
    assert "step 60 of 60" in updated[-1]["text/plain"]
    assert updated[-1]["image/png"]


def test_the_view_is_in_the_wheel_and_asks_no_network():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["rlkd_lab"]
    packed_files = {path for pattern in patterns for path in (ROOT / "rlkd_lab").glob(pattern)}
    assert {*WEB.iterdir()} <= packed_files
    own = (WEB / "curve_view.js").read_text() + (WEB / "downloads.js").read_text()
    assert "http" not in own.replace("http://www.w3.org/2000/svg", "")
    assert "import" not in own
