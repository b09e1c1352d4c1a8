"""Nodes that share no file system: images and cache lie in an object store, and each node has a disk of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.s3_server import environment as store_environment
from hoi_distill.pipeline.graph import registry
from hoi_distill.storage.check import check_cache
from tests.fixtures.object_stores import upload
from tests.fixtures.ray_nodes import cluster, node
from tests.fixtures.toy_stages import TOYS, Album, plan_of

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
IMAGES, PROMPTS, SHARD_ROWS = 96, "abcd", 4
IN_FLIGHT = 2 * SHARD_ROWS * len(PROMPTS)
"""Cells of a table that one worker may hold: a task that computes and one that is written."""


@pytest.fixture
def album(tmp_path, bucket_of, monkeypatch) -> Album:
    """A configuration on a disk. All that it reads and writes lies in the store, but for a log of what is computed."""
    for name, where in TOYS.items():
        monkeypatch.setitem(registry.STAGES, name, where)
    made = Album(tmp_path, IMAGES, PROMPTS, seconds=2.0, batch_size=4)  # long enough for a node to join
    upload(made.folder, f"{bucket_of}/images")
    made.config |= {"cache": f"{bucket_of}/cache", "workers": {"executor": "ray", "count": 2}}
    made.config["dataset"]["root"] = f"{bucket_of}/images"
    for table in made.config["tables"].values():
        table["log"] = str(tmp_path / "log")
    made.write()
    return made


class Nodes:
    """A cluster of nodes with disks of their own.

    Attributes:
        environment: of the driver, which has a disk of its own too.
    """

    def __init__(self, stack: ExitStack, environment: dict[str, str], endpoint: str, folder: Path) -> None:
        self._stack, self._endpoint, self._folder = stack, endpoint, folder
        self.environment = environment | store_environment(endpoint, folder / "driver")

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """A node that joins; the first one is the head."""
        address = self.environment["RAY_ADDRESS"]
        options = (
            [f"--address={address}"] if list(self._folder.iterdir()) else ["--head", f"--port={address.split(':')[1]}"]
        )
        (self._folder / name).mkdir()
        own = self.environment | store_environment(self._endpoint, self._folder / name)
        return self._stack.enter_context(node(own, *options))

    def committed(self, name: str) -> int:
        """How many payloads a node has written: it keeps a copy of each."""
        return len(list((self._folder / name).rglob("shards/*.arrow")))


@pytest.fixture
def nodes(tmp_path, endpoint) -> Iterator[Nodes]:
    (folder := tmp_path / "disks").mkdir()
    with cluster(tmp_path) as environment, ExitStack() as stack:
        yield Nodes(stack, environment, endpoint, folder)


def start(album: Album, environment: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.fixtures.drive", "run", str(album.path)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def until(happened: Callable[[], bool], driver: subprocess.Popen[str]) -> None:
    while not happened():
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.05)


def computed(album: Album) -> Counter[str]:
    """How often each cell was computed, by its line in the log."""
    return Counter((album.root / "log").read_text().splitlines())


def filled(album: Album) -> int:
    plans = plan_of(album.workspace())
    return sum(int(plan.state.filled.sum()) for plan in plans.values() if plan.state is not None)


def test_one_node_is_killed_and_one_joins_late_and_every_cell_is_filled(album, nodes, record_property):
    nodes.start("first")
    doomed = nodes.start("doomed")
    driver = start(album, nodes.environment)
    until(lambda: bool(nodes.committed("first") and nodes.committed("doomed")), driver)
    os.killpg(doomed.pid, signal.SIGKILL)
    nodes.start("late")
    out, err = driver.communicate(timeout=300)
    assert driver.returncode == 0, out + err
    assert nodes.committed("late") > 0
    assert filled(album) == 2 * IMAGES * len(PROMPTS)
    assert check_cache(album.workspace().cache) == []
    counts = computed(album)
    assert len(counts) == 2 * IMAGES * len(PROMPTS)
    twice = counts.total() - len(counts)
    record_property("cells computed twice", twice)
    print(f"{twice} of {len(counts)} cells were computed twice")
    assert twice <= IN_FLIGHT


def test_sigterm_to_driver_and_nodes_loses_nothing_that_was_committed(album, nodes):
    members = [nodes.start("first"), nodes.start("second")]
    driver = start(album, nodes.environment)
    until(lambda: bool(nodes.committed("first") and nodes.committed("second")), driver)
    before = filled(album)
    told = time.monotonic()
    for process in (driver, *members):
        process.terminate()
    driver.communicate(timeout=60)
    assert time.monotonic() - told < 20 + 10  # the grace period that docs/workers.md states, and a busy machine
    assert driver.returncode not in (0, None)
    after = filled(album)
    assert before <= after < 2 * IMAGES * len(PROMPTS)
    assert check_cache(album.workspace().cache) == []
    alone = {name: value for name, value in nodes.environment.items() if name != "RAY_ADDRESS"}
    again = start(album, alone)
    out, err = again.communicate(timeout=300)
    assert again.returncode == 0, out + err
    assert filled(album) == 2 * IMAGES * len(PROMPTS)
    counts = computed(album)
    assert counts.total() - len(counts) <= 2 * IN_FLIGHT
