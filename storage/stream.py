"""The sample stream: joins the tables that a student asks for, row by row, and yields batches in a fixed order.

Opening a stream checks everything it will read: that each wanted cell is filled and was computed from today's inputs,
that the table is the one that was planned, that payloads have their size and, the first time this machine touches them,
their checksum. After that it only maps files: values are views of the page cache, and what a stream keeps in memory is
a few integers per row.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import TYPE_CHECKING, Any

import numpy as np

from hoi_distill.storage.digests import fingerprint
from hoi_distill.storage.errors import StorageError, UserError
from hoi_distill.storage.files import stamps
from hoi_distill.storage.sampling import batch_count, epoch_order, rank_batch
from hoi_distill.storage.shards.cells import cells
from hoi_distill.storage.shards.lmdb import LmdbShard
from hoi_distill.storage.shards.payload import Shard, open_shard, verify_once
from hoi_distill.storage.table import EMPTY, FAILED, Location, Table

if TYPE_CHECKING:
    import torch
    from torch.utils.data import DataLoader

Sample = dict[str, Any]
_CELLS_AT_ONCE = 1 << 24  # of a table's matrix of locations; they are packed before the next are looked up
_SHARDS_OPEN = 128


@dataclass(frozen=True)
class TableRef:
    """Which cells of one table are wanted: R rows (the stream's) x C columns.

    Attributes:
        dir: the table's folder.
        columns: C names.
        inputs: input digests the cells must have been computed from, ``uint64 [R]`` or ``[R, C]``; None: any.
        fingerprint: the table's, 32 hex digits.
        wanted: ``bool [R, C]``, which of them; the others are delivered as None, whatever the table holds. None: all.
    """

    dir: str
    columns: tuple[str, ...]
    inputs: np.ndarray | None = None
    fingerprint: str = ""
    wanted: np.ndarray | None = None

    def select(self, columns: Sequence[str]) -> TableRef:
        """The same rows of some of the columns. Raises ``KeyError`` for a column that is not wanted here."""
        place = {column: index for index, column in enumerate(self.columns)}
        chosen = [place[column] for column in columns]
        inputs = self.inputs if self.inputs is None or self.inputs.ndim == 1 else self.inputs[:, chosen]
        wanted = None if self.wanted is None else self.wanted[:, chosen]
        return replace(self, columns=tuple(columns), inputs=inputs, wanted=wanted)


@dataclass(frozen=True)
class StreamSpec:
    """What a stream reads: N rows (``V16``; the same one may stand twice), by table name the cells, and (for messages)
    the command that fills an empty one."""

    rows: np.ndarray
    tables: dict[str, TableRef]
    command: str


class SampleStream:
    """Samples of the N rows of a spec: ``{"row": index into spec.rows, table: {column: value}}``.

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
        self.skipped: dict[int, str] = {}
        self._count = len(spec.rows)
        self._tables = [
            _TableReader(name, ref, spec.rows, spec.command, self.skipped) for name, ref in spec.tables.items()
        ]
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
        seed: int,
        epoch: int,
        rank: int = 0,
        world: int = 1,
        num_workers: int = 0,
        collate: Callable[[list[Sample]], Any] | None = None,
        start_batch: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
    ) -> DataLoader[Any]:
        """One epoch's batches for one rank, see :mod:`hoi_distill.storage.sampling`: each live row once over all ranks.

        Args:
            batch_size: of this rank; ``batch_size * world`` is the global batch.
            collate: makes a batch of a list of samples, in the worker; default: the list itself.
            start_batch: batches of this epoch that were already seen (resume).
        """
        from torch.utils.data import DataLoader

        order = self.live[epoch_order(seed, epoch, len(self.live), shuffle)]
        batches = _Batches(order, batch_size * world, rank, world, start_batch, drop_last)
        return DataLoader(
            self,  # type: ignore[arg-type]
            batch_sampler=batches,  # type: ignore[arg-type]
            num_workers=num_workers,
            collate_fn=collate or list,
        )


@dataclass(frozen=True)
class _Batches:
    """What one rank reads of an epoch, as lists of rows."""

    order: np.ndarray
    global_batch: int
    rank: int
    world: int
    start: int
    drop_last: bool

    def __len__(self) -> int:
        return max(batch_count(len(self.order), self.global_batch, self.rank, self.drop_last) - self.start, 0)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in range(self.start, self.start + len(self)):
            yield rank_batch(self.order, batch, self.global_batch, self.rank, self.world).tolist()


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
    """Columns whose cells lie side by side: for each row the shard (index of its path) and the place in it, int32."""

    columns: list[str]
    shard: np.ndarray
    position: np.ndarray


