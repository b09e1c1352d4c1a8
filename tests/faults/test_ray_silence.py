"""Workers and nodes that hang, stop or never begin: a finished run or one line, and nobody waits for good."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from hoi_distill.storage.errors import UserError, WorkStopped
from hoi_distill.workers.executors import ray as ray_executor
from hoi_distill.workers.executors.ray import RayExecutor
from hoi_distill.workers.pulse import Beat
from hoi_distill.workers.task import TaskReport, Workload
from tests.fixtures.toy_album import Album, Colour, album, lines

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def session() -> Iterator[RayExecutor]:
    with RayExecutor(2) as session:
        yield session


@pytest.fixture
def executor(session: RayExecutor) -> Iterator[RayExecutor]:
    before = dict(vars(session))
    yield session
    vars(session).update(before)


def filled(made: Album, colour: Colour) -> bool:
    values = made.read(colour)
    return np.array_equal(np.stack([values[column] for column in colour.columns], axis=1), made.colours)


def test_a_worker_that_hangs_once_is_replaced_and_the_run_is_whole(
    executor: RayExecutor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    executor.hang_after = 2.0
    made = album(tmp_path)
    colour = Colour(hangs_once=str(tmp_path / "hung"))
    executor.execute(Workload.of(made.tasks(made.part(colour))), report=lambda _: None, stop=threading.Event())
    assert filled(made, colour)
    assert made.failures(colour) == {}
    (told,) = [line for line in caplog.messages if "has made no step in task" in line]
    assert told.startswith("worker ")
    assert told.endswith("it is replaced and its tasks are run again")


@pytest.mark.slow
def test_a_task_that_hangs_three_times_alone_stops_the_run_and_blames_no_row(
    executor: RayExecutor, tmp_path: Path
) -> None:
    executor.hang_after = 4.0
    made = album(tmp_path, 8)
    colour = Colour(hangs=(made.digest(5),))
    with pytest.raises(WorkStopped, match=r"task task 1 made no step in .*, 3 times alone") as error:
        executor.execute(
            Workload.of(made.tasks(made.part(colour), size=4)), report=lambda _: None, stop=threading.Event()
        )
    assert made.uris[4] in str(error.value)
    assert "workers.hang_after" in str(error.value)
    assert np.array_equal(made.empty(colour).any(axis=1), np.arange(8) >= 4)
    assert made.failures(colour) == {}


def test_a_stopped_worker_is_replaced_though_it_never_answers(
    executor: RayExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_executor, "SILENT_SECONDS", 4.0)
    made = album(tmp_path, 40)
    colour = Colour(seconds=0.3, log=str(tmp_path / "log"))
    stopped: list[int] = []

    def report(_: TaskReport) -> None:
        if not stopped:
            stopped.append(lines(tmp_path / "log")[-1]["pid"])
            os.kill(stopped[0], signal.SIGSTOP)

    executor.execute(Workload.of(made.tasks(made.part(colour))), report=report, stop=threading.Event())
    assert filled(made, colour)
    assert made.failures(colour) == {}


def test_a_long_batch_is_told_of_and_every_second_says_where_tasks_are(
    executor: RayExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ray_executor, "TOLD_SECONDS", 1.5)
    made = album(tmp_path, 8)
    colour = Colour(seconds=4.0)
    beats: list[Beat] = []
    executor.execute(
        Workload.of(made.tasks(made.part(colour), size=8)),
        report=lambda _: None,
        stop=threading.Event(),
        beat=beats.extend,
    )
    told = [line for line in caplog.messages if "has been running for" in line]
    assert told[0].startswith("task task 0 has been running for 2 s on worker ")
    assert {beat.batches for beat in beats if beat.doing == "computing"} >= {0, 1}
    assert {beat.cells["colour"] for beat in beats} >= {0, 12}


def test_a_cluster_without_free_cpus_is_one_line(executor: RayExecutor, tmp_path: Path) -> None:
    import ray

    executor.start_within = 3.0
    made = album(tmp_path, 8)
    colour = Colour()

    class Occupant:
        def there(self) -> None: ...

    occupant = ray.remote(Occupant).options(num_cpus=ray.cluster_resources()["CPU"]).remote()
    ray.get(occupant.there.remote())
    try:
        with pytest.raises(UserError, match=r"no Ray worker started within 3 s: 0 of \d+ CPUs are free; .* --workers"):
            executor.execute(Workload.of(made.tasks(made.part(colour))), report=lambda _: None, stop=threading.Event())
    finally:
        ray.kill(occupant)
    executor.start_within = 100.0
    executor.execute(Workload.of(made.tasks(made.part(colour))), report=lambda _: None, stop=threading.Event())
    assert filled(made, colour)


@pytest.mark.slow
def test_time_that_the_machine_sleeps_is_nobodys_silence(
    executor: RayExecutor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A driver that looks up after a long while has not waited that long."""
    executor.hang_after = 5.0
    made = album(tmp_path, 12)
    colour = Colour(seconds=1.0)
    slept: list[TaskReport] = []

    def report(done: TaskReport) -> None:
        if not slept:
            slept.append(done)
            time.sleep(8)

    executor.execute(Workload.of(made.tasks(made.part(colour), size=4)), report=report, stop=threading.Event())
    assert "has made no step" not in caplog.text
    assert filled(made, colour)


DRIVER = """
import os, signal, sys, threading
from pathlib import Path
from hoi_distill.storage.errors import UserError, WorkStopped
from tests.fixtures.toy_album import Colour, album
from hoi_distill.workers.executors.ray import RayExecutor
from hoi_distill.workers.task import Workload

made = album(Path(sys.argv[1]), 400)
stage = Colour(seconds=4.0)  # minutes of work: workers outlive their raylet for some seconds
def report(answer):
    print("reported", flush=True)
try:
    with RayExecutor(2) as executor:
        executor.execute(Workload.of(made.tasks(made.part(stage), size=4)), report=report, stop=threading.Event())
except (UserError, WorkStopped) as error:
    print(error)
print("filled", int((~made.empty(stage)).sum()))
"""


@pytest.mark.slow
def test_a_raylet_that_is_killed_ends_the_run_with_one_line(tmp_path: Path) -> None:
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path / "album")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert driver.stdout is not None
    assert driver.stdout.readline() == "reported\n"
    (raylet,) = [each for each in psutil.Process(driver.pid).children() if each.name() == "raylet"]
    raylet.kill()
    killed = time.monotonic()
    output = driver.stdout.read().splitlines()
    assert driver.wait(60) == 0
    assert time.monotonic() - killed < 120
    line, last = output[-2:]
    assert line.startswith("stopped: Ray has no node left (its raylet was killed")
    assert int(last.split()[1]) >= 12 * (1 + output.count("reported"))  # reported is committed
