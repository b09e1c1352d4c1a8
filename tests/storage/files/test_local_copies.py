"""Copies of objects on this machine's disk: fetched once, kept while there is room, fetched again where they have changed."""

from __future__ import annotations

import mmap
import os
import threading
from pathlib import Path

import pytest

from hoi_distill.storage.errors import UserError
from hoi_distill.storage.files import local_copies
from hoi_distill.storage.files.local_copies import LocalCopies, copies


class Source:
    """Gives each name its bytes, and counts."""

    def __init__(self, size: int = 100) -> None:
        self.size, self.fetched = size, []

    def of(self, name: str):
        def fetch(draft: Path) -> None:
            self.fetched.append(name)
            draft.write_bytes(name[-1:].encode() * self.size)

        return fetch


@pytest.fixture
def source(monkeypatch) -> Source:
    monkeypatch.setattr(local_copies, "_IN_USE_SECONDS", -1.0)
    return Source()


def used_in_order(kept: LocalCopies, *names: str) -> None:
    for second, name in enumerate(names):
        os.utime(kept.folder / f"{name}.seal", (second, second))


def test_a_copy_is_fetched_once_for_all_who_want_it_at_once(tmp_path, source):
    found, gate = [], threading.Barrier(8)

    def want() -> None:
        gate.wait()
        found.append(LocalCopies(tmp_path, 1000).get("cache/shards/a", source.of("a")).read_bytes())

    threads = [threading.Thread(target=want) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [b"a" * 100] * 8
    assert source.fetched == ["a"]


def test_copies_stay_within_their_room_and_those_used_longest_ago_go(tmp_path, source):
    kept = LocalCopies(tmp_path, 350)
    for name in "abc":
        kept.get(name, source.of(name))
    used_in_order(kept, "b", "c", "a")
    kept.get("d", source.of("d"))
    assert sorted(path.name for path in tmp_path.iterdir() if len(path.name) == 1) == ["a", "c", "d"]
    assert kept.get("a", source.of("a")).read_bytes() == b"a" * 100
    assert source.fetched == ["a", "b", "c", "d"]


def test_another_process_that_counts_from_the_disk_keeps_the_room_too(tmp_path, source):
    for name in "abcdefgh":
        LocalCopies(tmp_path, 350).get(name, source.of(name))
        used_in_order(LocalCopies(tmp_path, 350), *(n for n in "abcdefgh" if (tmp_path / f"{n}.seal").exists()))
        assert sum(path.stat().st_size for path in tmp_path.iterdir() if len(path.name) == 1) <= 350


def test_whoever_has_a_copy_mapped_keeps_it_when_it_goes(tmp_path, source):
    kept = LocalCopies(tmp_path, 150)
    with open(kept.get("a", source.of("a")), "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    kept.get("b", source.of("b"))
    assert not (tmp_path / "a").exists()
    assert mapped[:] == b"a" * 100


def test_a_copy_that_was_changed_or_removed_is_fetched_again(tmp_path, source):
    kept = LocalCopies(tmp_path, 1000)
    path = kept.get("a", source.of("a"))
    path.write_bytes(b"x" * 100)
    assert kept.get("a", source.of("a")).read_bytes() == b"a" * 100
    path.unlink()
    assert kept.get("a", source.of("a")).read_bytes() == b"a" * 100
    assert source.fetched == ["a"] * 3


def test_a_fetch_that_fails_leaves_nothing_and_the_next_one_tries_again(tmp_path, source):
    kept = LocalCopies(tmp_path, 1000)

    def cut(draft: Path) -> None:
        draft.write_bytes(b"half")
        raise ConnectionError

    with pytest.raises(ConnectionError):
        kept.get("a", cut)
    assert list((tmp_path / "drafts").iterdir()) == []
    assert kept.get("a", source.of("a")).read_bytes() == b"a" * 100


def test_the_room_is_said_by_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("HOI_DISTILL_DISK", str(tmp_path / "fast"))
    monkeypatch.setenv("HOI_DISTILL_DISK_GB", "1.5")
    assert (copies().folder, copies().room) == (tmp_path / "fast", 1_500_000_000)
    monkeypatch.setenv("HOI_DISTILL_DISK_GB", "much")
    with pytest.raises(UserError, match="HOI_DISTILL_DISK_GB=much: not a number"):
        copies()
