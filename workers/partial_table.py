"""The cells of one table while a task computes them. Nothing here reads or writes a file."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from hoi_distill.stages.stage import ArrowOutput, Turn, Values
from hoi_distill.storage.cell_block import CellBlock
from hoi_distill.workers.host_copies import begin_copy
from hoi_distill.workers.task import TableTask

NOTHING: tuple[np.ndarray, dict[str, tuple[Values, Any]]] = (np.zeros(0, np.int64), {})
"""What is on its way where nothing is: rows, and of each column what :func:`begin_copy` gave."""


def one_line(reason: str) -> str:
    """A reason as it is recorded."""
    return " ".join(reason.split()) or "failed without a reason"


class PartialTable:
    """What a task has computed of one table so far. Rows and columns are positions in the task.

    Attributes:
        task: which cells.
        needed: ``bool [R, C]``, the cells to compute: those of the task, less those whose upstream cell is a failure.
        valid: ``bool [R, C]``, the cells that have a value.
        saved: ``bool [R, C]``, those of them that are committed already.
        failures: ``{(row, column): reason}``.
        failed_here: rows that failed by themselves, not because something upstream had.
        unanswered: failure cells whose row can be processed: a server's answer was cut, say. They count against no input.
        counts: what the stage has counted, by name (:class:`hoi_distill.stages.stage.Turn`).
        recorded: what it had to record.
        seconds: spent in the stage's ``compute``. Work that tables of a pass share is counted where it was done.
        waited: seconds of them in which the stage waited for a server.
        copy_seconds: spent on waiting for values that came from a GPU.
    """

    def __init__(self, task: TableTask, inherited: Mapping[tuple[int, int], str]) -> None:
        """
        Args:
            task: which cells.
            inherited: failures of cells whose upstream cell is a failure.
        """
        self.task = task
        self.needed = task.needed.copy()
        self.valid = np.zeros_like(self.needed)
        self.saved = np.zeros_like(self.needed)
        self.failures = dict(inherited)
        self.failed_here: set[int] = set()
        self.unanswered: set[tuple[int, int]] = set()
        self.counts: dict[str, float] = {}
        self.recorded: dict[str, Any] = {}
        self.seconds = self.waited = self.copy_seconds = 0.0
        for cell in inherited:
            self.needed[cell] = False
        self._rows = np.flatnonzero(task.needed.any(axis=1))  # values of other rows are not kept
        self._slot = np.full(len(self.needed), -1)
        self._slot[self._rows] = np.arange(len(self._rows))
        self._tensors: dict[str, np.ndarray] = {}
        self._pieces: dict[str, list[tuple[np.ndarray, pa.Array]]] = {}
        self._arriving = NOTHING

    @property
    def unsaved(self) -> np.ndarray:
        """``bool [R, C]``, the values that are not committed yet."""
        return self.valid & ~self.saved

    @property
    def done(self) -> int:
        """How many cells have a value or a failure."""
        return int(self.valid.sum()) + len(self.failures)

    def lacking(self, rows: np.ndarray) -> list[str]:
        """The columns that one of these rows needs."""
        return [self.task.cells.columns[index] for index in np.flatnonzero(self.needed[rows].any(axis=0))]

    def wanted(self, rows: np.ndarray, columns: Sequence[str]) -> np.ndarray:
        """``bool [b, c]``: which cells of these rows and columns are needed."""
        place = {column: index for index, column in enumerate(self.task.cells.columns)}
        mask: np.ndarray = self.needed[rows][:, [place[column] for column in columns]]
        return mask

    def put(self, rows: np.ndarray, answers: Mapping[str, Values]) -> None:
        """Keep what a batch answers. The needed cells of its rows become valid once all columns are kept: at once, or for
        tensors on a GPU at the next ``put`` or :meth:`settle`, so that they are copied while the next batch is computed.

        Args:
            rows: ``int [b]``, the batch's real rows.
            answers: ``{column: values}``, of which the first b are those of ``rows``.
        """
        copies = {column: begin_copy(values[: len(rows)], self.task.stage.output) for column, values in answers.items()}
        self.settle()
        self._arriving = rows, copies
        if all(copied is None for _, copied in copies.values()):
            self.settle()

    def take_turn(self, rows: np.ndarray, turn: Turn) -> None:
        """Note what the stage told of a batch beside its values. Call it before :meth:`put`.

        Args:
            rows: ``int [b]``, the batch's real rows.
            turn: of the batch.
        """
        place = {column: index for index, column in enumerate(self.task.cells.columns)}
        for position, column in turn.unasked:
            self.needed[rows[position], place[column]] = False
        for (position, column), reason in turn.failures.items():
            cell = int(rows[position]), place[column]
            if self.needed[cell]:
                self.needed[cell] = False
                self.failures[cell] = one_line(reason)
                self.unanswered.add(cell)
        for name, number in turn.counts.items():
            self.counts[name] = self.counts.get(name, 0) + number
        self.recorded |= turn.recorded
        self.waited += turn.waited

    def settle(self) -> None:
        """Wait for the values of the last ``put``, and keep them."""
        (rows, copies), self._arriving = self._arriving, NOTHING
        for column, (values, copied) in copies.items():
            if copied is not None:
                began = time.perf_counter()
                copied.synchronize()
                self.copy_seconds += time.perf_counter() - began
            self._keep(column, rows, values)
        self.valid[rows] |= self.needed[rows]

    def fail(self, row: int, reason: str) -> None:
        """Make the row's needed cells failures."""
        for column in np.flatnonzero(self.needed[row]).tolist():
            self.failures[row, column] = one_line(reason)
            self.failed_here.add(row)

    def so_far(self) -> PartialTable:
        """A copy of what is whole now, for a thread that commits it while this one goes on. It has no failures: they are
        recorded at the end."""
        other = copy.copy(self)
        other.valid, other.failures, other.failed_here = self.valid.copy(), {}, set()
        other.counts, other.recorded = dict(self.counts), dict(self.recorded)
        other._pieces = {
            column: list(pieces)
            for column, pieces in list(self._pieces.items())  # a batch may add a column meanwhile
        }
        return other

    def block(self) -> CellBlock:
        """What there is to commit, over the rows and columns of which the task needs a cell."""
        columns = np.flatnonzero(self.task.needed.any(axis=0))
        place = {int(column): index for index, column in enumerate(columns)}
        cells = self.task.cells.take(self._rows).select([self.task.cells.columns[column] for column in columns])
        return CellBlock(
            row_ids=cells.row_ids,
            columns=cells.columns,
            valid=self.unsaved[np.ix_(self._rows, columns)],
            failures={(int(self._slot[row]), place[column]): why for (row, column), why in self.failures.items()},
            inputs=cells.inputs,
        )

    def block_values(self) -> dict[str, pa.Array | np.ndarray]:
        """The values of :meth:`block`, by column; null or zero where there is none."""
        return {column: self._values(column) for column in {**self._tensors, **self._pieces}}

    def values(self, column: str, rows: np.ndarray) -> Values:
        """The computed cells of a column in these rows, each of which the task needs."""
        slots, cells = self._slot[rows], self._values(column)
        return cells.take(pa.array(slots)) if isinstance(cells, pa.Array) else cells[slots]

    def _keep(self, column: str, rows: np.ndarray, values: Values) -> None:
        output = self.task.stage.output
        slots = self._slot[rows]
        own = np.flatnonzero(slots >= 0)
        if isinstance(output, ArrowOutput):
            self._pieces.setdefault(column, []).append((slots[own], values.take(pa.array(own))))
            return
        if column not in self._tensors:
            dtype = np.float16 if output.codec == "fp16" else np.float32
            self._tensors[column] = np.zeros((len(self._rows), *output.shape), dtype=dtype)
        self._tensors[column][slots[own]] = values if len(own) == len(rows) else values[own]

    def _values(self, column: str) -> pa.Array | np.ndarray:
        if column in self._tensors:
            return self._tensors[column]
        pieces = self._pieces[column]
        slots = np.concatenate([slots for slots, _ in pieces])
        order = np.full(len(self._rows), -1)
        order[slots] = np.arange(len(slots))
        joined = pa.concat_arrays([values for _, values in pieces])
        return joined.take(pa.array(order, mask=order < 0))
