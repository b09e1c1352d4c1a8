"""A block of cells: some rows x some columns of a table that are committed at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from hoi_distill.storage.digests import ROW, canonical_json, digest_bytes


@dataclass(frozen=True, eq=False)
class CellBlock:
    """Which cells a commit holds, less their values.

    Attributes:
        row_ids: ``V16 [R]``, distinct.
        columns: C distinct names.
        valid: ``bool [R, C]``, the cells that have a value.
        failures: ``{(row, column): reason}``, by positions in the block. A failed cell is not valid.
        inputs: ``uint64 [R]`` or ``[R, C]``, what the cells were computed from. None where the table has no inputs.
    """

    row_ids: np.ndarray
    columns: tuple[str, ...]
    valid: np.ndarray
    failures: Mapping[tuple[int, int], str] = field(default_factory=dict)
    inputs: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """``(R, C)``."""
        return len(self.row_ids), len(self.columns)

    @property
    def value_count(self) -> int:
        """How many cells have a value."""
        return int(self.valid.sum())

    def collapsed(self) -> CellBlock:
        """The same block. Input digests that agree along each row become one digest a row, ``uint64 [R]``."""
        inputs = self.inputs
        if inputs is None or inputs.ndim == 1 or not inputs.shape[1] or (inputs != inputs[:, :1]).any():
            return self
        return replace(self, inputs=inputs[:, 0])

    def validate(self) -> None:
        """Raise ``ValueError`` where the parts of the block do not fit each other."""
        shape = self.shape
        if self.row_ids.dtype != ROW or not all(shape):
            raise ValueError(f"rows must be V16 and there must be some, and columns too: {self.row_ids.dtype}, {shape}")
        if len(set(self.row_ids.tolist())) != shape[0] or len(set(self.columns)) != shape[1]:
            raise ValueError("a row or column occurs twice in one block")
        if self.valid.shape != shape or self.valid.dtype != bool:
            raise ValueError(f"valid must be bool {shape}, not {self.valid.dtype} {self.valid.shape}")
        if self.inputs is not None and self.inputs.shape not in (shape[:1], shape):
            raise ValueError(f"inputs must be [R] or [R, C] of {shape}, not {self.inputs.shape}")
        if any(self.valid[cell] for cell in self.failures):
            raise ValueError("a cell is both a value and a failure")
        if not self.failures and not self.valid.any():
            raise ValueError("nothing to commit")

    def key(self, drops: Sequence[str]) -> str:
        """32 hex digits that name which cells are committed and what they were computed from, but not their values.

        Args:
            drops: names of the ``.drop`` records seen. They count where the block has failures: a failure that was
                dropped may be recorded again.
        """
        parts = [self.row_ids.tobytes(), canonical_json(list(self.columns)), np.packbits(self.valid).tobytes()]
        parts.append(b"" if self.inputs is None else self.inputs.astype("<u8").tobytes())
        if self.failures:
            parts.append(canonical_json([sorted(self.failures), sorted(drops)]))
        return digest_bytes(b"".join(digest_bytes(part) for part in parts)).hex()
