"""Files of a run, which anything may have written or cut: what can be read is read, and the
rest is an error in words. Requests, which anybody may write.
"""

import json
import math
from types import SimpleNamespace

import pandas as pd
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rlkd_lab.runs import RunFolder, first_difference
from rlkd_lab.runs.tail import Tail
from rlkd_lab.training import make_config
from rlkd_lab.training.context import Context
from rlkd_lab.training.decisions import Decisions
from rlkd_lab.training.requests import RequestHandler
from rlkd_lab.training.state import Progress

MANY = settings(
    max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
ANY_TEXT = st.text(st.characters(codec=None, categories=None), max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4),
    max_leaves=6,
)
DEEP = b"[" * 100_000


def folder_in(tmp_path_factory, name="run"):
    path = tmp_path_factory.getbasetemp() / name
    if not path.exists():
        RunFolder.create(path, make_config("kdrl", steps=5).model_dump(), {"device": "cpu"})
    return RunFolder(path)


def in_words(error):
    assert type(error) in (ValueError, FileNotFoundError), f"{type(error).__name__}: {error}"
    assert "\n" not in str(error)
    assert "run" in str(error), "which file"


def tries(call):
    """What it returns, or None where it refuses in words."""
    try:
        return call()
    except (ValueError, OSError) as error:
        in_words(error)
        return None


# --- rows -----------------------------------------------------------------------------------------

ROW = st.dictionaries(st.sampled_from(["step", "event", "reward", "x"]), JSON, max_size=4)
LINE = (
    ROW.map(lambda row: json.dumps({"step": 1, **row}).encode())
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.binary(max_size=20)
)


@MANY
@given(st.lists(LINE, max_size=4).map(b"\n".join), st.sampled_from([b"", b"\n"]))
@example(DEEP, b"\n")
@example(b"[1]\n", b"")
@example(b'{"step": 1}\n' + b"9" * 5000, b"\n")
@example(b'["step"]', b"\n")
@example(b'{"step": null}', b"\n")
def test_rows_are_read_whole_or_the_line_is_named(tmp_path_factory, content, end):
    folder = folder_in(tmp_path_factory)
    (folder.path / "metrics.jsonl").write_bytes(content + end)
    rows = tries(folder.rows)
    if rows is not None:
        assert all(isinstance(row, dict) and "step" in row for row in rows)
        first_difference(rows, rows)
        tries(lambda: folder.truncate("metrics.jsonl", 3))


@MANY
@given(
    st.lists(
        st.dictionaries(
            ANY_TEXT, st.floats() | st.integers() | ANY_TEXT | st.none() | st.booleans(), max_size=3
        ),
        max_size=5,
    ),
    st.integers(0, 60),
)
def test_what_is_appended_is_read_again_and_a_torn_end_is_left_out(tmp_path_factory, rows, cut):
    folder = folder_in(tmp_path_factory)
    path = folder.path / "metrics.jsonl"
    path.write_bytes(b"")
    for step, row in enumerate(rows, 1):
        folder.append("metrics.jsonl", {**row, "step": step})
    assert [row["step"] for row in folder.rows()] == list(range(1, len(rows) + 1))
    for line in path.read_bytes().splitlines():
        json.loads(
            line,
            parse_constant=lambda name: (_ for _ in ()).throw(AssertionError(f"{name} is no JSON")),
        )
    whole = path.read_bytes()
    path.write_bytes(whole[: max(len(whole) - cut, 0)])
    kept = folder.rows()
    assert [row["step"] for row in kept] == list(range(1, len(kept) + 1))
    lost = whole[max(len(whole) - cut, 0) :]
    assert len(rows) - len(kept) <= lost.count(b"\n") + bool(lost)


@MANY
@given(
    st.binary(max_size=40)
    | JSON.map(lambda value: json.dumps(value).encode())
    | ROW.map(lambda row: json.dumps({"state": "running", **row}).encode())
)
@example(DEEP)
@example(b'{"state": ["idle"], "step": 0}')
@example(b'{"state": {}, "step": 0}')
@example(b'{"state": "running", "step": "a", "pid": {}, "updated": []}')
def test_a_status_is_one_or_is_damaged(tmp_path_factory, content):
    folder = folder_in(tmp_path_factory)
    (folder.path / "status.json").write_bytes(content)
    status = tries(folder.status)
    if status is not None:
        assert status["state"] in ("idle", "running", "paused", "done", "failed")
        assert "step" in status


@MANY
@given(
    st.binary(max_size=40)
    | JSON.map(lambda value: json.dumps(value).encode())
    | JSON.map(lambda value: json.dumps({"format": value}).encode())
)
@example(DEEP)
@example(b'{"format": true}')
@example(b'{"format": 1e999}')
def test_a_config_is_one_or_is_torn(tmp_path_factory, content):
    folder = folder_in(tmp_path_factory, "other_run")
    (folder.path / "config.json").write_bytes(content)
    opened = tries(lambda: RunFolder.open(folder.path))
    if opened is not None:
        assert isinstance(opened.config(), dict)


