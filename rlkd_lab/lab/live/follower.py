"""A thread that keeps a view up to date."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Hashable
from typing import Any

CLOSED = "This view is closed: a newer one of this kernel shows the same. Run this cell again."
_shown: dict[Hashable, Any] = {}
"""The views of this kernel by what they show."""


def only_one(what: Hashable, view: Any) -> None:
    """Close an earlier view of the same, which says so: ``view.close(words)``."""
    earlier = _shown.get(what)
    if earlier is not None and earlier is not view:
        earlier.close(CLOSED)
    _shown[what] = view


class Follower:
    """Calls a function again and again, in a thread of its own, until it is stopped.

    Args:
        look: reads what is new and shows it; it raises nothing.
    """

    def __init__(self, look: Callable[[], object]) -> None:
        self.look = look
        self.thread: threading.Thread | None = None
        self._wake, self._stopped = threading.Event(), threading.Event()

    def start(self, name: str, every: float, gently: bool = True) -> None:
        """Start the thread, if none is running.

        Args:
            name: of the thread.
            every: seconds between two looks.
            gently: the thread gets a low priority, for a run in another process comes first.
        """
        self._stopped.clear()
        if self.thread is None or not self.thread.is_alive():
            how = {"target": self._follow, "args": (every, gently)}
            self.thread = threading.Thread(name=name, daemon=True, **how)  # type: ignore[arg-type]
            self.thread.start()

    def _follow(self, every: float, gently: bool) -> None:
        if gently and hasattr(os, "setpriority"):
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        while not self._stopped.is_set():
            self.look()
            self._wake.wait(every)
            self._wake.clear()

    def wake(self) -> None:
        """Let the thread look now."""
        self._wake.set()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._wake.set()
        if self.thread is not None and self.thread is not threading.current_thread():
            self.thread.join(5)
