"""The sample stream: joins the tables that a student asks for, row by row, and yields batches in a fixed order.

Opening a stream checks everything it will read: that each wanted cell is filled and was computed from today's inputs,
that the table is the one that was planned, that payloads have their size and, the first time this machine touches them,
their checksum. After that it only maps files: values are views of the page cache, and what a stream keeps in memory is
a few integers per row; of a table of numbers also its rows, where they fit (:mod:`hoi_distill.storage.numbers`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from typing_extensions import override

from hoi_distill.storage.digests import fingerprint
from hoi_distill.storage.errors import StorageError, UserError
from hoi_distill.storage.files import stamps
from hoi_distill.storage.files.fetching import fetch_ahead, fetch_together
from hoi_distill.storage.files.stores import is_object, loaders_start
from hoi_distill.storage.layout import locate_cells
from hoi_distill.storage.numbers import NumberReader, number_type
from hoi_distill.storage.sampling import Epoch, RankBatches
from hoi_distill.storage.selection import CellSelection
from hoi_distill.storage.shards import cells as arrow_cells
from hoi_distill.storage.shards.lmdb_reader import LmdbShard
from hoi_distill.storage.shards.payload import Shard, fetch, open_shard, verify_once
from hoi_distill.storage.table import Table

if TYPE_CHECKING:
    import torch
    from torch.utils.data import DataLoader

Sample = dict[str, Any]
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
    :func:`hoi_distill.storage.shards.cells.cells` gives for Arrow cells; None where the cell is not wanted. The cells of a
    table of numbers (:func:`hoi_distill.storage.numbers.number_type`) are a :class:`hoi_distill.storage.numbers.NumberRow`,
    which has them as one array too. Other arrays are views of mapped files. All stay valid as long as they are held. Rows
    with a recorded failure in any table are left out.

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
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[Sample]:
        """The samples of ``rows``, in that order, less those that are left out. The disk reads all of them at once."""
        read = [int(row) for row in rows if row not in self.skipped]
        fetch_together(self._closed(read), fetch)
        for table in self._tables:
            table.read_ahead(read)
        samples: list[Sample] = [{"row": row} for row in read]
        for table in self._tables:
            for sample, row in zip(samples, read, strict=True):
                sample[table.name] = table.read(row)
        return samples

    @property
    def fetches(self) -> bool:
        """Whether any table lies in an object store."""
        return any(table.fetches for table in self._tables)

    def fetch_ahead(self, rows: Sequence[int]) -> None:
        """Begin to fetch the shards of rows that will be read soon, and do not wait for them."""
        fetch_ahead(self._closed(rows), fetch)

    def _closed(self, rows: Sequence[int]) -> list[str]:
        """The shards of some rows that may have to be fetched before they are read, those of the first rows first."""
        return [path for table in self._tables if table.fetches for path in table.closed(rows)]

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
            multiprocessing_context=loaders_start(num_workers),
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
        self._groups, self._paths, self._holds_tensors = layout.groups, layout.paths, table.type is None
        kind = None if table.type is None else number_type(table.type)
        self._numbers = None if kind is None else NumberReader(kind, self.columns, self._groups, self._paths)
        try:
            verify_once(self._paths)
        except StorageError as error:
            raise UserError(f"table {name}: {error}, then run `{command}`") from error
        self._shards: OrderedDict[int, tuple[Shard, dict[str, Callable[[int], Any]]]] = OrderedDict()
        self.fetches = any(map(is_object, self._paths))

    @override
    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": OrderedDict(), "_stamps": stamps.vouched(self._paths)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        stamps.vouch(state.pop("_stamps"))  # a loader's process need not read again what the trainer's has read
        self.__dict__.update(state)

    def read_ahead(self, rows: Sequence[int]) -> None:
        """Let the disk begin to read the tensors of these rows."""
        if self._holds_tensors:
            for row in rows:
                for shard, _, position, columns in self._places(row):
                    for name in columns:
                        cast(LmdbShard, shard).read_ahead(name, position)

    def closed(self, rows: Sequence[int]) -> list[str]:
        """The shards of these rows that are not open, those of the first rows first. They never came, had to make room since,
        or are on this machine's disk."""
        shards = dict.fromkeys(int(group.shard[row]) for row in rows for group in self._groups)
        return [self._paths[shard] for shard in shards if shard >= 0 and not self._is_open(shard)]

    def _is_open(self, shard: int) -> bool:
        return shard in self._shards if self._numbers is None else self._numbers.holds(shard)

    def read(self, row: int) -> Mapping[str, Any]:
        """``{column: value}`` in the order of the selection; None for a cell that is not wanted."""
        if self._numbers is not None:
            return self._numbers.read(row, self._wanted_of(row))
        values: dict[str, Any] = dict.fromkeys(self.columns)
        for shard, known, position, columns in self._places(row):
            for name in columns:
                if name not in known:
                    known[name] = _values(shard, name)
                values[name] = known[name](position)
        return values

    def _places(self, row: int) -> Iterator[tuple[Shard, dict[str, Callable[[int], Any]], int, list[str]]]:
        """Where the wanted cells of a row lie: for each group what :meth:`_shard` gives, the position, the columns."""
        bits = self._wanted_of(row)
        wanted = None if bits is None else set(compress(self.columns, bits.tolist()))
        for group in self._groups:
            columns = group.columns if wanted is None else [name for name in group.columns if name in wanted]
            if columns:
                yield *self._shard(int(group.shard[row])), int(group.position[row]), columns

    def _wanted_of(self, row: int) -> np.ndarray | None:
        """``bool [C]``; None where every cell is wanted."""
        return None if self._wanted is None else np.unpackbits(self._wanted[row], count=len(self.columns)).view(bool)

    def _shard(self, number: int) -> tuple[Shard, dict[str, Callable[[int], Any]]]:
        """An open shard and the columns of it that were read so far. The ones used last stay open."""
        if number not in self._shards:
            self._shards[number] = open_shard(self._paths[number]), {}
            if len(self._shards) > _SHARDS_OPEN:
                self._shards.popitem(last=False)
        self._shards.move_to_end(number)
        return self._shards[number]


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
