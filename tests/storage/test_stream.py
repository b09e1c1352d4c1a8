"""What the sample stream promises: the order, exact epochs, resume, refusals, and counted failures."""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from bench.s3_proxy import Fate, Request, proxy
from hoi_distill.storage.cache import Cache
from hoi_distill.storage.cell_block import CellBlock
from hoi_distill.storage.check import check_table
from hoi_distill.storage.digests import as_rows, digest_bytes
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.files import stamps
from hoi_distill.storage.files.address import ObjectPath, place_at
from hoi_distill.storage.files.stores import store_of
from hoi_distill.storage.sampling import Epoch, epoch_order
from hoi_distill.storage.selection import CellSelection
from hoi_distill.storage.shards import payload as shards
from hoi_distill.storage.stream import SampleStream, StreamSpec, TableRef, stack
from hoi_distill.storage.table import Table
from tests.fixtures.object_stores import BOTH, use

N, SHAPE = 23, (3, 2, 2)
LOGITS = pa.list_(pa.float16(), 2)
FOUND = pa.struct([("boxes", pa.list_(pa.list_(pa.float32(), 4))), ("width", pa.int32())])
ROWS = as_rows([digest_bytes(b"picture %d" % i) for i in range(N)])


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """Each test is a machine and a process of its own."""
    monkeypatch.setattr(stamps, "_sound", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


def tensors(rows: np.ndarray) -> np.ndarray:
    return (rows[:, None] * 100 + np.arange(12)).reshape(-1, *SHAPE).astype(np.float16)


def logits(rows: np.ndarray, prompt: int) -> pa.Array:
    return pa.array([[row, prompt] for row in np.float16(rows)], LOGITS)


def create(cache: Path | str, name: str, kind: pa.DataType | None) -> Table:
    output = (
        {"format": "lmdb", "shape": list(SHAPE), "codec": "fp16"}
        if kind is None
        else {"format": "arrow", "type": str(kind)}
    )
    return Cache.open(cache).table(name, {"stage": name}, output, kind)


def put(table: Table, rows: np.ndarray, columns: tuple[str, ...], values, failures=None, inputs=None):
    valid = np.ones((len(rows), len(columns)), bool)
    for cell in failures or {}:
        valid[cell] = False
    return table.commit(CellBlock(ROWS[rows], columns, valid, failures or {}, inputs), values)


@pytest.fixture
def place(request, tmp_path) -> Path | str:
    """The root of the cache, on disk unless a test asks for both."""
    return request.getfixturevalue("bucket_of") if getattr(request, "param", "disk") == "objects" else tmp_path


everywhere = pytest.mark.parametrize("place", BOTH, indirect=True)


@pytest.fixture
def spec(place) -> StreamSpec:
    """Three tables in several shards: features (tensors), itm (three prompts, the third added later), detections."""
    features, itm, detections = (
        create(place, name, kind) for name, kind in (("features", None), ("itm", LOGITS), ("detections", FOUND))
    )
    for rows in np.split(np.arange(N), [9, 18]):
        put(features, rows, ("original",), {"original": tensors(rows)})
        put(itm, rows, ("p0", "p1"), {"p0": logits(rows, 0), "p1": logits(rows, 1)})
        found = [{"boxes": [[0, 0, row, row + 1]] * (row % 3), "width": row} for row in rows.tolist()]
        put(detections, rows, ("value",), {"value": pa.array(found, FOUND)})
    put(itm, np.arange(N), ("p2",), {"p2": logits(np.arange(N), 2)})
    columns = {"features": ("original",), "itm": ("p2", "p0", "p1"), "detections": ("value",)}
    tables = {table.name: refer(table, columns[table.name]) for table in (features, itm, detections)}
    return StreamSpec(ROWS, tables, "make teacher-cache")


def refer(table: Table, columns: tuple[str, ...], inputs=None, wanted=None) -> TableRef:
    return TableRef(str(table.dir), table.fingerprint, CellSelection(ROWS, columns, inputs, wanted))


def other_cells(ref: TableRef, **changes) -> TableRef:
    return replace(ref, cells=replace(ref.cells, **changes))


def only(spec: StreamSpec, name: str, **changes) -> StreamSpec:
    return replace(spec, tables={name: replace(spec.tables[name], **changes)})


def only_cells(spec: StreamSpec, name: str, **changes) -> StreamSpec:
    return replace(spec, tables={name: other_cells(spec.tables[name], **changes)})


def order(loader) -> list[list[int]]:
    return [[sample["row"] for sample in batch] for batch in loader]


def flat(batches) -> list[int]:
    return [row for batch in batches for row in batch]


def collated(samples):
    return torch.tensor([s["row"] for s in samples]), stack([s["features"]["original"] for s in samples])


@everywhere
def test_every_cell_comes_with_its_row(spec):
    stream = SampleStream(spec)
    samples = stream.__getitems__(list(range(N))[::-1])
    assert [sample["row"] for sample in samples] == list(range(N))[::-1]
    for sample in samples:
        row = sample["row"]
        np.testing.assert_array_equal(sample["features"]["original"], tensors(np.array([row]))[0])
        assert list(sample["itm"]) == ["p2", "p0", "p1"]
        assert {prompt: value.tolist() for prompt, value in sample["itm"].items()} == {
            f"p{i}": [row, i] for i in range(3)
        }
        found = sample["detections"]["value"]
        assert found["width"] == row
        assert found["boxes"].shape == (row % 3, 4)
        assert (found["boxes"] == [0, 0, row, row + 1]).all()
    assert not samples[0]["features"]["original"].flags.writeable


@pytest.mark.slow
@pytest.mark.parametrize("place", ["objects"], indirect=True)
@pytest.mark.parametrize("name", ["features", "detections", "itm"])
def test_copies_that_had_to_make_room_are_fetched_together_again(spec, name, monkeypatch):
    from hoi_distill.storage.files.bucket import Bucket
    from hoi_distill.storage.files.object_store import OBJECTS

    fetched: list[tuple[str, bool]] = []

    def download(bucket: Bucket, key: str, path: Path) -> str:
        fetched.append((key, threading.current_thread() is threading.main_thread()))
        return real(bucket, key, path)

    real = Bucket.download
    monkeypatch.setattr(Bucket, "download", download)
    stream = SampleStream(spec.select({name: spec.tables[name].cells.columns}))
    paths = set(stream._tables[0]._paths)
    for _ in range(2):
        for path in paths:
            OBJECTS.forget(place_at(path))
        shards.forget_shards()
        fetched.clear()
        stream = pickle.loads(pickle.dumps(stream))  # no shard of it is open
        assert len(stream.__getitems__(range(N))) == N
        assert sorted(key.rpartition("/")[2] for key, _ in fetched) == sorted(path.rpartition("/")[2] for path in paths)
        assert not any(by_itself for _, by_itself in fetched)
    fetched.clear()
    assert len(stream.__getitems__(range(N))) == N
    assert fetched == []


@everywhere
def test_values_outlive_the_stream_that_gave_them(spec, place):
    stream = SampleStream(spec)
    kept = [sample["features"]["original"] for sample in stream.__getitems__(range(N))]
    del stream
    other = create(place, "other", None)
    assert other.name == "other"
    np.testing.assert_array_equal(np.stack(kept), tensors(np.arange(N)))


@everywhere
def test_one_row_may_stand_twice(spec):
    twice = ROWS[[4, 4, 7]]
    tables = {name: other_cells(ref, row_ids=twice) for name, ref in spec.tables.items()}
    doubled = replace(spec, row_ids=twice, tables=tables)
    assert [sample["detections"]["value"]["width"] for sample in SampleStream(doubled).__getitems__([0, 1, 2])] == [
        4,
        4,
        7,
    ]


@everywhere
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_neither_order_nor_values(spec, workers):
    stream = SampleStream(spec)
    stream.__getitems__([0, 10, 20])  # forked workers inherit open files
    alone = list(stream.loader(5, Epoch(1, 2), collate=collated))
    shared = list(stream.loader(5, Epoch(1, 2), num_workers=workers, collate=collated))
    assert len(alone) == len(shared) == 5
    for a, b in zip(alone, shared, strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
    assert alone[0][1].dtype == torch.float16
    assert stream.__getitems__([3])[0]["row"] == 3  # and leave the parent's as they were


@everywhere
def test_a_stream_pickles_for_spawned_workers(spec, monkeypatch):
    stream = SampleStream(spec)
    stream.__getitems__([0])
    travelling = pickle.dumps(stream)
    monkeypatch.setattr(stamps, "_sound", {})  # where it arrives, no payload is read again
    monkeypatch.setattr(shards, "verify_shard", None)
    again = pickle.loads(travelling)
    assert order(again.loader(4, Epoch(0, 0))) == order(stream.loader(4, Epoch(0, 0)))
    np.testing.assert_array_equal(again[22]["features"]["original"], stream[22]["features"]["original"])


@everywhere
def test_an_epoch_is_exact_and_epochs_differ(spec):
    stream = SampleStream(spec)
    epochs = [order(stream.loader(4, Epoch(3, epoch))) for epoch in (0, 1)]
    for batches in epochs:
        assert sorted(flat(batches)) == list(range(N))
        assert [len(batch) for batch in batches] == [4, 4, 4, 4, 4, 3]
    assert epochs[0] != epochs[1]
    assert order(stream.loader(4, Epoch(3, 0))) == epochs[0]
    assert order(stream.loader(4, Epoch(3, 0, shuffle=False, drop_last=True))) == np.arange(20).reshape(5, 4).tolist()


def test_ranks_read_the_same_global_batches(spec):
    stream = SampleStream(spec)
    alone = order(stream.loader(6, Epoch(5, 1)))
    ranks = [order(stream.loader(2, Epoch(5, 1, rank=rank, world=3))) for rank in range(3)]
    assert [sorted(flat(parts)) for parts in zip(*ranks, strict=True)] == [sorted(batch) for batch in alone]


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_in_mid_epoch_gives_the_rest(spec, workers):
    stream = SampleStream(spec)
    whole = order(stream.loader(4, Epoch(0, 7)))
    loader = stream.loader(4, Epoch(0, 7, start_batch=2), num_workers=workers)
    assert len(loader) == 4
    assert order(loader) == whole[2:]
    assert order(stream.loader(4, Epoch(0, 7, start_batch=9))) == []


def test_failed_rows_are_skipped_and_counted(spec, tmp_path):
    table = create(tmp_path, "captions", pa.string())
    words = pa.array([f"caption {row}" for row in range(N)])
    put(
        table, np.arange(N), ("a", "b"), {"a": words, "b": words}, {(3, 0): "truncated", (11, 0): "1x1", (11, 1): "1x1"}
    )
    captions = refer(table, ("a", "b"))
    stream = SampleStream(replace(spec, tables={**spec.tables, "captions": captions}))
    assert stream.skipped == {3: "captions: truncated", 11: "captions: 1x1"}
    assert len(stream) == N
    assert len(stream.live) == N - 2
    assert [len(batch) for batch in stream.loader(4, Epoch(0, 0))] == [4, 4, 4, 4, 4, 1]  # full batches all the same
    assert sorted(flat(order(stream.loader(4, Epoch(0, 0))))) == [row for row in range(N) if row not in (3, 11)]
    assert [sample["row"] for sample in stream.__getitems__([2, 3, 4])] == [2, 4]
    assert stream[4]["captions"] == {"a": "caption 4", "b": "caption 4"}
    with pytest.raises(KeyError, match="row 3 is left out: captions: truncated"):
        stream[3]
    some = replace(spec, tables={"captions": captions}).select({"captions": ["b"]})
    assert SampleStream(some).skipped == {11: "captions: 1x1"}


def refusal(spec: StreamSpec) -> str:
    with pytest.raises(UserError) as caught:
        SampleStream(spec)
    assert "\n" not in str(caught.value)
    assert "run `" in str(caught.value)
    assert "make teacher-cache" in str(caught.value)
    return str(caught.value)


def test_empty_cells_are_refused_with_their_number_and_the_command(spec):
    wanted = only_cells(spec, "itm", columns=("p0", "p9"))
    assert f"table itm ({spec.tables['itm'].dir}): 23 of 46 wanted cells are empty, the first of row" in refusal(wanted)
    assert "column 'p9'" in refusal(wanted)
    rows = np.concatenate([ROWS, as_rows([digest_bytes(b"new")])])
    more = replace(only_cells(spec, "features", row_ids=rows), row_ids=rows)
    assert "1 of 24 wanted cells are empty" in refusal(more)


def test_stale_cells_are_refused(spec, tmp_path):
    table = create(tmp_path, "triplets", pa.string())
    inputs = np.arange(1, N + 1, dtype=np.uint64)
    put(table, np.arange(N), ("q",), {"q": pa.array(["x"] * N)}, inputs=inputs)
    fresh = refer(table, ("q",), inputs)
    assert SampleStream(replace(spec, tables={"triplets": fresh}))[0]["triplets"] == {"q": "x"}
    inputs = inputs.copy()
    inputs[[2, 5]] = 99
    message = refusal(replace(spec, tables={"triplets": other_cells(fresh, inputs=inputs)}))
    assert "2 of 23 wanted cells are empty (2 stale: their inputs have changed)" in message


def test_a_missing_or_different_table_is_refused(spec):
    assert "table.json" in refusal(only(spec, "itm", dir=spec.tables["itm"].dir + "gone"))
    message = refusal(only(spec, "itm", fingerprint="0" * 32))
    assert spec.tables["itm"].fingerprint in message
    assert "0" * 32 in message


def test_a_payload_of_another_size_is_refused(spec):
    shard = next(Path(spec.tables["features"].dir).glob("shards/*"))
    os.truncate(shard, shard.stat().st_size - 4096)
    assert "lost with their shard" in refusal(only(spec, "features"))


@pytest.mark.parametrize("table", ["features", "itm"])
def test_changed_bytes_are_found_at_the_first_touch(spec, table, tmp_path, monkeypatch):
    shard = next(Path(spec.tables[table].dir).glob("shards/*"))
    shard.chmod(0o600)
    with open(shard, "r+b") as file:
        file.seek(-40, os.SEEK_END)
        byte = file.read(1)
        file.seek(-40, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))
    message = refusal(only(spec, table))
    assert str(shard) in message
    assert "hoi-distill check" in message
    assert check_table(Table(spec.tables[table].dir))[0].shard == shard.name
    assert "lost with their shard" in refusal(only(spec, table))


def test_checksums_are_taken_once_per_machine(spec, monkeypatch):
    time.sleep(0.03)  # a shard of this very instant is not trusted to keep its stamp
    SampleStream(only(spec, "features"))
    read = []
    real = open

    def counting(path, *arguments, **options):
        read.append(str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr("builtins.open", counting)
    monkeypatch.setattr(stamps, "_sound", {})  # another process
    SampleStream(only(spec, "features"))
    assert not [path for path in read if "shards" in path]
    monkeypatch.setenv("XDG_CACHE_HOME", os.environ["XDG_CACHE_HOME"] + "-of-another-machine")
    monkeypatch.setattr(stamps, "_sound", {})
    SampleStream(only(spec, "features"))
    assert len([path for path in read if "shards" in path]) == 3


@pytest.mark.slow
def test_memory_does_not_grow_with_the_bytes_that_pass(tmp_path):
    """Anonymous memory stays within a few MB while 200 MB of features pass."""
    shape = (256, 32, 32)
    output = {"format": "lmdb", "shape": list(shape), "codec": "fp16"}
    table = Cache.open(tmp_path).table("features", {"stage": "big"}, output, None)
    rows = as_rows([digest_bytes(b"%d" % i) for i in range(400)])
    for start in range(0, 400, 50):
        values = np.full((50, *shape), start, np.float16)
        table.commit(CellBlock(rows[start : start + 50], ("original",), np.ones((50, 1), bool)), {"original": values})
    ref = TableRef(str(table.dir), table.fingerprint, CellSelection(rows, ("original",)))
    stream = SampleStream(StreamSpec(rows, {"features": ref}, "make teacher-cache"))

    def anonymous() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0])

    def epoch(number: int) -> None:
        for batch in stream.loader(8, Epoch(0, number)):
            assert all(float(sample["features"]["original"].max()) == sample["row"] // 50 * 50 for sample in batch)

    before = anonymous()
    epoch(0)
    assert anonymous() - before < 40_000


def some(spec: StreamSpec, **changes) -> StreamSpec:
    """Of three prompts each row wants one or two, by its number."""
    wanted = (np.arange(N)[:, None] + np.arange(3)) % 3 < 1 + (np.arange(N) % 2)[:, None]
    return only_cells(spec, "itm", wanted=wanted, **changes)


@everywhere
def test_a_cell_that_is_not_wanted_is_none_whatever_the_table_holds(spec):
    asked = some(spec)
    wanted = asked.tables["itm"].cells.wanted
    stream = SampleStream(asked)
    for sample in stream.__getitems__(list(range(N))):
        row = sample["row"]
        assert list(sample["itm"]) == ["p2", "p0", "p1"]
        for here, (prompt, value) in zip(wanted[row], sample["itm"].items(), strict=True):
            assert value is None if not here else value.tolist() == [row, int(prompt[1])]
    part = asked.select({"itm": ("p1", "p2")}).tables["itm"]
    np.testing.assert_array_equal(part.cells.wanted, wanted[:, [2, 0]])


def test_holes_are_refused_only_where_cells_are_wanted(tmp_path):
    table = create(tmp_path, "itm", LOGITS)
    rows, wanted = np.arange(N), np.zeros((N, 2), bool)
    wanted[:, 0], wanted[::2, 1] = rows != 7, True
    values = {f"p{i}": pa.array([[row, i] if wanted[row, i] else None for row in rows], LOGITS) for i in range(2)}
    table.commit(CellBlock(ROWS, ("p0", "p1"), wanted), values)
    ref = refer(table, ("p0", "p1"), wanted=wanted)
    stream = SampleStream(StreamSpec(ROWS, {"itm": ref}, "make teacher-cache"))
    assert stream[7]["itm"] == {"p0": None, "p1": None}
    assert stream[8]["itm"]["p1"].tolist() == [8, 1]
    assert stream[9]["itm"]["p1"] is None
    assert len(stream._tables[0]._groups) == 1, "what is kept does not grow with each column's own choice of rows"
    with pytest.raises(UserError, match=f"{N // 2 + 1} of {2 * N} wanted cells are empty"):
        SampleStream(StreamSpec(ROWS, {"itm": other_cells(ref, wanted=None)}, "make teacher-cache"))
    more = wanted.copy()
    more[7, 0] = True
    with pytest.raises(UserError, match=rf"1 of {more.sum()} wanted cells are empty.*column 'p0'; run `make"):
        SampleStream(StreamSpec(ROWS, {"itm": other_cells(ref, wanted=more)}, "make teacher-cache"))


def test_a_failure_in_a_cell_that_is_not_wanted_skips_nothing(tmp_path):
    table = create(tmp_path, "itm", LOGITS)
    rows = np.arange(N)
    put(
        table,
        rows,
        ("p0", "p1"),
        {"p0": logits(rows, 0), "p1": logits(rows, 1)},
        failures={(3, 1): "odd", (5, 0): "bad"},
    )
    wanted = np.ones((N, 2), bool)
    wanted[3, 1] = wanted[5, 1] = False
    ref = refer(table, ("p0", "p1"), wanted=wanted)
    stream = SampleStream(StreamSpec(ROWS, {"itm": ref}, "make teacher-cache"))
    assert stream.skipped == {5: "itm: bad"}
    assert stream[3]["itm"]["p0"].tolist() == [3, 0]


@pytest.fixture
def many_shards(bucket_of, endpoint, monkeypatch, tmp_path) -> Iterator[tuple[StreamSpec, list[str]]]:
    """Tensors in an object store, each row in a shard of its own, as a machine sees them that has read none; and the shards
    that it has fetched."""
    table = create(bucket_of, "features", None)
    for row in range(N):
        put(table, np.array([row]), ("original",), {"original": tensors(np.array([row]))})
    spec = StreamSpec(ROWS, {"features": refer(table, ("original",))}, "make teacher-cache")
    fetched: list[str] = []

    def act(request: Request) -> Fate:
        if request.method == "GET" and "/shards/" in request.path:
            fetched.append(request.path)
        return "pass"

    with proxy(endpoint, act) as between:
        use(monkeypatch, between, tmp_path / "other machine")
        yield spec, fetched


@pytest.mark.slow
def test_shards_that_are_fetched_ahead_are_there_when_their_turn_comes(many_shards):
    spec, fetched = many_shards
    stream = SampleStream(spec)
    rows = [3, 9, 20, 21]
    stream.fetch_ahead(rows)
    until = time.monotonic() + 60
    while len(fetched) < 4:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert len(set(fetched)) == 4
    assert [sample["row"] for sample in stream.__getitems__(rows)] == rows
    assert len(fetched) == 4
    assert pickle.loads(pickle.dumps(stream))[3]["row"] == 3


@pytest.mark.slow
def test_a_disk_smaller_than_the_table_fetches_each_shard_once_where_the_order_keeps_to_a_window(
    many_shards, monkeypatch
):
    spec, fetched = many_shards
    monkeypatch.setattr("hoi_distill.storage.stream._SHARDS_OPEN", 2)
    monkeypatch.setattr("hoi_distill.storage.files.local_copies._IN_USE_SECONDS", 0.0)
    first = ObjectPath(SampleStream(spec)._tables[0]._paths[0])
    room = 8 * int(store_of(first).size(first) or 0)  # a third of the table; shards are of one size
    monkeypatch.setenv("HOI_DISTILL_DISK_GB", str(room / 1e9))
    monkeypatch.setattr("hoi_distill.storage.sampling.WINDOW_BLOCKS", 4)
    visits = np.arange(N).repeat(4)  # as if a shard had four rows: a block is a shard

    def fetches(window: int) -> int:
        fetched.clear()
        stream = SampleStream(spec)
        for row in visits[epoch_order(0, 0, len(visits), window=window)].tolist():
            assert stream[row]["features"]["original"][0, 0, 0] == row * 100
        return len(fetched)

    assert fetches(16) <= 1.5 * N
    assert fetches(0) > 2 * N
