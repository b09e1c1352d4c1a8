"""The sample stream as one more format of the runner.

python -m bench.peers.ours ours write|read SOURCE FOLDER [ORDER]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from typing_extensions import override

from bench.peers.runner import BATCH, Batches, Format, main
from hoi_distill.storage.cache import Cache
from hoi_distill.storage.cell_block import CellBlock
from hoi_distill.storage.digests import as_rows, digest_bytes
from hoi_distill.storage.selection import CellSelection
from hoi_distill.storage.stream import SampleStream, StreamSpec, TableRef
from hoi_distill.storage.table import Table

ROWS_PER_SHARD = 256
"""The default of a table's ``shard_rows``."""


class Ours(Format):
    """A table in the cache: maps ``[D, h, w]`` as tensors, scores ``[C, 2]`` as one Arrow column each."""

    @override
    def write(self, source: np.ndarray, folder: Path) -> None:
        cells = scores_as_columns if source.ndim == 3 else maps_as_tensors
        table, ids = self._table(source, folder), row_ids(len(source))
        for start in range(0, len(source), ROWS_PER_SHARD):
            values = cells(np.array(source[start : start + ROWS_PER_SHARD]))
            part = ids[start : start + ROWS_PER_SHARD]
            table.commit(CellBlock(part, tuple(values), np.ones((len(part), len(values)), bool)), values)
        time.sleep(0.1)  # a file that is younger than its file system's tick would be verified at each opening

    @override
    def open(self, source: np.ndarray, folder: Path) -> Batches:
        columns = score_columns(source.shape[1]) if source.ndim == 3 else ("original",)
        table, ids = self._table(source, folder), row_ids(len(source))
        ref = TableRef(str(table.dir), table.fingerprint, CellSelection(ids, columns))
        stream = SampleStream(StreamSpec(ids, {"values": ref}, "make teacher-cache"))

        def batches(order: np.ndarray) -> Iterator[np.ndarray]:
            for start in range(0, len(order), BATCH):
                samples = stream.__getitems__(order[start : start + BATCH].tolist())
                if source.ndim == 3:
                    yield np.stack([sample["values"].array for sample in samples])
                else:
                    yield np.stack([sample["values"]["original"] for sample in samples])

        return batches

    def _table(self, source: np.ndarray, folder: Path) -> Table:
        if source.ndim == 3:
            kind = pa.list_(pa.float16(), source.shape[2])
            return Cache.open(folder).table("itm", {"stage": "itm"}, {"format": "arrow", "type": str(kind)}, kind)
        output = {"format": "lmdb", "shape": list(source.shape[1:]), "codec": "fp16"}
        return Cache.open(folder).table("features", {"stage": "features"}, output, None)


def row_ids(count: int) -> np.ndarray:
    """``V16 [count]`` distinct row ids."""
    return as_rows([digest_bytes(b"%d" % row) for row in range(count)])


def score_columns(count: int) -> tuple[str, ...]:
    """Names as long as prompts are."""
    return tuple(f"a photo of a person doing the thing number {index}" for index in range(count))


def scores_as_columns(values: np.ndarray) -> dict[str, pa.Array]:
    """``[R, C, K]`` as C Arrow columns of fixed-size lists."""
    by_column = np.ascontiguousarray(values.transpose(1, 0, 2)).reshape(values.shape[1], -1)
    lists = (pa.FixedSizeListArray.from_arrays(pa.array(column), values.shape[2]) for column in by_column)
    return dict(zip(score_columns(values.shape[1]), lists, strict=True))


def maps_as_tensors(values: np.ndarray) -> dict[str, np.ndarray]:
    """``[R, D, h, w]`` as one column."""
    return {"original": values}


if __name__ == "__main__":
    main(sys.argv[1:], {"ours": Ours})
