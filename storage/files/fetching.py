"""Objects on their way to this machine's disk. All readers of a process share one line of fetches: some run at once, each
object is fetched once, and what is needed now goes before what will be needed later."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait

from hoi_distill.storage.errors import WorkStopped
from hoi_distill.storage.files.address import place_at
from hoi_distill.storage.files.stores import store_of

Fetch = Callable[[str], object]
_AT_ONCE = 8  # one alone rarely fills a network


class Line:
    """Fetches that wait for their turn, and the threads that do them. A thread ends when nothing waits, or the program does."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, Fetch] = OrderedDict()
        self._done: dict[str, Future[None]] = {}
        self._threads = 0

    def ask(self, path: str, fetch: Fetch, *, now: bool) -> Future[None]:
        """What is done when ``fetch(path)`` was called, or the program ends before; what goes wrong is said by whoever reads the
        object.

        Args:
            path: the object's address. While its fetch waits or runs, no other one of it begins.
            fetch: brings it to this machine's disk, or finds it there.
            now: whether somebody waits for it, so that it is the next one.
        """
        with self._lock:
            done = self._done.get(path)
            if done is None:
                done = self._done[path] = Future()
                self._waiting[path] = fetch
                if self._threads < _AT_ONCE:
                    self._threads += 1
                    threading.Thread(target=self._work, name="fetch").start()
            if now and path in self._waiting:
                self._waiting.move_to_end(path, last=False)
            return done

    def _work(self) -> None:
        while (task := self._next()) is not None:
            path, fetch = task
            with contextlib.suppress(Exception):
                fetch(path)
            with self._lock:
                self._done.pop(path).set_result(None)

    def _next(self) -> tuple[str, Fetch] | None:
        """What a thread does next; None lets it end. A program that ends waits for its threads, but for no fetch more: whoever
        still waits for one is let go."""
        with self._lock:
            if self._waiting and threading.main_thread().is_alive():
                return self._waiting.popitem(last=False)
            for path in self._waiting:
                self._done.pop(path).set_result(None)
            self._waiting.clear()
            self._threads -= 1
            return None


@functools.cache
def _line(_pid: int) -> Line:
    return Line()  # a forked process has none of its parent's threads


def fetch_ahead(paths: Iterable[str], fetch: Fetch) -> None:
    """Begin to fetch objects, those that come first in ``paths`` first, and do not wait for them."""
    line = _line(os.getpid())
    for path in paths:
        line.ask(path, fetch, now=False)


def fetch_together(paths: Iterable[str], fetch: Fetch) -> None:
    """Fetch objects, several at once: those of which this machine has no copy."""

    def is_absent(path: str) -> bool:
        with contextlib.suppress(OSError, WorkStopped):
            return not store_of(place := place_at(path)).is_local(place)
        return False

    line = _line(os.getpid())
    wait([line.ask(path, fetch, now=True) for path in reversed([path for path in paths if is_absent(path)])])
