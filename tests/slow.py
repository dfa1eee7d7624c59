"""Write tests/slow.txt, the tests that ``make test-fast`` leaves out: ``make slow`` calls it.

A line holds the mean seconds of a test function's cases, measured on two cores.
"""

import collections
import sys
import xml.etree.ElementTree
from pathlib import Path

LIST = Path(__file__).with_name("slow.txt")
LIMIT = 0.15
"""Seconds a case. What stays below needs a minute in all."""
ALWAYS = {
    f"tests/training/test_methods_train.py::test_two_steps[{name}]" for name in ("kdrl", "trrd")
}
"""Whole runs that ``make test-fast`` keeps."""


def names() -> set[str]:
    """Return the listed test functions as ``tests/file.py::name``."""
    return {line.split()[1] for line in LIST.read_text().splitlines()}


def measured(report: Path) -> dict[str, float]:
    """Return the mean seconds of each test function in a JUnit report of pytest."""
    seconds = collections.defaultdict(list)
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        file = case.get("classname", "").replace(".", "/") + ".py"
        seconds[f"{file}::{case.get('name', '').split('[')[0]}"].append(float(case.get("time", 0)))
    return {name: sum(times) / len(times) for name, times in seconds.items()}


def write(seconds: dict[str, float]) -> None:
    slow = {name: time for name, time in sorted(seconds.items()) if time >= LIMIT}
    LIST.write_text("".join(f"{time:.1f} {name}\n" for name, time in slow.items()))


if __name__ == "__main__":
    write(measured(Path(sys.argv[1])))
