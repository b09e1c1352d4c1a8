"""Digests: equal content, equal name; anything else, another."""

from __future__ import annotations

import os
import threading
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from hoi_distill.storage.digests import (
    arrow_digests,
    canonical_json,
    combine64,
    content_name,
    content_name_of,
    digest_bytes,
    fingerprint,
)
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.file_digests import DigestMemory
from hoi_distill.storage.files.stamps import stamp_of


def test_a_fingerprint_does_not_depend_on_the_order_of_keys():
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": float("nan")})


def test_combining_depends_on_order_and_broadcasts():
    a, b = np.arange(1000, dtype=np.uint64), np.arange(1000, 2000, dtype=np.uint64)
    assert len(np.unique(combine64(a, b))) == 1000
    assert (combine64(a, b) != combine64(b, a)).all()
    assert combine64(a[:, None], b[None, :3]).shape == (1000, 3)
    assert (combine64(a) != combine64(a, 0)).all()


NESTED = pa.struct([("n", pa.list_(pa.int16())), ("box", pa.list_(pa.float32(), 2)), ("text", pa.string())])
CELLS = [
    {"n": [1, 2], "box": [0.0, 1.0], "text": "a"},
    {"n": [2, 1], "box": [0.0, 1.0], "text": "a"},
    {"n": [1], "box": [0.0, 1.0], "text": "a"},
    {"n": [1, 2, 0], "box": [0.0, 1.0], "text": "a"},
    {"n": [], "box": [1.0, 0.0], "text": "a"},
    {"n": None, "box": [1.0, 0.0], "text": "a"},
    {"n": [], "box": [1.0, 0.0], "text": ""},
    {"n": [], "box": [1.0, 0.0], "text": None},
    {"n": [], "box": None, "text": "a"},
    None,
]


def test_every_difference_in_a_nested_cell_shows_and_its_place_in_the_array_does_not():
    digests = arrow_digests(pa.array(CELLS, NESTED))
    assert len(set(digests.tolist())) == len(CELLS)
    for first in range(len(CELLS)):
        assert (arrow_digests(pa.array(CELLS, NESTED).slice(first, 3)) == digests[first : first + 3]).all()
    order = np.random.default_rng(0).permutation(len(CELLS))
    assert (arrow_digests(pa.array([CELLS[i] for i in order], NESTED)) == digests[order]).all()


@pytest.mark.parametrize("kind", [pa.bool_(), pa.int8(), pa.float16(), pa.float64(), pa.large_string(), pa.binary(3)])
def test_flat_cells_of_every_width_have_digests(kind):
    cells = {pa.bool_(): [True, False], pa.binary(3): [b"abc", b"abd"], pa.large_string(): ["a", "b"]}.get(kind, [1, 2])
    if kind == pa.float16():
        cells = [np.float16(1), np.float16(2)]
    digests = arrow_digests(pa.array([*cells, None, cells[0]], kind))
    assert digests[0] == digests[3]
    assert len(set(digests.tolist())) == 3


@pytest.fixture
def files(tmp_path):
    paths = []
    for index in range(40):
        path = tmp_path / f"folder {index % 3}" / f"{index}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"picture %d" % index)
        paths.append(str(path))
    time.sleep(0.03)  # a file of this very instant is not trusted to keep its stamp
    return paths


def test_remembered_files_are_not_read_again_and_changed_ones_are(tmp_path, files, monkeypatch):
    memory = DigestMemory(tmp_path / "digests.sqlite")
    first = memory.digests(files)
    assert [digest.tobytes() for digest in first] == [digest_bytes(Path(path).read_bytes()) for path in files]
    time.sleep(0.03)
    memory.digests(files)
    monkeypatch.setattr("hoi_distill.storage.file_digests.hashed", None)
    assert (DigestMemory(memory.path).digests(files) == first).all()
    monkeypatch.undo()
    stamp = os.stat(files[0])
    with open(files[0], "r+b") as file:  # other bytes, as many of them, and the time put back
        file.write(b"PICTURE")
    os.utime(files[0], ns=(stamp.st_mtime_ns, stamp.st_mtime_ns))
    assert memory.digests(files)[0].tobytes() == digest_bytes(b"PICTURE 0")
    with open(files[1], "wb") as file:
        file.write(b"another size")
    assert memory.digests(files)[1].tobytes() == digest_bytes(b"another size")
    assert (memory.digests(files)[2:] == first[2:]).all()


def test_a_file_just_written_is_not_trusted_to_stay(tmp_path, monkeypatch):
    memory, path = DigestMemory(tmp_path / "digests.sqlite"), tmp_path / "fresh"
    path.write_bytes(b"one")
    change = os.stat(path).st_ctime_ns
    monkeypatch.setattr(
        "hoi_distill.storage.hashed_files.time.time_ns", lambda: change + 1000
    )  # within one tick of the clock
    memory.digests([path])
    monkeypatch.undo()
    with memory._connect() as file:
        assert file.segments(str(tmp_path)) == []
    time.sleep(0.03)
    memory.digests([path])
    with memory._connect() as file:
        assert len(file.segments(str(tmp_path))) == 1


