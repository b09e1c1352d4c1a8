"""The driver of a run dies, is interrupted, meets its double, or loses its disk: the tables end as an undisturbed run's."""

from __future__ import annotations

import collections
import json
import os
import pty
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from hoi_distill.pipeline.graph import registry
from hoi_distill.storage.check import check_table
from tests.fixtures.object_stores import BOTH, stored
from tests.fixtures.toy_stages import TOYS, Album, plan_of, run

ROOT = Path(__file__).parents[2]
IMAGES, PROMPTS = 40, "abcd"
TASK = 4 * len(PROMPTS)
"""Cells of the largest task."""


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    for name, where in TOYS.items():
        monkeypatch.setitem(registry.STAGES, name, where)


everywhere = pytest.mark.parametrize("album", BOTH, indirect=True)


@pytest.fixture
def album(request, tmp_path) -> Album:
    """Forty images; 20 tasks of about 60 ms. What is computed is logged by every process. The cache is on disk unless a test
    asks for both."""
    made = Album(tmp_path, IMAGES, PROMPTS, seconds=0.03)
    if getattr(request, "param", "disk") == "objects":
        made.config["cache"] = request.getfixturevalue("bucket_of")
    for table in made.config["tables"].values():
        table["log"] = str(tmp_path / "log")
    made.write()
    return made


