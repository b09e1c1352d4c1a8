"""One damaged file stops its own table at most; `check` sets it aside, and set aside means kept."""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import pickle
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from hoi_distill.pipeline.filling.garbage import collect
from hoi_distill.storage.cache import Cache
from hoi_distill.storage.cell_block import CellBlock
from hoi_distill.storage.check import EMPTIED, check_cache, check_table
from hoi_distill.storage.damage import Damaged, damage
from hoi_distill.storage.digests import canonical_json
from hoi_distill.storage.errors import StorageError, UserError
from hoi_distill.storage.files import owner, stamps
from hoi_distill.storage.files.address import ObjectPath, Place
from hoi_distill.storage.files.notes import notes_in, read_note, write_note
from hoi_distill.storage.selection import CellSelection
from hoi_distill.storage.table import Table
from tests.fixtures.object_stores import stored
from tests.fixtures.small_tables import COLUMNS, PREAMBLE, flip, holds, make_table, mounted, row_ids, write

DESCRIPTION = ("cells", {"kind": "arrow"}, {"format": "arrow", "type": "list"}, pa.list_(pa.int64()))


@pytest.fixture(autouse=True)
def process(monkeypatch):
    monkeypatch.setattr(stamps, "_sound", {})
    monkeypatch.setattr(owner, "STALE_SECONDS", owner.STALE_SECONDS)


def age(folder: Place) -> None:
    """Older than any leftover that is swept. Nobody can set an object's time: all of them count as old from now on."""
    if isinstance(folder, ObjectPath):
        owner.STALE_SECONDS = -60.0
        return
    for file in folder.iterdir():
        os.utime(file, (0, 0))


@pytest.mark.parametrize("kind", ["arrow", "lmdb"])
@pytest.mark.parametrize("place", ["row", "values", "end"])
def test_an_intact_payload_outlives_the_record_that_named_it(root, kind, place):
    table, rows = make_table(root, kind), row_ids(30)
    write(table, row_ids(5, start=50), offset=4)
    made = write(table, rows)
    record, payload = stored(table.dir / "commits" / made.name), stored(made.payload)
    intact = payload.read_bytes()
    needle = rows[3].tobytes() if place == "row" else table.value_digests(CellSelection(rows, COLUMNS))[4:6].tobytes()
    flip(record, -1 if place == "end" else record.read_bytes().index(needle))
    age(table.dir / "shards")
    (found,) = check_table(Table(table.dir))
    assert (found.shard, found.outcome) == (record.name, EMPTIED)
    assert payload.read_bytes() == intact
    assert stored(table.dir / "bad" / record.name).exists()
    assert write(Table(table.dir), rows).created  # the same bytes under the same name
    age(table.dir / "shards")
    for _ in range(2):
        assert check_table(Table(table.dir)) == []
        assert payload.read_bytes() == intact
    assert holds(Table(table.dir), rows)
    assert holds(Table(table.dir), row_ids(5, start=50), offset=4)


def test_a_payload_whose_record_was_set_aside_is_no_losers_leftover(root):
    """Its block was computed again to other values, and a rival that computes the first ones loses: it takes back its
    own payload only, and that is what was set aside."""
    table, rows = make_table(root, "arrow"), row_ids(8)
    first = write(table, rows)
    flip(stored(table.dir / "commits" / first.name), -1)
    check_table(Table(table.dir))
    assert write(Table(table.dir), rows, offset=7).created
    loser = Table(table.dir)
    standing, calls = loser._standing, []

    def late(key: str):  # the winner commits after the loser has looked
        calls.append(key)
        return (None, 5) if len(calls) == 1 else standing(key)

    loser._standing = late
    assert not write(loser, rows).created
    age(table.dir / "shards")
    for _ in range(2):
        assert check_table(Table(table.dir)) == []
        assert stored(first.payload).exists()
    assert holds(Table(table.dir), rows, offset=7)


def test_nothing_is_swept_by_the_check_that_set_something_aside(root):
    """Whatever it was: what no record names may be what a lost record named."""
    table = make_table(root, "arrow")
    write(table, row_ids(4))
    flip(stored(write(table, row_ids(4, start=9)).payload), 300)
    orphan = stored(table.dir / "shards" / f"{'0' * 32}-{'1' * 32}.arrow")
    orphan.touch()
    age(table.dir / "shards")
    assert len(check_table(Table(table.dir))) == 1
    assert orphan.exists()
    assert check_table(Table(table.dir)) == []
    assert not orphan.exists()


