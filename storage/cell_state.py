"""Which cells of a table are filled: commit records merged over a selection of cells, in packed bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from hoi_distill.storage.records import Record
from hoi_distill.storage.selection import CellSelection


@dataclass
class State:
    """What a table holds of R rows and C columns.

    Every ``packed_*`` is ``uint8 [R, ceil(C/8)]`` (``np.packbits`` along the columns). At most one is set in a cell.

    Attributes:
        shape: ``(R, C)``.
        packed_filled: a value of the selected input digest, whose payload is there.
        packed_failed: a recorded failure of the selected input digest.
        packed_stale: neither, but a cell that was computed from other inputs.
        packed_lost: neither, but a value of the selected input digest was recorded and its payload is gone.
    """

    shape: tuple[int, int]
    packed_filled: np.ndarray = field(init=False)
    packed_failed: np.ndarray = field(init=False)
    packed_stale: np.ndarray = field(init=False)
    packed_lost: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        size = self.shape[0], (self.shape[1] + 7) // 8
        self.packed_filled, self.packed_failed, self.packed_stale, self.packed_lost = (
            np.zeros(size, np.uint8) for _ in range(4)
        )

    def _unpack(self, packed: np.ndarray) -> np.ndarray:
        return np.unpackbits(packed, axis=1, count=self.shape[1]).view(bool)

    @property
    def filled(self) -> np.ndarray:
        """``bool [R, C]``."""
        return self._unpack(self.packed_filled)

    @property
    def failed(self) -> np.ndarray:
        """``bool [R, C]``."""
        return self._unpack(self.packed_failed)

    @property
    def stale(self) -> np.ndarray:
        """``bool [R, C]``."""
        return self._unpack(self.packed_stale)

    @property
    def lost(self) -> np.ndarray:
        """``bool [R, C]``."""
        return self._unpack(self.packed_lost)

    def empty(self, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        """``bool [r, C]``: cells that are neither filled nor failed. Stale and lost cells are empty.

        Args:
            rows: positions, all by default.
        """
        return ~self._unpack(self.packed_filled[rows] | self.packed_failed[rows])

    def counts(self) -> dict[str, int]:
        """How many cells are filled, failed, stale, lost, and empty (which includes stale and lost)."""
        counts = {
            name: int(np.bitwise_count(getattr(self, f"packed_{name}")).sum(dtype=np.int64))
            for name in ("filled", "failed", "stale", "lost")
        }
        return {**counts, "empty": self.shape[0] * self.shape[1] - counts["filled"] - counts["failed"]}


class Overlap(NamedTuple):
    """Where a record meets a selection, in p rows and k columns.

    Attributes:
        record: the record.
        rows: ``int [p]`` positions in the selection, each at most once.
        record_rows: ``int [p]`` positions of the same rows in the record.
        columns: ``int [k]`` positions in the selection.
        record_columns: ``int [k]`` positions of the same columns in the record.
    """

    record: Record
    rows: np.ndarray
    record_rows: np.ndarray
    columns: np.ndarray
    record_columns: np.ndarray

    @property
    def target(self) -> tuple[np.ndarray, ...]:
        """The index of the overlap's cells in an array ``[R, C]`` of the selection."""
        return np.ix_(self.rows, self.columns)

    def leads(self) -> bool:
        """Whether all the record's columns, in their order, are the first ones of the selection."""
        count = len(self.record.columns)
        return len(self.record_columns) == count and bool(
            (self.record_columns == np.arange(count)).all() and (self.columns == self.record_columns).all()
        )

    def packed(self) -> np.ndarray:
        """``uint8 [p, ceil(columns / 8)]`` or ``[1, ...]``: the record's values, one bit a column."""
        if self.record.filled is not None:
            return self.record.filled[self.record_rows]
        full = np.full((1, len(self.record.columns)), bool(self.record.header["full"]))
        return np.packbits(full, axis=1)

    def bits(self, packed: np.ndarray | None) -> np.ndarray | None:
        """``bool [p, k]`` of a record's packed bits."""
        if packed is None:
            return None
        count = len(self.record.columns)
        return np.unpackbits(packed[self.record_rows], axis=1, count=count).view(bool)[:, self.record_columns]

    def valid(self) -> np.ndarray:
        """``bool [p, 1]`` or ``[p, k]``: the record holds a value."""
        bits = self.bits(self.record.filled)
        return np.full((len(self.rows), 1), bool(self.record.header["full"])) if bits is None else bits

    def matches(self, inputs: np.ndarray | None) -> np.ndarray:
        """``bool [p, 1]`` or ``[p, k]``: the record's input digests are those of the selection.

        Args:
            inputs: the selection's ``uint64 [R]`` or ``[R, C]``. None matches every record.
        """
        if inputs is None:
            return np.ones((len(self.rows), 1), bool)
        selected = inputs[self.rows]
        selected = selected[:, None] if selected.ndim == 1 else selected[:, self.columns]
        if self.record.header["has_inputs"] == "cell":
            recorded = self.record.cells().inputs
            assert recorded is not None
            return recorded[self.record_rows][:, self.record_columns] == selected
        if self.record.inputs is None:
            return selected == 0
        return self.record.inputs[self.record_rows][:, None] == selected

    def pack(self, bits: np.ndarray, column_count: int) -> tuple[np.ndarray, np.ndarray]:
        """Bits of the overlap, spread over the C columns of the selection.

        Args:
            bits: ``bool [p, 1]`` (for all columns) or ``[p, k]``.
            column_count: C.

        Returns:
            ``int [q]``, the rows of the selection in which a bit is set, and their ``uint8 [q, ceil(C/8)]`` or ``[1, ...]``.
        """
        some = bits.any(axis=1)
        for_all = bits.shape[1] == 1
        dense = np.zeros((1 if for_all else int(some.sum()), column_count), bool)
        dense[:, self.columns] = True if for_all else bits[some]
        return self.rows[some], np.packbits(dense, axis=1)


