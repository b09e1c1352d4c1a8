"""No long silence: a line says what is going on when nothing else has been said for a while."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import IO

from hoi_distill.stages.quantities import duration
from hoi_distill.storage.errors import WorkStopped


class Watch:
    """Says what is going on after some seconds of silence, and again after every further silence.

    It is called with a line to print, as a training reports. So it knows when there was a line.

    Args:
        phase: what is going on.
        report: prints a line.
        first: seconds of a phase without a line, after which the phase is named.
        every: seconds of silence, after which it is named again.
    """

    def __init__(
        self, phase: str, report: Callable[[str], None] = print, first: float = 5.0, every: float = 30.0
    ) -> None:
        self.report, self.first, self.every = report, first, every
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self.phase(phase)

    def phase(self, what: str) -> None:
        """From now on this is going on."""
        self.what, self.began = what, time.monotonic()
        self.due = self.began + self.first

    def __call__(self, line: str) -> None:
        """Print a line, and wait for silence again."""
        self.due = time.monotonic() + self.every
        self.report(line)

    def __enter__(self) -> Watch:
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ended.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.ended.wait(max(0.05, min(self.due - time.monotonic(), 1.0))):
            if time.monotonic() >= self.due:
                with contextlib.suppress(OSError, ValueError, WorkStopped):  # whoever prints a result meets it, too
                    self(f"{self.what} ({duration(time.monotonic() - self.began)})")


def working(what: str, out: IO[str] | None = None, every: float = 5.0) -> Watch:
    """A watch over work that prints nothing itself. It writes an indented line; quick work passes without one.

    Args:
        what: ``starting Ray``, ``drawing the pico world into data/pico``.
        out: the stream that the lines go to; default: ``sys.stderr``.
        every: seconds between two lines.
    """
    stream = out or sys.stderr

    def write(line: str) -> None:
        stream.write(f"  {line}\n")
        stream.flush()

    return Watch(what, write, first=every, every=every)
