"""The GPU benchmark loses nothing when one of its sides ends early."""

import json
import sys

import pytest

from benchmarks import step

sys.modules.setdefault("step", step)  # as a script in its folder finds it
gpu = pytest.importorskip("benchmarks.gpu")
sys.modules.setdefault("gpu", gpu)
minutes = pytest.importorskip("benchmarks.gpu_minutes")

SIDE = """
import sys
kind, name = sys.argv[1:3]
for turn, _ in enumerate(sys.stdin):
    if name.startswith("hf") and turn == 1:
        raise ValueError("the reason")
    print('@{"step_time": 2.0, "num_tokens": 6.0}', flush=True)
"""


def test_what_is_measured_is_written_and_a_side_that_ends_says_why(tmp_path, capsys, monkeypatch):
    (tmp_path / "side.py").write_text(SIDE)
    monkeypatch.setattr(gpu, "TINY", True)
    monkeypatch.setattr(gpu, "BATCHES", (8,))
    monkeypatch.setattr(gpu, "REPEATS", 2)
    monkeypatch.setattr(gpu, "make_models", lambda folder: None)
    whole = step.Side.__init__

    def start(self, kind, name, script, further):
        whole(self, kind, name, str(tmp_path / "side.py"), further)

    monkeypatch.setattr(step.Side, "__init__", start)
    with pytest.raises(SystemExit, match="without an answer: hf:8"):
        gpu.main()
    text = capsys.readouterr().out
    first, end = json.JSONDecoder().raw_decode(text)
    assert (set(first["steps"]), first["sampling"]) == ({"trl", "fast", "lean"}, {})
    assert first["trl_over_fast"]["median"] == 1
    last = json.loads(text[end:])
    assert set(last["sampling"]["8"]) == {"fast", "continuous"}
    assert last["sampling"]["8"]["fast"]["tokens_per_second"] == 3
    assert "ValueError: the reason" in last["failed"]["hf:8"]


def test_an_item_that_is_cut_or_fails_keeps_its_answers_and_says_how_it_ended():
    slow = "import time; print('@{\"n\": 1}', flush=True); input(); time.sleep(60)"
    cut = minutes.run_item(minutes.Item("slow", 3, ["-c", slow], turns=1))
    assert (cut["ended"], cut["answers"]) == ("cut at 3 s", [{"n": 1}])
    assert cut["seconds"] < 30
    failed = minutes.run_item(
        minutes.Item("bad", 30, ["-c", "print('{}\\n{0: 1}'); raise ValueError(7)"])
    )
    assert (failed["ended"], failed["answers"]) == ("status 1", [{}])
    assert failed["last_words"].endswith("ValueError: 7")


def test_the_items_are_every_gpu_test_and_what_the_sides_serve(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "TINY", True)
    assert len(minutes.tests()) >= 10
    kinds = {item.command[1] for item in minutes.items(tmp_path)}
    assert kinds | {"models"} == set(gpu.SERVE)
    monkeypatch.setattr(minutes, "WORDS", ["test_twenty", "hf:64"])
    names = [item.name for item in (*minutes.tests(), *minutes.items(tmp_path))]
    chosen = [
        item.name for item in (*minutes.tests(), *minutes.items(tmp_path)) if minutes.chosen(item)
    ]
    assert chosen == ["test_twenty_steps_of_each_main_method", "sampling hf:64"]
    assert set(chosen) < set(names)
