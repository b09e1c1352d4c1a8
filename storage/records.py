"""Commit records: the small file that makes a shard exist, and the order of writes that keeps every instant whole.

A record is one Arrow IPC file of one batch, one row per row of the block:

    row      FixedSizeBinary(16)
    filled   FixedSizeBinary(ceil(C/8)), packed bits: the payload holds a value (absent where all cells are values)
    failed   the same for recorded failures (absent where there is none); in a ``.drop`` record: failures that are void
    inputs   uint64, or FixedSizeBinary(8 C) where a row's cells differ: input digests (absent where none)
    values   FixedSizeBinary(8 C): uint64 value digests, 0 where there is no value (absent where there is no value)
    reasons  list<struct<column, reason>> of the row's failures (absent where there is none)

The schema's metadata holds ``header`` (JSON), ``columns`` (JSON), and two checksums: ``index`` over all that planning
reads (verified at every load) and ``cells`` over the rest (verified before a process first uses it, and by ``check``).
Buffers, offsets and text are bounded before anything is read through them: a record of any bytes is refused, not followed.

Names: ``<block key>-<generation>.commit``. A generation follows another only when the other's payload was lost.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, NamedTuple, TypedDict, TypeVar, cast

import numpy as np
import pyarrow as pa

from hoi_distill.storage.cell_block import CellBlock
from hoi_distill.storage.damage import Damaged, damage
from hoi_distill.storage.digests import ROW, canonical_json
from hoi_distill.storage.files import stamps
from hoi_distill.storage.files.address import Place
from hoi_distill.storage.files.stores import store_of
from hoi_distill.storage.shards.arrow import fixed_binary

_REASONS = pa.list_(pa.struct([("column", pa.int32()), ("reason", pa.string())]))
T = TypeVar("T")
_columns_seen: dict[bytes, tuple[str, ...]] = {}  # a table's many records share one tuple of names


class CommitHeader(TypedDict):
    """What the writer of a record says of it.

    Attributes:
        payload: the payload's file name, None where the record holds failures only.
        bytes: the payload's size.
        cells: how many cells have a value.
        failures: how many cells are failures.
        host: who wrote it.
        provenance: JSON of the caller's choosing. Workers put ``task``, ``device`` and ``seconds``, and what the stage says.
        created_ns: when, in nanoseconds since 1970. Records merge in this order.
    """

    payload: str | None
    bytes: int
    cells: int
    failures: int
    host: str
    provenance: dict[str, Any]
    created_ns: int


class RecordHeader(CommitHeader):
    """A stored header.

    Attributes:
        full: whether every cell has a value.
        has_inputs: whether input digests are recorded by row or by cell; None where the table has no inputs.
    """

    full: bool
    has_inputs: Literal["row", "cell"] | None


class Cells(NamedTuple):
    """The big part of a record, memory-mapped.

    Attributes:
        values: ``uint64 [R, C]`` value digests, None where there is no value.
        inputs: ``uint64 [R, C]`` input digests, None unless cells of a row differ.
        reasons: R lists of failures, None where there is none.
    """

    values: np.ndarray | None
    inputs: np.ndarray | None
    reasons: pa.Array | None


@dataclass(frozen=True)
class Record:
    """The part of a commit record that planning needs.

    Attributes:
        path: where it lies.
        header: what its writer said of it.
        row_ids: ``V16 [R]``.
        columns: C names.
        filled: packed bits ``uint8 [R, ceil(C/8)]``, or None: all cells are values (``header["full"]``) or none is.
        failed: packed bits ``uint8 [R, ceil(C/8)]``, or None where no cell is a failure.
        inputs: ``uint64 [R]`` or None. Digests by cell are in :meth:`cells`.
    """

    path: Place
    header: RecordHeader
    row_ids: np.ndarray
    columns: tuple[str, ...]
    filled: np.ndarray | None
    failed: np.ndarray | None
    inputs: np.ndarray | None

    @property
    def name(self) -> str:
        """The file's name, ``<block key>-<generation>.commit`` or ``.drop``."""
        return self.path.name

    @property
    def order(self) -> tuple[int, str]:
        """Records merge in this order."""
        return self.header["created_ns"], self.name

    @property
    def is_drop(self) -> bool:
        """Whether the record voids failures instead of holding cells."""
        return self.name.endswith(".drop")

    def cells(self) -> Cells:
        """Map the digests and reasons. Arrays keep the map; nothing else does. Raises ``Damaged``."""
        return _sound(self.path, self._cells)

    def _cells(self) -> Cells:
        with damage(f"commit record {self.path}"):
            path = _local(self.path)
            batch = _open(path)
            stamps.once(path, lambda: _compare(batch))
            shape = len(self.row_ids), len(self.columns)

            def digests(field: str) -> np.ndarray:
                return np.frombuffer(_bytes(batch.column(field)), "<u8").reshape(shape)

            names = set(batch.schema.names)
            return Cells(
                digests("values") if "values" in names else None,
                digests("inputs") if self.header["has_inputs"] == "cell" else None,
                batch.column("reasons") if "reasons" in names else None,
            )

    def verify(self) -> None:
        """Compare everything, as it is stored now, with the checksums. Raises ``Damaged``."""
        store_of(self.path).forget(self.path)
        with damage(f"commit record {self.path}"):
            _compare(_open(_local(self.path)))


def _local(place: Place) -> str:
    return store_of(place).local(place)


def _sound(place: Place, read: Callable[[], T]) -> T:
    """What is read of a record. Where a copy of it is damaged or has gone, that is fetched again, once."""
    try:
        return read()
    except Damaged:
        if not store_of(place).forget(place):
            raise
    return read()


