"""Workers and nodes that die in the middle of a run: every wanted cell is filled all the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from hoi_distill.workers.executors.ray import RayExecutor
from hoi_distill.workers.task import TaskReport, Workload
from tests.fixtures.ray_nodes import cluster, node
from tests.fixtures.toy_album import Album, Colour, Map, album, lines

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def executor() -> Iterator[RayExecutor]:
    with RayExecutor(2) as session:
        yield session


def filled(made: Album, colour: Colour) -> bool:
    values = made.read(colour)
    return np.array_equal(np.stack([values[column] for column in colour.columns], axis=1), made.colours)


def test_a_killed_worker_is_replaced_and_its_tasks_are_run_again(
    executor: RayExecutor, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = album(tmp_path, 40)
    colour = Colour(kills_once=str(tmp_path / "killed"), log=str(tmp_path / "log"))
    reports: list[TaskReport] = []
    executor.execute(Workload.of(made.tasks(made.part(colour))), report=reports.append, stop=threading.Event())
    assert (tmp_path / "killed").exists()
    batches = [tuple(line["rows"]) for line in lines(tmp_path / "log")]
    assert len(batches) > len(set(batches))  # the batch that was lost was computed again
    assert filled(made, colour)
    assert made.failures(colour) == {}
    assert sum(report.row_count for report in reports) == 40
    assert capfd.readouterr().out == ""  # Ray keeps quiet


def test_a_row_that_always_kills_its_worker_fails_alone_after_three_tries(
    executor: RayExecutor, tmp_path: Path
) -> None:
    made = album(tmp_path, 8)
    culprit, log = 5, tmp_path / "log"
    colour, maps = Colour(), Map(kills=(made.digest(culprit),), log=str(log))
    reports: list[TaskReport] = []
    tasks = made.tasks(made.part(colour), made.part(maps))
    executor.execute(Workload.of(tasks), report=reports.append, stop=threading.Event())
    assert made.failures(maps) == {(culprit, column): "killed its worker 3 times alone" for column in range(2)}
    assert not made.empty(maps).any()
    assert filled(made, colour)  # the pass was split by table too: only the table that kills has the failure
    assert made.failures(colour) == {}
    attempts = [line for line in lines(log) if line["count"] == 1 and made.digest(culprit) in line["rows"]]
    assert len(attempts) == 4  # once in the pass of two tables, then three times alone
    assert sum(int(report.bad.sum()) for report in reports) == 1


DRIVER = """
import sys, threading
from pathlib import Path
from tests.fixtures.ray_nodes import cluster, node
from tests.fixtures.toy_album import Colour, album
from hoi_distill.workers.executors.ray import execute
from hoi_distill.workers.task import Workload

folder = Path(sys.argv[1])
made = album(folder / "album", 60)
stage = Colour(seconds=0.2, log=str(folder / "log"))
report = lambda answer: print("reported", flush=True)
execute(Workload.of(made.tasks(made.part(stage), size=4)), workers=2, report=report, stop=threading.Event())
print("empty", int(made.empty(stage).sum()), "failed", len(made.failures(stage)))
"""


@pytest.mark.slow
def test_a_node_killed_mid_run_costs_no_cell(tmp_path: Path) -> None:
    """Two nodes with scratch folders of their own and one cache; one of them goes in the middle of the run."""
    with cluster(tmp_path) as environment, ExitStack() as nodes:
        address = environment["RAY_ADDRESS"]
        head = nodes.enter_context(node(environment, "--head", f"--port={address.split(':')[1]}"))
        other = nodes.enter_context(node(environment, f"--address={address}"))
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(tmp_path)], env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert driver.stdout is not None
        log = tmp_path / "log"
        for _ in driver.stdout:  # reports, until both nodes have computed something
            if len({line["raylet"] for line in lines(log)}) == 2:
                break
        before = len(lines(log))
        os.killpg(other.pid, signal.SIGKILL)
        last = driver.stdout.read().splitlines()[-1]
        assert driver.wait(60) == 0
        assert head.poll() is None
    assert before < 15  # there was work left
    assert last == "empty 0 failed 0"


LEVELS = """
import logging, sys, threading
from pathlib import Path
from hoi_distill.storage.errors import UserError
from tests.fixtures.ray_nodes import cluster, node
from tests.fixtures.toy_album import Colour, Double, album
from hoi_distill.workers.executors.ray import RayExecutor
from hoi_distill.workers.task import Workload

