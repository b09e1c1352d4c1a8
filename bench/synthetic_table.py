"""A table's commit records without its payloads' contents: what planning reads, at any size, in seconds.

Payloads are sparse files of the recorded size, so that planning sees live shards; reading a cell of one is not possible.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hoi_distill.storage.cell_block import CellBlock
from hoi_distill.storage.digests import content_name
from hoi_distill.storage.records import CommitHeader, encode_record
from hoi_distill.storage.table import Table


def synthetic_rows(count: int, seed: int = 0) -> np.ndarray:
    """``V16 [count]`` distinct row ids."""
    ids = np.random.default_rng(seed).integers(0, 2**63, (count, 2), dtype=np.uint64)
    ids[:, 1] = np.arange(count)
    return ids.view("V16")[:, 0]


def fill_synthetically(
    table: Table,
    rows: np.ndarray,
    columns: Sequence[str],
    rows_per_shard: int,
    *,
    inputs: np.ndarray | None = None,
    hole: float = 0.0,
    seed: int = 0,
) -> int:
    """Record ``rows x columns`` as committed, in shards of ``rows_per_shard`` rows; returns the number of shards.

    Args:
        table: an empty table.
        rows: ``V16 [R]`` row ids.
        columns: their names.
        rows_per_shard: rows of a shard.
        inputs: ``uint64 [R]`` input digests.
        hole: the share of cells left empty, spread over all shards.
        seed: draws the empty cells.
    """
    generator = np.random.default_rng(seed)
    suffix = ".arrow" if table.type is not None else ".lmdb"
    starts = range(0, len(rows), rows_per_shard)
    for number, start in enumerate(starts):
        part = rows[start : start + rows_per_shard]
        shape = len(part), len(columns)
        valid = np.ones(shape, bool) if hole == 0 else generator.random(shape) >= hole
        own = None if inputs is None else inputs[start : start + rows_per_shard]
        block = CellBlock(part, tuple(columns), valid, inputs=own)
        key = block.key([])
        payload = f"{key}-{content_name(key.encode())}{suffix}"
        size = 4 * int(valid.sum())
        with open(table.dir / "shards" / payload, "wb") as file:
            file.truncate(size)
        header: CommitHeader = {
            "payload": payload,
            "bytes": size,
            "cells": int(valid.sum()),
            "failures": 0,
            "host": "synthetic",
            "provenance": {"seconds": 1.0},
            "created_ns": 1_600_000_000_000_000_000 + number,
        }
        values = generator.integers(1, 2**63, shape, dtype=np.uint64)
        data = encode_record(header, block, values)
        (table.dir / "commits" / f"{key}-0.commit").write_bytes(data)
    return len(starts)
