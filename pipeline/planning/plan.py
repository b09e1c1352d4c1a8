"""The planner: wanted cells minus filled cells, table by table, and why the rest is empty.

Planning is arithmetic on arrays. A table's state is merged from its commit records. The input digests of a lower table are
mixed from the value digests above it. Counts of a large table are remembered: the next plan of equal cells over equal records
merges nothing. Nothing here opens a payload, loads a teacher or knows what an image is.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from hoi_distill.pipeline.graph.nodes import Node
from hoi_distill.pipeline.inputs import Source
from hoi_distill.pipeline.planning.history import bytes_of, new_table, per_cell, seconds_of
from hoi_distill.stages.stage import Stage, fingerprint_record
from hoi_distill.storage.cache import Cache
from hoi_distill.storage.cell_state import State
from hoi_distill.storage.digests import as_rows, canonical_json, combine64, content_name_of, fingerprint
from hoi_distill.storage.file_digests import DigestMemory
from hoi_distill.storage.selection import CellSelection
from hoi_distill.storage.table import Table


@dataclass(frozen=True)
class Reason:
    """Why a group of cells is empty."""

    text: str
    cells: int


@dataclass(frozen=True)
class Tally:
    """What a table's commit records say of the planned cells, counted.

    Attributes:
        filled: cells with a value.
        failed: recorded failures.
        stale: cells that were computed from other inputs.
        empty: cells that can and must be computed now.
        reasons: why these are empty, ``{reason: cells}``. Each belongs to one reason.
        bytes_per_cell: the mean over all cells that the table has recorded, None where it has none.
        seconds_per_cell: the same.
    """

    filled: int
    failed: int
    stale: int
    empty: int
    reasons: dict[str, int]
    bytes_per_cell: float | None
    seconds_per_cell: float | None


@dataclass
class TablePlan:
    """What one table lacks.

    Attributes:
        node: the table and its stage.
        rows: ``int64 [R]`` rows of the source that the table covers.
        cells: of these rows, all of the stage's columns. ``inputs`` are None where a cell depends on its row alone;
            ``wanted`` is what the stage selects.
        table: None while the cache holds no table of this fingerprint.
        known: ``bool [R]`` or ``[R, C]``: cells whose upstream cells are all recorded; None means all.
        tally: of ``table``; None exactly when it is.
        counts: how many cells are wanted, filled, failed, stale, empty (computable now) and unknown (waiting).
        waits_for: the upstream tables that are not complete, where a cell is unknown.
        reasons: why cells are empty.
        bytes_to_come: estimated, None where nobody knows.
        seconds_to_come: estimated, None where nobody knows.
    """

    node: Node
    rows: np.ndarray
    cells: CellSelection
    table: Table | None = None
    known: np.ndarray | None = None
    tally: Tally | None = None
    counts: dict[str, int] = field(default_factory=dict)
    waits_for: tuple[str, ...] = ()
    reasons: list[Reason] = field(default_factory=list)
    bytes_to_come: int | None = None
    seconds_to_come: float | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """C names."""
        return self.cells.columns

    @functools.cached_property
    def state(self) -> State | None:
        """What ``table`` holds of the cells, None exactly when there is no table. It is merged when somebody asks first."""
        return None if self.table is None else self.table.state(self.cells)

    def positions(self, rows: np.ndarray) -> np.ndarray:
        """``int64 [r]``: where these rows of the source stand among :attr:`rows`; -1 for a row that is not covered."""
        return self._position[np.minimum(rows, len(self._position) - 1)]

    @functools.cached_property
    def _position(self) -> np.ndarray:
        """``int64``: where each row of the source stands among :attr:`rows`, up to one after the last that is covered."""
        where = np.full(2 + self.rows.max(initial=-1), -1, np.int64)
        where[self.rows] = np.arange(len(self.rows))
        return where

    def cells_of(self, rows: np.ndarray) -> CellSelection:
        """The cells of some rows of the source, each of which is covered."""
        return self.cells.take(self.positions(rows))

    def read(self, rows: np.ndarray) -> dict[str, Any]:
        """``{column: values}`` of some rows of the source, null where the stage does not want a cell."""
        assert self.table is not None
        return self.table.read(self.cells_of(rows))

    def readable(self, rows: np.ndarray) -> np.ndarray:
        """``bool [r]``: which of these rows of the source have a value in every wanted cell, no failure."""
        if self.state is None:
            return np.zeros(len(rows), bool)
        where = self.positions(rows)
        have = where >= 0
        without = self.state.empty(where[have]) | self.state.failed[where[have]]
        have[have] = ~(without & self.cells.take(where[have]).wanted_mask()).any(axis=1)
        return have

    def needed(self, start: int, stop: int) -> np.ndarray:
        """``bool [stop - start, C]``: cells of this slice of rows that can and must be computed now."""
        return unpack(self.packed_needed(start, stop), len(self.columns))

    def packed_needed(self, start: int, stop: int) -> np.ndarray:
        """:meth:`needed` in packed bits along the columns: what is only counted is never unpacked."""
        here = slice(start, stop)
        everything = np.packbits(np.ones(len(self.columns), bool))
        if self.state is None:
            packed = np.repeat(everything[None], stop - start, axis=0)
        else:
            packed = ~(self.state.packed_filled[here] | self.state.packed_failed[here]) & everything
        for mask in (self.known, self.cells.wanted):
            if mask is not None:
                packed &= pack(mask[here])
        return packed

    def complete(self) -> bool:
        """Whether every wanted cell is filled or a recorded failure."""
        return self.counts["empty"] == 0 and self.counts["unknown"] == 0

    def as_json(self) -> dict[str, Any]:
        """The plan as ``hoi-distill plan --json`` prints it."""
        return {
            "table": self.node.name,
            "stage": self.node.stage.name,
            "fingerprint": None if self.node.stage.pending else fingerprint(fingerprint_record(self.node.stage)),
            "rows": len(self.rows),
            "columns": len(self.columns),
            **self.counts,
            "unknown_until": list(self.waits_for),
            "reasons": [{"reason": reason.text, "cells": reason.cells} for reason in self.reasons],
            "bytes_to_come": self.bytes_to_come,
            "seconds_to_come": self.seconds_to_come,
        }


Resolve = Callable[[Node, Mapping[str, "TablePlan"]], Node]
"""``resolve(node, plans of the tables above) -> node``: gives a pending stage what the filled tables above tell it. The node
comes back as it is while they are not filled."""


def plan(
    nodes: Mapping[str, Node], sources: Mapping[str, Source], cache: Cache, resolve: Resolve | None = None
) -> dict[str, TablePlan]:
    """Plan every table, upstream first.

    Args:
        nodes: the stage graph in topological order.
        cache: where the tables are.
        sources: ``{"images": ..., "texts": ...}``.
        resolve: for stages whose fingerprint depends on values above. A stage that stays ``pending`` is unknown as a whole.
    """
    present = {table.dir: table for table in cache.tables()}
    plans: dict[str, TablePlan] = {}
    for name, declared in nodes.items():
        node = declared if resolve is None else resolve(declared, plans)
        table_plan = plan_table(node, sources[node.stage.source], cache, plans)
        if table_plan.table is not None:
            # The records are read once, also for tables that are estimated by it.
            present[table_plan.table.dir] = table_plan.table
        count(table_plan)
        explain(table_plan, list(present.values()))
        estimate(table_plan, list(present.values()))
        plans[name] = table_plan
    return plans


def plan_table(node: Node, source: Source, cache: Cache, plans: Mapping[str, TablePlan]) -> TablePlan:
    """Which cells one table has to hold and which of them it holds.

    Args:
        node: the table and its stage.
        source: of the stage's rows.
        cache: where the table is.
        plans: of the tables above.
    """
    stage = node.stage
    rows = source.rows(node.splits)
    cells = CellSelection(source.ids[rows], stage.columns)
    if stage.pending:  # no fingerprint yet: all cells are to come, as an upper bound
        waits_for = tuple(up for up in stage.inputs if not plans[up].complete()) or ("its teacher's tables",)
        return TablePlan(node, rows, cells, known=np.zeros(len(rows), bool), waits_for=waits_for)
    inputs, known = input_digests(node, rows, source, plans)
    cells = replace(cells, inputs=inputs)
    kind = getattr(stage.output, "type", None)
    table = cache.find(stage.name, fingerprint_record(stage), stage.output.describe(), kind)
    cells = replace(cells, wanted=wanted_cells(node, rows, plans, known))
    waits_for = tuple(up for up in stage.inputs if not plans[up].complete()) if known is not None else ()
    table_plan = TablePlan(node, rows, cells, table, known, waits_for=waits_for)
    if table is not None:
        table_plan.tally = remembered_tally(table_plan, table, cache.memory)
    return table_plan


def input_digests(
    node: Node, rows: np.ndarray, source: Source, plans: Mapping[str, TablePlan]
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """What each cell is computed from, beside the bytes of its row.

    An upstream table of which a column depends on no column serves selection only: it must be recorded, but does not enter the
    digests.

    Args:
        node: the table and its stage.
        rows: ``int64 [R]`` rows of the source.
        source: of these rows.
        plans: of the tables above.

    Returns:
        ``(inputs, known)``: digests ``uint64 [R]`` (or ``[R, C]`` where columns read different upstream columns), or None
        where there is nothing; and where all upstream cells have been recorded (same shapes), or None for everywhere.
    """
    stage = node.stage
    reads_records = type(stage).source_digests is not Stage.source_digests
    outside = stage.source_digests([source.keys[row] for row in rows.tolist()]) if reads_records else None
    if not stage.inputs:
        return outside, None
    above = {up: upstream_digests(plans[up], rows) for up in stage.inputs}
    recorded = {up: values != 0 for up, values in above.items()}
    for up in stage.inputs:
        if (wanted := plans[up].cells.wanted) is not None:
            idle = ~wanted[plans[up].positions(rows)]
            above[up][idle], recorded[up] = 0, recorded[up] | idle  # nobody waits for it, nobody reads it
    dependencies = [stage.dependencies(column) for column in stage.columns]
    if all(each == {} for each in dependencies):
        return outside, np.logical_and.reduce([there.all(axis=1) for there in recorded.values()])
    per_column = any(each is not None for each in dependencies)
    digests, known = [], []
    for each in dependencies if per_column else dependencies[:1]:
        parts = [] if outside is None else [outside]
        here = np.ones(len(rows), bool)
        for up in stage.inputs:
            read = plans[up].columns if each is None else each.get(up, ())
            columns = [plans[up].columns.index(column) for column in read]
            here &= recorded[up][:, columns or slice(None)].all(axis=1)  # read or not: it may choose cells
            parts += [above[up][:, column] for column in columns]
        digests.append(combine64(*parts) if parts else np.zeros(len(rows), np.uint64))
        known.append(here)
    if per_column:
        return np.stack(digests, axis=1), np.stack(known, axis=1)
    return digests[0], known[0]


def folders(plans: Mapping[str, TablePlan], cache: Cache) -> list[str]:
    """Folder names of every planned table that has a fingerprint."""
    stages = [table_plan.node.stage for table_plan in plans.values() if not table_plan.node.stage.pending]
    return [cache.folder(stage.name, fingerprint_record(stage)).name for stage in stages]


def upstream_digests(above: TablePlan, rows: np.ndarray) -> np.ndarray:
    """``uint64 [R, C]`` value digests of an upstream table for these rows; 0 where nothing was ever recorded."""
    if above.table is None:
        return np.zeros((len(rows), len(above.columns)), np.uint64)
    return above.table.value_digests(above.cells_of(rows))


def wanted_cells(
    node: Node, rows: np.ndarray, plans: Mapping[str, TablePlan], known: np.ndarray | None
) -> np.ndarray | None:
    """``bool [R, C]`` for a stage that selects cells by the values above it, else None. Where those are not there yet, every
    cell counts as wanted, as an upper bound."""
    stage = node.stage
    if type(stage).select_cells is Stage.select_cells or not stage.inputs:
        return None
    wanted = np.ones((len(rows), len(stage.columns)), bool)
    ready = np.ones(len(rows), bool) if known is None else known.reshape(len(rows), -1).all(axis=1)
    for up in stage.inputs:
        above = plans[up]
        if above.state is None:
            return wanted
        filled = np.logical_not(above.needed(0, len(above.rows)).any(axis=1))
        ready &= filled[above.positions(rows)]
    chosen = np.flatnonzero(ready)
    answer = stage.select_cells({up: plans[up].read(rows[chosen]) for up in stage.inputs})
    if answer is None:
        return None
    wanted[chosen] = answer
    return wanted


def count(table_plan: TablePlan) -> None:
    """Fill ``counts``: wanted, filled, failed, stale, empty (computable now), unknown (waiting for an upstream table)."""
    cells = len(table_plan.rows) * len(table_plan.columns)
    wanted = cells if table_plan.cells.wanted is None else int(table_plan.cells.wanted.sum())
    unknown = 0
    if table_plan.known is not None:
        width = len(table_plan.columns) if table_plan.known.ndim == 1 else 1
        unknown = int((~table_plan.known).sum()) * width
    tally = table_plan.tally
    if tally is None:
        empty = sum(ones(table_plan.packed_needed(start, stop)) for start, stop in blocks(len(table_plan.rows)))
        tally = Tally(0, 0, 0, empty, {}, None, None)
    done = {"filled": tally.filled, "failed": tally.failed}
    table_plan.counts = {"wanted": wanted, **done, "empty": tally.empty, "unknown": unknown, "stale": tally.stale}


BLOCK = 1 << 16
"""Rows looked at together: bounds the memory of planning whatever the size of the dataset."""


def blocks(row_count: int) -> Iterator[tuple[int, int]]:
    """``(start, stop)`` of slices of at most :data:`BLOCK` rows."""
    return ((start, min(start + BLOCK, row_count)) for start in range(0, row_count, BLOCK))


def explain(table_plan: TablePlan, present: Sequence[Table]) -> None:
    """Fill ``reasons``: each empty cell belongs to exactly one."""
    empty, unknown = table_plan.counts["empty"], table_plan.counts["unknown"]
    if unknown:
        table_plan.reasons.append(Reason(f"unknown until {', '.join(table_plan.waits_for)}", unknown))
    if table_plan.tally is not None:
        table_plan.reasons += [Reason(text, cells) for text, cells in table_plan.tally.reasons.items()]
    elif empty:
        table_plan.reasons.append(Reason(new_table(table_plan.node.stage, present), empty))


MANY = 1 << 22
"""Cells from which it is quicker to look counts up than to count."""


def remembered_tally(table_plan: TablePlan, table: Table, memory: DigestMemory) -> Tally:
    """:func:`count_cells`, remembered under the cells and under what the table's folder holds.

    Args:
        table_plan: the cells.
        table: their table.
        memory: remembers the counts of :data:`MANY` cells or more.
    """
    if len(table_plan.rows) * len(table_plan.columns) < MANY:
        return count_cells(table_plan, table)
    held = table.held()
    fresh: list[Tally] = []

    def make(_: int) -> str:
        fresh.append(count_cells(table_plan, table))
        # What was committed or lost meanwhile, and records that cannot be read, are looked at again.
        sound = table.held() == held and not table.broken_records()
        return json.dumps(asdict(fresh[0])) if sound else ""

    parts: list[bytes | memoryview] = [held, canonical_json([table.fingerprint, *table_plan.columns])]
    for array in (table_plan.cells.row_ids, table_plan.cells.inputs, table_plan.cells.wanted, table_plan.known):
        parts.append(canonical_json(None if array is None else [array.dtype.str, *array.shape]))
        parts.append(b"" if array is None else array.ravel().view(np.uint8).data)
    (text,) = memory.derived_all(as_rows([bytes.fromhex(content_name_of(parts))]), "counts 1", make)
    return fresh[0] if fresh else Tally(**json.loads(text))


def count_cells(table_plan: TablePlan, table: Table) -> Tally:
    """Count what a table holds of the planned cells, and what it lacks by reason."""
    state = table_plan.state
    assert state is not None
    reasons = {"new rows": 0, "new columns": 0, "inputs changed": 0, "shard lost": 0, "not computed yet": 0}
    recorded = state.packed_filled | state.packed_failed | state.packed_stale | state.packed_lost
    new_row = ~recorded.any(axis=1)
    new_column = ~np.bitwise_or.reduce(recorded, axis=0)
    for start, stop in blocks(len(table_plan.rows)):
        needed = table_plan.packed_needed(start, stop)
        lost = needed & state.packed_lost[start:stop]
        stale = needed & state.packed_stale[start:stop]
        rest = needed & ~stale & ~lost
        later = rest[~new_row[start:stop]]
        reasons["shard lost"] += ones(lost)
        reasons["inputs changed"] += ones(stale)
        reasons["new rows"] += ones(rest) - ones(later)
        reasons["new columns"] += ones(later & new_column)
        reasons["not computed yet"] += ones(later & ~new_column)
    counts = state.counts()
    return Tally(
        filled=counts["filled"],
        failed=counts["failed"],
        stale=counts["stale"],
        empty=sum(reasons.values()),
        reasons={text: cells for text, cells in reasons.items() if cells},
        bytes_per_cell=per_cell([table], bytes_of),
        seconds_per_cell=per_cell([table], seconds_of),
    )


def unpack(packed: np.ndarray, columns: int) -> np.ndarray:
    """``bool [r, columns]`` of a state's packed bits."""
    return np.unpackbits(packed, axis=1, count=columns).view(bool)


