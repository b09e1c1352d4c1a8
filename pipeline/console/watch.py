"""No long silence: what is going on is said when nothing else has been said for a while."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from types import TracebackType

from hoi_distill.pipeline.console.progress import duration
from hoi_distill.storage.errors import WorkStopped


class Watch:
    """Says after ``first`` seconds of a phase without a line what the phase is, and every ``every`` seconds of silence again.

    It is called with a line to print, as a training reports, and so knows when there was one.
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
        """Print a line and wait anew for silence."""
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
                    self(f"{self.what} ({duration(time.monotonic() - self.began)} so far)")