def _open(path: str) -> pa.RecordBatch:
    if not os.path.isfile(path):
        raise FileNotFoundError(errno.ENOENT, "no such file")
    with pa.ipc.open_file(pa.memory_map(path)) as reader:
        batch = reader.get_batch(0)
    batch.validate(full=True)
    return batch


def _compare(batch: pa.RecordBatch, index_only: bool = False) -> None:
    """Compare a batch with its checksums. Raises ``ValueError``."""
    metadata = batch.schema.metadata
    index, cells = _checksums(batch, metadata, index_only)
    if index != metadata[b"index"] or not (index_only or cells == metadata[b"cells"]):
        raise ValueError("a checksum differs")


def _checksums(batch: pa.RecordBatch, metadata: Mapping[bytes, bytes], index_only: bool = False) -> tuple[bytes, bytes]:
    """Checksums of what planning reads, and of the rest."""
    index, cells = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
    index.update(b"\n".join([metadata[b"header"], metadata[b"columns"], repr(batch.schema.names).encode()]))
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if name == "reasons":
            if not index_only:
                cells.update(canonical_json(column.to_pylist()))
        elif name in ("row", "filled", "failed") or column.type == pa.uint64():
            index.update(_bytes(column))
        elif not index_only:
            cells.update(_bytes(column))
    return index.hexdigest().encode(), cells.hexdigest().encode()


def _bytes(column: pa.Array) -> memoryview:
    """The values of a fixed-width column."""
    return memoryview(column.buffers()[1])[: len(column) * column.type.bit_width // 8]


def load_record(path: Place) -> Record:
    """Read and verify the light part of a record.

    Raises:
        Damaged: it is torn or its bytes have changed.
        OSError: it cannot be read.
    """
    return _sound(path, lambda: _load(path))


def _load(path: Place) -> Record:
    with damage(f"commit record {path}"):
        batch = _open(_local(path))
        _compare(batch, index_only=True)
        metadata = batch.schema.metadata
        columns = _columns_seen.get(metadata[b"columns"])
        if columns is None:
            columns = _columns_seen.setdefault(metadata[b"columns"], tuple(json.loads(metadata[b"columns"])))
        header = json.loads(metadata[b"header"])
        names, width, count = set(batch.schema.names), (len(columns) + 7) // 8, batch.num_rows

        def light(field: str, dtype: Any, shape: tuple[int, ...]) -> np.ndarray | None:
            if field not in names:
                return None
            return np.frombuffer(_bytes(batch.column(field)), dtype).reshape(shape).copy()

        return Record(
            path=path,
            header=header,
            row_ids=cast(np.ndarray, light("row", ROW, (count,))),
            columns=columns,
            filled=light("filled", np.uint8, (count, width)),
            failed=light("failed", np.uint8, (count, width)),
            inputs=light("inputs", "<u8", (count,)) if header["has_inputs"] == "row" else None,
        )


def encode_record(
    header: CommitHeader, block: CellBlock, values: np.ndarray | None = None, dropped: np.ndarray | None = None
) -> pa.Buffer:
    """A record's bytes.

    Args:
        header: what the writer says.
        block: the cells.
        values: ``uint64 [R, C]`` value digests or None.
        dropped: ``bool [R, C]``, for a ``.drop`` record: the failures that it voids.
    """
    width, inputs = block.shape[1], block.inputs
    fields: dict[str, pa.Array] = {"row": fixed_binary(block.row_ids, 16)}
    if block.valid.any() and not block.valid.all():
        fields["filled"] = fixed_binary(np.packbits(block.valid, axis=1), (width + 7) // 8)
    failed = np.zeros(block.shape, bool) if dropped is None else dropped
    if block.failures:
        failed[tuple(np.array(list(block.failures)).T)] = True
    if failed.any():
        fields["failed"] = fixed_binary(np.packbits(failed, axis=1), (width + 7) // 8)
    if inputs is not None:
        fields["inputs"] = pa.array(inputs, pa.uint64()) if inputs.ndim == 1 else fixed_binary(inputs, 8 * width)
    if values is not None:
        fields["values"] = fixed_binary(values, 8 * width)
    if block.failures:
        by_row: list[list[dict[str, Any]]] = [[] for _ in block.row_ids]
        for (row, column), reason in sorted(block.failures.items()):
            by_row[row].append({"column": column, "reason": reason})
        fields["reasons"] = pa.array(by_row, _REASONS)
    kind = None if inputs is None else ("row" if inputs.ndim == 1 else "cell")
    metadata = {
        b"header": canonical_json({**header, "full": bool(block.valid.all()), "has_inputs": kind}),
        b"columns": canonical_json(list(block.columns)),
    }
    batch = pa.record_batch(fields)
    index, cells = _checksums(batch, metadata)
    batch = batch.replace_schema_metadata({**metadata, b"index": index, b"cells": cells})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def publish_payload(
    scratch: Place, folder: Place, key: str, suffix: str, write: Callable[[BinaryIO], None]
) -> tuple[str, int]:
    """Write a payload whole, then give it its name in ``folder``.

    Args:
        scratch: for drafts; on a disk it is on the same file system.
        folder: where it belongs.
        key: the block's.
        suffix: ``.arrow`` or ``.lmdb``.
        write: writes it to a binary file.

    Returns:
        Its name and its size in bytes.
    """
    return store_of(folder).publish(folder, key, suffix, write, scratch)


def publish_record(scratch: Place, target: Place, data: pa.Buffer | bytes) -> bool:
    """Create a record exclusively; False where ``target`` exists already. This is the instant of the commit."""
    return store_of(target).create(target, memoryview(data).cast("B"), scratch)
