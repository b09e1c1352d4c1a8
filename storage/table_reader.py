"""Reading a table: which cells are filled, where they lie, what they hold, and why others failed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from hoi_distill.storage.cell_state import State, merge, overlaps
from hoi_distill.storage.digests import FAILURE_DIGEST
from hoi_distill.storage.errors import StorageError
from hoi_distill.storage.records import Record
from hoi_distill.storage.selection import CellSelection
from hoi_distill.storage.shards.payload import open_shard, verify_once
from hoi_distill.storage.table_folder import TableFolder

EMPTY, FAILED = -1, -2
_READ_ONE_BY_ONE = 16  # payloads, those of a task, that cost less to verify than to ask the machine about


@dataclass(frozen=True)
class Location:
    """Where cells lie.

    Attributes:
        shard: ``int32 [R, C]``, index into ``paths``; :data:`EMPTY`, or :data:`FAILED` for a recorded failure.
        position: ``int32 [R, C]``, row within the shard.
        paths: the payload files (:func:`hoi_distill.storage.shards.payload.open_shard` reads one).
    """

    shard: np.ndarray
    position: np.ndarray
    paths: list[str]


class TableReader(TableFolder):
    """The reading half of a table. Only :meth:`read` looks at a selection's ``wanted``."""

    def state(self, cells: CellSelection) -> State:
        """What is filled of these cells."""
        records = self.records()
        return merge(records, self.live_names(records), cells)

    def value_digests(self, cells: CellSelection) -> np.ndarray:
        """The first digest recorded of each cell's value, also where its payload is gone.

        Returns:
            ``uint64 [R, C]``: ``FAILURE_DIGEST`` for a failure, 0 where nothing is recorded.
        """
        records = self.records()
        digests = np.zeros(cells.shape, np.uint64)
        for overlap in overlaps(_preferred(records, cells), cells):
            keep = overlap.valid() & overlap.matches(cells.inputs)
            if overlap.record.is_drop or not keep.any():
                continue
            values = overlap.record.cells().values
            assert values is not None
            before = digests[overlap.target]
            recorded = values[overlap.record_rows][:, overlap.record_columns]
            digests[overlap.target] = np.where((before == 0) & keep, recorded, before)
        failed = merge(records, {record.name for record in records}, cells).failed
        digests[failed & (digests == 0)] = FAILURE_DIGEST
        return digests

    def locate(self, cells: CellSelection) -> Location:
        """Where each cell's value lies: in the first record that holds it and whose payload is there."""
        records = self.records()
        live = self.live_names(records)
        where = Location(np.full(cells.shape, EMPTY, np.int32), np.full(cells.shape, EMPTY, np.int32), [])
        for overlap in overlaps(_preferred(records, cells), cells):
            payload = overlap.record.header["payload"]
            if overlap.record.name not in live or payload is None:
                continue
            target = overlap.target
            take = overlap.valid() & overlap.matches(cells.inputs) & (where.shard[target] == EMPTY)
            if take.any():
                where.shard[target] = np.where(take, len(where.paths), where.shard[target])
                where.position[target] = np.where(take, overlap.record_rows[:, None], where.position[target])
                where.paths.append(str(self.dir / "shards" / payload))
        where.shard[merge(records, live, cells).failed] = FAILED
        return where

    def read(self, cells: CellSelection) -> dict[str, Any]:
        """The cells' values, in the selection's order.

        Returns:
            ``{column: pa.Array of length R}``, or for tensors ``ndarray [R, *shape]`` (float16 for codec ``fp16``, else
            float32). A recorded failure and a cell that is not wanted read as null, or NaN.

        Raises:
            StorageError: a wanted cell is empty, or its shard cannot be read or holds other bytes than were written.
        """
        where = self.locate(cells)
        if cells.wanted is not None:
            where.shard[~cells.wanted] = FAILED
        if (where.shard == EMPTY).any():
            row, column = np.argwhere(where.shard == EMPTY)[0].tolist()
            count = int((where.shard == EMPTY).sum())
            raise StorageError(
                f"table {self.dir.name}: {count} of {where.shard.size} cells asked for are empty, the first of row "
                f"{cells.row_ids[row].tobytes().hex()}, column {cells.columns[column]!r}; `hoi-distill run` fills them"
            )
        used = np.unique(where.shard[where.shard >= 0]).tolist()
        with self.errors("shards"):
            if len(used) > _READ_ONE_BY_ONE:
                verify_once([where.paths[number] for number in used])
            read = self._read_arrow if self.type is not None else self._read_tensors
            return {column: read(column, where, index) for index, column in enumerate(cells.columns)}

    def _read_arrow(self, column: str, where: Location, index: int) -> pa.Array:
        shard, position = where.shard[:, index], where.position[:, index]
        if not len(shard):
            return pa.nulls(0, self.type)
        order = np.argsort(shard, kind="stable")
        used, starts = np.unique(shard[order], return_index=True)
        pieces = []
        for number, part in zip(used.tolist(), np.split(order, starts[1:]), strict=True):
            if number == FAILED:
                pieces.append(pa.nulls(len(part), self.type))
            else:
                pieces.append(open_shard(where.paths[number]).take(column, position[part]))
        inverse = np.empty(len(order), np.int64)
        inverse[order] = np.arange(len(order))
        return pa.concat_arrays(pieces).take(pa.array(inverse))

    def _read_tensors(self, column: str, where: Location, index: int) -> np.ndarray:
        codec = self.codec
        assert codec is not None
        shard, position = where.shard[:, index], where.position[:, index]
        values = np.full((len(shard), *codec.shape), np.nan, codec.dtype)
        for number in np.unique(shard[shard >= 0]).tolist():
            part = np.flatnonzero(shard == number)
            values[part] = open_shard(where.paths[number]).take(column, position[part])
        return values

    def failures(self, cells: CellSelection) -> dict[tuple[int, int], str]:
        """The reasons of the cells that are recorded failures, ``{(row, column): reason}`` by positions in the selection."""
        records = self.records()
        failed = merge(records, self.live_names(records), cells).failed
        reasons: dict[tuple[int, int], str] = {}
        if not failed.any():
            return reasons
        for overlap in overlaps(records, cells):
            bits = overlap.bits(overlap.record.failed)
            if overlap.record.is_drop or bits is None:
                continue
            bits = bits & overlap.matches(cells.inputs) & failed[overlap.target]
            some = np.flatnonzero(bits.any(axis=1))
            column_of = dict(zip(overlap.record_columns.tolist(), overlap.columns.tolist(), strict=True))
            recorded = overlap.record.cells().reasons
            assert recorded is not None
            lists = recorded.take(pa.array(overlap.record_rows[some])).to_pylist()
            for row, entries in zip(overlap.rows[some].tolist(), lists, strict=True):
                for entry in entries:
                    column = column_of.get(entry["column"])
                    if column is not None and failed[row, column]:
                        reasons[row, column] = entry["reason"]  # a later record's reason is the newer one
        return reasons


def _preferred(records: list[Record], cells: CellSelection) -> list[Record]:
    """The order in which records are looked through for a cell. The oldest comes first, so that the first value stands. The
    newest comes first where the selection names no input digests and the records have some."""
    newest = cells.inputs is None and any(record.header["has_inputs"] for record in records)
    return records[::-1] if newest else records
