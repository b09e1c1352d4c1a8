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
def stop_on_interrupt() -> Iterator[threading.Event]:
    """An event that the first SIGINT, SIGTERM or SIGHUP sets. After it SIGINT raises KeyboardInterrupt, SIGTERM does where
    it is no repetition, and so does the end of the grace after SIGTERM or SIGHUP. A SIGHUP that was ignored before
    (``nohup``) stays so."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    first = 0.0
    terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal first
        if number == signal.SIGHUP:
            _let_go(terminals)
        if number in (signal.SIGTERM, signal.SIGHUP) and not signal.getitimer(signal.ITIMER_REAL)[0]:
            signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)  # also where Ctrl-C came before
        if not stop.is_set():
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
        yield stop
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            # After an interrupt the process is on its way out with its own exit code: another Ctrl-C must not change that.
            signal.signal(number, signal.SIG_IGN if stop.is_set() else handler)


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
