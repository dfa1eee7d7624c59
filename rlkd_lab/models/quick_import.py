"""Import bitsandbytes without torch's compiler, which costs a sixth of a process's start.

bitsandbytes asks ``torch.compile`` for four functions as soon as it is imported.
They serve devices for which it has no kernel, and run as plain functions just as well.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch


def _plain(function: Callable[..., Any] | None = None, **_: Any) -> Any:
    """Return the function itself, as ``torch.compile`` does where it is switched off."""
    return (lambda given: given) if function is None else function


compiler, torch.compile = torch.compile, _plain  # type: ignore[assignment]
try:
    # a system for which there is no build does without: models.loading says so in words
    with contextlib.suppress(ImportError):
        import bitsandbytes  # noqa: F401
finally:
    torch.compile = compiler
