"""The tables of a cache as a viewer reads them: every answer about one image, and one question's answer about all of them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hoi_distill.pipeline.planning.plan import TablePlan
from hoi_distill.pipeline.viewer.entries import Entries
from hoi_distill.pipeline.workspace import Workspace
from hoi_distill.stages.teacher.training_data import training_data
from hoi_distill.storage.cell_state import State
from hoi_distill.storage.errors import StorageError
from hoi_distill.storage.origins import Origin, origins
from hoi_distill.storage.selection import CellSelection
from hoi_distill.storage.table import Table

AnswerState = Literal["filled", "lost", "failed", "stale", "empty", "unwanted"]
STATES = ("failed", "stale", "lost", "empty")
"""What a cell can lack, as filters name it."""
COLUMNS_AT_ONCE = 32
"""Columns that are located together: bounds the memory of reading a wide table for all images."""


@dataclass(frozen=True)
class Answer:
    """One cell of one image.

    Attributes:
        column: the question.
        state: whether there is a value, and if not, what there is.
        why: one sentence of a cell without a value; "" for others.
        value: of Python's own types, or ``float [*shape]`` of a tensor table; None where there is none.
        origin: the record that speaks of the cell; None where none does.
    """

    column: str
    state: AnswerState
    why: str
    value: Any
    origin: Origin | None


class ViewedTable:
    """One table of images: of the configuration, or another that lies in the cache.

    Attributes:
        name: the configuration's name, or the folder's name of a table that the configuration does not have.
        kind: the stage's name: ``itm``, ``captions`` ...
        columns: the questions.
        table: None while the cache holds no table of this fingerprint.
        plan: None for a table that the configuration does not have.
        command: what a user types to fill the cache.
    """

    def __init__(
        self, name: str, entries: Entries, plan: TablePlan | None, *, table: Table | None = None, command: str = ""
    ) -> None:
        """
        Args:
            name: as shown.
            entries: the images.
            plan: of the configuration's table.
            table: a table without a plan.
            command: what a user types to fill the cache.
        """
        self.name, self.plan, self.command = name, plan, command
        self.table = table if plan is None else plan.table
        self.kind: str = plan.node.stage.name if plan is not None else table.name if table is not None else ""
        self.columns = plan.columns if plan is not None else _columns(table)
        self._entries = entries

    @property
    def fingerprint(self) -> str:
        """32 hex digits; "" where the table is not there yet."""
        return "" if self.table is None else self.table.fingerprint

    @functools.cached_property
    def learned_from(self) -> str:
        """What its teacher was trained on, as far as is known; "" without one."""
        return "" if self.plan is None else training_data(self.plan.node.stage)

    @functools.cached_property
    def covered(self) -> np.ndarray:
        """``int64 [E]``: where each entry stands among the table's rows, -1 where the table does not cover it."""
        return np.arange(len(self._entries)) if self.plan is None else self.plan.positions(self._entries.row)

    @functools.cached_property
    def cells(self) -> CellSelection:
        """The table's rows, and all its columns."""
        return self.plan.cells if self.plan is not None else CellSelection(self._entries.row_ids, self.columns)

    @functools.cached_property
    def state(self) -> State:
        """What the table holds of :attr:`cells`, merged when somebody asks first."""
        if self.table is None:
            return State(self.cells.shape)
        found = None if self.plan is None else self.plan.state
        return self.table.state(self.cells) if found is None else found

    @functools.cached_property
    def lacks(self) -> dict[str, np.ndarray]:
        """By each of :data:`STATES`, ``bool [E]``: the entries of which a wanted cell is so. Empty cells are those that nothing
        is recorded of."""
        state = self.state
        packed = {what: getattr(state, f"packed_{what}") for what in STATES[:-1]}
        recorded = np.bitwise_or.reduce([state.packed_filled, *packed.values()])
        packed["empty"] = ~recorded & np.packbits(np.ones(len(self.columns), bool))
        wanted = None if self.cells.wanted is None else np.packbits(self.cells.wanted, axis=1)
        known = np.flatnonzero(self.covered >= 0)
        lacks = {what: np.zeros(len(self.covered), bool) for what in STATES}
        for what, bits in packed.items():
            some = (bits if wanted is None else bits & wanted).any(axis=1)
            lacks[what][known] = some[self.covered[known]]
        return lacks

    def answers(self, entry: int) -> list[Answer]:
        """Every cell of one image, in the order of the columns; [] where the table does not cover the image, or
        where nobody wants its cells and it has none.

        Raises:
            StorageError: a shard cannot be read.
        """
        if self.covered[entry] < 0:
            return []
        cells = self.cells.take(self.covered[entry : entry + 1])
        wanted = cells.wanted_mask()[0]
        if self.table is None:
            why = f"not computed yet; {self.command} fills it"
            return [Answer(column, "empty", why, None, None) for column in self.columns]
        found = origins(self.table, cells)
        if self.plan is None and not found:
            return []
        filled = np.array([[_state(found.get((0, j))) == "filled" for j in range(len(self.columns))]])
        values = self.table.read(replace(cells, wanted=filled & wanted))
        reasons = self.table.failures(cells)
        answers = []
        for j, column in enumerate(self.columns):
            origin = found.get((0, j))
            state: AnswerState = _state(origin) if wanted[j] else "unwanted"
            value = None
            if state == "filled":
                cell = values[column][0]
                value = cell.as_py() if isinstance(cell, pa.Scalar) else cell
            why = reasons.get((0, j), "") if state == "failed" else self._why(state, column)
            answers.append(Answer(column, state, why, value, origin))
        return answers

    def _why(self, state: AnswerState, column: str) -> str:
        """Why a cell has no value, and what helps."""
        if state == "stale":
            return f"computed from other inputs than those of today: {self._inputs(column)}; {self.command} computes it again"
        if state == "lost":
            return f"computed, but its shard is missing or was set aside; {self.command} computes it again"
        if state == "empty":
            return f"not computed yet; {self.command} fills it"
        return "the stage does not ask this of this image" if state == "unwanted" else ""

    def _inputs(self, column: str) -> str:
        """What a cell of a column is computed from, in words."""
        if self.plan is None:
            return "another image"
        stage = self.plan.node.stage
        reads = stage.dependencies(column)
        named = [
            f"table {up}"
            + (f", column {' and '.join(map(repr, reads[up]))}" if reads and len(reads.get(up, ())) == 1 else "")
            for up in stage.inputs
            if reads is None or reads.get(up)
        ]
        return ", ".join(named) or "the line of its input file (boxes or annotations) has changed"

    def column(self, column: str) -> Any:
        """One column for every entry, null or NaN where there is no value: a ``pa.Array`` of length E, or a float array.

        Raises:
            StorageError: a shard cannot be read.
        """
        return self.read([column])[column]

    def read(self, columns: Sequence[str]) -> dict[str, Any]:
        """Some columns for every entry; see :meth:`column`."""
        if self.table is None:
            return {column: pa.nulls(len(self.covered)) for column in columns}
        known = self.covered >= 0
        rows = self.covered[known]
        cells = self.cells.take(rows).select(columns)
        places = [self.columns.index(column) for column in columns]
        packed = self.state.packed_filled[rows]
        filled = np.stack([packed[:, place >> 3] >> (7 - (place & 7)) & 1 for place in places], axis=1).astype(bool)
        values = self.table.read(replace(cells, wanted=filled & cells.wanted_mask()))
        if known.all():
            return values
        spread = np.full(len(known), -1, np.int64)
        spread[known] = np.arange(len(rows))
        picks = pa.array(spread, mask=~known)
        return {column: value.take(picks) for column, value in values.items() if isinstance(value, pa.Array)}