logging.basicConfig(stream=sys.stdout, format="%(message)s")
folder = Path(sys.argv[1])
made = album(folder / "album", 40)
colour, double = Colour(), Double()
try:
    with RayExecutor(2) as executor:
        def fill(*parts):
            executor.execute(Workload.of(made.tasks(*parts, size=4)), report=lambda answer: None, stop=threading.Event())
        fill(made.part(colour))
        print("level", flush=True)
        sys.stdin.readline()
        fill(made.part(double, above=colour))
    print("empty", int(made.empty(double).sum()), "failed", len(made.failures(double)))
except UserError as error:
    print(error)
"""


def levels(environment: dict[str, str], tmp_path: Path) -> subprocess.Popen[str]:
    """A driver of two levels, which waits for a line between them."""
    return subprocess.Popen(
        [sys.executable, "-c", LEVELS, str(tmp_path)],
        env=environment, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_a_node_killed_between_two_levels_is_left_out(tmp_path: Path) -> None:
    """The next level probes a node that Ray still takes for alive."""
    with cluster(tmp_path) as environment, ExitStack() as nodes:
        address = environment["RAY_ADDRESS"]
        nodes.enter_context(node(environment, "--head", f"--port={address.split(':')[1]}"))
        other = nodes.enter_context(node(environment, f"--address={address}"))
        driver = levels(environment, tmp_path)
        assert driver.stdout is not None
        assert driver.stdout.readline() == "level\n"
        os.killpg(other.pid, signal.SIGKILL)
        killed = time.monotonic()
        output, _ = driver.communicate("\n", timeout=200)
        assert time.monotonic() - killed < 120
    assert driver.returncode == 0
    assert sum("has left the Ray cluster; the run goes on without it" in line for line in output.splitlines()) == 1
    assert output.splitlines()[-1] == "empty 0 failed 0"


@pytest.mark.slow
def test_a_node_that_does_not_see_the_cache_is_named_in_one_line(tmp_path: Path) -> None:
    """Something else is mounted over the cache's folder there."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    cache = tmp_path / "album" / "cache"
    cache.mkdir(parents=True)
    with cluster(tmp_path) as environment, ExitStack() as nodes:
        address = environment["RAY_ADDRESS"]
        nodes.enter_context(node(environment, "--head", f"--port={address.split(':')[1]}"))
        hidden = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs "$0" && exec "$@"', str(cache)]
        nodes.enter_context(node(environment, f"--address={address}", before=hidden))
        output, _ = levels(environment, tmp_path).communicate(timeout=200)
    (line,) = output.splitlines()
    assert f"of the Ray cluster does not see the cache {cache}; mount the same folder there" in line


ATTACHED = """
import os
import ray
from hoi_distill.workers.executors.ray_session import attached_ray

def places():
    import hoi_distill.stages.evaluate.pages.report as report
    import hoi_distill.storage.table as table
    return [table.__file__, report.__file__, os.path.dirname(report.__file__) + "/templates/report.html.j2"]

with attached_ray(os.environ["RAY_ADDRESS"]):
    for place in ray.get(ray.remote(places).remote()):
        print(place, os.path.isfile(place))
"""


@pytest.mark.slow
def test_our_code_and_its_files_travel_to_a_node_with_the_job(tmp_path: Path) -> None:
    """Though hoi_distill is a folder of links to the rooms; a node's own installation, if any, is not used."""
    with cluster(tmp_path) as environment, ExitStack() as nodes:
        bare = {name: value for name, value in environment.items() if name != "PYTHONPATH"}
        port = environment["RAY_ADDRESS"].split(":")[1]
        nodes.enter_context(node(bare, "--head", f"--port={port}"))
        done = subprocess.run(
            [sys.executable, "-c", ATTACHED], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=200
        )  # not in ROOT, for Ray puts the driver's own folder on the path of workers
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        assert line.endswith("True")
        assert "/runtime_resources/py_modules_files/" in line
        assert str(ROOT) not in line
    assert done.stdout.count("\n") == 3
