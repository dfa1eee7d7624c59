"""Everything runs on a pretend GPU, in a process of its own, within its budgets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_on_a_pretend_gpu_no_devices_are_mixed_and_budgets_are_kept(precision):
    words = ["-m", "pytest", "-p", "tests.device.pretend", "-p", "no:cacheprovider"]
    given = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    done = subprocess.run(
        [sys.executable, *words, "tests/device/cases.py", "-k", precision],
        cwd=ROOT,
        env=given,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
