"""An advisory lock that avoids duplicate work. Correctness must not depend on it: everything published is atomic anyway."""

from __future__ import annotations

import contextlib
import fcntl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

RETRY_SECONDS = 0.5


@contextlib.contextmanager
def alone(file: Path, stop: threading.Event, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold ``file``, made if need be, until the end of the block; wait while another process holds it.

    The system lets go of it for a process that dies, however it dies. Where the file system knows no locks there is
    nothing to wait for.

    Args:
        file: the lock.
        stop: once it is set, waiting ends.
        waiting: called once, before the first wait.

    Raises:
        KeyboardInterrupt: ``stop`` was set while another held it.
    """
    with open(file, "ab") as handle:
        told = False
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not told:
                    waiting()
                told = True
                if stop.wait(RETRY_SECONDS):
                    raise KeyboardInterrupt from None
            except OSError:
                break
            else:
                break
        yield
