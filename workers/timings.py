"""Where the time of a worker goes, seen from its one model: what it computes, and what it waits for.

Reading, computing and writing overlap. What counts is the time in which the model could not compute, and why.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping

OPENING = "loading models"
READING = "waiting for reading"
PREPARING = "waiting for decoding and preprocessing"
ON_CPU = "computing on the CPU"
ON_GPU = "computing on the GPU"
COPYING = "waiting for copies from the GPU"
ANSWERS = "waiting for a server's answers"
WRITING = "waiting for writing"

Timings = dict[str, float]
"""Seconds, by the names above."""


def total(timings: Iterable[Mapping[str, float]]) -> Timings:
    """The sum of several tasks or workers."""
    found: Timings = {}
    for each in timings:
        for name, seconds in each.items():
            found[name] = found.get(name, 0.0) + seconds
    return found


def split_wait(seconds: float, read: float, prepared: float) -> Timings:
    """Time that was waited for images, by what the reader threads did for them.

    Args:
        seconds: that were waited.
        read: seconds of threads that read.
        prepared: seconds of threads that decoded and prepared.
    """
    share = read / (read + prepared) if read + prepared else 1.0
    return {READING: seconds * share, PREPARING: seconds * (1 - share)}


class Lane:
    """When a worker's model has work under way; one task at a time has it. It is told by one thread and asked by any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._busy = 0.0
        self._since: float | None = None

    def __enter__(self) -> Lane:
        with self._lock:
            self._since = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._busy += time.perf_counter() - (self._since or 0.0)
            self._since = None

    def idle(self) -> float:
        """Seconds without work under way, from some moment in the past. Differences count."""
        with self._lock:
            now = time.perf_counter()
            return now - self._busy - (0.0 if self._since is None else now - self._since)
