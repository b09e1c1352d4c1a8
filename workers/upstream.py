"""What a table's cells are computed from: the cells of the tables above, and failures that they hand down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from hoi_distill.stages.stage import Values
from hoi_distill.storage.table import Table
from hoi_distill.workers.task import TableTask


@dataclass(frozen=True)
class UpstreamColumn:
    """One upstream column.

    Attributes:
        cells: the values that were read.
        slot: ``int [R]``, for each row of the task its place among them; -1 where it was not read.
    """

    cells: Values
    slot: np.ndarray = field(repr=False)

    def has_any(self, rows: np.ndarray) -> bool:
        """Whether a cell of these rows was read."""
        return bool((self.slot[rows] >= 0).any())

    def take(self, rows: np.ndarray) -> Values:
        """The cells of these rows; null or zero for a row that was not read."""
        slots = self.slot[rows]
        missing = slots < 0
        if isinstance(self.cells, pa.Array):
            return self.cells.take(pa.array(slots, mask=missing))
        values = self.cells[np.maximum(slots, 0)]
        values[missing] = 0
        return values


class UpstreamCells:
    """The upstream cells that a table task's needed cells are computed from."""

    def __init__(self, tables: dict[str, dict[str, UpstreamColumn]]) -> None:
        self._tables = tables

    @classmethod
    def read(cls, task: TableTask, needed: np.ndarray, tables: Mapping[str, Table]) -> UpstreamCells:
        """Read them.

        Args:
            task: which cells.
            needed: ``bool [R, C]``, those of them that are to be computed.
            tables: the upstream tables, by name.
        """
        return cls({name: _read(task, name, needed, table) for name, table in tables.items()})

    def take(self, rows: np.ndarray, repeated: np.ndarray) -> dict[str, dict[str, Values]]:
        """``{table: {column: values of length B}}`` of a batch, as ``Stage.compute`` takes them.

        Args:
            rows: the batch's real rows. A column that none of them has is left out.
            repeated: ``int [B]``, the same with the padding.
        """
        return {
            name: {column: cells.take(repeated) for column, cells in columns.items() if cells.has_any(rows)}
            for name, columns in self._tables.items()
        }


def inherited_failures(task: TableTask, tables: Mapping[str, Table]) -> dict[tuple[int, int], str]:
    """``{(row, column): reason}`` of the needed cells that are computed from a recorded failure."""
    inherited: dict[tuple[int, int], str] = {}
    needed = task.needed
    for name, table in tables.items():
        cells, depends = task.upstream[name].cells, _depends(task, name)
        wanted = cells.wanted_mask()
        for (row, column), reason in table.failures(cells).items():
            for below in np.flatnonzero(depends[column] & needed[row]).tolist() if wanted[row, column] else ():
                inherited.setdefault((row, below), f"upstream {name}: {reason}")
    return inherited


def _depends(task: TableTask, name: str) -> np.ndarray:
    """``bool [U, C]``: which of the U columns of an upstream table each column is computed from."""
    columns = task.upstream[name].cells.columns
    depends = np.zeros((len(columns), len(task.cells.columns)), dtype=bool)
    for below, column in enumerate(task.cells.columns):
        dependencies = task.stage.dependencies(column)
        read = columns if dependencies is None else dependencies.get(name, ())
        depends[:, below] = [above in read for above in columns]
    return depends


def _read(task: TableTask, name: str, needed: np.ndarray, table: Table) -> dict[str, UpstreamColumn]:
    """The cells of one upstream table. Columns that the same rows need are read together."""
    cells = task.upstream[name].cells
    read = (needed.astype(np.float32) @ _depends(task, name).T.astype(np.float32)) > 0
    patterns, group = np.unique(read, axis=1, return_inverse=True)
    found: dict[str, UpstreamColumn] = {}
    for index, pattern in enumerate(patterns.T):
        rows = np.flatnonzero(pattern)
        if not len(rows):
            continue
        slot = np.full(len(needed), -1)
        slot[rows] = np.arange(len(rows))
        chosen = cells.take(rows).select([cells.columns[member] for member in np.flatnonzero(group == index)])
        found.update({column: UpstreamColumn(values, slot) for column, values in table.read(chosen).items()})
    return found
