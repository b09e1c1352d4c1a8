"""How many rows go through a model at once: found by itself within a GPU's memory, halved where memory runs out.

A stage's batch (``Batch``) is canonical: it is always padded to one size, whatever cells happen to be empty. Where that is
more than memory holds, the batch goes through the model in parts of one length, the last of them padded alike, so that a
row meets the same shapes whoever its neighbours are. What a worker has learnt it keeps for its next batches.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import Field

Rows = TypeVar("Rows")

BatchSize = Annotated[int, Field(ge=1)] | Literal["auto"]
AUTO_BATCH = 128
"""The canonical batch where the size is to find itself; parts of it are powers of two."""
AUTO_ROWS_ON_CPU = 16
HEADROOM = 0.8
"""Of the free memory, what a forward may take: allocators round up and other workers may share the GPU."""


@dataclass
class PartSize:
    """How many rows one forward takes: ``None`` until it is measured. A worker keeps it in the ``shared`` of its stages."""

    row_count: int | None = None


def canonical(batch_size: BatchSize) -> int:
    """The stage's ``batch_size`` in rows."""
    return AUTO_BATCH if batch_size == "auto" else batch_size


def part_size(shared: dict[Any, Any], key: Any, batch_size: BatchSize) -> PartSize:
    """What the worker knows of the model under ``key``; at first the whole batch, or unknown where it is ``auto``."""
    size: PartSize = shared.setdefault(("rows", key), PartSize(None if batch_size == "auto" else batch_size))
    return size


def in_parts(forward: Callable[[np.ndarray], Rows], count: int, size: PartSize, device: str) -> list[Rows]:
    """Send ``count`` rows through ``forward`` in parts of ``size.row_count``.

    Args:
        forward: answers the rows at ``positions`` (int64, always ``size.row_count`` of them, the last repeated where rows run
            out) with something that slices by row: a tensor ``[n, ...]`` or a list.
        count: how many rows.
        size: changed where it is unknown (measured on a CUDA device) or turns out too large: memory that runs out halves
            it, and the rows still to come go on in smaller parts.
        device: where ``forward`` computes.

    Returns:
        The answers of the parts, cut to real rows; one after another they are the ``count`` rows.

    Raises:
        torch.OutOfMemoryError: a single row does not fit.
    """
    import torch

    if size.row_count is None:
        size.row_count = measured_rows(forward, device)
    answers: list[Rows] = []
    start = 0
    while start < count:
        positions = np.minimum(np.arange(start, start + size.row_count), count - 1)
        try:
            answer: Any = forward(positions)
        except torch.OutOfMemoryError as error:
            if size.row_count == 1:
                error.add_note("a single row does not fit; choose a smaller dtype, image size or model")
                raise
            answer = None
        if answer is None:  # outside the handler: the error's traceback holds the failed forward's tensors
            size.row_count = -(-size.row_count // 2)
            _release(device)
            continue
        answers.append(answer[: min(size.row_count, count - start)])
        start += size.row_count
    return answers


def measured_rows(forward: Callable[[np.ndarray], Any], device: str) -> int:
    """Rows of one forward that fit into the free memory of ``device``, by what one row and four rows take."""
    import torch

    if torch.device(device).type != "cuda":
        return AUTO_ROWS_ON_CPU

    def peak(rows: int) -> int:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        forward(np.zeros(rows, np.int64))
        return torch.cuda.max_memory_allocated(device) - before

    forward(np.zeros(1, np.int64))  # the first forward also fills workspaces and caches, once
    try:
        one, four = peak(1), peak(4)
    except torch.OutOfMemoryError:
        one, four = 1, 0
    _release(device)
    if not four:
        return 1
    return fitting_rows(one, four, torch.cuda.mem_get_info(device)[0])


def fitting_rows(one: int, four: int, free: int) -> int:
    """The largest power of two, at most :data:`AUTO_BATCH`, that should fit into ``HEADROOM * free`` bytes.

    Args:
        one: bytes that a forward of one row took.
        four: bytes that a forward of four rows took.
        free: bytes that are free now.
    """
    a_row = max((four - one) / 3, 1)
    fit = (HEADROOM * free - (one - a_row)) / a_row
    rows = 1
    while rows * 2 <= min(fit, AUTO_BATCH):
        rows *= 2
    return rows


def repeated(rows: Any, length: int) -> Any:
    """A tensor's last row repeated up to ``length``, as a batch is padded."""
    return rows if len(rows) == length else rows[np.minimum(np.arange(length), len(rows) - 1)]


def one_tensor(parts: Sequence[Any]) -> Any:
    """What :func:`in_parts` gave as one tensor; not copied where it is one already."""
    import torch

    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def taken(rows: Any, positions: np.ndarray) -> Any:
    """``rows[positions]`` of a tensor, for the positions that :func:`in_parts` asks: neighbours, of which the last may be
    repeated. A view where none is."""
    return repeated(rows[positions[0] : positions[-1] + 1], len(positions))


def _release(device: str) -> None:
    import torch

    if torch.device(device).type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
