"""A config from plain values, and pydantic's reports in sentences."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from rlkd_lab.training.config import RunConfig


def validated(values: dict[str, Any]) -> RunConfig:
    """Return a RunConfig, or raise a ValueError with one sentence for each problem."""
    try:
        return RunConfig(**values)
    except ValidationError as error:
        raise ValueError(in_words(error)) from None


WITHOUT_VALUE = {"missing": "it has to be given", "extra_forbidden": "there is no such field"}
"""Reports by pydantic that are not about a value."""


def in_words(error: ValidationError) -> str:
    """Return pydantic's report as one line, with a sentence for each problem."""
    problems = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        text = item["msg"].removeprefix("Value error, ")
        if item["type"] in WITHOUT_VALUE:
            problems.append(f"{where}: {WITHOUT_VALUE[item['type']]}")
        else:
            problems.append(f"{where}={item['input']!r:.200}: {text}" if where else text)
    return " ".join("; ".join(problems).split())