@pytest.mark.parametrize("damage", ["folder", "loop", "empty"])
@pytest.mark.parametrize("kind", ["arrow", "lmdb"])
def test_a_payload_that_is_no_file_is_set_aside_and_computed_again(tmp_path, kind, damage):
    table, rows = make_table(tmp_path / "cache", kind), row_ids(6)
    write(table, row_ids(5, start=50), offset=4)
    payload = Path(write(table, rows).payload)
    payload.unlink()
    if damage == "folder":
        payload.mkdir()
    elif damage == "loop":
        payload.symlink_to(payload.name)
    else:
        payload.touch()
    assert Table(table.dir).state(CellSelection(rows, COLUMNS)).lost.all()
    assert holds(Table(table.dir), row_ids(5, start=50), offset=4)
    (found,) = check_table(Table(table.dir))
    assert found.shard == payload.name
    assert write(Table(table.dir), rows).created
    assert holds(Table(table.dir), rows)
    assert check_table(Table(table.dir)) == []


JSONS = {
    "empty": lambda file: file.write_bytes(b""),
    "text": lambda file: file.write_bytes(b"\xff\xfe no"),
    "list": lambda file: file.write_bytes(b"[1]"),
    "keys": lambda file: file.write_bytes(b"{}"),
    "flipped": lambda file: file.write_bytes(file.read_bytes().replace(b'"kind":"arrow"', b'"kind":"brrow"')),
    "type": lambda file: file.write_bytes(file.read_bytes().replace(b'"type":"/////', b'"type":"AAAAA')),
    "folder": lambda file: (file.unlink(), file.mkdir()),
    "dangling": lambda file: (file.unlink(), file.symlink_to("gone")),
    "gone": lambda file: file.unlink(),
}


@pytest.mark.parametrize("damage", JSONS)
def test_a_damaged_description_costs_no_cell_and_no_other_table(tmp_path, damage, caplog):
    root, rows = tmp_path / "cache", row_ids(10)
    table, other = make_table(root, "arrow"), make_table(root, "lmdb")
    write(table, rows)
    write(other, rows)
    cache = Cache.open(root)
    JSONS[damage](table.dir / "table.json")
    assert [found.dir for found in cache.tables()] == [other.dir]
    assert cache.folders() == sorted([table.dir, other.dir])
    found = cache.find(*DESCRIPTION)
    assert found.state(CellSelection(rows, COLUMNS)).filled.all()
    assert holds(found, rows)
    assert holds(Table(table.dir), rows), "it was written again"
    assert len(caplog.messages) == (damage != "gone")
    assert check_cache(cache) == []


@pytest.mark.parametrize("damage", sorted({*JSONS} - {"gone"}))
def test_check_sets_a_damaged_description_aside_and_says_that_no_cell_is_lost(root, damage):
    if isinstance(root, str) and damage in ("folder", "dangling"):
        pytest.skip("objects are neither folders nor links")
    table, rows = make_table(root, "arrow"), row_ids(10)
    flip(stored(write(table, rows).payload), 300)
    JSONS[damage](stored(table.dir / "table.json"))
    cache = Cache.open(root)
    description, shard = check_cache(cache)
    assert description.shard == "table.json"
    assert description.line().endswith("the next plan or run that wants the table writes it again, no cell is lost")
    assert shard.shard.endswith(".arrow"), "its shards are checked all the same"
    assert any(name.startswith("table.json") for name in table.store.names(table.dir / "bad"))
    assert check_cache(cache) == []
    assert cache.find(*DESCRIPTION).state(CellSelection(rows, COLUMNS)).lost.all()


def test_no_flipped_bit_of_a_description_opens_another_table(root):
    table = make_table(root, "arrow")
    file = stored(table.dir / "table.json")
    intact = file.read_bytes()
    expected = (table.fingerprint, table.record)
    for place in range(len(intact)):
        changed = bytearray(intact)
        changed[place] ^= 1 << place % 8
        file.write_bytes(changed)
        with contextlib.suppress(Damaged):
            found = Table(table.dir)
            assert (found.fingerprint, found.record) == expected