def test_a_missing_file_is_named_or_given_the_zero_digest(tmp_path, files):
    memory = DigestMemory(tmp_path / "digests.sqlite")
    paths = [files[0], str(tmp_path / "nowhere" / "x.jpg"), str(tmp_path)]
    with pytest.raises(UserError, match=r"nowhere/x.jpg: cannot be read: No such file.*and 1 more"):
        memory.digests(paths)
    digests = memory.digests(paths, missing="zero")
    assert digests[0].tobytes() != bytes(16)
    assert all(digest.tobytes() == bytes(16) for digest in digests[1:])


@pytest.mark.parametrize("some", [slice(None, None, -1), slice(3, None, 2), slice(None)])
def test_remembered_files_are_found_in_any_order_and_beside_absent_ones(tmp_path, files, monkeypatch, some):
    memory = DigestMemory(tmp_path / "digests.sqlite")
    first = memory.digests(files)
    monkeypatch.setattr("hoi_distill.storage.file_digests.hashed", lambda folder, i, _: OSError(2, folder.uri(i)))
    assert (memory.digests(files[some]) == first[some]).all()
    absent = [f"{os.path.dirname(path)}/absent {os.path.basename(path)}" for path in files[some]]
    both = memory.digests([*absent, *files[some]], missing="zero")
    assert (both[len(absent) :] == first[some]).all()
    assert all(digest.tobytes() == bytes(16) for digest in both[: len(absent)])


def test_files_are_remembered_where_inodes_have_all_64_bits(tmp_path, files, monkeypatch):
    def far(stamp: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
        return *stamp[:3], stamp[3] + 2**63

    memory = DigestMemory(tmp_path / "digests.sqlite")
    monkeypatch.setattr("hoi_distill.storage.hashed_files.stamp_of", lambda found: far(stamp_of(found)))
    first = memory.digests(files)
    monkeypatch.setattr("hoi_distill.storage.file_digests.hashed", None)
    assert (memory.digests(files) == first).all()


@pytest.mark.parametrize("waits", [True, False])
def test_a_slow_disk_is_asked_by_threads_and_a_quick_one_by_none_with_equal_stamps(tmp_path, files, monkeypatch, waits):
    asked = set()

    def noted(found: os.stat_result) -> tuple[int, int, int, int]:
        asked.add(threading.current_thread() is threading.main_thread())
        return stamp_of(found)

    memory = DigestMemory(tmp_path / "digests.sqlite")
    first = memory.digests(files)
    for name, value in {
        "_PROBE": 2,
        "_PART": 3,
        "_WAIT": 0 if waits else 3600,
        "_hash_on_disk": None,
        "stamp_of": noted,
    }.items():
        monkeypatch.setattr(f"hoi_distill.storage.hashed_files.{name}", value)
    assert (memory.digests(files) == first).all()
    assert asked == ({True, False} if waits else {True})


def test_many_small_runs_keep_a_folders_memory_packed(tmp_path, files):
    memory = DigestMemory(tmp_path / "digests.sqlite")
    expected = memory.digests(files)
    for _ in range(2):
        for path in files[::3]:
            os.utime(path, ns=(0, os.stat(path).st_mtime_ns + 1))
        time.sleep(0.03)
        for path in files[::3]:
            memory.digests([path])
    assert (memory.digests(files) == expected).all()
    with memory._connect() as file:
        assert all(1 <= len(file.segments(os.path.dirname(path))) <= 16 for path in files)


def _remember(paths: tuple[Path, Path]) -> bytes:
    memory, file = paths
    return DigestMemory(memory).digests([file])[0].tobytes()


def test_processes_that_make_the_memory_at_one_time_all_get_their_digests(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("x")
    with get_context("spawn").Pool(6) as pool:
        for number in range(25):  # without patience about three calls in a hundred find the new file locked
            found = pool.map(_remember, [(tmp_path / f"{number}.sqlite", file)] * 6, chunksize=1)
            assert len(set(found)) == 1


def test_a_content_name_is_the_one_that_is_stored():
    assert content_name(b"x") == digest_bytes(b"x").hex()
    assert content_name(b"x", 4) == "b1ba07e5"
    assert len(content_name(b"x", 64)) == 128


def test_parts_have_the_content_name_of_the_whole():
    numbers = np.arange(6, dtype=np.int32).reshape(2, 3)
    whole = b"ab" + numbers.tobytes()
    assert content_name_of((b"a", b"b", numbers.data), 6) == content_name(whole, 6)
    assert content_name_of(iter([whole])) == content_name(whole)
    assert content_name_of(()) == content_name(b"")
