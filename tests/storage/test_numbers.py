"""Tables of numbers: every row as the columns hold it, whatever a shard holds and however many are open."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from hoi_distill.storage import numbers
from hoi_distill.storage.cache import Cache
from hoi_distill.storage.cell_block import CellBlock
from hoi_distill.storage.digests import as_rows, digest_bytes
from hoi_distill.storage.errors import StorageError
from hoi_distill.storage.numbers import NumberReader, NumberRow, number_type
from hoi_distill.storage.selection import CellSelection
from hoi_distill.storage.stream import SampleStream, StreamSpec, TableRef

PAIR = pa.list_(pa.float16(), 2)


def test_a_number_is_one_float_or_a_short_list_of_a_fixed_number_of_them():
    assert number_type(pa.float32()) == np.dtype("<f4")
    assert number_type(PAIR) == np.dtype(("<f2", (2,)))
    assert number_type(pa.list_(pa.list_(pa.float16(), 2), 2)) == np.dtype(("<f2", (2, 2)))
    for other in (
        pa.int32(),
        pa.string(),
        pa.list_(pa.float16()),
        pa.list_(pa.float16(), 3),
        pa.list_(pa.float32(), 256),
    ):
        assert number_type(other) is None


def test_a_row_is_an_array_and_a_mapping():
    row = NumberRow({"a": 0, "b": 1}, np.array([[1, 2], [3, 4]]), np.array([True, False]))
    assert list(row) == ["a", "b"]
    assert row["a"].tolist() == [1, 2]
    assert row["b"] is None
    assert NumberRow({"a": 0}, np.array([2.5])) == {"a": 2.5}
    with pytest.raises(KeyError):
        row["c"]
    assert pickle.loads(pickle.dumps(row))["a"].tolist() == [1, 2]


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A table of 40 rows x 30 columns in blocks of 5 rows, with holes, and the values, NaN in the holes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    ids, columns = as_rows([digest_bytes(b"%d" % row) for row in range(40)]), tuple(f"p{index}" for index in range(30))
    table = Cache.open(tmp_path / "cache").table("itm", {}, {"format": "arrow", "type": str(PAIR)}, PAIR)
    random = np.random.default_rng(0)
    values, wanted = random.standard_normal((40, 30, 2)).astype(np.float16), random.random((40, 30)) < 0.8
    wanted[:10] = True
    for start in range(0, 40, 5):
        rows = slice(start, start + 5)
        for chosen in (slice(0, 12), slice(12, 30)):  # two shards a block
            cells = {
                name: pa.array([pair if here else None for pair, here in zip(pairs, there, strict=True)], PAIR)
                for name, pairs, there in zip(
                    columns[chosen], values[rows, chosen].swapaxes(0, 1).tolist(), wanted[rows, chosen].T, strict=True
                )
            }
            table.commit(CellBlock(ids[rows], columns[chosen], wanted[rows, chosen]), cells)
    values[~wanted] = np.nan
    selection = CellSelection(ids, columns, wanted=wanted)
    return StreamSpec(
        ids, {"itm": TableRef(str(table.dir), table.fingerprint, selection)}, "make teacher-cache"
    ), values


@pytest.mark.parametrize("in_memory", [0, 128 << 20])
@pytest.mark.parametrize("open_at_once", [1, 1000])
def test_every_row_is_what_was_written(made, monkeypatch, open_at_once, in_memory):
    monkeypatch.setattr(numbers, "_SHARDS_OPEN", open_at_once)
    monkeypatch.setattr(numbers, "ROWS_IN_MEMORY", in_memory)
    monkeypatch.setattr(numbers, "_MANY_COLUMNS", 2)
    monkeypatch.setattr(numbers, "_TURNED_AT_ONCE", 2)
    spec, values = made
    for stream in (SampleStream(spec), pickle.loads(pickle.dumps(SampleStream(spec)))):
        rows = np.random.default_rng(1).permutation(40).tolist()
        for row, sample in zip(rows, stream.__getitems__(rows), strict=True):
            np.testing.assert_array_equal(sample["itm"].array, values[row])
            assert not sample["itm"].array.flags.writeable
    some = spec.select({"itm": ("p20", "p3", "p4")})
    np.testing.assert_array_equal(SampleStream(some)[39]["itm"].array, values[39, [20, 3, 4]])


def test_a_shard_is_turned_into_rows_once_and_only_the_rows_of_the_stream(made, monkeypatch):
    monkeypatch.setattr(numbers, "_MANY_COLUMNS", 2)
    (spec, values), some = made, np.array([9, 2, 3, 8])  # without holes
    spec = StreamSpec(
        spec.row_ids[some],
        {name: replace(ref, cells=ref.cells.take(some)) for name, ref in spec.tables.items()},
        spec.command,
    )
    stream = SampleStream(spec)
    reader: NumberReader = stream._tables[0]._numbers
    turned = reader._turned[0]
    assert turned is not None
    assert turned.cells.shape == (4, 12, 2), "two groups, one for each shard of a block"
    assert [rows.tolist() for rows in turned.waiting.values()] == [[1, 2], [0, 3]]
    np.testing.assert_array_equal(stream[1]["itm"].array, values[2])
    assert [rows.tolist() for rows in turned.waiting.values()] == [[0, 3]]
    reader._open.clear()
    monkeypatch.setattr(reader, "_map", None)  # the other row of the shard is read without its file
    np.testing.assert_array_equal(stream[2]["itm"].array, values[3])


def test_rows_that_do_not_fit_into_memory_are_read_where_they_lie(made, monkeypatch):
    monkeypatch.setattr(numbers, "_MANY_COLUMNS", 2)
    spec, _ = made
    for room, kept in ((40 * 30 * 4, True), (40 * 30 * 4 - 1, False)):
        monkeypatch.setattr(numbers, "ROWS_IN_MEMORY", room)
        reader: NumberReader = SampleStream(spec)._tables[0]._numbers
        assert [turned is not None for turned in reader._turned] == [kept and len(g.columns) > 1 for g in reader.groups]


def test_shards_of_equal_metadata_are_parsed_once_and_hold_no_file_open(made, monkeypatch):
    spec, _ = made
    stream, parsed = SampleStream(spec), []
    real = pa.ipc.open_file
    monkeypatch.setattr(pa.ipc, "open_file", lambda *arguments: parsed.append(1) or real(*arguments))
    before = len(os.listdir("/proc/self/fd"))
    stream.__getitems__(range(10))
    assert len(parsed) == 2, "the first two blocks have no holes: two kinds of shards"
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("many", [2, 1000])
def test_a_wanted_column_that_a_shard_does_not_hold_is_an_error(made, monkeypatch, many):
    monkeypatch.setattr(numbers, "_MANY_COLUMNS", many)
    spec, values = made
    reader: NumberReader = SampleStream(spec)._tables[0]._numbers
    reader.groups[0].columns.append("p99")
    reader = NumberReader(reader.kind, (*reader.places, "p99"), reader.groups, reader.paths)
    with pytest.raises(KeyError, match="not all of the wanted columns"):
        reader.read(0, None)
    wanted = np.arange(31) < 30
    np.testing.assert_array_equal(reader.read(0, wanted).array[:30], values[0])


def test_a_null_within_a_cell_is_damage(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    ids = as_rows([digest_bytes(b"0")])
    table = Cache.open(tmp_path / "cache").table("itm", {}, {"format": "arrow", "type": str(PAIR)}, PAIR)
    table.commit(CellBlock(ids, ("p",), np.ones((1, 1), bool)), {"p": pa.array([[None, 1]], PAIR)})
    ref = TableRef(str(table.dir), table.fingerprint, CellSelection(ids, ("p",)))
    with pytest.raises(StorageError, match="'p' holds a null"):
        SampleStream(StreamSpec(ids, {"itm": ref}, "make teacher-cache"))[0]
