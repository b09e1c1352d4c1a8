"""A cache in an object store under lost answers, cut connections, kills and rivals: as on a disk, nothing is lost or doubled."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from bench.s3_proxy import FATES, Fate, Request, proxy
from bench.s3_server import environment
from hoi_distill.storage.cache import Cache
from hoi_distill.storage.cell_block import CellBlock
from hoi_distill.storage.check import check_cache, check_table
from hoi_distill.storage.errors import StorageError
from hoi_distill.storage.files import bucket
from hoi_distill.storage.files.notes import notes_in
from hoi_distill.storage.selection import CellSelection
from hoi_distill.storage.table import Table
from tests.fixtures.object_stores import stored, use
from tests.fixtures.small_tables import COLUMNS, holds, make_table, row_ids, values_of, write

pytestmark = pytest.mark.slow

CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(["obstore", "hoi_distill.storage.cache", "tests.fixtures.small_tables"])


@pytest.fixture
def away(bucket_of, tmp_path, monkeypatch) -> str:
    """A cache of one committed block per kind, which was made without a fault."""
    for kind in ("arrow", "lmdb"):
        write(make_table(bucket_of, kind), row_ids(5), offset=3)
    return bucket_of


def test_a_store_that_replaces_what_it_should_create_is_refused_by_name(endpoint, bucket_of, tmp_path, monkeypatch):
    with proxy(endpoint, lambda _: "pass", conditions=False) as careless:
        use(monkeypatch, careless, tmp_path / "copies")
        with pytest.raises(StorageError, match=rf"cache {bucket_of}: this object store replaces .* If-None-Match"):
            Cache.open(bucket_of)
    use(monkeypatch, endpoint, tmp_path / "copies")
    cache = Cache.open(bucket_of)
    assert cache.folders() == notes_in(cache.root / "leases", "") == []


def test_a_store_that_nobody_answers_for_is_said_when_the_cache_is_opened(tmp_path, monkeypatch):
    monkeypatch.setattr("hoi_distill.storage.files.object_store.OPENING", 0.3)
    use(monkeypatch, "http://127.0.0.1:1", tmp_path / "copies")
    with pytest.raises(
        StorageError, match=r"cache s3://b/c/leases/\S+: the object store does not answer .*give another root"
    ):
        Cache.open("s3://b/c")


@pytest.mark.parametrize("fate", ["lost", "failed"])
@pytest.mark.parametrize("part", ["/commits/", "/shards/"])
def test_an_answer_that_is_lost_after_a_success_makes_no_second_commit(
    away, endpoint, tmp_path, monkeypatch, fate, part
):
    met = []

    def act(request: Request) -> Fate:
        if request.method == "PUT" and part in request.path and len(met) < 2:
            met.append(request)
            return fate
        return "pass"

    with proxy(endpoint, act) as between:
        use(monkeypatch, between, tmp_path / "copies")
        table = make_table(away, "lmdb")
        done = write(table, row_ids(30, 5))
    assert met
    assert done.created
    assert len(Table(table.dir).records()) == len(stored(table.dir / "shards").iterdir()) == 2
    assert check_cache(Cache.open(away)) == []


@pytest.mark.parametrize("fate", FATES)
@pytest.mark.parametrize("kind", ["arrow", "lmdb"])
def test_what_fails_in_passing_is_asked_again_and_changes_nothing(away, endpoint, tmp_path, monkeypatch, fate, kind):
    chance, rows = random.Random(fate), row_ids(400, 5)
    with proxy(endpoint, lambda _: fate if chance.random() < 0.2 else "pass") as between:
        use(monkeypatch, between, tmp_path / "copies")
        table = make_table(away, kind)
        write(table, rows)
        use(monkeypatch, between, tmp_path / "other")  # as another machine sees it
        assert holds(Table(table.dir), rows)
        assert holds(Table(table.dir), row_ids(5), offset=3)
        assert check_table(Table(table.dir)) == []
        assert len(Table(table.dir).records()) == 2


@pytest.mark.parametrize("fate", FATES)
def test_a_payload_that_is_uploaded_in_parts_is_whole_whatever_befell_them(away, endpoint, tmp_path, monkeypatch, fate):
    chance, rows, parts = random.Random(fate), row_ids(8000, 5), []
    monkeypatch.setattr(bucket, "PART", 5 << 20)  # the least that a server takes

    def act(request: Request) -> Fate:
        is_part = "partNumber" in request.path
        parts.extend([request.path] if is_part else [])
        return fate if is_part and chance.random() < 0.5 else "pass"

    values = {column: np.resize(cells, (8000, *cells.shape[1:])) for column, cells in values_of("lmdb", 500).items()}
    with proxy(endpoint, act) as between:
        use(monkeypatch, between, tmp_path / "copies")
        make_table(away, "lmdb").commit(CellBlock(rows, COLUMNS, np.ones((8000, 2), bool)), values)
        use(monkeypatch, between, tmp_path / "other")  # as another machine sees it
        read = make_table(away, "lmdb").read(CellSelection(rows, COLUMNS))
    assert all(np.array_equal(read[column], values[column]) for column in COLUMNS)
    assert len(parts) > 3


def test_a_store_that_stays_away_stops_the_commit_with_table_and_shard_named(away, endpoint, tmp_path, monkeypatch):
    gone = False
    with proxy(endpoint, lambda _: "cut" if gone else "pass") as between:
        use(monkeypatch, between, tmp_path / "copies")
        table = make_table(away, "arrow")
        monkeypatch.setattr(bucket.Bucket._ask, "__defaults__", (0.5,))
        gone = True
        line = (
            rf"table {table.dir}, shard commits: the object store does not answer .*; committed cells are intact; see"
        )
        with pytest.raises(StorageError, match=line):
            write(table, row_ids(9, 5))
        gone = False
        assert holds(Table(table.dir), row_ids(5), offset=3)
        assert not Table(table.dir).state(CellSelection(row_ids(9, 5), COLUMNS)).filled.any()
        assert write(table, row_ids(9, 5)).created


def test_a_store_that_may_only_be_read_is_read_and_named_where_something_is_to_be_written(
    away, endpoint, tmp_path, monkeypatch
):
    with proxy(endpoint, lambda request: "pass" if request.method in ("GET", "HEAD") else "forbid") as between:
        use(monkeypatch, between, tmp_path / "copies")
        cache = Cache.open(away)
        assert not cache.is_writable()
        table = make_table(away, "arrow")
        with cache.lease("reader", cache.tables()):
            assert holds(table, row_ids(5), offset=3)
        with pytest.raises(
            StorageError, match=rf"table {table.dir}, shard .*: 403 Forbidden; committed cells are intact"
        ):
            write(table, row_ids(9, 5))
        with pytest.raises(StorageError, match="403 Forbidden; make it readable and writable or give another root"):
            cache.require_writable()
        with pytest.raises(StorageError, match=f"cache {away}/none/leases/.*403 Forbidden"):
            Cache.open(f"{away}/none")
    with proxy(endpoint, lambda _: "forbid") as between:
        use(monkeypatch, between, tmp_path / "copies")
        with pytest.raises(StorageError, match=f"cache {away}/leases/.*403 Forbidden"):
            Cache.open(away)


def test_a_commit_asks_as_much_of_the_store_in_a_table_of_any_size(away, endpoint, tmp_path, monkeypatch):
    asked: list[str] = []
    with proxy(endpoint, lambda request: asked.append(request.method) or "pass") as between:
        use(monkeypatch, between, tmp_path / "copies")
        table, costs = make_table(away, "arrow"), []
        for number in range(24):
            rows, seen = row_ids(4, 100 + 4 * number), table.seen()
            asked.clear()
            block = CellBlock(rows, COLUMNS, np.ones((4, 2), bool))
            assert table.commit(block, values_of("arrow", 4), seen=seen).created
            costs.append(sorted(asked))
    assert costs[1:] == [["HEAD"] * 7 + ["PUT"] * 2] * 23  # the first one also sweeps


def _write(variables: dict[str, str], folder: str, count: int, offset: int, instant: float = 0.0) -> None:
    os.environ.update(variables)
    table = Table(folder)
    time.sleep(max(0.0, instant - time.time()))
    write(table, row_ids(count, 20), offset=offset)


def test_a_writer_killed_at_any_request_loses_nothing_and_shows_nothing_torn(away, endpoint, tmp_path, monkeypatch):
    """Each time the server has done one request more when it dies."""
    table = make_table(away, "lmdb")
    committed, step = [], 0
    children: list[multiprocessing.Process] = []
    while not (children and children[-1].exitcode == 0):
        step += 1

        asked: list[str] = []

        def kill(request: Request, at: int = step, asked: list[str] = asked) -> None:
            asked.append(request.path)
            if request.number == at:
                os.kill(children[-1].pid, signal.SIGKILL)

        count = 10 + step
        with proxy(endpoint, lambda _: "pass", done=kill) as between:
            variables = environment(between, tmp_path / "copies")
            children.append(CHILDREN.Process(target=_write, args=(variables, str(table.dir), count, 0)))
            children[-1].start()
            children[-1].join()
        assert children[-1].exitcode in (0, -signal.SIGKILL)
        assert sum(path.endswith("/cache.json") for path in asked) <= 1, "threads that fetch together ask once"
        reader, rows = Table(table.dir), row_ids(count, 20)
        assert check_table(reader) == []
        last = (reader.locate(CellSelection(rows[-1:], COLUMNS)).shard >= 0).all()  # only this commit has it
        committed.append(bool(last))
        assert write(Table(table.dir), rows).created != last
        assert holds(Table(table.dir), rows)
        assert holds(Table(table.dir), row_ids(5), offset=3)
    assert committed == sorted(committed)
    assert set(committed) == {False, True}
    assert step > 8


@pytest.mark.parametrize("kind", ["arrow", "lmdb"])
def test_three_processes_that_commit_one_block_agree_on_the_first_value(away, endpoint, tmp_path, kind):
    table = make_table(away, kind)
    for attempt in range(4):
        count, instant = 10 + attempt, time.time() + 2.0
        rivals = [
            CHILDREN.Process(
                target=_write,
                args=(
                    environment(endpoint, tmp_path / f"rival{rival}"), str(table.dir), count, rival * (attempt % 2),
                    instant,
                ),
            )
            for rival in range(3)
        ]  # fmt: skip
        for rival in rivals:
            rival.start()
        for rival in rivals:
            rival.join()
        assert [rival.exitcode for rival in rivals] == [0, 0, 0]
        reader = Table(table.dir)
        assert len([record for record in reader.records() if len(record.row_ids) == count]) == 1
        assert len(stored(table.dir / "shards").iterdir()) == attempt + 2
        assert check_table(reader) == []
    assert len({offset for offset in range(3) if holds(Table(table.dir), row_ids(10, 20), offset)}) == 1


def test_a_forked_process_says_that_it_cannot_use_the_store_instead_of_waiting_for_ever(away):
    table = make_table(away, "arrow")
    child = os.fork()
    if child == 0:
        try:
            Table(table.dir)
        except StorageError as error:
            os._exit(0 if "forked" in str(error) else 1)
        os._exit(2)
    assert os.waitpid(child, 0)[1] == 0


def test_a_cache_that_was_removed_and_filled_again_is_not_taken_for_the_old_one(
    bucket_of, endpoint, tmp_path, monkeypatch
):
    """The records of the first one lie on this machine, under names that the second one uses too."""
    table = make_table(bucket_of, "arrow")
    write(table, row_ids(5), offset=3)
    table.store.delete_folder(Cache(bucket_of).root)
    use(monkeypatch, endpoint, tmp_path / "another machine")
    write(make_table(bucket_of, "arrow"), row_ids(5), offset=7)
    use(monkeypatch, endpoint, tmp_path / "copies")
    again = make_table(bucket_of, "arrow")
    assert holds(again, row_ids(5), offset=7)
    assert check_table(again) == []


def test_a_damaged_copy_on_this_machine_is_fetched_again(away, tmp_path):
    table = make_table(away, "lmdb")
    for copy in [path for path in Path(tmp_path / "copies").rglob("*") if path.suffix in (".lmdb", ".commit")]:
        copy.write_bytes(b"not what came")
    assert holds(Table(table.dir), row_ids(5), offset=3)
