"""A file with a teacher's traces and its likeliest tokens at each of them.

File format (version 1): one parquet file, a row a trace. It has the columns of
:mod:`~rlkd_lab.rollouts.traces`, and for each token of a completion ``top_ids`` and ``top_logps``
(lists of k, likeliest first, nats, at temperature 1) and ``tail_logps`` (log-probability of all
other tokens together). Schema metadata: ``rlkd_tokens`` as of traces, and ``rlkd_teacher_cache``,
what the file was made with.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from rlkd_lab.models.top_logps import Top

VERSION = 1
ABOUT = b"rlkd_teacher_cache"
TOP = ("top_ids", "top_logps", "tail_logps")
MADE = "`rlkd teacher-cache --out FILE` makes one"


@dataclass(frozen=True)
class Stored:
    """Holds a file of :func:`write_stored`."""

    about: dict[str, Any]
    """What it was made with."""
    traces: pa.Table
    """As :func:`~rlkd_lab.rollouts.traces.teacher_traces` gives them."""
    top: list[Top]
    """One a trace, on the CPU."""


def write_stored(
    path: Path, traces: pa.Table, top: Iterable[Sequence[Top]], about: dict[str, Any]
) -> None:
    """Write traces with a teacher's likeliest tokens, beside and renamed.

    Args:
        path: of the file.
        traces: with ``rlkd_tokens`` in its metadata.
        top: in the order of the traces, some of them at a time.
        about: what the file is made with.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.tmp")
    metadata = {
        ABOUT: json.dumps({"version": VERSION, **about}),
        b"rlkd_tokens": traces.schema.metadata[b"rlkd_tokens"],
    }
    writer: pq.ParquetWriter | None = None
    done = 0
    try:
        for some in top:
            part = traces.slice(done, len(some)).replace_schema_metadata(metadata)
            for name, column in zip(TOP, _columns(some), strict=True):
                part = part.append_column(name, column)
            if writer is None:
                writer = pq.ParquetWriter(beside, part.schema, write_page_checksum=True)
            writer.write_table(part)
            done += len(some)
        if writer is not None:
            writer.close()
            beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _columns(some: Sequence[Top]) -> tuple[pa.Array, pa.Array, pa.Array]:
    """Return the columns of some traces."""
    ids, logps = (
        torch.cat([getattr(top, name) for top in some]).cpu() for name in ("ids", "logps")
    )
    ends = torch.tensor([0, *(len(top.ids) for top in some)]).cumsum(0).int().numpy()

    def lists(values: Tensor) -> pa.Array:
        flat = pa.array(values.contiguous().flatten().numpy())
        if values.dim() == 2:
            flat = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
        return pa.ListArray.from_arrays(ends, flat)

    return lists(ids.int()), lists(logps[:, :-1]), lists(logps[:, -1])


def read_stored(path: str | Path) -> Stored:
    """Read a file of :func:`write_stored`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is something else, of another version, cut or damaged.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path} with a stored teacher: {MADE}")
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        about = json.loads((table.schema.metadata or {}).get(ABOUT, b"{}"))
        if not about:
            raise ValueError("it lacks what a stored teacher has")
        if about["version"] != VERSION:
            raise ValueError(f"it is of version {about['version']}, and {VERSION} is read")
        k, size = about["topk"], about["vocabulary"]
        widths = zip(TOP, (k, k, 1), strict=True)
        ids, logps, tail = (_rows(table[name], width) for name, width in widths)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0][:200]
        raise ValueError(
            f"{path} holds no stored teacher, or is damaged ({reason}): {MADE}"
        ) from None
    top = [
        Top(one, torch.cat([kept, rest], dim=-1), size)
        for one, kept, rest in zip(ids, logps, tail, strict=True)
    ]
    return Stored(about, table.drop_columns(list(TOP)), top)


def _rows(column: pa.ChunkedArray, width: int) -> list[Tensor]:
    """Return a tensor (T, ``width``) for each row."""
    found: list[Tensor] = []
    for chunk in column.chunks:
        flat = chunk.flatten()
        values = flat.flatten() if width > 1 or pa.types.is_fixed_size_list(flat.type) else flat
        lengths = chunk.value_lengths().to_pylist()
        found += torch.from_numpy(values.to_numpy().copy()).view(-1, width).split(lengths)
    return found
