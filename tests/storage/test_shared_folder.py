"""A folder that one machine shares through an object store is the same on every other one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hoi_distill.storage.errors import StorageError
from hoi_distill.storage.files.address import ObjectPath
from hoi_distill.storage.files.object_store import OBJECTS
from hoi_distill.storage.shared_folder import is_shared, on_this_machine, share
from tests.fixtures.object_stores import use

pytestmark = pytest.mark.slow
SECONDS = 120.0  # for what takes a few, on a busy machine


@pytest.fixture
def place(bucket_of) -> ObjectPath:
    return ObjectPath(f"{bucket_of}/trained/teacher/checkpoint")


def folder_of(path: Path, **files: bytes) -> Path:
    path.mkdir()
    for name, data in files.items():
        (path / name).write_bytes(data)
    return path


def files_in(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_another_machine_has_the_files_of_whoever_shared_first(place, endpoint, tmp_path, monkeypatch):
    first = {"config": b"first", "weights": b"\1" * 100_000, "empty": b""}
    assert not is_shared(place)
    share(folder_of(tmp_path / "first", **first), place)
    assert is_shared(place)
    there = sorted(OBJECTS.names(place))
    use(monkeypatch, endpoint, tmp_path / "second machine")
    share(folder_of(tmp_path / "second", config=b"second", more=b"more"), place)
    assert sorted(OBJECTS.names(place)) == there
    assert files_in(on_this_machine(place)) == first
    assert on_this_machine(place) == on_this_machine(place)


def test_processes_of_one_machine_have_one_copy_that_none_of_them_replaces(place, endpoint, tmp_path, monkeypatch):
    files = {f"file {number}": bytes([number]) * 2_000_000 for number in range(8)}
    share(folder_of(tmp_path / "folder", **files), place)
    use(monkeypatch, endpoint, tmp_path / "second machine")
    program = """
import sys
from hoi_distill.storage.files.address import ObjectPath
from hoi_distill.storage.shared_folder import on_this_machine
print("ready", flush=True)
sys.stdin.readline()
folder = on_this_machine(ObjectPath(sys.argv[1]))
print(folder.stat().st_ino, sorted(file.stat().st_size for file in folder.iterdir()))
"""
    command = [sys.executable, "-c", program, str(place)]
    several = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for process in several:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in several:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = {process.communicate(timeout=SECONDS)[0] for process in several}
    assert said == {f"{on_this_machine(place).stat().st_ino} {[2_000_000] * 8}\n"}


def test_a_folder_on_a_disk_is_itself(tmp_path):
    assert on_this_machine(tmp_path) == tmp_path


def test_what_is_not_there_or_not_whole_is_one_line_and_leaves_nothing(place, endpoint, tmp_path, monkeypatch):
    with pytest.raises(StorageError, match=r"teacher/checkpoint: not whole; remove what is left of it and run again"):
        on_this_machine(place)
    share(folder_of(tmp_path / "folder", config=b"config", weights=b"weights"), place)
    gone = max(name for name in OBJECTS.names(place) if name.startswith("file-"))
    OBJECTS.delete(place / gone)
    use(monkeypatch, endpoint, tmp_path / "second machine")
    for _ in range(2):
        with pytest.raises(StorageError, match=r"teacher/checkpoint: not whole"):
            on_this_machine(place)
