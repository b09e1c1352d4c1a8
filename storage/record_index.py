"""Which commit records hold cells of which rows, looked up once for all tasks that read them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hoi_distill.storage.cell_state import join_rows
from hoi_distill.storage.records import Record
from hoi_distill.storage.selection import CellSelection


class RecordIndex:
    """The commit records of a table, by row of a selection.

    Args:
        records: all of the table's.
        cells: R rows. A record without any of the columns is left out.
    """

    def __init__(self, records: Sequence[Record], cells: CellSelection) -> None:
        columns = set(cells.columns)
        named = {id(record.columns): record.columns for record in records}  # many records share one tuple
        touching = {number: not columns.isdisjoint(names) for number, names in named.items()}
        kept = [record for record in records if touching[id(record.columns)]]
        self._names = np.array([record.name for record in kept], object)
        lengths = [len(record.row_ids) for record in kept]
        recorded = np.concatenate([record.row_ids for record in kept]) if kept else cells.row_ids[:0]
        place, rows = join_rows(recorded, cells.row_ids)
        order = np.argsort(rows, kind="stable")
        self._record = np.repeat(np.arange(len(kept), dtype=np.int32), lengths)[place[order]]
        self._starts = np.searchsorted(rows[order], np.arange(len(cells.row_ids) + 1))

    def names(self, rows: np.ndarray) -> tuple[str, ...]:
        """Names of the records that hold a cell of these rows, for :meth:`hoi_distill.storage.table.Table.only`.

        Args:
            rows: ``int [r]``, positions in the selection.
        """
        starts, stops = self._starts[rows], self._starts[rows + 1]
        length = stops - starts
        where = np.repeat(starts - np.cumsum(length) + length, length) + np.arange(int(length.sum()))
        return tuple(self._names[np.unique(self._record[where])].tolist())
