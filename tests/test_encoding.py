"""Text is UTF-8 in every file, whatever the locale, and a terminal that lacks a character gets
another one in its place.
"""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.short import SHORT

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path for part in ("rlkd_lab", "notebooks", "benchmarks") for path in (ROOT / part).rglob("*.py")
)
NO_FILES = {"os", "RunFolder"}
"""Whose ``open`` opens no text file."""
PROCESSES = {"run", "Popen", "check_output", "check_call", "call"}
# Python's own UTF-8 mode off: what a locale without UTF-8 was before it, and is on other systems
BARE = {
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "PYTHONIOENCODING": "ascii",
    "OMP_NUM_THREADS": "1",
}


def _text(call: ast.Call, position: int) -> bool:
    given = [one.value for one in call.keywords if one.arg == "mode"] or call.args[
        position : position + 1
    ]
    return not given or not (isinstance(given[0], ast.Constant) and "b" in str(given[0].value))


def without_encoding(call: ast.Call) -> bool:
    """Whether a call opens a text, or reads one of a process, in the encoding of the locale."""
    function, named = call.func, {one.arg: one.value for one in call.keywords}
    name = (
        function.attr
        if isinstance(function, ast.Attribute)
        else function.id
        if isinstance(function, ast.Name)
        else ""
    )
    if "encoding" in named:
        return False
    if name in ("read_text", "write_text"):
        return len(call.args) < (1 if name == "read_text" else 2)
    if name == "open":
        owner = getattr(function.value, "id", "") if isinstance(function, ast.Attribute) else ""
        return owner not in NO_FILES and _text(
            call, 0 if isinstance(function, ast.Attribute) else 1
        )
    if name in ("fdopen", "NamedTemporaryFile", "TemporaryFile"):
        return (name == "fdopen" or "mode" in named or bool(call.args)) and _text(
            call, 1 if name == "fdopen" else 0
        )
    if name in PROCESSES:
        return any(
            isinstance(named.get(word), ast.Constant) and named[word].value is True
            for word in ("text", "universal_newlines")
        )
    return name in ("TextIOWrapper", "FileHandler")


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("open(p)", True),
        ("open(p, 'rb')", False),
        ("p.open('a')", True),
        ("p.open('ab')", False),
        ("p.open(mode='w', encoding='utf-8')", False),
        ("p.read_text()", True),
        ("p.read_text('utf-8')", False),
        ("p.write_text(t)", True),
        ("p.write_text(t, encoding='utf-8')", False),
        ("subprocess.run(c, text=True)", True),
        ("subprocess.run(c, text=True, encoding='utf-8')", False),
        ("os.fdopen(1, 'wb')", False),
        ("NamedTemporaryFile('w')", True),
        ("RunFolder.open(p)", False),
    ],
)
def test_the_rule_itself(code, wrong):
    assert without_encoding(ast.parse(code).body[0].value) is wrong


def test_every_text_file_is_opened_as_utf8():
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)[:80]}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Call) and without_encoding(node)
    ]
    assert not found, "give encoding='utf-8':\n" + "\n".join(found)


THEN = "then"
CUT = "cut"
SCRIPT = f"""
import itertools, json, sys
from pathlib import Path
from rlkd_lab.commands import main
for between, words in itertools.groupby(sys.argv[1:], "{THEN}".__eq__):
    if between:
        continue
    words = list(words)
    if words[0] == "{CUT}":  # as if the run had been killed in the middle of step 2
        rows = Path(words[1], "metrics.jsonl")
        rows.write_bytes(rows.read_bytes().splitlines(keepends=True)[0])
        Path(words[1], "status.json").write_text(json.dumps(dict(state="idle", step=1)))
        print("\\n{THEN} 0", flush=True)
        continue
    sys.argv = ["rlkd", *words]
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    print("\\n{THEN}", code, flush=True)
"""
"""Commands one after another in one process, because each process imports for seconds."""


def rlkd(*commands, encoding="ascii"):
    """Return the exit code and the output of each command, and what all wrote to stderr."""
    words = [str(word) for command in commands for word in (*command, THEN)]
    # LC_CTYPE and LANG of whoever runs the tests would say otherwise
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT, *words],
        env={**os.environ, **BARE, "PYTHONIOENCODING": encoding},
        cwd=ROOT,
        capture_output=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr.decode(errors="replace")
    assert b"UnicodeEncodeError" not in found.stderr
    assert b"UnicodeDecodeError" not in found.stderr
    ends = re.split(rf"\n{THEN} (\d+)\n", found.stdout.decode(encoding))
    told = list(zip(map(int, ends[1::2]), ends[0::2], strict=False))
    assert len(told) == len(commands)
    return told, found.stderr.decode(encoding)


def test_a_terminal_that_lacks_a_character_gets_another_and_json_loses_none():
    ((_, table), (_, data)), _ = rlkd(["methods"], ["methods", "--json"])
    assert "?" in table
    assert "π" in json.dumps(json.loads(data), ensure_ascii=False)


def test_help_and_errors_do_too():
    refused = ["train", "--out", "nowhere", "--set", "system_prompt→"]
    (shown, told), errors = rlkd(["--help"], refused, encoding="cp1252")
    assert shown[0] == 0
    assert shown[1]
    assert told[0] == 2
    assert "write NAME=VALUE" in errors


def test_a_run_with_prompts_outside_ascii_trains_resumes_and_replays_in_the_c_locale(tmp_path):
    questions = tmp_path / "questions.jsonl"
    rows = [
        {"question": f"Wie groß ist {a} plus {b}? →", "answer": str(a + b)}
        for a in range(12)
        for b in range(12)
    ]
    questions.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    small = [
        "prompts_per_step=2",
        "group_size=2",
        "max_new_tokens=16",
        "eval_every=2",
        "eval_prompts=4",
        "checkpoint_every=1",
        "samples_every=1",
        "plan=off",
        *(f"{role}={folder}" for role, folder in SHORT.items()),
    ]
    settings = [*small, f"task={questions}", "prompt_template=Frage – {question}\nLösung:"]
    out = tmp_path / "run"
    arguments = [word for setting in settings for word in ("--set", setting)]
    told, errors = rlkd(
        ["train", "--method", "kdrl", "--steps", 2, "--out", out, *arguments],
        [CUT, out],
        ["resume", out],
        ["replay", out, "--out", tmp_path / "again"],
        ["runs", tmp_path],
        ["compare", out, tmp_path / "again", "--figure", tmp_path / "figure.png"],
        ["eval", out, "--prompts", 4, "--samples", 2, "--no-greedy"],
    )
    assert [code for code, _ in told] == [0] * 7, errors
    assert len((out / "metrics.jsonl").read_bytes().splitlines()) == 2
    assert "the same: 2 steps, largest difference 0" in told[3][1]
    prompts = {json.loads((out / "config.json").read_text(encoding="utf-8"))["prompt_template"]}
    assert prompts == {"Frage – {question}\nLösung:"}
