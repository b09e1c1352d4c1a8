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
import shutil
import tempfile
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import lmdb
import numpy as np

from hoi_distill.storage.cell_block import CellBlock
from hoi_distill.storage.digests import ROW, canonical_json
from hoi_distill.storage.files import owner
from hoi_distill.storage.shards.codecs import Codec

_HEADER = b"\0"
_TRANSACTION_BYTES = 64 << 20  # of dirty pages held in memory while a shard is built
_FULL_BYTES = 1 << 16  # a disk with less is full
_KEPT_OPEN = 512  # environments; each costs a file descriptor


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
