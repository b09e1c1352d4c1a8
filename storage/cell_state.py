"""Which cells of a table are filled: records merged over the asked rows and columns, vectorised, in packed bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from hoi_distill.storage.records import Record


@dataclass
class State:
    """What a table holds of R asked rows and C asked columns.

    Every ``packed_*`` is ``uint8 [R, ceil(C/8)]`` (``np.packbits`` along the columns); at most one is set in a cell.

    Attributes:
        packed_filled: a value with the asked input digest, whose payload is there.
        packed_failed: a recorded failure with the asked input digest.
        packed_stale: neither, but a cell computed from other inputs.
        packed_lost: neither, but a value with the asked input digest was recorded and its payload is gone.
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
        """``bool [r, C]``: neither filled nor failed (stale and lost cells are empty)."""
        return ~self._unpack(self.packed_filled[rows] | self.packed_failed[rows])

    def counts(self) -> dict[str, int]:
        """Cells that are filled, failed, stale, lost, and empty (which includes stale and lost)."""
        counts = {
            name: int(np.bitwise_count(getattr(self, f"packed_{name}")).sum(dtype=np.int64))
            for name in ("filled", "failed", "stale", "lost")
        }
        return {**counts, "empty": self.shape[0] * self.shape[1] - counts["filled"] - counts["failed"]}


class Overlap(NamedTuple):
    """Where a record meets what was asked: p pairs of rows, k columns."""

    record: Record
    asked_rows: np.ndarray  # int [p], positions among the asked rows, each at most once
    rows: np.ndarray  # int [p], positions in the record
    asked_columns: np.ndarray  # int [k]
    columns: np.ndarray  # int [k]

    def leads(self) -> bool:
        """Whether all the record's columns, in their order, are the first of the asked ones."""
        count = len(self.record.columns)
        return len(self.columns) == count and bool(
            (self.columns == np.arange(count)).all() and (self.asked_columns == self.columns).all()
        )

    def packed(self) -> np.ndarray:
        """``uint8 [p, ceil(columns / 8)]`` or ``[1, ...]``: the record's values, one bit a column."""
        if self.record.filled is not None:
            return self.record.filled[self.rows]
        full = np.full((1, len(self.record.columns)), bool(self.record.header["full"]))
        return np.packbits(full, axis=1)

    def bits(self, packed: np.ndarray | None) -> np.ndarray | None:
        """``bool [p, k]`` of a record's packed bits."""
        if packed is None:
            return None
        return np.unpackbits(packed[self.rows], axis=1, count=len(self.record.columns)).view(bool)[:, self.columns]

    def valid(self) -> np.ndarray:
        """``bool [p, 1]`` or ``[p, k]``: the record holds a value."""
        bits = self.bits(self.record.filled)
        return np.full((len(self.rows), 1), bool(self.record.header["full"])) if bits is None else bits

    def matches(self, inputs: np.ndarray | None) -> np.ndarray:
        """``bool [p, 1]`` or ``[p, k]``: the record's input digests are the asked ones (None: whatever they are)."""
        if inputs is None:
            return np.ones((len(self.rows), 1), bool)
        asked = inputs[self.asked_rows]
        asked = asked[:, None] if asked.ndim == 1 else asked[:, self.asked_columns]
        if self.record.header["has_inputs"] == "cell":
            recorded = self.record.cells().inputs
            assert recorded is not None
            return recorded[self.rows][:, self.columns] == asked
        if self.record.inputs is None:
            return asked == 0
        return self.record.inputs[self.rows][:, None] == asked


