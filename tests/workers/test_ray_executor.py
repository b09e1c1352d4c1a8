"""The Ray executor on a real local Ray: same cells as in-process, errors surface, a stop is prompt, nothing is left."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from hoi_distill.storage.errors import UserError
from hoi_distill.workers.executors import inline
from hoi_distill.workers.executors.ray import RayExecutor, _quantity
from hoi_distill.workers.executors.ray_session import _unreadable
from hoi_distill.workers.task import Task, TaskReport, Workload
from tests.fixtures.toy_album import Colour, Double, Map, album, lines, replaced


@pytest.fixture(scope="module")
def executor() -> Iterator[RayExecutor]:
    with RayExecutor(2) as session:
        yield session


def run(executor: RayExecutor, tasks: list[Task]) -> list[TaskReport]:
    reports: list[TaskReport] = []
    executor.execute(Workload.of(tasks), report=reports.append, stop=threading.Event())
    return reports


def test_ray_and_inline_fill_identical_tables(executor: RayExecutor, tmp_path: Path) -> None:
    """Values, failures and what is left empty; a pass of two tables and one downstream of it."""
    found = []
    for name in ("inline", "ray"):
        made = album(tmp_path / name)
        replaced(made, 4, b"not a picture")
        colour, maps, double = Colour(fails=(made.digest(11),)), Map(), Double()
        waves = [
            made.tasks(made.part(colour), made.part(maps), size=6),
            made.tasks(made.part(double, above=colour), size=6),
        ]
        for wave in waves:
            if name == "ray":
                reports = run(executor, wave)
                assert sorted(report.task_id for report in reports) == sorted(task.task_id for task in wave)
            else:
                inline.execute(wave, report=lambda _: None, stop=threading.Event())
        found.append([(made.read(s), made.failures(s), made.empty(s).any()) for s in (colour, maps, double)])
    for (values, failures, empty), (other, other_failures, other_empty) in zip(*found, strict=True):
        assert failures == other_failures
        assert not empty
        assert not other_empty
        for column in values:
            assert np.array_equal(values[column], other[column], equal_nan=True)


def test_tasks_are_spread_over_the_workers(executor: RayExecutor, tmp_path: Path) -> None:
    made = album(tmp_path)
    colour = Colour(log=str(tmp_path / "log"), seconds=0.2)
    run(executor, made.tasks(made.part(colour), size=2))
    assert len({line["pid"] for line in lines(tmp_path / "log")}) == 2


def test_an_error_that_is_no_inputs_fault_surfaces_and_keeps_what_is_committed(
    executor: RayExecutor, tmp_path: Path
) -> None:
    made = album(tmp_path)
    good, bad = Colour(), Colour(version=2, raises="no memory left")
    tasks = [*made.tasks(made.part(good), size=2), *made.tasks(made.part(bad), size=10)]
    reports: list[TaskReport] = []
    with pytest.raises(MemoryError, match="no memory left") as error:
        executor.execute(Workload.of(tasks), report=reports.append, stop=threading.Event())
    assert "toy_album.py" in "".join(error.value.__notes__)
    assert len(reports) >= 7
    assert int((~made.empty(good)).sum()) == 6 * len(reports)
    assert made.empty(bad).all()


def test_too_many_failures_stop_a_ray_run(executor: RayExecutor, tmp_path: Path) -> None:
    made = album(tmp_path, 60)
    for index in range(60):
        replaced(made, index, f"garbage {index}".encode())
    with pytest.raises(UserError, match="rows in a row failed"):
        run(executor, made.tasks(made.part(Colour()), size=10))


def test_a_stop_commits_what_computes_and_starts_nothing_new(executor: RayExecutor, tmp_path: Path) -> None:
    made = album(tmp_path, 40)
    colour, stop, reports = Colour(seconds=0.3), threading.Event(), []

    def report(done: TaskReport) -> None:
        reports.append(done)
        stop.set()

    executor.execute(Workload.of(made.tasks(made.part(colour), size=4)), report=report, stop=stop)
    assert 1 <= len(reports) <= 4  # what two workers computed and wrote
    assert int((~made.empty(colour)).sum()) == 3 * sum(done.row_count for done in reports)


@pytest.mark.slow
def test_our_ray_wants_a_token_that_others_cannot_read(executor: RayExecutor) -> None:
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert os.environ["RAY_AUTH_MODE"] == "token"
    import ray

    stranger = subprocess.run(
        [sys.executable, "-c", f"import ray; ray.init(address={ray.get_runtime_context().gcs_address!r})"],
        env={**os.environ, "RAY_AUTH_TOKEN_PATH": "", "RAY_AUTH_TOKEN": "0" * 64},
        capture_output=True,
        text=True,
    )
    assert stranger.returncode != 0
    assert "InvalidAuthToken" in stranger.stderr


@pytest.mark.parametrize(("amount", "asked"), [(0.9, 0.9), (0.456, 0.45), (1.8, 1.0), (4.0, 4.0), (0.0, 0.0)])
def test_quantities_are_what_ray_accepts(amount: float, asked: float) -> None:
    assert _quantity(amount) == asked


INTERRUPTED = """
import signal, sys, threading
from pathlib import Path
from tests.fixtures.toy_album import Colour, album
from hoi_distill.workers.executors.ray import execute
from hoi_distill.workers.task import Workload

