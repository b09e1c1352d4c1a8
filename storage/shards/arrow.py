"""Arrow shards: small or structured cells in one memory-mapped Arrow IPC file of one record batch.

The first field holds the row ids (FixedSizeBinary(16)), each further field one column of the table, in the block's
order. A cell that the shard does not hold is null. Fields are told by position, so a column may have any name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from hoi_distill.storage.digests import ROW


def encode(values: pa.Array | pa.ChunkedArray, valid: np.ndarray, cell: pa.DataType) -> pa.Array:
    """One column's R cells as an array of the table's type, null where not ``valid`` (``bool [R]``).

    Raises:
        ValueError: another length, or a type that does not convert without loss.
    """
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if not isinstance(values, pa.Array):
        raise ValueError(f"{type(values).__name__} given where a pyarrow array of {cell} is stored")
    if len(values) != len(valid):
        raise ValueError(f"{len(values)} values given for {len(valid)} rows")
    if values.type != cell:
        try:
            values = values.cast(cell)
        except pa.ArrowException as error:
            raise ValueError(f"values of type {values.type} given where {cell} is stored: {error}") from error
    return values if valid.all() else values.take(pa.array(np.arange(len(valid)), mask=~valid))


def fixed_binary(cells: np.ndarray, width: int) -> pa.Array:
    """``width``-byte cells, one per row, without a copy."""
    cells = np.ascontiguousarray(cells)
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(cells), [None, pa.py_buffer(cells)])


def write(sink: BinaryIO, row_ids: np.ndarray, columns: Sequence[str], arrays: Sequence[pa.Array]) -> None:
    """Write a shard.

    Args:
        sink: the file.
        row_ids: ``V16 [R]``.
        columns: C names.
        arrays: one of length R per column.
    """
    fields = [pa.field("row", pa.binary(16)), *(pa.field(c, a.type) for c, a in zip(columns, arrays, strict=True))]
    batch = pa.record_batch([fixed_binary(row_ids, 16), *arrays], schema=pa.schema(fields))
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


class ArrowShard:
    """A shard read through a memory map. Arrays keep the map alive; the object may go first.

    Attributes:
        row_ids: ``V16 [R]``.
        columns: the C column names.
    """

    def __init__(self, path: str) -> None:
        with pa.ipc.open_file(pa.memory_map(path)) as reader:
            self._batch = reader.get_batch(0)
        self.columns: tuple[str, ...] = tuple(self._batch.schema.names[1:])
        self._position = {column: 1 + index for index, column in enumerate(self.columns)}
        self.row_ids = np.frombuffer(self._batch.column(0).buffers()[1], ROW, count=self._batch.num_rows)

    def column(self, name: str) -> pa.Array:
        """All R cells of a column, zero-copy."""
        return self._batch.column(self._position[name])

    def take(self, name: str, positions: np.ndarray) -> pa.Array:
        """The cells of a column at ``positions`` (``int [n]``), copied."""
        return self.column(name).take(pa.array(positions))