@MANY
@given(st.binary(max_size=200))
@example(b"PAR1" * 10)
@example(b"")
def test_samples_are_a_table_or_are_damaged(tmp_path_factory, content):
    folder = folder_in(tmp_path_factory)
    path = folder.path / "samples" / "step_000003.parquet"
    path.write_bytes(content)
    table = tries(lambda: folder.samples(3))
    assert table is None or isinstance(table, pd.DataFrame)
    path.unlink()


# --- the tail of a growing file -------------------------------------------------------------------


@MANY
@given(st.lists(LINE, max_size=6), st.lists(st.integers(1, 30), max_size=8))
@example([DEEP, b'{"step": 1}'], [3])
@example([b"9" * 5000, b'{"step": 1}'], [3])
def test_a_tail_reads_every_whole_line_once_however_it_grows(tmp_path_factory, lines, pieces):
    path = tmp_path_factory.getbasetemp() / "tail.jsonl"
    path.write_bytes(b"")
    tail, found, content = Tail(path), [], b"".join(line + b"\n" for line in lines)
    start = 0
    for size in [*pieces, len(content)]:
        with path.open("ab") as file:
            file.write(content[start : start + size])
        start += size
        found += tail.read()
    assert all(isinstance(row, dict) for row in found)
    whole = Tail(path).read()
    assert json.dumps(found) == json.dumps(whole)
    assert tail.read() == []


# --- requests -------------------------------------------------------------------------------------

KINDS = (
    st.sampled_from(
        [
            "knob",
            "release",
            "pause",
            "go_on",
            "step",
            "stop",
            "checkpoint",
            "twin",
            "begin",
            "Knob",
            "",
        ]
    )
    | JSON
)
REQUEST = st.fixed_dictionaries(
    {"request": KINDS},
    optional={
        "id": st.integers() | JSON,
        "knob": st.sampled_from(["kd_coef", "temperature", "learning_rate", "kd_coeff"]) | JSON,
        "value": st.floats() | JSON,
        "at": st.integers(-2, 9) | st.floats() | JSON,
        "kind": st.sampled_from(["off", "untouched", "noise"]) | JSON,
        "chances": st.integers() | JSON,
        "source": JSON,
    },
)


def handler_of(folder, after=2):
    """The handler of a run of five steps that has taken two."""
    config = make_config("kdrl", steps=5)
    events = folder.rows("events.jsonl")
    context = Context(config, folder, Decisions(config, events, after, record=False))
    context.progress = Progress(after)
    return RequestHandler(context, lambda: SimpleNamespace(name="step_000002"))


@MANY
@given(st.lists(REQUEST.map(lambda one: json.dumps(one).encode()) | LINE, max_size=5))
@example(
    [
        b'{"request": "knob", "knob": "kd_coef", "value": 1e999}',
        b'{"request": "knob", "knob": "kd_coef", "value": [NaN, Infinity]}',
    ]
)
@example([b'{"request": "knob", "knob": ' + b"[" * 700 + b"]" * 700 + b', "value": 1}'])
@example(
    [
        b'{"request": "knob", "knob": "kd_coef", "value": '
        + b'{"a":' * 900
        + b"1"
        + b"}" * 900
        + b"}"
    ]
)
@example(
    [
        b'{"request": "knob", "knob": "kd_coef", "value": 0.1, "at": 1e400}',
        b'{"request": "knob", "knob": "kd_coef", "value": 0.1, "at": NaN}',
    ]
)
@example(
    [
        b'{"request": "twin", "kind": "noise", "chances": 1e400}',
        b'{"request": "twin", "kind": ["noise"]}',
    ]
)
@example(
    [
        b'{"request": "release", "knob": "\\ud800"}',
        b'{"request": "knob", "knob": "kd_coef", "value": "\\ud800"}',
    ]
)
@example(
    [
        b'{"request": "knob", "knob": "kd_coef", "value": 0.1, "source": "\\ud800"}',
        b'{"id": true, "request": ["knob"]}',
    ]
)
@example(
    [
        b'{"request": "checkpoint"}',
        b'{"request": "stop"}',
        b'{"request": "step", "id": ' + b"9" * 4000 + b"}",
    ]
)
def test_whatever_is_asked_the_run_goes_on_and_no_knob_leaves_its_range(tmp_path_factory, lines):
    folder = folder_in(tmp_path_factory)
    for name in ("requests.jsonl", "events.jsonl", "metrics.jsonl"):
        (folder.path / name).write_bytes(b"")
    control = handler_of(folder)
    (folder.path / "requests.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    control.read()
    control.stopping = control.paused = False  # would wait for somebody
    control.before_step()
    values, moves = control.knobs.snapshot(3)
    assert all(value is None or math.isfinite(value) for value in values.values())
    assert all(
        isinstance(move.get("release", move.get("value", 0.0)), bool | float | None)
        for move in moves
    )
    for move in moves:
        folder.append("events.jsonl", move)
    control.after_step()
    control.end()
    assert 1 <= control.chances <= 16
    for line in (folder.path / "events.jsonl").read_bytes().splitlines():
        event = json.loads(
            line,
            parse_constant=lambda name: (_ for _ in ()).throw(AssertionError(f"{name} is no JSON")),
        )
        assert event["event"] in ("asked", "refused", "replaced", "checkpoint", "knob")
        if event["event"] == "refused":
            assert event["why"].endswith("nothing was changed")
    handler_of(folder)  # another session takes the file up
