"""Ctrl-C at any instant of a run, also while Ray starts: exit code 130, a word about what is kept, nothing damaged."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from hoi_distill.pipeline.cli import app

ROOT = Path(__file__).parents[2]
LINE = "Interrupted. What was committed is kept; the same command goes on from here."


def hoi_distill(*arguments: str, mark: Path) -> subprocess.Popen[str]:
    """In a process group of its own, as a terminal starts it; its children inherit the mark."""
    return subprocess.Popen(
        [sys.executable, "-m", "hoi_distill", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", "TEST_RUN": str(mark)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def marked(mark: Path) -> list[str]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TEST_RUN") == str(mark):
                found.append(process.name())
        except psutil.Error:
            continue
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pico") / "world"


# Seconds after the plan's last line. On two idle cores Ray's start takes the first two or three of them.
@pytest.mark.slow
@pytest.mark.parametrize("presses", [1, 2])
@pytest.mark.parametrize("delay", [0.1, 0.7, 1.3, 2.0, 4.0])
def test_ctrl_c_while_ray_starts(world: Path, tmp_path: Path, delay: float, presses: int) -> None:
    options = [
        f"dataset.root={world}",
        "dataset.train=24",
        "dataset.test=8",
        "student.labelled=12",
        f"cache={tmp_path / 'cache'}",
    ]
    command = ["run", "configs/pico.yaml", *(word for option in options for word in ("--set", option))]
    run = hoi_distill(*command, mark=tmp_path)
    assert run.stdout is not None
    for line in run.stdout:
        if line.split()[:1] == ["text"]:  # the plan's last row
            break
    time.sleep(delay)
    for _ in range(presses):
        os.killpg(run.pid, signal.SIGINT)
        time.sleep(0.3)
    output = run.stdout.read()
    assert run.wait(60) == 130, output
    assert output.splitlines()[-1] == LINE
    assert "Traceback" not in output
    deadline = time.monotonic() + 10
    while (left := marked(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []
    if (tmp_path / "cache" / "tables").is_dir():
        check = hoi_distill("check", "--cache", str(tmp_path / "cache"), mark=tmp_path)
        assert "0 bad shards" in check.communicate()[0]
    if delay == 2.0:
        again = hoi_distill(*command, mark=tmp_path)
        output = again.communicate()[0]
        assert again.returncode == 0, output


def test_ctrl_c_outside_a_run_says_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hoi_distill.pipeline.workspace.prepare", interrupted)
    done = CliRunner().invoke(app, ["plan", "configs/pico.yaml"])
    assert done.exit_code == 130
    assert done.output.strip() == LINE


UNBROKEN = """
import os, signal
from hoi_distill.workers.executors.ray_session import unbroken

seen = []
first = lambda *_: seen.append("first")
signal.signal(signal.SIGINT, first)
with unbroken():
    os.kill(os.getpid(), signal.SIGINT)
    assert seen == ["first"]  # at once, not at the end
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as Ray puts its own
    os.kill(os.getpid(), signal.SIGINT)
    assert seen == ["first", "first"]  # still ours
assert signal.getsignal(signal.SIGINT) is first
signal.signal(signal.SIGINT, signal.default_int_handler)
with unbroken():
    try:
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        print("an exception went through Ray", flush=True)
"""


def test_an_interrupt_raises_nothing_within_rays_start_and_end() -> None:
    done = subprocess.run([sys.executable, "-c", UNBROKEN], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, "", LINE)


GRACE = """
import os, signal, time
from hoi_distill.pipeline.console import interrupt

interrupt.GRACE_SECONDS = 0.3
try:
    with interrupt.stop_on_interrupt():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(60)
except KeyboardInterrupt:
    print("ended")
"""


def test_a_terminal_that_closes_after_ctrl_c_still_ends_a_command_in_time() -> None:
    done = subprocess.run([sys.executable, "-c", GRACE], cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert done.stdout == "ended\n"


LIMIT = """
import os, signal, time
from hoi_distill.pipeline.console import interrupt

until = interrupt.Deadline(0.2 / 60)
with interrupt.stop_on_interrupt(until.seconds_left()) as stop:
    print(stop.wait(30), until.as_option(), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)  # the scheduler's, a moment later: it is the first signal, and breaks nothing
    time.sleep(0.1)
    print("finished", flush=True)
with interrupt.stop_on_interrupt() as stop:
    print(stop.wait(0.3), interrupt.Deadline(None).as_option())
"""


def test_a_time_limit_stops_as_the_first_ctrl_c_does_and_a_signal_after_it_is_no_second_one() -> None:
    done = subprocess.run([sys.executable, "-c", LIMIT], cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert done.stdout.splitlines() == ["True ['--time-limit', '0.0010']", "finished", "False []"]
    assert done.stderr.splitlines()[0].startswith("Stopping: the time limit is reached")
