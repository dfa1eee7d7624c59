"""A run as one HTML file: complete for every kind of run, and safe whatever the run says."""

import json
import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from fake import FakeHandle, fake_row
from recorded import rollout, run_folder
from typer.testing import CliRunner

from rlkd_lab.commands import app
from rlkd_lab.lab.live.report import report_html, write_report
from rlkd_lab.runs import RunFolder
from rlkd_lab.study import write_table

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def evaluated(path):
    """A table of ``rlkd eval``: 4 prompts, 2 completions each, half of them right."""
    rows = [
        {"prompt_id": str(i), "prompt": "1+1?", "answer": "2", "set": "id", "difficulty": 2}
        | {"mode": "sample", "sample": k, "completion": "2", "extracted": "2", "correct": k == 0}
        | {"formatted": True, "finished": True, "length": 3, "chance": 0.1, "guesses": 0}
        for i in range(4)
        for k in range(2)
    ]
    write_table(path, pd.DataFrame(rows), {"version": 1})


class Page(HTMLParser):
    """What a browser makes of a page: its elements with their attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.found, self.words, self.inside = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self.inside = tag

    def handle_data(self, data):
        if self.inside not in ("script", "style"):
            self.words.append(data)

    def handle_endtag(self, tag):
        self.inside = ""

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def test_a_whole_report_has_every_part_and_loads_nothing(tmp_path):
    run = FakeHandle(tmp_path / "mine", steps=40, settings={"group_size": "6"})
    run.advance(20)
    run.request("kd_coef", 0.3)
    run.advance(20)
    run.forked("untouched", 20, 20)
    run.folder.append("events.jsonl", {"event": "warning", "step": 3, "text": "mind the gap"})
    run.folder.set_status("done", 40)
    rollout(longest=300).to_parquet(run.folder.path / "samples" / "step_000040.parquet")
    evaluated(run.path / "eval" / "step_000040.parquet")
    path = write_report(run.path)
    assert path == run.path / "report.html"
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    for words in (
        "state done",
        "step 40 of 40",
        "moved by hand kd_coef",
        "21 kd_coef 0.3 panel",
        "accuracy, held out",
        "step_000040: in distribution",
        "avg@2 50.0",
        "mind the gap",
        "log-ratio to the teacher",
        "Prompt 0+1?",
        "the first 200 of",
        "group_size 6 8",
        "every event (1)",
        "commit abc123",
    ):
        assert words in page.text, words
    assert "untouched fork" in text  # in the curves' data
    for tag, attributes in page.found:
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)
    assert not re.search(r"url\((?!data:|#)|@import", text)
    assert "default-src 'none'" in text
    stills = [each for tag, each in page.found if tag == "img"]
    assert len(stills) == sum(
        tag == "div" and each.get("class") == "curves" for tag, each in page.found
    )


def test_texts_of_a_run_are_shown_and_never_obeyed(tmp_path):
    frame = rollout()
    for column in ("prompt", "answer", "completion"):
        frame[column] = EVIL
    frame["tokens"] = [[EVIL] * len(tokens) for tokens in frame["tokens"]]
    frame["parts"] = '{"<b>bold</b>": 1}'
    folder = run_folder(
        tmp_path / "<i>run", "grpo", frames={1: frame}, probes={1: frame}, reward={"<u>": 1.0}
    )
    for event in ("warning", EVIL, "knob"):
        more = (
            {"knob": "</script><u>", "value": 0.1}
            if event == "knob"
            else {"text": EVIL, EVIL: EVIL}
        )
        folder.append("events.jsonl", {"event": event, "step": 1, **more})
    folder.write_json("env.json", {EVIL: EVIL, "versions": {EVIL: "1"}, "device": EVIL})
    folder.set_status("failed", 1, EVIL)
    text = report_html(folder)
    assert text.count("alert(1)") > 20
    page = Page(text)
    assert not {"i", "u"} & {tag for tag, _ in page.found}
    assert [each.get("type") for tag, each in page.found if tag == "script"] == [
        *["application/json"] * text.count('class="curves"'),
        "module",
    ]
    handlers = [each for _, each in page.found for name in each if name.startswith("on")]
    assert handlers == []
    assert all(each["src"].startswith("data:") for tag, each in page.found if tag == "img")


def one_row(path):
    run = FakeHandle(path)
    run.advance(1)
    return run.folder, "step 1 of 60"


def no_row(path):
    return FakeHandle(path).folder, "step 0 of 60"


def running(path):
    run = FakeHandle(path)
    run.advance(3)
    run.folder.set_status("running", 3)
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "rew')  # being written
    return run.folder, "running when this was written"


def failed(path):
    run = FakeHandle(path)
    run.advance(2)
    run.folder.set_status("failed", 2, "the loss is NaN")
    return run.folder, "failed: the loss is NaN"


def torn(path):
    run = FakeHandle(path)
    run.advance(2)
    (run.path / "status.json").write_text("{")
    (run.path / "samples" / "step_000001.parquet").write_text("no parquet")
    return run.folder, "is damaged"


def older(path):
    folder = RunFolder.create(path, {"method": "long_gone", "format": 1}, {})
    folder.append("metrics.jsonl", {"step": 1, "reward": 0.5})
    return folder, "older version"


def fork(path):
    run = FakeHandle(path)
    run.advance(8)
    folder = run.forked("untouched", 8, 4)
    return folder, f"untouched fork of {path.name} after step 8"


@pytest.mark.parametrize("kind", [one_row, no_row, running, failed, torn, older, fork])
def test_a_run_of_every_kind_has_a_report(tmp_path, kind):
    folder, words = kind(tmp_path / "mine")
    page = Page(report_html(folder))
    assert words in page.text
    assert "Versions and device" in page.text


def test_a_long_run_stays_small(tmp_path):
    run = FakeHandle(tmp_path / "mine", steps=5000)
    lines = (fake_row(step, run.rng, 0.5) for step in range(1, 5001))
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    many = rollout(groups=8, size=8, longest=2000)
    many.to_parquet(run.path / "samples" / "step_005000.parquet")
    for step in range(500, 5001, 500):
        many[:8].to_parquet(run.path / "samples" / f"probe_{step:06d}.parquet")
    assert len(report_html(run.folder)) < 3e6


def test_the_command_says_where_and_refuses_in_words(tmp_path):
    run = FakeHandle(tmp_path / "mine")
    run.advance(2)
    there = tmp_path / "for" / "you.html"
    done = CliRunner().invoke(app, ["report", str(run.path), "--out", str(there)])
    assert done.exit_code == 0, done.output
    assert str(there) in done.stdout.replace("\n", "")
    assert there.read_text(encoding="utf-8").startswith("<!doctype html>")
    for words, says in (
        (["report", str(tmp_path)], "has no config.json"),
        (["report", str(run.path), "--out", str(tmp_path / "a.pdf")], ".html"),
    ):
        refused = CliRunner().invoke(app, words)
        assert refused.exit_code == 2
        assert says in refused.stderr
    assert sorted(each.name for each in tmp_path.iterdir()) == ["for", "mine"]
