"""The keys and values of a rollout, and a decoding step that a GPU replays.

A decoding step of 28 layers launches some 600 kernels, each shorter than it takes Python to ask for
it. A CUDA graph holds all of them: one call replays the step.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, ClassVar

import torch
from torch import Tensor

WIDTH = 128
"""Columns by which what a GPU reads grows. A graph reads the columns it was recorded with."""
Step = Callable[[Tensor, Tensor, int], Tensor]


class Cache:
    """Keys and values of every layer, with room for all columns from the start."""

    def __init__(self, prefilled: Any, prompt_mask: Tensor, group_size: int, room: int) -> None:
        rows, self.length = prompt_mask.shape
        columns = self.length + room
        self.layers: list[Tensor] = []
        """(B, 2 · heads, columns, D): keys, then values."""
        for layer in prefilled.layers:
            known = torch.cat([layer.keys, layer.values], dim=1)
            whole = known.new_zeros(rows, known.shape[1], columns, known.shape[3])
            whole[:, :, : self.length] = known.repeat_interleave(group_size, 0)
            self.layers.append(whole)
        dtype, device = self.layers[0].dtype, prompt_mask.device
        # CUDA's kernels copy a mask whose rows do not begin at a multiple of 8
        lowest, aligned = torch.finfo(dtype).min, -(-columns // 8) * 8
        self.blocked = torch.full((rows, aligned), lowest, device=device, dtype=dtype)
        """(B, columns): what is added to the scores; 0 where a column may be read."""
        self.blocked[:, : self.length].masked_fill_(prompt_mask != 0, 0)
        self.column = torch.tensor([self.length], device=device)
        """(1,): which column the next step writes; a number that a graph can read."""
        self._graphs = Graphs(device) if device.type == "cuda" else None

    def step(self, decode: Step, token: Tensor, positions: Tensor) -> Tensor:
        """Run a decoding step on one more column, and return what it returns."""
        self.length += 1
        if self._graphs is None:
            return decode(token, positions, self.length)
        width = min(-(-self.length // WIDTH) * WIDTH, self.layers[0].shape[2])
        return self._graphs(decode, token, positions, width)

    def first(self, width: int, window: int | None) -> int:
        """Return the first column that a step of ``width`` columns reads through a window."""
        earliest = width if self._graphs is None else width - WIDTH + 1  # of a graph's steps
        # rounded, as rows of a mask that begin elsewhere are copied
        return 0 if window is None else max(earliest - window, 0) // 8 * 8

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these."""
        for layer, known in enumerate(self.layers):  # the whole cache twice might not fit
            self.layers[layer] = known[rows]
        self.blocked = self.blocked[rows]
        if self._graphs is not None:
            # those of before write into the tensors of before
            self._graphs = Graphs(self.blocked.device)


def windowed(
    blocked: Tensor, column: Tensor, windows: Iterable[int | None]
) -> dict[int | None, Tensor]:
    """Return for each window what is added to the scores of the tokens in ``column``.

    Args:
        blocked: (…, columns), the same without a window.
        column: broadcasts against ``blocked``. Columns count, not positions: between two tokens of
            a row there is no padding.
        windows: how many columns a token sees, its own included; None for all.
    """
    lowest = torch.finfo(blocked.dtype).min
    columns = torch.arange(blocked.shape[-1], device=blocked.device)
    return {
        window: blocked
        if window is None or window >= blocked.shape[-1]
        else blocked.masked_fill(columns <= column - window, lowest)
        for window in windows
    }


class Graphs:
    """Decoding steps as CUDA graphs, one for each width, which only grows.

    The first step of a width runs as usual, so that nothing is prepared while a graph is recorded.
    The second is recorded, which computes nothing, and replayed; so are all later ones.
    """

    streams: ClassVar[dict[tuple[int, torch.device], Any]] = {}
    """Where a thread records on a device: a graph holds whatever any thread asks of its stream.

    Each is used again and again, as cuBLAS keeps 32 MiB for each stream that it has seen.
    """
    recording: ClassVar[Any] = threading.Lock()
    """PyTorch records one graph at a time."""

    def __init__(self, device: torch.device) -> None:
        self._width = 0
        self._recorded: tuple[Any, tuple[Tensor, Tensor], Tensor] | None = None
        mine = threading.get_ident(), device
        if mine not in Graphs.streams:
            Graphs.streams[mine] = torch.cuda.Stream(device)
        self._stream = Graphs.streams[mine]

    def __call__(self, decode: Step, token: Tensor, positions: Tensor, width: int) -> Tensor:
        if width != self._width:
            self._width, self._recorded = width, None
            with self._aside():
                return decode(token, positions, width)
        if self._recorded is None:
            self._recorded = self._record(decode, (token.clone(), positions.clone()), width)
        graph, inputs, out = self._recorded
        for own, given in zip(inputs, (token, positions), strict=True):
            own.copy_(given)
        graph.replay()
        return out

    def _record(
        self, decode: Step, inputs: tuple[Tensor, Tensor], width: int
    ) -> tuple[Any, tuple[Tensor, Tensor], Tensor]:
        """Return a graph, the tensors that it reads, and the one that it writes.

        Memory that the allocator keeps from before is of no use to a graph. Where there is no other
        it is given back first: the step itself has had room.
        """
        with suppress(torch.OutOfMemoryError):
            return self._record_once(decode, inputs, width)
        torch.cuda.empty_cache()
        return self._record_once(decode, inputs, width)

    def _record_once(
        self, decode: Step, inputs: tuple[Tensor, Tensor], width: int
    ) -> tuple[Any, tuple[Tensor, Tensor], Tensor]:
        graph = torch.cuda.CUDAGraph()
        with self.recording, self._aside():
            # another thread may allocate meanwhile
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                out = decode(*inputs, width)
            finally:  # also out of memory
                graph.capture_end()
        return graph, inputs, out

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Compute on the stream of graphs inside, between what came before and what follows."""
        around = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(around)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:  # out of memory, what was begun still reads what is let go
            around.wait_stream(self._stream)
