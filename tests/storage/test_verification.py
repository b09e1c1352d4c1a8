"""No byte of a payload or a record is used before it was compared with its checksum."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from hoi_distill.storage import file_digests as digest_memory
from hoi_distill.storage.cache import Cache
from hoi_distill.storage.cell_block import CellBlock
from hoi_distill.storage.check import check_table
from hoi_distill.storage.digests import as_rows, digest_bytes
from hoi_distill.storage.errors import StorageError
from hoi_distill.storage.files import stamps
from hoi_distill.storage.records import load_record
from hoi_distill.storage.selection import CellSelection
from hoi_distill.storage.shards import payload as shards
from hoi_distill.storage.table import Table

ROOT = Path(__file__).parents[2]
FOUND = pa.struct([("boxes", pa.list_(pa.list_(pa.float32(), 4))), ("text", pa.string())])
ROWS = as_rows([digest_bytes(b"%d" % number) for number in range(40)])


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """Each test is a machine and a process of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(stamps, "_sound", {})


def another_process(monkeypatch):
    monkeypatch.setattr(stamps, "_sound", {})


def table_of(kind: str, root: Path, per_shard: int = 40) -> Table:
    """40 rows of one column ``value``."""
    if kind == "arrow":
        table = Cache.open(root).table("found", {}, {"format": "arrow"}, FOUND)
        cells = [{"boxes": [[0, 0, number, 1]] * (number % 3), "text": "x" * number} for number in range(40)]
        values = pa.array(cells, FOUND)
    else:
        output = {"format": "lmdb", "shape": [2, 50], "codec": "fp16"}
        table = Cache.open(root).table("maps", {}, output, None)
        values = np.arange(4000, dtype=np.float16).reshape(40, 2, 50)
    for start in range(0, 40, per_shard):
        part = slice(start, start + per_shard)
        table.commit(CellBlock(ROWS[part], ("value",), np.ones((per_shard, 1), bool)), {"value": values[part]})
    return table


def payload(table: Table) -> Path:
    (path,) = (table.dir / "shards").iterdir()
    return path


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize("kind", ["arrow", "lmdb"])
def test_a_payload_of_any_flipped_bit_is_refused_before_a_value_of_it_is_read(tmp_path, monkeypatch, kind):
    table = table_of(kind, tmp_path)
    path = payload(table)
    intact = path.read_bytes()
    for bit in np.random.default_rng(0).integers(0, 8 * len(intact), 60).tolist():
        path.write_bytes(flipped(intact, bit))
        another_process(monkeypatch)
        with pytest.raises(StorageError, match=rf"{path.name}: its bytes differ .*`hoi-distill check`"):
            table.read(CellSelection(ROWS[:3], ("value",)))
    path.write_bytes(intact)
    assert len(table.read(CellSelection(ROWS[:3], ("value",)))["value"]) == 3


@pytest.mark.parametrize("kind", ["arrow", "lmdb"])
def test_a_file_cut_short_and_stretched_to_its_size_is_refused(tmp_path, kind):
    """What a crash of the machine can leave: mapped, its end would be a SIGBUS or zeros."""
    table = table_of(kind, tmp_path)
    size = payload(table).stat().st_size
    os.truncate(payload(table), size // 2)
    assert table.state(CellSelection(ROWS, ("value",))).lost.all()
    os.truncate(payload(table), size)
    with pytest.raises(StorageError, match="its bytes differ"):
        table.read(CellSelection(ROWS, ("value",)))


@pytest.mark.parametrize("kind", ["arrow", "lmdb"])
def test_a_payload_that_changes_after_it_was_read_is_refused_at_its_next_read(tmp_path, kind):
    """Same size, modification time put back: the change time tells."""
    table = table_of(kind, tmp_path)
    before = table.read(CellSelection(ROWS[:3], ("value",)))["value"]
    assert len(before) == 3
    path = payload(table)
    found = path.stat()
    time.sleep(0.02)
    with open(path, "r+b") as file:
        file.seek(found.st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 255]))
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    with pytest.raises(StorageError, match="its bytes differ"):
        table.read(CellSelection(ROWS[:3], ("value",)))


def test_a_payload_is_hashed_once_a_process_and_many_of_them_once_a_machine(tmp_path, monkeypatch):
    hashed = []
    real = shards.verify_shard

    def counting(path):
        hashed.append(path)
        real(path)

    monkeypatch.setattr(shards, "verify_shard", counting)
    few, many = table_of("arrow", tmp_path / "a", 20), table_of("lmdb", tmp_path / "b", 2)
    time.sleep(0.03)  # a file of this very instant is not trusted to keep its stamp
    for _ in range(3):
        few.read(CellSelection(ROWS, ("value",)))
        many.read(CellSelection(ROWS, ("value",)))
    assert len(hashed) == len(set(hashed)) == 2
    another_process(monkeypatch)
    monkeypatch.setattr("hoi_distill.storage.file_digests.hashed", None)  # what the machine knows is not read again
    many.read(CellSelection(ROWS, ("value",)))
    few.read(CellSelection(ROWS, ("value",)))
    assert len(hashed) == 4


def test_one_bad_payload_among_many_is_named_and_the_others_are_not_read_again(tmp_path):
    table = table_of("arrow", tmp_path, 2)
    bad = sorted((table.dir / "shards").iterdir())[7]
    bad.write_bytes(flipped(bad.read_bytes(), 999))
    for _ in range(2):
        with pytest.raises(StorageError, match=rf"1 of \d+ shards hold other bytes.*{bad.name}.*hoi-distill check"):
            table.read(CellSelection(ROWS, ("value",)))
    (found,) = check_table(table)
    assert found.shard == bad.name
    assert int(table.state(CellSelection(ROWS, ("value",))).filled.sum()) == 38