def start(album: Album, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.fixtures.drive", "run", str(album.path), *options]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(album: Album) -> str:
    done = start(album)
    out, err = done.communicate(timeout=120)
    assert done.returncode == 0, err
    return out


def computations(album: Album) -> collections.Counter[tuple[str, str, str]]:
    """How often each cell was computed, over all processes."""
    log = album.root / "log"
    lines = log.read_text().splitlines() if log.exists() else []
    return collections.Counter(tuple(json.loads(line)) for line in lines)


def wait_for(album: Album, cells: int, driver: subprocess.Popen[str]) -> None:
    """Until so many cells have been computed since now, or the driver has ended."""
    target = computations(album).total() + cells
    while driver.poll() is None and computations(album).total() < target:
        time.sleep(0.005)


def cells_of(album: Album) -> dict[tuple[str, bytes, str], tuple[object, int]]:
    """Value and value digest of every filled cell."""
    found = {}
    workspace = album.workspace()
    for name, made in plan_of(workspace).items():
        assert made.complete(), name
        ids = workspace.sources["images"].ids[made.rows]
        values = made.table.read(made.cells)
        digests = made.table.value_digests(made.cells)
        for c, column in enumerate(made.columns):
            for r, value in enumerate(values[column].to_pylist()):
                found[name, ids[r].tobytes(), column] = value, int(digests[r, c])
    return found


def undisturbed(album: Album) -> dict[tuple[str, bytes, str], tuple[object, int]]:
    """What the same setup gives in a cache of its own, without incident."""
    config = dict(album.config)
    album.config["cache"] = str(album.root / "quiet")
    for table in album.config["tables"].values():
        table.update(log="", **({"seconds": 0.0} if "seconds" in table else {}))
    album.write()
    run(album.workspace())
    cells = cells_of(album)
    album.config["cache"] = config["cache"]
    album.write()
    return cells


def live_through_kills(album: Album, kills: int, seed: int) -> None:
    random.seed(seed)
    died = 0
    for _ in range(kills):
        driver = start(album)
        wait_for(album, random.randrange(2 * TASK), driver)
        time.sleep(random.random() * 0.06)
        died += driver.poll() is None
        driver.kill()
        driver.communicate()
    finish(album)
    computed = computations(album)
    wanted = 2 * IMAGES * len(PROMPTS)
    assert died >= kills - 2  # the last ones may find nothing left to do
    assert len(computed) == wanted
    # One worker: a kill loses the task that it computes and the one that it writes.
    assert computed.total() - wanted <= 2 * TASK * died
    assert "Nothing to do" in finish(album)
    assert computations(album) == computed
    assert cells_of(album) == undisturbed(album)


@everywhere
@pytest.mark.slow
def test_driver_killed_at_random(album):
    live_through_kills(album, kills=4, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_driver_killed_ten_times(album, seed):
    live_through_kills(album, kills=10, seed=seed)


def test_driver_killed_while_it_begins(album):
    """Before any commit: folders, table.json, digest memory."""
    for delay in (0.2, 0.3, 0.4, 0.5):
        driver = start(album)
        time.sleep(delay)
        driver.kill()
        driver.communicate()
    finish(album)
    assert cells_of(album) == undisturbed(album)


@everywhere
def test_two_drivers_on_one_cache(album):
    """Both end well; the cells are there once and are the right ones."""
    drivers = [start(album) for _ in range(2)]
    for driver in drivers:
        _, err = driver.communicate(timeout=120)
        assert driver.returncode == 0, err
    computed = computations(album)
    assert len(computed) == 2 * IMAGES * len(PROMPTS)
    assert max(computed.values()) <= 2
    for made in plan_of(album.workspace()).values():
        names = [record.header["payload"] for record in made.table.records()]
        assert sorted(names) == sorted(entry.name for entry in stored(made.table.dir / "shards").iterdir())
    assert cells_of(album) == undisturbed(album)


@everywhere
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_first_interrupt_commits_and_exits_130(album, number):
    driver = start(album)
    wait_for(album, TASK, driver)
    driver.send_signal(number)
    out, err = driver.communicate(timeout=60)
    assert driver.returncode == 130, err
    assert "Stopping: finishing and saving what is under way" in err
    assert "Interrupted." in out
    computed = computations(album)
    filled = sum(made.counts["filled"] for made in plan_of(album.workspace()).values())
    assert 0 < filled < 2 * IMAGES * len(PROMPTS)
    assert computed.total() == filled  # everything that was computed was committed
    finish(album)
    assert computations(album).total() == 2 * IMAGES * len(PROMPTS)


def test_a_time_limit_commits_and_exits_130(album):
    """Before the work would be done."""
    album.config["tables"]["scores"]["seconds"] = 1.0
    album.write()
    driver = start(album, "--time-limit", "0.05")
    _, err = driver.communicate(timeout=60)
    assert driver.returncode == 130, err
    assert "the time limit is reached" in err
    album.config["tables"]["scores"]["seconds"] = 0.0
    album.write()
    finish(album)
    assert cells_of(album) == undisturbed(album)


def test_a_signal_that_comes_twice_at_once_counts_as_one(album):
    """``timeout`` signals its child and then its group; a closing terminal does too."""
    driver = start(album)
    wait_for(album, TASK, driver)
    for number in (signal.SIGTERM, signal.SIGHUP):
        driver.send_signal(number)
        time.sleep(0.02)
    _, err = driver.communicate(timeout=60)
    assert driver.returncode == 130, err
    filled = sum(made.counts["filled"] for made in plan_of(album.workspace()).values())
    assert computations(album).total() == filled


def test_a_task_is_left_between_two_batches_and_gone_on_with(album):
    """Every cell is computed once, though one task holds them all."""
    for table in album.config["tables"].values():
        table["shard_rows"] = IMAGES
    album.write()
    driver = start(album)
    wait_for(album, TASK, driver)
    driver.send_signal(signal.SIGTERM)
    _, err = driver.communicate(timeout=60)
    assert driver.returncode == 130, err
    filled = sum(made.counts["filled"] for made in plan_of(album.workspace()).values())
    assert 0 < filled < IMAGES * len(PROMPTS)
    assert computations(album).total() == filled
    finish(album)
    assert set(computations(album).values()) == {1}
    assert cells_of(album) == undisturbed(album)


def test_a_terminal_that_closes_ends_a_run_that_saves_what_it_has(album):
    """A lost connection: SIGHUP comes, and every word that is still said fails."""
    process, terminal = pty.fork()
    if not process:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-m", "tests.fixtures.drive", "run", str(album.path)])
    deadline = time.monotonic() + 60
    while computations(album).total() < TASK and time.monotonic() < deadline:
        time.sleep(0.005)
    os.close(terminal)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 130
    filled = sum(made.counts["filled"] for made in plan_of(album.workspace()).values())
    assert 0 < filled < 2 * IMAGES * len(PROMPTS)
    assert computations(album).total() == filled
    finish(album)


def test_nohup_keeps_a_run_alive(album):
    driver = subprocess.Popen(
        ["nohup", sys.executable, "-m", "tests.fixtures.drive", "run", str(album.path)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(album, TASK, driver)
    driver.send_signal(signal.SIGHUP)
    _, err = driver.communicate(timeout=120)
    assert driver.returncode == 0, err


@pytest.mark.slow
@pytest.mark.parametrize(("executor", "after"), [("inline", 8), ("ray", 4), ("ray", 40)])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_batch_that_takes_too_long_does_not_hold_a_run_beyond_20_seconds(album, executor, after, number):
    """Whether it comes while Ray starts or while a batch computes."""
    album.config["tables"]["scores"]["seconds"] = 120
    album.write()
    driver = start(album, "--executor", executor, "--workers", "1")
    time.sleep(after)
    driver.send_signal(number)
    sent = time.monotonic()
    _, err = driver.communicate(timeout=60)
    assert time.monotonic() - sent < 20
    assert driver.returncode == 130, err
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_every_process_of_a_ray_run_still_commits(album, number):
    """As Slurm and systemd send theirs."""
    for table in album.config["tables"].values():
        table["shard_rows"] = IMAGES
    album.config["tables"]["scores"]["seconds"] = 0.5
    album.write()
    driver = start(album, "--executor", "ray", "--workers", "2")
    wait_for(album, TASK, driver)
    family = psutil.Process(driver.pid)
    for process in [family, *family.children(recursive=True)]:
        process.send_signal(number)
    sent = time.monotonic()
    _, err = driver.communicate(timeout=60)
    assert time.monotonic() - sent < 20
    assert driver.returncode == 130, err
    assert "Traceback" not in err
    filled = sum(made.counts["filled"] for made in plan_of(album.workspace()).values())
    assert 0 < filled < IMAGES * len(PROMPTS)
    assert computations(album).total() == filled


def test_second_interrupt_stops_at_once(album):
    driver = start(album)
    wait_for(album, TASK, driver)
    for _ in range(2):
        driver.send_signal(signal.SIGINT)
        time.sleep(0.02)
    _, err = driver.communicate(timeout=60)
    assert driver.returncode == 130, err
    assert "Traceback" not in err
    finish(album)
    computed = computations(album)
    assert computed.total() - len(computed) <= 2 * TASK


def test_leftovers_of_the_dead_are_swept(album):
    """A killed driver's temporary files and lease go when the next run or check comes by."""
    driver = start(album)
    wait_for(album, TASK, driver)
    driver.kill()
    driver.communicate()
    finish(album)
    workspace = album.workspace()
    for table in workspace.cache.tables():
        check_table(table)
        assert list((table.dir / "tmp").iterdir()) == []
    assert workspace.cache.leased() == {}


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 300 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk(album, small_disk):
    """The run stops with table and shard named; what was committed stays; with space again it goes on."""
    album.config["cache"] = str(small_disk / "cache")
    album.config["tables"]["maps"] = {"stage": "toy_maps", "shard_rows": 8}
    album.write()
    driver = start(album)
    _, err = driver.communicate(timeout=120)
    assert driver.returncode == 1
    line = err.strip().splitlines()[-1]
    assert "No space left on device" in line
    assert "table " in line
    assert "shard " in line
    assert "Traceback" not in err
    before = {name: made.counts["filled"] for name, made in plan_of(album.workspace()).items()}
    assert sum(before.values()) > 0
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    after = {name: made.counts["filled"] for name, made in plan_of(album.workspace()).items()}
    assert after == before
    finish(album)
    assert all(made.complete() for made in plan_of(album.workspace()).values())


def test_read_only_cache(album):
    """Told in one line; planning and reading go on working."""
    finish(album)
    cache = album.root / "cache"
    if os.geteuid() == 0:
        if subprocess.run(["mount", "--bind", str(cache), str(cache)], capture_output=True).returncode:
            pytest.skip("permissions bind nobody here, and mounting is not allowed")
        subprocess.run(["mount", "-o", "remount,bind,ro", str(cache)], check=True)
    else:
        os.chmod(cache, 0o555)
    try:
        album.ask("abcde")
        driver = start(album)
        _, err = driver.communicate(timeout=60)
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", str(cache)], check=True)
        else:
            os.chmod(cache, 0o755)
    assert driver.returncode == 1
    assert len(err.strip().splitlines()) == 1
    assert f"cache {cache}: " in err
    album.ask(PROMPTS)
    assert len(cells_of(album)) == 2 * IMAGES * len(PROMPTS)
