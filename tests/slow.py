"""Write tests/slow.txt, the tests that ``make test-fast`` leaves out: ``make slow`` calls it.

A line holds the mean seconds of a test function's cases, measured on two cores.
"""

import collections
import sys
import xml.etree.ElementTree
from pathlib import Path

LIST = Path(__file__).with_name("slow.txt")
LIMIT = 0.08
"""Seconds a case. What stays below needs a minute in all."""
FILES = {
    "tests/lab/live/test_handle.py",
    "tests/study/test_evaluation.py",
    "tests/study/test_export.py",
    "tests/study/test_sweep.py",
    "tests/study/test_targets.py",
    "tests/tasks/test_answers.py",
    "tests/test_site.py",
    "tests/training/test_forks.py",
    "tests/training/test_power.py",
    "tests/training/test_resume.py",
    "tests/zoo/test_midsize.py",
    "tests/zoo/test_worked.py",
}
"""Slow as a whole: their first test makes what the others look at."""
ALWAYS = {
    f"tests/training/test_methods_train.py::test_two_steps[{name}]" for name in ("kdrl", "trrd")
}
"""Whole runs that ``make test-fast`` keeps."""


def listed() -> set[str]:
    """Return the listed test functions as ``tests/file.py::name``."""
    return {line.split()[1] for line in LIST.read_text().splitlines()}


def is_slow(case: str, functions: set[str]) -> bool:
    """Return whether a test case, by its id, belongs to the slow ones."""
    function = case.split("[")[0]
    slow = function in functions or function.split("::")[0] in FILES
    return slow and case not in ALWAYS


def measured(report: Path) -> dict[str, float]:
    """Return the mean seconds of each test function in a JUnit report of pytest."""
    seconds = collections.defaultdict(list)
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        file = case.get("classname", "").replace(".", "/") + ".py"
        seconds[f"{file}::{case.get('name', '').split('[')[0]}"].append(float(case.get("time", 0)))
    return {name: sum(times) / len(times) for name, times in seconds.items()}


def write(seconds: dict[str, float]) -> None:
    slow = {name: time for name, time in sorted(seconds.items()) if time >= LIMIT}
    LIST.write_text("".join(f"{time:.2f} {name}\n" for name, time in slow.items()))


if __name__ == "__main__":
    write(measured(Path(sys.argv[1])))
