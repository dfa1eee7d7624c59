"""Random walks through a panel; RLKD_WALK=20x300 makes 20 of 300 actions, as ``make walk`` does."""

import os
import time
from pathlib import Path

import pytest
from in_browser import CHROMIUM, Lab
from walker import Walker

RUNS, ACTIONS = map(int, os.environ.get("RLKD_WALK", "1x20").split("x"))
FIRST = int(os.environ.get("RLKD_WALK_SEED", "1"))
pytestmark = [
    pytest.mark.timeout(3600),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here"),
]


@pytest.mark.parametrize("seed", range(FIRST, FIRST + RUNS))
def test_after_any_walk_panel_and_folder_agree(lab: Lab, tmp_path: Path, seed: int) -> None:
    began = time.monotonic()
    walker = Walker(lab, tmp_path / "mine", seed, ("launch", "start")[seed % 2])
    walker.walk(ACTIONS)
    walker.check()
    walker.leave()
    print("\n".join(walker.done))
    print(f"walk {seed}: {ACTIONS} actions in {time.monotonic() - began:.0f} s")
