"""The files that the writer writes are what LMDB itself reads, whatever the number and the sizes of the entries."""

from __future__ import annotations

import io
from itertools import pairwise

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hoi_distill.storage.shards.lmdb_writer import PAGE, write_lmdb


def written(entries: dict[bytes, bytes]) -> bytes:
    sink = io.BytesIO()
    keys = sorted(entries)
    write_lmdb(sink, keys, [memoryview(entries[key]) for key in keys])
    return sink.getvalue()


def check(entries: dict[bytes, bytes], place) -> dict[str, int]:
    """Read a file back through LMDB: in order, by key, and as LMDB copies it. What LMDB counts of it."""
    data = written(entries)
    path = place / "file.lmdb"
    path.write_bytes(data)
    options = {"subdir": False, "readonly": True, "lock": False, "map_size": len(data)}
    with lmdb.open(str(path), **options) as environment, environment.begin() as transaction:
        assert list(transaction.cursor()) == sorted(entries.items())
        for key, value in entries.items():
            assert transaction.get(key) == value
            assert transaction.get(key + b"?") == entries.get(key + b"?")
        assert environment.info()["last_pgno"] == len(data) // PAGE - 1
        stat = environment.stat()
        copy = place / "copy.lmdb"
        copy.unlink(missing_ok=True)
        environment.copy(str(copy), compact=True)  # LMDB walks every page
    with (
        lmdb.open(str(copy), subdir=False, readonly=True, lock=False) as environment,
        environment.begin() as transaction,
    ):
        assert list(transaction.cursor()) == sorted(entries.items())
    return stat


@pytest.mark.parametrize("size", [0, 1, 100, 2009, 2010, 2011, 2012, 4080, 4081, 70_000])
@pytest.mark.parametrize("count", [1, 2, 3, 107, 108, 2_000])
def test_lmdb_reads_every_entry(tmp_path, size, count):
    count = min(count, 5_000_000 // max(size, 1))
    entries = {(number * 7919).to_bytes(20, "big"): bytes([number % 251]) * size for number in range(count)}
    stat = check(entries, tmp_path)
    assert stat["entries"] == count
    with lmdb.open(str(tmp_path / "own.lmdb"), subdir=False, map_size=1 << 28, sync=False) as environment:
        with environment.begin(write=True) as transaction:
            for key, value in sorted(entries.items()):
                transaction.put(key, value, append=True)
        own = environment.stat()
    assert {name: stat[name] for name in ("depth", "overflow_pages")} == {
        name: own[name] for name in ("depth", "overflow_pages")
    }


def test_a_tree_of_three_levels_is_walked(tmp_path):
    entries = {number.to_bytes(20, "big"): number.to_bytes(4, "big") for number in range(40_000)}
    stat = check(entries, tmp_path)
    assert stat["depth"] == 3


@settings(max_examples=60, deadline=None)
@given(entries=st.dictionaries(st.binary(min_size=1, max_size=60), st.binary(max_size=6000), min_size=1, max_size=200))
def test_entries_of_any_sizes_read_back(tmp_path_factory, entries):
    check(entries, tmp_path_factory.mktemp("lmdb"))


def test_large_entries_lie_in_key_order_without_gaps(tmp_path):
    entries = {bytes([number]): bytes([number]) * 10_000 for number in range(1, 50)}
    data = written(entries)
    places = [data.index(value) for _, value in sorted(entries.items())]
    assert [after - before for before, after in pairwise(places)] == [3 * PAGE] * 48
