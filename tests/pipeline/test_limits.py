"""A run names what its time went to.

Each slow thing is made slow by construction: near the end of the run it takes four times what everything took until then, so
that a loaded machine changes nothing.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from hoi_distill.pipeline.filling.limits import ADVICE, limit_of, limits
from hoi_distill.pipeline.filling.run import choose_executor, fill
from hoi_distill.workers import timings
from hoi_distill.workers.timings import ANSWERS, ON_CPU, PREPARING, READING, WRITING, Lane, split_wait
from tests.fixtures import toy_stages
from tests.fixtures.chat_server import ChatServer, Reply, completion
from tests.fixtures.toy_stages import Album


@pytest.fixture
def album(tmp_path: Path, monkeypatch) -> Album:
    from hoi_distill.pipeline.graph import registry

    for name, path in toy_stages.TOYS.items():
        monkeypatch.setitem(registry.STAGES, name, path)
    return Album(tmp_path, images=9, batch_size=3)


class Slow:
    """Takes four times as long as the run has lasted, and 2 s at least, when it is asked for the ``last`` time."""

    def __init__(self, last: int) -> None:
        self.last, self.asked, self.began = last, 0, time.monotonic()
        self._lock = threading.Lock()

    def seconds(self) -> float:
        with self._lock:
            self.asked += 1
            return max(2.0, 4 * (time.monotonic() - self.began)) if self.asked == self.last else 0.0

    def __call__(self) -> None:
        time.sleep(self.seconds())


def limited(album: Album, workspace=None) -> tuple[str | None, list[str]]:
    """What limits a run, and what its summary says."""
    with choose_executor("inline", "cpu", 1) as execute:
        summary = fill(workspace or album.workspace(), execute, threading.Event())
    return limit_of(summary.timings), limits(summary.timings, 0)


def test_a_slow_teacher_on_the_cpu(album, monkeypatch):
    workspace, slow, compute = album.workspace(), Slow(3), toy_stages.Scores.compute
    monkeypatch.setattr(toy_stages.Scores, "compute", lambda self, *given: (slow(), compute(self, *given))[1])
    most, said = limited(album, workspace)
    assert most == ON_CPU
    assert said[1].strip() == ADVICE[ON_CPU]


def test_a_slow_disk(album, monkeypatch):
    workspace, slow, read = album.workspace(), Slow(9), Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        if path.suffix == ".png":
            slow()
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    most, said = limited(album, workspace)
    assert slow.asked == 9
    assert most == READING
    assert said[0].startswith(f"Time of the workers: {READING}")


def test_slow_preprocessing(album, monkeypatch):
    workspace, slow = album.workspace(), Slow(5)
    monkeypatch.setattr(toy_stages.Scores, "prepare", lambda self, image: (slow(), image)[1])
    assert limited(album, workspace)[0] == PREPARING


@pytest.mark.slow
def test_a_slow_server(album):
    import openai  # noqa: F401 - so that importing it is no part of the run

    slow = Slow(9)
    with ChatServer(lambda *_: Reply(completion("x"), after=slow.seconds())) as server:
        album.config["tables"] = {
            "captions": {
                "stage": "served_answers",
                "base_url": server.url,
                "model": "tiny",
                "columns": ["what is there"],
            }
        }
        album.write()
        most, said = limited(album)
    assert most == ANSWERS
    assert said[1].strip() == ADVICE[ANSWERS]


def test_a_slow_disk_of_the_cache(album, monkeypatch):
    from hoi_distill.storage.table import Table

    workspace, slow, commit = album.workspace(), Slow(3), Table.commit
    monkeypatch.setattr(Table, "commit", lambda self, *given, **more: (slow(), commit(self, *given, **more))[1])
    assert limited(album, workspace)[0] == WRITING


def test_the_commit_records_hold_it_too(album):
    workspace = album.workspace()
    limited(album, workspace)
    table = next(table for table in workspace.cache.tables() if table.record["stage"] == "scores")
    assert ON_CPU in table.records()[0].header["provenance"]["timings"]


def test_everything_that_takes_time_has_its_advice():
    names = {value for name, value in vars(timings).items() if name.isupper() and isinstance(value, str)}
    assert names == set(ADVICE)


def test_a_run_of_no_time_is_limited_by_nothing():
    assert limits({}) == []
    assert limits({ON_CPU: 0.3}) == []
    assert limits({ON_CPU: 3.0, READING: 1.0})[0] == f"Time of the workers: {ON_CPU} 75%, {READING} 25%."


def test_a_wait_is_split_as_the_reader_threads_were():
    assert split_wait(8.0, 1.0, 3.0) == {READING: 2.0, PREPARING: 6.0}
    assert split_wait(8.0, 0.0, 0.0) == {READING: 8.0, PREPARING: 0.0}


def test_writing_counts_only_while_nothing_computes(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(timings.time, "perf_counter", lambda: now[0])
    lane = Lane()
    idle = lane.idle()
    now[0] = 2.0
    with lane:
        now[0] = 7.0
        assert lane.idle() - idle == 2.0
    now[0] = 8.0
    assert lane.idle() - idle == 3.0
