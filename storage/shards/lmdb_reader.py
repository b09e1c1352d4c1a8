"""Reading LMDB shards: tensor cells as views of the mapped file, see :mod:`hoi_distill.storage.shards.lmdb`.

Only the tree's pages are read when a shard is opened; they say where each cell lies. The library would find the cells too,
but its ``get`` touches every page of a value before it returns, which waits for the disk once for every 4 KB. The format
of the pages is that of LMDB 0.9, data version 1.
"""

from __future__ import annotations

import errno
import json

import numpy as np

from hoi_distill.storage.digests import ROW
from hoi_distill.storage.files.mapped_file import MappedFile
from hoi_distill.storage.shards.codecs import Codec

_MAGIC = 0xBEEFC0DE, 1
_PAGE_HEADER = 16
_META = np.dtype(
    {
        "names": ["magic", "version", "page_bytes", "depth", "root", "transaction"],
        "formats": ["<u4", "<u4", "<u4", "<u2", "<u8", "<u8"],
        "offsets": [16, 20, 40, 94, 128, 144],
        "itemsize": 152,
    }
)
_NODE = np.dtype([("low", "<u2"), ("high", "<u2"), ("flags", "<u2"), ("key_bytes", "<u2")])
_KEY = np.dtype([("row", ROW), ("column", ">u4")])
_ON_PAGES_OF_ITS_OWN = 1
"""The flag of a node whose value does not fit into its leaf: the number of the value's first page stands there instead."""


class LmdbShard:
    """A shard open for reading. Get it from :func:`hoi_distill.storage.shards.payload.open_shard`.

    Attributes:
        row_ids: ``V16 [R]``.
        columns: the C column names.
        codec: how cells are encoded.

    Raises:
        OSError: the file is no shard.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = MappedFile(path)
        tree = _Tree(self._file.pages)
        keys, offsets, sizes = tree.entries()
        if not len(offsets):
            raise OSError(errno.EIO, f"{path}: not a shard")
        header, _, row_ids = self._file.pages[offsets[0] : offsets[0] + sizes[0]].tobytes().partition(b"\n")
        description = json.loads(header)
        self.codec = Codec(description["codec"], tuple(description["shape"]))
        self.columns: tuple[str, ...] = tuple(description["columns"])
        self.row_ids = np.frombuffer(row_ids, ROW)
        if (sizes[1:] != self.codec.nbytes).any() or (offsets + sizes > len(self._file.pages)).any():
            raise OSError(errno.EIO, f"{path}: not a shard")
        self._index = {column: index for index, column in enumerate(self.columns)}
        self._offset = np.full((len(self.row_ids), len(self.columns)), -1)  # of each cell in the file
        position = {row_id: index for index, row_id in enumerate(self.row_ids.tolist())}
        self._offset[[position[row_id] for row_id in keys["row"].tolist()], keys["column"]] = offsets[1:]

    def read_ahead(self, name: str, position: int) -> None:
        """Let the disk begin to read one cell. Raises ``KeyError`` where the shard does not hold it."""
        self._file.read_ahead(self._place(name, position), self.codec.nbytes)

    def view(self, name: str, position: int) -> np.ndarray:
        """One encoded cell, ``uint8 [codec.nbytes]``, zero-copy and read-only; it keeps the file mapped.

        Raises:
            KeyError: the shard does not hold this cell.
        """
        place = self._place(name, position)
        return self._file.pages[place : place + self.codec.nbytes]

    def take(self, name: str, positions: np.ndarray) -> np.ndarray:
        """Cells of a column at ``positions`` (``int [n]``), decoded: ``[n, *shape]`` of ``codec.dtype``."""
        encoded = np.empty((len(positions), self.codec.nbytes), np.uint8)
        for position in positions.tolist():
            self.read_ahead(name, position)
        for slot, position in enumerate(positions.tolist()):
            encoded[slot] = self.view(name, position)
        return self.codec.decode(encoded)

    def _place(self, name: str, position: int) -> int:
        place = int(self._offset[position, self._index[name]])
        if place < 0:
            raise KeyError(f"{self.path}: no cell of row {self.row_ids[position].tobytes().hex()}, column {name!r}")
        return place


class _Tree:
    """The B+ tree of an environment's only database.

    Args:
        pages: ``uint8 [bytes]``, the file.

    Raises:
        OSError: it is no environment of this format.
    """

    def __init__(self, pages: np.ndarray) -> None:
        self.pages = pages
        first = self._at(np.zeros(1, np.int64), _META)[0]
        second = self._at(first["page_bytes"].astype(np.int64)[None], _META)[0]
        newest = max(first, second, key=lambda meta: int(meta["transaction"]))
        if (newest["magic"], newest["version"]) != _MAGIC:
            raise OSError(errno.EIO, "not an LMDB environment")
        self.page_bytes, self.root, self.depth = (int(newest[name]) for name in ("page_bytes", "root", "depth"))

    def entries(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All entries, in the order of their keys. The first one's key is the header's, the others' are of 20 bytes.

        Returns:
            The keys of the n cells as ``[n]`` of fields ``row`` and ``column``, and of all entries ``int64 [n + 1]`` the
            offsets and sizes of their values.
        """
        level = np.array([self.root])
        for _ in range(self.depth - 1):
            at, node = self._nodes(level)
            level = node["low"] + (node["high"].astype(np.int64) << 16) + (node["flags"].astype(np.int64) << 32)
        at, node = self._nodes(level)
        key = at + _NODE.itemsize
        offsets, far = key + node["key_bytes"], node["flags"] & _ON_PAGES_OF_ITS_OWN > 0
        offsets[far] = self._at(offsets[far], np.dtype("<u8")).astype(np.int64) * self.page_bytes + _PAGE_HEADER
        return self._at(key[1:], _KEY), offsets, node["low"] + (node["high"].astype(np.int64) << 16)

    def _nodes(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the nodes of some pages begin, in order: ``int64 [n]``, and their headers ``[n]``."""
        nodes = []
        for start in (numbers * self.page_bytes).tolist():
            (end,) = self.pages[start + 12 : start + 14].view("<u2").tolist()
            nodes.append(start + self.pages[start + _PAGE_HEADER : start + end].view("<u2").astype(np.int64))
        at = np.concatenate(nodes)
        return at, self._at(at, _NODE)

    def _at(self, offsets: np.ndarray, kind: np.dtype) -> np.ndarray:
        """What lies at ``offsets``, ``int64 [n]``, as an array ``[n]`` of ``kind``."""
        return self.pages[offsets[:, None] + np.arange(kind.itemsize)].view(kind)[:, 0]
