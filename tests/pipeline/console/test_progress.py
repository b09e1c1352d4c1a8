"""What a run says while it works: by batches, at a pace that can be read, and never silent for long."""

from __future__ import annotations

import contextlib
import fcntl
import io
import logging
import os
import pty
import struct
import termios
import threading
import time

import numpy as np

from hoi_distill.pipeline.console.progress import Progress
from hoi_distill.workers.pulse import Beat
from hoi_distill.workers.task import TaskReport


def beat(task: str, doing: str, cells: int, batches: int = 0, since: float = 0.0, pace: float | None = None) -> Beat:
    return Beat(task, doing, batches, 8, {"itm": cells}, 10.0, since, pace)


def report(task: str, cells: int, failures: int = 0) -> TaskReport:
    return TaskReport(task, 4, {"itm": cells}, {"itm": failures}, (), (), np.zeros(4, bool), 1.0, 1)


class Out(io.StringIO):
    def take(self) -> list[str]:
        found = self.getvalue().splitlines()
        self.seek(0)
        self.truncate()
        return found


def drawn(progress: Progress, out: Out) -> list[str]:
    progress.draw()
    return out.take()


def test_batches_advance_a_table_before_its_task_is_done_and_no_cell_counts_twice() -> None:
    out = Out()
    progress = Progress({"itm": 100}, out=out)
    progress.under_way([beat("a", "loading", 0)])
    assert "0 / 100 cells  (loading models)" in drawn(progress, out)[0]
    progress.under_way([beat("a", "computing", 20, 2), beat("b", "reading", 0)])
    assert "20 / 100 cells" in drawn(progress, out)[0]
    progress.advance(report("a", 40))
    assert "40 / 100 cells" in drawn(progress, out)[0]
    progress.under_way([beat("b", "computing", 5, 1)])
    assert "45 / 100 cells" in drawn(progress, out)[0]
    progress.under_way([])  # the worker died: what it had not committed is to be done again
    assert "40 / 100 cells" in drawn(progress, out)[0]
    progress.advance(report("b", 58, failures=2))
    (line,) = drawn(progress, out)
    assert "100 / 100 cells" in line
    assert line.endswith("done  2 failed")


def test_a_slow_step_is_shown_with_its_time() -> None:
    out = Out()
    progress = Progress({"itm": 100}, out=out)
    progress.under_way([beat("a", "loading", 0, since=130)])
    assert drawn(progress, out)[0].endswith("(loading models, 2 min 10 s)")
    progress.under_way([beat("a", "computing", 20, 2, since=40)])
    assert drawn(progress, out)[0].endswith("(batch 3 of 8, 40 s)")
    progress.under_way([beat("a", "computing", 20, 2, since=1)])
    assert drawn(progress, out)[0].endswith("left")


def test_after_a_stop_a_line_says_what_is_waited_for_and_for_how_long() -> None:
    out, stop = Out(), threading.Event()
    progress = Progress({"itm": 100}, stop, out=out)
    progress.under_way([beat("a", "computing", 20, 2, 10, pace=15), beat("b", "computing", 20, 2, 10, pace=42)])
    stop.set()
    assert drawn(progress, out)[-1] == "  Stopping: waiting for task b: batch 3 of 8, 10 s; about 32 s left"
    progress.under_way([beat("b", "loading", 0)])
    assert drawn(progress, out)[-1] == "  Stopping: waiting for task b: loading models; time left unknown"


def test_before_the_first_batch_there_is_a_word_too() -> None:
    out = Out()
    assert "waiting for a worker to begin (0 s)" in drawn(Progress({"itm": 100}, out=out), out)[-1]


def test_what_is_no_terminal_gets_the_lines_that_changed() -> None:
    out = Out()
    progress = Progress({"itm": 100, "text": 5}, out=out)
    progress.under_way([beat("a", "computing", 20, 2)])
    assert len(drawn(progress, out)) == 2
    progress.under_way([beat("a", "computing", 40, 3)])
    assert [line.split()[0] for line in drawn(progress, out)] == ["itm"]


def test_a_run_is_drawn_though_nothing_is_reported() -> None:
    out = Out()
    with Progress({"itm": 100}, out=out, every=0.05):
        time.sleep(0.4)
    assert out.take()


def test_a_warning_stays_above_the_lines_that_renew_themselves() -> None:
    master, slave = pty.openpty()
    with open(slave, "w") as terminal, Progress({"itm": 100, "text": 5}, out=terminal, every=60) as progress:
        progress.draw()
        logging.getLogger("hoi_distill.workers.executors.ray").warning("node n2 has left")
        progress.draw()
    shown = received(master)
    assert rendered(shown)[0] == "node n2 has left"
    assert [line.split()[0] for line in rendered(shown)[1:]] == ["itm", "text"]
    assert not any(type(handler).__name__ == "_Above" for handler in logging.getLogger().handlers)


def test_a_line_that_is_longer_than_the_terminal_is_erased_whole() -> None:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, 40, 0, 0))
    with open(slave, "w") as terminal:
        progress = Progress({"itm": 100}, out=terminal)
        progress.under_way([beat("a", "loading", 0, since=130)])
        for _ in range(2):
            progress.draw()
    shown = received(master)
    assert 40 < len(progress._drawn[0]) <= 80
    assert "\x1b[2F\x1b[J" in shown


def received(master: int) -> str:
    """All that came to a terminal which nobody has open any more. One read may give a part of it."""
    pieces = []
    with contextlib.suppress(OSError):
        while piece := os.read(master, 10_000):
            pieces.append(piece)
    os.close(master)
    return b"".join(pieces).decode().replace("\r", "")


def rendered(shown: str) -> list[str]:
    """The lines on a terminal that knows ``CSI n F`` (n lines up) and ``CSI J`` (erase from here)."""
    lines: list[str] = []
    for piece in shown.split("\x1b["):
        up, found, rest = piece.partition("F")
        if found and up.isdigit():
            lines = lines[: len(lines) - int(up)]
            piece = rest
        lines += piece.removeprefix("J").splitlines()
    return lines


def test_a_terminal_that_has_gone_ends_no_run() -> None:
    master, slave = pty.openpty()
    terminal = open(slave, "w")  # noqa: SIM115 - to close it fails, like all that writes to it
    with Progress({"itm": 100}, out=terminal, every=0.01) as progress:
        progress.draw()
        os.close(master)
        progress.draw()
        progress.say("to nobody")
    with contextlib.suppress(OSError):
        terminal.close()
