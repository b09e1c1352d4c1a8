"""The line of fetches of a process: in order, each once, and none that keeps a program from ending."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import wait
from pathlib import Path

import pytest

from hoi_distill.storage.files import fetching
from hoi_distill.storage.files.fetching import Line

SECONDS = 60.0  # for what is done at once, on a busy machine


class Gate:
    """Fetches that note what they were called for; the first ones wait until the gate is open."""

    def __init__(self) -> None:
        self.fetched: list[str] = []
        self.reached, self.open = threading.Event(), threading.Event()

    def __call__(self, path: str) -> None:
        self.fetched.append(path)
        self.reached.set()
        assert self.open.wait(SECONDS)


@pytest.fixture
def gate(monkeypatch) -> Gate:
    monkeypatch.setattr(fetching, "_AT_ONCE", 1)
    return Gate()


def test_what_is_needed_now_is_fetched_before_what_is_needed_later(gate):
    line = Line()
    running = line.ask("a", gate, now=False)
    assert gate.reached.wait(SECONDS)
    asked = [line.ask(path, gate, now=False) for path in "bcd"]
    asked += [line.ask(path, gate, now=True) for path in "ed"]
    gate.open.set()
    assert not wait([running, *asked], SECONDS).not_done
    assert gate.fetched == ["a", "d", "e", "b", "c"]


def test_an_object_that_several_ask_for_is_fetched_once(gate):
    line = Line()
    first = line.ask("a", gate, now=False)
    assert gate.reached.wait(SECONDS)
    others = [line.ask("a", gate, now=now) for now in (False, True)]
    gate.open.set()
    assert not wait([first, *others], SECONDS).not_done
    assert gate.fetched == ["a"]
    line.ask("a", gate, now=True).result(SECONDS)
    assert gate.fetched == ["a", "a"]


def test_a_fetch_that_fails_keeps_nobody_waiting_and_the_next_ones_are_done(gate):
    line = Line()
    gate.open.set()

    def fail(path: str) -> None:
        gate(path)
        raise ValueError(path)

    asked = [line.ask(path, fail if path == "a" else gate, now=False) for path in "ab"]
    assert not wait(asked, SECONDS).not_done
    assert gate.fetched == ["a", "b"]


def test_a_program_that_ends_begins_no_fetch_more(tmp_path):
    program = """
import sys, threading, time
from hoi_distill.storage.files.fetching import fetch_ahead
reached = threading.Barrier(9)
def fetch(path):
    open(f"{sys.argv[1]}/{path}", "w").close()
    reached.wait()
    while threading.main_thread().is_alive():
        time.sleep(0.01)
fetch_ahead(map(str, range(100)), fetch)
reached.wait()
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=2 * SECONDS)
    assert sorted(path.name for path in tmp_path.iterdir()) == [str(number) for number in range(8)]


def test_a_thread_that_waits_for_a_fetch_does_not_keep_a_program_from_ending():
    program = """
import threading
from concurrent.futures import wait
from hoi_distill.storage.files.fetching import Line
reached = threading.Barrier(9)
def fetch(path):
    reached.wait()
    threading.main_thread().join()
line = Line()
asked = [line.ask(str(number), fetch, now=False) for number in range(20)]
threading.Thread(target=lambda: (wait(asked), print("let go"))).start()
reached.wait()
"""
    ended = subprocess.run([sys.executable, "-c", program], check=True, timeout=2 * SECONDS, stdout=subprocess.PIPE)
    assert ended.stdout == b"let go\n"


def test_a_forked_process_has_fetches_of_its_own(gate, tmp_path: Path):
    running = fetching._line(os.getpid()).ask("a", gate, now=False)
    assert gate.reached.wait(SECONDS)
    if (child := os.fork()) == 0:
        done = fetching._line(os.getpid()).ask("a", lambda _: (tmp_path / "fetched").touch(), now=False)
        os._exit(0 if not wait([done], SECONDS).not_done else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    gate.open.set()
    running.result(SECONDS)
    assert (tmp_path / "fetched").exists()
