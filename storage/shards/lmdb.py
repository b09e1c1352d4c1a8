"""LMDB shards: tensor cells in one environment file per shard.

Key = row id (16 bytes) + column index in the shard (4 bytes, big-endian); value = the cell as its codec writes it. The
key ``00`` holds a line of JSON (codec, shape, columns) followed by the row ids in the block's order.
:mod:`hoi_distill.storage.shards.lmdb_reader` reads them.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import lmdb
import numpy as np

from hoi_distill.storage.cell_block import CellBlock
from hoi_distill.storage.digests import canonical_json
from hoi_distill.storage.files import owner
from hoi_distill.storage.shards.codecs import Codec

_HEADER = b"\0"
_TRANSACTION_BYTES = 64 << 20  # of dirty pages held in memory while a shard is built
_FULL_BYTES = 1 << 16  # a disk with less is full


def write(sink: BinaryIO, block: CellBlock, encoded: Sequence[np.ndarray], codec: Codec) -> None:
    """Build a shard in local scratch (``TMPDIR``), close it, and copy the finished file to ``sink``.

    Args:
        sink: the file.
        block: which cells.
        encoded: per column, ``uint8 [number of valid rows, codec.nbytes]``.
        codec: how they are encoded.
    """
    _sweep_scratch()
    description = {"codec": codec.name, "shape": list(codec.shape), "columns": list(block.columns)}
    header = canonical_json(description) + b"\n" + block.row_ids.tobytes()
    # More than the file will need; only addresses are spent on it. Readers map the file's own size.
    map_size = (1 << 20) + 2 * len(header) + block.value_count * (2 * (codec.nbytes + 128) + 8192)
    with tempfile.TemporaryDirectory(prefix=f"hoi-distill-{owner.tag()}-") as scratch:
        path = os.path.join(scratch, "shard.lmdb")
        try:
            with lmdb.open(path, subdir=False, lock=False, sync=False, map_size=map_size) as environment:
                _fill(environment, header, block, encoded)
        except lmdb.Error as error:
            # LMDB reports a write that was cut short as an I/O error.
            full = shutil.disk_usage(scratch).free < _FULL_BYTES
            number, reason = (errno.ENOSPC, "No space left on device") if full else (errno.EIO, str(error))
            raise OSError(number, f"{reason} (in scratch folder {scratch})") from error
        with open(path, "rb") as built:
            shutil.copyfileobj(built, sink, 1 << 20)


def _fill(environment: lmdb.Environment, header: bytes, block: CellBlock, encoded: Sequence[np.ndarray]) -> None:
    """Put all cells in key order, which packs the pages."""
    row_ids, where = block.row_ids, np.cumsum(block.valid, axis=0) - 1
    order = np.argsort(row_ids.view(">u8").reshape(-1, 2)[:, 1], kind="stable")
    order = order[np.argsort(row_ids.view(">u8").reshape(-1, 2)[order, 0], kind="stable")]
    transaction, pending = environment.begin(write=True), 0
    try:
        transaction.put(_HEADER, header, append=True)
        for row in order.tolist():
            name = row_ids[row].tobytes()
            for column in np.flatnonzero(block.valid[row]).tolist():
                value = memoryview(encoded[column][where[row, column]])
                transaction.put(name + column.to_bytes(4, "big"), value, append=True)
                pending += value.nbytes
            if pending > _TRANSACTION_BYTES:
                transaction.commit()
                transaction, pending = environment.begin(write=True), 0
        transaction.commit()
    except BaseException:
        transaction.abort()
        raise


def _sweep_scratch() -> None:
    """Remove scratch folders of dead writers."""
    for folder in owner.leftovers(Path(tempfile.gettempdir()), "hoi-distill-"):
        shutil.rmtree(folder, ignore_errors=True)