def pack(mask: np.ndarray) -> np.ndarray:
    """Packed bits of a mask: ``uint8 [r, ceil(C/8)]`` of ``bool [r, C]``, or ``[r, 1]``, for every column, of ``bool [r]``."""
    return np.packbits(mask, axis=1) if mask.ndim == 2 else np.where(mask, np.uint8(255), np.uint8(0))[:, None]


def ones(packed: np.ndarray) -> int:
    """Bits that are set."""
    return int(np.bitwise_count(packed).sum(dtype=np.int64))


TEACHERS = ("parameters.teacher", "parameters.tower", "parameters.detector")
"""The fields of a fingerprint that say who answers."""


def estimate(table_plan: TablePlan, present: Sequence[Table]) -> None:
    """Bytes and seconds to come, from what cells took before: of this table, or else bytes of the stage's tables of the
    same output, and seconds of those that the same teacher filled. None where there is none: another teacher's speed says
    nothing. A pending stage gets no estimate."""
    if table_plan.node.stage.pending:
        return
    cells = table_plan.counts["empty"] + table_plan.counts["unknown"]
    if not cells:
        table_plan.bytes_to_come, table_plan.seconds_to_come = 0, 0.0
        return
    record = fingerprint_record(table_plan.node.stage)
    kin = [table for table in present if table.record.get("stage") == record["stage"]]
    alike = [table for table in kin if table.record.get("output") == record["output"]]
    same = [
        table
        for table in kin
        if table.record.keys() == record.keys() and all(table.record.get(key) == record.get(key) for key in TEACHERS)
    ]
    if table_plan.table is not None and table_plan.tally is not None:
        bytes_per_cell, seconds_per_cell = table_plan.tally.bytes_per_cell, table_plan.tally.seconds_per_cell
    else:
        bytes_per_cell, seconds_per_cell = per_cell(alike, bytes_of), per_cell(same, seconds_of)
    table_plan.bytes_to_come = None if bytes_per_cell is None else int(cells * bytes_per_cell)
    table_plan.seconds_to_come = None if seconds_per_cell is None else cells * seconds_per_cell
