"""Signals that end a command: the first one stops it once what is under way is saved, the second at once.

Ctrl-C has all the time it takes. SIGTERM (Slurm, Kubernetes, ``timeout``) and SIGHUP (a terminal or a connection that
closed) are followed by SIGKILL sooner or later, so after them a command ends within 20 seconds, whatever is under way.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

GRACE_SECONDS = 15.0
"""After SIGTERM or SIGHUP; the rest of the 20 seconds is for what ends after the work."""
SAME_SECONDS = 1.0
"""``timeout`` and a closing terminal send their signal more than once."""


@contextlib.contextmanager
def stop_on_interrupt(seconds: float | None = None) -> Iterator[threading.Event]:
    """An event that the first SIGINT, SIGTERM or SIGHUP sets. After it SIGINT raises KeyboardInterrupt, SIGTERM does where
    it is no repetition, and so does the end of the grace after SIGTERM or SIGHUP. A SIGHUP that was ignored before
    (``nohup``) stays so.

    Args:
        seconds: when time is up, as if Ctrl-C were pressed. None: never.
    """
    stop = threading.Event()
    with _time_limit(stop, seconds), _signals(stop):
        yield stop


@contextlib.contextmanager
def _time_limit(stop: threading.Event, seconds: float | None) -> Iterator[None]:
    def end() -> None:
        if not stop.is_set():
            stop.set()
            _say("Stopping: the time limit is reached; finishing and saving what is under way.")

    timer = threading.Timer(seconds or 0.0, end)
    timer.daemon = True
    if seconds is not None:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def _signals(stop: threading.Event) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first: float | None = None
    terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal first
        if number == signal.SIGHUP:
            _let_go(terminals)
        if number in (signal.SIGTERM, signal.SIGHUP) and not signal.getitimer(signal.ITIMER_REAL)[0]:
            signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)  # also where Ctrl-C came before
        if first is None:  # the event may be set already, where time was up
            first = time.monotonic()
            stop.set()
            _say("Stopping: finishing and saving what is under way (Ctrl-C again stops at once).")
        elif number in (signal.SIGINT, signal.SIGALRM) or (
            number == signal.SIGTERM and time.monotonic() - first >= SAME_SECONDS
        ):
            raise KeyboardInterrupt

    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGALRM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            # After an interrupt the process is on its way out with its own exit code: another Ctrl-C must not change that.
            signal.signal(number, signal.SIG_IGN if stop.is_set() else handler)


class Deadline:
    """When a command has to stop.

    Args:
        minutes: from now on. None: never.
    """

    def __init__(self, minutes: float | None) -> None:
        self._until = None if minutes is None else time.monotonic() + 60 * minutes

    def seconds_left(self) -> float | None:
        """Seconds, 0 if time is up; None without a limit."""
        return None if self._until is None else max(0.0, self._until - time.monotonic())

    def as_option(self) -> list[str]:
        """The option for a command that this one starts."""
        left = self.seconds_left()
        return [] if left is None else ["--time-limit", f"{max(left / 60, 0.001):.4f}"]


def _say(line: str) -> None:
    """Past the buffers, in the midst of whose writing a signal may have come."""
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())


def _let_go(terminals: list[int]) -> None:
    """A terminal that has gone fails whatever is written to it: what has still to be said is said to nobody."""
    gone = [descriptor for descriptor in terminals if not os.isatty(descriptor)]
    if gone:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in gone:
            os.dup2(nowhere, descriptor)
        os.close(nowhere)
