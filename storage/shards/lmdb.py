"""LMDB shards: tensor cells in one environment file per shard, read without locks, zero-copy.

Key = row id (16 bytes) + column index in the shard (4 bytes, big-endian); value = the cell as its codec writes it. The
key ``00`` holds a line of JSON (codec, shape, columns) followed by the row ids in the block's order.

LMDB refuses to open a path twice in one process (also in a fork), and a view into a closed environment is a crash. So
all readers of a process share the shards through :func:`open_lmdb`, a view keeps its shard alive, and a fork reads
through the environments that it inherited.
"""

from __future__ import annotations

import errno
import json
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, BinaryIO

import lmdb
import numpy as np

from hoi_distill.storage.cell_block import CellBlock
from hoi_distill.storage.digests import ROW, canonical_json
from hoi_distill.storage.shards.codecs import Codec
from hoi_distill.storage.shards.lmdb_writer import write_lmdb

_HEADER = b"\0"
_KEPT_OPEN = 512  # environments; each costs a file descriptor


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


class _View:
    """Owns the memory of an array: holds the shard for as long as numpy holds the array."""

    __slots__ = ("__array_interface__", "shard")

    def __init__(self, shard: LmdbShard, interface: dict[str, Any]) -> None:
        self.shard = shard
        self.__array_interface__ = interface


class LmdbShard:
    """A shard open for reading. Get it from :func:`open_lmdb`.

    Attributes:
        row_ids: ``V16 [R]``.
        columns: the C column names.
        codec: how cells are encoded.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._environment = lmdb.open(
            path, subdir=False, readonly=True, lock=False, readahead=False, map_size=os.path.getsize(path)
        )
        self._read = self._environment.begin(buffers=True)
        header, _, row_ids = bytes(self._read.get(_HEADER, b"")).partition(b"\n")
        if not header:
            raise OSError(errno.EIO, f"{path}: not a shard")
        description = json.loads(header)
        self.codec = Codec(description["codec"], tuple(description["shape"]))
        self.columns: tuple[str, ...] = tuple(description["columns"])
        self._index = {column: index.to_bytes(4, "big") for index, column in enumerate(self.columns)}
        self.row_ids = np.frombuffer(row_ids, ROW)

    def view(self, name: str, position: int) -> np.ndarray:
        """One encoded cell, ``uint8 [codec.nbytes]``, zero-copy and read-only; it keeps the shard open.

        Raises:
            KeyError: the shard does not hold this cell.
        """
        interface = np.frombuffer(self._get(name, position), np.uint8).__array_interface__
        return np.asarray(_View(self, interface))

    def take(self, name: str, positions: np.ndarray) -> np.ndarray:
        """Cells of a column at ``positions`` (``int [n]``), decoded: ``[n, *shape]`` of ``codec.dtype``."""
        encoded = np.empty((len(positions), self.codec.nbytes), np.uint8)
        for slot, position in enumerate(positions.tolist()):
            encoded[slot] = np.frombuffer(self._get(name, position), np.uint8)
        return self.codec.decode(encoded)

    def _get(self, name: str, position: int) -> memoryview:
        value = self._read.get(self.row_ids[position].tobytes() + self._index[name])
        if value is None:
            raise KeyError(f"{self.path}: no cell of row {self.row_ids[position].tobytes().hex()}, column {name!r}")
        return value


_open: weakref.WeakValueDictionary[str, LmdbShard] = weakref.WeakValueDictionary()
_recent: OrderedDict[str, LmdbShard] = OrderedDict()
_lock = threading.Lock()


def _new_lock() -> None:
    global _lock  # a fork must not inherit a lock that another thread holds
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_new_lock)


def open_lmdb(path: str | os.PathLike[str]) -> LmdbShard:
    """The shard at ``path``, opened at most once per process. Old ones close when no view of them is left."""
    key = os.path.realpath(path)
    with _lock:
        shard = _open.get(key)
        if shard is None:
            try:
                shard = LmdbShard(key)
            except lmdb.Error as error:
                raise OSError(errno.EIO, f"{key}: {error}") from error
            _open[key] = shard
        _recent[key] = shard
        _recent.move_to_end(key)
        while len(_recent) > _KEPT_OPEN:
            _recent.popitem(last=False)
        return shard


def forget(path: str | os.PathLike[str]) -> None:
    """Let go of a shard whose file was set aside."""
    key = os.path.realpath(path)
    with _lock:
        _recent.pop(key, None)
        _open.pop(key, None)
