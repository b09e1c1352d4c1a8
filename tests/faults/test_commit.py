"""Commits under kill -9, full disks, read-only roots, rivals and rot: nothing committed is lost, nothing torn is shown."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from hoi_distill.storage import table_writer
from hoi_distill.storage.cache import Cache
from hoi_distill.storage.check import check_table
from hoi_distill.storage.errors import StorageError, UserError
from hoi_distill.storage.files import drafts, owner
from hoi_distill.storage.files.notes import write_note
from hoi_distill.storage.selection import CellSelection
from hoi_distill.storage.shards.payload import verify_shard
from hoi_distill.storage.table import Table
from tests.fixtures.object_stores import stored
from tests.fixtures.small_tables import COLUMNS, PREAMBLE, flip, holds, make_table, mounted, row_ids, write


def killed_at(step: int, action: Callable[[], object]) -> bool:
    """Run ``action`` in a process that kills itself at its ``step``-th file-system operation: an open, a rename, a link, a
    removal, an fsync, or the middle of a write. False if it had finished before."""
    child = os.fork()
    if child == 0:
        steps = 0

        def operation() -> None:
            nonlocal steps
            steps += 1
            if steps == step:
                os.kill(os.getpid(), signal.SIGKILL)

        def audit(event: str, arguments: tuple) -> None:
            if event in ("os.rename", "os.link", "os.remove", "os.mkdir", "os.utime") or (
                event == "open" and not str(arguments[0]).startswith(("/usr", "/proc", sys.prefix))
            ):
                operation()

        def fsync(descriptor: int, real: Callable[[int], None] = os.fsync) -> None:
            operation()
            real(descriptor)
            operation()

        def write_all(sink, data) -> None:
            view = memoryview(data).cast("B")
            while view.nbytes:
                view = (
                    view[sink.write(view[: max(1, len(view) // 2)]) :] if len(view) > 64 else view[sink.write(view) :]
                )
                if len(view) > 5000:
                    operation()

        try:
            os.fsync, drafts.write_all = fsync, write_all
            sys.addaudithook(audit)
            action()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def all_steps(action: Callable[[int], Callable[[], object]], verify: Callable[[int], None]) -> int:
    step = 1
    while killed_at(step, action(step)):
        verify(step)
        step += 1
    return step - 1


@pytest.mark.parametrize("kind", ["arrow", "lmdb"])
def test_a_writer_killed_at_any_step_loses_nothing_and_shows_nothing_torn(tmp_path, kind):
    table = make_table(tmp_path / "cache", kind)
    before, rows = row_ids(20), row_ids(60, start=20)
    write(table, before, offset=100)
    committed = []

    def start(step: int) -> Callable[[], object]:
        return lambda: write(Table(table.dir), rows[: 30 + step])  # another block every time

    def verify(step: int) -> None:
        reader, part = Table(table.dir), rows[: 30 + step]
        assert check_table(reader) == []
        state = reader.state(CellSelection(part, COLUMNS))
        assert holds(reader, before, offset=100)
        inside = (
            Table(table.dir).locate(CellSelection(part[-1:], COLUMNS)).shard
        )  # the last row is new: only this commit has it
        assert (inside >= 0).all() or (inside < 0).all()
        committed.append(bool((inside >= 0).all()))
        assert state.filled[state.filled.any(axis=1)].all()
        retried = write(Table(table.dir), part)
        assert retried.created != committed[-1]
        assert holds(Table(table.dir), part)
        assert list((table.dir / "tmp").iterdir()) == []

    steps = all_steps(start, verify)
    assert steps >= 10
    assert committed == sorted(committed)
    assert set(committed) == {False, True}


def test_a_checker_killed_at_any_step_can_be_run_again_and_the_cells_recomputed(tmp_path):
    rows = row_ids(6)
    digests = []

    def start(step: int) -> Callable[[], object]:
        table = make_table(tmp_path / str(step), "arrow")
        flip(Path(write(table, rows).payload), 300)
        digests.append(table.value_digests(CellSelection(rows, COLUMNS)))
        return lambda: check_table(Table(table.dir))

    def verify(step: int) -> None:
        table = make_table(tmp_path / str(step), "arrow")
        check_table(table)
        assert write(Table(table.dir), rows).created
        assert holds(Table(table.dir), rows)
        assert check_table(table) == []
        assert (Table(table.dir).value_digests(CellSelection(rows, COLUMNS)) == digests[-1]).all()

    assert all_steps(start, verify) >= 4


@pytest.mark.parametrize("kind", ["arrow", "lmdb"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "removed"])
def test_a_damaged_shard_is_set_aside_named_and_recomputed(root, kind, damage):
    table, good, bad = make_table(root, kind), row_ids(10), row_ids(300, start=10)
    write(table, good, offset=5)
    payload = stored(write(table, bad).payload)
    digests = table.value_digests(CellSelection(bad, COLUMNS))
    if damage == "flipped":
        flip(payload, payload.stat().st_size // 2)
        assert check_table(table, deep=False) == []  # same size: only reading tells
    elif damage == "truncated":
        payload.write_bytes(payload.read_bytes()[: payload.stat().st_size // 2])
    else:
        payload.unlink()
    if damage != "flipped":
        assert table.state(CellSelection(bad, COLUMNS)).lost.all()
    else:
        with pytest.raises(StorageError, match=payload.name):
            verify_shard(str(payload))
    (found,) = check_table(Table(table.dir))
    assert (found.shard, found.cells, found.table) == (payload.name, 600, table.dir.name)
    assert check_table(table) == []
    assert not payload.exists()
    assert stored(table.dir / "bad" / payload.name).exists() == (damage != "removed")
    assert table.state(CellSelection(bad, COLUMNS)).lost.all()
    assert holds(table, good, offset=5)
    assert (table.value_digests(CellSelection(bad, COLUMNS)) == digests).all()
    assert write(table, bad).created
    assert holds(table, bad)
    assert check_table(table) == []


def test_a_commit_record_with_changed_bytes_counts_as_none(root):
    table, rows = make_table(root, "arrow"), row_ids(50)
    record = stored(table.dir / "commits" / write(table, rows).name)
    intact = record.read_bytes()
    row = intact.index(rows[7].tobytes())
    record.write_bytes(b"")
    assert not Table(table.dir).state(CellSelection(rows, COLUMNS)).filled.any()
    for position in [row, 0, *np.random.default_rng(0).integers(0, len(intact), 150).tolist()]:
        record.write_bytes(intact)
        flip(record, position)
        filled = Table(table.dir).state(CellSelection(rows, COLUMNS)).filled
        assert not filled.any() or (filled.all() and position != row)
    record.write_bytes(intact)
    flip(record, row)
    assert write(Table(table.dir), rows).created
    assert holds(Table(table.dir), rows)
    (found,) = check_table(Table(table.dir))
    assert found.shard == record.name
    assert "bytes have changed" in found.reason
    assert holds(Table(table.dir), rows)
    assert check_table(Table(table.dir)) == []


def test_changed_value_digests_are_found_by_check(root):
    table, rows = make_table(root, "arrow"), row_ids(50)
    record = stored(table.dir / "commits" / write(table, rows).name)
    flip(record, record.read_bytes().index(table.value_digests(CellSelection(rows, COLUMNS)).tobytes()) + 9)
    (found,) = check_table(Table(table.dir))
    assert found.shard == record.name
    assert found.cells == 100


@pytest.mark.parametrize("kind", ["arrow", "lmdb"])
def test_two_processes_committing_one_block_agree_on_the_first_value(tmp_path, kind):
    table, rows = make_table(tmp_path / "cache", kind), row_ids(30)
    for attempt in range(6):
        part, same = rows[: 10 + attempt], attempt % 2 == 0
        instant = time.time() + 0.1
        children = []
        for rival in range(3):
            child = os.fork()
            if child == 0:
                try:
                    mine = Table(table.dir)
                    time.sleep(max(0, instant - time.time()))
                    write(mine, part, offset=0 if same else 10 * rival)
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
                os._exit(0)
            children.append(child)
        assert all(os.waitpid(child, 0)[1] == 0 for child in children)
        records = [record for record in Table(table.dir).records() if len(record.row_ids) == len(part)]
        assert len(records) == 1
        assert len(list((table.dir / "shards").iterdir())) == attempt + 1
        assert check_table(Table(table.dir)) == []
        # Every block repeats the rows of those before it: there the very first value stands.
        offsets = {offset for offset in (0, 10, 20) if holds(Table(table.dir), part[:10], offset)}
        assert len(offsets) == 1
    assert list((table.dir / "tmp").iterdir()) == []


def test_a_payload_that_vanishes_while_it_is_listed_stops_nobody(tmp_path):
    table, rows = make_table(tmp_path / "cache", "lmdb"), row_ids(30)
    (table.dir / "shards" / "second.lmdb").symlink_to("gone")  # listed, and then not there
    assert write(Table(table.dir), rows).created
    assert holds(Table(table.dir), rows)
    assert check_table(Table(table.dir)) == []


@pytest.mark.parametrize("kind", ["arrow", "lmdb"])
def test_a_file_that_may_not_grow_stops_the_commit_with_table_and_shard_named(tmp_path, kind):
    """RLIMIT_FSIZE stands for a full disk where none can be mounted: the write fails half-way."""
    table, before, rows = make_table(tmp_path / "cache", kind), row_ids(5), row_ids(400, start=5)
    write(table, before, offset=3)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        with pytest.raises(StorageError, match=rf"table {table.dir}, shard \w{{32}}: .*committed cells are intact"):
            write(table, rows)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((table.dir / "tmp").iterdir()) == []
    assert len(list((table.dir / "shards").iterdir())) == 1
    assert holds(Table(table.dir), before, offset=3)
    assert not table.state(CellSelection(rows, COLUMNS)).filled.any()
    write(table, rows)
    assert holds(table, rows)


def test_a_full_disk_stops_the_commit_and_loses_nothing(tmp_path):
    script = (
        PREAMBLE
        + """
