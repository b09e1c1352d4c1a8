"""The index names the commit records that hold cells of a row, and a table that looks at these alone tells the same of them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from hoi_distill.storage.cache import Cache
from hoi_distill.storage.cell_block import CellBlock
from hoi_distill.storage.digests import as_rows, digest_bytes
from hoi_distill.storage.record_index import RecordIndex
from hoi_distill.storage.selection import CellSelection
from hoi_distill.storage.table import Table

ROWS = as_rows([digest_bytes(str(index).encode()) for index in range(30)])


@pytest.fixture
def table(tmp_path):
    """Blocks of five rows; a second column in the first two; failures in row 7, dropped once and recorded again."""
    made = Cache.open(tmp_path).table("numbers", {}, {"format": "arrow", "type": "int64"}, pa.int64())
    for start in range(0, 30, 5):
        valid = np.ones((5, 1), bool)
        failures = {}
        if start == 5:
            valid[2], failures = False, {(2, 0): "bad"}
        values = {"a": pa.array(np.arange(start, start + 5))}
        made.commit(CellBlock(ROWS[start : start + 5], ("a",), valid, failures), values)
    made.commit(CellBlock(ROWS[:10], ("b",), np.ones((10, 1), bool)), {"b": pa.array(np.arange(10))})
    made.drop_failures(CellSelection(ROWS, ("a",)))
    made.commit(CellBlock(ROWS[7:8], ("a",), np.zeros((1, 1), bool), {(0, 0): "still"}), {})
    return made


def test_a_row_is_in_the_records_that_the_index_names_and_in_no_other(table):
    order = np.random.default_rng(0).permutation(30)
    cells = CellSelection(np.concatenate([ROWS[order], ROWS[:1]]), ("a",))  # a row may stand twice
    index = RecordIndex(table.records(), cells)
    for position, row in enumerate([*order, 0]):
        named = index.names(np.array([position]))
        holds = {record.name for record in table.records() if "a" in record.columns and ROWS[row] in record.row_ids}
        assert set(named) == holds
    assert index.names(np.arange(0)) == ()
    assert RecordIndex([], cells).names(np.arange(31)) == ()


@pytest.mark.parametrize("rows", [[0, 3], [7], [4, 5, 29], list(range(30))])
def test_a_table_of_these_records_alone_tells_the_same_of_the_rows(table, rows):
    cells = CellSelection(ROWS, ("a",))
    some = table.only(RecordIndex(table.records(), cells).names(np.array(rows)))
    chosen = cells.take(np.array(rows))
    assert some.read(chosen)["a"].equals(table.read(chosen)["a"])
    assert some.failures(chosen) == table.failures(chosen)
    assert (some.state(chosen).filled == table.state(chosen).filled).all()


def test_a_record_that_has_gone_or_is_marked_as_bad_tells_nothing(table):
    cells = CellSelection(ROWS[:5], ("a",))
    (name,) = RecordIndex(table.records(), cells).names(np.arange(5))
    mark = table.dir / "commits" / f"{name}.bad"
    mark.touch()
    assert table.only([name]).state(cells).lost.all()
    mark.unlink()
    assert table.only([name]).state(cells).filled.all()
    (table.dir / "commits" / name).unlink()
    assert table.only([name]).state(cells).counts()["empty"] == 5


def test_a_planned_commit_reads_the_records_of_its_block_alone(table, monkeypatch):
    seen, reads = table.seen(), []
    load = Table._load
    monkeypatch.setattr(Table, "_load", lambda self, name: reads.append(name) or load(self, name))
    block = CellBlock(ROWS[:3], ("a",), np.ones((3, 1), bool))
    first = Table(table.dir).commit(block, {"a": pa.array([7, 8, 9])}, seen=seen)
    assert first.created
    assert reads == []
    again = Table(table.dir).commit(block, {"a": pa.array([7, 8, 9])}, seen=seen)
    assert not again.created
    assert set(reads) == {first.name}


def test_a_planned_commit_comes_after_all_that_its_plan_saw(table, monkeypatch):
    seen = table.seen()
    monkeypatch.setattr("hoi_distill.storage.table_writer.time.time_ns", lambda: 1)
    other = Table(table.dir)
    for rows in (ROWS[:2], ROWS[2:4]):
        other.commit(CellBlock(rows, ("a",), np.ones((2, 1), bool)), {"a": pa.array([99, 99])}, seen=seen)
    assert table.read(CellSelection(ROWS[:4], ("a",)))["a"].to_pylist() == [0, 1, 2, 3]
    assert len({record.header["created_ns"] for record in table.records()}) == len(table.records())


@pytest.mark.parametrize("what", ["a link to nowhere", "a folder", "nothing of sense"])
def test_a_block_gets_another_generation_whatever_lies_in_its_records_place(table, what):
    block = CellBlock(ROWS[20:25], ("b",), np.ones((5, 1), bool))
    place = table.dir / "commits" / f"{block.key([])}-0.commit"
    if what == "a link to nowhere":
        place.symlink_to("nowhere")
    elif what == "a folder":
        place.mkdir()
    else:
        place.write_bytes(b"?")
    made = table.commit(block, {"b": pa.array(np.arange(5))}, seen=table.seen())
    assert made.name.endswith("-1.commit")
    assert table.read(CellSelection(ROWS[20:25], ("b",)))["b"].to_pylist() == [0, 1, 2, 3, 4]


def test_a_block_whose_record_was_set_aside_gets_another_generation(table):
    block = CellBlock(ROWS[20:25], ("b",), np.ones((5, 1), bool))
    values = {"b": pa.array(np.arange(5))}
    first = table.commit(block, values)
    (table.dir / "commits" / first.name).rename(table.dir / "bad" / first.name)
    second = table.commit(block, values, seen=table.seen())
    assert (first.name[-9:], second.name[-9:]) == ("-0.commit", "-1.commit")
    assert table.commit(block, values).name == second.name
