"""A short form of benchmarks/kills.py: runs killed again and again, in processes of their own."""

import os
import sys

import pytest


@pytest.mark.skipif(
    not hasattr(os, "fork") or sys.platform == "darwin", reason="a process is forked"
)
def test_a_run_that_is_killed_again_and_again_is_the_run_that_was_left_alone(tmp_path):
    """In a process of its own: one that has threads is not forked."""
    import json
    import subprocess

    code = (
        "import json, sys; from pathlib import Path; from benchmarks import kills\n"
        "from tests.short import SHORT; kills.COMMON.update(SHORT, plan='off')\n"
        "for row in kills.killed(Path(sys.argv[1]), ['kdrl', 'gkd'], 8): print(json.dumps(row),"
        " flush=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert sum(sum(row["kills"].values()) for row in rows) >= 8
    for row in rows:
        assert (row["done"], row["rows lost"], row["rows doubled"], row["difference"]) == (
            True,
            0,
            0,
            None,
        ), row
