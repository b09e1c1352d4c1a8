"""The planner: wanted cells minus filled cells, table by table, and why the rest is empty.

Planning is arithmetic on arrays: a table's state is read from its commit records, the input digests of a lower table are
mixed from the value digests above it. Nothing here opens a payload, loads a teacher or knows what a picture is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hoi_distill.pipeline.graph.nodes import Node
from hoi_distill.pipeline.inputs import Source
from hoi_distill.stages.stage import Stage, fingerprint_record
from hoi_distill.storage.cache import Cache
from hoi_distill.storage.digests import combine64, fingerprint
from hoi_distill.storage.errors import StorageError
from hoi_distill.storage.table import State, Table


@dataclass(frozen=True)
class Reason:
    """Why a group of cells is empty."""

    text: str
    cells: int


@dataclass
class TablePlan:
    """What one table lacks.

    Attributes:
        rows: ``int64 [R]`` rows of the source that the table covers.
        table: None while the cache holds no table of this fingerprint.
        inputs: ``uint64 [R]`` or ``[R, C]`` input digests, None where a cell depends on its row alone.
        known: ``bool [R]`` or ``[R, C]``: cells whose upstream cells are all recorded; None means all.
        wanted: ``bool [R, C]`` where the stage wants only some cells; None means all.
        state: None exactly when ``table`` is.
    """

    node: Node
    rows: np.ndarray
    table: Table | None
    inputs: np.ndarray | None
    known: np.ndarray | None
    wanted: np.ndarray | None
    state: State | None
    counts: dict[str, int] = field(default_factory=dict)
    waits_for: tuple[str, ...] = ()
    reasons: list[Reason] = field(default_factory=list)
    bytes_to_come: int | None = None
    seconds_to_come: float | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        return self.node.stage.columns

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
        for mask in (self.known, self.wanted):
            if mask is not None:
                packed &= pack(mask[here])
        return packed

    def complete(self) -> bool:
        return self.counts["empty"] == 0 and self.counts["unknown"] == 0

    def as_json(self) -> dict[str, Any]:
        return {
            "table": self.node.name,
            "stage": self.node.stage.name,
            "fingerprint": None if self.node.stage.unbound else fingerprint(fingerprint_record(self.node.stage)),
            "rows": len(self.rows),
            "columns": len(self.columns),
            **self.counts,
            "unknown_until": list(self.waits_for),
            "reasons": [{"reason": reason.text, "cells": reason.cells} for reason in self.reasons],
            "bytes_to_come": self.bytes_to_come,
            "seconds_to_come": self.seconds_to_come,
        }


Bind = Callable[[Node, Mapping[str, "TablePlan"]], Node]
"""``bind(node, plans of what lies above) -> node``: gives a stage what only filled tables can tell, if they can by now."""


def plan(
    nodes: Mapping[str, Node], sources: Mapping[str, Source], cache: Cache, bind: Bind | None = None
) -> dict[str, TablePlan]:
    """Plan every table, upstream first.

    Args:
        nodes: the stage graph in topological order.
        sources: ``{"images": ..., "texts": ...}``.
        bind: for stages whose fingerprint depends on values above; one that stays ``unbound`` is unknown as a whole.
    """
    present = {table.dir: table for table in cache.tables()}
    plans: dict[str, TablePlan] = {}
    for name, node in nodes.items():
        node = node if bind is None else bind(node, plans)
        source = sources[node.stage.source]
        rows = source.rows(node.splits)
        if node.stage.unbound:
            plans[name] = unknown(node, rows, plans)
            continue
        inputs, known = input_digests(node, rows, source, plans)
        stage = node.stage
        kind = getattr(stage.output, "type", None)
        table = cache.find(stage.name, fingerprint_record(stage), stage.output.describe(), kind)
        if table is not None:
            present[table.dir] = table  # its records are read once, also for tables that are estimated by it
        ids = source.ids[rows]
        state = None if table is None else table.state(ids, node.stage.columns, inputs)
        wanted = wanted_cells(node, rows, source, plans, known)
        made = TablePlan(node, rows, table, inputs, known, wanted, state)
        made.waits_for = tuple(up for up in node.stage.inputs if not plans[up].complete()) if known is not None else ()
        count(made)
        explain(made, list(present.values()))
        estimate(made, list(present.values()))
        plans[name] = made
    return plans


def unknown(node: Node, rows: np.ndarray, plans: Mapping[str, TablePlan]) -> TablePlan:
    """A table that has no fingerprint yet: all of its cells are to come, as an upper bound."""
    made = TablePlan(node, rows, None, None, np.zeros(len(rows), bool), None, None)
    made.waits_for = tuple(up for up in node.stage.inputs if not plans[up].complete()) or ("its teacher's tables",)
    count(made)
    explain(made, [])
    return made


def input_digests(
    node: Node, rows: np.ndarray, source: Source, plans: Mapping[str, TablePlan]
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """What each cell is computed from, beside the bytes of its row.

    Returns:
        ``(inputs, known)``: digests ``uint64 [R]`` (or ``[R, C]`` where columns read different upstream columns), or None
        where there is nothing; and where all upstream cells have been recorded (same shapes), or None for everywhere.
        What only ``wants`` looks at (every column needs nothing of it) has to be recorded but enters no digest.
    """
    stage = node.stage
    external = stage.external([source.keys[i] for i in rows])
    if not stage.inputs:
        return external, None
    per_column = any(stage.needs(column) is not None for column in stage.columns)
    above = {up: upstream_digests(plans[up], rows, source) for up in stage.inputs}
    recorded = {up: values != 0 for up, values in above.items()}
    for up in stage.inputs:
        if (idle := unwanted_above(plans[up], rows, source)) is not None:
            above[up][idle], recorded[up] = 0, recorded[up] | idle  # nobody waits for it, nobody reads it
    if all(stage.needs(column) == {} for column in stage.columns):
        return external, np.logical_and.reduce([there.all(axis=1) for there in recorded.values()])
    digests, known = [], []
    for column in stage.columns if per_column else stage.columns[:1]:
        parts = [] if external is None else [external]
        needs = stage.needs(column)
        here = np.ones(len(rows), bool)
        for up in stage.inputs:
            wanted = plans[up].columns if needs is None else needs.get(up, ())
            positions = [plans[up].columns.index(c) for c in wanted]
            values = above[up][:, positions]
            here &= recorded[up][:, positions].all(axis=1)
            parts += [values[:, i] for i in range(values.shape[1])]
        digests.append(combine64(*parts) if parts else np.zeros(len(rows), np.uint64))
        known.append(here)
    if per_column:
        return np.stack(digests, axis=1), np.stack(known, axis=1)
    return digests[0], known[0]


def folders(plans: Mapping[str, TablePlan], cache: Cache) -> list[str]:
    """Folder names of every planned table; those of tables without a fingerprint are not known."""
    stages = [made.node.stage for made in plans.values() if not made.node.stage.unbound]
    return [cache.folder(stage.name, fingerprint_record(stage)).name for stage in stages]


def upstream_digests(above: TablePlan, rows: np.ndarray, source: Source) -> np.ndarray:
    """``uint64 [R, C]`` value digests of an upstream table for these rows; 0 where nothing was ever recorded."""
    if above.table is None:
        return np.zeros((len(rows), len(above.columns)), np.uint64)
    positions = align(above.rows, rows, len(source.ids))
    inputs = None if above.inputs is None else above.inputs[positions]
    return above.table.value_digests(source.ids[rows], above.columns, inputs)


def unwanted_above(above: TablePlan, rows: np.ndarray, source: Source) -> np.ndarray | None:
    """``bool [R, C]``: cells of an upstream table that its own stage does not want of these rows; None where it wants all."""
    return None if above.wanted is None else ~above.wanted[align(above.rows, rows, len(source.ids))]


def align(have: np.ndarray, want: np.ndarray, size: int) -> np.ndarray:
    """``int64 [len(want)]``: where each wanted row stands among ``have``."""
    where = np.full(size, -1, np.int64)
    where[have] = np.arange(len(have))
    return where[want]


def wanted_cells(
    node: Node, rows: np.ndarray, source: Source, plans: Mapping[str, TablePlan], known: np.ndarray | None
) -> np.ndarray | None:
    """``bool [R, C]`` for a stage that says which cells it wants by the values above it, else None."""
    if type(node.stage).wants is Stage.wants or not node.stage.inputs:
        return None
    wanted = np.zeros((len(rows), len(node.stage.columns)), bool)
    ready = np.ones(len(rows), bool) if known is None else known.reshape(len(rows), -1).all(axis=1)
    for up in node.stage.inputs:
        above = plans[up]
        if above.state is None:
            return np.ones_like(wanted)  # unknown until then: an upper bound
        filled = np.logical_not(above.needed(0, len(above.rows)).any(axis=1))
        ready &= filled[align(above.rows, rows, len(source.ids))]
    chosen = np.flatnonzero(ready)
    values = {up: read_upstream(plans[up], rows[chosen], source) for up in node.stage.inputs}
    answer = node.stage.wants(values)
    if answer is None:
        return None
    wanted[~ready] = True
    wanted[chosen] = answer
    return wanted


def read_upstream(above: TablePlan, rows: np.ndarray, source: Source) -> dict[str, Any]:
    """The values of an upstream table for these rows, ``{column: values}``, null where its stage does not want a cell."""
    assert above.table is not None
    inputs = None if above.inputs is None else above.inputs[align(above.rows, rows, len(source.ids))]
    idle = unwanted_above(above, rows, source)
    return above.table.read(source.ids[rows], above.columns, inputs, None if idle is None else ~idle)


def count(made: TablePlan) -> None:
    """Fill ``counts``: wanted, filled, failed, stale, empty (computable now), unknown (waiting for an upstream table)."""
    cells = len(made.rows) * len(made.columns)
    wanted = cells if made.wanted is None else int(made.wanted.sum())
    unknown = 0
    if made.known is not None:
        width = len(made.columns) if made.known.ndim == 1 else 1
        unknown = int((~made.known).sum()) * width
    state = {"filled": 0, "failed": 0, "stale": 0} if made.state is None else made.state.counts()
    empty = sum(ones(made.packed_needed(start, stop)) for start, stop in blocks(len(made.rows)))
    done = {"filled": state["filled"], "failed": state["failed"]}
    made.counts = {"wanted": wanted, **done, "empty": empty, "unknown": unknown, "stale": state["stale"]}


BLOCK = 1 << 16
"""Rows looked at together: bounds the memory of planning whatever the size of the dataset."""


def blocks(rows: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + BLOCK, rows)) for start in range(0, rows, BLOCK))


def explain(made: TablePlan, present: Sequence[Table]) -> None:
    """Fill ``reasons``: each empty cell belongs to exactly one."""
    empty, unknown = made.counts["empty"], made.counts["unknown"]
    if unknown:
        made.reasons.append(Reason(f"unknown until {', '.join(made.waits_for)}", unknown))
    if not empty:
        return
    if made.state is None:
        made.reasons.append(Reason(new_table(made.node.stage, present), empty))
        return
    state = made.state
    tally = {"new rows": 0, "new columns": 0, "inputs changed": 0, "shard lost": 0, "not computed yet": 0}
    recorded = state.packed_filled | state.packed_failed | state.packed_stale | state.packed_lost
    new_row = ~recorded.any(axis=1)
    new_column = ~np.bitwise_or.reduce(recorded, axis=0)
    for start, stop in blocks(len(made.rows)):
        needed = made.packed_needed(start, stop)
        lost = needed & state.packed_lost[start:stop]
        stale = needed & state.packed_stale[start:stop]
        rest = needed & ~stale & ~lost
        later = rest[~new_row[start:stop]]
        tally["shard lost"] += ones(lost)
        tally["inputs changed"] += ones(stale)
        tally["new rows"] += ones(rest) - ones(later)
        tally["new columns"] += ones(later & new_column)
        tally["not computed yet"] += ones(later & ~new_column)
    made.reasons += [Reason(text, cells) for text, cells in tally.items() if cells]


def unpack(packed: np.ndarray, columns: int) -> np.ndarray:
    """``bool [r, columns]`` of a state's packed bits."""
    return np.unpackbits(packed, axis=1, count=columns).view(bool)


