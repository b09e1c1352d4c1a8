"""One process at a time."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import pytest

from hoi_distill.storage.files.lock import alone

HOLD = """
import sys, threading, time
from pathlib import Path
from hoi_distill.storage.files.lock import alone
with alone(Path(sys.argv[1]), threading.Event(), lambda: None):
    print("held", flush=True)
    time.sleep(60)
"""


def test_another_waits_until_the_holder_is_killed(tmp_path):
    file, waited = tmp_path / "one.lock", []
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(file)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"

        def waiting() -> None:
            waited.append(time.monotonic())
            holder.send_signal(signal.SIGKILL)

        with alone(file, threading.Event(), waiting):
            assert holder.wait(10) == -signal.SIGKILL
    finally:
        holder.kill()
        holder.wait()
    assert len(waited) == 1


def test_waiting_ends_when_it_is_told_to_stop(tmp_path):
    stop = threading.Event()
    with alone(tmp_path / "one.lock", stop, stop.set):
        with pytest.raises(KeyboardInterrupt), alone(tmp_path / "one.lock", stop, stop.set):
            pass
        with alone(tmp_path / "other.lock", stop, stop.set):
            pass


def test_it_is_free_again_after_the_block_even_if_that_failed(tmp_path):
    def busy() -> None:
        raise AssertionError("still held")

    with pytest.raises(ZeroDivisionError), alone(tmp_path / "one.lock", threading.Event(), busy):
        1 / 0  # noqa: B018
    with alone(tmp_path / "one.lock", threading.Event(), busy):
        pass