def overlaps(records: Sequence[Record], cells: CellSelection) -> Iterator[Overlap]:
    """Join every record with the selection's rows and columns.

    Raises:
        ValueError: a column is selected twice.
    """
    selected = {column: index for index, column in enumerate(cells.columns)}
    if len(selected) != len(cells.columns):
        raise ValueError("a column is asked for twice")
    columns_of: dict[tuple[str, ...], tuple[np.ndarray, np.ndarray]] = {}
    for columns in {id(record.columns): record.columns for record in records}.values():
        pairs = [(selected[name], index) for index, name in enumerate(columns) if name in selected]
        both = np.array(pairs, np.int64).reshape(-1, 2)
        columns_of[columns] = both[:, 0], both[:, 1]
    records = [record for record in records if len(columns_of[record.columns][0])]
    if not records or not len(cells.row_ids):
        return
    starts = np.concatenate([[0], np.cumsum([len(record.row_ids) for record in records])])
    recorded, rows = join_rows(np.concatenate([record.row_ids for record in records]), cells.row_ids)
    bounds = np.searchsorted(recorded, starts)
    for index, record in enumerate(records):
        part = slice(bounds[index], bounds[index + 1])
        if part.start < part.stop:
            yield Overlap(record, rows[part], recorded[part] - starts[index], *columns_of[record.columns])


def join_rows(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs (i, j) with ``left[i] == right[j]``, of ``V16`` arrays, in order of i."""
    left, right = (np.ascontiguousarray(side).view("<u8").reshape(-1, 2) for side in (left, right))
    order = np.argsort(right[:, 0], kind="stable")
    keys = right[order, 0]
    # Keys that are looked up in their order walk through the memory; in any other they jump, and of 10 M nearly each one waits.
    looked_up = np.argsort(left[:, 0], kind="stable")
    first, length = np.empty((2, len(left)), np.int64)
    first[looked_up] = start = np.searchsorted(keys, left[looked_up, 0], "left")
    length[looked_up] = np.searchsorted(keys, left[looked_up, 0], "right") - start
    i = np.repeat(np.arange(len(left)), length)
    j = order[np.repeat(first - np.cumsum(length) + length, length) + np.arange(len(i))]
    same = left[i, 1] == right[j, 1]
    return i[same], j[same]


def merge(records: Sequence[Record], live: set[str], cells: CellSelection) -> State:
    """Merge records over the selection's cells, wanted or not.

    Args:
        records: in the order in which they merge.
        live: names of the records whose payload is there.
        cells: the selection.
    """
    state = State(cells.shape)
    for overlap in overlaps(records, cells):
        record = overlap.record
        if record.is_drop:
            failed = overlap.bits(record.failed)
            if failed is not None:
                rows, bits = overlap.pack(failed, cells.shape[1])
                state.packed_failed[rows] &= ~bits
        elif cells.inputs is None and record.failed is None and overlap.leads():
            # The usual record: its bits are already where they belong, and are merged as they are.
            packed = state.packed_filled if record.name in live else state.packed_lost
            bits = overlap.packed()
            packed[overlap.rows, : bits.shape[1]] |= bits
        else:
            _merge_by_inputs(state, overlap, cells.inputs, record.name in live)
    # A value beats a failure, also one whose payload is lost: it can be computed, and will be.
    state.packed_failed &= ~(state.packed_filled | state.packed_lost)
    settled = state.packed_filled | state.packed_failed
    state.packed_lost &= ~settled
    state.packed_stale &= ~(settled | state.packed_lost)
    return state


def _merge_by_inputs(state: State, overlap: Overlap, inputs: np.ndarray | None, is_live: bool) -> None:
    """Merge one record whose cells count as filled, failed, lost or stale by their input digests."""
    width = state.shape[1]
    failed, valid, matches = overlap.bits(overlap.record.failed), overlap.valid(), overlap.matches(inputs)
    rows, bits = overlap.pack(valid & matches, width)
    (state.packed_filled if is_live else state.packed_lost)[rows] |= bits
    if failed is not None:
        rows, bits = overlap.pack(failed & matches, width)
        state.packed_failed[rows] |= bits
    if inputs is not None and not matches.all():
        known = valid if is_live else np.zeros_like(valid)
        rows, bits = overlap.pack((known if failed is None else known | failed) & ~matches, width)
        state.packed_stale[rows] |= bits
