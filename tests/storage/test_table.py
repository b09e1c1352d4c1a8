"""Tables: what was committed reads back, and which record a cell's value comes from."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hoi_distill.storage.cache import Cache
from hoi_distill.storage.cell_block import CellBlock
from hoi_distill.storage.digests import FAILURE_DIGEST, as_rows, digest_bytes
from hoi_distill.storage.errors import StorageError
from hoi_distill.storage.selection import CellSelection
from hoi_distill.storage.table import Table
from tests.fixtures.object_stores import stored


def row_ids(count: int, start: int = 0) -> np.ndarray:
    return as_rows([digest_bytes(str(index).encode()) for index in range(start, start + count)])


def numbers(cache: Cache, **record: int) -> Table:
    return cache.table("numbers", record, {"format": "arrow", "type": "int64"}, pa.int64())


def maps(cache: Cache, codec: str = "fp16", shape: tuple[int, ...] = (3, 4, 5)) -> Table:
    return cache.table("maps", {"codec": codec}, {"format": "lmdb", "shape": list(shape), "codec": codec}, None)


@pytest.fixture
def cache(root):
    return Cache.open(root)


def put(table, rows, cells, inputs=None, columns=("a",), failures=None):
    """Commit ``cells`` (``[R, C]`` ints, -1 for none)."""
    cells = np.asarray(cells).reshape(len(rows), len(columns))
    values = {column: pa.array(cells[:, index]) for index, column in enumerate(columns)}
    return table.commit(CellBlock(rows, columns, cells >= 0, failures or {}, inputs), values, {"seconds": 1.0})


STRUCT = pa.struct(
    [("boxes", pa.list_(pa.list_(pa.float32(), 4))), ("labels", pa.list_(pa.int16())), ("text", pa.string())]
)


def test_every_row_and_column_of_an_arrow_shard_reads_back_in_any_order(cache):
    rows, columns = row_ids(700), ("a prompt", "row", "ein Mensch fährt 自転車")
    kind = pa.list_(pa.float16(), 2)
    table = cache.table("itm", {}, {"format": "arrow"}, kind)
    data = np.random.default_rng(0).normal(size=(3, 1400)).astype(np.float16)
    values = {
        column: pa.FixedSizeListArray.from_arrays(pa.array(part), type=kind)
        for column, part in zip(columns, data, strict=True)
    }
    for part in (slice(0, 333), slice(333, 700)):
        table.commit(
            CellBlock(rows[part], columns, np.ones((len(rows[part]), 3), bool)), {c: v[part] for c, v in values.items()}
        )
    order = np.random.default_rng(1).permutation(700)
    read = table.read(CellSelection(np.concatenate([rows[order], rows[:5]]), columns[::-1]))
    for column in columns:
        expected = values[column].take(pa.array(np.concatenate([order, np.arange(5)])))
        assert read[column].equals(expected)


def test_structured_cells_and_nulls_read_back(cache):
    cells = [
        {"boxes": [[0.0, 1.0, 2.0, 3.0]] * n, "labels": [n] * n, "text": None if n == 2 else "x" * n} for n in range(5)
    ]
    table = cache.table("detections", {}, {"format": "arrow"}, STRUCT)
    rows = row_ids(5)
    valid = np.ones((5, 1), bool)
    valid[3] = False
    table.commit(CellBlock(rows, ("value",), valid, {(3, 0): "truncated"}), {"value": pa.array(cells, STRUCT)})
    read = table.read(CellSelection(rows, ("value",)))["value"].to_pylist()
    assert read == [*cells[:3], None, cells[4]]
    assert table.failures(CellSelection(rows, ("value",))) == {(3, 0): "truncated"}
    assert Table(table.dir).type == STRUCT


@pytest.mark.parametrize("codec", ["fp16", "bf16", "int8"])
def test_every_tensor_reads_back_within_the_codecs_error(cache, codec):
    rows = row_ids(300)
    table = maps(cache, codec)
    generator = np.random.default_rng(0)
    scale = np.exp(generator.normal(size=(300, 3, 1, 1)) * 3)
    values = {view: (generator.normal(size=(300, 3, 4, 5)) * scale).astype(np.float32) for view in ("original", "flip")}
    valid = np.ones((300, 2), bool)
    valid[7, 1] = False
    table.commit(CellBlock(rows, ("original", "flip"), valid, {(7, 1): "too small"}), values)
    order = generator.permutation(300)
    read = table.read(CellSelection(rows[order], ("flip", "original")))
    assert np.isnan(read["flip"][np.flatnonzero(order == 7)]).all()
    kept = order[order != 7]
    for view in ("original", "flip"):
        exact = values[view][kept]
        error = np.abs(read[view][order != 7].astype(np.float64) - exact)
        if codec == "int8":
            bound = np.abs(exact).max(axis=(2, 3), keepdims=True) / 254 * 1.001
        else:
            bound = np.maximum(np.abs(exact) * 2.0 ** (-11 if codec == "fp16" else -8), 1e-7)
        assert (error <= bound * 1.001).all()


def test_state_tells_filled_failed_stale_and_empty_cells_apart(cache):
    table, rows = numbers(cache), row_ids(4)
    inputs = np.array([1, 2, 3, 4], np.uint64)
    put(table, rows[:3], [[1, 2], [3, -1], [5, 6]], inputs[:3], ("a", "b"), {(1, 1): "bad"})
    now = inputs.copy()
    now[2] = 9
    state = table.state(CellSelection(rows, ("b", "new", "a"), now))
    assert state.filled.tolist() == [[1, 0, 1], [0, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert state.failed.tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert state.stale.tolist() == [[0, 0, 0], [0, 0, 0], [1, 0, 1], [0, 0, 0]]
    assert state.counts() == {"filled": 3, "failed": 1, "stale": 2, "lost": 0, "empty": 8}
    assert (state.empty() == ~(state.filled | state.failed)).all()
    assert (state.empty(slice(1, 3)) == state.empty()[1:3]).all()


def test_inputs_may_differ_from_cell_to_cell_and_from_asking_to_asking(cache):
    table, rows = numbers(cache), row_ids(2)
    inputs = np.array([[1, 2], [3, 4]], np.uint64)
    put(table, rows, [[10, 20], [30, 40]], inputs, ("a", "b"))
    assert table.state(CellSelection(rows, ("a", "b"), inputs)).filled.all()
    changed = inputs.copy()
    changed[1, 0] = 7
    assert table.state(CellSelection(rows, ("a", "b"), changed)).filled.tolist() == [[True, True], [True, True]][:1] + [
        [False, True]
    ]
    put(table, rows[1:], [[31]], changed[1:, 0], ("a",))
    assert table.read(CellSelection(rows, ("a",), changed))["a"].to_pylist() == [10, 31]
    assert table.read(CellSelection(rows, ("a",), inputs))["a"].to_pylist() == [10, 30]
    assert table.read(CellSelection(rows, ("a",)))["a"].to_pylist() == [10, 31]  # the newest where nobody says


def test_a_row_asked_for_twice_with_other_inputs_is_two_cells(cache):
    table, rows = numbers(cache), row_ids(2)
    put(table, rows, [1, 2], np.array([5, 6], np.uint64))
    twice, inputs = rows[[0, 0, 1]], np.array([5, 8, 6], np.uint64)
    assert table.state(CellSelection(twice, ("a",), inputs)).filled[:, 0].tolist() == [True, False, True]
    put(table, rows[:1], [3], np.array([8], np.uint64))
    assert table.read(CellSelection(twice, ("a",), inputs))["a"].to_pylist() == [1, 3, 2]


def test_the_first_value_stands(cache):
    table, rows = numbers(cache), row_ids(3)
    first = put(table, rows, [1, 2, 3])
    digests = table.value_digests(CellSelection(rows, ("a",)))
    again = put(Table(table.dir), rows, [7, 8, 9])
    assert first.created
    assert not again.created
    assert again.payload == first.payload
    put(table, rows[:2], [7, 8])  # another block over the same cells
    assert table.read(CellSelection(rows, ("a",)))["a"].to_pylist() == [1, 2, 3]
    assert (table.value_digests(CellSelection(rows, ("a",))) == digests).all()
    assert len(list(stored(table.dir / "shards").iterdir())) == 2


def test_a_value_beats_a_failure_and_dropped_failures_are_empty(cache):
    table, rows = numbers(cache), row_ids(3)
    put(table, rows, [1, -1, -1], failures={(1, 0): "broken", (2, 0): "broken"})
    assert table.value_digests(CellSelection(rows, ("a",)))[1, 0] == FAILURE_DIGEST
    assert table.drop_failures(CellSelection(rows, ("a",))) == 2
    assert table.state(CellSelection(rows, ("a",))).counts()["empty"] == 2
    assert table.value_digests(CellSelection(rows, ("a",))).ravel().tolist().count(0) == 2
    again = put(table, rows, [1, -1, -1], failures={(1, 0): "still", (2, 0): "still"})
    assert again.created
    assert table.failures(CellSelection(rows, ("a",))) == {(1, 0): "still", (2, 0): "still"}
    put(table, rows[1:2], [5])
    assert table.failures(CellSelection(rows, ("a",))) == {(2, 0): "still"}
    assert table.read(CellSelection(rows, ("a",)))["a"].to_pylist() == [1, 5, None]


def test_value_digests_survive_a_lost_payload_and_its_recomputation(cache):
    table, rows = numbers(cache), row_ids(3)
    first = put(table, rows, [1, 2, 3])
    digests = table.value_digests(CellSelection(rows, ("a",)))
    assert len(set(digests.ravel().tolist())) == 3
    assert (digests != 0).all()
    stored(first.payload).unlink()
    state = table.state(CellSelection(rows, ("a",)))
    assert not state.filled.any()
    assert state.lost.all()
    assert (table.value_digests(CellSelection(rows, ("a",))) == digests).all()
    with pytest.raises(StorageError, match=r"numbers-\w+: 3 of 3 cells .* empty.*hoi-distill run"):
        table.read(CellSelection(rows, ("a",)))
    assert put(table, rows, [1, 2, 4]).created
    assert table.read(CellSelection(rows, ("a",)))["a"].to_pylist() == [1, 2, 4]
    assert (table.value_digests(CellSelection(rows, ("a",))) == digests).all()


def test_a_slow_clock_does_not_take_the_first_place(cache, monkeypatch):
    table, rows = numbers(cache), row_ids(2)
    put(table, rows, [1, 2])
    monkeypatch.setattr("hoi_distill.storage.table_writer.time.time_ns", lambda: 1)
    put(Table(table.dir), rows[:1], [9])
    assert table.read(CellSelection(rows, ("a",)))["a"].to_pylist() == [1, 2]


def test_commits_that_contradict_themselves_are_refused(cache):
    table, rows = numbers(cache), row_ids(2)
    with pytest.raises(ValueError, match="twice"):
        put(table, rows[[0, 0]], [1, 2])
    with pytest.raises(ValueError, match="both a value and a failure"):
        put(table, rows, [1, 2], failures={(0, 0): "bad"})
    with pytest.raises(ValueError, match="nothing to commit"):
        put(table, rows, [-1, -1])
    with pytest.raises(ValueError, match=r"column 'a'.*int64"):
        table.commit(CellBlock(rows, ("a",), np.ones((2, 1), bool)), {"a": pa.array(["x", "y"])})
    tensors = maps(cache)
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        tensors.commit(CellBlock(rows, ("a",), np.ones((2, 1), bool)), {"a": np.zeros((2, 2), np.float32)})
    with pytest.raises(ValueError, match="outside float16"):
        tensors.commit(CellBlock(rows, ("a",), np.ones((2, 1), bool)), {"a": np.full((2, 3, 4, 5), 1e6, np.float32)})
    assert not list(stored(table.dir / "commits").iterdir())
    assert not list(stored(tensors.dir / "shards").iterdir())
    assert not list(stored(tensors.dir / "tmp").iterdir())


def test_a_table_travels_as_its_folder_and_sees_what_others_commit(cache):
    table, rows = numbers(cache), row_ids(2)
    other = pickle.loads(pickle.dumps(table))
    put(table, rows[:1], [1])
    assert other.state(CellSelection(rows, ("a",))).filled[:, 0].tolist() == [True, False]
    put(table, rows[1:], [2])
    assert other.state(CellSelection(rows, ("a",))).filled.all()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_history_of_commits_losses_and_retries_merges_as_a_dictionary_would(tmp_path_factory, data):
    table = numbers(Cache.open(tmp_path_factory.mktemp("history")))
    rows, columns, count = row_ids(4), ("a", "b", "c"), 4
    history: list[tuple[str | None, dict]] = []  # (payload, {cell: (input, value or None for a failure)}); None drops
    for step in range(data.draw(st.integers(1, 7))):
        action = data.draw(st.sampled_from(["commit", "commit", "commit", "lose", "drop"]))
        if action == "commit":
            some = sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1)))
            which = sorted(data.draw(st.sets(st.integers(0, 2), min_size=1)))
            kinds = data.draw(st.lists(st.sampled_from([0, 1, 2]), min_size=12, max_size=12))
            digest = data.draw(st.sampled_from([5, 6]))
            cells = {(r, c): kinds[r * 3 + c] for r in some for c in which}
            if not any(cells.values()):
                continue
            grid = np.array([[step if cells[r, c] == 1 else -1 for c in which] for r in some])
            failed = {(some.index(r), which.index(c)): f"step {step}" for (r, c), kind in cells.items() if kind == 2}
            inputs = np.full(len(some), digest, np.uint64)
            result = put(table, rows[some], grid, inputs, tuple(columns[c] for c in which), failed)
            if result.created:
                new = {cell: (digest, step if kind == 1 else None) for cell, kind in cells.items() if kind}
                history.append((result.payload, new))
        elif action == "lose" and history:
            payload = data.draw(st.sampled_from([p for p, _ in history] or [None]))
            if payload is not None:
                open(payload, "wb").close()
        elif action == "drop" and table.drop_failures(CellSelection(rows, columns, np.full(count, 5, np.uint64))):
            history.append((None, {}))

    def live(payload: str | None) -> bool:
        return payload is not None and bool(open(payload, "rb").read(1))

    asked = np.full(count, 5, np.uint64)
    state = table.state(CellSelection(rows, columns, asked))
    where = table.locate(CellSelection(rows, columns, asked))
    for row in range(count):
        for column in range(3):
            value, failure, computed = None, False, False
            for payload, cells in history:
                if not cells:
                    failure = False
                digest, held = cells.get((row, column), (0, None))
                if digest != 5:
                    continue
                if held is None:
                    failure = True
                    continue
                computed = True
                if value is None and live(payload):
                    value = held
            assert state.filled[row, column] == (value is not None)
            assert state.failed[row, column] == (failure and not computed)
            assert (where.shard[row, column] >= 0) == (value is not None)
            if value is not None:
                read = table.read(CellSelection(rows[row : row + 1], (columns[column],), asked[:1]))
                assert read[columns[column]].to_pylist() == [value]


def test_storage_imports_neither_torch_nor_ray_nor_the_other_rooms():
    script = (
        "import sys, hoi_distill.storage.cache, hoi_distill.storage.check; "
        "rooms = {f'hoi_distill.{room}' for room in ('stages', 'workers', 'pipeline')}; "
        "print(sorted({'torch', 'ray', *rooms} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
