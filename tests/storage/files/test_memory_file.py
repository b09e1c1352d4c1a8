"""The memory of digests can be lost at any time and stops nobody; what it says was said by it."""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hoi_distill.storage.digests import digest_bytes
from hoi_distill.storage.file_digests import DigestMemory
from hoi_distill.storage.files.memory_file import MemoryFile
from tests.fixtures.small_tables import PREAMBLE, mounted


@pytest.fixture
def image(tmp_path) -> Path:
    path = tmp_path / "pictures" / "a.jpg"
    path.parent.mkdir()
    path.write_bytes(b"picture")
    time.sleep(0.03)  # a file of this very instant is not trusted to keep its stamp
    return path


def known(memory: DigestMemory, image: Path) -> int:
    with memory._connect() as file:
        return len(file.segments(str(image.parent)))


def right(memory: DigestMemory, image: Path) -> bool:
    return memory.digests([image])[0].tobytes() == digest_bytes(image.read_bytes())


DAMAGES = {
    "text": lambda path: path.write_bytes(b"not a database" * 100),
    "head": lambda path: path.write_bytes(b"\xff" * 50 + path.read_bytes()[50:]),
    "cut": lambda path: os.truncate(path, 5000),
    "page": lambda path: path.write_bytes(path.read_bytes()[:4096] + os.urandom(8192) + path.read_bytes()[12288:]),
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "loop": lambda path: (path.unlink(), path.symlink_to(path)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_memory_is_set_aside_in_one_line_and_digests_are_taken_afresh(tmp_path, image, caplog, damage):
    memory = DigestMemory(tmp_path / "digests.sqlite")
    assert right(memory, image)
    memory.derived(image, "tensors", lambda: "a")
    DAMAGES[damage](memory.path)
    with caplog.at_level(logging.WARNING):
        assert right(memory, image)
        assert memory.derived(image, "tensors", lambda: "b") == "b"
    (line,) = caplog.messages
    assert "set aside as digests.sqlite.bad, digests are taken afresh" in line
    assert (tmp_path / "digests.sqlite.bad").is_symlink() or (tmp_path / "digests.sqlite.bad").exists()
    assert known(memory, image) == 1


def test_no_flipped_bit_of_the_memory_makes_another_digest(tmp_path, image):
    """A wrong digest would name another row, or another teacher, for good."""
    memory = DigestMemory(tmp_path / "digests.sqlite")
    memory.digests([image])
    memory.derived(image, "tensors", lambda: "a")
    intact = memory.path.read_bytes()
    places = [
        intact.index(digest_bytes(b"picture")),
        intact.index(b"a.jpg"),
        *np.random.default_rng(0).integers(0, len(intact), 40).tolist(),
    ]
    for place in places:
        changed = bytearray(intact)
        changed[place] ^= 4
        memory.path.write_bytes(changed)
        assert right(memory, image)
        assert memory.derived(image, "tensors", lambda: "a") == "a"


def test_a_memory_of_before_is_made_anew(tmp_path, image, caplog):
    path = tmp_path / "digests.sqlite"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE segment (id INTEGER PRIMARY KEY, folder TEXT NOT NULL, names BLOB, entries BLOB)")
    connection.execute("CREATE TABLE derived (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
    connection.execute("INSERT INTO derived VALUES ('k', 'v')")
    connection.close()
    assert right(DigestMemory(path), image)
    assert known(DigestMemory(path), image) == 1
    assert caplog.messages == []
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    assert {name for (name,) in connection.execute("SELECT name FROM sqlite_master")} >= {"stamped", "followed"}
    connection.close()
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "digests.sqlite",
        "digests.sqlite-journal",
        "pictures",
    ] or [file.name for file in sorted(tmp_path.iterdir())] == ["digests.sqlite", "pictures"]


def test_names_that_are_no_text_are_remembered(tmp_path):
    folder = os.fsencode(tmp_path) + b"/Stra\xdfe"
    os.mkdir(folder)
    with open(folder + b"/K\xf6ln.jpg", "wb") as file:
        file.write(b"x")
    time.sleep(0.03)
    memory, path = DigestMemory(tmp_path / "digests.sqlite"), os.fsdecode(folder + b"/K\xf6ln.jpg")
    for _ in range(2):
        assert memory.digests([path])[0].tobytes() == digest_bytes(b"x")
    with memory._connect() as file:
        assert len(file.segments(os.fsdecode(folder))) == 1


def test_a_locked_memory_costs_patience_and_no_digest(tmp_path, image, monkeypatch, caplog):
    monkeypatch.setattr("hoi_distill.storage.files.memory_file._PATIENCE", 0.05)
    memory = DigestMemory(tmp_path / "digests.sqlite")
    holder = sqlite3.connect(memory.path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    assert right(memory, image)
    assert "database is locked: digests are not remembered" in caplog.messages[0]
    holder.close()
    assert right(memory, image)
    assert known(memory, image) == 1


def test_a_full_disk_is_called_a_full_disk_and_digests_are_right_all_the_same(tmp_path):
    script = (
        PREAMBLE
        + """
import logging, time
from hoi_distill.storage.file_digests import DigestMemory
logging.basicConfig(stream=sys.stdout, format="%(message)s")
memory, images = DigestMemory(mount / "digests.sqlite"), mount / "images"
images.mkdir()
paths = [images / f"{i:0200d}.jpg" for i in range(300)]
for path in paths:
    path.write_bytes(path.name.encode())
time.sleep(0.03)
memory.digests(paths[:1])
(mount / "filler").write_bytes(bytes(os.statvfs(mount).f_bavail * 4096 - 4096))
found = memory.digests(paths)
assert [digest.tobytes() for digest in found] == [digest_bytes(path.name.encode()) for path in paths]
(mount / "filler").unlink()
memory.digests(paths)
with memory._connect() as file:
    assert len(file.segments(str(images))) == 2, "nothing was lost by it"
"""
    )
    said = mounted(tmp_path / "disk", "-o size=4m", script)
    assert "digests.sqlite: database or disk is full: digests are not remembered; free some space" in said
    assert said.count("\n") == 2


def test_a_read_only_memory_is_used_and_not_written(tmp_path):
    script = (
        PREAMBLE
        + """
import time
from hoi_distill.storage import file_digests
from hoi_distill.storage.file_digests import DigestMemory
memory, image = DigestMemory(mount / "digests.sqlite"), mount / "a.jpg"
image.write_bytes(b"x")
time.sleep(0.03)
memory.digests([image])
subprocess.run(["mount", "-o", "remount,ro", str(mount)], check=True)
real, file_digests.hashed = file_digests.hashed, None
assert memory.digests([image])[0].tobytes() == digest_bytes(b"x")  # not read again
file_digests.hashed = real
assert memory.derived(image, "tensors", lambda: "a") == "a"
assert memory.digests([__file__ if "__file__" in globals() else sys.executable])[0].tobytes() != bytes(16)
"""
    )
    mounted(tmp_path / "disk", "-o size=4m", script)


def test_a_rivals_new_memory_is_not_set_aside_for_the_old_ones_sake(tmp_path, image):
    path = tmp_path / "digests.sqlite"
    DigestMemory(path).digests([image])
    os.truncate(path, 5000)
    first, second = MemoryFile(path), MemoryFile(path)
    with first, second:
        first.segments(str(image.parent))
        first.add(str(image.parent), b"a.jpg", bytes(48))
        second.segments(str(image.parent))
    with MemoryFile(path) as file:
        assert len(file.segments(str(image.parent))) == 1


def test_many_processes_add_to_one_memory_and_none_of_it_is_lost(tmp_path):
    script = """
import sys
from pathlib import Path
from hoi_distill.storage.files.memory_file import MemoryFile
for number in range(10):
    with MemoryFile(Path(sys.argv[1])) as file:
        file.add("folder", f"{sys.argv[2]}-{number}".encode(), bytes(48))
"""
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", script, str(tmp_path / "digests.sqlite")]
    writers = [subprocess.Popen([*command, str(number)], cwd=root) for number in range(4)]
    assert [writer.wait() for writer in writers] == [0] * 4
    with MemoryFile(tmp_path / "digests.sqlite") as file:
        names = {name for names, _ in file.segments("folder") for name in names.split(b"\0")}
    assert len(names) == 40
