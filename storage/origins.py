"""Where cells come from: what the commit records say of each cell of a few rows, and who wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hoi_distill.storage.cell_state import Overlap, overlaps
from hoi_distill.storage.records import Record
from hoi_distill.storage.selection import CellSelection
from hoi_distill.storage.table import Table

Told = Literal["filled", "lost", "failed", "stale"]
"""What a record can say of a cell, in the words of :class:`hoi_distill.storage.cell_state.State`."""
_STRENGTH: dict[Told, int] = {"filled": 3, "lost": 2, "failed": 1, "stale": 0}


@dataclass(frozen=True)
class Origin:
    """What one cell is, and the record that says so.

    Attributes:
        state: of the cell.
        record: the name of the commit record.
        created: when it was written, in seconds since 1970.
        host: the machine that wrote it.
        provenance: what the worker recorded: ``task``, ``device``, ``seconds``, and what the stage said.
    """

    state: Told
    record: str
    created: float
    host: str
    provenance: Mapping[str, Any]


def origins(table: Table, cells: CellSelection) -> dict[tuple[int, int], Origin]:
    """The origin of each cell that any record speaks of. It looks at cells one by one, so select few rows.

    Args:
        table: the table.
        cells: R rows and C columns.

    Returns:
        ``{(row, column): origin}`` by positions in the selection. A cell that no record speaks of is missing.
    """
    records = [record for record in table.records() if not record.is_drop]
    live = table.live_names(records)
    newest_first = cells.inputs is None and any(record.header["has_inputs"] for record in records)
    found: dict[tuple[int, int], Origin] = {}
    for overlap in overlaps(records[::-1] if newest_first else records, cells):
        for cell, state in _said(overlap, cells, overlap.record.name in live):
            before = found.get(cell)
            # The first value stands, as it does for readers. Of failures, and of stale cells, the newest is told.
            newer = before is not None and state == before.state != "filled" and not newest_first
            if before is None or newer or _STRENGTH[state] > _STRENGTH[before.state]:
                found[cell] = _origin(overlap.record, state)
    failed = table.state(cells).failed
    return {cell: origin for cell, origin in found.items() if origin.state != "failed" or failed[cell]}


def _said(overlap: Overlap, cells: CellSelection, live: bool) -> list[tuple[tuple[int, int], Told]]:
    """The state that one record gives to each cell that it speaks of."""
    shape = len(overlap.rows), len(overlap.columns)
    failed = overlap.bits(overlap.record.failed)
    failed = np.zeros(shape, bool) if failed is None else np.broadcast_to(failed, shape)
    valid = np.broadcast_to(overlap.valid(), shape)
    same = np.broadcast_to(overlap.matches(cells.inputs), shape)
    said: list[tuple[tuple[int, int], Told]] = []
    for i, j in np.argwhere(valid | failed).tolist():
        state: Told = "stale"
        if same[i, j]:
            state = "failed" if failed[i, j] else ("filled" if live else "lost")
        said.append((_cell(overlap, i, j), state))
    return said


def _cell(overlap: Overlap, i: int, j: int) -> tuple[int, int]:
    return int(overlap.rows[i]), int(overlap.columns[j])


def _origin(record: Record, state: Told) -> Origin:
    header = record.header
    return Origin(state, record.name, header["created_ns"] / 1e9, header["host"], header["provenance"])