for kind in ("arrow", "lmdb"):
    table = make_table(mount / kind, kind)
    write(table, row_ids(5), offset=3)
    filler = mount / "filler"
    free = os.statvfs(mount).f_bavail * os.statvfs(mount).f_bsize
    filler.write_bytes(bytes(free - 8192))
    try:
        write(table, row_ids(400, start=5))
    except StorageError as error:
        print(error)
        assert "No space left" in str(error) and "free some space" in str(error)
    else:
        raise AssertionError("it fitted")
    assert list((table.dir / "tmp").iterdir()) == []
    assert holds(Table(table.dir), row_ids(5), offset=3)
    assert not Table(table.dir).state(CellSelection(row_ids(400, start=5), COLUMNS)).filled.any()
    filler.unlink()
    write(table, row_ids(400, start=5))
    assert holds(table, row_ids(400, start=5))
"""
    )
    assert mounted(tmp_path / "disk", "-o size=8m", script).count("No space left") == 2


def test_a_full_temporary_folder_keeps_no_commit_from_its_place(tmp_path):
    script = (
        PREAMBLE
        + f"""
import tempfile
table = make_table(Path({str(tmp_path / "cache")!r}), "lmdb")
tempfile.tempdir = str(mount)
write(table, row_ids(500))
assert holds(table, row_ids(500))
assert os.listdir(mount) == os.listdir(table.dir / "tmp") == []
"""
    )
    mounted(tmp_path / "disk", "-o size=1m", script)


def test_a_read_only_root_is_named_and_can_still_be_read(tmp_path):
    script = (
        PREAMBLE
        + """
