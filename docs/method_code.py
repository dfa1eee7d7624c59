"""The code of a method as its page shows it: rules included from their files, and its row."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from pathlib import Path

from rlkd_lab.objectives import METHODS, surrogates
from rlkd_lab.objectives.rules import RatioRule, SurrogateRule, from_student

OBJECTIVES = "../../rlkd_lab/objectives/"
TABLES = ("methods.py", "opd_methods.py")


def place_of(rule: Callable[..., object] | RatioRule | SurrogateRule) -> tuple[str, str]:
    """Return the file and the function that hold a rule's formula."""
    if not isinstance(rule, RatioRule | SurrogateRule):
        return rule.__module__.rpartition(".")[2] + ".py", rule.__name__
    called = [name for name in rule.compute.__code__.co_names if hasattr(surrogates, name)]
    if not called and isinstance(rule, SurrogateRule):
        return "rules.py", rule.compute.__name__
    return "surrogates.py", [*called, "log_importance"][0]


def code(key: str) -> str:
    """Return the method's rules, included from their source, and its row of the table."""
    row, parts = METHODS[key], []
    for kind in ("samples", "ratio", "surrogate", "advantage", "penalty"):
        rule = getattr(row, kind)
        if rule not in (None, from_student) and (row.ratio or kind != "surrogate"):
            file, name = place_of(rule)
            parts.append(f"The {kind}: [`{name}`]({OBJECTIVES}{file}).\n")
            parts.append(f"```{{literalinclude}} {OBJECTIVES}{file}")
            parts.append(f":pyobject: {name}\n:language: python\n```\n")
    file, source = source_of(key)
    parts.append(f"The row of [the table]({OBJECTIVES}{file}):\n")
    return "\n".join([*parts, f"```python\n{source}\n```"])


def source_of(key: str) -> tuple[str, str]:
    """Return the file that holds a method's row, and the row's text."""
    folder = Path(__file__).parents[1] / "rlkd_lab" / "objectives"
    texts = {name: (folder / name).read_text(encoding="utf-8") for name in TABLES}
    named = re.search(rf'^    "{key}": (\w+),$', texts["methods.py"], re.M)
    start, end = (f"\n{named[1]} =", "\n)") if named else (f'\n    "{key}":', "\n    )")
    file = next(name for name in TABLES if start in texts[name])
    row = texts[file][texts[file].index(start) + 1 :]
    return file, textwrap.dedent(row[: row.index(end)] + end)