@pytest.mark.parametrize("damage", ["flipped", "of another table"])
def test_whatever_a_description_says_instead_the_table_is_the_one_that_is_asked_for(tmp_path, damage):
    """Its output and type too, which no fingerprint covers but that of a record that names the output, as all stages' do."""
    cache, kind = Cache.open(tmp_path), pa.struct([("score", pa.float32()), ("boxes", pa.list_(pa.float32()))])
    output = {"format": "arrow", "type": str(kind)}
    asked = ("cells", {"stage": "cells", "output": output}, output, kind)
    file = cache.table(*asked).dir / "table.json"
    other = cache.table("others", {"stage": "others", "output": output}, output, kind)
    intact = file.read_bytes()
    for place in range(0, len(intact), 2) if damage == "flipped" else [0]:
        changed = bytearray(intact)
        changed[place] ^= 1 << place // 2 % 7
        file.write_bytes(changed if damage == "flipped" else (other.dir / "table.json").read_bytes())
        found = cache.table(*asked)
        assert (found.name, found.record, found.output, found.type) == asked
        found = Table(found.dir)  # as anybody else finds it
        assert (found.name, found.record, found.output, found.type) == asked


@pytest.mark.parametrize("part", ["shards", "commits", "bad", "tmp"])
@pytest.mark.parametrize("damage", ["gone", "file", "dangling", "loop"])
def test_a_damaged_folder_of_a_table_is_mended_by_check_and_stops_no_other_table(tmp_path, part, damage):
    root, rows = tmp_path / "cache", row_ids(10)
    table, other = make_table(root, "arrow"), make_table(root, "lmdb")
    write(table, rows)
    write(other, rows)
    folder = table.dir / part
    shutil.rmtree(folder)
    if damage == "file":
        folder.write_bytes(b"x")
    elif damage != "gone":
        folder.symlink_to("nowhere" if damage == "dangling" else part)
    cache = Cache.open(root)
    lines = [found.line() for found in check_cache(cache)]
    if damage != "gone":
        assert f"{table.dir.name}/{part}: not a folder; {EMPTIED}" in lines
    elif part in ("bad", "tmp", "commits"):
        assert lines == []
    assert check_cache(cache) == []
    assert holds(Table(other.dir), rows)
    found = cache.find(*DESCRIPTION)
    assert found.state(CellSelection(rows, COLUMNS)).filled.all() == (part not in ("shards", "commits"))
    write(found, rows)
    assert holds(Table(table.dir), rows)
    assert check_cache(cache) == []


def test_a_folder_that_is_none_is_said_in_a_line_before_check(tmp_path):
    table, rows = make_table(tmp_path / "cache", "arrow"), row_ids(3)
    write(table, rows)
    shutil.rmtree(table.dir / "shards")
    (table.dir / "shards").symlink_to("nowhere")
    with pytest.raises(StorageError, match=r"shards is a link that leads nowhere; .*`hoi-distill check` sets it aside"):
        Table(table.dir).state(CellSelection(rows, COLUMNS))
    with pytest.raises(StorageError, match="cannot be created: File exists; mend or remove it"):
        Cache.open(tmp_path / "cache").find(*DESCRIPTION)


def test_a_table_that_is_a_link_to_nowhere_is_named_and_stops_no_check(tmp_path):
    table = make_table(tmp_path / "cache", "arrow")
    os.rename(table.dir, tmp_path / "elsewhere")
    table.dir.symlink_to(tmp_path / "unmounted")
    cache = Cache.open(tmp_path / "cache")
    assert [found.line() for found in check_cache(cache)] == [
        f"tables/{table.dir.name}: a link that leads nowhere; left where it is: mend or remove it"
    ]
    assert cache.tables() == []
    with pytest.raises(StorageError, match="mend or remove it"):
        cache.find(*DESCRIPTION)
    table.dir.unlink()
    table.dir.symlink_to(tmp_path / "elsewhere")
    assert [found.dir for found in cache.tables()] == [table.dir]


def test_a_table_that_cannot_be_checked_is_said_and_the_others_are_checked(tmp_path, monkeypatch):
    """Root reads everything: that this process may not read a record is what the system would say."""
    table, other = make_table(tmp_path / "cache", "arrow"), make_table(tmp_path / "cache", "lmdb")
    write(table, row_ids(3))
    flip(Path(write(other, row_ids(3)).payload), 5000)
    real = pa.memory_map

    def denied(path, *arguments):
        if str(table.dir) in path:
            raise PermissionError(13, "Permission denied", path)
        return real(path, *arguments)

    monkeypatch.setattr("hoi_distill.storage.records.pa.memory_map", denied)
    unread, bad = check_cache(Cache.open(tmp_path / "cache"))
    assert unread.outcome == "not checked"
    assert "Permission denied" in unread.reason
    assert bad.table == other.dir.name
    assert len(list((table.dir / "commits").iterdir())) == 1, "what cannot be read is not known to be damaged"