table = make_table(mount / "cache", "arrow")
write(table, row_ids(5), offset=3)
subprocess.run(["mount", "-o", "remount,ro", str(mount)], check=True)
cache = Cache.open(mount / "cache")
for attempt in (cache.require_writable, lambda: write(table, row_ids(4)), lambda: Cache.open(mount / "other")):
    try:
        attempt()
    except StorageError as error:
        assert "Read-only file system" in str(error) and str(mount) in str(error), error
    else:
        raise AssertionError(attempt)
with cache.lease("reader", cache.tables()):
    assert holds(cache.tables()[0], row_ids(5), offset=3)
cache.memory.digests([__import__("hoi_distill.storage.cache").__file__])
"""
    )
    mounted(tmp_path / "disk", "-o size=8m", script)


def test_leftovers_of_the_dead_are_swept_and_those_of_the_living_are_not(tmp_path):
    table = make_table(tmp_path / "cache", "arrow")
    child = os.fork()
    if child == 0:
        (table.dir / "tmp" / f"{owner.tag()}-leftover").touch()
        os._exit(0)
    os.waitpid(child, 0)
    (alive := table.dir / "tmp" / f"{owner.tag()}-mine").touch()
    (foreign := table.dir / "tmp" / "0123456789ab-77-theirs").touch()
    (old := table.dir / "tmp" / "0123456789ab-78-theirs").touch()
    os.utime(old, (0, 0))
    orphan = table.dir / "shards" / f"{'0' * 32}-{'1' * 32}.arrow"
    orphan.touch()
    os.utime(orphan, (0, 0))
    write(table, row_ids(3))
    check_table(table)
    assert set((table.dir / "tmp").iterdir()) == {alive, foreign}
    assert not orphan.exists()
    assert holds(table, row_ids(3))


@pytest.mark.parametrize("days", [9, -9])
def test_a_wrong_clock_takes_nothing_for_old(tmp_path, monkeypatch, days):
    table = make_table(tmp_path / "cache", "arrow")
    write(table, row_ids(3))
    cache = Cache.open(tmp_path / "cache")
    foreign = table.dir / "tmp" / "0123456789ab-77-theirs"
    payload = table.dir / "shards" / f"{'0' * 32}-{'1' * 32}.arrow"  # its record is about to be published elsewhere
    lease = cache.root / "leases" / "0123456789ab-77-theirs.json"
    for path in (foreign, payload):
        path.touch()
    write_note(lease, {"tables": ["other"], "kind": "run", "pid": 77, "host": "theirs"})
    gone = make_table(tmp_path / "cache", "lmdb")
    real = time.time_ns
    with monkeypatch.context() as patch:
        patch.setattr(time, "time_ns", lambda: real() + days * 86400 * 10**9)
        patch.setattr(time, "time", lambda: time.time_ns() / 1e9)
        check_table(table)
        write(Table(table.dir), row_ids(3, 3))
        assert cache.leased() == {"other": "run 77 on theirs"}
        cache.trash(gone)
        assert cache.empty_trash(3600) == []
    assert cache.empty_trash(3600) == []
    assert cache.empty_trash(0) == [gone.dir.name]
    assert foreign.exists()
    assert payload.exists()


def old_orphan(table: Table, rows: np.ndarray) -> Path:
    """The payload of a commit whose writer died days ago, before its record was there."""
    done = write(table, rows)
    (table.dir / "commits" / done.name).unlink()
    os.utime(done.payload, (0, 0))
    return Path(done.payload)


@pytest.mark.parametrize("kind", ["arrow", "lmdb"])
def test_a_payload_that_a_check_sweeps_before_its_record_is_there_is_written_again(tmp_path, monkeypatch, kind):
    table = make_table(tmp_path / "cache", kind)
    write(table, row_ids(3))
    real = table_writer.publish_record

    def late(scratch: Path, target: Path, data: pa.Buffer) -> bool:
        monkeypatch.setattr(table_writer, "publish_record", real)
        (payload,) = [path for path in (table.dir / "shards").iterdir() if path.name.startswith(target.name[:32])]
        os.utime(payload, (0, 0))
        check_table(Table(table.dir))
        assert not payload.exists()
        return real(scratch, target, data)

    monkeypatch.setattr(table_writer, "publish_record", late)
    done = write(table, row_ids(4, 3))
    assert Path(done.payload).exists()
    assert holds(table, row_ids(4, 3))
    assert check_table(table) == []


def test_a_record_that_comes_while_a_check_sweeps_keeps_its_payload(tmp_path, monkeypatch):
    table = make_table(tmp_path / "cache", "arrow")
    write(table, row_ids(3))
    orphan = old_orphan(table, row_ids(4, 3))
    real = owner.clock_of

    def late(folder: Path) -> float:  # asked between the check's look at the records and its look at the payloads
        monkeypatch.setattr(owner, "clock_of", real)
        write(Table(table.dir), row_ids(4, 3))
        os.utime(orphan, (0, 0))
        return real(folder)

    monkeypatch.setattr(owner, "clock_of", late)
    check_table(table)
    assert owner.clock_of is real
    assert holds(Table(table.dir), row_ids(4, 3))
    assert list((table.dir / "tmp").iterdir()) == []


def test_a_table_in_use_is_not_thrown_away_and_the_trash_keeps_its_grace(tmp_path):
    table = make_table(tmp_path / "cache", "arrow")
    cache = Cache.open(tmp_path / "cache")
    with cache.lease("reader", [table]), pytest.raises(UserError, match=rf"{table.dir.name}: in use by reader"):
        cache.trash(table)
    child = os.fork()
    if child == 0:
        with cache.lease("run", [table]):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)  # the note of a process that was killed says nothing
    cache.trash(table)
    assert cache.tables() == []
    assert cache.empty_trash(3600) == []
    assert cache.empty_trash(0) == [table.dir.name]
    assert list((tmp_path / "cache" / "trash").iterdir()) == []


def test_tables_opened_at_once_are_one_and_another_output_is_refused(root):
    assert make_table(root, "arrow").dir == make_table(root, "arrow").dir
    with pytest.raises(StorageError, match="holds"):
        Cache(root).table("cells", {"kind": "arrow"}, {"format": "arrow", "type": "list"}, pa.int8())
