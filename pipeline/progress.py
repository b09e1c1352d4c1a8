"""Progress of a run: one line per table with rows/s and time left; without a terminal, a line every 30 seconds."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO

LINE_SECONDS = 5.0


@contextlib.contextmanager
def working(what: str, out: IO[str] | None = None, every: float = LINE_SECONDS) -> Iterator[None]:
    """Say what is done and for how long, every five seconds while it lasts; what is quick passes without a word.

    Args:
        what: ``starting Ray``, ``drawing the pico world into data/pico``.
    """
    out = out or sys.stderr
    ended = threading.Event()
    began = time.monotonic()

    def tell() -> None:
        while not ended.wait(every):
            with contextlib.suppress(OSError, ValueError):
                out.write(f"  {what} ({duration(time.monotonic() - began)})\n")
                out.flush()

    teller = threading.Thread(target=tell, name="working", daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()


@dataclass
class TableProgress:
    """Cells of one table: to do, done, recorded as failures."""

    todo: int
    done: int = 0
    failed: int = 0
    started: float | None = None
    ended: float | None = None


class Progress:
    """Prints what a run does. A terminal gets lines that renew themselves, anything else a line every ``every`` seconds."""

    def __init__(self, todo: Mapping[str, int], every: float = 30.0, out: IO[str] | None = None) -> None:
        self.out = out or sys.stderr
        self.tables = {name: TableProgress(cells) for name, cells in todo.items() if cells}
        self.every = 0.5 if self.out.isatty() else every
        self.began = self.last = time.monotonic()
        self.drawn = 0

    def advance(self, cells: Mapping[str, int], failures: Mapping[str, int]) -> None:
        """Count a finished task: cells written and failure cells recorded, by table."""
        now = time.monotonic()
        for name, number in cells.items():
            if name in self.tables:
                table = self.tables[name]
                table.started = table.started or self.began
                table.done += number
                table.failed += failures.get(name, 0)
                if table.done + table.failed >= table.todo:
                    table.ended = now
        if now - self.last >= self.every:
            self.draw(now)

    def draw(self, now: float | None = None) -> None:
        now = now or time.monotonic()
        self.last = now
        if self.out.isatty() and self.drawn:
            self.out.write(f"\x1b[{self.drawn}F\x1b[J")
        lines = [self.line(name, table, now) for name, table in self.tables.items()]
        self.out.write("".join(line + "\n" for line in lines))
        self.out.flush()
        self.drawn = len(lines)

    def line(self, name: str, table: TableProgress, now: float) -> str:
        finished = table.done + table.failed
        text = f"  {name:16s} {finished:>9,} / {table.todo:,} cells"
        if finished:
            rate = finished / max((table.ended or now) - self.began, 1e-9)
            left = (table.todo - finished) / rate
            text += f"  {rate:8,.0f}/s  {duration(left)} left" if left else f"  {rate:8,.0f}/s  done"
        return text + (f"  {table.failed} failed" if table.failed else "")


def duration(seconds: float) -> str:
    """``4 s``, ``3 min 20 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 6000:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(number: float) -> str:
    """``812 B``, ``3.4 MB``: decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"