class _TableReader:
    """Where one table's wanted cells lie, and their values."""

    def __init__(self, name: str, ref: TableRef, rows: np.ndarray, command: str, skipped: dict[int, str]) -> None:
        self.name, self.columns = name, ref.columns
        table = _open_table(name, ref, command)
        paths: dict[str, int] = {}
        groups: dict[bytes, _Group] = {}
        self._wanted = None if ref.wanted is None else np.packbits(ref.wanted, axis=1)
        step = max(_CELLS_AT_ONCE // max(len(rows), 1), 1)
        for start in range(0, len(ref.columns), step):
            part = ref.select(ref.columns[start : start + step])
            where = table.locate(rows, part.columns, part.inputs)
            wanted = np.ones_like(where.shard, bool) if part.wanted is None else part.wanted
            if ((where.shard == EMPTY) & wanted).any():
                raise _refusal(name, table, ref, rows, command)
            failed = np.flatnonzero(((where.shard == FAILED) & wanted).any(axis=1))
            if len(failed):
                inputs = None if part.inputs is None else part.inputs[failed]
                reasons = table.failures(rows[failed], part.columns, inputs)
                for (row, index), reason in reasons.items():
                    if wanted[failed[row], index]:
                        skipped.setdefault(int(failed[row]), f"{name}: {reason}")
            if part.wanted is not None:
                _settle(where, part.wanted)
            number = np.array([paths.setdefault(path, len(paths)) for path in where.paths], np.int32)
            for column, shard, position in zip(part.columns, where.shard.T, where.position.T, strict=True):
                there = shard >= 0
                shard, position = np.where(there, shard, FAILED), np.where(there, position, 0)
                shard[there] = number[shard[there]]
                group = groups.setdefault(shard.tobytes() + position.tobytes(), _Group([], shard, position))
                group.columns.append(column)
        self._groups, self._paths = list(groups.values()), list(paths)
        try:
            verify_once(self._paths)
        except StorageError as error:
            raise UserError(f"table {name}: {error}, then run `{command}`") from error
        self._shards: OrderedDict[int, tuple[Shard, dict[str, Callable[[int], Any]]]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": OrderedDict(), "_stamps": stamps.vouched(self._paths)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        stamps.vouch(state.pop("_stamps"))  # a loader's process need not read again what the trainer's has read
        self.__dict__.update(state)

    def read(self, row: int) -> dict[str, Any]:
        """``{column: value}`` in the order of the asked columns; None for a cell that is not wanted."""
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


def _settle(where: Location, wanted: np.ndarray) -> None:
    """Say that a cell that is not wanted, and is never read, lies beside its row's first wanted one: columns that were
    written together then stay one group, whichever rows want them."""
    first = wanted.argmax(axis=1)[:, None]
    for place in (where.shard, where.position):
        place[:] = np.where(wanted, place, np.take_along_axis(place, first, axis=1))


def _values(shard: Shard, name: str) -> Callable[[int], Any]:
    """For one column of a shard: position -> value."""
    if isinstance(shard, LmdbShard):
        return lambda position: shard.codec.decode(shard.view(name, position)[None])[0]
    return cells(shard.column(name))


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


def _refusal(name: str, table: Table, ref: TableRef, rows: np.ndarray, command: str) -> UserError:
    """What is missing of a table, in one line."""
    state = table.state(rows, ref.columns, ref.inputs)
    wanted = np.ones(state.shape, bool) if ref.wanted is None else ref.wanted
    empty = state.empty() & wanted
    stale, lost = int((state.stale & wanted).sum()), int((state.lost & wanted).sum())
    row, column = np.argwhere(empty)[0].tolist()
    why = [f"{stale} stale: their inputs have changed"] if stale else []
    why += [f"{lost} lost with their shard"] if lost else []
    return UserError(
        f"table {name} ({table.dir}): {int(empty.sum())} of {int(wanted.sum())} wanted cells are empty"
        f"{' (' + ', '.join(why) + ')' if why else ''}, the first of row {rows[row].tobytes().hex()}, "
        f"column {ref.columns[column]!r}; run `{command}`"
    )