def pack(mask: np.ndarray) -> np.ndarray:
    """Packed bits of a mask: ``uint8 [r, ceil(C/8)]`` of ``bool [r, C]``, or ``[r, 1]``, for every column, of ``bool [r]``."""
    return np.packbits(mask, axis=1) if mask.ndim == 2 else np.where(mask, np.uint8(255), np.uint8(0))[:, None]


def ones(packed: np.ndarray) -> int:
    """Bits that are set."""
    return int(np.bitwise_count(packed).sum(dtype=np.int64))


def new_table(stage: Stage, present: Sequence[Table]) -> str:
    """Why there is no table of this fingerprint: the fields in which the nearest existing one differs."""
    record = fingerprint_record(stage)
    kin = [table for table in present if table.record.get("stage") == stage.name]
    if not kin:
        return "no such table yet"

    def differences(table: Table) -> list[str]:
        keys = sorted({*record, *table.record})
        return [key for key in keys if record.get(key) != table.record.get(key)]

    nearest = min(kin, key=lambda table: len(differences(table)))
    fields = [
        f"{key.removeprefix('parameters.')}: {short(nearest.record.get(key))} -> {short(record.get(key))}"
        for key in differences(nearest)
    ]
    return f"fingerprint differs from {nearest.dir.name} in {'; '.join(fields)}"