def _state(origin: Origin | None) -> AnswerState:
    return "empty" if origin is None else origin.state


def _columns(table: Table | None) -> tuple[str, ...]:
    records = [] if table is None else table.records()
    return tuple(
        dict.fromkeys(column for columns in {record.columns for record in records} for column in sorted(columns))
    )


class Scores:
    """A table of image-text scores as one array, each column read when somebody asks first.

    Attributes:
        table: whose scores they are.
        unit: what a score is: a ``probability`` (of a match, itm) or a ``similarity`` (a cosine, itc), which is none.
    """

    def __init__(self, table: ViewedTable, entry_count: int) -> None:
        """
        Args:
            table: of kind ``itm`` or ``itc``.
            entry_count: E.
        """
        self.table = table
        self.unit = "probability" if table.kind == "itm" else "similarity"
        self._values = np.full((len(table.columns), entry_count), np.nan, np.float16)
        self._read = np.zeros(len(table.columns), bool)

    def column(self, column: str) -> np.ndarray:
        """``float16 [E]``: the score of one prompt, NaN where there is none."""
        place = self.table.columns.index(column)
        self._fill([place])
        return self._values[place]

    def all(self) -> np.ndarray:
        """``float16 [C, E]``: the scores of every prompt."""
        missing = np.flatnonzero(~self._read)
        for start in range(0, len(missing), COLUMNS_AT_ONCE):
            self._fill(missing[start : start + COLUMNS_AT_ONCE].tolist())
        return self._values

    def _fill(self, places: Sequence[int]) -> None:
        places = [place for place in places if not self._read[place]]
        if not places:
            return
        columns = [self.table.columns[place] for place in places]
        for place, value in zip(places, self.table.read(columns).values(), strict=True):
            self._values[place] = score_values(value, self.table.kind)
            self._read[place] = True


def score_values(cells: pa.Array, kind: str) -> np.ndarray:
    """``float32 [R]``: the scores in the cells of one column, NaN for null.

    Args:
        cells: a pair of logits (no, yes) each, whose softmax says a probability, or a cosine each.
        kind: ``itm`` or ``itc``.
    """
    if pa.types.is_null(cells.type):
        return np.full(len(cells), np.nan, np.float32)
    if kind != "itm":
        return cells.cast(pa.float32()).to_numpy(zero_copy_only=False)
    values = np.full(len(cells), np.nan, np.float32)
    there = cells.is_valid().to_numpy(zero_copy_only=False)
    logits = cells.drop_null().flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, 2)
    values[there] = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    return values


def texts_of(cells: pa.Array) -> pa.Array:
    """The texts in the cells of one column of captions; "" for null."""
    if pa.types.is_null(cells.type):
        return pa.array([""] * len(cells), pa.string())
    return pc.fill_null(pc.struct_field(cells, "text"), "")


def viewed_tables(workspace: Workspace, plans: Mapping[str, TablePlan], entries: Entries) -> dict[str, ViewedTable]:
    """The tables of images by name: the configuration's first, then the others that lie in the cache.

    Args:
        workspace: with the cache.
        plans: of the configuration's tables.
        entries: the images.
    """
    command = workspace.mending_command()
    found = {
        name: ViewedTable(name, entries, plan, command=command)
        for name, plan in plans.items()
        if plan.node.stage.source == "images"
    }
    planned = {plan.table.dir for plan in plans.values() if plan.table is not None}
    for table in workspace.cache.tables():
        if table.dir in planned or table.record.get("source", "images") != "images":
            continue
        try:
            other = ViewedTable(table.dir.name, entries, None, table=table, command=command)
        except StorageError:
            continue
        if other.columns:
            found[other.name] = other
    return found
