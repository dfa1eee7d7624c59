"""The table of runs: what it shows, follows and refuses; runs compared by seed."""

import json
import shutil
import time

import numpy as np
import pytest
from fake import fake_row

from rlkd_lab.lab import compare, runs
from rlkd_lab.lab.live.family import differing, settings_of
from rlkd_lab.runs import RunFolder
from rlkd_lab.training.make_config import make_config


@pytest.fixture
def make(tmp_path):
    """``make(name, …)``: a run in the folder, with made-up rows."""

    def run(name, method="kdrl", steps=10, seed=0, state="done", why=None, lift=0.0, **settings):
        config = make_config(method, steps=60, seed=seed, settings=settings)
        folder = RunFolder.create(tmp_path / name, config.model_dump(), {})
        rng = np.random.default_rng([seed, len(name)])
        for step in range(1, steps + 1):
            folder.append("metrics.jsonl", fake_row(step, rng, 0.4 + lift))
        folder.set_status(state, steps, why)
        return folder

    return run


def select(table, *names):
    table.table.selected = list(names)


def rows_of(table):
    return {row["name"]: row for row in table.table.rows}


# --- what it shows --------------------------------------------------------------------------------


def test_states_settings_that_differ_values_and_reasons_are_shown(make, tmp_path):
    make("a", kd_coef="0.3").append("events.jsonl", {"event": "knob", "step": 1, "knob": "x"})
    make("b", seed=1, steps=25)
    make("c", "grpo", state="failed", why="the loss is <NaN>")
    make("d", state="idle", steps=3)
    make("e", state="idle", steps=0)
    (make("f").path / "config.json").write_text('{"form')
    (make("g").path / "metrics.jsonl").write_text('{"step": 2}\nnothing\n')
    shown = runs(tmp_path)
    rows = rows_of(shown)
    assert {name: row["state"] for name, row in rows.items()} == dict(
        zip(
            "abcdefg",
            ["done", "done", "failed", "stopped", "not started", "broken", "broken"],
            strict=True,
        )
    )
    assert rows["a"]["settings"] == "kd_coef 0.3, seed 0 · moved by hand"
    assert rows["b"]["settings"] == "kd_coef 0.1, seed 1"  # its default, which nobody gave
    assert rows["c"]["settings"] == "seed 0"
    assert (rows["b"]["step"], rows["b"]["steps"]) == (25, 60)
    written = [row for row in RunFolder.open(tmp_path / "b").rows() if "eval/accuracy" in row]
    assert rows["b"]["accuracy"] == written[-1]["eval/accuracy"]
    assert rows["c"]["problem"] == "the loss is <NaN>"
    assert "torn" in rows["f"]["problem"]
    assert rows["g"]["problem"]
    assert "broken" in repr(shown)


def test_a_later_run_stands_after_an_earlier_one(make, tmp_path):
    for name in ("mine-10", "mine", "mine-2", "10", "9"):
        make(name)
    names = [row["name"] for row in runs(tmp_path).table.rows]
    assert names == ["9", "10", "mine", "mine-2", "mine-10"]