def test_a_note_of_any_flipped_bit_says_nothing_or_the_same(tmp_path):
    note, content = tmp_path / "a.json", {"tables": ["itm-0123456789abcdef"], "name": "é"}
    write_note(note, content)
    intact = note.read_bytes()
    assert read_note(note, "tables", "name") == content
    for bit in range(8 * len(intact)):
        changed = bytearray(intact)
        changed[bit // 8] ^= 1 << bit % 8
        note.write_bytes(changed)
        with contextlib.suppress(Damaged):
            said = read_note(note, "tables")
            assert {key: said[key] for key in content} == content
    note.write_bytes(canonical_json(content))
    assert read_note(note, "tables") == content, "notes of before have no digest"
    with pytest.raises(Damaged):
        read_note(note, "kind")


def test_a_damaged_note_of_use_guards_every_table_while_its_process_lives(tmp_path):
    table = make_table(tmp_path / "cache", "arrow")
    cache = Cache.open(tmp_path / "cache")
    with cache.lease("reader", [tmp_path / "another"]):
        (note,) = (tmp_path / "cache" / "leases").glob("*.json")
        note.write_bytes(b"{")
        with pytest.raises(UserError, match=rf"{table.dir.name}: in use by somebody"):
            cache.trash(table)
        (found,) = check_cache(cache)
        assert (found.table, found.shard) == ("leases", note.name)
        assert not note.exists()
    for content in (b"[]", b"{}", b'{"tables": 3}', b"\xff"):
        (tmp_path / "cache" / "leases" / f"0123456789ab-77-{len(content)}.json").write_bytes(content)
    (old := tmp_path / "cache" / "leases" / "0123456789ab-78-x.json").write_bytes(b"{")
    os.utime(old, (0, 0))
    cache.leased()
    assert not old.exists(), "nobody renews it"


def test_a_note_of_use_that_cannot_be_read_for_the_moment_guards_every_table(tmp_path, monkeypatch):
    table = make_table(tmp_path / "cache", "arrow")
    cache = Cache.open(tmp_path / "cache")

    def refused(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with cache.lease("run", [table]), monkeypatch.context() as patch:
        patch.setattr("hoi_distill.storage.cache.read_note", refused)
        with pytest.raises(UserError, match=rf"{table.dir.name}: in use by somebody"):
            cache.trash(table)


def test_a_folder_of_notes_that_cannot_be_listed_is_not_an_empty_one(tmp_path, monkeypatch):
    table = make_table(tmp_path / "cache", "arrow")
    cache = Cache.open(tmp_path / "cache")
    (tmp_path / "cache" / "registered").mkdir()
    real = os.listdir

    def refused(folder: str) -> list[str]:
        if Path(folder).name in ("leases", "registered"):
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return real(folder)

    monkeypatch.setattr(os, "listdir", refused)
    with pytest.raises(StorageError, match="leases: Permission denied; make it readable"):
        cache.trash(table)
    with pytest.raises(StorageError, match="registered: Permission denied; make it readable"):
        collect(cache, move=True, grace_seconds=0, forget=())
    assert [found.outcome for found in check_cache(cache)] == ["not checked", "not checked"]
    assert table.dir.exists()


@pytest.mark.parametrize("kind", ["arrow", "lmdb"])
@pytest.mark.parametrize(
    "reader", ["hoi_distill.storage.check.verify_shard", "hoi_distill.storage.table_folder.load_record"]
)
def test_an_io_error_that_passes_moves_nothing_aside(root, monkeypatch, kind, reader):
    table, rows = make_table(root, kind), row_ids(30)
    made = write(table, rows)
    module, _, name = reader.rpartition(".")
    real = getattr(importlib.import_module(module), name)
    failed = []

    def once(*arguments: object) -> object:
        if not failed:
            failed.append(arguments)
            with damage("it"):
                raise OSError(errno.EIO, "Input/output error")
        return real(*arguments)

    monkeypatch.setattr(reader, once)
    assert check_table(Table(table.dir)) == []
    assert failed
    assert stored(made.payload).exists()
    assert Table(table.dir).state(CellSelection(rows, COLUMNS)).filled.all()


def test_a_note_of_use_that_was_lost_is_left_again(root, monkeypatch):
    monkeypatch.setattr("hoi_distill.storage.cache.LEASE_SECONDS", 0.2)
    table = make_table(root, "arrow")
    cache = Cache.open(root)
    with cache.lease("run", [table]):
        (note,) = notes_in(cache.root / "leases")
        stored(note).unlink()
        for _ in range(200):
            if table.dir.name in cache.leased():
                break
            time.sleep(0.02)
        else:
            raise AssertionError("it was not")
    assert cache.leased() == {}


def test_a_read_only_cache_is_checked_and_only_looked_at(tmp_path):
    script = (
        PREAMBLE
        + """
from hoi_distill.storage.check import check_cache
table = make_table(mount / "cache", "arrow")
good, bad = write(table, row_ids(5), offset=3), write(table, row_ids(9, start=20))
flip(Path(bad.payload), 300)
other = make_table(mount / "cache", "lmdb")
flip(other.dir / "commits" / write(other, row_ids(4)).name, -1)
(mount / "cache" / "leases" / "0123456789ab-77-x.json").write_bytes(b"{")
third = Cache.open(mount / "cache").table("third", {}, {}, pa.int8())
(third.dir / "table.json").write_bytes(b"")
subprocess.run(["mount", "-o", "remount,ro", str(mount)], check=True)
cache = Cache.open(mount / "cache")
assert not cache.is_writable()
for _ in range(2):
    lines = [found.line() for found in check_cache(cache)]
    assert len(lines) == 4, lines
    assert all(line.endswith("left where it is, for the cache cannot be written here") for line in lines), lines
assert holds(cache.tables()[0], row_ids(5), offset=3)
assert cache.find("third", {}, {}, pa.int8()).records() == []
"""
    )
    mounted(tmp_path / "disk", "-o size=8m", script)


@pytest.mark.parametrize("codec", ["fp16", "bf16", "int8"])
def test_a_column_without_a_value_and_a_question_of_no_rows_are_as_good_as_any(tmp_path, codec):
    rows = row_ids(3)
    table = Cache.open(tmp_path).table("maps", {}, {"format": "lmdb", "shape": [2, 3], "codec": codec}, None)
    valid = np.array([[True, False], [True, False], [False, False]])
    values = {"old": np.ones((3, 2, 3), np.float32), "new": np.ones((3, 2, 3), np.float32)}
    made = table.commit(CellBlock(rows, ("old", "new"), valid, {(2, 1): "broken image"}), values)
    assert made.cells == 2
    assert (table.read(CellSelection(rows[:2], ("old",)))["old"] == 1).all()
    assert table.read(CellSelection(rows[:0], ("old", "new")))["new"].shape == (0, 2, 3)
    assert table.value_digests(CellSelection(rows[:0], ("old",))).shape == (0, 1)
    arrow = make_table(tmp_path, "arrow")
    for _ in range(2):  # before and after there is anything
        assert arrow.read(CellSelection(rows[:0], COLUMNS))["a"].equals(pa.array([], pa.list_(pa.int64())))
        assert arrow.state(CellSelection(rows[:0], COLUMNS)).counts()["empty"] == 0
        assert arrow.failures(CellSelection(rows[:0], COLUMNS)) == {}
        write(arrow, rows)
    nothing = arrow.read(CellSelection(rows, COLUMNS, wanted=np.zeros((3, 2), bool)))
    assert nothing["a"].null_count == 3
    assert json.loads((arrow.dir / "table.json").read_bytes())["name"] == "cells"


def test_a_tag_of_another_namespace_is_never_taken_for_a_dead_one_of_this(monkeypatch):
    mine = owner.tag()
    owner._host.cache_clear()
    monkeypatch.setattr(
        "hoi_distill.storage.files.owner.os.readlink", lambda path: "pid:[1]"
    )  # another container of the same name
    try:
        assert owner.tag() != mine
        assert not owner.is_dead(f"{mine}-x", 60.0)
        assert not owner.is_dead(f"{mine}-x", 1e9, stale_seconds=float("inf"))
    finally:
        owner._host.cache_clear()


def test_the_line_about_damage_crosses_processes():
    error = pickle.loads(pickle.dumps(Damaged("shard x", "its bytes differ")))
    assert str(error) == "shard x: its bytes differ; `hoi-distill check` sets it aside"
    assert error.reason == "its bytes differ"
