"""LMDB shards: one environment per path and process, views that outlive their shard's place in the registry, forks."""

from __future__ import annotations

import gc
import os

import numpy as np
import pytest

from hoi_distill.storage.cache import Cache
from hoi_distill.storage.cell_block import CellBlock
from hoi_distill.storage.digests import as_rows, digest_bytes
from hoi_distill.storage.shards import lmdb as lmdb_shard
from hoi_distill.storage.shards.codecs import Codec
from hoi_distill.storage.shards.payload import open_shard

ROWS = as_rows([digest_bytes(str(index).encode()) for index in range(20)])


@pytest.fixture
def payloads(tmp_path):
    cache = Cache.open(tmp_path / "cache")
    table = cache.table("maps", {}, {"format": "lmdb", "shape": [3, 700], "codec": "fp16"}, None)
    paths = []
    for start in range(0, 20, 5):
        values = {"a": np.broadcast_to(np.arange(start, start + 5, dtype=np.float32)[:, None, None], (5, 3, 700))}
        part = slice(start, start + 5)
        paths.append(table.commit(CellBlock(ROWS[part], ("a",), np.ones((5, 1), bool)), values).payload)
    return paths


def test_a_view_stays_readable_when_its_shard_left_the_registry(payloads, monkeypatch):
    monkeypatch.setattr(lmdb_shard, "_KEPT_OPEN", 1)
    codec = Codec("fp16", (3, 700))
    views = [open_shard(path).view("a", 2) for path in payloads]
    gc.collect()
    assert len(lmdb_shard._recent) == 1
    for number, (path, view) in enumerate(zip(payloads, views, strict=True)):
        decoded = codec.decode(view[None])
        assert np.shares_memory(decoded, view)
        assert (decoded == 5 * number + 2).all()
        assert open_shard(path) is open_shard(path)  # still open for the view: not opened a second time
    with pytest.raises(ValueError, match="read-only"):
        views[0][0] = 1
    del views, view, decoded
    gc.collect()
    assert sum(path in lmdb_shard._open for path in map(os.path.realpath, payloads)) == 1


def test_a_fork_reads_what_its_parent_had_open_and_opens_the_rest(payloads):
    before = open_shard(payloads[0])
    child = os.fork()
    if child == 0:
        right = all(
            (open_shard(path).take("a", np.arange(5))[:, 0, 0] == np.arange(5 * n, 5 * n + 5)).all()
            for n, path in enumerate(payloads)
        )
        os._exit(0 if right and open_shard(payloads[0]) is before else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert before.take("a", np.array([4]))[0, 0, 0] == 4


def test_a_shards_file_and_map_are_no_larger_than_its_cells_need(payloads):
    size = os.path.getsize(payloads[0])
    assert size < 5 * 8192 + 6 * 4096
    assert open_shard(payloads[0])._environment.info()["map_size"] == size