def test_one_damaged_run_leaves_the_table_whole(make, tmp_path):
    make("a")
    for name, field, value in (("b", "seed", {"a": 1}), ("c", "steps", "many")):
        path = make(name).path / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    for name, rewards in (("d", ('"high"', "0.5")), ("e", ("0.5", "NaN"))):
        rows = [f'{{"step": {n}, "reward": {each}}}' for n, each in enumerate(rewards, 1)]
        (make(name).path / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    shown = runs(tmp_path)
    assert shown.problem == ""
    rows = rows_of(shown)
    assert [rows[name]["state"] for name in "ade"] == ["done", "broken", "done"]
    assert (rows["e"]["reward"], rows["e"]["rewards"]) == (None, [0.5])
    json.dumps(shown.table.rows, allow_nan=False)  # a page has no NaN


def test_damaged_marks_are_said_and_kept(make, tmp_path):
    make("a")
    for words in ('["b", "c"', '{"b": 1}', "[1]"):
        (tmp_path / "marked.json").write_text(words)
        shown = runs(tmp_path)
        assert "marked.json is damaged" in shown.said.value
        select(shown, "a")
        shown._press("Mark")
        assert "mend or delete it" in shown.said.value
        assert (tmp_path / "marked.json").read_text() == words
    (tmp_path / "marked.json").write_text('["b"]')
    shown.update()
    assert "damaged" not in shown.said.value
    shown._press("Mark")
    assert json.loads((tmp_path / "marked.json").read_text()) == ["a", "b"]


def test_it_follows_runs_that_are_made_changed_and_deleted(make, tmp_path, monkeypatch):
    monkeypatch.setattr("rlkd_lab.lab.live.browser.POLL_EVERY", 0.02)
    folder = make("a", steps=3)
    shown = runs(tmp_path)
    select(shown, "a")
    shown._ipython_display_()
    make("b")
    folder.append("metrics.jsonl", fake_row(4, np.random.default_rng(0), 0.5))
    until(lambda: rows_of(shown).get("b") and rows_of(shown)["a"]["step"] == 4)
    shutil.rmtree(tmp_path / "a")
    until(lambda: list(rows_of(shown)) == ["b"])
    assert shown.table.selected == []
    again = runs(tmp_path)
    again._ipython_display_()
    assert "a newer one" in shown.said.value
    assert not shown.follower.thread.is_alive()
    again.close()


def until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_look_reads_only_what_has_changed(make, tmp_path, monkeypatch):
    read = []
    for name in "abc":
        make(name)
    shown = runs(tmp_path)
    real = shown._row
    monkeypatch.setattr(
        "rlkd_lab.lab.live.browser.row_of",
        lambda path, *how: (read.append(path.name), ({"state": "torn", "problem": ""}, {}))[1],
    )
    monkeypatch.setattr(shown, "_row", real)
    shown.update()
    assert read == []
    RunFolder.open(tmp_path / "b").set_status("failed", 10, "why")
    shown.update()
    assert read == ["b"]


# --- what a person does ---------------------------------------------------------------------------


def test_buttons_fit_the_selection(make, tmp_path):
    for name in "ab":
        make(name)
    shown = runs(tmp_path)
    for names, alive in (
        ((), {"Refresh"}),
        (("a",), {"Open", "Mark", "Delete", "Refresh"}),
        (("a", "b"), {"Compare", "Mark", "Delete", "Refresh"}),
    ):
        select(shown, *names)
        assert {name for name, each in shown.buttons.items() if not each.disabled} == alive


def test_open_shows_the_panel_and_compare_the_curves_below(make, tmp_path):
    for seed in (0, 1):
        make(f"a{seed}", seed=seed)
    make("broken").path.joinpath("env.json").unlink()
    shown = runs(tmp_path)
    select(shown, "a0")
    shown.buttons["Open"].click()
    first = shown.view
    assert shown.shown.children == (first.top,)
    assert "step 10 of 60" in first.table.value
    select(shown, "a0", "a1")
    shown.buttons["Compare"].click()
    assert not first.follower.thread.is_alive()
    assert shown.view.view.data["group"] == "compare"
    select(shown, "broken")
    shown.buttons["Open"].click()
    assert "no env.json" in shown.said.value
    shown.close()


def test_marks_stand_in_a_file_and_come_first(make, tmp_path):
    for name in "ab":
        make(name)
    shown = runs(tmp_path)
    select(shown, "b")
    shown.buttons["Mark"].click()
    assert json.loads((tmp_path / "marked.json").read_text()) == ["b"]
    assert [row["name"] for row in runs(tmp_path).table.rows] == ["b", "a"]
    shown.buttons["Mark"].click()
    assert json.loads((tmp_path / "marked.json").read_text()) == []
    (tmp_path / "marked.json").write_text("{torn")
    assert not rows_of(runs(tmp_path))["b"]["marked"]


def test_delete_asks_first_and_spares_what_is_driven(make, tmp_path, another):
    for name in ("a", "b", "held", "live"):
        make(name)
    RunFolder.open(tmp_path / "live").set_status("running", 3)  # by this process, as a thread does
    (make("torn").path / "config.json").unlink()
    shown = runs(tmp_path)
    select(shown, "a")
    shown.buttons["Delete"].click()
    assert shown.asking.layout.display is None
    assert "Delete 1 for good? a" in shown.question.value
    shown.keep.click()
    assert shown.asking.layout.display == "none"
    with another(tmp_path / "held"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlkd_lab.lab.live.browser._driven", lambda path, status: True)
        select(shown, "a", "held", "live", "torn")
        shown.buttons["Delete"].click()
        shown.sure.click()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "held", "live"]
    assert (tmp_path / "held" / "metrics.jsonl").exists()
    assert "held is being trained" in shown.said.value
    assert "live is running: stop it first" in shown.said.value


# --- runs compared --------------------------------------------------------------------------------


def strip(comparison):
    found = [one for one in comparison.data["panels"] if one["name"] == "reward difference"]
    return found[0] if found else None


def test_the_difference_by_seed_is_the_mean_over_pairs_with_its_interval(make):
    pairs = [
        (make(f"w{s}", seed=s), make(f"s{s}", seed=s, lift=s / 20, kd_coef="0.3"))
        for s in (3, 1, 2)
    ]
    compared = compare(*(run for pair in pairs for run in pair))
    labels = {one["label"] for one in compared.data["panels"][0]["lines"]}
    assert labels == {f"kd_coef {value}, seed {s}" for value in (0.1, 0.3) for s in (1, 2, 3)}
    raw = [[[row["reward"] for row in run.rows()] for run in pair] for pair in pairs]
    means = np.array([[np.mean(run[:9]) for run in pair] for pair in raw])  # step 9: window of 9
    gaps = means[:, 1] - means[:, 0]
    shown = strip(compared)
    assert shown["lines"][0]["y"][8] == pytest.approx(gaps.mean())
    half = (shown["bands"][0]["high"] - shown["bands"][0]["low"])[8] / 2
    assert half == pytest.approx(4.302653 * gaps.std(ddof=1) / 3**0.5, rel=1e-5)  # t of two degrees
    assert "mean over 3 seeds (1, 2, 3)" in compared.words


def test_what_cannot_be_told_is_not_drawn_and_said(make):
    plain, other = make("a"), make("b", kd_coef="0.3")
    one = compare(plain, other)
    assert strip(one)["bands"] == []
    assert strip(one)["note"] == "one seed: no band of chance"
    assert "may be noise" in one.words
    two = compare(plain, make("c", kd_coef="0.3", clip_high="0.4"))
    assert strip(two) is None
    assert "they differ in 2 settings (clip_high, kd_coef)" in two.words
    unlike = compare(plain, make("d", seed=5, kd_coef="0.3"))
    assert strip(unlike) is None
    assert "they share no seed" in unlike.words
    other.append("events.jsonl", {"event": "knob", "step": 1, "knob": "kd_coef", "value": 1.0})
    touched = compare(plain, other)
    assert strip(touched) is None
    assert "Knobs were moved by hand, so no difference has b." in touched.words
    assert "same settings" in compare(plain, make("e", seed=1)).words
    with pytest.raises(ValueError, match="two runs or more"):
        compare(plain, plain)


def test_what_a_method_brings_along_is_no_setting_that_differs(make):
    found = [settings_of(each) for each in (make("a", "grpo"), make("b", "dapo"), make("c"))]
    assert found[0].values["clip_high"] != found[1].values["clip_high"]
    assert differing(found) == ["method"]
    same = settings_of(make("e", "grpo", aggregation="token"))
    assert (
        same.values["aggregation"]
        == found[2].values["aggregation"]
        != found[0].values["aggregation"]
    )
    assert differing([same, found[2]]) == ["method"]
    assert differing([same, found[0]]) == ["aggregation"]
    rate = settings_of(make("d", "dapo", learning_rate="0.01"))
    assert differing([found[0], rate]) == ["method", "learning_rate"]


def test_a_comparison_is_live(make, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("rlkd_lab.lab.live.compare_view.time.monotonic", lambda: now[0])
    a, b = make("a"), make("b", seed=1)
    compared = compare(a, b)
    a.append("metrics.jsonl", fake_row(11, np.random.default_rng(0), 0.5))
    now[0] += 5
    compared.update()
    assert compared.view.data["step"] == 11
    shutil.rmtree(b.path)
    now[0] += 5
    compared.update()
    assert compared.view.data["step"] == 11
