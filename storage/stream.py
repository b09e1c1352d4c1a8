"""The sample stream: joins the tables that a student asks for, row by row, and yields batches in a fixed order.

Opening a stream checks everything it will read: that each wanted cell is filled and was computed from today's inputs,
that the table is the one that was planned, that payloads have their size and, the first time this machine touches them,
their checksum. After that it only maps files: values are views of the page cache, and what a stream keeps in memory is
a few integers per row.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import override

from hoi_distill.storage.digests import digest_bytes, fingerprint
from hoi_distill.storage.errors import StorageError, UserError
from hoi_distill.storage.files import stamps
from hoi_distill.storage.sampling import Epoch, RankBatches
from hoi_distill.storage.selection import CellSelection
from hoi_distill.storage.shards import cells as arrow_cells
from hoi_distill.storage.shards.lmdb import LmdbShard
from hoi_distill.storage.shards.payload import Shard, open_shard, verify_once
from hoi_distill.storage.table import Table
from hoi_distill.storage.table_reader import EMPTY, FAILED, Location

if TYPE_CHECKING:
    import torch
    from torch.utils.data import DataLoader

Sample = dict[str, Any]
_CELLS_AT_ONCE = 1 << 24  # of a table's matrix of locations; they are packed before the next are looked up
_SHARDS_OPEN = 128


@dataclass(frozen=True)
class TableRef:
    """The cells of one table that a stream delivers.

    Attributes:
        dir: the table's folder.
        fingerprint: the table's, 32 hex digits.
        cells: of the stream's rows. A cell that is not wanted is delivered as None, whatever the table holds.
    """

    dir: str
    fingerprint: str
    cells: CellSelection


@dataclass(frozen=True)
class StreamSpec:
    """What a stream reads.

    Attributes:
        row_ids: ``V16 [N]``. The same one may stand twice.
        tables: by name, the cells of these rows.
        command: what fills an empty cell, for messages.
    """

    row_ids: np.ndarray
    tables: dict[str, TableRef]
    command: str

    def select(self, tables: Mapping[str, Sequence[str]]) -> StreamSpec:
        """Some columns, ``{table: (column, ...)}``, of some tables. Raises ``KeyError`` for one that is not here."""
        refs = {name: self.tables[name] for name in tables}
        chosen = {name: replace(ref, cells=ref.cells.select(tables[name])) for name, ref in refs.items()}
        return replace(self, tables=chosen)


class SampleStream:
    """Samples of the N rows of a spec: ``{"row": position in spec.row_ids, table: {column: value}}``.

    A value is a read-only array for tensors (float16 for codec ``fp16``, else float32) and what
    :func:`hoi_distill.storage.shards.cells.cells` gives for Arrow cells; None where the cell is not wanted. Arrays are views of
    mapped files and stay valid as long as they are held. Rows with a recorded failure in any table are left out.

    The stream pickles, and loader workers may be forked or spawned: each process maps the files by itself.

    Attributes:
        skipped: ``{row: reason}`` of the rows left out.
        live: ``int64 [N - len(skipped)]``, the other rows.

    Raises:
        UserError: a wanted cell is empty or stale, a table is missing or another one, a payload's bytes have changed.
    """

    def __init__(self, spec: StreamSpec) -> None:
        self._count = len(spec.row_ids)
        self._tables = [_CellReader(name, ref, spec.command) for name, ref in spec.tables.items()]
        self.skipped: dict[int, str] = {}
        for table in self._tables:
            for row, reason in table.failures.items():
                self.skipped.setdefault(row, reason)
        keep = np.ones(self._count, bool)
        keep[list(self.skipped)] = False
        self.live = np.flatnonzero(keep)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> Sample:
        """One sample. Raises ``KeyError`` for a row that is left out."""
        if row in self.skipped:
            raise KeyError(f"row {row} is left out: {self.skipped[row]}")
        return {"row": int(row), **{table.name: table.read(row) for table in self._tables}}

    def __getitems__(self, rows: Sequence[int]) -> list[Sample]:
        """The samples of ``rows``, in that order, less those that are left out."""
        return [self[row] for row in rows if row not in self.skipped]

    def loader(
        self,
        batch_size: int,
        epoch: Epoch,
        num_workers: int = 0,
        collate: Callable[[list[Sample]], Any] | None = None,
    ) -> DataLoader[Any]:
        """One epoch's batches for one rank, see :mod:`hoi_distill.storage.sampling`: each live row once over all ranks.

        Args:
            batch_size: of this rank; ``batch_size * epoch.world`` is the global batch.
            epoch: which epoch, and which rank's part of it.
            num_workers: processes that read.
            collate: makes a batch of a list of samples, in the worker; default: the list itself.
        """
        from torch.utils.data import DataLoader

        return DataLoader(
            self,  # type: ignore[arg-type]
            batch_sampler=RankBatches.of(self.live, batch_size, epoch),
            num_workers=num_workers,
            collate_fn=collate or list,
        )


def stack(arrays: Sequence[np.ndarray]) -> torch.Tensor:
    """Arrays of one shape as one tensor ``[B, *shape]``, for a collate function: one copy, and in a loader's worker
    straight into the memory that it shares with the trainer."""
    import torch
    from torch.utils.data import get_worker_info

    shape = (len(arrays), *arrays[0].shape)
    stacked = torch.empty(0, dtype=torch.from_numpy(np.empty(0, arrays[0].dtype)).dtype)
    if get_worker_info() is None:
        stacked.resize_(shape)
    else:
        stacked.set_(torch.UntypedStorage._new_shared(len(arrays) * arrays[0].nbytes), 0, shape)  # type: ignore
    np.stack(arrays, out=stacked.numpy())
    return stacked


@dataclass(frozen=True)
class _Group:
    """Columns whose cells lie side by side.

    Attributes:
        columns: their names.
        shard: ``int32 [R]``, for each row the index of a payload.
        position: ``int32 [R]``, the place in it.
    """

    columns: list[str]
    shard: np.ndarray
    position: np.ndarray


@dataclass(frozen=True)
class Layout:
    """Where the wanted cells of a selection lie.

    Attributes:
        groups: all of its columns.
        paths: payload files.
        failures: ``{row: reason}`` of the rows in which a wanted cell is a recorded failure.
    """

    groups: list[_Group]
    paths: list[str]
    failures: dict[int, str]


def locate_cells(table: Table, cells: CellSelection) -> Layout | None:
    """Look up every wanted cell, some columns at a time. None where one of them is empty."""
    paths: dict[str, int] = {}
    groups: dict[tuple[bytes, bytes], _Group] = {}
    failures: dict[int, str] = {}
    step = max(_CELLS_AT_ONCE // max(len(cells.row_ids), 1), 1)
    for start in range(0, len(cells.columns), step):
        part = cells.select(cells.columns[start : start + step])
        where, wanted = table.locate(part), part.wanted_mask()
        if ((where.shard == EMPTY) & wanted).any():
            return None
        failed = np.flatnonzero(((where.shard == FAILED) & wanted).any(axis=1))
        for (row, index), reason in table.failures(part.take(failed)).items() if len(failed) else ():
            if wanted[failed[row], index]:
                failures.setdefault(int(failed[row]), reason)
        if part.wanted is not None:
            _point_unwanted_at_wanted(where, part.wanted)
        number = np.array([paths.setdefault(path, len(paths)) for path in where.paths], np.int32)
        for column, located, place in zip(part.columns, where.shard.T, where.position.T, strict=True):
            filled = located >= 0
            shard, position = np.where(filled, located, FAILED), np.where(filled, place, 0)
            shard[filled] = number[shard[filled]]
            key = digest_bytes(shard.tobytes()), digest_bytes(position.tobytes())
            groups.setdefault(key, _Group([], shard, position)).columns.append(column)
    return Layout(list(groups.values()), list(paths), failures)


class _CellReader:
    """One table's wanted cells, row by row.

    Attributes:
        failures: ``{row: "table: reason"}`` of the rows with a recorded failure.
    """

    def __init__(self, name: str, ref: TableRef, command: str) -> None:
        self.name, self.columns = name, ref.cells.columns
        table = _open_table(name, ref, command)
        layout = locate_cells(table, ref.cells)
        if layout is None:
            raise _refusal(name, table, ref.cells, command)
        self.failures = {row: f"{name}: {reason}" for row, reason in layout.failures.items()}
        self._wanted = None if ref.cells.wanted is None else np.packbits(ref.cells.wanted, axis=1)
        self._groups, self._paths = layout.groups, layout.paths
        try:
            verify_once(self._paths)
        except StorageError as error:
            raise UserError(f"table {name}: {error}, then run `{command}`") from error
        self._shards: OrderedDict[int, tuple[Shard, dict[str, Callable[[int], Any]]]] = OrderedDict()

    @override
    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": OrderedDict(), "_stamps": stamps.vouched(self._paths)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        stamps.vouch(state.pop("_stamps"))  # a loader's process need not read again what the trainer's has read
        self.__dict__.update(state)

    def read(self, row: int) -> dict[str, Any]:
        """``{column: value}`` in the order of the selection; None for a cell that is not wanted."""
        values: dict[str, Any] = dict.fromkeys(self.columns)
        wanted = None
        if self._wanted is not None:
            bits = np.unpackbits(self._wanted[row], count=len(self.columns))
            wanted = set(compress(self.columns, bits.tolist()))
        for group in self._groups:
            columns = group.columns if wanted is None else [name for name in group.columns if name in wanted]
            if not columns:
                continue
            position = int(group.position[row])
            shard, known = self._shard(int(group.shard[row]))
            for name in columns:
                if name not in known:
                    known[name] = _values(shard, name)
                values[name] = known[name](position)
        return values

    def _shard(self, number: int) -> tuple[Shard, dict[str, Callable[[int], Any]]]:
        """An open shard and the columns of it that were read so far. The ones used last stay open."""
        if number not in self._shards:
            self._shards[number] = open_shard(self._paths[number]), {}
            if len(self._shards) > _SHARDS_OPEN:
                self._shards.popitem(last=False)
        self._shards.move_to_end(number)
        return self._shards[number]


def _point_unwanted_at_wanted(where: Location, wanted: np.ndarray) -> None:
    """Point unwanted cells, which are never read, at the row's first wanted cell. So columns that were written together stay
    in one group."""
    first = wanted.argmax(axis=1)[:, None]
    for place in (where.shard, where.position):
        place[:] = np.where(wanted, place, np.take_along_axis(place, first, axis=1))


def _values(shard: Shard, name: str) -> Callable[[int], Any]:
    """For one column of a shard: position -> value."""
    if isinstance(shard, LmdbShard):
        return lambda position: shard.codec.decode(shard.view(name, position)[None])[0]
    return arrow_cells.cells(shard.column(name))


def _open_table(name: str, ref: TableRef, command: str) -> Table:
    try:
        table = Table(ref.dir)
    except StorageError as error:
        raise UserError(f"table {name} ({ref.dir}): table.json is missing or unreadable; run `{command}`") from error
    if not ref.fingerprint == table.fingerprint == fingerprint(table.record):
        raise UserError(
            f"table {name} ({ref.dir}): table.json is of {fingerprint(table.record)}, wanted is {ref.fingerprint}; "
            f"move the folder away and run `{command}`"
        )
    return table


def _refusal(name: str, table: Table, cells: CellSelection, command: str) -> UserError:
    """What is missing of a table, in one line."""
    state, wanted = table.state(cells), cells.wanted_mask()
    empty = state.empty() & wanted
    stale, lost = int((state.stale & wanted).sum()), int((state.lost & wanted).sum())
    row, column = np.argwhere(empty)[0].tolist()
    why = [f"{stale} stale: their inputs have changed"] if stale else []
    why += [f"{lost} lost with their shard"] if lost else []
    return UserError(
        f"table {name} ({table.dir}): {int(empty.sum())} of {int(wanted.sum())} wanted cells are empty"
        f"{' (' + ', '.join(why) + ')' if why else ''}, the first of row {cells.row_ids[row].tobytes().hex()}, "
        f"column {cells.columns[column]!r}; run `{command}`"
    )
