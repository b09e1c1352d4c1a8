"""A folder that one machine shares through an object store is the same on every other one."""

from __future__ import annotations

from pathlib import Path

import pytest

from hoi_distill.storage.errors import StorageError
from hoi_distill.storage.files.address import ObjectPath
from hoi_distill.storage.files.object_store import OBJECTS
from hoi_distill.storage.shared_folder import is_shared, on_this_machine, share
from tests.fixtures.object_stores import use

pytestmark = pytest.mark.slow


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
    use(monkeypatch, endpoint, tmp_path / "second machine")
    share(folder_of(tmp_path / "second", config=b"second", more=b"more"), place)
    assert files_in(on_this_machine(place)) == first
    assert on_this_machine(place) == on_this_machine(place)


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
