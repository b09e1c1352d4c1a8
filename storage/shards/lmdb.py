"""LMDB shards: tensor cells in one environment file per shard.

Key = row id (16 bytes) + column index in the shard (4 bytes, big-endian); value = the cell as its codec writes it. The
key ``00`` holds a line of JSON (codec, shape, columns) followed by the row ids in the block's order.
:mod:`hoi_distill.storage.shards.lmdb_reader` reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

import numpy as np

from hoi_distill.storage.cell_block import CellBlock
from hoi_distill.storage.digests import canonical_json
from hoi_distill.storage.shards.codecs import Codec
from hoi_distill.storage.shards.lmdb_writer import write_lmdb

_HEADER = b"\0"


def write(sink: BinaryIO, block: CellBlock, encoded: Sequence[np.ndarray], codec: Codec) -> None:
    """Write a shard.

    Args:
        sink: the file.
        block: which cells.
        encoded: per column, ``uint8 [number of valid rows, codec.nbytes]``.
        codec: how they are encoded.
    """
    description = {"codec": codec.name, "shape": list(codec.shape), "columns": list(block.columns)}
    keys, values = [_HEADER], [memoryview(canonical_json(description) + b"\n" + block.row_ids.tobytes())]
    names, where = block.row_ids.tobytes(), np.cumsum(block.valid, axis=0) - 1
    for row in sorted(range(len(block.row_ids)), key=lambda row: names[16 * row : 16 * row + 16]):
        for column in np.flatnonzero(block.valid[row]).tolist():
            keys.append(names[16 * row : 16 * row + 16] + column.to_bytes(4, "big"))
            values.append(memoryview(encoded[column][where[row, column]]))
    write_lmdb(sink, keys, values)
