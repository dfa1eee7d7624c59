"""Import torch, bitsandbytes, transformers and peft in two thirds of the time.

bitsandbytes asks ``torch.compile`` for four functions as soon as it is imported.
They serve devices for which it has no kernel, and run as plain functions just as well.

Python's collector looks at all that is imported again and again, and finds nothing to free.
It is off meanwhile, and never looks at what is there by then.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from typing import Any


def _plain(function: Callable[..., Any] | None = None, **_: Any) -> Any:
    """Return the function itself, as ``torch.compile`` does where it is switched off."""
    return (lambda given: given) if function is None else function


collecting = gc.isenabled()
gc.disable()
try:
    import torch

    compiler, torch.compile = torch.compile, _plain  # type: ignore[assignment]
    try:
        # a system for which there is no build does without: models.loading says so in words
        with contextlib.suppress(ImportError):
            import bitsandbytes  # noqa: F401
    finally:
        torch.compile = compiler
    import peft  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401
finally:
    gc.freeze()
    if collecting:
        gc.enable()