stop = threading.Event()
signal.signal(signal.SIGINT, lambda *_: stop.set())
made = album(Path(sys.argv[1]), 40)
stage = Colour(seconds=0.5)
done = []
def report(answer):
    done.append(answer.row_count)
    print("reported", flush=True)
execute(Workload.of(made.tasks(made.part(stage), size=4)), workers=2, report=report, stop=stop)
filled = int((~made.empty(stage)).sum())
print("filled", filled, sum(done) * 3, flush=True)
sys.exit(130)
"""


@pytest.mark.slow
def test_ctrl_c_finishes_the_shard_and_leaves_no_process_and_no_file(tmp_path: Path) -> None:
    """The terminal sends SIGINT to the whole process group, Ray's processes included."""
    mark = f"TEST_RUN={tmp_path}"
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path / "album")],
        env={**os.environ, "TEST_RUN": str(tmp_path)},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "reported\n"
    os.killpg(process.pid, signal.SIGINT)
    output = process.stdout.read()
    assert process.wait(60) == 130
    _, filled, reported = output.splitlines()[-1].split()
    assert 12 <= int(filled) == int(reported) < 120
    deadline = time.monotonic() + 10
    while (left := _marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []


def _marked(mark: str) -> list[str]:
    """Command lines of the processes that inherited the environment variable."""
    found = []
    for process in psutil.process_iter():
        try:
            if mark in (f"{key}={value}" for key, value in process.environ().items()):
                found.append(" ".join(process.cmdline()) or process.name())
        except psutil.Error:
            continue
    return found


def test_a_node_without_the_cache_or_the_pictures_says_what_it_lacks(tmp_path: Path) -> None:
    mark = tmp_path / ".probe-1"
    assert _unreadable([str(mark)], []) == [f"does not see the cache {tmp_path}"]
    mark.write_text("another cache's mark")
    assert _unreadable([str(mark)], [str(tmp_path / "a.jpg")]) == [
        f"does not see the cache {tmp_path}",
        f"cannot read {tmp_path / 'a.jpg'}",
    ]
    mark.write_text(mark.name)
    assert _unreadable([str(mark)], [str(mark)]) == []


def test_a_cluster_that_does_not_answer_is_one_line_within_seconds(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with (
        pytest.raises(UserError, match=r"RAY_ADDRESS=127\.0\.0\.1:1: no cluster answers .*; start it, or unset"),
        RayExecutor(1),
    ):
        pass
