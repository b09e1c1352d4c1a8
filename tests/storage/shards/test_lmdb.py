"""LMDB shards: their values, views that outlive their shard, forks."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import time
from pathlib import Path

import lmdb
import numpy as np
import pytest

from hoi_distill.storage.cache import Cache
from hoi_distill.storage.cell_block import CellBlock
from hoi_distill.storage.damage import damage
from hoi_distill.storage.digests import as_rows, digest_bytes
from hoi_distill.storage.errors import StorageError
from hoi_distill.storage.files.mapped_file import MappedFile
from hoi_distill.storage.shards import lmdb as lmdb_shard
from hoi_distill.storage.shards.codecs import Codec
from hoi_distill.storage.shards.lmdb_reader import LmdbShard
from hoi_distill.storage.shards.payload import forget_shards, open_shard

ROWS = as_rows([digest_bytes(str(index).encode()) for index in range(20)])


@pytest.fixture
def payloads(tmp_path):
    cache = Cache.open(tmp_path / "cache")
    table = cache.table("maps", {}, {"format": "lmdb", "shape": [3, 700], "codec": "fp16"}, None)
    paths = []
    for start in range(0, 20, 5):
        values = {"a": np.broadcast_to(np.arange(start, start + 5, dtype=np.float32)[:, None, None], (5, 3, 700))}
        part = slice(start, start + 5)
        paths.append(Path(table.commit(CellBlock(ROWS[part], ("a",), np.ones((5, 1), bool)), values).payload))
    return paths


def test_a_view_stays_readable_when_its_shard_is_gone(payloads):
    codec = Codec("fp16", (3, 700))
    views = [open_shard(path).view("a", 2) for path in payloads]
    forget_shards()
    for path in payloads:
        path.unlink()
    gc.collect()
    for number, view in enumerate(views):
        decoded = codec.decode(view[None])
        assert np.shares_memory(decoded, view)
        assert (decoded == 5 * number + 2).all()
    with pytest.raises(ValueError, match="read-only"):
        views[0][0] = 1


@pytest.mark.parametrize("pages_of_its_own", [True, False])
def test_every_cell_is_what_the_library_reads(tmp_path, pages_of_its_own):
    """Enough cells for a tree of several levels, and some that the shard does not hold."""
    size, rows = (2100 if pages_of_its_own else 5), as_rows([digest_bytes(b"%d" % index) for index in range(1500)])
    valid = np.random.default_rng(0).random((len(rows), 3)) < 0.7
    values = np.random.default_rng(1).standard_normal((3, len(rows), size)).astype(np.float16)
    block = CellBlock(rows, ("a", "b", "c"), valid)
    path = tmp_path / "shard.lmdb"
    with path.open("wb") as sink:
        encoded = [values[column][valid[:, column]].view(np.uint8) for column in range(3)]
        lmdb_shard.write(sink, block, encoded, Codec("fp16", (size,)))
    shard = LmdbShard(str(path))
    assert shard.row_ids.tolist() == rows.tolist()
    with lmdb.open(str(path), subdir=False, readonly=True, lock=False) as environment, environment.begin() as read:
        for row, column in np.argwhere(valid).tolist():
            view = shard.view("abc"[column], row)
            assert view.tobytes() == read.get(rows[row].tobytes() + column.to_bytes(4, "big"))
    row, column = np.argwhere(~valid)[0].tolist()
    with pytest.raises(KeyError, match=rows[row].tobytes().hex()):
        shard.view("abc"[column], row)


def test_a_file_that_is_no_shard_is_refused(payloads, tmp_path):
    whole = payloads[0].read_bytes()
    for content in (b"", b"x" * 100, b"x" * 9000, bytes(20000), whole[:-8192]):
        path = tmp_path / "shard.lmdb"
        path.write_bytes(content)
        with pytest.raises(StorageError), damage("shard"):
            LmdbShard(str(path))


def resident(path: Path) -> np.ndarray:
    """bool per page of a file: whether it is in memory."""
    mapped = MappedFile(str(path)).pages
    pages = np.zeros(-(-len(mapped) // mmap.PAGESIZE), np.uint8)
    library = ctypes.CDLL(None)
    library.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    assert library.mincore(mapped.ctypes.data, len(mapped), pages.ctypes.data) == 0
    return pages % 2 == 1


def test_only_what_was_announced_is_read_from_the_disk(tmp_path):
    table = Cache.open(tmp_path / "cache").table(
        "maps", {}, {"format": "lmdb", "shape": [1 << 18], "codec": "fp16"}, None
    )
    path = Path(table.commit(CellBlock(ROWS, ("a",), np.ones((20, 1), bool)), {"a": np.ones((20, 1 << 18))}).payload)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if resident(path).any():
        pytest.skip("this file system keeps a file in memory")
    shard = LmdbShard(str(path))
    tree = int(resident(path).sum())
    assert tree < 10
    shard.read_ahead("a", 3)
    end = time.monotonic() + 60
    while int(resident(path).sum()) < tree + (1 << 19) // mmap.PAGESIZE and time.monotonic() < end:
        time.sleep(0.01)
    assert int(resident(path).sum()) - tree == (1 << 19) // mmap.PAGESIZE + 1
    assert (shard.codec.decode(shard.view("a", 3)[None]) == 1).all()


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


def test_a_shards_file_is_no_larger_than_its_cells_need(payloads):
    assert os.path.getsize(payloads[0]) < 5 * 8192 + 6 * 4096
