"""Tables of numbers: a row's cells of many columns as one array.

A table of 600 scores has 600 Arrow columns. To parse their schema, or to ask each of them for its cell, takes far longer than
to read the cells. All cells have one width. So what is kept of a shard is where each column's cells begin in the file, and
shards of equal metadata share it.

Even so a row's 600 cells lie in 600 places. Where all rows of a stream fit into :data:`ROWS_IN_MEMORY`, those of a shard are
turned into rows side by side when the first of them is read. The rows of a larger table are gathered from the file. To keep
only some of its shards turned would not pay in a shuffled order: each row would turn a whole shard and drop another.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from typing_extensions import override

from hoi_distill.storage.damage import Damaged
from hoi_distill.storage.digests import digest_bytes
from hoi_distill.storage.layout import ColumnGroup
from hoi_distill.storage.shards.cells import dense
from hoi_distill.storage.shards.payload import verified

_SHARDS_OPEN = 1024  # maps; they hold no file descriptor
_MANY_COLUMNS = 32  # fewer are gathered in no time
_TURNED_AT_ONCE = 256  # rows
ROWS_IN_MEMORY = 128 << 20
"""How many bytes of a table a process keeps as rows: those of 55,000 rows of 600 pairs of float16."""


@dataclass(eq=False, slots=True)
class NumberRow(Mapping[str, Any]):
    """One row's cells of C columns of numbers: one array, and by column an array or a number, None where it is not wanted.

    Attributes:
        places: the place of each column, ``{column: place}``.
        array: ``[C, ...]`` of the stored float type, read-only. NaN where the cell is not wanted.
        wanted: ``bool [C]``. None means all.
    """

    places: Mapping[str, int]
    array: np.ndarray
    wanted: np.ndarray | None = None

    @override
    def __getitem__(self, column: str) -> Any:
        place = self.places[column]
        if self.wanted is not None and not self.wanted[place]:
            return None
        return self.array[place] if self.array.ndim > 1 else self.array[place].item()

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    @override
    def __len__(self) -> int:
        return len(self.places)


def number_type(cell: pa.DataType) -> np.dtype | None:
    """A float, or a (nested) list of a fixed number of floats, of 2, 4 or 8 bytes together, as a numpy type with the
    list's shape. None for another type."""
    shape: tuple[int, ...] = ()
    while pa.types.is_fixed_size_list(cell):
        shape, cell = (*shape, cell.list_size), cell.value_type
    if not pa.types.is_floating(cell):
        return None
    kind = np.dtype((cell.to_pandas_dtype(), shape))
    return kind if kind.itemsize in (2, 4, 8) else None


@dataclass(frozen=True, eq=False)
class _Starts:
    """Where the cells of a shard's columns begin, ``{column: number of cells from the beginning of the file}``."""

    of: dict[str, int]


@dataclass(frozen=True, eq=False)
class _Turned:
    """The cells of a group's k columns, row after row.

    Attributes:
        cells: ``[R, k, ...]``, read-only. Rows that are waiting hold nothing yet.
        filled: the same memory, for writing.
        waiting: by shard that was not touched yet, ``int64`` the rows that lie in it.
    """

    cells: np.ndarray
    filled: np.ndarray
    waiting: dict[int, np.ndarray]

    @classmethod
    def none_of(cls, group: ColumnGroup, kind: np.dtype) -> _Turned:
        """All rows of a group, none of which was read."""
        filled = np.empty((len(group.shard), len(group.columns), *kind.shape), kind.base)
        cells = filled.view()
        cells.flags.writeable = False
        order = np.argsort(group.shard, kind="stable")
        shards, starts = np.unique(group.shard[order], return_index=True)
        return cls(cells, filled, dict(zip(shards.tolist(), np.split(order, starts[1:]), strict=True)))


