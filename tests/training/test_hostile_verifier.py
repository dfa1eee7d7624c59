"""Runs whose verifier raises and hangs: they go on, say so, and come out the same when they are
resumed and replayed.
"""

import contextlib
import json
import shutil

import pytest

from rlkd_lab.runs import RunFolder, first_difference
from rlkd_lab.training import replay, resume, run

# raises on a fifth of the completions, and hangs on another the first time; its file remembers, so
# that a second call would be in time, and right
MOODY = """
import time, zlib
from pathlib import Path
from rlkd_lab.tasks import ArithmeticTask, Score

class Moody(ArithmeticTask):
    name = "moody"
    def __init__(self, memory=""):
        self.memory = Path(memory)
    def score(self, text, example):
        mood = zlib.crc32(text.encode()) % 5 if text else 4
        if mood == 0:
            return 1 / 0
        if mood == 1 and text not in self.memory.read_text().split():
            with self.memory.open("a") as file:
                file.write(text + " ")
            time.sleep(1e6)
        return Score({"accuracy": float(mood < 3), "format": 1.0}, text)
"""


@pytest.fixture
def moody(tmp_path, tiny):
    (tmp_path / "moody.py").write_text(MOODY, encoding="utf-8")
    (tmp_path / "memory").touch()

    def make(method="grpo", settings=None, **fields):
        own = {
            "task": f"{tmp_path / 'moody.py'}:Moody",
            "task.memory": str(tmp_path / "memory"),
            "verifier_seconds": "0.4",
            "max_new_tokens": "40",
        }
        return tiny(
            method,
            own | (settings or {}),
            **{
                "steps": 3,
                "group_size": 4,
                "checkpoint_every": 1,
                "student": "student",
                "teacher": None,
                **fields,
            },
        )

    return make


def events_of(folder):
    return [
        {key: value for key, value in event.items() if key != "time"}
        for event in folder.rows("events.jsonl")
        if event["event"] == "verifier"
    ]


def test_a_run_goes_on_says_so_and_is_replayed_as_it_was(moody, tmp_path):
    with pytest.warns(
        UserWarning,
        match=r"step 1: .* calls of the verifier failed and score 0: .*stand in events\.jsonl"
        r" alone",
    ):
        folder = run(moody(eval_every=2, eval_prompts=6), tmp_path / "run")
    rows, events = folder.rows(), events_of(folder)
    assert len(rows) == 3
    assert folder.status()["state"] == "done"
    gave_up = [why for event in events for why in event.get("gave_up", {}).values()]
    assert gave_up and set(gave_up) == {"the verifier took longer than 0.4 s"}
    assert any(
        "ZeroDivisionError" in event["why"] or event["failed"] > len(event.get("gave_up", {}))
        for event in events
    )
    assert [event["step"] for event in events] == sorted({event["step"] for event in events}), (
        "one a step"
    )
    assert any(0 < row.get("reward/unjudged", 0) < 1 for row in rows)
    assert all(event["failed"] <= event["of"] and event["text"] for event in events)
    # what hung then would be in time now: the replay must not ask
    again = replay(folder.path, tmp_path / "again")
    assert again.difference is None
    assert events_of(again.folder) == events
    # without the record it comes out otherwise
    with (folder.path / "events.jsonl").open("w") as file:
        file.write("")
    assert replay(folder.path, tmp_path / "other").difference is not None


def test_a_resumed_run_gives_up_the_same_calls_and_says_so_once(moody, tmp_path):
    whole = run(moody(), tmp_path / "run")
    rows, events = whole.rows(), events_of(whole)
    assert any("gave_up" in event and event["step"] > 1 for event in events)
    for point in whole.checkpoints()[1:]:
        shutil.rmtree(point)
    whole.set_status("failed", 3, "killed")
    folder = resume(whole.path)
    assert first_difference(folder.rows(), rows)[0] is None
    assert events_of(folder) == events


def test_what_could_not_be_judged_stands_in_the_samples(moody, tmp_path):
    folder = run(moody(samples_every=1, steps=1, prompts_per_step=4), tmp_path / "run")
    table = RunFolder.open(folder.path).samples(1)
    odd = table[table["why"].notna()]
    assert len(odd)
    assert (odd["reward"] == 0).all()
    assert all(json.loads(parts) == {"accuracy": 0.0, "format": 0.0} for parts in odd["parts"])
    assert folder.rows()[0]["reward/unjudged"] == pytest.approx(len(odd) / len(table))


def test_a_teacher_whose_traces_cannot_all_be_judged(moody, tmp_path):
    folder = run(moody("rft", teacher="student", traces=24, options={}), tmp_path / "run")
    assert len(folder.rows()) == 3
    assert events_of(folder)[0]["step"] == 1
    assert replay(folder.path, tmp_path / "again").difference is None


def test_a_verifier_that_judges_nothing_is_refused_in_one_sentence(tiny, tmp_path):
    (tmp_path / "picky.py").write_text(
        "from rlkd_lab.tasks import ArithmeticTask\n\nclass Picky(ArithmeticTask):\n    name"
        " = 'picky'\n"
        "    def score(self, text, example):\n        return super().score(text, example) if"
        " not text else text[10 ** 6]\n",
        encoding="utf-8",
    )
    config = tiny(
        "grpo",
        {"task": f"{tmp_path / 'picky.py'}:Picky", "max_new_tokens": "96"},
        student="student",
        teacher=None,
    )
    with pytest.raises(
        ValueError,
        match=r"^the task picky: score raised IndexError: string index out of range; .* all 4"
        r" completions that it was shown$",
    ):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_process_of_the_verifier_ends_with_the_run(tiny, tmp_path):
    import psutil

    (tmp_path / "mine.py").write_text(
        "from rlkd_lab.tasks import ArithmeticTask\n\nclass Mine(ArithmeticTask):\n    name ="
        " 'mine'\n",
        encoding="utf-8",
    )
    loops, during, others = [], [], []

    def look(loop, row):
        loops.append(loop)  # held, so that nothing but the end of the run can end it
        during.extend(alive())

    def alive():
        found = []
        for child in psutil.Process().children():
            with contextlib.suppress(
                psutil.NoSuchProcess
            ):  # another test's, which ends at this moment
                found += (
                    [child.pid]
                    if child.pid not in others
                    and any("rlkd_lab.tasks.verifier_process" in word for word in child.cmdline())
                    else []
                )
        return found

    others.extend(alive())
    run(
        tiny("grpo", {"task": f"{tmp_path / 'mine.py'}:Mine"}, teacher=None),
        tmp_path / "run",
        on_step=look,
    )
    assert len(during) == 2
    assert during[0] == during[1]
    assert during[0] not in alive()


def test_without_a_limit_the_verifier_is_called_in_the_run(tiny, tmp_path, monkeypatch):
    from rlkd_lab.tasks import verifier_process

    monkeypatch.setattr(verifier_process.VerifierProcess, "call", None)
    (tmp_path / "mine.py").write_text(
        "from rlkd_lab.tasks import ArithmeticTask\n\nclass Mine(ArithmeticTask):\n    name ="
        " 'mine'\n",
        encoding="utf-8",
    )
    settings = {"task": f"{tmp_path / 'mine.py'}:Mine", "verifier_seconds": "0"}
    assert len(run(tiny("grpo", settings, teacher=None), tmp_path / "run").rows()) == 2
