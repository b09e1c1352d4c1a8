"""Rectangles: some rows x some columns of a table that are committed at once, and their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hoi_distill.storage.digests import ROW, canonical_json, digest_bytes


def validate(
    rows: np.ndarray,
    columns: Sequence[str],
    valid: np.ndarray,
    failures: Mapping[tuple[int, int], str],
    inputs: np.ndarray | None,
) -> None:
    """Raise ``ValueError`` where the arguments of a commit do not fit each other."""
    shape = len(rows), len(columns)
    if rows.dtype != ROW or not all(shape):
        raise ValueError(f"rows must be V16 and there must be some, and columns too: {rows.dtype}, {shape}")
    if len(set(rows.tolist())) != len(rows) or len(set(columns)) != len(columns):
        raise ValueError("a row or column occurs twice in one rectangle")
    if valid.shape != shape or valid.dtype != bool:
        raise ValueError(f"valid must be bool {shape}, not {valid.dtype} {valid.shape}")
    if inputs is not None and inputs.shape not in ((shape[0],), shape):
        raise ValueError(f"inputs must be [R] or [R, C] of {shape}, not {inputs.shape}")
    if any(valid[cell] for cell in failures):
        raise ValueError("a cell is both a value and a failure")
    if not failures and not valid.any():
        raise ValueError("nothing to commit")


def collapse(inputs: np.ndarray | None) -> np.ndarray | None:
    """``[R, C]`` digests that agree along each row, as ``[R]``."""
    if inputs is None or inputs.ndim == 1:
        return inputs
    return inputs[:, 0] if inputs.shape[1] and (inputs == inputs[:, :1]).all() else inputs


def name_rectangle(
    rows: np.ndarray,
    columns: Sequence[str],
    valid: np.ndarray,
    failures: Mapping[tuple[int, int], str],
    inputs: np.ndarray | None,
    drops: Sequence[str],
) -> str:
    """32 hex digits naming what is committed: which cells, computed from what; not their values.

    Args:
        drops: names of the tombstones seen, where there are failures.
    """
    parts = [rows.tobytes(), canonical_json(list(columns)), np.packbits(valid).tobytes()]
    parts.append(b"" if inputs is None else inputs.astype("<u8").tobytes())
    if failures:
        parts.append(canonical_json([sorted(failures), sorted(drops)]))
    return digest_bytes(b"".join(digest_bytes(part) for part in parts)).hex()
