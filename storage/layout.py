"""Where the cells of a selection lie, packed: a few integers per row, however many columns there are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hoi_distill.storage.digests import digest_bytes
from hoi_distill.storage.selection import CellSelection
from hoi_distill.storage.table import Table
from hoi_distill.storage.table_reader import EMPTY, FAILED, Location

_CELLS_AT_ONCE = 1 << 24  # of a table's matrix of locations; they are packed before the next are looked up


@dataclass(frozen=True)
class ColumnGroup:
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

    groups: list[ColumnGroup]
    paths: list[str]
    failures: dict[int, str]


def locate_cells(table: Table, cells: CellSelection) -> Layout | None:
    """Look up every wanted cell, some columns at a time. None where one of them is empty."""
    paths: dict[str, int] = {}
    groups: dict[tuple[bytes, bytes], ColumnGroup] = {}
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
        for index, (column, beside) in enumerate(zip(part.columns, _lie_beside_the_left(where), strict=True)):
            if not beside:
                filled = where.shard[:, index] >= 0
                shard = np.where(filled, where.shard[:, index], FAILED)
                position = np.where(filled, where.position[:, index], 0)
                shard[filled] = number[shard[filled]]
                key = digest_bytes(shard.tobytes()), digest_bytes(position.tobytes())
                group = groups.setdefault(key, ColumnGroup([], shard, position))
            group.columns.append(column)
    return Layout(list(groups.values()), list(paths), failures)


def _point_unwanted_at_wanted(where: Location, wanted: np.ndarray) -> None:
    """Point unwanted cells, which are never read, at the row's first wanted cell. So columns that were written together stay
    in one group."""
    first = wanted.argmax(axis=1)[:, None]
    for place in (where.shard, where.position):
        place[:] = np.where(wanted, place, np.take_along_axis(place, first, axis=1))


def _lie_beside_the_left(where: Location) -> np.ndarray:
    """``bool [C]``: the columns whose cells all lie where those of the column before lie."""
    same = np.zeros(where.shard.shape[1], bool)
    same[1:] = (where.shard[:, 1:] == where.shard[:, :-1]).all(axis=0)
    same[1:] &= (where.position[:, 1:] == where.position[:, :-1]).all(axis=0)
    return same