class NumberReader:
    """Reads rows of a table of numbers.

    Args:
        kind: see :func:`number_type`.
        columns: C names.
        groups: where the cells of all columns lie.
        paths: payload files.
    """

    def __init__(
        self, kind: np.dtype, columns: Sequence[str], groups: Sequence[ColumnGroup], paths: Sequence[str]
    ) -> None:
        self.kind, self.groups, self.paths = kind, groups, paths
        self.places = {column: place for place, column in enumerate(columns)}
        self._group_places = [np.array([self.places[column] for column in group.columns]) for group in groups]
        self._known: dict[bytes, _Starts] = {}
        self._of_shard: dict[int, _Starts] = {}
        self._starts: dict[tuple[int, _Starts], tuple[np.ndarray, np.ndarray | None]] = {}
        self._open: OrderedDict[int, np.ndarray] = OrderedDict()
        fit = sum(group.shard.size * len(group.columns) for group in groups) * kind.itemsize <= ROWS_IN_MEMORY
        self._turned = [
            _Turned.none_of(group, kind) if fit and len(group.columns) >= _MANY_COLUMNS else None for group in groups
        ]

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        return NumberReader, (self.kind, tuple(self.places), self.groups, self.paths)

    def read(self, row: int, wanted: np.ndarray | None) -> NumberRow:
        """The cells of a row.

        Args:
            row: its position in the groups' arrays.
            wanted: ``bool [C]``, the cells that are meant. None means all.

        Raises:
            KeyError: a shard does not hold a wanted cell.
            StorageError: a shard cannot be read, or holds other bytes than were written.
        """
        if len(self.groups) == 1 and wanted is None:
            array = self._read_group(0, row, None)
        else:
            array = np.full((len(self.places), *self.kind.shape), np.nan, self.kind.base)
            for number, places in enumerate(self._group_places):
                if wanted is None or wanted[places].any():
                    array[places] = self._read_group(number, row, wanted)
            if wanted is not None:
                array[~wanted] = np.nan
        array.flags.writeable = False
        return NumberRow(self.places, array, wanted)

    def holds(self, shard: int) -> bool:
        """Whether a shard's rows can be read without opening its file again."""
        return shard in self._open or all(turned and shard not in turned.waiting for turned in self._turned)

    def _read_group(self, number: int, row: int, wanted: np.ndarray | None) -> np.ndarray:
        """``[k, ...]``, the cells of a group's k columns. What a shard does not hold and is not wanted reads as anything."""
        group, turned = self.groups[number], self._turned[number]
        shard = group.shard.item(row)
        if turned is not None and (shard not in turned.waiting or self._turn(number, shard, turned)):
            kept: np.ndarray = turned.cells[row]
            return kept
        cells, starts, absent = self._shard(number, shard)
        if absent is not None and (wanted is None or wanted[absent].any()):
            raise KeyError(f"{self.paths[shard]}: not all of the wanted columns are there")
        taken: np.ndarray = cells.take(starts + group.position.item(row))
        return taken.view(self.kind.base).reshape(len(starts), *self.kind.shape)

    def _turn(self, number: int, shard: int, turned: _Turned) -> bool:
        """Turn a shard's part of a group into rows. False where it lacks columns; then no more of the group is turned."""
        cells, starts, absent = self._shard(number, shard)
        if absent is not None:
            self._turned[number] = None
            return False
        rows = turned.waiting.get(shard, np.empty(0, np.int64))
        for start in range(0, len(rows), _TURNED_AT_ONCE):
            part = rows[start : start + _TURNED_AT_ONCE]
            taken = cells.take(starts + self.groups[number].position[part, None])
            turned.filled[part] = taken.view(self.kind.base).reshape(len(part), len(starts), *self.kind.shape)
        turned.waiting.pop(shard, None)  # not before: another thread may read
        return True

    def _shard(self, number: int, shard: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """A shard's cells, as they lie on the disk, and what :meth:`_starts_of` says of them."""
        cells = self._open.get(shard)
        if cells is None:
            cells = self._map(shard)
        known = self._of_shard[shard]
        return cells, *(self._starts.get((number, known)) or self._starts_of(number, known))

    def _starts_of(self, number: int, known: _Starts) -> tuple[np.ndarray, np.ndarray | None]:
        """Where a group's columns begin in shards of one kind, and the places of those that are not there, if any."""
        starts = np.array([known.of.get(column, -1) for column in self.groups[number].columns])
        absent = self._group_places[number][starts < 0] if (starts < 0).any() else None
        self._starts[number, known] = np.maximum(starts, 0), absent
        return self._starts[number, known]

    def _map(self, shard: int) -> np.ndarray:
        """A shard's file as an array of cells, as they lie on the disk. The shards mapped last stay mapped."""
        path, size = self.paths[shard], self.kind.itemsize
        with verified(path) as (local, _), pa.memory_map(local) as file:
            whole = file.read_buffer()
            if shard not in self._of_shard:
                self._of_shard[shard] = self._parsed(whole, path)
        cells = self._open[shard] = np.frombuffer(whole, f"<u{size}", count=whole.size // size)
        if len(self._open) > _SHARDS_OPEN:
            self._open.popitem(last=False)
        return cells

    def _parsed(self, whole: pa.Buffer, path: str) -> _Starts:
        """Where the columns of a file begin. Files of equal metadata are parsed once."""
        key = digest_bytes(bytes(_metadata(whole)))
        if key not in self._known:
            batch, starts = pa.ipc.open_file(pa.BufferReader(whole)).get_batch(0), {}
            for column, cells in zip(batch.schema.names[1:], batch.columns[1:], strict=True):
                if dense(cells.drop_null() if cells.null_count else cells) is None:
                    raise Damaged(f"shard {path}", f"a cell of column {column!r} holds a null")
                starts[column] = (cells.buffers()[-1].address - whole.address) // self.kind.itemsize
            self._known[key] = _Starts(starts)
        return self._known[key]


def _metadata(whole: pa.Buffer) -> memoryview:
    """The beginning of an Arrow IPC file of one record batch, up to the cells: it says where each column lies."""
    data = memoryview(whole)
    end = 8
    for _ in ("schema", "record batch"):
        end += 8 + struct.unpack_from("<I", data, end + 4)[0]
    return data[:end]