def overlaps(records: Sequence[Record], rows: np.ndarray, columns: Sequence[str]) -> Iterator[Overlap]:
    """Join every record with the asked rows (``V16 [R]``, repeats allowed) and columns (distinct)."""
    asked = {column: index for index, column in enumerate(columns)}
    if len(asked) != len(columns):
        raise ValueError("a column is asked for twice")
    shared: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for record in records:
        if id(record.columns) not in shared:
            pairs = [(asked[name], index) for index, name in enumerate(record.columns) if name in asked]
            both = np.array(pairs, np.int64).reshape(-1, 2)
            shared[id(record.columns)] = both[:, 0], both[:, 1]
    records = [record for record in records if len(shared[id(record.columns)][0])]
    if not records or not len(rows):
        return
    starts = np.concatenate([[0], np.cumsum([len(record.rows) for record in records])])
    recorded, wanted = join_rows(np.concatenate([record.rows for record in records]), rows)
    bounds = np.searchsorted(recorded, starts)
    for index, record in enumerate(records):
        part = slice(bounds[index], bounds[index + 1])
        if part.start < part.stop:
            asked_columns, own = shared[id(record.columns)]
            yield Overlap(record, wanted[part], recorded[part] - starts[index], asked_columns, own)


def join_rows(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs (i, j) with ``left[i] == right[j]``, of ``V16`` arrays, in order of i."""
    left, right = (np.ascontiguousarray(side).view("<u8").reshape(-1, 2) for side in (left, right))
    order = np.argsort(right[:, 0], kind="stable")
    keys = right[order, 0]
    first = np.searchsorted(keys, left[:, 0], "left")
    # Only where the first half is found at all is a second search for the end of the run worth its time.
    found = np.flatnonzero((first < len(keys)) & (keys[np.minimum(first, len(keys) - 1)] == left[:, 0]))
    first = first[found]
    length = np.searchsorted(keys, left[found, 0], "right") - first
    i = np.repeat(found, length)
    j = order[np.repeat(first - np.cumsum(length) + length, length) + np.arange(int(length.sum()))]
    same = left[i, 1] == right[j, 1]
    return i[same], j[same]


def merge(
    records: Sequence[Record], live: set[str], rows: np.ndarray, columns: Sequence[str], inputs: np.ndarray | None
) -> State:
    """Merge records, given in order; ``live`` names those whose payload is there."""
    state = State((len(rows), len(columns)))

    def spread(overlap: Overlap, bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows in which a bit is set, and their packed bits over the asked columns."""
        some = bits.any(axis=1)
        dense = np.zeros((1 if bits.shape[1] == 1 else int(some.sum()), len(columns)), bool)
        dense[:, overlap.asked_columns] = True if bits.shape[1] == 1 else bits[some]
        return overlap.asked_rows[some], np.packbits(dense, axis=1)

    for overlap in overlaps(records, rows, columns):
        record = overlap.record
        if inputs is None and not record.is_drop and record.failed is None and overlap.leads():
            # The usual record: its bits are already where they belong, and are merged as they are.
            packed = state.packed_filled if record.name in live else state.packed_lost
            bits = overlap.packed()
            packed[overlap.asked_rows, : bits.shape[1]] |= bits
            continue
        failed = overlap.bits(record.failed)
        if record.is_drop:
            where, bits = spread(overlap, failed if failed is not None else np.zeros((len(overlap.rows), 1), bool))
            state.packed_failed[where] &= ~bits
            continue
        matches = overlap.matches(inputs)
        valid = overlap.valid()
        alive = record.name in live
        where, bits = spread(overlap, valid & matches)
        (state.packed_filled if alive else state.packed_lost)[where] |= bits
        if failed is not None:
            where, bits = spread(overlap, failed & matches)
            state.packed_failed[where] |= bits
        if inputs is not None and not matches.all():
            known = valid if alive else np.zeros_like(valid)
            where, bits = spread(overlap, (known if failed is None else known | failed) & ~matches)
            state.packed_stale[where] |= bits
    # A value beats a failure, also one whose payload is lost: it can be computed, and will be.
    state.packed_failed &= ~(state.packed_filled | state.packed_lost)
    settled = state.packed_filled | state.packed_failed
    state.packed_lost &= ~settled
    state.packed_stale &= ~(settled | state.packed_lost)
    return state