def short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:18] + "…" + text[-18:]


TEACHERS = ("parameters.teacher", "parameters.tower", "parameters.detector")
"""The fields of a fingerprint that say who answers."""


def estimate(made: TablePlan, present: Sequence[Table]) -> None:
    """Bytes and seconds to come, from what cells took before: of this table, or else bytes of the stage's tables of the
    same output, and seconds of those that the same teacher filled. None where there is none: another teacher's speed says
    nothing."""
    cells = made.counts["empty"] + made.counts["unknown"]
    if not cells:
        made.bytes_to_come, made.seconds_to_come = 0, 0.0
        return
    record = fingerprint_record(made.node.stage)
    kin = [table for table in present if table.record.get("stage") == record["stage"]]
    alike = [table for table in kin if table.record.get("output") == record["output"]]
    same = [
        table
        for table in kin
        if table.record.keys() == record.keys() and all(table.record.get(key) == record.get(key) for key in TEACHERS)
    ]
    bytes_per_cell = per_cell([made.table] if made.table else alike, lambda header: header["bytes"])
    seconds_per_cell = per_cell(
        [made.table] if made.table else same, lambda header: header["provenance"].get("seconds", 0.0)
    )
    made.bytes_to_come = None if bytes_per_cell is None else int(cells * bytes_per_cell)
    made.seconds_to_come = None if seconds_per_cell is None else cells * seconds_per_cell


def per_cell(tables: Sequence[Table], quantity: Callable[[Mapping[str, Any]], float]) -> float | None:
    """The mean over the cells that these tables have recorded, None without any. A table that cannot be read has none."""
    headers: list[Mapping[str, Any]] = []
    for table in tables:
        with contextlib.suppress(StorageError):
            headers += [record.header for record in table.records() if not record.is_drop]
    cells = sum(header["cells"] for header in headers)
    return sum(quantity(header) for header in headers) / cells if cells else None