def test_a_payload_that_cannot_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    table = table_of("arrow", tmp_path, 2)
    locked = sorted((table.dir / "shards").iterdir())[7]
    refusal = PermissionError(errno.EACCES, "Permission denied", str(locked))
    real = digest_memory.hashed

    def refused(path):
        assert path == str(locked)
        raise refusal

    def hashed(folder, i, derive):
        return refusal if folder.uri(i) == str(locked) else real(folder, i, derive)

    monkeypatch.setattr(digest_memory, "hashed", hashed)
    monkeypatch.setattr(shards, "verify_shard", refused)
    with pytest.raises(StorageError, match=rf"shard {locked}: Permission denied; make it readable and run again$"):
        table.read(CellSelection(ROWS, ("value",)))


def test_a_set_aside_payload_that_was_computed_again_is_read_from_the_new_file(tmp_path):
    table = table_of("lmdb", tmp_path)
    kept = table.read(CellSelection(ROWS, ("value",)))["value"]
    path = payload(table)
    intact = path.read_bytes()
    time.sleep(0.02)
    with open(path, "r+b") as file:
        file.seek(len(intact) - 200)
        file.write(b"\xff" * 100)
    assert len(check_table(Table(table.dir))) == 1
    again = table.commit(CellBlock(ROWS, ("value",), np.ones((40, 1), bool)), {"value": kept})
    assert again.created
    assert Path(again.payload).read_bytes() == intact
    np.testing.assert_array_equal(table.read(CellSelection(ROWS, ("value",)))["value"], kept)


def record_with_failures(root: Path) -> Path:
    table = Cache.open(root).table("numbers", {}, {"format": "arrow"}, pa.int64())
    valid = np.ones((5, 2), bool)
    valid[1, 0] = valid[3, 1] = False
    values = {column: pa.array(range(5)) for column in "ab"}
    failures = {(1, 0): "bad image", (3, 1): "zweiter Grund"}
    inputs = np.arange(10, dtype=np.uint64).reshape(5, 2)
    made = table.commit(CellBlock(ROWS[:5], ("a", "b"), valid, failures, inputs), values)
    return table.dir / "commits" / made.name


def contents(path: Path) -> tuple:
    record = load_record(path)
    values, inputs, reasons = record.cells()
    light = (record.row_ids, record.filled, record.failed, values, inputs)
    return record.header, record.columns, [part.tobytes() for part in light], reasons.to_pylist()


def test_a_record_of_any_flipped_bit_is_refused_or_says_the_same(tmp_path, monkeypatch):
    """Every seventh bit of a record with failures; in a process of its own, for what follows bad offsets may die."""
    path = record_with_failures(tmp_path)
    script = f"""
from pathlib import Path
from tests.storage.test_verification import contents, flipped
from hoi_distill.storage.errors import StorageError
path, refused = Path({str(path)!r}), 0
intact, expected = path.read_bytes(), contents(path)
for bit in range(0, 8 * len(intact), 7):
    changed = path.with_name(f"{{bit}}.commit")
    changed.write_bytes(flipped(intact, bit))
    try:
        assert contents(changed) == expected, bit
    except StorageError as error:
        assert str(changed) in str(error) and "\\n" not in str(error), error
        refused += 1
    changed.unlink()
print(refused)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert int(done.stdout) > 1000


def test_value_digests_and_reasons_are_compared_before_they_are_used(tmp_path):
    path = record_with_failures(tmp_path)
    table, intact = Table(path.parents[1]), path.read_bytes()
    cells = CellSelection(ROWS[:5], ("a", "b"))
    for needle, ask in (
        (table.value_digests(cells)[:1].tobytes(), table.value_digests),
        (b"zweiter Grund", table.failures),
        (np.arange(10, dtype="<u8").tobytes(), lambda cells: table.state(replace(cells, inputs=np.ones(5, np.uint64)))),
    ):
        time.sleep(0.02)  # so that each write moves the change time
        path.write_bytes(flipped(intact, 8 * intact.index(needle) + 9))
        with pytest.raises(StorageError, match=rf"commit record {path}: its bytes have changed.*hoi-distill check"):
            ask(cells)
        time.sleep(0.02)
        path.write_bytes(intact)


@pytest.mark.parametrize("contents", ["empty", "folder", "loop", "dangling", "text", "cut"])
def test_a_record_that_is_none_counts_as_none_and_check_keeps_it(tmp_path, contents):
    table = table_of("arrow", tmp_path)
    (record,) = (table.dir / "commits").iterdir()
    data = record.read_bytes()
    record.unlink()
    if contents == "folder":
        record.mkdir()
    elif contents in ("loop", "dangling"):
        record.symlink_to(record if contents == "loop" else tmp_path / "gone")
    else:
        record.write_bytes({"empty": b"", "text": b"a note\n", "cut": data[:-100]}[contents])
    assert not Table(table.dir).state(CellSelection(ROWS, ("value",))).filled.any()
    (found,) = check_table(Table(table.dir))
    assert found.shard == record.name
    assert (table.dir / "bad" / record.name).is_symlink() or (table.dir / "bad" / record.name).exists()
    assert payload(table).exists()
    assert check_table(Table(table.dir)) == []
